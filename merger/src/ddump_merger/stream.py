"""A capture over HTTP: one request, its answer checked, its bytes as they come.

Every exception of the HTTP library becomes one of ``ddump_common.errors`` here, with a
line that says what is wrong and, where there is something to do, a hint. Nothing that
the other side sends is trusted: redirects are named and not followed, what is not a
capture is refused by its type, errors are read to a limit and never decompressed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import hdrs
from yarl import URL

from ddump_common.api import (
    HOST_HEADER,
    MEDIA_TYPE_PCAP,
    MEDIA_TYPE_PCAPNG,
    STREAM_HEADER,
    WINDOW_HEADER,
)
from ddump_common.errors import (
    BrokenStreamError,
    RefusedError,
    UntrustedError,
    UsageError,
)
from ddump_common.units import SECONDS
from ddump_common.window import WindowReport

from . import __version__
from .connector import Connector
from .distrust import presented, why_not_trusted
from .failure import explain, map_exceptions, one_line
from .refusal import check_type, field, media_type, refusal
from .resolver import Resolver
from .skew import Stopwatch, tracing

if TYPE_CHECKING:
    from aiohttp import AddrInfoType

    from .certificate import Certificate
    from .skew import Skew
    from .target import HttpTarget
    from .trust import Trust

__all__ = ["HttpSource", "fetch", "fetch_field", "open_session"]

logger = logging.getLogger(__name__)

# What a connection may break with; the last is not a ClientError.
_BROKEN = (aiohttp.ClientError, OSError, aiohttp.http.HttpProcessingError)

# pcapng carries heartbeats; a server that has only the other is as welcome.
_ACCEPT = f"{MEDIA_TYPE_PCAPNG}, {MEDIA_TYPE_PCAP};q=0.5"

# An error's body is for people; whoever sends more is not explaining anything.
_MAX_ERROR_BYTES = 64 * 1024

# aiohttp stops reading a connection that has twice this unread; the kernel's and the
# worker's buffers take the rest. See "Backpressure" in README.rst for the measurement.
_READ_BUFFER_BYTES = 256 * 1024

# A silent stream is asked after 10 s whether it lives, and is given up after 40.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


def open_session(trust: Trust | None) -> aiohttp.ClientSession:
    """Return a session without aiohttp's own limits on connections and time.

    Args:
        trust: for https targets; ``None`` when there are none.

    """
    connector = Connector(
        limit=0,
        force_close=True,
        ssl=True if trust is None else trust.context,
        resolver=Resolver(),
        socket_factory=_socket,
    )
    connector.own = None if trust is None else trust.own
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_READ_BUFFER_BYTES,
        headers={"User-Agent": f"ddump/{__version__}", "Accept-Encoding": "identity"},
        trace_configs=[tracing()],
    )


def _socket(address: AddrInfoType) -> socket.socket:
    """Return a socket that notices when the other side is gone without a word."""
    family, kind, protocol, _, _ = address
    connection = socket.socket(family, kind, protocol)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        if hasattr(socket, option):  # not every system lets it be chosen
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


class HttpSource:
    """The stream that one worker answers with.

    What the answer tells is known once it is open. ``trusted`` is whether it promises
    heartbeats, ``bounded`` whether it said how long it is. ``host`` is what the worker
    calls itself, ``sample`` what its answer tells of its clock, ``window`` what of the
    window that was asked for it has.
    """

    def __init__(
        self,
        target: HttpTarget,
        session: aiohttp.ClientSession,
        *,
        connect_timeout_ns: int,
    ) -> None:
        self.target = target
        self.session = session
        self.trusted = False
        self.bounded = False
        self.host = ""
        self.sample: Skew | None = None
        self.window: WindowReport | None = None
        self._connect_timeout_ns = connect_timeout_ns
        self._response: aiohttp.ClientResponse | None = None

    async def open(self) -> None:
        """Connect, ask, and check the answer.

        Raises:
            UnreachableError: no connection, or no answer within the connect timeout.
            UntrustedError: one side does not take the other's certificate.
            RefusedError: the answer is not a capture.

        """
        stopwatch = Stopwatch()
        response = await _get(
            self.target,
            self.target.url,
            self.session,
            accept=_ACCEPT,
            timeout_ns=self._connect_timeout_ns,
            stopwatch=stopwatch,
        )
        try:
            check_type(response)
        except RefusedError:
            response.close()
            raise
        self._response = response
        self.trusted = _is_trusted(response)
        self.bounded = response.content_length is not None
        self.host = one_line(response.headers.get(HOST_HEADER, ""))
        self.sample = stopwatch.skew(response)
        self.window = _window_report(response, self.target)
        _watch_connection(response)

    async def read(self) -> bytes:
        """Return the next bytes; none at the end. Cancelling it loses none."""
        if self._response is None:
            return b""
        content = self._response.content
        if content.exception() is not None:
            return self._read_broken(content)
        try:
            return await content.readany()
        except (*_BROKEN, RuntimeError):
            return self._read_broken(content)

    def _read_broken(self, content: aiohttp.StreamReader) -> bytes:
        """Return what came before the connection broke, then raise why it did.

        aiohttp raises at once, whatever it holds; a capture is read to its last byte.
        """
        data = self.arrived()
        if data:
            return data
        exc = content.exception() or aiohttp.ServerDisconnectedError()
        reason, hint = explain(exc, self.target, _own(self.session))
        raise BrokenStreamError(reason, hint=hint) from exc

    def arrived(self) -> bytes:
        """Return what has come and was not read yet, without waiting."""
        if self._response is None:
            return b""
        content = self._response.content
        broken = content.exception()
        content.set_exception(None)  # type: ignore[arg-type]  # lets its bytes be read
        try:
            return content.read_nowait()
        finally:
            content.set_exception(broken)  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the connection; the worker notices."""
        if self._response is not None:
            self._response.close()
            self._response = None


def _is_trusted(response: aiohttp.ClientResponse) -> bool:
    """Whether a worker of ours answers, with a stream that has heartbeats."""
    number = response.headers.get(STREAM_HEADER, "")
    return media_type(response) == MEDIA_TYPE_PCAPNG and bool(
        re.fullmatch("[0-9]{1,18}", number, re.ASCII)
    )


def _window_report(
    response: aiohttp.ClientResponse, target: HttpTarget
) -> WindowReport | None:
    value = field(response, WINDOW_HEADER)
    if not value:
        return None
    try:
        return WindowReport.parse(value)
    except UsageError as exc:
        logger.warning(
            "%s: whether the ring has all is not known: its %s is wrong: %s",
            target.name,
            WINDOW_HEADER,
            exc,
        )
        return None


def _watch_connection(response: aiohttp.ClientResponse) -> None:
    """Have the body fail when its connection is lost before its end.

    aiohttp closes the connection when it cannot understand a chunk, and tells that to
    whoever waits for another response, but not to the reader of this one.
    """
    connection = response.connection
    if connection is None or connection.protocol is None:
        return  # the whole body has come already
    protocol, content = connection.protocol, response.content

    def on_closed(closed: asyncio.Future[None]) -> None:
        lost = None if closed.cancelled() else closed.exception()
        if not content.is_eof() and content.exception() is None:
            broken = protocol.exception() or lost
            if not isinstance(broken, aiohttp.http.HttpProcessingError):
                broken = aiohttp.ClientPayloadError("the body is not complete")
            content.set_exception(broken)

    if protocol.closed is not None:
        protocol.closed.add_done_callback(on_closed)


async def fetch(
    target: HttpTarget,
    url: str,
    session: aiohttp.ClientSession,
    *,
    accept: str,
    max_bytes: int,
    timeout_ns: int,
) -> bytes:
    """Return a document of the target's, at most ``max_bytes`` long.

    Raises:
        PeerError: it cannot be had, and why.

    """
    response = await _get(target, url, session, accept=accept, timeout_ns=timeout_ns)
    try:
        with map_exceptions(target, timeout_ns=timeout_ns, own=_own(session)):
            async with asyncio.timeout(timeout_ns / SECONDS):
                data = await _read_up_to(response, max_bytes + 1)
    finally:
        response.close()
    if len(data) > max_bytes:
        raise RefusedError("the answer is too long", status=response.status)
    return data


async def fetch_field(
    target: HttpTarget,
    session: aiohttp.ClientSession,
    name: str,
    *,
    timeout_ns: int,
) -> str:
    """Return a header of what ``target`` would answer, empty when it has none.

    It is asked for no more than that (``HEAD``).

    Raises:
        PeerError: it would not answer, and why.

    """
    response = await _get(
        target, target.url, session,
        accept=_ACCEPT, timeout_ns=timeout_ns, method=hdrs.METH_HEAD,
    )  # fmt: skip
    response.close()
    return field(response, name)


async def _get(
    target: HttpTarget,
    url: str,
    session: aiohttp.ClientSession,
    *,
    accept: str,
    timeout_ns: int,
    method: str = hdrs.METH_GET,
    stopwatch: Stopwatch | None = None,
) -> aiohttp.ClientResponse:
    """Return a response with status 200, its body unread."""
    headers = {"Accept": accept}
    server_name = None
    if target.address != target.host:  # RFC 6874, section 4
        headers["Host"] = f"[{target.address}]:{target.port}"
        server_name = target.address
    if target.authorization is not None:
        headers["Authorization"] = target.authorization.header
    with map_exceptions(target, timeout_ns=timeout_ns, own=_own(session)):
        async with asyncio.timeout(timeout_ns / SECONDS):
            try:
                response = await session.request(
                    method,
                    URL(url, encoded=True),
                    headers=headers,
                    allow_redirects=False,
                    server_hostname=server_name,
                    trace_request_ctx=stopwatch,
                )
            except aiohttp.ClientConnectorCertificateError as exc:
                raise await _untrusted(exc, target) from exc
            if response.status == HTTPStatus.OK:
                return response
            try:
                body = await _read_up_to(response, _MAX_ERROR_BYTES)
            finally:
                response.close()
    raise refusal(response, body, target, own=_own(session))


async def _untrusted(
    exc: aiohttp.ClientConnectorCertificateError, target: HttpTarget
) -> UntrustedError:
    """Return why the certificate that a worker shows is not trusted."""
    error = exc.certificate_error
    if not isinstance(error, ssl.SSLCertVerificationError):
        return UntrustedError(one_line(str(error)))  # as older libraries check names
    reason, hint = why_not_trusted(
        error, target.address, await presented(target), now_ns=time.time_ns()
    )
    return UntrustedError(reason, hint=hint)


def _own(session: aiohttp.ClientSession) -> Certificate | None:
    """Return the certificate that a session shows, if it has one."""
    connector = session.connector
    return connector.own if isinstance(connector, Connector) else None


async def _read_up_to(response: aiohttp.ClientResponse, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := await response.content.read(size - len(data))):
        data += piece
    return bytes(data)
