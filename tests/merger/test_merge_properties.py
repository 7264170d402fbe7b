"""The merge against plain Python: any packets, any split, any order of events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ddump_merger._merge import Merge
from ddump_merger.counters import Counters
from support.captures import (
    SLL,
    SLL2,
    Cooked,
    PlainMerge,
    Record,
    late_in,
    parse_blocks,
    parse_records,
    pcap,
    pcap_header,
    pcap_record,
    pcapng,
)
from support.merges import drain, pieces

LARGE = 1 << 62
FORMATS = [
    lambda records: pcap(records, nano=True),
    lambda records: pcap(records, nano=True, byte_order=">"),
    pcapng,
    lambda records: pcapng(records, byte_order=">"),
]

# The machine may be busy: how long an example takes is not what is judged here.
settings.register_profile("merge", deadline=None)
calm = settings.get_profile("merge")

# Few different times, so that many are equal; some far apart.
moments = st.one_of(st.integers(0, 12), st.integers(0, (1 << 32) * 10**9 - 1))
payloads = st.binary(max_size=40)


@st.composite
def inputs_of_any_disorder(draw):
    """Per input its records, and how its bytes are written and split."""
    inputs = []
    for i in range(draw(st.integers(1, 5))):
        times = draw(st.lists(moments, max_size=25))
        # Every packet is told apart from every other.
        records = [
            Record(t, b"%d.%d." % (i, n) + draw(payloads)) for n, t in enumerate(times)
        ]
        inputs.append(records)
    return inputs


@st.composite
def inputs_of_bounded_disorder(draw):
    """(disorder, records per input) where no record is further behind than disorder."""
    disorder = draw(st.integers(0, 10))
    inputs = []
    for i in range(draw(st.integers(1, 5))):
        records = []
        newest = 0
        for n in range(draw(st.integers(0, 25))):
            newest += draw(st.integers(0, 4))
            behind = draw(st.integers(0, disorder))
            records.append(Record(max(0, newest - behind), b"%d.%d" % (i, n)))
        inputs.append(records)
    return disorder, inputs


def union(inputs):
    """All records in order of (timestamp, input, arrival): the sort is stable."""
    return sorted(
        (record for records in inputs for record in records),
        key=lambda record: record.timestamp_ns,
    )


def identity(record):
    return record.timestamp_ns, record.data


def feed_interleaved(data, merge, captures):
    """Feed the captures in pieces, in any order, draining in between; return all."""
    queues = []
    for capture in captures:
        cuts = data.draw(st.lists(st.integers(0, len(capture)), max_size=8))
        queues.append(pieces(capture, cuts))
    out = b""
    waiting = list(range(len(captures)))
    while waiting:
        i = data.draw(st.sampled_from(waiting))
        if queues[i]:
            merge.receive_data(i, queues[i].pop(0))
        else:
            merge.receive_eof(i)
            waiting.remove(i)
        if data.draw(st.booleans()):
            out += drain(merge)
    return out + drain(merge)


@calm
@given(st.data(), inputs_of_any_disorder())
def test_equals_a_stable_sort_of_the_union(data, inputs):
    merge = Merge(len(inputs), disorder_ns=LARGE, nano=True)
    merge.start(SLL)
    captures = [data.draw(st.sampled_from(FORMATS))(records) for records in inputs]
    out = feed_interleaved(data, merge, captures)
    assert parse_records(out, nano=True) == union(inputs)
    assert merge.done
    for i, records in enumerate(inputs):
        octets = sum(len(record.data) for record in records)
        assert merge.counters(i) == Counters(len(records), octets, 0, 0)
        assert merge.buffered(i) == 0


@calm
@given(st.data(), inputs_of_bounded_disorder())
def test_bounded_disorder_is_mended_whatever_the_timing(data, bounded):
    disorder, inputs = bounded
    merge = Merge(len(inputs), disorder_ns=disorder, nano=True)
    merge.start(SLL)
    out = feed_interleaved(data, merge, [pcapng(records) for records in inputs])
    assert parse_records(out, nano=True) == union(inputs)
    assert [merge.counters(i)[2] for i in range(len(inputs))] == [0] * len(inputs)


@calm
@given(st.data(), inputs_of_any_disorder(), st.integers(0, 1000))
def test_nothing_is_lost_and_late_is_what_it_says(data, inputs, disorder):
    merge = Merge(len(inputs), disorder_ns=disorder, nano=True)
    merge.start(SLL)
    out = feed_interleaved(data, merge, [FORMATS[0](records) for records in inputs])
    records = parse_records(out, nano=True)
    assert sorted(records, key=identity) == sorted(union(inputs), key=identity)
    late = sum(merge.counters(i)[2] for i in range(len(inputs)))
    assert late == late_in(record.timestamp_ns for record in records)


@calm
@given(inputs_of_any_disorder(), st.booleans())
def test_pcapng_holds_the_same_and_names_the_input(inputs, nano):
    merge = Merge(len(inputs), disorder_ns=LARGE, pcapng=True, nano=nano)
    merge.start(SLL)
    for i, records in enumerate(inputs):
        merge.receive_data(i, pcapng(records))
        merge.receive_eof(i)
    per_unit = 1 if nano else 1000
    assert parse_blocks(drain(merge)) == [
        (
            int(record.data.partition(b".")[0]),
            record.timestamp_ns // per_unit,
            Record(0, record.data),
        )
        for record in union(inputs)
    ]


steps = st.one_of(
    st.tuples(st.just("receive"), st.integers(0, 2), st.integers(0, 30)),
    st.tuples(st.just("receive"), st.integers(0, 2), st.integers(0, 30)),
    st.tuples(st.just("advance"), st.integers(0, 2), st.integers(-5, 40)),
    st.tuples(st.just("end"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("drain"), st.just(0), st.just(0)),
)


@settings(calm, max_examples=300)
@given(st.lists(steps, max_size=60), st.integers(0, 8))
def test_every_step_is_that_of_the_plain_merge(steps, disorder):
    merge = Merge(3, disorder_ns=disorder, nano=True)
    plain = PlainMerge(3, disorder_ns=disorder)
    merge.start(SLL)
    for i in range(3):
        merge.receive_data(i, pcap_header(nano=True))
    ended = set()
    for n, (step, i, moment) in enumerate([*steps, ("drain", 0, 0)]):
        if step == "drain":
            expected = [record for _, record in plain.release()]
            assert parse_records(drain(merge), nano=True) == expected
        elif i in ended:
            continue
        elif step == "receive":
            record = Record(moment, b"%d" % n)
            merge.receive_data(i, pcap_record(record, nano=True))
            plain.receive(i, record)
        elif step == "advance":
            merge.advance(i, moment)
            plain.advance(i, moment)
        else:
            merge.receive_eof(i)
            plain.end(i)
            ended.add(i)
    for i in range(3):
        released = [record for number, record in plain.released if number == i]
        octets = sum(len(record.data) for record in released)
        late = plain.inputs[i].late
        assert merge.counters(i) == Counters(len(released), octets, late, 0)


@calm
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), max_size=150),
    st.lists(st.tuples(st.integers(0, 30_000), st.booleans()), min_size=4, max_size=4),
    st.integers(0, 60),
)
def test_limits_hold_and_lose_nothing(arrivals, limits, disorder):
    merge = Merge(4, disorder_ns=disorder, nano=True)
    merge.start(SLL)
    for i, (max_bytes, live) in enumerate(limits):
        merge.limit(i, max_bytes, live=live)
        merge.receive_data(i, pcap_header(nano=True))
    records = []
    out = b""
    for n, (i, moment) in enumerate(arrivals):
        records.append(Record(moment, b"%d" % n + bytes(500)))
        merge.receive_data(i, pcap_record(records[-1], nano=True))
        out += drain(merge)
        for each, (max_bytes, live) in enumerate(limits):
            if live:
                assert merge.buffered(each) <= max_bytes
    for i in range(4):
        merge.receive_eof(i)
    merged = parse_records(out + drain(merge), nano=True)
    assert sorted(merged, key=lambda each: int(each.data.rstrip(b"\0"))) == records
    late = sum(merge.counters(i)[2] for i in range(4))
    assert late == late_in(record.timestamp_ns for record in merged)


cooked = st.builds(
    Cooked,
    protocol=st.integers(0, 0xFFFF),
    arphrd=st.integers(0, 0xFFFF),
    packet_type=st.integers(0, 0xFF),
    address_length=st.integers(0, 0xFF),
    address=st.binary(min_size=8, max_size=8),
    payload=payloads,
)


@calm
@given(st.lists(cooked, max_size=20))
def test_cooked_headers_survive_both_ways(packets):
    for source, target, pick in ((SLL, SLL2, 0), (SLL2, SLL, 1)):
        both = [(packet.sll(), packet.sll2()) for packet in packets]
        merge = Merge(1, nano=True)
        merge.start(target)
        records = [Record(n, pair[pick]) for n, pair in enumerate(both)]
        merge.receive_data(0, pcap(records, nano=True, link_type=source))
        merge.receive_eof(0)
        assert parse_records(drain(merge), nano=True) == [
            Record(n, pair[1 - pick]) for n, pair in enumerate(both)
        ]
