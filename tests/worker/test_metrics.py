"""The counters as Prometheus reads them."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from ddump_common.answers import IntervalInfo, RingInfo, Totals
from ddump_worker.metrics import Metrics

TOTALS = Totals(
    packets=2**40,
    bytes=2**50,
    dropped=3,
    interface_dropped=4,
    undelivered=2**33,
    streams=5,
    refused=6,
)


def connections_of(count, **counters):
    return type("Connections", (), {**counters, "__len__": lambda _: count})()


def test_every_counter_is_there_with_its_value_and_type():
    streams = SimpleNamespace(
        totals=lambda: TOTALS,
        states=lambda: {"running": 2, "closed": 3},
        refused=Counter(filter=4, memory=2),
    )
    connections = connections_of(
        9, refused=7, evicted=8, failed_handshakes=10, malformed_requests=11
    )
    capacity = SimpleNamespace(memory=123)
    metrics = Metrics(streams=streams, connections=connections, capacity=capacity)
    families = list(text_string_to_metric_families(metrics.render().decode()))
    assert {
        (family.name, family.type, tuple(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    } == {
        ("ddump_worker_packets", "counter", ()): 2**40,
        ("ddump_worker_bytes", "counter", ()): 2**50,
        ("ddump_worker_kernel_dropped_packets", "counter", ()): 3,
        ("ddump_worker_interface_dropped_packets", "counter", ()): 4,
        ("ddump_worker_undelivered_packets", "counter", ()): 2**33,
        ("ddump_worker_streams", "counter", ()): 5,
        ("ddump_worker_streams_by_state", "gauge", (("state", "running"),)): 2,
        ("ddump_worker_streams_by_state", "gauge", (("state", "closed"),)): 3,
        ("ddump_worker_refused", "counter", (("reason", "filter"),)): 4,
        ("ddump_worker_refused", "counter", (("reason", "memory"),)): 2,
        ("ddump_worker_connections", "gauge", ()): 9,
        ("ddump_worker_refused_connections", "counter", ()): 7,
        ("ddump_worker_evicted_connections", "counter", ()): 8,
        ("ddump_worker_failed_handshakes", "counter", ()): 10,
        ("ddump_worker_malformed_requests", "counter", ()): 11,
        ("ddump_worker_capture_memory_bytes", "gauge", ()): 123,
    }
    assert all(family.documentation for family in families)


RING = RingInfo(
    state="recording",
    link="sll",
    segments=3,
    packets=2**41,
    bytes=2**42,
    limit_bytes=2**43,
    pinned_bytes=11,
    pinned_limit_bytes=99,
    dropped=12,
    lost=13,
    coverage=[IntervalInfo(begin_ns=1_500_000_000, end_ns=9_000_000_000)],
    windows=14,
)


def ring_values(info: RingInfo) -> dict[str, float]:
    recording = SimpleNamespace(
        info=lambda: info,
        source=SimpleNamespace(packets=2**44, data_bytes=2**45),
        ring=SimpleNamespace(evicted=15),
    )
    streams = SimpleNamespace(totals=lambda: TOTALS, states=dict, refused=Counter())
    connections = connections_of(
        9, refused=7, evicted=8, failed_handshakes=10, malformed_requests=11
    )
    metrics = Metrics(
        streams=streams,
        connections=connections,
        capacity=SimpleNamespace(memory=123),
        recording=recording,
    )
    return {
        sample.name.removeprefix("ddump_worker_"): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if "ring" in sample.name or "windows" in sample.name
    }


def test_the_ring_is_there_where_there_is_one():
    assert ring_values(RING) == {
        "ring_recording": 1,
        "ring_recorded_packets_total": 2**44,
        "ring_recorded_bytes_total": 2**45,
        "ring_evicted_segments_total": 15,
        "ring_segments": 3,
        "ring_packets": 2**41,
        "ring_bytes": 2**42,
        "ring_limit_bytes": 2**43,
        "ring_pinned_bytes": 11,
        "ring_dropped_packets": 12,
        "ring_lost_packets": 13,
        "ring_oldest_timestamp_seconds": 1.5,
        "windows": 14,
    }


def test_an_empty_ring_has_no_age():
    info = msgspec.structs.replace(RING, state="failed: it broke", coverage=[])
    values = ring_values(info)
    assert values["ring_recording"] == 0
    assert "ring_oldest_timestamp_seconds" not in values


def test_two_in_one_process_do_not_mix():
    parts = {
        "streams": SimpleNamespace(totals=lambda: TOTALS, states=dict, refused={}),
        "connections": connections_of(
            0, refused=0, evicted=0, failed_handshakes=0, malformed_requests=0
        ),
        "capacity": SimpleNamespace(memory=0),
    }
    assert Metrics(**parts).render() == Metrics(**parts).render()
