"""Where the keys of an identity provider come from: a file, an address, or the provider's discovery document.

What is fetched decides who may use the proxy, so it comes by https, from no other place than the one that was asked.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import aiohttp

from proxy.config.security import Jwt
from proxy.config.types import A_PROVIDER_URL, is_provider_url
from proxy.security.auth.errors import AuthSettingsError
from proxy.security.auth.jwks import Key, KeySetError, read_key_set

FETCH_SECONDS: Final = 10.0
"""How long one document may take, connection included."""

MAX_BYTES: Final = 1024 * 1024
"""Of one document; real ones have a few KiB."""

DISCOVERY_PATH: Final = "/.well-known/openid-configuration"
"""Below the issuer (OpenID Connect Discovery 1.0, 4)."""

# Not compressed: a small answer could unpack to any size.
_HEADERS: Final = {"Accept": "application/json, application/jwk-set+json", "Accept-Encoding": "identity"}

Source = Callable[[], Awaitable[list[Key]]]


class ProviderError(Exception):
    """The keys cannot be had at the moment; the message says why."""


def source_of(settings: Jwt) -> Source:
    """How the keys are to be had. Raises `AuthSettingsError` for files that cannot be used."""
    if settings.jwks_file is not None:
        return _source_in_file(settings.jwks_file)
    return _Provider(settings).fetch


def _source_in_file(path: Path) -> Source:
    def read() -> list[Key]:
        try:
            with path.open("rb") as file:
                return read_key_set(file.read(MAX_BYTES))
        except OSError as error:
            raise ProviderError(f"{path} cannot be read: {error.strerror}") from error
        except KeySetError as error:
            raise ProviderError(f"{path} {error}") from error

    try:
        read()
    except ProviderError as error:
        raise AuthSettingsError(f"auth.jwt.jwksFile: {error}") from error
    return lambda: asyncio.to_thread(read)


class _Provider:
    """An identity provider, which is asked over HTTP."""

    def __init__(self, settings: Jwt) -> None:
        self._issuer = settings.issuer
        self._url = settings.jwks_url
        try:
            self._tls = ssl.create_default_context(cafile=settings.ca_file)
        except OSError as error:
            reason = "holds no PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror
            raise AuthSettingsError(f"auth.jwt.caFile: {settings.ca_file}: {reason}") from error

    async def fetch(self) -> list[Key]:
        """Fetch the keys, and before that the address where they are, unless that is set. Raises `ProviderError`."""
        connector = aiohttp.TCPConnector(ssl=self._tls)
        timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            headers=_HEADERS,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            url = self._url or self._keys_url(await _get(session, self._issuer.rstrip("/") + DISCOVERY_PATH))
            data = await _get(session, url)
        try:
            return read_key_set(data)
        except KeySetError as error:
            raise ProviderError(f"what {url} answers {error}") from error

    def _keys_url(self, data: bytes) -> str:
        """The address of the keys in a discovery document, which has to be that of the issuer (Discovery 4.3)."""
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise ProviderError("its discovery document is no JSON object")
        if content.get("issuer") != self._issuer:
            issuer = str(content.get("issuer"))[:200]
            raise ProviderError(f"its discovery document is that of the issuer {issuer!r} (key: auth.jwt.issuer)")
        url = content.get("jwks_uri")
        if not isinstance(url, str) or not is_provider_url(url):
            raise ProviderError(f"the jwks_uri of its discovery document is not {A_PROVIDER_URL}")
        return url


async def _get(session: aiohttp.ClientSession, url: str) -> bytes:
    """GET; redirects are not followed: what was configured is what is trusted."""
    data = bytearray()
    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise ProviderError(f"{url} answers with status {response.status}")
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > MAX_BYTES:
                    raise ProviderError(f"what {url} answers has more than {MAX_BYTES} bytes")
    except TimeoutError:
        raise ProviderError(f"{url} has not answered within {FETCH_SECONDS:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise ProviderError(f"{url} cannot be asked: {error}") from error
    return bytes(data)
