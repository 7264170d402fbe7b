"""What is read of certificates, and which of them hold when that is asked again."""

from __future__ import annotations

import shutil
import ssl
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    load_pem_private_key,
)

from ddump_common import pki
from ddump_common.errors import UsageError
from ddump_common.tls import Grounds
from ddump_common.units import SECONDS
from ddump_worker.config import Config
from ddump_worker.listen import parse_address
from ddump_worker.trust import Trust
from support.certificates import EARLY, EXPIRED, Authority, no_version, self_signed
from support.workers import worker


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
    return trust.doubt(pair.certificate, trust.grounds)


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
    assert trust.doubt(bob.certificate, Grounds()) == "is revoked"
    assert trust.doubt(alice.certificate, Grounds()) == ""


def test_of_several_authorities_one_may_go(options, authority, tmp_path):
    other = Authority(tmp_path, "other")
    alice, mallory = authority.client("alice"), other.client("mallory")
    both, lists = tmp_path / "both.pem", tmp_path / "lists.pem"
    both.write_bytes(authority.cert.read_bytes() + other.cert.read_bytes())
    other.revoke(revoked := other.client("revoked"))
    lists.write_bytes(authority.crl.read_bytes() + other.crl.read_bytes())
    trust = read(options, tls_client_ca=both, tls_crl=lists)
    assert len(trust.grounds.authorities) == 2
    assert doubt(trust, mallory) == ""
    assert doubt(trust, revoked) == "is revoked"
    fewer = read(options)
    assert fewer.doubt(alice.certificate, trust.grounds) == ""
    assert fewer.doubt(mallory.certificate, trust.grounds) == (
        "is of an authority that is not known any more"
    )


def test_two_authorities_may_use_one_number(options, authority, tmp_path):
    alice = authority.client("alice").certificate
    trust = read(options)
    same = Trust(
        revoked=frozenset({(Authority(tmp_path, "other").client("x").certificate.issuer,
                            alice.serial_number)}),
        grounds=trust.grounds,
    )  # fmt: skip
    assert same.doubt(alice, trust.grounds) == ""


class TestChain:
    """Of a client whose authority is not the root, but one that the root has made."""

    @pytest.fixture
    def root(self, tmp_path):
        return Authority(tmp_path, "root", path_length=1)

    @pytest.fixture
    def between(self, tmp_path, root):
        return Authority(tmp_path, "between", under=root)

    @pytest.fixture
    def read_again(self, options, root, between, tmp_path):
        def read_now(*authorities: Authority) -> Trust:
            known, lists = tmp_path / "known.pem", tmp_path / "lists.pem"
            known.write_bytes(b"".join(each.cert.read_bytes() for each in authorities))
            lists.write_bytes(root.crl.read_bytes() + between.crl.read_bytes())
            return read(options, tls_client_ca=known, tls_crl=lists)

        return read_now

    @pytest.mark.parametrize("known", [True, False])
    def test_once_an_authority_between_is_revoked_it_is_doubted(
        self, root, between, read_again, known
    ):
        alice = between.client("alice")
        authorities = (root, between) if known else (root,)
        then = read_again(*authorities)
        assert then.doubt(alice.certificate, then.grounds) == ""
        root.revoke(between)
        now = read_again(*authorities)
        assert now.doubt(alice.certificate, then.grounds) == (
            "is of an authority that may be revoked since: connect again"
        )
        # A proxy verified it: by which authorities, nobody knows here.
        seen = Grounds(lists=then.grounds.lists)
        assert now.doubt(alice.certificate, seen)
        # What is verified now was not revoked: TLS has seen the whole chain.
        assert now.doubt(alice.certificate, now.grounds) == ""

    def test_what_else_is_revoked_does_no_harm_where_the_chain_is_known(
        self, root, between, read_again
    ):
        alice, bob = between.client("alice"), root.client("bob")
        both, then = read_again(root, between), read_again(root)
        between.revoke(between.client("other"))
        now = read_again(root)
        for pair in (alice, bob):  # by the list of his own authority alice is judged
            assert now.doubt(pair.certificate, then.grounds) == ""
        root.revoke(root.client("other"))
        now = read_again(root)
        assert now.doubt(bob.certificate, then.grounds) == ""
        assert now.doubt(alice.certificate, then.grounds) != ""
        now = read_again(root, between)
        assert now.doubt(alice.certificate, both.grounds) == ""
        # A list that is only younger has changed nothing.
        root.revoke()
        again = read_again(root)
        assert again.doubt(alice.certificate, read_again(root).grounds) == ""


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_client_ca", "tls_crl"])
@pytest.mark.parametrize("content", [None, b"", b"nothing of the kind"])
def test_a_file_that_cannot_be_used_is_named(options, tmp_path, name, content):
    path = tmp_path / "wrong.pem"
    if content is not None:
        path.touch(0o600)
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"wrong\.pem"):
        read(options, **{name: path})


@pytest.mark.parametrize("name", ["tls_cert", "tls_client_ca"])
def test_a_certificate_of_no_version_is_refused(options, tmp_path, name):
    path = tmp_path / "wrong.pem"
    der = ssl.PEM_cert_to_DER_cert(options[name].read_text())
    path.write_text(ssl.DER_cert_to_PEM_cert(no_version(der)))
    with pytest.raises(UsageError, match=r"wrong\.pem"):
        read(options, **{name: path})


def test_a_list_of_revocations_is_not_a_certificate(options, authority):
    with pytest.raises(UsageError, match="revocations"):
        read(options, tls_crl=authority.cert)
    with pytest.raises(UsageError, match="authorities"):
        read(options, tls_client_ca=authority.crl)


def test_a_list_that_another_has_signed_is_refused(options, authority, tmp_path):
    other = Authority(tmp_path, "other")
    later = datetime.now(UTC) + timedelta(hours=1)
    authority.crl.write_bytes(renewed_until(authority, later, by=other))
    with pytest.raises(
        UsageError, match=r"list of CN=authority in .* is not signed by"
    ):
        read(options)
    # That of an authority which is not there cannot be judged.
    authority.crl.write_bytes(
        renewed_until(other, later, by=authority) + renewed_until(authority, later)
    )
    assert read(options).warnings == ()


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


def renewed_until(
    authority: Authority, when: datetime, *, by: Authority | None = None
) -> bytes:
    """Return a list of a day that was to be renewed until ``when``; ``by`` signs it."""
    issuer = (by or authority)._authority.credential
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(when - timedelta(days=1))
        .next_update(when)
        .sign(load_pem_private_key(issuer.key_pem, None), hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM)


class TestWarnings:
    """Of what may be used, and lets nobody in."""

    def test_of_what_is_right_there_are_none(self, options):
        assert read(options).warnings == ()

    @pytest.mark.parametrize(
        ("made", "words"), [(EXPIRED, "has expired on"), (EARLY, "not valid before")]
    )
    def test_an_own_certificate_out_of_its_time(self, options, authority, made, words):
        pair = authority.server("web1", made=made)
        (said,) = read(options, tls_cert=pair.cert, tls_key=pair.key).warnings
        assert f"own certificate in {pair.cert}" in said
        assert words in said

    def test_a_list_that_was_to_be_renewed(self, options, authority):
        now = datetime.now(UTC)
        authority.crl.write_bytes(renewed_until(authority, now + timedelta(hours=1)))
        assert read(options).warnings == ()
        authority.crl.write_bytes(renewed_until(authority, now - timedelta(hours=1)))
        (said,) = read(options).warnings
        assert f"the list of CN=authority in {authority.crl} was to be renewed" in said
        # It is told where a proxy does TLS, too.
        alone = Config(
            listen=(parse_address("unix:/x"),), proxy_uid=33, tls_crl=authority.crl
        )
        assert Trust.read(alone).warnings == (said,)

    def test_a_list_that_is_of_tomorrow(self, options, authority):
        later = datetime.now(UTC) + timedelta(days=2)
        authority.crl.write_bytes(renewed_until(authority, later))
        (said,) = read(options).warnings
        assert f"of CN=authority in {authority.crl} is not valid before 20" in said

    @pytest.mark.parametrize(
        ("days", "words"), [(-3700, "has expired on"), (2, "is not valid before")]
    )
    def test_an_authority_out_of_its_time(self, options, tmp_path, days, words):
        now_ns = time.time_ns() + days * 86400 * SECONDS
        path = tmp_path / "ca.pem"
        over = pki.Authority.create(now_ns=now_ns, name="over").credential
        path.write_bytes(over.certificate_pem)
        (said,) = read(options, tls_client_ca=path, tls_crl=None).warnings
        assert said.startswith(f"the authority CN=over in {path} {words}")

    def test_what_is_no_authority(self, options, authority):
        pair = authority.client("alice")
        (said,) = read(options, tls_client_ca=pair.cert, tls_crl=None).warnings
        assert said.startswith(f"CN=alice in {pair.cert} is not an authority")

    def test_an_own_certificate_that_is_not_for_servers(self, options, authority):
        pair = authority.client("web1")
        (said,) = read(options, tls_cert=pair.cert, tls_key=pair.key).warnings
        assert f"own certificate in {pair.cert} is not for servers" in said
        alone = self_signed(authority.cert.parent, "web1")  # it does not say for what
        assert (
            read(options, tls_cert=alone.cert, tls_key=alone.key, tls_crl=None).warnings
            == ()
        )

    def test_an_authority_without_a_list(self, options, authority, tmp_path):
        both = tmp_path / "both.pem"
        other = Authority(tmp_path, "other")
        both.write_bytes(authority.cert.read_bytes() + other.cert.read_bytes())
        (said,) = read(options, tls_client_ca=both).warnings
        assert f"{authority.crl} has no list of CN=other" in said


class TestSetbacks:
    """What a list that is read again may not lose in silence."""

    def test_an_older_list_that_revokes_less(self, options, authority):
        before = authority.crl.read_bytes()
        authority.revoke(authority.client("alice"), authority.client("bob"))
        trust = read(options)
        assert not list(read(options).setbacks(trust))
        authority.crl.write_bytes(before)
        (said,) = read(options).setbacks(trust)
        assert "no newer list of CN=authority" in said
        assert "fewer are revoked: 2" in said
        assert not list(trust.setbacks(read(options)))

    def test_no_list_at_all(self, options, authority):
        authority.revoke(authority.client("alice"))
        trust = read(options)
        (said,) = read(options, tls_crl=None).setbacks(trust)
        assert "fewer are revoked: 1" in said

    def test_a_newer_list_may_leave_out(self, options, authority):
        authority.revoke(authority.client("alice"))
        trust = read(options)
        later = datetime.now(UTC) + timedelta(days=2)
        authority.crl.write_bytes(renewed_until(authority, later))
        assert not list(read(options).setbacks(trust))


@pytest.mark.process
async def test_an_older_list_is_in_the_log_at_a_reload(authority):
    pair = authority.server("127.0.0.1")
    before = authority.crl.read_bytes()
    authority.revoke(authority.client("alice"))
    async with worker(
        "--tls-cert", str(pair.cert), "--tls-key", str(pair.key),
        "--tls-client-ca", str(authority.cert), "--tls-crl", str(authority.crl),
    ) as running:  # fmt: skip
        authority.crl.write_bytes(before)
        await running.hang_up()
        assert running.text.count("fewer are revoked: 1") == 1


@pytest.mark.process
async def test_warnings_are_in_the_log_at_the_start_and_at_a_reload(authority):
    pair = authority.server("127.0.0.1", made=EXPIRED)
    async with worker(
        "--tls-cert", str(pair.cert), "--tls-key", str(pair.key)
    ) as running:  # fmt: skip
        assert running.text.count("has expired on") == 1
        await running.hang_up()
        assert running.text.count("has expired on") == 2
