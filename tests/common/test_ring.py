"""What the header of a ring says of it."""

from __future__ import annotations

import http_sfv
import pytest

from ddump_common.api import Link
from ddump_common.errors import UsageError
from ddump_common.ring import RingNote

NOTES = [
    (RingNote(link=Link.SLL), "link=sll"),
    (RingNote(link=Link.SLL, recording=True), "link=sll, recording"),
    (
        RingNote(link=Link.SLL2, recording=True, partial=True, adopting=True),
        "link=sll2, recording, partial, adopting",
    ),
]


@pytest.mark.parametrize(("note", "value"), NOTES)
def test_it_is_read_as_it_was_written(note, value):
    assert note.serialize() == value
    assert RingNote.parse(value) == note


@pytest.mark.parametrize(("note", "value"), NOTES)
def test_it_is_a_structured_field(note, value):
    read = http_sfv.Dictionary()
    read.parse(value.encode())
    assert str(read["link"].value) == note.link
    assert [name for name in read if name != "link"] == value.split(", ")[1:]
    assert all(item.value is True for name, item in read.items() if name != "link")


@pytest.mark.parametrize(
    "value",
    [
        "recording=?1, link=sll",
        "link=sll2, link=sll, recording=?0, recording",
        "link=sll;x=1, recording;since=3, more=(1 2)",
    ],
)
def test_other_ways_to_write_it(value):
    assert RingNote.parse(value) == RingNote(link=Link.SLL, recording=True)


def test_what_is_not_true_is_false():
    assert RingNote.parse("link=sll, recording=?0, partial=1, adopting=yes") == (
        RingNote(link=Link.SLL)
    )


@pytest.mark.parametrize(
    "value", ["", "recording", "link", "link=en10mb", "link=sll,", "{"]
)
def test_what_is_none(value):
    with pytest.raises(UsageError):
        RingNote.parse(value)
