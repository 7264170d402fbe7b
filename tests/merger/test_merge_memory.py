"""When there is no memory: an error, and nothing that was taken before is lost."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The address space is limited in a process of its own. The input is one object, given
# again and again, so that the merge's own bookkeeping is what fails to grow.
LIMIT = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from support.captures import *
from support.merges import drain
from ddump_merger._merge import Merge

def limit():
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    bound = used + (20 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (bound, resource.RLIM_INFINITY))

def unlimit():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
"""

RECORDS = (
    LIMIT
    + """
def record(timestamp_ns, data=b""):
    return pcap_record(Record(timestamp_ns, data), nano=True)

merge = Merge(2, disorder_ns=1 << 62, nano=True)
merge.start(SLL)
first, step = {"chain": (1, 0), "rising": (5000, 1), "falling": (5000, -1)}[sys.argv[2]]
chunk = b"".join(record(2000 + step * n) for n in range(997))
for i in range(2):
    merge.receive_data(i, pcap_header(nano=True))
    merge.receive_data(i, record(first, b"first"))
limit()
chunks = 0
try:
    while True:
        merge.receive_data(0, chunk)
        chunks += 1
except MemoryError:
    pass
unlimit()
assert merge.lagging() == 1, "it has ended, and it alone"
merge.receive_data(1, record(0))
merge.receive_eof(1)
packets = 0
last = -1
while data := merge.data_to_send():
    for each in parse_records(data, nano=True):
        assert each.timestamp_ns >= last
        last = each.timestamp_ns
        packets += 1
assert merge.done
assert merge.buffered(0) == merge.buffered(1) == 0
taken, octets, late, cut, *_ = merge.counters(0)
assert (octets, late, cut) == (5, 0, 0)
assert packets == taken + 2
assert chunks * 997 < taken <= (chunks + 1) * 997 + 1, (chunks, taken)
assert taken > 100_000
print("ok")
"""
)

# Many inputs, each of which holds a little, until one cannot.
INPUTS = (
    LIMIT
    + """
merge = Merge(5000, disorder_ns=1 << 62)
merge.start(SLL)
before, more, good = {
    "carry": (
        pcap([Record(0, b"first")]),
        pcap_record(Record(0, bytes(100_000)))[:-1],
        b"\\0",
    ),
    "interfaces": (section(), interface() * 3000, b""),
}[sys.argv[2]]
for i in range(5000):
    merge.receive_data(i, before)
limit()
failed = None
for i in range(5000):
    try:
        merge.receive_data(i, more)
    except MemoryError:
        failed = i
        break
unlimit()
assert failed is not None and failed > 50, failed
try:
    merge.receive_data(failed, b"")
except ValueError as exc:
    assert str(exc) == f"input {failed} has ended"
for i in range(5000):
    if i < failed:
        merge.receive_data(i, good)
    merge.receive_eof(i)
packets = parse_records(drain(merge))
assert merge.done
assert not any(merge.buffered(i) for i in range(5000))
if good:
    assert packets == [Record(0, b"first"), Record(0, bytes(100_000))] * failed + [
        Record(0, b"first")
    ] * (5000 - failed)
print("ok")
"""
)


def run(script, case, request):
    tests = str(request.config.rootpath / "tests")
    done = subprocess.run(
        [sys.executable, "-c", script, tests, case],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.process
@pytest.mark.parametrize("case", ["chain", "rising", "falling"])
def test_no_memory_for_records(case, request):
    run(RECORDS, case, request)


@pytest.mark.process
@pytest.mark.parametrize("case", ["carry", "interfaces"])
def test_no_memory_for_what_is_not_whole(case, request):
    run(INPUTS, case, request)


# A seam that cannot grow: what it took before stays, and is left out.
SEAM = (
    LIMIT
    + """
from ddump_merger._merge import Seam

def chunk(number):
    first = number * 1000
    return b"".join(pcap_record(Record(first + n), nano=True) for n in range(1000))

seam = Seam(0)
seam.receive_data(pcap_header(nano=True))
chunks = [chunk(number) for number in range(2000)]
limit()
taken = 0
try:
    for data in chunks:
        seam.receive_data(data)
        taken += 1
except MemoryError:
    pass
unlimit()
assert 200 < taken < 2000, taken
assert taken * 1000 <= len(seam) < taken * 1000 + 1000
try:
    seam.receive_data(b"")
except ValueError as exc:
    assert str(exc) == "the seam takes no more"
print("ok")
"""
)

# Many inputs whose packets are of more and more interfaces.
DESCRIPTIONS = (
    LIMIT
    + """
merge = Merge(3000, pcapng=True, per_interface=True)
merge.start(SLL2)
limit()
failed = None
try:
    for index in range(4000):
        for i in range(3000):
            failed = (i, index)
            merge.describe(i, index, index)
except MemoryError:
    pass
unlimit()
assert failed is not None and 64 < failed[1] < 4000, failed
i, index = failed
merge.describe(i, index, 77)  # nothing has changed, and now there is room
merge.describe(i, 3, 55)
packets = [Record(0, Cooked(ifindex=each).sll2()) for each in (2, 3, index)]
merge.receive_data(i, pcap(packets, link_type=SLL2))
for each in range(3000):
    if each != i:
        merge.refuse(each)
merge.receive_eof(i)
assert [number for number, _, _ in parse_blocks(drain(merge))] == [2, 55, 77]
print("ok")
"""
)


@pytest.mark.process
@pytest.mark.parametrize("script", [SEAM, DESCRIPTIONS], ids=["seam", "descriptions"])
def test_no_memory_for_what_is_beside_the_records(script, request):
    run(script, "", request)


def test_a_seam_takes_no_more_than_it_says():
    # 43 bytes a packet, and half of that again while it grows.
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import resource, struct, sys\n"
            "from ddump_merger._merge import Seam\n"
            "header = bytes.fromhex('4d3cb2a1020004000000000000000000ffff000071000000')\n"
            "seam = Seam(0)\n"
            "seam.receive_data(header)\n"
            "parts = [b''.join(struct.pack('<IIII', s, n, 0, 0) for n in range(1000))\n"
            "         for s in range(1000)]\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "for part in parts: seam.receive_data(part)\n"
            "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "assert len(seam) == 1_000_000\n"
            "print((after - before) * 1024)\n",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) < 1_000_000 * 65
