"""The tool at work: two hosts, their traffic, one merged capture through tcpdump, live
and once more out of the rings.

``make demo`` runs this. Where namespaces may be made, the two hosts are namespaces on
a bridge, ping each other and ask each other for a name; else they are two workers on
loopback ports that exclude each other. Who is who they show by certificates, of an
authority that is made for this. Everything that is started here is stopped here.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
import socket
import ssl
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.namespaces import may_make_namespaces, network
from support.programs import DDUMP, await_streams, running_worker, started

# Of the authority, in the folder in which all of this runs.
CA, CRL = "ddump-pki/ca.pem", "ddump-pki/crl.pem"
CLIENT = ("ddump-pki/clients/me.pem", "ddump-pki/clients/me.key")
FILTER = "icmp or udp port 53"
SECONDS = 6
# A question for the address of www.example.org (RFC 1035, section 4).
QUESTION = bytes.fromhex("0001 0100 0001 0000 0000 0000") + (
    b"\x03www\x07example\x03org\0\0\1\0\1"
)
ANSWER = (
    bytes.fromhex("0001 8180 0001 0001 0000 0000")
    + QUESTION[12:]
    + bytes.fromhex("c00c 0001 0001 0000003c 0004 c0000207")
)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def merged(targets: list[str], traffic, *, prefix: list[str]) -> None:
    """Merge what ``targets`` see of ``traffic``, while it runs and when it is over."""
    # Shown to the millisecond: the first is over when the traffic begins.
    since = f"{datetime.now().astimezone() + timedelta(milliseconds=1):%H:%M:%S.%f}"
    show([], ["--duration", f"{SECONDS}s"], targets, traffic, prefix=prefix)
    say("\nThat was live. What has been is in the rings:\n")
    show(["--since", since[:-3]], [], targets, lambda: None, prefix=prefix)


def show(
    options: list[str], hidden: list[str], targets: list[str], traffic, *, prefix
) -> None:
    """Run ``ddump OPTIONS TARGETS | tcpdump`` while ``traffic`` runs, until both end."""
    shown = ["--ca", CA, "--cert", CLIENT[0], "--key", CLIENT[1]]
    words = [*options, *shown, "-f", FILTER, *targets]
    say(f"$ {shlex.join(['ddump', *words])} | tcpdump -nlr-\n")
    with (
        started([*prefix, DDUMP, *hidden, *words], stdout=subprocess.PIPE) as ddump,
        started(
            ["tcpdump", "-nlr-"], stdin=ddump.stdout, stderr=subprocess.DEVNULL
        ) as tcpdump,
    ):
        ddump.stdout.close()
        traffic()
        tcpdump.wait(SECONDS + 6)
        ddump.wait(SECONDS)


def make_certificates(stack: contextlib.ExitStack, *servers: list[str]) -> None:
    """Go to a new folder, which is removed at the end, and make an authority there."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ddump-demo-"))
    stack.enter_context(contextlib.chdir(folder))
    commands = [["init"], *(["server", *names] for names in servers), ["client", "me"]]
    for words in commands:
        say(f"$ {shlex.join(['ddump', 'pki', *words])}")
        subprocess.run([DDUMP, "pki", *words], stdout=subprocess.DEVNULL, check=True)
    say("")


def start(stack, listen: str, name: str, *options: str, host=None) -> str:
    """Start a worker that lets in who shows a certificate; return its URL."""
    running = running_worker(
        "--listen", listen, *options, *ring(stack),
        "--tls-cert", f"ddump-pki/servers/{name}.pem",
        "--tls-key", f"ddump-pki/servers/{name}.key",
        "--tls-client-ca", CA, "--tls-crl", CRL,
        host=host,
    )  # fmt: skip
    return stack.enter_context(running).addresses[0]


def await_capture(workers: list[str]) -> None:
    context = ssl.create_default_context(cafile=CA)
    context.load_cert_chain(*CLIENT)
    await_streams(workers, context=context)


def ring(stack: contextlib.ExitStack) -> list[str]:
    """Return the options of a small ring, which is removed at the end."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ddump-demo-"))
    return [
        "--ring-dir", folder, "--ring-size", "8MB", "--segment-size", "2MB",
        "--ring-reserve", "1MB",
    ]  # fmt: skip


def with_namespaces() -> None:
    with network(2, prefix="ddump-demo") as net, contextlib.ExitStack() as stack:
        web, db = net.hosts
        say(
            "Who may see what crosses a host, and who is that host? Certificates tell:\n"
        )
        make_certificates(stack, ["web", web.address], ["db", db.address])
        workers = [
            start(stack, f"{host.address}:8475", name, host=host)
            for name, host in (("web", web), ("db", db))
        ]

        def traffic() -> None:
            with net.client.entered():
                await_capture(workers)
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
        make_certificates(stack, ["localhost", "127.0.0.1"])
        workers = [
            start(
                stack, f"127.0.0.1:{own}", "localhost", "--exclude", f"tcp port {other}"
            )
            for own, other in itertools.permutations((first, second))
        ]

        def traffic() -> None:
            await_capture(workers)
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


if __name__ == "__main__":
    with_namespaces() if may_make_namespaces() else with_loopback()
