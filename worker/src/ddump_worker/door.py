"""The door: whether a request may come in, and who makes it.

What a client shows is asked for in this order: a bearer token; what the proxy says of
its client, on a unix socket and from the proxy's own uid; the certificate of the TLS
connection. A certificate has to hold in any case, also when it is by a token that a client
is known. Fields that speak of identities mean nothing from anybody but the proxy.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
import struct
from typing import TYPE_CHECKING, Self, cast

from aiohttp import hdrs, web
from cryptography import x509

from ddump_common.api import (
    CERTIFICATE_HEADER,
    HEALTH_PATH,
    OPENAPI_PATH,
    USER_HEADER,
)
from ddump_common.errors import UsageError
from ddump_common.malformed import MALFORMED
from ddump_common.tls import Grounds

from .connections import Connection
from .denial import UnauthorizedError
from .destination import ServedNames, check_origin, single_host
from .identity import ANONYMOUS, Client, Identity, IdentityKind, peer_address
from .proxied import Proxied
from .reports import Reports
from .tokens import digest
from .trust import Trust

if TYPE_CHECKING:
    import ssl

    from ddump_common.tls import ServerContext

    from .audit import Entry
    from .config import Config

__all__ = ["CLIENT", "Door"]

_log = logging.getLogger(__name__)

CLIENT = web.RequestKey("CLIENT", Client)
"""Who makes a request: there from the moment that it was admitted."""

_OPEN = frozenset({HEALTH_PATH, OPENAPI_PATH})
# Of requests that anybody can make, lines in the log a minute.
_MAX_REPORTS = 600
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid


class Door:
    """Lets requests in, or does not."""

    def __init__(self, config: Config, trust: Trust, *, node: str) -> None:
        """Take what was read; ``node`` is the name of this host."""
        self._config = config
        self._own_names = (
            "localhost",
            node,
            node.partition(".")[0],
            *config.server_name,
        )
        self._trust = trust
        self._names = ServedNames.of((*self._own_names, *trust.names))
        self._reports = Reports(most=_MAX_REPORTS)

    @classmethod
    async def open(cls, config: Config) -> Self:
        """Read the files that ``config`` names.

        Raises:
            UsageError: one cannot be used.

        """
        trust = await _read(config)
        return cls(config, trust, node=socket.gethostname())

    async def reload(self) -> None:
        """Read the files again. Cancelled, or when it raises, nothing has changed.

        Who came in before is looked at by ``holds``; that is up to the caller.

        Raises:
            UsageError: one of them cannot be used.

        """
        trust = await _read(self._config)
        names = ServedNames.of((*self._own_names, *trust.names))
        for each in trust.setbacks(self._trust):
            _log.warning("%s", each)
        self._trust, self._names = trust, names

    @property
    def context(self) -> ServerContext | None:
        """That of the TLS connections which begin now; ``None`` for plain ones."""
        return self._trust.context

    def holds(self, client: Client) -> bool:
        """Return whether what ``client`` has shown would still let it in."""
        shown = client.token_digest
        if shown is not None and not self._trust.tokens.holds(
            client.identity.name, shown
        ):
            return False
        certificate = client.certificate
        return certificate is None or not self._trust.doubt(certificate, client.grounds)

    def keeps(self, entry: Entry) -> bool:
        """Return whether a request is told of in the log: all are of whom somebody knows.

        Others can fill no disk with it; how many were left out is told before the next.
        """
        client = entry.client
        if client is not None and entry.path not in _OPEN:
            return True
        return self._reports.allow()

    def address_of(self, request: web.BaseRequest) -> str:
        """Return where a request comes from, also of one that is not admitted.

        It is ``ADDRESS:PORT`` as people write it, or ``unix``; behind the proxy what
        that says, if it can be read.
        """
        try:
            if self._is_proxy(request):
                return Proxied.parse(request.headers).address
        except UsageError:
            pass
        return peer_address(_extra(request, "peername"))

    def admit(self, request: web.BaseRequest) -> Client:
        """Return who makes a request, and keep it in ``request[CLIENT]``.

        To be called once for each, before anything is done for it. Health and the
        description of the interface are for everybody: who shows nothing is anonymous.

        Raises:
            UsageError: ``Host``, ``Authorization`` or a field of the proxy's cannot be.
            MisdirectedError: it is for another host.
            ForbiddenError: a page of another site has a browser ask.
            UnauthorizedError: nobody knows who asks, or what was shown is wrong.

        """
        self._check_destination(request)
        client = self._known(request)
        if client is None:
            if not self._admits_anybody(request):
                raise self._unknown(request)
            client = Client(identity=ANONYMOUS, address=self.address_of(request))
        request[CLIENT] = client
        if isinstance(request.protocol, Connection):
            request.protocol.identify(client)
        return client

    def _check_destination(self, request: web.BaseRequest) -> None:
        host = single_host(
            request.headers.getall(hdrs.HOST, []), required=request.version >= (1, 1)
        )
        check_origin(
            host,
            origins=request.headers.getall(hdrs.ORIGIN, []),
            sites=request.headers.getall("Sec-Fetch-Site", []),
        )
        if _is_unix(request):
            return
        if host is not None:
            self._names.check(host)
        if request.host and host != request.host:
            self._names.check(request.host)  # of a target that is a whole URL

    def _known(self, request: web.BaseRequest) -> Client | None:
        proxied = Proxied.parse(request.headers) if self._is_proxy(request) else None
        address = (
            peer_address(_extra(request, "peername"))
            if proxied is None
            else proxied.address
        )
        certificate, grounds = self._shown(request, proxied)
        if (token := _bearer(request)) is not None:
            client = self._bearing(token, address)
        elif certificate is not None:
            client = _certified(certificate, address)
        elif proxied is not None and proxied.user:
            user = Identity(kind=IdentityKind.USER, name=proxied.user)
            client = Client(identity=user, address=address)
        else:
            return None
        if certificate is None:
            return client
        self._verify(certificate, grounds)
        return dataclasses.replace(client, certificate=certificate, grounds=grounds)

    def _shown(
        self, request: web.BaseRequest, proxied: Proxied | None
    ) -> tuple[x509.Certificate | None, Grounds]:
        """Return the certificate of who asks, and on what grounds it was verified."""
        if proxied is not None:
            return proxied.certificate, Grounds(lists=self._trust.grounds.lists)
        certificate = _certificate(request)
        if certificate is None:
            return None, Grounds()
        context = cast("ServerContext", _extra(request, "sslcontext"))
        return certificate, context.grounds

    def _bearing(self, token: bytes, address: str) -> Client:
        shown = digest(token)
        name = self._trust.tokens.name_of(shown)
        if name is None:
            raise UnauthorizedError(
                "the token is not known",
                hint="it may have been replaced: ask who runs this worker",
            )
        return Client(
            identity=Identity(kind=IdentityKind.TOKEN, name=name),
            address=address,
            token_digest=shown,
        )

    def _verify(self, certificate: x509.Certificate, grounds: Grounds) -> None:
        try:
            doubt = self._trust.doubt(certificate, grounds)
            name = certificate.subject.rfc4514_string()
        except MALFORMED as exc:
            raise UnauthorizedError("the certificate cannot be read") from exc
        if doubt:
            raise UnauthorizedError(f"the certificate of {name} {doubt}")

    def _admits_anybody(self, request: web.BaseRequest) -> bool:
        return (
            self._config.allow_anonymous
            or request.path in _OPEN
            # Who may connect to the socket's file is the rule, but for a proxy.
            or (_is_unix(request) and self._config.proxy_uid is None)
        )

    def _unknown(self, request: web.BaseRequest) -> UnauthorizedError:
        ways = []
        if self._config.token_file is not None:
            ways.append("Authorization: Bearer TOKEN")
        if self._is_proxy(request):
            ways.append(f"{CERTIFICATE_HEADER} or {USER_HEADER} of the proxy")
        elif _is_unix(request):
            ways.append("to come through the proxy")
        return UnauthorizedError(
            "nothing says who asks", hint="what would: " + ", or ".join(ways)
        )

    def _is_proxy(self, request: web.BaseRequest) -> bool:
        return (
            self._config.proxy_uid is not None
            and _is_unix(request)
            and _uid(request) == self._config.proxy_uid
        )


async def _read(config: Config) -> Trust:
    trust = await asyncio.to_thread(Trust.read, config)
    for each in trust.warnings:
        _log.warning("%s", each)
    return trust


def _certified(certificate: x509.Certificate, address: str) -> Client:
    try:
        name = certificate.subject.rfc4514_string()
    except MALFORMED as exc:
        raise UnauthorizedError("the certificate cannot be read") from exc
    if not name:
        raise UnauthorizedError("the certificate has no subject, and names nobody")
    return Client(identity=Identity(kind=IdentityKind.CERT, name=name), address=address)


def _extra(request: web.BaseRequest, name: str) -> object:
    transport = request.transport
    return None if transport is None else transport.get_extra_info(name)


def _is_unix(request: web.BaseRequest) -> bool:
    connected = _socket(request)
    return connected is not None and connected.family == socket.AF_UNIX


def _socket(request: web.BaseRequest) -> socket.socket | None:
    return cast("socket.socket | None", _extra(request, "socket"))


def _uid(request: web.BaseRequest) -> int | None:
    # Of who connected, as the kernel noted it then.
    connected = _socket(request)
    if connected is None:
        return None
    said = connected.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    _, uid, _ = _CREDENTIALS.unpack(said)
    return int(uid)


def _bearer(request: web.BaseRequest) -> bytes | None:
    fields = request.headers.getall(hdrs.AUTHORIZATION, [])
    if not fields:
        return None
    if len(fields) > 1:
        raise UsageError(f"a request with {len(fields)} Authorization fields")
    scheme, _, token = fields[0].partition(" ")
    if scheme.lower() == "basic":
        raise UnauthorizedError(
            "this worker knows no passwords; a proxy in front does",
            hint="a proxy that has checked one does not pass Authorization on",
        )
    if scheme.lower() != "bearer":
        raise UnauthorizedError("of Authorization, Bearer alone is known")
    return token.strip(" ").encode(errors="surrogateescape")


def _certificate(request: web.BaseRequest) -> x509.Certificate | None:
    encrypted = cast("ssl.SSLObject | None", _extra(request, "ssl_object"))
    shown = None if encrypted is None else encrypted.getpeercert(binary_form=True)
    if shown is None:
        return None
    try:
        return x509.load_der_x509_certificate(shown)
    except MALFORMED as exc:
        raise UnauthorizedError("the certificate cannot be read") from exc
