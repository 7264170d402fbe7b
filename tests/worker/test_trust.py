"""What is read of certificates, and which of them hold when that is asked again."""

from __future__ import annotations

import shutil

import pytest

from ddump_common.errors import UsageError
from ddump_worker.config import Config
from ddump_worker.listen import parse_address
from ddump_worker.trust import Trust
from support.certificates import EARLY, EXPIRED, Authority


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def options(authority):
    pair = authority.server("web1.example.org", "*.lab.example.org", "192.0.2.7")
    return {
        "listen": (parse_address("127.0.0.1:0"),),
        "tls_cert": pair.cert,
        "tls_key": pair.key,
        "tls_client_ca": authority.cert,
        "tls_crl": authority.crl,
    }


def read(options, **others) -> Trust:
    return Trust.read(Config(**{**options, **others}))


def doubt(trust, pair) -> str:
    return trust.doubt(pair.certificate, trust.authorities)


def test_without_files_nothing_is_believed():
    listen = (parse_address("unix:/x"),)
    assert Trust.read(Config(listen=listen)) == Trust()


def test_names_are_those_of_the_certificate(options):
    assert read(options).names == ("web1.example.org", "*.lab.example.org")


def test_a_certificate_holds_while_it_is_valid_and_not_revoked(options, authority):
    alice, bob = authority.client("alice"), authority.client("bob")
    trust = read(options)
    assert doubt(trust, alice) == ""
    assert doubt(trust, authority.client("a", made=EXPIRED)) == "has expired"
    assert doubt(trust, authority.client("b", made=EARLY)) == "is not valid yet"
    authority.revoke(bob)
    assert doubt(trust, bob) == ""
    trust = read(options)
    assert doubt(trust, bob) == "is revoked"
    assert doubt(trust, alice) == ""
    # A proxy verified it: by which authorities, nobody knows here.
    assert trust.doubt(bob.certificate, frozenset()) == "is revoked"
    assert trust.doubt(alice.certificate, frozenset()) == ""


def test_of_several_authorities_one_may_go(options, authority, tmp_path):
    other = Authority(tmp_path, "other")
    alice, mallory = authority.client("alice"), other.client("mallory")
    both, lists = tmp_path / "both.pem", tmp_path / "lists.pem"
    both.write_bytes(authority.cert.read_bytes() + other.cert.read_bytes())
    other.revoke(revoked := other.client("revoked"))
    lists.write_bytes(authority.crl.read_bytes() + other.crl.read_bytes())
    trust = read(options, tls_client_ca=both, tls_crl=lists)
    assert len(trust.authorities) == 2
    assert doubt(trust, mallory) == ""
    assert doubt(trust, revoked) == "is revoked"
    fewer = read(options)
    assert fewer.doubt(alice.certificate, trust.authorities) == ""
    assert fewer.doubt(mallory.certificate, trust.authorities) == (
        "is of an authority that is not known any more"
    )


def test_two_authorities_may_use_one_number(options, authority, tmp_path):
    alice = authority.client("alice").certificate
    trust = read(options)
    same = Trust(
        revoked=frozenset({(Authority(tmp_path, "other").client("x").certificate.issuer,
                            alice.serial_number)}),
        authorities=trust.authorities,
    )  # fmt: skip
    assert same.doubt(alice, trust.authorities) == ""


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_client_ca", "tls_crl"])
@pytest.mark.parametrize("content", [None, b"", b"nothing of the kind"])
def test_a_file_that_cannot_be_used_is_named(options, tmp_path, name, content):
    path = tmp_path / "wrong.pem"
    if content is not None:
        path.touch(0o600)
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"wrong\.pem"):
        read(options, **{name: path})


def test_a_list_of_revocations_is_not_a_certificate(options, authority):
    with pytest.raises(UsageError, match="revocations"):
        read(options, tls_crl=authority.cert)
    with pytest.raises(UsageError, match="authorities"):
        read(options, tls_client_ca=authority.crl)


def test_a_key_that_everybody_can_read_is_refused(options, tmp_path):
    options["tls_key"].chmod(0o644)
    with pytest.raises(UsageError, match="everybody on this host"):
        read(options)
    options["tls_key"].chmod(0o600)
    # The key may be in the same file; then that must not be open.
    one = tmp_path / "one.pem"
    shutil.copy(options["tls_cert"], one)
    with one.open("ab") as file:
        file.write(options["tls_key"].read_bytes())
    one.chmod(0o644)
    with pytest.raises(UsageError, match="everybody on this host"):
        read(options, tls_cert=one, tls_key=None)
    one.chmod(0o600)
    assert read(options, tls_cert=one, tls_key=None).context is not None
