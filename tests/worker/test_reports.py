"""A bound on what strangers can have written into the log."""

from __future__ import annotations

from ddump_worker.reports import Reports


async def test_so_many_lines_a_minute_and_what_was_left_out_is_told(
    monkeypatch, caplog
):
    reports = Reports(most=30)
    assert [reports.allow() for _ in range(35)] == [True] * 30 + [False] * 5
    assert caplog.text == ""
    monkeypatch.setattr("ddump_worker.reports._REPORTS_SECONDS", 0)
    assert reports.allow()
    assert reports.allow()
    assert [each.getMessage() for each in caplog.records] == [
        "5 lines like the next were left out"
    ]
