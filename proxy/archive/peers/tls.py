"""DICOM TLS (PS3.15 B.12): the files that the configuration names, as contexts for connections in either direction.

TLS 1.2 or 1.3, as BCP 195 (RFC 9325) wants it. The certificate of an archive that is called is always verified, that of
one that calls where `proxyServer.tls.caFile` says by whom it has to be signed.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

from proxy.config.schema import DimseSettings, PeerTls, ServerTls
from proxy.security.tls.certificates import CertificateError, PemFile, read_chain, read_key
from proxy.security.tls.checks import Severity, expiry
from proxy.security.tls.server import CIPHERS

logger = logging.getLogger(__name__)

SERVER_KEY: Final = "dimseProxySettings.proxyServer.tls"


class TlsSettingsError(Exception):
    """A file of some `tls` cannot be used; each line of the message names the file, its key, and the reason."""


@dataclass(frozen=True, slots=True)
class TlsContexts:
    """`server` is for archives that call, `peers` are for those that are called, in the configuration's order."""

    server: ssl.SSLContext | None
    peers: tuple[ssl.SSLContext | None, ...]


def check_tls(settings: DimseSettings) -> None:
    """Raise `TlsSettingsError`, with all that is wrong, when a file of some `tls` cannot be used.

    Certificates that will expire soon are logged. Reads files.
    """
    load_tls(settings)
    for file in _own_certificates(settings):
        for finding in expiry(file, read_chain(file)[0], datetime.now(UTC)):
            logger.warning("%s", finding.text)


def load_tls(settings: DimseSettings) -> TlsContexts:
    """All contexts anew. Raises `TlsSettingsError` with all that is wrong. Reads files."""
    errors: list[str] = []

    def attempt(make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext | None:
        try:
            return make()
        except TlsSettingsError as error:
            errors.append(str(error))
            return None

    own = settings.proxy_server.tls
    server = None if own is None else attempt(partial(server_context, own))
    peers = tuple(
        None if peer.tls is None else attempt(partial(client_context, peer.tls, peer.name)) for peer in settings.peers
    )
    if errors:
        raise TlsSettingsError("\n".join(errors))
    return TlsContexts(server, peers)


def client_context(tls: PeerTls, archive: str) -> ssl.SSLContext:
    """The context for connections to `archive`, whose name stands in messages.

    Its certificate is always verified, its host name only with `check_hostname`. Raises `TlsSettingsError`. Reads
    files.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = tls.check_hostname
    try:
        if tls.ca_file is None:
            context.load_default_certs()
        else:
            _load_authorities(context, PemFile(tls.ca_file, "tls.caFile"))
        if tls.cert_file is not None and tls.key_file is not None:
            _load_own(context, PemFile(tls.cert_file, "tls.certFile"), PemFile(tls.key_file, "tls.keyFile"))
    except CertificateError as error:
        raise TlsSettingsError(f"{archive}: {error}") from error
    return context


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """The context for connections from archives.

    With `ca_file` they have to show a certificate. Raises `TlsSettingsError`. Reads files.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    # Associations are few and long: a session that is resumed saves little, and the keys of tickets would have to be
    # changed every day (RFC 9325 3.4).
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    try:
        _load_own(
            context, PemFile(tls.cert_file, f"{SERVER_KEY}.certFile"), PemFile(tls.key_file, f"{SERVER_KEY}.keyFile")
        )
        if tls.ca_file is not None:
            _load_authorities(context, PemFile(tls.ca_file, f"{SERVER_KEY}.caFile"))
            context.verify_mode = ssl.CERT_REQUIRED
    except CertificateError as error:
        raise TlsSettingsError(str(error)) from error
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # `caFile` may hold an authority below the root, or one archive's own certificate, and vouches for no more then.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _load_authorities(context: ssl.SSLContext, file: PemFile) -> None:
    findings = [list(expiry(file, each, datetime.now(UTC), "authority's ")) for each in read_chain(file)]
    if all(any(finding.severity > Severity.DOUBTFUL for finding in each) for each in findings):
        raise CertificateError(findings[0][0].text)
    context.load_verify_locations(file.path)


def _load_own(context: ssl.SSLContext, certificate: PemFile, key: PemFile) -> None:
    leaf = read_chain(certificate)[0]
    read_key(key)
    for finding in expiry(certificate, leaf, datetime.now(UTC)):
        if finding.severity > Severity.DOUBTFUL:
            raise CertificateError(finding.text)
    try:
        context.load_cert_chain(certificate.path, key.path)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise key.error(f"is not the key of {certificate.path}") from error
        reason = (error.reason or "unknown").replace("_", " ").lower()
        raise certificate.error(f"cannot be used: OpenSSL says {reason}") from error


def _own_certificates(settings: DimseSettings) -> Iterator[PemFile]:
    own = settings.proxy_server.tls
    if own is not None:
        yield PemFile(own.cert_file, f"{SERVER_KEY}.certFile")
    for peer in settings.peers:
        if peer.tls is not None and peer.tls.cert_file is not None:
            yield PemFile(peer.tls.cert_file, "tls.certFile")
