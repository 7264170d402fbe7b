"""The counters as Prometheus reads them."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

from prometheus_client.parser import text_string_to_metric_families

from ddump_common.answers import Totals
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


def test_every_counter_is_there_with_its_value_and_type():
    streams = SimpleNamespace(
        totals=lambda: TOTALS,
        states=lambda: {"running": 2, "closed": 3},
        refused=Counter(filter=4, memory=2),
    )
    connections = type("Connections", (), {"refused": 7, "__len__": lambda _: 9})()
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
        ("ddump_worker_capture_memory_bytes", "gauge", ()): 123,
    }
    assert all(family.documentation for family in families)


def test_two_in_one_process_do_not_mix():
    parts = {
        "streams": SimpleNamespace(totals=lambda: TOTALS, states=dict, refused={}),
        "connections": type(
            "Connections", (), {"refused": 0, "__len__": lambda _: 0}
        )(),
        "capacity": SimpleNamespace(memory=0),
    }
    assert Metrics(**parts).render() == Metrics(**parts).render()
