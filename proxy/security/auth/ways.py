"""The ways to sign in that the configuration sets, side by side: any one of them will do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aiohttp import web

from proxy.config.security import Auth, Jwt
from proxy.security.auth.basic import Passwords
from proxy.security.auth.certificates import Certificates, name_of
from proxy.security.auth.errors import MissingLibraryError, Refusal
from proxy.security.auth.tokens import Tokens
from proxy.security.clients import client_address
from proxy.security.identity import Identity

if TYPE_CHECKING:
    from proxy.security.auth.jwts import SignedTokens

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""What may follow `Bearer` (RFC 6750 2.1)."""


class Ways:
    """All the ways to sign in. `start` and `close` begin and end what runs beside the requests."""

    def __init__(self, auth: Auth) -> None:
        """Raises `AuthSettingsError` and `MissingLibraryError`. Reads files, so for the start only."""
        self._passwords = Passwords(auth.users) if auth.users else None
        self._tokens = Tokens(auth.tokens)
        self._signed = None if auth.jwt is None else _signed_tokens(auth.jwt)
        self._takes_tokens = bool(auth.tokens or auth.jwt)
        self._certificates = Certificates(auth.certificates)

    @property
    def takes_passwords(self) -> bool:
        """True where somebody can sign in by HTTP Basic."""
        return self._passwords is not None

    def start(self) -> None:
        """Begin to fetch the keys of the identity provider."""
        if self._signed is not None:
            self._signed.start()

    async def close(self) -> None:
        """End all that is under way."""
        if self._signed is not None:
            await self._signed.close()
        if self._passwords is not None:
            await self._passwords.close()

    async def identify(self, request: web.Request) -> Identity:
        """Who has made a request. Raises `Refusal` where that is not proven.

        The header Authorization decides, where it is of a kind that is set, and else the client's certificate: who
        sends a wrong password is not let in as somebody else.
        """
        fields = request.headers.getall("Authorization", [])
        if len(fields) > 1:
            raise Refusal(400, "the header Authorization is given more than once", bearer_error="invalid_request")
        scheme, _, credentials = (fields[0] if fields else "").strip().partition(" ")
        credentials = credentials.strip()
        match scheme.lower():
            case "basic" if self._passwords is not None:
                return await self._passwords.identify(credentials, client_address(request))
            case "bearer" if self._takes_tokens:
                return await self._bearer(credentials)
        certificate = request.get_extra_info("peercert")
        identity = self._certificates.identify(certificate)
        if identity is None:
            raise Refusal(401, "sign in to use this proxy", claimed=name_of(certificate))
        return identity

    async def _bearer(self, token: str) -> Identity:
        if not _TOKEN.fullmatch(token):
            raise Refusal(400, "the header Authorization holds no bearer token", bearer_error="invalid_request")
        identity = self._tokens.identify(token)
        if identity is None and self._signed is not None:
            identity = await self._signed.identify(token)
        if identity is None:
            raise Refusal(401, "the token is not valid", bearer_error="invalid_token")
        return identity


def _signed_tokens(settings: Jwt) -> SignedTokens:
    try:
        import jwt  # noqa: F401, PLC0415 - an extra, which only sites with an identity provider need
    except ImportError as error:
        raise MissingLibraryError(
            "tokens of an identity provider (key: auth.jwt) need PyJWT, which comes with the extra auth: "
            "pip install '.[auth]'"
        ) from error
    from proxy.security.auth.jwts import SignedTokens  # noqa: PLC0415

    return SignedTokens(settings)
