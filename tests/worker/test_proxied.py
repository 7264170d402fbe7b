"""What a proxy says of its client, right and wrong."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from ddump_common.api import ADDRESS_HEADER, CERTIFICATE_HEADER, USER_HEADER
from ddump_common.errors import UsageError
from ddump_worker.proxied import Proxied
from support.certificates import Authority


def parsed(*fields: tuple[str, str]) -> Proxied:
    return Proxied.parse(CIMultiDictProxy(CIMultiDict(fields)))


@pytest.fixture
def pair(tmp_path):
    return Authority(tmp_path).client("alice")


def test_nothing_is_said_by_fields_that_are_missing_or_empty():
    nothing = Proxied(certificate=None, user="", address="unix")
    assert parsed() == nothing
    assert parsed(
        (CERTIFICATE_HEADER, ""), (USER_HEADER, ""), (ADDRESS_HEADER, "")
    ) == (nothing)


def test_a_certificate_is_read_as_nginx_escapes_it(pair):
    escaped = quote(pair.cert.read_text(), safe="")
    said = parsed((CERTIFICATE_HEADER.lower(), escaped), (USER_HEADER, "bob"))
    assert said.certificate == pair.certificate
    assert said.user == "bob"


@pytest.mark.parametrize(
    "text",
    ["x", "%", "%4", "%zz", "a b", "%00", "\xff", "%2D%2D%2D%2D%2D",
     "-----BEGIN%20CERTIFICATE-----%0AAAAA%0A-----END%20CERTIFICATE-----%0A"],
)  # fmt: skip
def test_what_is_no_certificate_is_refused(text):
    with pytest.raises(UsageError, match=CERTIFICATE_HEADER):
        parsed((CERTIFICATE_HEADER, text))


def test_a_certificate_cut_short_is_refused(pair):
    escaped = quote(pair.cert.read_text(), safe="")
    for length in range(1, len(escaped), 50):
        with pytest.raises(UsageError, match=CERTIFICATE_HEADER):
            parsed((CERTIFICATE_HEADER, escaped[:length]))


@pytest.mark.parametrize("text", ["a\tb", "a\x7f", "\udcff", "x" * 257, "a\u202eb"])
def test_a_user_that_cannot_be_shown_is_refused(text):
    with pytest.raises(UsageError, match=USER_HEADER) as caught:
        parsed((USER_HEADER, text))
    assert text not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.7:1234", "192.0.2.7:1234"),
        ("2001:db8::1:1234", "[2001:db8::1]:1234"),  # nginx has no brackets
        ("[2001:db8::1]:1234", "[2001:db8::1]:1234"),
        ("::1:65535", "[::1]:65535"),
        ("unix::", "unix"),
    ],
)
def test_addresses_are_told_as_people_write_them(text, address):
    assert parsed((ADDRESS_HEADER, text)).address == address


@pytest.mark.parametrize(
    "text",
    ["192.0.2.7", "192.0.2.7:", "192.0.2.7:65536", "host:1", ":1", "unix:", "a\n:1"],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match=f"{ADDRESS_HEADER} is not ADDRESS:PORT"):
        parsed((ADDRESS_HEADER, text))


@pytest.mark.parametrize("name", [CERTIFICATE_HEADER, USER_HEADER, ADDRESS_HEADER])
def test_a_field_that_is_there_twice_is_refused(name):
    # Somebody else's may have come first.
    with pytest.raises(UsageError, match=f"{name} is there 2 times"):
        parsed((name, "a"), (name.upper(), ""))
