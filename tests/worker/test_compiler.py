"""The helper process: what it reads, writes, and may take."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from ddump_worker import compiler
from ddump_worker._pcap import compile_filter
from ddump_worker.filters import _COMMAND
from ddump_worker.program import chain, cook

PORTS = " or ".join(f"port {number}" for number in range(1, 600, 2))


def helper(text: bytes, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *_COMMAND, *(arguments or ("113", "262144"))],
        input=text,
        capture_output=True,
        check=False,
        timeout=20,
    )


def expected(*expressions: str, link_type: int = 113, snaplen: int = 262144) -> bytes:
    codes = [
        compile_filter(each, link_type=link_type, snaplen=snaplen)
        for each in expressions
    ]
    return b"+" + cook(chain(codes), link_type=link_type, snaplen=snaplen)


@pytest.mark.parametrize(
    ("text", "expressions"),
    [
        (b"udp\0not port 5", ["udp", "not port 5"]),
        (
            b"udp or tcp\0not port 5\0ip or arp",
            ["udp or tcp", "not port 5", "ip or arp"],
        ),
        (b"a" + b"rp\0", ["arp"]),
        (b"\0tcp", ["tcp"]),
        (b"", [""]),
        (b" \n \0 ", [""]),
    ],
)
def test_the_program_is_that_of_all_expressions(text, expressions):
    done = helper(text)
    assert (done.stdout, done.stderr) == (expected(*expressions), b"")


def test_link_type_and_snaplen_are_arguments():
    done = helper(b"udp\0", "276", "100")
    assert done.stdout == expected("udp", link_type=276, snaplen=100)


@pytest.mark.parametrize("expression", ["udp", "link[4:2] = 6", "inbound", "greater 9"])
def test_for_stored_packets_it_is_what_libpcap_made(expression):
    done = helper(expression.encode() + b"\0", "113", "262144", "stored")
    code = compile_filter(expression, link_type=113, snaplen=262144)
    assert done.stdout == b"+" + code


@pytest.mark.parametrize(("link_type", "outcome"), [("113", b"-"), ("276", b"+")])
def test_stored_packets_tell_their_interface_where_it_was_stored(link_type, outcome):
    answer = helper(b"ifindex 1\0", link_type, "262144", "stored").stdout
    assert answer.startswith(outcome)
    assert (b"needs a ring of sll2" in answer) == (outcome == b"-")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"tcp) or (udp\0arp", b"syntax error"),
        (b"vlan\0", b"no VLAN support"),
        (b"tcp and udp\0", b"rejects all packets"),
        (b"link[4:2] = 6\0", b"cannot filter by byte 4 of the cooked header"),
    ],
)
def test_what_does_not_compile_is_refused_with_the_reason(text, reason):
    done = helper(text)
    assert done.stdout.startswith(b"-")
    assert reason in done.stdout
    assert done.returncode == 0


def test_a_program_that_the_kernel_does_not_take_is_refused():
    # Not optimized away, and longer than BPF_MAXINSNS.
    sums = " and ".join(f"ip[{n}] + ip[{n + 1}] != {n}" for n in range(600))
    done = helper(sums.encode())
    assert done.stdout.startswith(b"-")
    assert b"instructions, the kernel takes 4096" in done.stdout


@pytest.mark.parametrize(
    "text", [b"\0vlan", b"udp\0vlan", b"udp\0ip\0vlan", b"\0tcp and udp"]
)
def test_what_is_wrong_with_the_exclusions_is_not_the_user_s_fault(text):
    assert helper(text).stdout.startswith(b"!")


def test_a_filter_that_the_exclusions_leave_nothing_of_is_a_filter():
    # Nothing comes, as nothing comes of much that can be asked for.
    assert helper(b"udp\0tcp").stdout == expected("udp", "tcp")


def test_a_filter_that_takes_too_long_is_killed():
    began = time.monotonic()
    done = helper(PORTS.encode())
    assert done.returncode == -signal.SIGXCPU
    assert done.stdout == b""
    assert (
        time.monotonic() - began < 30
    )  # 2 s of a processor, which others have as well


def test_the_helper_s_imports_stay_light():
    """What it imports decides how long each capture takes to begin."""
    script = (
        "import sys; import ddump_worker.compiler; "
        "print({'ssl', 'msgspec', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_its_limits_are_set():
    script = (
        "import resource; from ddump_worker.compiler import _limit; _limit(); "
        "print(resource.getrlimit(resource.RLIMIT_CPU),"
        " resource.getrlimit(resource.RLIMIT_AS),"
        " resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    memory = 512 << 20
    assert done.stdout.startswith(f"(2, 3) ({memory}, {memory}) (0, 0)")


class TestAnswer:
    """The same in this process, where no limit is set."""

    def test_a_program(self):
        assert compiler._answer(b"udp\0port 5 or arp", 113, 96) == expected(
            "udp", "port 5 or arp", snaplen=96
        )

    def test_a_refusal(self):
        assert compiler._answer(b"foo bar\0", 113, 96).startswith(b"-")

    def test_a_load_that_the_kernel_cannot_do(self):
        assert b"byte 4" in compiler._answer(b"link[4:2] = 6\0", 113, 96)

    def test_too_little_memory(self, monkeypatch):
        def exhausted(*_, **__):
            raise MemoryError

        monkeypatch.setattr(compiler._pcap, "compile_filter", exhausted)
        assert b"too much memory" in compiler._answer(b"udp\0", 113, 96)

    def test_what_is_unforeseen_is_raised(self):
        with pytest.raises(UnicodeDecodeError):
            compiler._answer(b"\xff\0", 113, 96)
