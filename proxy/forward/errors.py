"""What goes wrong on the upstream's side, and the words for it."""

from __future__ import annotations

import os
import ssl

import aiohttp
from yarl import URL


class UpstreamError(Exception):
    """The upstream cannot be reached, or does not answer as it should; the message says how. `status` is for HTTP."""

    status = 502


class UpstreamTimeoutError(UpstreamError):
    """The upstream takes too long."""

    status = 504


class UpstreamSettingsError(Exception):
    """A file or variable that `dicomwebProxySettings` names cannot be used; the message says which, never a secret."""


def failure_of(error: Exception, url: URL) -> UpstreamError:
    """What happened to a request to `url`, without its path and query, which may name a patient."""
    where = f"{url.host} port {url.port}"
    match error:
        case aiohttp.ConnectionTimeoutError():
            return UpstreamTimeoutError(f"no connection to {where} in time")
        case TimeoutError():
            return UpstreamTimeoutError(f"{where} did not answer in time")
        case aiohttp.ClientConnectorCertificateError():
            words = f"the certificate of {where} is not accepted: {_reason(error.certificate_error)}"
        case aiohttp.ClientConnectorSSLError():
            words = f"no TLS connection to {where}: {_reason(error.os_error)}"
        case aiohttp.ClientConnectorError():
            words = f"no connection to {where}: {_reason(error.os_error)}"
        case aiohttp.ClientResponseError():
            words = f"{where} does not answer with proper HTTP"
        case aiohttp.ClientPayloadError():
            words = f"{where} broke off in its answer"
        case _:
            words = f"{where} closed the connection before the end of its answer"
    return UpstreamError(words)


def _reason(error: Exception) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return error.verify_message
        case ssl.SSLError():
            return (error.reason or "TLS failed").replace("_", " ").lower()
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number)  # asyncio repeats the address in its own words
        case OSError(strerror=str(words)):
            return words
        case _:
            return type(error).__name__
