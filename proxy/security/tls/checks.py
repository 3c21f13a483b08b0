"""What is wrong with a certificate and its key, in words that an administrator can act on.

Nothing here changes a file or speaks TLS to anybody.
"""

from __future__ import annotations

import enum
import itertools
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from proxy.security.tls.certificates import (
    WEAK_HASHES,
    CertificateError,
    PemFile,
    PrivateKey,
    covers,
    is_issued_by,
    is_self_signed,
    key_type,
    names_of,
    read_chain,
    read_key,
)
from proxy.security.tls.server import server_context

EXPIRES_SOON: Final = timedelta(days=30)
"""How long before its end a certificate is spoken of: hospitals' authorities take weeks."""

MIN_RSA_BITS: Final = 2048
"""RFC 9325 4.3."""

MIN_CURVE_BITS: Final = 224
"""RFC 9325 4.3."""

MAX_NAMES_SHOWN: Final = 10

_NO_CHECK_TIME: Final = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME."""

_MAX_FLIGHTS: Final = 8
"""Messages of a TLS handshake, to and fro; there are three or four."""


class Severity(enum.IntEnum):
    """`DOUBTFUL`: works, but should not stay so. `REFUSED`: TLS works, but clients that look refuse it. `BROKEN`: no
    TLS at all."""

    DOUBTFUL = 1
    REFUSED = 2
    BROKEN = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong. `text` names the file and its key of the configuration."""

    severity: Severity
    text: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A certificate file with its key file. `chain` is empty when it cannot be read, `context` None when something is
    broken."""

    chain: tuple[x509.Certificate, ...]
    findings: tuple[Finding, ...]
    context: ssl.SSLContext | None

    @property
    def leaf(self) -> x509.Certificate:
        """The server's own certificate, where nothing is broken."""
        return self.chain[0]

    def worst(self) -> Severity | None:
        """How bad it is; None when all is well."""
        return max((each.severity for each in self.findings), default=None)

    def raise_if(self, least: Severity) -> None:
        """Raise `CertificateError`, with every finding of at least that severity, if there is one."""
        texts = [each.text for each in self.findings if each.severity >= least]
        if texts:
            raise CertificateError("\n".join(texts))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What clients call the proxy by, and the key of the configuration that says so."""

    host: str
    key: str = ""

    def __str__(self) -> str:
        """Name it in a message."""
        return f"{self.host} (key: {self.key})" if self.key else self.host


def check(
    certificate: PemFile, key: PemFile, now: datetime, *, wanted: Wanted | None = None, client_ca: PemFile | None = None
) -> Checked:
    """Look at everything; `wanted` is what clients call the proxy by, where that is known."""
    findings: list[Finding] = []
    chain: tuple[x509.Certificate, ...] = ()
    private: PrivateKey | None = None
    try:
        chain = read_chain(certificate)
    except CertificateError as error:
        findings.append(Finding(Severity.BROKEN, str(error)))
    try:
        private = read_key(key)
    except CertificateError as error:
        findings.append(Finding(Severity.BROKEN, str(error)))
    else:
        findings += _permissions(key)
    if chain and private is not None:
        findings += _pair(certificate, chain, key, private)
    if chain and not any(each.severity is Severity.BROKEN for each in findings):
        findings += expiry(certificate, chain[0], now)
        findings += _leaf(certificate, chain[0], wanted)
        findings += _strength(certificate, chain)
        findings += _order(certificate, chain, now)
    context = None
    if not any(each.severity is Severity.BROKEN for each in findings):
        try:
            context = server_context(certificate, key, client_ca)
        except CertificateError as error:
            findings.append(Finding(Severity.BROKEN, str(error)))
        else:
            findings += _completeness(certificate, chain, context)
    return Checked(chain, tuple(findings), context)


def expiry(file: PemFile, certificate: x509.Certificate, now: datetime, which: str = "") -> Iterator[Finding]:
    """What is to be said about the time in which a certificate is valid (RFC 5280 4.1.2.5)."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        reason = f"is not valid before {begin:%Y-%m-%d %H:%M} UTC; is the clock of this machine right?"
        yield Finding(Severity.REFUSED, f"{file}: the {which}certificate {reason}")
    elif now > end:
        yield Finding(Severity.REFUSED, f"{file}: the {which}certificate has expired on {end:%Y-%m-%d}")
    elif end - now < EXPIRES_SOON:
        days = (end - now).days
        when = f"expires on {end:%Y-%m-%d}, in {days} day{'' if days == 1 else 's'}"
        yield Finding(Severity.DOUBTFUL, f"{file}: the {which}certificate {when}")


def _permissions(key: PemFile) -> Iterator[Finding]:
    if stat.S_IMODE(key.path.stat().st_mode) & 0o007:
        yield Finding(Severity.DOUBTFUL, f"{key} can be read by every user of this machine; `chmod o-rwx` ends that")


def _pair(
    certificate: PemFile, chain: tuple[x509.Certificate, ...], key: PemFile, private: PrivateKey
) -> Iterator[Finding]:
    public = private.public_key()
    matching = [number for number, each in enumerate(chain, 1) if each.public_key() == public]
    if not matching:
        yield Finding(Severity.BROKEN, f"{key} is not the key of the certificate in {certificate}")
    elif matching[0] > 1:
        reason = f"certificate {matching[0]} belongs to the key, and must be the first, before those of authorities"
        yield Finding(Severity.BROKEN, f"{certificate} is in the wrong order: {reason}")


def _leaf(file: PemFile, leaf: x509.Certificate, wanted: Wanted | None) -> Iterator[Finding]:
    names = names_of(leaf)
    if not names:
        reason = "names no host (subjectAltName); browsers do not look at the common name"
        yield Finding(Severity.REFUSED, f"{file}: the certificate {reason}")
    elif wanted is not None and not covers(leaf, wanted.host):
        shown = ", ".join(names[:MAX_NAMES_SHOWN]) + (", …" if len(names) > MAX_NAMES_SHOWN else "")
        yield Finding(Severity.DOUBTFUL, f"{file}: the certificate is not for {wanted} but for {shown}")
    if not _is_for_servers(leaf):
        yield Finding(Severity.REFUSED, f"{file}: the certificate is not meant for servers (extendedKeyUsage)")


def _is_for_servers(certificate: x509.Certificate) -> bool:
    """Tell whether extendedKeyUsage, if there is any, has TLS servers (RFC 5280 4.2.1.12)."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.SERVER_AUTH in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def _strength(file: PemFile, chain: tuple[x509.Certificate, ...]) -> Iterator[Finding]:
    for number, certificate in enumerate(chain, 1):
        which = "the certificate" if number == 1 else f"certificate {number}"
        match certificate.public_key():
            case rsa.RSAPublicKey(key_size=bits) if bits < MIN_RSA_BITS:
                reason = f"has a weak key ({key_type(certificate)}; {MIN_RSA_BITS} are the least)"
                yield Finding(Severity.DOUBTFUL, f"{file}: {which} {reason}")
            case ec.EllipticCurvePublicKey(key_size=bits) if bits < MIN_CURVE_BITS:
                yield Finding(Severity.DOUBTFUL, f"{file}: {which} has a weak key ({key_type(certificate)})")
            case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
                reason = f"has a key of a kind that browsers do not take ({key_type(certificate)})"
                yield Finding(Severity.DOUBTFUL, f"{file}: {which} {reason}; ECDSA or RSA is needed")
        algorithm = certificate.signature_hash_algorithm
        # The signature of a root is never looked at.
        if isinstance(algorithm, WEAK_HASHES) and (number == 1 or not is_self_signed(certificate)):
            yield Finding(Severity.DOUBTFUL, f"{file}: {which} is signed by way of {algorithm.name.upper()}: too weak")


def _order(file: PemFile, chain: tuple[x509.Certificate, ...], now: datetime) -> Iterator[Finding]:
    for number, (below, above) in enumerate(itertools.pairwise(chain), 2):
        if not is_issued_by(below, above):
            reason = f"certificate {number} has not issued certificate {number - 1}"
            rule = "the server's own comes first, and behind each the authority that issued it"
            yield Finding(Severity.DOUBTFUL, f"{file} is in the wrong order, or one is missing: {reason}; {rule}")
            return
        yield from expiry(file, above, now, "authority's ")


def _completeness(
    certificate: PemFile, chain: tuple[x509.Certificate, ...], context: ssl.SSLContext
) -> Iterator[Finding]:
    """Whether clients get all the certificates that they need."""
    # With two, the second is the intermediate that public authorities have, and the root is left out rightly.
    if len(chain) == 1 and not is_self_signed(chain[0]) and not _is_trusted_here(context):
        issuer = chain[0].issuer.rfc4514_string()
        yield Finding(
            Severity.DOUBTFUL,
            f"{certificate} holds no certificate of the authority that issued it ({issuer}); "
            "if that is an intermediate one, append its certificate, or clients that know only the root refuse it",
        )


def _is_trusted_here(server: ssl.SSLContext) -> bool:
    """Tell whether the authorities that this system knows vouch for what `server` shows, by a handshake in memory."""
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_flags |= _NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(_MAX_FLIGHTS):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
            if end is ends[0]:
                return True
    return False
