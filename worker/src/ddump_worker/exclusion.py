"""What a worker leaves out of every capture: its own service, and loopback's copies.

Without it a client that captures everything captures its own stream, and the stream
of that, without end. Behind a proxy the port that clients reach, and on a shared host
the ports of other workers, are named by the operator.
"""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .interfaces import Interface

__all__ = ["Exclusion", "Service", "only"]

_log = logging.getLogger(__name__)

# For each listener an IPv6 address takes up to 21 of the 4096 instructions that the
# kernel takes: more of them would leave no room for filters.
_MAX_PLACES = 128

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A TCP address that this worker listens on."""

    address: _Address
    port: int

    def expression(self, host: Sequence[Interface]) -> str:
        """Return a filter of the traffic between this port and ``host``'s addresses."""
        places = self.places(host)
        source = " or ".join(f"src {place}" for place in places)
        destination = " or ".join(f"dst {place}" for place in places)
        return (
            f"tcp port {self.port} and ((src port {self.port} and ({source})) or "
            f"(dst port {self.port} and ({destination})))"
        )

    def places(self, host: Sequence[Interface]) -> list[str]:
        """Return filters of the addresses that this is: all, if it is a wildcard."""
        if not self.address.is_unspecified:
            return [f"host {self.address}"]
        version = self.address.version
        found = {
            # All of 127.0.0.0/8 is this host, not only the address that is set.
            f"net {address.network}" if each.loopback else f"host {address.ip}"
            for each in host
            for address in each.addresses
            if address.version == version
        }
        return sorted(found) or [f"host {self.address}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """All that is left out: the worker's services and what the operator named."""

    services: tuple[Service, ...] = ()
    operator: tuple[str, ...] = ()
    _coarse: set[int] = field(default_factory=set, init=False, compare=False)

    def expressions(self, host: Sequence[Interface]) -> list[str]:
        """Return filters that all hold for what may be captured.

        They are of the moment: addresses and interfaces come and go.
        """
        return [
            *(
                # libpcap hands out one of the two copies of a loopback packet; the
                # other would fill the ring all the same.
                f"not (ifindex {each.index} and outbound)"
                for each in host
                if each.loopback
            ),
            *(f"not ({expression})" for expression in self._own(host)),
            *(f"not ({expression})" for expression in self.operator),
        ]

    def _own(self, host: Sequence[Interface]) -> list[str]:
        places = sum(len(service.places(host)) for service in self.services)
        return [
            self._port_alone(service)
            if service.address.is_unspecified and places > _MAX_PLACES
            else service.expression(host)
            for service in self.services
        ]

    def _port_alone(self, service: Service) -> str:
        if service.port not in self._coarse:
            self._coarse.add(service.port)
            _log.warning(
                "this host has too many addresses to tell its own: all of TCP port %d "
                "is left out of captures, that of other hosts too",
                service.port,
            )
        return f"tcp port {service.port}"


def only(indices: Iterable[int]) -> str:
    """Return a filter of the packets of these interfaces."""
    return " or ".join(f"ifindex {index}" for index in indices)
