"""The tool at work: two hosts, their traffic, one merged capture through tcpdump.

``make demo`` runs this. Where namespaces may be made, the two hosts are namespaces on
a bridge, ping each other and ask each other for a name; else they are two workers on
loopback ports that exclude each other. Everything that is started here is stopped here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.namespaces import network

FILTER = "icmp or udp port 53"
SECONDS = 6
START_TIMEOUT = 8
# A question for the address of www.example.org (RFC 1035, section 4).
QUESTION = bytes.fromhex("0001 0100 0001 0000 0000 0000") + (
    b"\x03www\x07example\x03org\0\0\1\0\1"
)
ANSWER = (
    bytes.fromhex("0001 8180 0001 0001 0000 0000")
    + QUESTION[12:]
    + bytes.fromhex("c00c 0001 0001 0000003c 0004 c0000207")
)
PROGRAMS = Path(sys.executable).parent


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def started(command: list[str], **options):
    """Run ``command``; at the end let it finish, or stop it, and reap it."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(6)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def worker(listen: str, *options: str, host=None):
    """Start a worker, wait until it says where it listens, and yield its URL."""
    command = [str(PROGRAMS / "ddump-worker"), "--listen", listen, *options]
    if host is not None:
        command = host.command(*command)
    with started(command, stderr=subprocess.PIPE, text=True) as process:
        told = ""
        deadline = time.monotonic() + START_TIMEOUT
        while select.select([process.stderr], [], [], deadline - time.monotonic())[0]:
            line = process.stderr.readline()
            told += line
            if match := re.search(r"listening on (http://\S+)", line):
                # Nothing may ever wait because nobody reads what the worker says.
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield match[1]
                return
            if not line:
                break
        sys.exit(f"the worker did not start:\n{told}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_streams(workers: list[str]) -> None:
    """Wait until each of ``workers`` has one stream running."""
    deadline = time.monotonic() + START_TIMEOUT
    for url in workers:
        while time.monotonic() < deadline:
            with urllib.request.urlopen(f"{url}/api/v1/status", timeout=2) as answer:  # noqa: S310 (ours)
                if json.load(answer)["states"].get("running"):
                    break
            time.sleep(0.05)


def merged(targets: list[str], traffic, *, prefix: list[str]) -> None:
    """Run ``ddump TARGETS | tcpdump`` while ``traffic`` runs, until the duration ends."""
    command = [
        *prefix, str(PROGRAMS / "ddump"), "--duration", f"{SECONDS}s",
        "-f", FILTER, *targets,
    ]  # fmt: skip
    shown = " ".join(["ddump", "-f", repr(FILTER), *targets])
    say(f"$ {shown} | tcpdump -nlr-\n")
    with (
        started(command, stdout=subprocess.PIPE) as ddump,
        started(
            ["tcpdump", "-nlr-"], stdin=ddump.stdout, stderr=subprocess.DEVNULL
        ) as tcpdump,
    ):
        ddump.stdout.close()
        traffic()
        tcpdump.wait(SECONDS + 6)
        ddump.wait(SECONDS)


def with_namespaces() -> None:
    with network(2, prefix="ddump-demo") as net, contextlib.ExitStack() as stack:
        web, db = net.hosts
        # Open on a network that exists only for this demonstration.
        workers = [
            stack.enter_context(
                worker(
                    f"{host.address}:8475",
                    "--allow-anonymous",
                    "--allow-plaintext",
                    host=host,
                )
            )
            for host in (web, db)
        ]

        def traffic() -> None:
            with net.client.entered():
                await_streams(workers)
            pings = subprocess.Popen(
                web.command("ping", "-c", "2", "-i", "0.5", db.address),
                stdout=subprocess.DEVNULL,
            )
            with db.entered():
                server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                server.bind((db.address, 53))
            with web.entered():
                client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            ask(client, server)
            pings.wait()

        say(
            "Two hosts, web and db, each with a worker; db is pinged and asked from web."
        )
        say(
            "Every packet is seen where it leaves and where it arrives, in order of time.\n"
        )
        merged(
            [
                f"{label}={url}"
                for label, url in zip(("web", "db"), workers, strict=True)
            ],
            traffic,
            prefix=net.client.command(),
        )


def with_loopback() -> None:
    first, second = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                worker(
                    f"127.0.0.1:{own}",
                    "--allow-anonymous",
                    "--exclude",
                    f"tcp port {other}",
                )
            )
            for own, other in itertools.permutations((first, second))
        ]

        def traffic() -> None:
            await_streams(workers)
            subprocess.run(
                ["ping", "-c", "2", "-i", "0.5", "127.0.0.1"],
                stdout=subprocess.DEVNULL,
                check=False,
            )

        say(
            "No namespaces here: two workers on loopback ports, each excluding the other.\n"
        )
        merged(workers, traffic, prefix=[])


def ask(client: socket.socket, server: socket.socket) -> None:
    with client, server:
        for each in (client, server):
            each.settimeout(2)
        client.sendto(QUESTION, server.getsockname())
        _, address = server.recvfrom(512)
        server.sendto(ANSWER, address)
        client.recvfrom(512)


def may_make_namespaces() -> bool:
    name = f"ddump-demo-probe-{os.getpid()}"
    made = subprocess.run(
        ["ip", "netns", "add", name], check=False, capture_output=True
    )
    subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
    return made.returncode == 0


if __name__ == "__main__":
    with_namespaces() if may_make_namespaces() else with_loopback()
