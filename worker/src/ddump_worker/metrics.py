"""The worker's counters, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ddump_common.units import SECONDS

from .ring import RECORDING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from .capacity import Capacity
    from .connections import Connections
    from .recording import Recording
    from .streams import Streams

__all__ = ["Metrics"]


class _WorkerCollector(Collector):
    def __init__(
        self,
        streams: Streams,
        connections: Connections,
        capacity: Capacity,
        recording: Recording | None,
    ) -> None:
        self._streams = streams
        self._connections = connections
        self._capacity = capacity
        self._recording = recording

    def collect(self) -> Iterator[Metric]:
        totals = self._streams.totals()
        yield _counter("packets", "Packets delivered to clients", totals.packets)
        yield _counter("bytes", "Bytes of packet data delivered", totals.bytes)
        yield _counter(
            "kernel_dropped_packets",
            "Packets that the kernel dropped as a stream's ring was full",
            totals.dropped,
        )
        yield _counter(
            "interface_dropped_packets",
            "Packets that network interfaces dropped while streams were open",
            totals.interface_dropped,
        )
        yield _counter(
            "undelivered_packets",
            "Packets left in the ring of a stream that was cut or left by its client",
            totals.undelivered,
        )
        yield _counter("streams", "Streams begun", totals.streams)
        states = GaugeMetricFamily(
            "ddump_worker_streams_by_state",
            "Streams by state; closed ones since the start",
            labels=["state"],
        )
        for state, count in self._streams.states().items():
            states.add_metric([state], count)
        yield states
        refused = CounterMetricFamily(
            "ddump_worker_refused",
            "Captures and windows refused, by reason",
            labels=["reason"],
        )
        for reason, count in sorted(self._streams.refused.items()):
            refused.add_metric([reason], count)
        yield refused
        yield _gauge("connections", "Connections of clients", len(self._connections))
        yield _counter(
            "refused_connections",
            "Connections turned away as there were too many",
            self._connections.refused,
        )
        yield _counter(
            "evicted_connections",
            "Connections that were closed to make room for others",
            self._connections.evicted,
        )
        yield _counter(
            "failed_handshakes",
            "TLS handshakes that failed",
            self._connections.failed_handshakes,
        )
        yield _counter(
            "malformed_requests",
            "Requests that were no HTTP",
            self._connections.malformed_requests,
        )
        yield _gauge(
            "capture_memory_bytes", "Memory of all capture rings", self._capacity.memory
        )
        if self._recording is not None:
            yield from _of_the_ring(self._recording)


def _of_the_ring(recording: Recording) -> Iterator[Metric]:
    info = recording.info()
    source, ring = recording.source, recording.ring
    yield _gauge(
        "ring_recording", "Whether the ring is recorded", info.state == RECORDING
    )
    yield _counter("ring_recorded_packets", "Packets recorded", source.packets)
    yield _counter("ring_recorded_bytes", "Bytes of them", source.data_bytes)
    yield _counter("ring_evicted_segments", "Segments evicted", ring.evicted)
    yield _gauge("ring_segments", "Segments in the ring", info.segments)
    yield _gauge("ring_packets", "Packets in the ring", info.packets)
    yield _gauge("ring_bytes", "Bytes of the ring on disk", info.bytes)
    yield _gauge("ring_limit_bytes", "The most that they may be", info.limit_bytes)
    yield _gauge(
        "ring_pinned_bytes", "Bytes evicted and still being read", info.pinned_bytes
    )
    yield _gauge(
        "ring_dropped_packets",
        "Packets that the kernel dropped while what is in the ring was recorded",
        info.dropped,
    )
    yield _gauge(
        "ring_lost_packets",
        "Packets that the disk did not take meanwhile",
        info.lost,
    )
    if info.coverage:
        yield _gauge(
            "ring_oldest_timestamp_seconds",
            "Since when the ring has been recorded, with or without gaps",
            info.coverage[0].begin_ns / SECONDS,
        )
    yield _gauge("windows", "Windows being read from the ring", info.windows)


def _counter(name: str, text: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(f"ddump_worker_{name}", text, value=value)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"ddump_worker_{name}", text, value=value)


class Metrics:
    """Renders the counters as text."""

    def __init__(
        self,
        *,
        streams: Streams,
        connections: Connections,
        capacity: Capacity,
        recording: Recording | None = None,
    ) -> None:
        # Of its own, not the library's global one: two workers may share a process.
        self._registry = CollectorRegistry()
        self._registry.register(
            _WorkerCollector(streams, connections, capacity, recording)
        )

    def render(self) -> bytes:
        """Return the counters of now, in Prometheus' text format."""
        return generate_latest(self._registry)
