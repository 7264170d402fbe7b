"""Real workers that end and are started anew, under a command that goes on."""

from __future__ import annotations

import asyncio
import re
import signal

import pytest

from support.commands import interrupted, started
from support.loopback import payloads, talker
from support.servers import refusing_port
from support.workers import stop, wait_until, worker

pytestmark = [pytest.mark.live, pytest.mark.process]


def ring(path):
    """Options of a small ring."""
    return ("--ring-dir", path / "ring", "--ring-size", "64MB", "--segment-size", "1MB",
            "--ring-reserve", "1MB")  # fmt: skip


async def has(path, sent, process):
    """Wait until a capture that grows has all that was sent."""

    def found():
        # A record may be half written; the payloads have one size.
        data = path.read_bytes()
        size = 16 + 16 + 28 + 32
        return payloads(data[: 24 + (len(data) - 24) // size * size])

    try:
        await wait_until(
            lambda: path.exists() and set(sent) <= set(found()), seconds=20
        )
    except TimeoutError:
        process.kill()
        _, err = await process.communicate()
        raise AssertionError(err.decode()) from None


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("kept", [True, False], ids=["ring", "bare"])
async def test_a_worker_is_started_anew(tmp_path, end, kept):
    """On the same port, with the same ring: what came while there was none is missing."""
    options = [str(word) for word in ring(tmp_path)] if kept else []
    listen = [f"127.0.0.1:{refusing_port()}"]
    out = tmp_path / "out"
    code = 0 if end is signal.SIGTERM else -end
    with talker() as talk:
        async with (
            worker(*options, listen=listen, exit_code=code) as first,
            started("-v", "-w", out, "-f", talk.filter, f"web={first.url}") as process,
        ):
            assert await process.stderr.readline() == b"ddump: web: opened\n"
            sent = talk.send(50)
            await has(out, sent, process)
            if end is signal.SIGTERM:
                await stop(first)
            else:
                first.process.kill()
                await first.process.wait()
            lost = talk.send(20)
            async with worker(*options, listen=listen):
                said = ""
                async with asyncio.timeout(30):
                    while "web: back" not in said:
                        said += (await process.stderr.readline()).decode()
                sent += talk.send(50)
                await has(out, sent, process)
                result = await interrupted(process)
    assert result.code == 4
    found = payloads(out.read_bytes())
    assert [each for each in found if each not in lost] == sent
    reason = {
        signal.SIGTERM: "its worker shut down",
        signal.SIGKILL: "the connection ended before the stream did",
    }[end]
    assert re.search(f"web: {reason}; trying it again\n", said)
    assert re.search("web: back; of what came from .* packets may be missing\n", said)
