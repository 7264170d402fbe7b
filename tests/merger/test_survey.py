from __future__ import annotations

import pytest

from ddump_common.errors import ExitCode
from ddump_merger.survey import survey_code, told_share, told_size
from ddump_merger.target import parse_target


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ({}, ExitCode.NO_TARGET),
        ({"a": 1}, ExitCode.INCOMPLETE),
        ({"a": 1, "b": 2}, ExitCode.OK),
    ],
)
def test_the_exit_code(answers, code):
    targets = [parse_target("http://a"), parse_target("http://b")]
    assert survey_code(targets, answers) is code


@pytest.mark.parametrize(
    ("size", "told"), [(0, "0B"), (2_000_000_000, "2GB"), (-1, "?"), (1 << 63, "?")]
)
def test_sizes(size, told):
    assert told_size(size) == told


@pytest.mark.parametrize(
    ("size", "limit", "told"),
    [
        (10223 << 10, 40_000_000, "10.5MB of 40MB"),
        (0, 256 << 20, "0B of 256MiB"),
        (-1, 1, "? of ?"),
        (1, 1 << 63, "? of ?"),
    ],
)
def test_a_size_and_its_limit_have_one_kind_of_units(size, limit, told):
    assert told_share(size, limit, of=" of ") == told
