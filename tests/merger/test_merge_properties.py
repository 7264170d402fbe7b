"""The merge against plain Python: any packets, any split, any order of events."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from ddump_merger._merge import Merge, Seam
from ddump_merger.counters import Counters
from support.captures import (
    SLL,
    SLL2,
    Cooked,
    PlainMerge,
    Record,
    block,
    enhanced_packet,
    interface,
    late_in,
    parse_blocks,
    parse_records,
    pcap,
    pcap_header,
    pcap_record,
    pcapng,
    section,
    statistics,
)
from support.merges import drain, pieces

LARGE = 1 << 62
NG = section() + interface(tsresol=9)
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


numbers = st.integers(0, 2)
steps = st.one_of(
    st.tuples(st.just("receive"), numbers, st.integers(0, 30)),
    st.tuples(st.just("receive"), numbers, st.integers(0, 30)),
    st.tuples(st.just("receive"), numbers, st.integers(0, 30)),
    st.tuples(st.just("beat"), numbers, st.integers(0, 40)),
    st.tuples(st.just("advance"), numbers, st.integers(-5, 40)),
    st.tuples(st.just("suspend"), numbers, st.just(0)),
    st.tuples(st.just("resume"), numbers, st.just(0)),
    st.tuples(st.just("reopen"), numbers, st.integers(-5, 40)),
    st.tuples(st.just("refill"), numbers, st.integers(0, 40)),
    st.tuples(st.just("shift"), numbers, st.integers(0, 3)),
    st.tuples(st.just("end"), numbers, st.just(0)),
    st.tuples(st.just("drain"), st.just(0), st.just(0)),
)


class Both:
    """The merge and the plain merge, each step done in both."""

    def __init__(self, disorder):
        self.merge = Merge(3, disorder_ns=disorder, nano=True)
        self.plain = PlainMerge(3, disorder_ns=disorder)
        self.merge.start(SLL)
        for i in range(3):
            self.merge.receive_data(i, NG)
            self.merge.trust(i)
        self.came = 0

    def receive(self, i, moment):
        self.came += 1
        record = Record(moment, b"%d" % self.came)
        if not self.plain.inputs[i].ended:
            self.merge.receive_data(i, enhanced_packet(moment, record))
            self.plain.receive(i, record)

    def beat(self, i, moment):
        if not self.plain.inputs[i].ended:
            self.merge.receive_data(i, statistics(moment))
            self.plain.beat(i, moment)

    def advance(self, i, moment):
        self.merge.advance(i, moment)
        if not self.plain.inputs[i].ended:
            self.plain.advance(i, moment)

    def suspend(self, i, _):
        self.merge.suspend(i)
        self.plain.suspend(i)

    def resume(self, i, _):
        self.merge.resume(i)
        self.plain.resume(i)

    def reopen(self, i, moment):
        self.merge.reopen(i, since_ns=moment)
        self.merge.receive_data(i, NG)
        self.merge.trust(i)
        self.plain.reopen(i, moment)

    def refill(self, i, moment):
        self.merge.refill(i, moment)
        self.plain.refill(i, moment)

    def shift(self, i, moment):
        self.merge.shift(i, moment)
        self.plain.inputs[i].shift_ns = moment

    def end(self, i, _):
        self.merge.receive_eof(i)
        self.plain.end(i)

    def drain(self, *_):
        expected = [record for _, record in self.plain.release()]
        assert parse_records(drain(self.merge), nano=True) == expected


@settings(calm, max_examples=500)
@given(st.lists(steps, max_size=60), st.integers(0, 8))
def test_every_step_is_that_of_the_plain_merge(steps, disorder):
    both = Both(disorder)
    merge, plain = both.merge, both.plain
    for step, i, moment in [*steps, ("drain", 0, 0)]:
        getattr(both, step)(i, moment)
        assert merge.done == plain.done
        assert merge.lagging() == plain.lagging()
    assert merge.released_ns == max(plain.last_ns, -(1 << 63))
    for i, input_ in enumerate(plain.inputs):
        released = [record for number, record in plain.released if number == i]
        assert merge.counters(i) == Counters(
            packets=len(released),
            octets=sum(len(record.data) for record in released),
            late=input_.late,
            refilled=input_.refilled,
            backwards=input_.backwards,
        )
        expected = (1 << 63) - 1 if input_.ended else max(input_.watermark, -(1 << 63))
        assert merge.watermark(i) == expected


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


# --- Captures that are read again ---


@st.composite
def units_of_a_capture(draw):
    """The blocks or records of a capture after its preamble, and that."""
    times = draw(st.lists(st.integers(0, 20), max_size=12))
    records = [Record(t, draw(st.sampled_from([b"", b"a", b"bb"]))) for t in times]
    if draw(st.booleans()):
        order, nano = draw(st.sampled_from("<>")), draw(st.booleans())
        return pcap_header(byte_order=order, nano=nano), [
            (pcap_record(record, byte_order=order, nano=nano), record)
            for record in (
                Record(each.timestamp_ns * 1000, each.data) for each in records
            )
        ]
    order = {"byte_order": draw(st.sampled_from("<>"))}
    units = []
    for record in records:
        for _ in range(draw(st.integers(0, 2))):
            odd = draw(
                st.sampled_from(
                    [
                        [statistics(3, **order)],
                        [block(99, bytes(5), **order)],
                        [section(**order), interface(**order, tsresol=9)],
                        [interface(**order, tsresol=0)],
                    ]
                )
            )
            units += [(each, None) for each in odd]
        number = record.timestamp_ns
        units.append((enhanced_packet(number, record, **order), record))
    return section(**order) + interface(**order, tsresol=9), units


def placed(preamble, units):
    """Return where each unit begins and ends, and its record."""
    at = len(preamble)
    places = []
    for unit, record in units:
        places.append((at, at + len(unit), record))
        at += len(unit)
    return places


def any_pieces(data, whole):
    return pieces(whole, data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))


@settings(calm, max_examples=400)
@given(st.data(), units_of_a_capture())
def test_progress_is_exact_whatever_the_pieces(data, capture):
    preamble, units = capture
    whole = preamble + b"".join(unit for unit, _ in units)
    ends = [0, len(preamble), *(end for _, end, _ in placed(preamble, units))]
    if whole.startswith(section(byte_order="<")[:4]):
        ends.insert(1, len(section()))
    merge = Merge(1)
    taken = 0
    for part in any_pieces(data, whole):
        merge.receive_data(0, part)
        taken += len(part)
        offset, first, newest_ns = merge.progress(0)
        assert offset == max(end for end in ends if end <= taken)
        came = [each for each in placed(preamble, units) if each[1] <= taken]
        assert newest_ns == max(
            (record.timestamp_ns for _, _, record in came if record), default=-1
        )
        since = [begin for begin, _, record in came if record and begin >= first]
        assert first == (since[0] if since else offset)


@settings(calm, max_examples=400)
@given(st.data(), units_of_a_capture(), st.integers(0, 20_000))
def test_what_progress_names_is_a_capture_for_a_seam(data, capture, since_ns):
    preamble, units = capture
    whole = preamble + b"".join(unit for unit, _ in units)
    merge = Merge(1)
    merge.receive_data(0, whole)
    offset, first, _ = merge.progress(0)
    places = placed(preamble, units)
    start = data.draw(
        st.sampled_from([offset, *(begin for begin, _, _ in places if begin >= first)])
    )
    kept = [
        record
        for begin, end, record in places
        if (end <= first or begin >= start) and record
        if record.timestamp_ns >= since_ns
    ]
    seam = Seam(since_ns)
    for part in any_pieces(data, whole[:first] + whole[start:]):
        seam.receive_data(part)
    assert len(seam) == len(kept)
    # Those and no others are left out of what comes again, each once.
    again = data.draw(st.permutations([*kept, Record(5000, b"new")]))
    merge = Merge(1, nano=True)
    merge.start(SLL)
    merge.reopen(0, since_ns=0, seam=seam)
    for part in any_pieces(data, pcapng(again)):
        merge.receive_data(0, part)
    merge.receive_eof(0)
    assert parse_records(drain(merge), nano=True) == [Record(5000, b"new")]
    assert merge.counters(0).joined == len(kept)


@calm
@given(st.data(), st.lists(moments, max_size=40), st.integers(0, 40), moments)
def test_an_outage_that_is_joined_costs_nothing(data, times, broken, promised):
    # What came up to the break, and all from the last promise on once more.
    records = [Record(t, b"%d" % (n % 3)) for n, t in enumerate(times)]
    before = pcapng(records[:broken])
    merge = Merge(1, disorder_ns=LARGE, nano=True)
    merge.start(SLL)
    merge.receive_data(0, before)
    seam = Seam(promised)
    for part in any_pieces(data, before):
        seam.receive_data(part)
    merge.suspend(0)
    merge.reopen(0, since_ns=promised, seam=seam)
    merge.refill(0, LARGE)
    again = [
        record
        for n, record in enumerate(records)
        if n >= broken or record.timestamp_ns >= promised
    ]
    for part in any_pieces(data, pcap(again, nano=True)):
        merge.receive_data(0, part)
    merge.resume(0)
    merge.receive_eof(0)
    merged = parse_records(drain(merge), nano=True)
    assert merged == union([records])
    counters = merge.counters(0)
    assert counters.joined == len(again) - len(records[broken:])
    assert counters.refilled == len(records[broken:])
    assert counters.late == 0


@calm
@given(
    st.data(),
    st.lists(st.lists(st.sampled_from(b"abc"), max_size=8), max_size=4),
    st.lists(st.sampled_from(b"abcd"), max_size=12),
)
def test_what_several_streams_brought_had_come_as_often_as_one_had_it(
    data, streams, again
):
    # Each brings all from some moment on, so what two have they have in common.
    seam = Seam(0)
    for stream in streams:
        seam.next_stream()
        records = [Record(7, bytes([letter])) for letter in stream]
        for part in any_pieces(data, data.draw(st.sampled_from(FORMATS))(records)):
            seam.receive_data(part)
    come = Counter()
    for stream in streams:
        come |= Counter(stream)
    assert len(seam) == seam.octets == come.total()
    merge = Merge(1, nano=True)
    merge.start(SLL)
    merge.reopen(0, since_ns=0, seam=seam)
    merge.receive_data(0, pcapng([Record(7, bytes([letter])) for letter in again]))
    merge.receive_eof(0)
    written = Counter(r.data[0] for r in parse_records(drain(merge), nano=True))
    assert written == Counter(again) - come
    assert merge.counters(0).joined == (Counter(again) & come).total()


@calm
@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2, 7, 1 << 31]))),
    st.booleans(),
)
def test_every_interface_is_described_before_its_packets(packets, per_interface):
    merge = Merge(
        3, disorder_ns=LARGE, nano=True, pcapng=True, per_interface=per_interface
    )
    merge.start(SLL2)
    for i in range(3):
        records = [
            Record(n, Cooked(ifindex=index).sll2())
            for n, (number, index) in enumerate(packets)
            if number == i
        ]
        merge.receive_data(i, pcap(records, nano=True, link_type=SLL2))
        merge.receive_eof(i)
    described = []
    out = []
    while not merge.done:
        out += parse_blocks(merge.data_to_send())
        asked = merge.undescribed()
        if asked is not None:
            assert asked not in described
            merge.describe(*asked, len(described))
            described.append(asked)
    assert [described[number] for number, _, _ in out] == [
        (i, index if per_interface else 0) for i, index in packets
    ]
    assert set(described) == {described[number] for number, _, _ in out}
