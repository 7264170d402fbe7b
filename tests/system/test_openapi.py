"""A real worker, fuzzed with what its own OpenAPI document says that it takes.

A rule ends every stream after 50 ms, whatever is asked for.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.namespaces import network
from support.workers import worker

pytestmark = [pytest.mark.live, pytest.mark.process]

SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))
SHOWN = "0123456789abcdef"
RULE = """
[[access]]
identity = ["token:fuzz"]
allow = ["stream", "window", "status"]
max-duration = "50ms"
"""
RING = ("--ring-size", "16MB", "--segment-size", "1MB", "--ring-reserve", "0")
# No schema says which filters compile, nor which interfaces there are.
NO_CHECKS = "positive_data_acceptance,use_after_free,ensure_resource_availability"


@pytest.mark.timeout(120)
async def test_the_document_is_true(tmp_path):
    (tmp_path / "worker.toml").write_text(RULE)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"fuzz:{SHOWN}\n")
    tokens.chmod(0o600)
    with network(0) as net, net.client.entered():
        async with worker(
            "--config", str(tmp_path / "worker.toml"), "--token-file", str(tokens),
            "--ring-dir", str(tmp_path / "ring"), *RING, "--log-format", "json",
            anonymous=False,
        ) as running:  # fmt: skip
            process = await asyncio.create_subprocess_exec(
                SCHEMATHESIS, "run", f"{running.url}/api/v1/openapi.json",
                "--header", f"Authorization: Bearer {SHOWN}",
                "--checks", "all", "--exclude-checks", NO_CHECKS,
                "--phases", "examples,coverage,fuzzing", "--max-examples", "30",
                "--max-response-time", "10", "--no-color",
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            try:
                async with asyncio.timeout(90):
                    said, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            assert process.returncode == 0, said.decode()
            assert running.packet_sockets() == 1  # the recorder's
    lines = [json.loads(each) for each in running.text.splitlines()]
    answers = Counter(
        (each["path"], each["status"]) for each in lines if "status" in each
    )
    assert answers.total() > 500
    # Streams were had, and each kind of refusal was met.
    for path in ("/capture", "/ring"):
        assert answers[path, 200] > 10
        for status in (400, 401, 403):
            assert answers[path, status] > 0
    assert not [each for each in lines if each["level"] == "error"]
