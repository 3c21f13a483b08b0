"""The proxy's own self-signed certificate: for which names, how it is made, when it is made anew.

Only a certificate that bears this proxy's mark is ever replaced.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import socket
import threading
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.config.types import is_address, is_host
from proxy.security.tls.certificates import (
    CertificateError,
    PemFile,
    PrivateKey,
    covers,
    is_self_signed,
    plain_name,
    read_chain,
    read_key,
)
from proxy.security.tls.interfaces import own_addresses

VALID: Final = timedelta(days=397)
"""Browsers take no more than 398 days (CA/Browser Forum, Baseline Requirements 6.3.2)."""

RENEW_BEFORE: Final = timedelta(days=30)

CLOCK_SKEW: Final = timedelta(hours=1)
"""How far behind the clock of a client may be."""

OWN: Final = "DICOMweb proxy (self-signed and renewed by itself)"
"""The organization in a certificate that the proxy has made by itself, and may replace."""

BY_HAND: Final = "DICOMweb proxy (self-signed)"
"""The organization in one that somebody has asked for, with names of their own: nobody else replaces it."""

MAX_COMMON_NAME: Final = 64
"""RFC 5280, Appendix A."""

RESOLVER_SECONDS: Final = 3.0
"""How long the name service may take to tell this machine's full name; without it, that name is left out."""


# --- names ---------------------------------------------------------------------------------------------------


def wanted_names(more: Iterable[str]) -> tuple[str, ...]:
    """What this machine is called by, and `more`: host names first, then addresses, no repeats.

    Asks the name service, so not for the event loop.
    """
    names = [*more, socket.gethostname(), _full_name(), "localhost", *own_addresses(), "127.0.0.1", "::1"]
    plain = [plain_name(name) for name in names if is_host(name) and "%" not in name]
    return tuple(sorted(dict.fromkeys(plain), key=is_address))


def _full_name() -> str:
    """The machine's name with its domain; empty where the name service does not know it."""
    found: list[str] = []
    asking = threading.Thread(target=lambda: found.append(socket.getfqdn()), daemon=True)
    asking.start()
    asking.join(RESOLVER_SECONDS)
    name = found[0] if found else ""
    # Without a domain of its own, a machine is often given a name of the loopback address.
    return name if "." in name and not name.startswith(("localhost", "ip6-")) else ""


# --- making one ----------------------------------------------------------------------------------------------


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key that every client takes (RFC 9325 4.3)."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    """The PEM text of a key (PKCS #8, RFC 5958), not encrypted."""
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, pkcs8, plain)


def alternative_names(names: Iterable[str]) -> x509.SubjectAlternativeName:
    """Host names and addresses as an extension (RFC 5280 4.2.1.6)."""
    return x509.SubjectAlternativeName(
        x509.IPAddress(ipaddress.ip_address(name)) if is_address(name) else x509.DNSName(name) for name in names
    )


def common_name(names: Iterable[str]) -> str:
    """The first of the names that fits; clients look at the others."""
    return next((name for name in names if len(name) <= MAX_COMMON_NAME), "DICOMweb proxy")


def signing_hash(key: PrivateKey) -> hashes.SHA256 | None:
    """What a key signs by; keys of Edwards curves have their own."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()


def make(key: PrivateKey, names: tuple[str, ...], now: datetime, *, organization: str = OWN) -> x509.Certificate:
    """A self-signed certificate of a TLS server. It is no authority: who has its key can sign for nobody else."""
    attributes = ((NameOID.ORGANIZATION_NAME, organization), (NameOID.COMMON_NAME, common_name(names)))
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    begin = now - CLOCK_SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + VALID - timedelta(seconds=1))  # both ends are included
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_DIGITAL_SIGNATURE, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(alternative_names(names), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, signing_hash(key))
    )


_DIGITAL_SIGNATURE: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def write_private(path: Path, content: bytes) -> None:
    """Write a file for its owner alone, whole or not at all, in the place of what was there. Raises `OSError`.

    What root writes belongs to the owner of the folder, who is the user that the proxy runs as.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            if os.geteuid() == 0:
                owner = path.parent.stat()
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        raise


# --- keeping one ---------------------------------------------------------------------------------------------


def is_own(certificate: x509.Certificate) -> bool:
    """Tell whether the proxy has made it by itself."""
    marks = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return [mark.value for mark in marks] == [OWN] and is_self_signed(certificate)


def ends_soon(certificate: x509.Certificate, now: datetime) -> bool:
    """Tell whether the proxy's own certificate is to be renewed."""
    return certificate.not_valid_after_utc - now < RENEW_BEFORE


def provide(certificate: PemFile, key: PemFile, names: tuple[str, ...], now: datetime) -> str | None:
    """Make a certificate for `names` where there is none, or none that is still good; returns why, or None.

    The key stays, if there is one: somebody may have asked an authority for a certificate for it. What is not the
    proxy's own stays as it is, whatever is wrong with it. Raises `CertificateError` when a file cannot be used or
    written.
    """
    reason = reason_to_make(certificate, key, names, now)
    if reason is None:
        return None
    try:
        if os.path.lexists(key.path):
            private = read_key(key)
        else:
            private = new_key()
            write_private(key.path, key_pem(private))
        made = make(private, names, now)
        write_private(certificate.path, made.public_bytes(serialization.Encoding.PEM))
    except OSError as error:
        raise certificate.error(f"cannot be made: {error.strerror} ({error.filename})") from error
    return reason


def reason_to_make(certificate: PemFile, key: PemFile, names: tuple[str, ...], now: datetime) -> str | None:
    """Why `provide` would make a certificate; None when it would not."""
    if not os.path.lexists(certificate.path):
        return "there was none"
    try:
        present = read_chain(certificate)[0]
        private = read_key(key) if os.path.lexists(key.path) else None
    except CertificateError:
        return None  # said by those who check it; nothing is replaced that cannot be read
    if not is_own(present):
        return None
    if private is None:
        return "its key was gone"
    if private.public_key() != present.public_key():
        return "its key was another"
    return _reason_to_renew(present, names, now)


def _reason_to_renew(present: x509.Certificate, names: tuple[str, ...], now: datetime) -> str | None:
    missing = [name for name in names if not covers(present, name)]
    if ends_soon(present, now):
        return f"it was valid until {present.not_valid_after_utc:%Y-%m-%d} only"
    if now < present.not_valid_before_utc:
        return f"it was not valid before {present.not_valid_before_utc:%Y-%m-%d}"
    return f"it was not for {', '.join(missing)}" if missing else None
