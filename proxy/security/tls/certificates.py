"""Certificates and keys in PEM files (RFC 7468): reading them, and what people want to know of one.

Whether they are good for anything is in `checks`, how they are made in `self_signed`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from proxy.config.types import is_address

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey

WEAK_HASHES: Final = (hashes.SHA1, hashes.MD5)
"""For signatures; RFC 9325 4.4."""

MAX_FILE: Final = 1024 * 1024
"""Bytes of a file that are read: a chain takes some 10 KB, the authorities of a whole system 250 KB."""

_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_REQUEST: Final = b"-----BEGIN CERTIFICATE REQUEST-----"
_CURVES: Final = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


class CertificateError(Exception):
    """A certificate or key cannot be used; each line of the message names a file, its key of the configuration, and
    what is wrong."""


@dataclass(frozen=True, slots=True)
class PemFile:
    """A file, and the key of the configuration that names it; empty where it was given by hand."""

    path: Path
    key: str = ""

    def __str__(self) -> str:
        """Name it in a message."""
        return f"{self.path} (key: {self.key})" if self.key else str(self.path)

    def error(self, reason: str) -> CertificateError:
        """Make the error that says `reason` of it."""
        return CertificateError(f"{self} {reason}")


def read_pem(file: PemFile) -> bytes:
    """The content of a file. Raises `CertificateError`."""
    try:
        with file.path.open("rb") as opened:
            content = opened.read(MAX_FILE + 1)
    except OSError as error:
        raise file.error(f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE:
        raise file.error("is too large to be a PEM file of certificates or a key")
    return content


def read_chain(file: PemFile) -> tuple[x509.Certificate, ...]:
    """The certificates of a file, in its order. Raises `CertificateError`."""
    content = read_pem(file)
    if _CERTIFICATE not in content:
        raise file.error(_no_certificate(content))
    try:
        chain = tuple(x509.load_pem_x509_certificates(content))
        for certificate in chain:  # read only when asked for, and nobody is to be surprised then
            _ = certificate.extensions, certificate.public_key(), certificate.subject, certificate.issuer
    except (ValueError, x509.DuplicateExtension, UnsupportedAlgorithm) as error:
        raise file.error("holds a certificate that is damaged, or of a kind that is not known") from error
    return chain


def _no_certificate(content: bytes) -> str:
    if not content.strip():
        return "is empty"
    if content.startswith(b"\x30"):
        return "holds no PEM text but DER or PKCS #12; `openssl x509 -inform der` or `openssl pkcs12` make PEM of it"
    if _REQUEST in content:
        return "holds a certificate request: an authority has to make a certificate of it first"
    if b"-----BEGIN PKCS7-----" in content:
        return "holds PKCS #7; `openssl pkcs7 -print_certs` makes PEM certificates of it"
    if b"PRIVATE KEY-----" in content:
        return "holds a private key in the place of a certificate"
    return "holds no PEM certificate"


def read_key(file: PemFile) -> PrivateKey:
    """The private key of a file. Raises `CertificateError`, also for one that needs a password."""
    content = read_pem(file)
    if b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in content or b"Proc-Type: 4,ENCRYPTED" in content:
        raise file.error(
            "is encrypted, and nobody is there to enter its password; "
            "`openssl pkey -in FILE -out NEW` takes the encryption away"
        )
    if b"PRIVATE KEY-----" not in content:
        raise file.error(_no_key(content))
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise file.error("holds a private key that is damaged") from error
    if not isinstance(key, PrivateKey):
        raise file.error("holds a private key of a kind that TLS does not use; RSA or ECDSA is needed")
    return key


def _no_key(content: bytes) -> str:
    if not content.strip():
        return "is empty"
    if content.startswith(b"\x30"):
        return "holds no PEM text but DER; `openssl pkey -inform der` makes PEM of it"
    if _CERTIFICATE in content:
        return "holds a certificate in the place of a private key"
    return "holds no PEM private key"


# --- what people want to know --------------------------------------------------------------------------------


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The host names and addresses that it is for (subjectAltName, RFC 5280 4.2.1.6)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = tuple(str(address) for address in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def covers(certificate: x509.Certificate, host: str) -> bool:
    """Tell whether clients find `host` in it (RFC 9525 6.3): the common name does not count."""
    names = {plain_name(name) for name in names_of(certificate)}
    wanted = plain_name(host)
    above = wanted.partition(".")[2]
    return wanted in names or (not is_address(wanted) and above != "" and f"*.{above}" in names)


def plain_name(name: str) -> str:
    """A host name or address in the one form in which it is compared."""
    return str(ipaddress.ip_address(name)) if is_address(name) else name.lower().removesuffix(".")


def fingerprint(certificate: x509.Certificate) -> str:
    """Its SHA-256, as browsers show it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def key_type(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """The kind and size of its key, such as `ECDSA P-256` or `RSA, 2048 bits`."""
    match certificate.public_key():
        case rsa.RSAPublicKey(key_size=bits):
            return f"RSA, {bits} bits"
        case ec.EllipticCurvePublicKey(curve=curve):
            return f"ECDSA {_CURVES.get(curve.name, curve.name)}"
        case other:
            return type(other).__name__.removesuffix("PublicKey").lstrip("_")


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Tell whether it has signed itself: there is nobody above it."""
    return is_issued_by(certificate, certificate)


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Tell whether `issuer` has signed it; by the names alone where nobody checks such signatures any more."""
    if isinstance(certificate.signature_hash_algorithm, WEAK_HASHES):
        return certificate.issuer == issuer.subject
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
