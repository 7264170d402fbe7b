from __future__ import annotations

import contextlib
import datetime
import os
import ssl
from pathlib import Path

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
        path.touch(0o600)
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


def test_a_name_that_stands_only_in_the_subject_is_none(pair):
    cert, write_key = pair
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, write_key(serialization.NoEncryption()))
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = server.wrap_bio(one, other, server_side=True)
    asking = client_context(ca=cert).wrap_bio(other, one, server_hostname="test")
    for side in (asking, serving):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch") as caught:
        asking.do_handshake()
    assert caught.value.verify_code == 62


def _refused(cert, key=None):
    with pytest.raises(UsageError) as caught:
        client_context(cert=cert, key=key)
    return caught.value


@pytest.mark.parametrize("old", [False, True])
def test_an_encrypted_key_is_an_error_not_a_prompt(pair, old):
    cert, write_key = pair
    key = write_key(serialization.BestAvailableEncryption(b"secret"))
    if old:  # as OpenSSL wrote it once
        key.write_text(
            key.read_text()
            .replace("BEGIN ENCRYPTED", "BEGIN EC")
            .replace("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\n", 1)
        )
    error = _refused(cert, key)
    assert error.message == f"cannot use the key {key}: the private key is encrypted"
    assert error.hint.startswith(f"openssl pkey -in {key}")


def test_a_key_that_is_missing_or_another_s(pair, tmp_path):
    cert, write_key = pair
    key = write_key(serialization.NoEncryption())
    other = Authority(tmp_path).client("other")
    both = tmp_path / "both.pem"
    for one, two, said in (
        (cert, None, f"certificate {cert}: there is no private key in it"),
        (cert, cert, f"key {cert}: there is no private key in it"),
        (key, None, f"certificate {key}: there is none in it"),
        (cert, tmp_path / "none", f"key {tmp_path}/none: No such file or directory"),
        (cert, tmp_path, f"key {tmp_path}: Is a directory"),
        (
            cert,
            other.key,
            f"key {other.key}: the key is not that of the certificate in {cert}",
        ),
    ):
        error = _refused(one, two)
        assert error.message == f"cannot use the {said}"
        assert bool(error.hint) == (two is None and one is cert)
    both.touch(0o600)
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    client_context(cert=both)
    key.write_bytes(key.read_bytes()[:100] + b"\n-----END PRIVATE KEY-----\n")
    assert _refused(cert, key).message.startswith(f"cannot use the key {key}: ")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_use(pair, tmp_path, mode):
    cert, write_key = pair
    key = write_key(serialization.NoEncryption())
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    for files in ((cert, key), (both, None)):
        secret = files[1] or files[0]
        secret.chmod(mode)
        error = _refused(*files)
        assert error.message == f"{secret} can be read by others"
        assert error.hint == f"chmod 600 {secret}"
        secret.chmod(0o600)
        client_context(cert=files[0], key=files[1])


def test_a_key_out_of_a_pipe(pair):
    """As shells have it: --key <(decrypt alice.key)."""
    cert, write_key = pair
    key = write_key(serialization.NoEncryption())
    reader, writer = os.pipe()
    os.write(writer, key.read_bytes())
    os.close(writer)
    try:
        client_context(cert=cert, key=Path(f"/dev/fd/{reader}"))
    finally:
        os.close(reader)


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
    assert context.verify_flags & ssl.VERIFY_CRL_CHECK_CHAIN
    assert context.cert_store_stats()["crl"] == 1
    assert not client_context(ca=authority.cert).verify_flags & (
        ssl.VERIFY_CRL_CHECK_CHAIN
    )


class TestChain:
    """Servers and clients whose authority is one that the root has made."""

    @pytest.fixture
    def root(self, tmp_path):
        return Authority(tmp_path, "root", path_length=1)

    @pytest.fixture
    def between(self, tmp_path, root):
        return Authority(tmp_path, "between", under=root)

    @pytest.fixture
    def shake_hands(self, tmp_path, root, between):
        lists = tmp_path / "lists.pem"
        web1, alice = between.server("web1"), between.client("alice")

        def shake(*crls, of: str) -> None:
            """Have both meet; the one that is not ``of`` looks at ``crls``."""
            lists.write_bytes(b"".join(each.read_bytes() for each in crls))
            asking = client_context(
                ca=root.cert, cert=alice.cert, key=alice.key,
                crl=lists if of == "server" else None,
            )  # fmt: skip
            serving = server_context(
                cert=web1.cert, key=web1.key, client_ca=root.cert,
                crl=lists if of == "client" else None,
            )  # fmt: skip
            one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
            sides = (
                asking.wrap_bio(other, one, server_hostname="web1"),
                serving.wrap_bio(one, other, server_side=True),
            )
            for each in sides * 2:
                with contextlib.suppress(ssl.SSLWantReadError):
                    each.do_handshake()

        return shake

    @pytest.mark.parametrize("of", ["server", "client"])
    def test_an_authority_between_may_be_revoked(self, root, between, shake_hands, of):
        shake_hands(root.crl, between.crl, of=of)
        root.revoke(between)
        with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
            shake_hands(root.crl, between.crl, of=of)

    @pytest.mark.parametrize("of", ["server", "client"])
    def test_each_authority_has_a_list(self, root, between, shake_hands, of):
        for crl in (root.crl, between.crl):
            with pytest.raises(ssl.SSLCertVerificationError, match="unable to get"):
                shake_hands(crl, of=of)


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
        assert not strict.verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
        revoking = server_context(
            cert=pair.cert, key=pair.key, client_ca=authority.cert, crl=authority.crl
        )
        assert revoking.verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
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
