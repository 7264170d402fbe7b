from __future__ import annotations

from ddump_common import errors
from ddump_common.errors import CorruptError, DdumpError, ExitCode, ParameterError


def test_every_error_is_drawn_in_the_tree():
    for name in errors.__all__:
        if issubclass(getattr(errors, name), DdumpError):
            assert f" {name} " in errors.__doc__.replace("\n", " ")


def test_texts_name_the_culprit_and_what_to_do():
    assert str(CorruptError("caplen 9", offset=24)) == "caplen 9, at byte 24"
    assert (
        str(ParameterError("snaplen", "0 is out of range", hint="leave it out"))
        == "snaplen: 0 is out of range (leave it out)"
    )


def test_exit_codes_are_those_that_scripts_rely_on():
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "FAILURE": 1,
        "USAGE": 2,
        "NO_TARGET": 3,
        "INCOMPLETE": 4,
        "OUTPUT": 5,
    }
