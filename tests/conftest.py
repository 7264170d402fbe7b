"""What holds for every test."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
from blockbuster import blockbuster_ctx


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked():
    """A call of ours that blocks a running event loop raises ``BlockingError``."""
    with blockbuster_ctx(["ddump_worker", "ddump_merger"]) as watched:
        # The last that a run does is to wait for the threads that read its files.
        watched.functions["threading.Lock.acquire"].can_block_in(
            "ddump_merger/source.py", {"__exit__"}
        )
        # The table is imported before anything flows.
        watched.functions["os.getcwd"].can_block_in(
            "ddump_merger/job.py", {"_progress"}
        )
        yield


@contextmanager
def _zone(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", name)
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def berlin():
    """This process is in Berlin, in winter an hour ahead of Greenwich."""
    with _zone("Europe/Berlin"):
        yield


@pytest.fixture
def utc():
    """This process is in Greenwich, without its summers."""
    with _zone("UTC"):
        yield
