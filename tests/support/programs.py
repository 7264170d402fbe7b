"""Our two programs as processes: started, awaited, stopped by their own pid."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from support.namespaces import Host

BIN = Path(sys.executable).parent
DDUMP = str(BIN / "ddump")
DDUMP_WORKER = str(BIN / "ddump-worker")
START_SECONDS = 8
STOP_SECONDS = 6


@contextlib.contextmanager
def started(command: list[str], **options) -> Iterator[subprocess.Popen]:
    """Run ``command``; at the end stop it if it still runs, and reap it."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A running worker: where it listens, and what it has said so far."""

    process: subprocess.Popen
    addresses: list[str]
    said: list[str]

    def await_said(self, text: str, since: int = 0) -> str:
        """Wait for a line that holds ``text``, from line ``since`` on; return it."""
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            for line in self.said[since:]:
                if text in line:
                    return line
            if time.monotonic() > deadline:
                raise TimeoutError(f"not said: {text}:\n{''.join(self.said[since:])}")
            time.sleep(0.01)  # what is done is said a moment later


@contextlib.contextmanager
def worker(listen: str, *options: str, host: Host | None = None) -> Iterator[str]:
    """Start a worker for anybody, wait until it listens, and yield its URL."""
    anybody = ("--listen", listen, "--allow-anonymous", *options)
    with running_worker(*anybody, host=host) as running:
        yield running.addresses[0]


@contextlib.contextmanager
def running_worker(*options: str, host: Host | None = None) -> Iterator[Worker]:
    """Start a worker and wait until it says where it listens.

    What it says later is read and must not hold a traceback.
    """
    command = [DDUMP_WORKER, *options]
    if host is not None:
        command = host.command(*command)
    said: list[str] = []
    listening: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in process.stderr:
            said.append(line)
            if match := re.search(r"listening on (\S+)", line):
                listening.put(match[1])
        listening.put(None)

    with started(command, stderr=subprocess.PIPE, text=True) as process:
        reader = threading.Thread(target=read)
        reader.start()
        try:
            addresses = [
                listening.get(timeout=START_SECONDS)
                for _ in range(options.count("--listen"))
            ]
            if None in addresses:
                raise RuntimeError(f"the worker did not start:\n{''.join(said)}")
            yield Worker(process=process, addresses=addresses, said=said)
        finally:
            process.send_signal(signal.SIGTERM)
            reader.join(STOP_SECONDS)
            # A second signal, while it ends, would be the end of it.
            process.wait(STOP_SECONDS)
    assert "Traceback" not in "".join(said), "".join(said)
    assert process.returncode == 0, "".join(said)


def status(url: str, context: ssl.SSLContext | None = None) -> dict:
    """Return what a worker says of itself."""
    with urllib.request.urlopen(  # noqa: S310
        f"{url}/api/v1/status", timeout=5, context=context
    ) as answer:
        return json.load(answer)


def await_streams(
    urls: list[str], running: int = 1, *, context: ssl.SSLContext | None = None
) -> None:
    """Wait until each worker of ``urls`` has ``running`` streams."""
    deadline = time.monotonic() + START_SECONDS
    for url in urls:
        while (told := status(url, context))["states"].get("running", 0) != running:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} has not {running} streams: {told}")
            time.sleep(0.02)  # the worker tells nobody by itself: ask again
