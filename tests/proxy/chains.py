"""Certificates as hospitals' authorities make them: a root, one in between, a server; and all that can be wrong."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.security.tls.certificates import PemFile
from tests.peers.process import require_program

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)
NAMES = ("127.0.0.1", "localhost", "dicom.hospital.example")


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self) -> bytes:
        """Return the certificate's text."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: bytes | None = None) -> bytes:
        """Return the key's text, encrypted with a password."""
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            encryption = serialization.BestAvailableEncryption(password)
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def authority(name: str, issuer: Signed | None = None, *, days: float = 3650) -> Signed:
    """Make an authority, signed by another or by itself."""
    return _make(name, issuer, authority=True, begin=NOW - 30 * DAY, end=NOW + days * DAY, names=(), usage=None)


def server(
    issuer: Signed,
    *,
    names: Sequence[str] = NAMES,
    begin: datetime.datetime = NOW - DAY,
    end: datetime.datetime = NOW + 300 * DAY,
    usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.SERVER_AUTH,
    name: str = "dicom.hospital.example",
) -> Signed:
    """Make the certificate of a server, or by another `usage` of something else."""
    return _make(name, issuer, authority=False, begin=begin, end=end, names=names, usage=usage)


def _make(
    name: str,
    issuer: Signed | None,
    *,
    authority: bool,
    begin: datetime.datetime,
    end: datetime.datetime,
    names: Sequence[str],
    usage: x509.ObjectIdentifier | None,
) -> Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_key = issuer.key if issuer is not None else key
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(above, critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(map(_general_name, names)), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return Signed(builder.sign(issuer_key, hashes.SHA256()), key)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass(frozen=True, slots=True)
class Files:
    """A certificate file and a key file in a folder, as `ssl.certPath` and `ssl.keyPath` name them."""

    folder: Path

    @property
    def certificate(self) -> PemFile:
        """The certificate."""
        return PemFile(self.folder / "server.crt", "ssl.certPath")

    @property
    def key(self) -> PemFile:
        """The key."""
        return PemFile(self.folder / "server.key", "ssl.keyPath")

    def write(self, certificate: bytes, key: bytes) -> None:
        """Write both, the key for its owner alone."""
        self.certificate.path.write_bytes(certificate)
        self.key.path.touch(0o600)
        self.key.path.write_bytes(key)

    def settings(self, port: int, **more: object) -> dict[str, object]:
        """Return the object `ssl` of a configuration."""
        paths = {"certPath": str(self.certificate.path), "keyPath": str(self.key.path)}
        return {"enabled": True, "port": port, **paths, **more}


def openssl(*arguments: str | Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run OpenSSL's own program to its end."""
    program = require_program("openssl", "openssl")
    return subprocess.run([program, *arguments], input=given, capture_output=True, timeout=20, check=False)
