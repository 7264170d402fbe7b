from __future__ import annotations

import contextlib
import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ddump_common.errors import UsageError
from ddump_common.tls import client_context, server_context
from support.certificates import Authority


@pytest.fixture
def pair(tmp_path):
    """A self-signed certificate and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    cert_path = tmp_path / "cert.pem"
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def write_key(encryption):
        path = tmp_path / "key.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                encryption,
            )
        )
        return path

    return cert_path, write_key


def test_contexts_verify():
    context = client_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_own_authorities_and_certificate(pair):
    cert, write_key = pair
    context = client_context(
        ca=cert, cert=cert, key=write_key(serialization.NoEncryption())
    )
    assert len(context.get_ca_certs()) in (0, 1)  # a leaf is trusted, but is no CA
    assert context.cert_store_stats()["x509"] == 1


def test_an_encrypted_key_is_an_error_not_a_prompt(pair):
    cert, write_key = pair
    key = write_key(serialization.BestAvailableEncryption(b"secret"))
    with pytest.raises(UsageError, match=r"cannot use the certificate .*cert\.pem"):
        client_context(cert=cert, key=key)


def test_files_that_cannot_be_used_are_named(tmp_path):
    missing = tmp_path / "missing.pem"
    with pytest.raises(
        UsageError, match=r"authorities in .*missing\.pem: No such file"
    ):
        client_context(ca=missing)
    with pytest.raises(UsageError, match=r"certificate .*missing\.pem: No such file"):
        client_context(cert=missing)
    empty = tmp_path / "empty.pem"
    empty.touch()
    with pytest.raises(UsageError, match=r"authorities in .*empty\.pem"):
        client_context(ca=empty)


def test_a_key_alone_is_no_use(tmp_path):
    with pytest.raises(UsageError, match="give --cert as well"):
        client_context(key=tmp_path / "key.pem")


def test_revocations_are_looked_at(tmp_path):
    authority = Authority(tmp_path)
    context = client_context(ca=authority.cert, crl=authority.crl)
    assert context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF
    assert context.cert_store_stats()["crl"] == 1
    assert not client_context(ca=authority.cert).verify_flags & (
        ssl.VERIFY_CRL_CHECK_LEAF
    )


def test_what_is_no_list_of_revocations(tmp_path):
    authority = Authority(tmp_path)
    mixed = tmp_path / "mixed.pem"
    mixed.write_bytes(authority.crl.read_bytes() + authority.cert.read_bytes())
    empty = tmp_path / "empty.pem"
    empty.touch()
    for path, reason in (
        (mixed, "there are certificates as well"),
        (authority.cert, "there are certificates as well"),
        (empty, "revocations in .*empty.pem: "),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(UsageError, match=reason):
            client_context(crl=path)


def test_nothing_is_verified_only_when_that_is_said(tmp_path):
    context = client_context(insecure=True)
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname
    authority = Authority(tmp_path)
    for given in ({"ca": authority.cert}, {"crl": authority.crl}):
        with pytest.raises(UsageError, match="--insecure verifies nothing"):
            client_context(insecure=True, **given)


class TestServer:
    @pytest.fixture
    def authority(self, tmp_path):
        return Authority(tmp_path)

    def test_clients_need_a_certificate_where_an_authority_is_named(self, authority):
        pair = authority.server("web1.example.org")
        plain = server_context(cert=pair.cert, key=pair.key)
        assert plain.verify_mode is ssl.CERT_NONE
        strict = server_context(cert=pair.cert, key=pair.key, client_ca=authority.cert)
        assert strict.verify_mode is ssl.CERT_REQUIRED
        assert not strict.verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        revoking = server_context(
            cert=pair.cert, key=pair.key, client_ca=authority.cert, crl=authority.crl
        )
        assert revoking.verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        for context in (plain, strict, revoking):
            assert context.minimum_version is ssl.TLSVersion.TLSv1_2
            assert context.options & ssl.OP_NO_TICKET
            assert context.num_tickets == 0

    def test_a_handshake_that_fails_says_what_to_tell_the_client(self, authority):
        pair = authority.server("web1.example.org")
        server = server_context(
            cert=pair.cert, key=pair.key, client_ca=authority.cert, crl=authority.crl
        )
        client = client_context(ca=authority.cert)
        one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
        serving = server.wrap_bio(one, other, server_side=True)
        asking = client.wrap_bio(other, one, server_hostname="web1.example.org")
        for _ in range(2):
            for each in (asking, serving):
                with contextlib.suppress(ssl.SSLWantReadError):
                    try:
                        each.do_handshake()
                    except ssl.SSLError as exc:
                        if each is asking or isinstance(exc, ssl.SSLWantReadError):
                            raise
                        failure = exc
        assert failure.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
        other.write(failure.alert)
        with pytest.raises(ssl.SSLError, match="certificate required"):
            asking.read()

    @pytest.mark.parametrize("name", ["cert", "key", "client_ca", "crl"])
    def test_files_that_cannot_be_used_are_named(self, authority, tmp_path, name):
        pair = authority.server("web1.example.org")
        files = {
            "cert": pair.cert,
            "key": pair.key,
            "client_ca": authority.cert,
            "crl": authority.crl,
        }
        missing, wrong = tmp_path / "missing.pem", tmp_path / "wrong.pem"
        wrong.write_text("nothing of the kind")
        for path in (missing, wrong):
            with pytest.raises(UsageError, match=path.name.replace(".", r"\.")):
                server_context(**{**files, name: path})

    def test_a_list_of_revocations_is_no_authority(self, authority):
        pair = authority.server("web1.example.org")
        with pytest.raises(UsageError, match="there is none"):
            server_context(cert=pair.cert, key=pair.key, client_ca=authority.crl)
