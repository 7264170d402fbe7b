"""Windows of the ring: what is waited for, what is told, and how many there may be."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ddump_common.api import RingQuery
from ddump_common.errors import CaptureError
from ddump_common.window import Interval
from ddump_worker import window
from ddump_worker.capacity import ExhaustedError
from ddump_worker.window import UncoveredError, Windows
from support.rings import SECOND, RingWriter
from support.workers import wait_until

MS = SECOND // 1000


@pytest.fixture
async def writer(tmp_path):
    writer = await asyncio.to_thread(RingWriter, tmp_path)
    yield writer
    await asyncio.to_thread(writer.close)


@pytest.fixture
async def windows(writer):
    windows = Windows(writer.ring, limit=3)
    yield windows
    for pull in list(windows._pulls):
        pull.close()
    await windows.shutdown()


async def planned(windows, now_ns, **query):
    async with asyncio.timeout(5):
        return await windows.plan(RingQuery(**query), now_ns=now_ns)


async def waiting(windows):
    """Wait until a plan waits for the recorder, having seen what there is."""
    await wait_until(
        lambda: windows._waiting and not any(e.is_set() for e in windows._waiting)
    )


async def refused(windows, now_ns, **query) -> UncoveredError:
    with pytest.raises(UncoveredError) as caught:
        await planned(windows, now_ns, **query)
    return caught.value


class TestPlan:
    async def test_all_that_there_is(self, writer, windows):
        begin = writer.now_ns
        await writer.flush(begin + 10 * SECOND)
        plan = await planned(windows, writer.now_ns)
        covered = Interval(begin_ns=begin, end_ns=writer.now_ns)
        assert plan.report.covered == covered
        assert plan.report.gaps == ()
        assert plan.bounds == (0, writer.now_ns)

    async def test_a_window_within(self, writer, windows):
        begin = writer.now_ns
        await writer.flush(begin + 10 * SECOND)
        plan = await planned(
            windows, writer.now_ns, since_ns=begin + 5, until_ns=begin + 9
        )
        assert plan.report.covered == Interval(begin_ns=begin + 5, end_ns=begin + 9)
        assert (plan.report.gaps, plan.bounds) == ((), (begin + 5, begin + 9))

    async def test_what_is_missing_is_said(self, writer, windows):
        begin = writer.now_ns
        await writer.flush(begin + 10 * SECOND)
        end = writer.now_ns
        plan = await planned(
            windows, end, since_ns=begin - 5, until_ns=end + 60 * SECOND
        )
        assert plan.report.covered == Interval(begin_ns=begin, end_ns=end)
        assert plan.report.gaps == (
            Interval(begin_ns=begin - 5, end_ns=begin),
            Interval(begin_ns=end, end_ns=end + 60 * SECOND),
        )

    @pytest.mark.parametrize("offset_ns", [-SECOND, 0, 1])
    async def test_what_ends_before_the_ring_is_refused(
        self, writer, windows, offset_ns
    ):
        begin = writer.now_ns
        await writer.flush(begin + SECOND)
        query = {"since_ns": begin - 2 * SECOND, "until_ns": begin + offset_ns}
        if offset_ns > 0:
            assert (await planned(windows, writer.now_ns, **query)).report.covered
            return
        error = await refused(windows, writer.now_ns, **query)
        assert error.report.covered is None
        assert len(error.report.gaps) == 1
        assert "the ring has nothing of this window; it covers 20" in error.message
        assert "Z to 20" in error.message

    async def test_what_begins_after_now_is_refused(self, writer, windows):
        await writer.flush(writer.now_ns + SECOND)
        later = writer.now_ns + 9 * SECOND
        assert (await refused(windows, writer.now_ns, since_ns=later)).report.gaps == ()

    async def test_an_empty_ring_says_so(self, writer, windows, monkeypatch):
        monkeypatch.setattr(window, "_WAIT_SECONDS", 0.02)
        error = await refused(windows, writer.now_ns)
        assert "it is empty as yet" in error.message

    async def test_many_stretches_are_not_all_named(self, writer, windows):
        for _ in range(6):
            await writer.flush(writer.now_ns + SECOND)
            writer.now_ns += 5 * SECOND
            await asyncio.to_thread(writer._tail.step, writer.now_ns)
        error = await refused(windows, writer.now_ns, since_ns=1, until_ns=2)
        assert "it covers 2 earlier stretches and 20" in error.message
        assert error.message.count(" to ") == 4

    async def test_timestamps_that_the_clock_never_showed_are_found(
        self, writer, windows
    ):
        tomorrow = writer.now_ns + 86400 * SECOND
        await writer.write(tomorrow, flush=False)
        await writer.flush(writer.now_ns + SECOND)
        plan = await planned(
            windows, writer.now_ns, since_ns=tomorrow, until_ns=tomorrow + 1
        )
        assert plan.report.covered is None


class TestWaiting:
    """What belongs to the window has to be recorded first."""

    @pytest.mark.parametrize("ahead_ns", [1, 900 * MS])
    async def test_an_end_that_is_near_is_awaited(self, writer, windows, ahead_ns):
        await writer.flush(writer.now_ns + SECOND)
        now = writer.now_ns
        async with asyncio.TaskGroup() as tasks:
            plan = tasks.create_task(planned(windows, now, until_ns=now + ahead_ns))
            await waiting(windows)
            assert not plan.done()
            await writer.flush(now + ahead_ns - 1)
            await waiting(windows)
            assert not plan.done()
            await writer.flush(now + ahead_ns)
        assert plan.result().report.gaps == ()

    async def test_an_end_that_is_far_is_not(self, writer, windows):
        await writer.flush(writer.now_ns + SECOND)
        now = writer.now_ns + 100 * MS
        until = now + 60 * SECOND
        async with asyncio.TaskGroup() as tasks:
            plan = tasks.create_task(planned(windows, now, until_ns=until))
            await waiting(windows)
            assert not plan.done()
            await writer.flush(now)
        gap = Interval(begin_ns=now, end_ns=until)
        assert plan.result().report.gaps == (gap,)
        assert plan.result().bounds.until_ns == until

    async def test_a_recorder_that_stands_still_is_not_awaited(self, writer, windows):
        await writer.flush(writer.now_ns + SECOND)
        flushed = writer.now_ns
        plan = await planned(windows, flushed + 2 * SECOND)
        gap = Interval(begin_ns=flushed, end_ns=flushed + 2 * SECOND)
        assert plan.report.gaps == (gap,)

    async def test_one_that_has_only_just_begun_is(self, writer, windows):
        async with asyncio.TaskGroup() as tasks:
            plan = tasks.create_task(planned(windows, writer.now_ns + 5 * SECOND))
            await waiting(windows)
            assert not plan.done()
            await writer.flush(writer.now_ns + 5 * SECOND)
        assert plan.result().report.gaps == ()

    async def test_nor_for_ever(self, writer, windows, monkeypatch):
        monkeypatch.setattr(window, "_WAIT_SECONDS", 0.05)
        await writer.flush(writer.now_ns + SECOND)
        plan = await planned(windows, writer.now_ns + 5)
        assert plan.report.gaps
        assert not windows._waiting

    async def test_whoever_leaves_waits_no_more(self, writer, windows):
        await writer.flush(writer.now_ns + SECOND)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await windows.plan(RingQuery(), now_ns=writer.now_ns + 5)
        assert not windows._waiting


class TestFollowing:
    async def test_it_needs_not_wait_and_misses_nothing(self, writer, windows):
        begin = writer.now_ns
        await writer.flush(begin + SECOND)
        plan = await planned(
            windows, writer.now_ns + 200 * MS, since_ns=begin, follow=True
        )
        covered = Interval(begin_ns=begin, end_ns=writer.now_ns)
        assert (plan.report.covered, plan.report.gaps) == (covered, ())

    async def test_a_ring_that_just_begins_will_do(self, writer, windows):
        begin, now = writer.now_ns, writer.now_ns + MS
        async with asyncio.TaskGroup() as tasks:
            plan = tasks.create_task(
                planned(windows, now, since_ns=begin - 60 * SECOND, follow=True)
            )
            await waiting(windows)
            assert not plan.done()
            await writer.flush(now)
        gap = Interval(begin_ns=begin - 60 * SECOND, end_ns=begin)
        assert plan.result().report.gaps == (gap,)

    async def test_it_may_begin_now_by_a_clock_that_is_ahead(self, writer, windows):
        await writer.flush(writer.now_ns + SECOND)
        now = writer.now_ns
        plan = await planned(windows, now, since_ns=now + 60 * SECOND, follow=True)
        assert plan.report.gaps == ()
        await refused(windows, now, since_ns=now + 60 * SECOND + 1, follow=True)

    async def test_what_is_over_is_not_followed(self, writer, windows):
        begin = writer.now_ns
        await writer.flush(begin + SECOND)
        await refused(windows, writer.now_ns, since_ns=1, until_ns=begin, follow=True)


class TestPulls:
    async def open(self, windows, writer, **query):
        await writer.flush(writer.now_ns + MS)
        query = RingQuery(**query)
        plan = await windows.plan(query, now_ns=writer.now_ns)
        return await windows.open(query, plan, b"")

    async def test_there_may_be_so_many(self, writer, windows):
        await writer.write()
        for _ in range(2):
            pulls = [await self.open(windows, writer) for _ in range(3)]
            assert len(windows) == 3
            with pytest.raises(ExhaustedError, match="all 3 windows") as caught:
                windows.check()
            assert caught.value.resource == "windows"
            with pytest.raises(ExhaustedError):
                await self.open(windows, writer)
            for pull in pulls:
                pull.close()
            windows.check()

    async def test_followers_are_woken_once_for_many_commits(
        self, writer, windows, monkeypatch
    ):
        pull = await self.open(windows, writer, follow=True, since_ns=writer.now_ns)
        woken = []
        monkeypatch.setattr(pull, "notice", lambda: woken.append(1))
        for _ in range(100):
            windows._on_recorded()
        await wait_until(lambda: woken)
        assert woken == [1]
        windows._on_recorded()
        await wait_until(lambda: len(woken) == 2)

    async def test_nobody_is_woken_when_nobody_waits(self, writer, windows):
        await writer.write()
        assert not windows._is_woken

    async def test_when_the_recorder_fails_followers_do(self, writer, windows):
        query = {"follow": True, "since_ns": writer.now_ns}
        before = await self.open(windows, writer, **query)
        windows.fail(CaptureError("it failed"))
        after = await self.open(windows, writer, **query)
        for pull in (before, after):
            with pytest.raises(CaptureError, match="it failed"):
                async with asyncio.timeout(5):
                    await pull.deliver(lambda _: None)
