"""For whom a request was meant, and whose page had it sent."""

from __future__ import annotations

import pytest

from ddump_common.errors import UsageError
from ddump_worker.denial import ForbiddenError, MisdirectedError
from ddump_worker.destination import ServedNames, check_origin, single_host

NAMES = ServedNames.of(["localhost", "Web1", "web1.Example.org.", "*.lab.example.org"])


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8475", "web1", "web1.example.org", "WEB1.example.org.:1",
     "a.lab.example.org", "127.0.0.1", "127.0.0.1:8475", "[::1]", "[::1]:8475",
     "[fe80::1%eth0]:8475", "192.0.2.7:99999", "127.0.0.1.", "localhost:"],
)  # fmt: skip
def test_own_names_and_addresses_are_served(host):
    NAMES.check(host)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8475", "web1.example.org.evil.example", "web2", "",
     "example.org", "lab.example.org", "a.b.lab.example.org", ".lab.example.org",
     "127.0.0.1.evil.example", "1", "127.0.0.1.evil", "*.lab.example.org", ":80"],
)  # fmt: skip
def test_any_other_name_is_misdirected(host):
    with pytest.raises(MisdirectedError):
        NAMES.check(host)


def test_what_to_do_is_said():
    with pytest.raises(MisdirectedError, match=r"'evil\.example'") as caught:
        NAMES.check("evil.example:8475")
    assert "--server-name evil.example" in caught.value.hint


@pytest.mark.parametrize(
    "host",
    ["a b", "user@web1", "web1/x", "a:b", "web1:80:90", "[::1]x", "a,b", "a\x1b"],
)
def test_what_is_no_host_is_a_bad_request(host):
    with pytest.raises(UsageError, match="is not a host") as caught:
        NAMES.check(host)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["u:hidden@web1", "u@hidden@web1", "web1?hidden", "web1#hidden"]
)
def test_what_is_no_host_is_quoted_without_what_may_be_secret(host):
    with pytest.raises(UsageError, match="web1") as caught:
        NAMES.check(host)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "web1:8475", "https://web1", "-", "ä"])
def test_what_is_no_name_cannot_be_served(name):
    with pytest.raises(UsageError, match="is not the name of a host"):
        ServedNames.of([name])


def test_a_request_has_one_host():
    assert single_host(["a"], required=True) == "a"
    assert single_host([], required=False) is None  # HTTP/1.0
    for hosts, required in (([], True), (["a", "a"], True), (["a", "b"], False)):
        with pytest.raises(UsageError, match=f"{len(hosts)} Host fields"):
            single_host(hosts, required=required)


@pytest.mark.parametrize(
    ("host", "origins", "sites"),
    [
        ("web1:8475", [], []),
        ("web1:8475", ["http://web1:8475"], ["same-origin"]),
        ("web1", ["https://WEB1"], ["none"]),
        (None, [], []),
    ],
)
def test_programs_and_own_pages_may_ask(host, origins, sites):
    check_origin(host, origins=origins, sites=sites)


@pytest.mark.parametrize(
    ("host", "origins", "sites"),
    [
        ("web1:8475", ["http://evil.example"], []),
        ("web1:8475", ["http://web1"], []),
        ("web1:8475", ["null"], []),
        ("web1:8475", [""], []),
        ("web1:8475", ["web1:8475"], []),
        ("web1:8475", ["file://web1:8475"], []),
        ("web1:8475", ["http://web1:8475", "http://evil.example"], []),
        (None, ["http://web1"], []),
        ("web1:8475", [], ["cross-site"]),
        ("web1:8475", [], ["Same-Site"]),
        ("web1:8475", [], ["same-origin", "cross-site"]),
        ("web1:8475", ["http://web1:8475"], ["cross-site"]),
    ],
)
def test_pages_of_others_may_not(host, origins, sites):
    with pytest.raises(ForbiddenError, match="a page of another site"):
        check_origin(host, origins=origins, sites=sites)
