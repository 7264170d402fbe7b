from __future__ import annotations

import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ddump_common.errors import UsageError
from ddump_common.tls import client_context


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
