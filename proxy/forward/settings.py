"""What `dicomwebProxySettings` refers to and only the machine has: authorities for TLS, and the secret to sign in with.

Read at the start, never while requests are served.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
from pathlib import Path
from typing import Final

from yarl import URL

from proxy.config.schema import Credentials, DicomwebSettings
from proxy.forward.errors import UpstreamSettingsError

MAX_SECRET: Final = 16 * 1024
"""Bytes of a secret: no server takes a header that is longer (aiohttp and nginx take 8 KiB)."""

_KEY: Final = "dicomwebProxySettings"
_BEARER: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 2.1, b64token


def check_settings(settings: DicomwebSettings) -> None:
    """Raise `UpstreamSettingsError` when a file or variable cannot be used."""
    tls_context(settings)
    authorization(settings.credentials)


def tls_context(settings: DicomwebSettings) -> ssl.SSLContext | None:
    """The context for https: TLS 1.2 or 1.3, certificate and host name always verified; None where no URL is https.

    Raises `UpstreamSettingsError` when the file of authorities cannot be used.
    """
    if "https" not in (URL(url).scheme for url in (settings.qido_forwarding_url, settings.wado_forwarding_url)):
        return None
    context = ssl.create_default_context() if settings.ca_file is None else _trusting(settings.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def authorization(credentials: Credentials | None) -> str | None:
    """The value of `Authorization` for the upstream: HTTP Basic (RFC 7617) or a bearer token (RFC 6750).

    None where the proxy does not sign in. Raises `UpstreamSettingsError` when there is no usable secret.
    """
    if credentials is None:
        return None
    secret, where = _secret(credentials)
    if not secret:
        raise UpstreamSettingsError(f"{where} is empty")
    if not secret.isprintable():
        raise UpstreamSettingsError(f"{where} holds line breaks or control characters within the secret")
    if credentials.username is None:
        if not _BEARER.fullmatch(secret):
            raise UpstreamSettingsError(f"{where} holds no bearer token: letters, digits and any of ._~+/-= only")
        return f"Bearer {secret}"
    pair = f"{credentials.username}:{secret}".encode()
    return f"Basic {base64.b64encode(pair).decode('ascii')}"


def _secret(credentials: Credentials) -> tuple[str, str]:
    """The secret without the line break behind it, and what to call its place."""
    if credentials.secret_file is not None:
        where = f"{credentials.secret_file} (key: {_KEY}.credentials.secretFile)"
        content = _beginning(credentials.secret_file, MAX_SECRET + 1, where)
        if len(content) > MAX_SECRET:
            raise UpstreamSettingsError(f"{where} is larger than {MAX_SECRET} bytes, which no secret is")
        try:
            return content.decode("utf-8").rstrip("\r\n"), where
        except UnicodeDecodeError:
            raise UpstreamSettingsError(f"{where} is no text in UTF-8") from None
    name = credentials.secret_variable or ""
    where = f"the environment variable {name} (key: {_KEY}.credentials.secretVariable)"
    if name not in os.environ:
        raise UpstreamSettingsError(f"{where} is not set")
    return os.environ[name].rstrip("\r\n"), where


def _trusting(authorities: Path) -> ssl.SSLContext:
    where = f"{authorities} (key: {_KEY}.caFile)"
    _beginning(authorities, 1, where)  # OpenSSL does not say which file it could not open
    try:
        return ssl.create_default_context(cafile=authorities)
    except ssl.SSLError as error:
        raise UpstreamSettingsError(f"{where} holds no PEM certificate") from error


def _beginning(path: Path, size: int, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise UpstreamSettingsError(f"{where} cannot be read: {error.strerror}") from error
