"""An authority and certificates for DICOM TLS, made when a test needs them."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID = (-1 / 24, 365.0)
AUTHORITY_KEY = "authority-key.pem"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of an authority, and of a certificate for 127.0.0.1 that it signed, with its key."""

    authority: Path
    certificate: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        """Return a context for an acceptor, which asks for a certificate (PS3.15 B.1)."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.authority)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client(self) -> ssl.SSLContext:
        """Return a context for a requestor."""
        context = ssl.create_default_context(cafile=self.authority)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def dcmtk(self) -> tuple[str, ...]:
        """Return the options of DCMTK's programs."""
        return ("+tls", str(self.key), str(self.certificate), "+cf", str(self.authority))


def make(
    folder: Path, *, days: tuple[float, float] = VALID, usage: x509.ObjectIdentifier | None = None
) -> Certificates:
    """Write an authority and a certificate into a folder.

    Both are valid between these days from now; `usage` is the only one that the certificate is meant for.
    """
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("Test authority", authority_key, None, authority_key, days)
    (folder / "authority.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    _write(authority_key, folder / AUTHORITY_KEY)
    return sign(folder / "authority.pem", folder, days=days, usage=usage)


def sign(
    authority: Path, folder: Path, *, days: tuple[float, float] = VALID, usage: x509.ObjectIdentifier | None = None
) -> Certificates:
    """Write another certificate of an authority that `make` has made into a folder."""
    issuer = x509.load_pem_x509_certificate(authority.read_bytes())
    issuer_key = serialization.load_pem_private_key(authority.with_name(AUTHORITY_KEY).read_bytes(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate("127.0.0.1", key, issuer, issuer_key, days, usage)
    files = Certificates(authority, folder / "certificate.pem", folder / "key.pem")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write(key, files.key)
    return files


def _write(key: ec.EllipticCurvePrivateKey, path: Path) -> None:
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: tuple[float, float],
    usage: x509.ObjectIdentifier | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    issuer_name = issuer.subject if issuer is not None else subject
    key_identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer_identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(key_identifier, critical=False)
        .add_extension(issuer_identifier, critical=False)
    )
    if issuer is not None:
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
