"""What the authority signs, judged by OpenSSL."""

from __future__ import annotations

import subprocess
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from ddump_common.errors import UsageError
from ddump_common.pki import (
    Authority,
    Issued,
    Kind,
    RevocationList,
    check_client_name,
    check_server_names,
)
from ddump_common.units import SECONDS

NOW = time.time_ns() // SECONDS * SECONDS
DAY = 86400 * SECONDS


@pytest.fixture(scope="module")
def authority():
    return Authority.create(now_ns=NOW)


@pytest.fixture
def verify(authority, tmp_path):
    """Ask OpenSSL, at its strictest, what it says of a certificate; empty is good."""

    def verify(credential, purpose, *, revocations=None, days=0, trusted=authority):
        files = {
            "ca": trusted.credential.certificate_pem,
            "crl": authority.sign_revocations(
                revocations or RevocationList(), now_ns=NOW
            ),
            "leaf": credential.certificate_pem,
        }
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        result = subprocess.run(
            [
                "openssl", "verify", "-x509_strict", "-crl_check",
                "-attime", str((NOW + days * DAY) // SECONDS),
                "-purpose", purpose, "-CAfile", "ca", "-CRLfile", "crl", "leaf",
            ],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert bool(result.returncode) == bool(result.stderr)
        return result.stderr

    return verify


def extension(credential, kind):
    return credential.certificate.extensions.get_extension_for_class(kind)


def test_a_server_is_one_and_no_client(authority, verify):
    server = authority.server(["web1"], now_ns=NOW)
    assert verify(server, "sslserver") == ""
    assert "unsuitable certificate purpose" in verify(server, "sslclient")


def test_a_client_is_one_and_no_server(authority, verify):
    client = authority.client("alice", now_ns=NOW)
    assert verify(client, "sslclient") == ""
    assert "unsuitable certificate purpose" in verify(client, "sslserver")
    assert client.certificate.subject.rfc4514_string() == "CN=alice"


@pytest.mark.parametrize("kind", ["server", "client"])
def test_nobody_else_signs(authority, verify, kind):
    """A leaf is no authority, nor may the authority make another one."""
    made = authority.server(["web1"], now_ns=NOW)
    if kind == "client":
        made = authority.client("alice", now_ns=NOW)
    forged = Authority(credential=made).client("mallory", now_ns=NOW)
    assert verify(forged, "sslclient", trusted=Authority(credential=made))
    constraints = extension(authority.credential, x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    with pytest.raises(UsageError, match="not that of an authority"):
        Authority.parse(made.certificate_pem, made.key_pem)


def test_what_another_authority_signed_does_not_hold(verify):
    other = Authority.create(now_ns=NOW).client("alice", now_ns=NOW)
    assert "unable to get local issuer" in verify(other, "sslclient")


@pytest.mark.parametrize("made", [Authority.server, Authority.client])
def test_how_long_it_is_valid(authority, verify, made):
    name = ["alice"] if made is Authority.server else "alice"
    purpose = "sslserver" if made is Authority.server else "sslclient"
    credential = made(authority, name, now_ns=NOW)
    certificate = credential.certificate
    # No client takes more than 398 days; clocks that are behind take it now.
    assert certificate.not_valid_before_utc.timestamp() == NOW // SECONDS - 3600
    assert certificate.not_valid_after_utc.timestamp() == NOW // SECONDS + 397 * 86400
    assert verify(credential, purpose, days=396) == ""
    assert "certificate has expired" in verify(credential, purpose, days=398)
    early = made(authority, name, now_ns=NOW + DAY)
    assert "not yet valid" in verify(early, purpose)


def test_nothing_is_valid_for_longer_than_the_authority(authority, verify):
    last = authority.credential.certificate.not_valid_after_utc
    assert 3650 < (last.timestamp() - NOW // SECONDS) / 86400 < 3660
    late = NOW + 3600 * DAY
    client = authority.client("alice", now_ns=late)
    assert client.certificate.not_valid_after_utc == last
    # The list is good for as long, or one day nobody would be let in.
    assert verify(client, "sslclient", days=3652) == ""
    with pytest.raises(UsageError, match=r"the authority was valid until 20\d\d-"):
        authority.client("alice", now_ns=NOW + 3700 * DAY)


def test_an_authority_signs_nothing_before_it_is_valid_and_after(authority):
    """But from an hour before it was made, for clocks that are behind."""
    begin = authority.credential.certificate.not_valid_before_utc
    assert begin.timestamp() == NOW // SECONDS - 3600
    for when, told in (
        (NOW - 3601 * SECONDS, f"is not valid before {begin:%Y-%m-%dT%H:%M:%SZ}"),
        (NOW + 3700 * DAY, "was valid until 20"),
    ):
        for sign in (
            lambda now_ns: authority.client("alice", now_ns=now_ns),
            lambda now_ns: authority.server(["web1"], now_ns=now_ns),
            lambda now_ns: authority.sign_revocations(RevocationList(), now_ns=now_ns),
        ):
            with pytest.raises(UsageError, match=f"the authority {told}"):
                sign(when)
    assert authority.client("alice", now_ns=NOW - 3600 * SECONDS)


def test_revoked(authority, verify):
    alice, bob = (authority.client(name, now_ns=NOW) for name in ("alice", "bob"))
    revocations = RevocationList().adding([alice.certificate.serial_number], now_ns=NOW)
    told = verify(alice, "sslclient", revocations=revocations)
    assert "certificate revoked" in told
    assert verify(bob, "sslclient", revocations=revocations) == ""


def test_revocations_are_read_back(authority):
    first = RevocationList().adding([5, 6], now_ns=NOW)
    second = first.adding([6, 7], now_ns=NOW + DAY)
    signed = authority.sign_revocations(second, now_ns=NOW + DAY)
    assert authority.read_revocations(signed) == second
    assert second.revoked_ns == {5: NOW, 6: NOW, 7: NOW + DAY}
    assert (RevocationList().number, first.number, second.number) == (1, 3, 4)


def test_revocations_of_others_are_not_taken(authority):
    signed = Authority.create(now_ns=NOW).sign_revocations(RevocationList(), now_ns=NOW)
    with pytest.raises(UsageError, match="not of this authority"):
        authority.read_revocations(signed)
    with pytest.raises(UsageError, match="not a list of revocations"):
        authority.read_revocations(b"nonsense")
    with pytest.raises(UsageError, match="not a list of revocations"):
        authority.read_revocations(signed[:-60])


def test_an_authority_is_read_back(authority):
    credential = authority.credential
    same = Authority.parse(credential.certificate_pem, credential.key_pem)
    assert same.credential.certificate == credential.certificate
    assert Issued.parse(same.client("a", now_ns=NOW).certificate_pem).name == "a"


def test_authorities_can_be_told_apart_and_named(authority):
    name = authority.credential.certificate.subject.rfc4514_string()
    other = Authority.create(now_ns=NOW).credential.certificate.subject
    assert name.startswith("CN=ddump authority ")
    assert other.rfc4514_string() != name
    named = Authority.create(now_ns=NOW, name="x").credential.certificate.subject
    assert named.rfc4514_string() == "CN=x"


def pem(key, encryption=None):
    return key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()
    )


def test_keys_that_are_not_the_authority_s(authority):
    certificate = authority.credential.certificate_pem
    other = Authority.create(now_ns=NOW).credential.key_pem
    encrypted = pem(authority.credential.key, BestAvailableEncryption(b"x"))
    kind = pem(rsa.generate_private_key(65537, 2048))
    for key, reason in (
        (other, "not that of the certificate"),
        (encrypted, "is encrypted"),
        (b"nonsense", "cannot be read"),
        (kind, "of another kind"),
    ):
        with pytest.raises(UsageError, match=reason) as caught:
            Authority.parse(certificate, key)
        assert "BEGIN" not in f"{caught.value}"
    with pytest.raises(UsageError, match="not that of an authority"):
        Authority.parse(b"nonsense", authority.credential.key_pem)


def test_no_representation_shows_a_key(authority):
    assert "EllipticCurve" not in repr(authority)
    assert "key" not in repr(authority.client("alice", now_ns=NOW)).lower()


def test_what_was_issued_is_read_back(authority):
    server = authority.server(["Web1", "10.0.0.1"], now_ns=NOW)
    issued = Issued.parse(server.certificate_pem)
    assert issued == Issued(
        kind=Kind.SERVER, name="web1", names=("web1", "10.0.0.1"), serial=server.certificate.serial_number,
        begin_ns=NOW - 3600 * SECONDS, end_ns=NOW + 397 * DAY,
    )  # fmt: skip
    client = Issued.parse(authority.client("alice", now_ns=NOW).certificate_pem)
    assert (client.kind, client.name, client.names) == (Kind.CLIENT, "alice", ())
    for wrong in (b"nonsense", authority.credential.certificate_pem):
        with pytest.raises(UsageError, match="not a certificate of this kind"):
            Issued.parse(wrong)


def test_the_names_of_a_server(authority):
    names = ["Web1.Example.org", "web1", "*.web1", "10.0.0.1", "2001:DB8:0::1", "web1"]
    assert check_server_names(names) == (
        "web1.example.org", "web1", "*.web1", "10.0.0.1", "2001:db8::1",
    )  # fmt: skip
    made = authority.server(names, now_ns=NOW)
    alternatives = extension(made, x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == [
        "web1.example.org", "web1", "*.web1",
    ]  # fmt: skip
    assert [str(ip) for ip in alternatives.get_values_for_type(x509.IPAddress)] == [
        "10.0.0.1", "2001:db8::1",
    ]  # fmt: skip
    assert made.certificate.subject.rfc4514_string() == "CN=web1.example.org"


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a/b", "..", "../x", "-a", "a-", ".a", "a.", "a..b", "*", "a.*.b", "a\n",
     "ä.example", "a_b", "1.2.3", "300.1.1.1", "fe80::1%eth0", f"{'a' * 64}.b",
     ".".join(["a" * 60] * 5), "a,DNS:b", "a\0b", "http://a", "a:8475", "10.0.0.0/8"],
)  # fmt: skip
def test_what_is_no_name_of_a_server(name):
    with pytest.raises(UsageError, match=r"is no DNS name|is no address|has a zone"):
        check_server_names(["web1", name])


def test_the_first_name_of_a_server():
    with pytest.raises(UsageError, match="has a name or an address"):
        check_server_names([])
    long = ".".join(["a" * 40] * 2)
    for first in ("*.example.org", long):
        with pytest.raises(UsageError, match="cannot be the first name"):
            check_server_names([first, "web1"])
    assert check_server_names(["web1", "*.example.org", long])[1:] == (
        "*.example.org",
        long,
    )


@pytest.mark.parametrize("name", ["alice", "Alice@example.org", "a-b_c.d", "9" * 64])
def test_the_name_of_a_client(name):
    check_client_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".x", "-x", "a/b", "../a", "a b", "a\n", "ä", "a,O=b", "a" * 65],
)
def test_what_is_no_name_of_a_client(authority, name):
    with pytest.raises(UsageError, match="is no name for a client"):
        authority.client(name, now_ns=NOW)
