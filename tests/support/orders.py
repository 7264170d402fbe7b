"""Orders as the worker makes them of requests, for tests that need one."""

from __future__ import annotations

from ddump_common.api import CaptureQuery
from ddump_worker.access import Grant, Order
from ddump_worker.identity import ANONYMOUS, Client, Identity


def client(identity: Identity = ANONYMOUS, address: str = "1.2.3.4:5") -> Client:
    return Client(identity=identity, address=address)


def order(
    query: CaptureQuery | None = None, *, who: Client | None = None, **grant
) -> Order:
    """Return what a query becomes for somebody who may have what ``grant`` says."""
    return Order.of(who or client(), Grant(**grant), query or CaptureQuery())
