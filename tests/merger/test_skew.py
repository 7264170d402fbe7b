"""How far a clock is from ours: what is computed, and what is asked of real servers."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddump_merger.credentials import Keyring
from ddump_merger.skew import Skew, Stopwatch, combine, measure
from ddump_merger.stream import fetch, open_session
from ddump_merger.target import parse_target
from support.servers import refusing_port, serving

MILLISECOND = 1_000_000
SECOND = 1_000_000_000
NOW = 1_700_661_780 * SECOND

moments = st.integers(0, 1 << 63)
delays = st.integers(0, 1 << 40) | st.just(0)
offsets = st.integers(-(1 << 60), 1 << 60)


def exchange(sent_ns, there_ns, back_ns, offset_ns):
    """Return what one question tells of a clock that is ``offset_ns`` ahead."""
    answered_ns = sent_ns + there_ns
    return Skew.of(
        sent_ns=sent_ns,
        received_ns=answered_ns + back_ns,
        time_ns=answered_ns + offset_ns,
    )


@given(moments, delays, delays, offsets)
def test_the_true_offset_is_within_the_error(sent_ns, there_ns, back_ns, offset_ns):
    skew = exchange(sent_ns, there_ns, back_ns, offset_ns)
    assert abs(skew.offset_ns - offset_ns) <= skew.error_ns
    assert skew.error_ns == (there_ns + back_ns + 1) // 2


@given(st.lists(st.tuples(moments, delays, delays) | st.none()), offsets)
def test_the_least_error_counts(exchanges, offset_ns):
    samples = [each and exchange(*each, offset_ns) for each in exchanges]
    best = combine(samples)
    known = [sample for sample in samples if sample is not None]
    if not known:
        assert best is None
    else:
        assert best in known
        assert best.error_ns == min(sample.error_ns for sample in known)
        assert abs(best.offset_ns - offset_ns) <= best.error_ns


@pytest.mark.parametrize(
    ("offset_ns", "error_ns", "certain", "notable"),
    [
        (0, 0, False, False),
        (1, 0, True, False),
        (-5 * MILLISECOND, 5 * MILLISECOND, False, False),
        (10 * MILLISECOND, 0, True, False),
        (10 * MILLISECOND + 1, 0, True, True),
        (-10 * MILLISECOND - 1, 0, True, True),
        (12 * MILLISECOND, 2 * MILLISECOND, True, False),
        (12 * MILLISECOND + 1, 2 * MILLISECOND, True, True),
    ],
)
def test_what_is_worth_a_word(offset_ns, error_ns, certain, notable):
    skew = Skew(offset_ns=offset_ns, error_ns=error_ns)
    assert (skew.certain, skew.notable) == (certain, notable)


@pytest.mark.parametrize(
    ("offset_ns", "error_ns", "told"),
    [
        (3_002_000_000, 400_000, "+3.002 s ± 0.4 ms"),
        (-12_340_000, 1_500_000, "-12.3 ms ± 1.5 ms"),
        (20_000, 85_000, "+0.020 ms ± 0.085 ms"),
        (2_000, 200_000, "+0.0 ms ± 0.2 ms"),
        (-2_000, 200_000, "+0.0 ms ± 0.2 ms"),
        (99_999, 100_000, "+0.1 ms ± 0.1 ms"),
        (5_000_000, 99_000, "+5.000 ms ± 0.099 ms"),
        (0, 2_000_000_000, "+0.0 ms ± 2.000 s"),
    ],
)
def test_how_it_is_told(offset_ns, error_ns, told):
    assert str(Skew(offset_ns=offset_ns, error_ns=error_ns)) == told


# Real requests


def telling(shift_ns=0, *, late_ns=0, status="200 OK"):
    """Return a script that tells a clock's time, and whose answers are on the way."""

    async def script(exchange):
        shown = time.time_ns() + shift_ns
        await asyncio.sleep(late_ns / SECOND)
        await exchange.answer(status, b"{}", **{"Ddump-Time": str(shown)})

    return script


@contextlib.asynccontextmanager
async def asking(script):
    async with (
        serving(script, tells_time=True) as server,
        open_session(None) as session,
    ):
        yield server, session


async def measured(script, *, timeout_ns=5 * SECOND, url="{}"):
    """Return what was measured, and the requests that it took."""
    async with asking(script) as (server, session):
        target = parse_target(url.format(server.url), keyring=Keyring())
        skew = await measure(target, session, timeout_ns=timeout_ns)
    return skew, server.requests


@pytest.mark.parametrize("shift_ns", [0, 3 * SECOND, -3 * SECOND, -86400 * SECOND])
async def test_an_offset_is_found(shift_ns):
    skew, requests = await measured(telling(shift_ns))
    assert abs(skew.offset_ns - shift_ns) <= skew.error_ns < SECOND
    assert [request.target for request in requests] == ["/api/v1/health"] * 3


async def test_answers_that_are_late_widen_the_error():
    late_ns = 40 * MILLISECOND
    skew, _ = await measured(telling(3 * SECOND, late_ns=late_ns))
    assert skew.error_ns >= late_ns // 2
    assert abs(skew.offset_ns - 3 * SECOND) <= skew.error_ns


async def test_every_answer_tells_the_time():
    skew, requests = await measured(telling(status="401 Unauthorized"))
    assert abs(skew.offset_ns) <= skew.error_ns
    assert len(requests) == 3


@pytest.mark.parametrize(
    "shown", [None, "", "-1", "1e18", "٣", "1.5", "9" * 19, "9" * 20, "9" * 4000]
)
async def test_the_first_answer_that_tells_no_time_is_the_last(shown):
    async def script(exchange):
        told = {} if shown is None else {"Ddump-Time": shown}
        head = {**told, "Content-Length": "0"}
        lines = ["HTTP/1.1 200 OK", *(f"{k}: {v}" for k, v in head.items())]
        await exchange.send("\r\n".join([*lines, "", ""]).encode())

    skew, requests = await measured(script)
    assert skew is None
    assert len(requests) == 1


async def test_a_redirect_is_not_followed():
    async def script(exchange):
        await exchange.answer("302 Found", location="/elsewhere")

    skew, requests = await measured(script)
    assert skew is None
    assert len(requests) == 1


async def test_behind_a_proxy_the_prefix_is_kept_and_who_asks_is_told():
    url = "http://alice:secret@{}/web1/"

    async def script(exchange):
        assert exchange.request.headers["Authorization"].startswith("Basic ")
        await telling()(exchange)

    async with asking(script) as (server, session):
        target = parse_target(
            url.format(server.url.removeprefix("http://")), keyring=Keyring()
        )
        assert await measure(target, session, timeout_ns=5 * SECOND) is not None
    assert server.requests[0].target == "/web1/api/v1/health"


async def test_who_cannot_be_reached_has_no_clock():
    async with open_session(None) as session:
        target = parse_target(f"http://127.0.0.1:{refusing_port()}")
        assert await measure(target, session, timeout_ns=5 * SECOND) is None


async def test_what_breaks_leaves_what_was_measured():
    async def script(exchange):
        if len(server.requests) > 1:
            exchange.reset()
        else:
            await telling(3 * SECOND)(exchange)

    async with asking(script) as (server, session):
        skew = await measure(parse_target(server.url), session, timeout_ns=5 * SECOND)
    assert abs(skew.offset_ns - 3 * SECOND) <= skew.error_ns
    assert len(server.requests) > 1


async def test_what_is_silent_is_left_and_leaves_what_was_measured():
    async def script(exchange):
        if len(server.requests) > 1:
            await exchange.gone()
            left.set()
        else:
            await telling(3 * SECOND)(exchange)

    left = asyncio.Event()
    async with asking(script) as (server, session):
        skew = await measure(parse_target(server.url), session, timeout_ns=SECOND // 2)
        async with asyncio.timeout(5):
            await left.wait()
    assert abs(skew.offset_ns - 3 * SECOND) <= skew.error_ns


async def test_what_is_not_http_is_no_clock():
    async def script(exchange):
        await exchange.send(b"SSH-2.0-OpenSSH\r\n\r\n")

    skew, requests = await measured(script)
    assert skew is None
    assert len(requests) == 1


async def test_requests_that_nobody_times():
    async with asking(telling()) as (server, session):
        target = parse_target(server.url)
        body = await fetch(
            target, f"{server.url}/x", session,
            accept="*/*", max_bytes=10, timeout_ns=5 * SECOND,
        )  # fmt: skip
    assert body == b"{}"


async def test_a_stopwatch_that_never_ran_tells_nothing():
    async with (
        asking(telling()) as (server, session),
        session.get(server.url) as response,
    ):
        watch = Stopwatch()
        watch.stop()
        assert watch.skew(response) is None
