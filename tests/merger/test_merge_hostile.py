"""A few rounds of the fuzzer, so that each run of the tests has some."""

from __future__ import annotations

import pytest

from fuzz.fuzz_merge import check


@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_hostile_bytes_keep_the_invariant(first):
    for seed in range(first, first + 100):
        check(seed)
