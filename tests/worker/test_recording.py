"""What is recorded: the program of the moment, and the ends that a start may come to."""

from __future__ import annotations

import asyncio
import time

import pytest

from ddump_common.api import Link, RingQuery
from ddump_common.errors import CaptureError, FilterError, UsageError
from ddump_worker import recording as module
from ddump_worker.exclusion import Exclusion
from ddump_worker.filters import FilterCompiler
from ddump_worker.interfaces import Interface
from ddump_worker.recording import record
from support.loopback import payloads, talker
from support.rings import options
from support.workers import wait_until

pytestmark = [pytest.mark.live, pytest.mark.process]


def interface(name: str, index: int) -> Interface:
    return Interface(
        name=name, index=index, up=True, loopback=False, promiscuous=False, dropped=0
    )


@pytest.fixture
def host(monkeypatch):
    """The interfaces that the host seems to have; the real ones until they are set."""
    real = module.interfaces()
    found = list(real)
    monkeypatch.setattr(module, "interfaces", lambda: list(found))
    return found


async def begun(tmp_path, *, exclusion=None, filters=None, **given):
    async with asyncio.timeout(10):
        return await record(
            await asyncio.to_thread(options, tmp_path, **given),
            exclusion=exclusion or Exclusion(),
            filters=filters or FilterCompiler(),
            max_windows=3,
        )


async def pulled(recording, expression: str) -> list[bytes]:
    """Return the payloads of all that the ring has and matches."""
    query = RingQuery()
    program = await FilterCompiler().compile(
        expression,
        link_type=recording.ring.options.link.link_type,
        snaplen=262144,
        stored=True,
    )
    plan = await recording.windows.plan(query, now_ns=time.time_ns())
    pull = await recording.windows.open(query, plan, program)
    found = []

    async def send(data):
        found.append(data)

    await pull.deliver(send)
    pull.close()
    return payloads(b"".join(found))


async def test_it_records_what_is_not_excluded(tmp_path):
    with talker() as udp, talker() as excluded:
        recording = await begun(
            tmp_path, exclusion=Exclusion(operator=(excluded.filter,))
        )
        try:
            sent = udp.send(3)
            excluded.send(3)
            assert await pulled(recording, "udp and dst host 127.0.0.1") == sent
            info = recording.info()
            assert (info.state, info.windows, info.max_windows) == ("recording", 0, 3)
            assert (info.partial, info.interfaces) == ("", {})
        finally:
            await recording.stop()
        assert recording.ring.state == "ended"


async def test_its_filter_and_interfaces_narrow_it(tmp_path):
    with talker() as udp, talker() as other:
        recording = await begun(tmp_path, filter=udp.filter, interfaces=("lo",))
        try:
            sent = udp.send(3)
            other.send(3)
            assert await pulled(recording, "udp") == sent
            assert recording.info().partial == f"only {udp.filter}; only from lo"
        finally:
            await recording.stop()


async def test_a_change_of_the_host_changes_the_program_and_loses_nothing(
    tmp_path, host, caplog
):
    caplog.set_level("INFO")
    with talker() as udp:
        recording = await begun(tmp_path, interfaces=("lo",))
        try:
            sent = udp.send(3)
            await recording.refresh()
            assert "have changed" not in caplog.text
            # As if it were another interface now: its packets are no longer taken.
            (lo,) = [each for each in host if each.name == "lo"]
            host.remove(lo)
            host.append(interface("lo", 999_999))
            await recording.refresh()
            assert caplog.text.count("have changed") == 1
            udp.send(3)
            # Gone: it is still known by the index that it had last.
            host.pop()
            host.append(interface("dummy7", 7))
            await recording.refresh()
            assert caplog.text.count("have changed") == 1
            host.append(lo)
            await recording.refresh()
            sent += udp.send(3)
            assert await pulled(recording, udp.filter) == sent
        finally:
            await recording.stop()


async def test_a_program_that_cannot_be_compiled_leaves_the_old_one(tmp_path, host):
    filters = FilterCompiler()
    recording = await begun(tmp_path, interfaces=("lo",), filters=filters)
    try:
        with talker() as udp:
            sent = udp.send(1)
            host.append(interface("lo", 999_999))

            async def fail(*_, **__):
                raise CaptureError("no helper")

            filters.compile = fail
            for _ in range(2):
                with pytest.raises(CaptureError, match="no helper"):
                    await recording.refresh()
            sent += udp.send(1)
            assert await pulled(recording, udp.filter) == sent
    finally:
        await recording.stop()


async def test_names_of_interfaces_are_those_that_were_stored(tmp_path, host):
    recording = await begun(tmp_path, link=Link.SLL2)
    try:
        known = recording.interfaces()
        (lo,) = [each.index for each in host if each.name == "lo"]
        assert known["lo"] == {lo}
        host.append(interface("new0", 77))
        (segment,) = recording.ring.segments()
        segment.interfaces = {5: frozenset({"old0", "lo"}), lo: frozenset({"lo"})}
        known = recording.interfaces()
        assert (known["old0"], known["lo"], known["new0"]) == ({5}, {5, lo}, {77})
        # What is told is of what it holds, and new0 is not there as yet.
        told = recording.info().interfaces
        assert told == {"old0": [5], "lo": sorted({5, lo})}
    finally:
        await recording.stop()


async def test_a_recorder_that_fails_fails_its_followers(tmp_path):
    recording = await begun(tmp_path)
    try:
        recording._recorder.failure = OSError("the disk is gone")
        await recording.refresh()
        query = RingQuery(follow=True)
        plan = await recording.windows.plan(query, now_ns=time.time_ns())
        pull = await recording.windows.open(query, plan, b"")

        async def send(_):
            pass

        with pytest.raises(CaptureError, match="has failed: the disk is gone"):
            await pull.deliver(send)
        pull.close()
    finally:
        await recording.stop()


class TestStart:
    """Whatever ends it, nothing stays open, and another may begin."""

    async def is_left_whole(self, tmp_path) -> None:
        recording = await begun(tmp_path)
        await recording.stop()

    async def test_an_interface_that_is_not_there(self, tmp_path):
        with pytest.raises(UsageError, match=r"'nosuch0' is not .*there are lo"):
            await begun(tmp_path, interfaces=("lo", "nosuch0"))
        await self.is_left_whole(tmp_path)

    async def test_a_filter_that_does_not_compile(self, tmp_path):
        with pytest.raises(UsageError, match="--ring-filter 'a b c': ") as caught:
            await begun(tmp_path, filter="a b c")
        assert isinstance(caught.value.__cause__, FilterError)
        await self.is_left_whole(tmp_path)

    async def test_exclusions_that_do_not(self, tmp_path):
        with pytest.raises(CaptureError, match="what the worker excludes"):
            await begun(tmp_path, exclusion=Exclusion(operator=("a b c",)))
        await self.is_left_whole(tmp_path)

    async def test_a_segment_that_cannot_be_made(self, tmp_path, monkeypatch):
        def fail(_):
            raise CaptureError("no segment")

        with monkeypatch.context() as patch:
            patch.setattr(module.Recording, "start", fail)
            with pytest.raises(CaptureError, match="no segment"):
                await begun(tmp_path)
        await self.is_left_whole(tmp_path)

    @pytest.mark.parametrize("step", ["Ring", "_open", "start"])
    async def test_being_cancelled_at_each_step(self, tmp_path, monkeypatch, step):
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()
        owner = module.Recording if step == "start" else module
        whole = getattr(owner, step)

        def slow(*arguments):
            loop.call_soon_threadsafe(reached.set)
            time.sleep(0.05)
            return whole(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, step, slow)
            async with asyncio.TaskGroup() as tasks:
                beginning = tasks.create_task(begun(tmp_path))
                await reached.wait()
                beginning.cancel()
        assert beginning.cancelled()
        await self.is_left_whole(tmp_path)

    async def test_a_second_one_in_the_directory(self, tmp_path):
        recording = await begun(tmp_path)
        try:
            with pytest.raises(UsageError, match="records in"):
                await begun(tmp_path)
        finally:
            await recording.stop()
        await wait_until(lambda: not recording.windows._pulls)
