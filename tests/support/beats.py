"""A worker's stream as pcapng, written by a test: packets, heartbeats, an end."""

from __future__ import annotations

from ddump_common.note import EndReason, StreamNote
from ddump_common.pcap import Precision
from ddump_common.pcapng import InterfaceDescription, SectionHeader, Statistics
from support.captures import SLL, Record, enhanced_packet

__all__ = ["Beats"]


class Beats:
    """The pieces of one stream; it counts what it has sent, and says so truly."""

    def __init__(
        self, started_ns: int, *, link_type: int = SLL, nano: bool = True
    ) -> None:
        self.started_ns = started_ns
        self.sent = 0
        self._precision = Precision.NANO if nano else Precision.MICRO
        self.header = (
            SectionHeader(application="ddump-worker 0").serialize()
            + InterfaceDescription(
                link_type=link_type, name="any", precision=self._precision
            ).serialize()
        )

    def packets(self, *records: Record) -> bytes:
        """Return the blocks of packets."""
        self.sent += len(records)
        unit = 1 if self._precision is Precision.NANO else 1000
        return b"".join(
            enhanced_packet(each.timestamp_ns // unit, each) for each in records
        )

    def heartbeat(
        self,
        promised_ns: int,
        *,
        ended: EndReason | None = None,
        counted_ns: int | None = None,
        skipped: int = 0,
        **counts: int,
    ) -> bytes:
        """Return a statistics block; ``counts`` are other than the true ones."""
        told = {
            "received": self.sent,
            "dropped": 0,
            "interface_dropped": 0,
            "delivered": self.sent,
        }
        return Statistics(
            time_ns=promised_ns,
            started_ns=self.started_ns,
            ended_ns=None if ended is None else promised_ns,
            precision=self._precision,
            comment=str(
                StreamNote(ended=ended, counted_ns=counted_ns, skipped=skipped)
            ),
            **(told | counts),
        ).serialize()

    def whole(self, *records: Record, ended: EndReason = EndReason.COMPLETE) -> bytes:
        """Return a stream from its header to its end."""
        last_ns = max(each.timestamp_ns for each in records) + 1
        return (
            self.header
            + self.heartbeat(self.started_ns)
            + self.packets(*records)
            + self.heartbeat(last_ns, ended=ended)
        )
