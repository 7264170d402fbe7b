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
