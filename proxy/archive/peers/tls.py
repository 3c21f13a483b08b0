"""DICOM TLS towards an archive (PS3.15 B): the settings of a peer as an `ssl.SSLContext`."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path

from proxy.config_schema import Peer, PeerTls


class TlsSettingsError(Exception):
    """A file of a peer's `tls` cannot be used; the message names archive, key, path and reason."""


def check_tls(peers: Iterable[Peer]) -> None:
    """Raise `TlsSettingsError` when a file of some peer's `tls` cannot be used."""
    for peer in peers:
        if peer.tls is not None:
            client_context(peer.tls, peer.name)


def client_context(tls: PeerTls, archive: str) -> ssl.SSLContext:
    """The context for connections to `archive`: TLS 1.2 or 1.3 with the ciphers of BCP 195, as Python has them.

    Its certificate is always verified, its host name only with `check_hostname`. Raises `TlsSettingsError`. Reads
    files, so for the start only.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = tls.check_hostname
    if tls.ca_file is None:
        context.load_default_certs()
    else:
        _check_readable(tls.ca_file, "caFile", archive)
        try:
            context.load_verify_locations(tls.ca_file)
        except ssl.SSLError as error:
            raise _error(tls.ca_file, "caFile", archive, "holds no PEM certificate") from error
    if tls.cert_file is not None and tls.key_file is not None:
        _load_own_certificate(context, tls.cert_file, tls.key_file, archive)
    return context


def _load_own_certificate(context: ssl.SSLContext, certificate: Path, key: Path, archive: str) -> None:
    _check_readable(certificate, "certFile", archive)
    _check_readable(key, "keyFile", archive)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except _EncryptedKeyError as error:
        raise _error(key, "keyFile", archive, "is encrypted, and nobody is there to enter its password") from error
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _error(key, "keyFile", archive, f"is not the key of {certificate}") from error
        reason = f"is no PEM key, or {certificate} (key: tls.certFile) no PEM certificate"
        raise _error(key, "keyFile", archive, reason) from error


class _EncryptedKeyError(Exception):
    pass


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal, and a service would wait there for ever.
    raise _EncryptedKeyError


def _check_readable(path: Path, key: str, archive: str) -> None:
    # OpenSSL does not say which of its files it could not open.
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise _error(path, key, archive, f"cannot be read: {error.strerror}") from error


def _error(path: Path, key: str, archive: str, reason: str) -> TlsSettingsError:
    return TlsSettingsError(f"{archive}: {path} (key: tls.{key}) {reason}")
