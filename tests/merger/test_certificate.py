from __future__ import annotations

from functools import partial

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from ddump_common.errors import UsageError
from ddump_merger.certificate import Certificate
from support.certificates import Authority, no_text, no_version


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def test_what_a_file_shows(authority):
    pair = authority.server("web1", "*.web1", "10.0.0.1", "::1")
    shown = Certificate.read(pair.cert)
    assert (shown.subject, shown.issuer) == ("CN=web1", "CN=authority")
    assert shown.names == ("web1", "*.web1", "10.0.0.1", "::1")
    assert shown.told_names == "web1, *.web1, 10.0.0.1, ::1"
    certificate = pair.certificate
    assert shown.begin_ns == certificate.not_valid_before_utc.timestamp() * 10**9
    assert shown.end_ns == certificate.not_valid_after_utc.timestamp() * 10**9


def test_the_first_of_a_chain(authority):
    pair = authority.client("alice")
    pair.cert.write_bytes(pair.cert.read_bytes() + authority.cert.read_bytes())
    shown = Certificate.read(pair.cert)
    assert shown.subject == "CN=alice"
    assert shown.told_names == "nobody"


def test_many_names_are_cut(authority):
    pair = authority.server(*(f"web{n}" for n in range(20)))
    shown = Certificate.read(pair.cert)
    assert shown.told_names.endswith("web6, web7, …")


def test_an_address_in_the_place_of_a_name(authority):
    der = authority.server("web1", "10-0-0-1").der.replace(b"10-0-0-1", b"10.0.0.1")
    assert Certificate.parse(der).told_names == "web1, 10.0.0.1 as a DNS name"


def test_what_is_none(tmp_path, authority):
    with pytest.raises(UsageError, match=r"cannot read .*none: No such file"):
        Certificate.read(tmp_path / "none")
    with pytest.raises(UsageError, match="begins with no certificate"):
        Certificate.read(authority.client("alice").key)


@pytest.mark.parametrize("size", [0, 1, 10, 200])
def test_a_certificate_that_is_cut_short(authority, size):
    """It came from the network."""
    der = authority.client("alice").certificate.public_bytes(Encoding.DER)
    with pytest.raises(ValueError, match=r"."):
        Certificate.parse(der[:size])


@pytest.mark.parametrize("spoil", [no_version, partial(no_text, name="alice")])
def test_a_certificate_with_fields_that_cannot_be(authority, spoil):
    der = spoil(authority.client("alice").der)
    with pytest.raises(ValueError, match="that is right"):
        Certificate.parse(der)
