"""Filters compiled in helper processes: results, refusals, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddump_common.errors import CaptureError, FilterError
from ddump_common.pcap import LinkType
from ddump_worker import filters
from ddump_worker._pcap import compile_filter
from ddump_worker.compiler import NICENESS
from ddump_worker.filters import BusyError, FilterCompiler
from ddump_worker.program import chain, cook
from support.workers import wait_until

SLOW = " or ".join(f"port {number}" for number in range(1, 600, 2))
OPTIONS = {"link_type": LinkType.LINUX_SLL, "snaplen": 100}


def children() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # A thread of another test may end meanwhile.
            found.update(map(int, (task / "children").read_text().split()))
    return found


def compiled(*expressions: str, link_type: int = 113) -> bytes:
    return chain(
        [compile_filter(each, link_type=link_type, snaplen=100) for each in expressions]
    )


def program(*expressions: str) -> bytes:
    return cook(compiled(*expressions), link_type=113, snaplen=100)


def test_a_helper_gives_way_before_it_imports(tmp_path):
    package = tmp_path / "ddump_worker"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "compiler.py").write_text("import os; print(os.nice(0)); main = int")
    done = subprocess.run(
        [sys.executable, *filters._COMMAND],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert int(done.stdout) == min(os.nice(0) + NICENESS, 19)


async def test_a_filter_is_joined_with_all_exclusions():
    code = await FilterCompiler().compile(
        "udp or tcp", exclusions=["not port 1", "ip or arp"], **OPTIONS
    )
    assert code == program("udp or tcp", "not port 1", "ip or arp")
    assert not children()


async def test_a_filter_for_stored_packets_is_as_libpcap_made_it():
    code = await FilterCompiler().compile(
        "udp", exclusions=["ifindex 3"], stored=True,
        link_type=LinkType.LINUX_SLL2, snaplen=100,
    )  # fmt: skip
    assert code == compiled("udp", "ifindex 3", link_type=276)


async def test_an_empty_filter_matches_all():
    assert await FilterCompiler().compile("", **OPTIONS) == program("")


@pytest.mark.parametrize(
    ("expression", "hint"),
    [
        ("vlan", "cooked"),
        ("ether host 1:2:3:4:5:6", "cooked"),
        ("broadcast", "cooked"),
        ("multicast", "cooked"),
        ("foo bar", ""),
        ("tcp and udp", ""),
        ("net 1.2.3.4/99", ""),
    ],
)
async def test_a_refusal_has_the_library_s_words_and_a_hint(expression, hint):
    with pytest.raises(FilterError) as direct:
        compile_filter(expression, link_type=113, snaplen=100)
    with pytest.raises(FilterError) as caught:
        await FilterCompiler().compile(expression, **OPTIONS)
    assert caught.value.message == direct.value.message
    assert hint in caught.value.hint
    assert bool(hint) == bool(caught.value.hint)


async def test_words_for_a_terminal_are_made_harmless():
    with pytest.raises(FilterError) as caught:
        await FilterCompiler().compile("host \x1b[31mred", **OPTIONS)
    assert "\x1b" not in str(caught.value)


async def test_what_takes_too_long_is_refused_in_time():
    began = time.monotonic()
    with pytest.raises(FilterError, match="too long") as caught:
        await FilterCompiler().compile(SLOW, **OPTIONS)
    assert time.monotonic() - began < 5.5
    assert "portrange" in caught.value.hint
    assert not children()


async def test_what_waits_for_something_else_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(filters, "_COMMAND", ("-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(filters, "WALL_SECONDS", 0.3)
    with pytest.raises(FilterError, match="too long"):
        await FilterCompiler().compile("udp", **OPTIONS)
    assert not children()


async def test_a_helper_that_breaks_is_told_with_its_last_words(monkeypatch):
    monkeypatch.setattr(filters, "_COMMAND", ("-c", "raise SystemExit('so sorry')"))
    with pytest.raises(CaptureError, match=r"status 1\): so sorry") as caught:
        await FilterCompiler().compile("udp", **OPTIONS)
    assert not isinstance(caught.value, FilterError)


async def test_a_helper_that_someone_kills_did_not_take_too_long():
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(refusal(SLOW))
        await wait_until(children)
        os.kill(*children(), signal.SIGKILL)
    assert "failed (status -9)" in str(task.result())


async def refusal(
    expression: str, compiler: FilterCompiler | None = None
) -> CaptureError:
    with pytest.raises(CaptureError) as caught:
        await (compiler or FilterCompiler()).compile(expression, **OPTIONS)
    return caught.value


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EACCES, CaptureError), (errno.EAGAIN, BusyError)],
)
async def test_a_helper_that_cannot_be_started(monkeypatch, number, kind):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", fail)
    error = await refusal("udp")
    assert type(error) is kind
    assert os.strerror(number) in str(error)


async def test_a_thread_that_cannot_be_started():
    compiler = FilterCompiler()
    compiler._threads.shutdown()
    error = await refusal("udp", compiler)
    assert type(error) is BusyError
    assert "cannot start the process that compiles filters: " in str(error)


async def test_exclusions_are_named_when_they_are_at_fault():
    for expression in ("", "udp"):
        with pytest.raises(
            CaptureError, match="excludes does not compile: no VLAN"
        ) as e:
            await FilterCompiler().compile(expression, exclusions=["vlan"], **OPTIONS)
        assert not isinstance(e.value, FilterError)
        assert not e.value.hint


async def test_exclusions_that_take_too_long_are_named():
    with pytest.raises(CaptureError, match="worker excludes takes too long"):
        await FilterCompiler().compile("", exclusions=[SLOW], **OPTIONS)


async def test_one_after_the_other_when_all_are_taken():
    compiler = FilterCompiler(concurrency=1)
    async with asyncio.TaskGroup() as tasks:
        both = [
            tasks.create_task(compiler.compile(expression, **OPTIONS))
            for expression in ("udp", "tcp")
        ]
    assert [task.result() for task in both] == [program("udp"), program("tcp")]


async def test_many_that_ask_for_the_same_share_a_helper(monkeypatch):
    started = counted(monkeypatch)
    compiler = FilterCompiler(concurrency=1, share=1)
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(
                compiler.compile("udp", client=str(number % 3), **OPTIONS)
            )
            for number in range(60)
        ]
    assert {task.result() for task in asked} == {program("udp")}
    assert len(started) == 1
    # And so do those who come a little later.
    assert await compiler.compile("udp", **OPTIONS) == program("udp")
    assert len(started) == 1


async def test_only_the_same_is_shared(monkeypatch):
    started = counted(monkeypatch)
    compiler = FilterCompiler()
    other_snaplen = OPTIONS | {"snaplen": 50}
    codes = [
        await compiler.compile("udp", **OPTIONS),
        await compiler.compile("udp", **other_snaplen),
        await compiler.compile("udp", exclusions=["ip"], **OPTIONS),
        await compiler.compile("udp", **OPTIONS, stored=True),
        await compiler.compile("udp", link_type=LinkType.LINUX_SLL2, snaplen=100),
    ]
    assert len(set(codes)) == len(started) == 5


async def test_a_refusal_is_for_all_who_wait_and_for_nobody_after_them(monkeypatch):
    started = counted(monkeypatch)
    compiler = FilterCompiler()
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(refusal("foo bar", compiler)) for _ in range(5)]
    assert all(isinstance(task.result(), FilterError) for task in asked)
    assert len(started) == 1
    await refusal("foo bar", compiler)
    assert len(started) == 2


async def test_one_that_goes_leaves_the_helper_to_the_others():
    compiler = FilterCompiler(concurrency=1)
    async with asyncio.TaskGroup() as tasks:
        first, second, third = (
            tasks.create_task(compiler.compile("udp", **OPTIONS)) for _ in range(3)
        )
        await wait_until(children)
        (helper,) = children()
        first.cancel()
        third.cancel()
        await wait_until(lambda: first.done() and third.done())
        assert children() <= {helper}
    assert second.result() == program("udp")


async def test_the_place_is_taken_until_the_last_of_them_goes(monkeypatch):
    command = filters._COMMAND
    monkeypatch.setattr(filters, "_COMMAND", ("-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(filters, "QUEUE_SECONDS", 0.2)
    compiler = FilterCompiler(share=1)
    async with asyncio.TaskGroup() as tasks:
        first, second = (
            tasks.create_task(compiler.compile("udp", client=each, **OPTIONS))
            for each in "ab"
        )
        await wait_until(children)
        first.cancel()
        await wait_until(first.done)
        with pytest.raises(BusyError):
            await compiler.compile("tcp", client="a", **OPTIONS)
        monkeypatch.setattr(filters, "_COMMAND", command)
        assert await compiler.compile("tcp", client="b", **OPTIONS) == program("tcp")
        second.cancel()
    assert not children()
    assert await compiler.compile("tcp", client="a", **OPTIONS) == program("tcp")
    assert list(compiler._shares) == []


async def test_what_was_made_while_it_waited_for_a_place_is_taken(monkeypatch):
    started = counted(monkeypatch)
    compiler = FilterCompiler(share=1)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(compiler.compile("tcp", client="a", **OPTIONS))
        waiting = tasks.create_task(compiler.compile("udp", client="a", **OPTIONS))
        tasks.create_task(compiler.compile("udp", client="b", **OPTIONS))
    assert waiting.result() == program("udp")
    assert len(started) == 2


def counted(monkeypatch) -> list[tuple]:
    """Return a list of the helpers that are started from now on."""
    started = []
    start = subprocess.Popen

    def count(*words, **options):
        started.append(words)
        return start(*words, **options)

    monkeypatch.setattr(subprocess, "Popen", count)
    return started


async def test_who_waits_too_long_is_told_that_others_are_busy(monkeypatch):
    monkeypatch.setattr(filters, "_COMMAND", ("-c", "import time; time.sleep(60)"))
    compiler = FilterCompiler(concurrency=1)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(compiler.compile("udp", **OPTIONS))
        await wait_until(children)
        monkeypatch.setattr(filters, "QUEUE_SECONDS", 0.2)
        with pytest.raises(BusyError, match="too many filters"):
            await compiler.compile("tcp", **OPTIONS)
        first.cancel()
    assert not children()


async def test_a_client_s_slow_filters_keep_nobody_else_waiting(monkeypatch):
    monkeypatch.setattr(filters, "QUEUE_SECONDS", 0.3)
    command = filters._COMMAND
    monkeypatch.setattr(filters, "_COMMAND", ("-c", "import time; time.sleep(60)"))
    compiler = FilterCompiler(concurrency=4, share=2)
    async with asyncio.TaskGroup() as tasks:
        slow = [
            tasks.create_task(compiler.compile(expression, client="a", **OPTIONS))
            for expression in ("udp", "icmp")
        ]
        await wait_until(lambda: len(children()) == 2)
        monkeypatch.setattr(filters, "_COMMAND", command)
        with pytest.raises(BusyError):
            await compiler.compile("tcp", client="a", **OPTIONS)
        assert await compiler.compile("tcp", client="b", **OPTIONS) == program("tcp")
        assert await compiler.compile("", client="a", **OPTIONS) == program("")
        for task in slow:
            task.cancel()
    assert list(compiler._shares) == []


async def test_waiting_and_compiling_together_take_no_longer(monkeypatch):
    monkeypatch.setattr(filters, "_COMMAND", ("-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(filters, "WALL_SECONDS", 1.0)
    monkeypatch.setattr(filters, "QUEUE_SECONDS", 0.9)
    compiler = FilterCompiler(concurrency=1)
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(compiler.compile("udp", **OPTIONS))
        await wait_until(children)
        second = tasks.create_task(refusal("tcp", compiler))
        await asyncio.sleep(0.6)
        first.cancel()
    assert isinstance(second.result(), FilterError)
    assert time.monotonic() - began < 1.4


async def test_cancelling_leaves_no_process_and_gives_the_place_back():
    compiler = FilterCompiler(concurrency=1)
    for _ in range(3):
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(compiler.compile(SLOW, **OPTIONS))
            await wait_until(children)
            task.cancel()
        assert task.cancelled()
        assert not children()
    assert await compiler.compile("udp", **OPTIONS) == program("udp")
