"""What the tests of access control share: a proxy that asks to sign in, and an identity provider."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import jwt
from aiohttp import web
from argon2 import PasswordHasher
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from multidict import CIMultiDictProxy
from yarl import URL

from proxy.config.security import Jwt
from proxy.security.auth.hashing import token_hash
from proxy.security.auth.jwts import SignedTokens
from proxy.security.identity import Identity
from tests.peers.process import HOST, Address, free_port
from tests.proxy.running import Proxy, proxy_for

OPEN = "/ping"
PROTECTED = "/conformance"
"""What needs no archive, and yet somebody who has signed in."""

TOKEN = "q7pYkzW0n2Vt5cQ8rXh1mJ4sLd6fGb9uEaTiOoPlKjI"
AUDIENCE = "dicomweb-proxy"

CERTS = "/realms/hospital/certs"
DISCOVERY = "/realms/hospital/.well-known/openid-configuration"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def cheap_hash(password: str) -> str:
    """Return a hash of a password that is checked in no time."""
    return PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(password)


def user(name: str, password: str, **rights: object) -> dict[str, object]:
    """Return an entry of `auth.users`."""
    return {"name": name, "passwordHash": cheap_hash(password), **rights}


def token(name: str = "uploader", secret: str = TOKEN, **more: object) -> dict[str, object]:
    """Return an entry of `auth.tokens`."""
    return {"name": name, "tokenHash": token_hash(secret), **more}


def basic(name: str, password: str, encoding: str = "utf-8") -> dict[str, str]:
    """Return the header of HTTP Basic."""
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode(encoding)).decode()}


def bearer(secret: str = TOKEN) -> dict[str, str]:
    """Return the header of a bearer token."""
    return {"Authorization": f"Bearer {secret}"}


@contextlib.asynccontextmanager
async def guarded(auth: dict[str, Any], **more: Any) -> AsyncIterator[Proxy]:
    """Run a proxy that asks to sign in, in front of an archive that is not there."""
    dead = Address("DEAD", free_port())
    async with proxy_for(dead, use_cget=True, auth={"enabled": True, **auth}, **more) as proxy:
        yield proxy


async def asked(
    proxy: Proxy, headers: dict[str, str] | None = None, path: str = PROTECTED, method: str = "GET", **more: Any
) -> tuple[int, CIMultiDictProxy[str], bytes]:
    """Send a request; returns the status, the headers and the body of the answer."""
    url = URL(proxy.url + path, encoded=True)  # as it is, dots and slashes too
    async with proxy.http.request(method, url, headers=headers, **more) as response:
        return response.status, response.headers, await response.read()


async def status(proxy: Proxy, headers: dict[str, str] | None = None, path: str = PROTECTED, **more: Any) -> int:
    """Send a request; returns the status of the answer."""
    return (await asked(proxy, headers, path, **more))[0]


def challenges(headers: CIMultiDictProxy[str]) -> list[str]:
    """Return the schemes that an answer offers to sign in with."""
    return [value.partition(" ")[0] for value in headers.getall("WWW-Authenticate", [])]


# --- an identity provider ------------------------------------------------------------------------------------

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, kid: str | None, **more: object) -> dict[str, object]:
    """Return the public part of a key as JSON Web Key."""
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    named = {} if kid is None else {"kid": kid}
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "use": "sig", **named, **more}


class Provider:
    """An identity provider on loopback: its discovery document, its keys, and how often each was asked for.

    `keys` are those that it has; `answers` are answers of another kind, by path.
    """

    def __init__(self) -> None:
        self.keys: list[dict[str, object]] = [jwk(RSA_KEY, "one"), jwk(EC_KEY, "two")]
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.issuer = ""
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> None:
        """Listen."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, port).start()
        self.issuer = f"http://{HOST}:{self._runner.addresses[0][1]}/realms/hospital"

    async def stop(self) -> None:
        """Go away."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if answer := self.answers.get(request.path):
            return await answer(request)
        if request.path == DISCOVERY:
            return web.json_response({"issuer": self.issuer, "jwks_uri": f"{self.issuer}/certs"})
        if request.path == CERTS:
            return web.json_response({"keys": self.keys})
        return web.Response(status=404)

    def settings(self, **more: object) -> dict[str, object]:
        """Return the keys below `auth` for this provider."""
        return {"jwt": {"issuer": self.issuer, "audience": AUDIENCE, **more}}

    def claims(self, **changes: object) -> dict[str, object]:
        """Return the claims of a good token. Times are in seconds from now; None takes a claim away."""
        claims = {"iss": self.issuer, "aud": AUDIENCE, "sub": "jane", "iat": 0, "exp": 300, **changes}
        now = int(time.time())
        for name in {"iat", "nbf", "exp"} & claims.keys():
            value = claims[name]
            claims[name] = now + value if isinstance(value, int) else value
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, key: Any = RSA_KEY, kid: str | None = "one", algorithm: str = "RS256", **changes: Any) -> str:
        """Return a token, a good one unless `changes` of its claims say otherwise."""
        headers: dict[str, str] = {} if kid is None else {"kid": kid}
        return jwt.encode(self.claims(**changes), key, algorithm, headers)


def encoded(part: object) -> str:
    """Write a part of a token: JSON, and base64url without padding (RFC 7515 3)."""
    text = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def settings_of(provider: Provider, **more: object) -> Jwt:
    """Return the keys below `auth.jwt`."""
    return Jwt.model_validate({"issuer": provider.issuer, "audience": AUDIENCE, **more})


@contextlib.asynccontextmanager
async def signed_tokens(provider: Provider, **more: object) -> AsyncIterator[SignedTokens]:
    """Run what checks tokens."""
    tokens = SignedTokens(settings_of(provider, **more))
    tokens.start()
    try:
        yield tokens
    finally:
        await tokens.close()


async def identity_of(provider: Provider, secret: str, **more: object) -> Identity:
    """Return whom a token is for."""
    async with signed_tokens(provider, **more) as tokens:
        return await tokens.identify(secret)
