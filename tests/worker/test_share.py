"""Shares as people write them."""

from __future__ import annotations

import pytest

from ddump_common.errors import UsageError
from ddump_worker.share import Share


@pytest.mark.parametrize(
    ("text", "size", "percent"),
    [
        ("1GB,5%", 10**9, 5),
        ("5%,1GB", 10**9, 5),
        ("2.5 %", 0, 2.5),
        ("512MiB", 512 << 20, 0),
        (" 1gb , 0.5% ", 10**9, 0.5),
        ("0", 0, 0),
        ("100%", 0, 100),
    ],
)
def test_what_is_read(text, size, percent):
    share = Share.parse(text)
    assert share == Share(size=size, percent=percent)
    assert Share.parse(str(share)) == share


@pytest.mark.parametrize(
    "text", ["", ",", "5%,", "5%,6%", "1GB,1GB", "101%", "-5%", "%", "many", "٣%"]
)
def test_nonsense_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="for example 1GB, 5%") as caught:
        Share.parse(text)
    assert repr(text) in str(caught.value)


def test_it_is_the_greater_of_both():
    share = Share(size=1000, percent=5)
    assert share.of(1000) == 1000
    assert share.of(100_000) == 5000
    assert Share(percent=20).of(2_000_000_001) == 400_000_000


@pytest.mark.parametrize("given", [{"size": -1}, {"percent": -1.0}])
def test_one_that_is_negative_is_refused(given):
    with pytest.raises(UsageError, match="negative"):
        Share(**given)
