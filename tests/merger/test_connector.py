"""Connections whose other side does not say goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading

import pytest
import uvloop

from ddump_common.tls import client_context
from ddump_merger.stream import fetch, open_session
from ddump_merger.target import parse_target
from ddump_merger.trust import Trust
from support.certificates import Authority

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@contextlib.contextmanager
def rude(context):
    """A server that answers requests over TLS, and then neither reads nor closes."""

    def serve():
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            while True:
                raw, _ = listener.accept()
                connection = stack.enter_context(
                    context.wrap_socket(raw, server_side=True)
                )
                connection.recv(65536)
                connection.sendall(ANSWER)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@pytest.mark.filterwarnings("error")
def test_a_loop_can_be_closed_though_nobody_says_goodbye(tmp_path):
    authority = Authority(tmp_path)
    pair = authority.server("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)

    async def ask(url):
        target = parse_target(url)
        ours = client_context(ca=authority.cert, cert=None, key=None)
        async with (
            open_session(Trust(context=ours)) as session,
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(5):
                tasks.create_task(
                    fetch(
                        target, target.url, session,
                        accept="*/*", max_bytes=10, timeout_ns=5_000_000_000,
                    )
                )  # fmt: skip

    with rude(context) as url:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        runner.run(ask(url))
        runner.close()
