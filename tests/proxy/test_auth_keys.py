"""The keys of an identity provider: where they come from, what of them is used, and how long they are good."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from proxy.security.auth import keyring as keyring_module
from proxy.security.auth import provider as provider_module
from proxy.security.auth.errors import Refusal
from proxy.security.auth.jwks import KeySetError, find_key, read_key_set
from proxy.security.auth.keyring import FRESH_SECONDS, KEPT_SECONDS, RETRY_SECONDS, UNKNOWN_SECONDS, Keyring
from proxy.security.auth.provider import ProviderError, source_of
from tests.dul.certificates import make
from tests.proxy.clock import Clock
from tests.proxy.running import Proxy
from tests.proxy.signing_in import (
    CERTS,
    DISCOVERY,
    EC_KEY,
    OTHER_RSA_KEY,
    RSA_KEY,
    Provider,
    asked,
    bearer,
    guarded,
    identity_of,
    jwk,
    settings_of,
    status,
    token,
)

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    """An identity provider."""
    made = Provider()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def proxy(provider: Provider) -> AsyncIterator[Proxy]:
    """A proxy whose users are those of the provider, which it finds by discovery."""
    async with guarded({**provider.settings(writeScope="dicom.write", adminScope="dicom.admin")}) as running:
        yield running


# --- sets of keys --------------------------------------------------------------------------------------------


def test_only_public_keys_for_signatures_are_used() -> None:
    """Those for encryption, symmetric ones, weak ones and what cannot be read are passed over, and so are private
    parts."""
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    private = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(RSA_KEY))
    data = {
        "keys": [
            {"kty": "oct", "k": "AAAA", "kid": "symmetric"},
            {"kty": "oct", "k": "AAAA", "kid": "symmetric2", "alg": "HS256"},
            jwk(RSA_KEY, "encryption", use="enc"),
            jwk(RSA_KEY, "oaep", alg="RSA-OAEP"),
            jwk(RSA_KEY, "none", alg="none"),
            jwk(RSA_KEY, "hmac", alg="HS256"),
            jwk(RSA_KEY, "wrapping", key_ops=["wrapKey"]),
            jwk(RSA_KEY, "odd", key_ops="verify"),
            jwk(weak, "weak"),
            {"kty": "RSA", "kid": "no modulus", "e": "AQAB"},
            {"kty": "RSA", "kid": "odd modulus", "n": 17, "e": "AQAB"},
            {"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA", "kid": "not on the curve"},
            {"kty": "EC", "crv": "secp256k1", "x": "AAAA", "y": "AAAA", "kid": "bitcoin"},
            {"kty": ["RSA"], "kid": "list"},
            {"kty": "EC", "crv": {}, "kid": "object"},
            {**jwk(RSA_KEY, None), "kid": 7},
            {**private, "kid": "private", "key_ops": ["sign", "verify"]},
            jwk(EC_KEY, "curve"),
        ]
    }
    keys = read_key_set(json.dumps(data).encode())
    assert [key.kid for key in keys] == ["private", "curve"]
    assert isinstance(keys[0].public_key, rsa.RSAPublicKey)
    assert keys[1].algorithms == ("ES256",)


def test_finding_a_key() -> None:
    """By name and algorithm; without a name only where there is no doubt (OpenID Connect Core 10.1)."""
    data = {"keys": [jwk(RSA_KEY, "same"), jwk(EC_KEY, "same"), jwk(OTHER_RSA_KEY, None)]}
    keys = read_key_set(json.dumps(data).encode())
    assert find_key(keys, "same", "RS256") is keys[0]
    assert find_key(keys, "same", "ES256") is keys[1]
    assert find_key(keys, "other", "RS256") is None
    assert find_key(keys, None, "ES256") is keys[1]
    assert find_key(keys, None, "RS256") is None
    assert find_key((), None, "RS256") is None


async def test_a_token_without_the_name_of_its_key(proxy: Proxy, provider: Provider) -> None:
    """Where the provider has one key for that algorithm it is clear which."""
    assert await status(proxy, bearer(provider.token(kid=None))) == 200
    assert await status(proxy, bearer(provider.token(OTHER_RSA_KEY, None))) == 401


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"\xff", b'{"keys": 1}', b"[" * 200_000])
def test_what_is_no_set_of_keys(data: bytes) -> None:
    with pytest.raises(KeySetError):
        read_key_set(data)


async def test_keys_in_a_file(provider: Provider, tmp_path: Path) -> None:
    """The provider is not asked; the file may be replaced while the proxy runs."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [jwk(RSA_KEY, "one")]}))
    source = source_of(settings_of(provider, jwksFile=str(path)))
    assert [key.kid for key in await source()] == ["one"]
    path.write_text(json.dumps({"keys": [jwk(OTHER_RSA_KEY, "new")]}))
    assert [key.kid for key in await source()] == ["new"]
    path.unlink()
    with pytest.raises(ProviderError, match="cannot be read"):
        await source()
    assert not provider.asked


# --- the provider --------------------------------------------------------------------------------------------


async def fetch(provider: Provider, **more: object) -> list[str | None]:
    """Fetch the keys once; returns their names."""
    return [key.kid for key in await source_of(settings_of(provider, **more))()]


async def test_by_discovery_and_by_address(provider: Provider) -> None:
    assert await fetch(provider) == ["one", "two"]
    assert provider.asked == [DISCOVERY, CERTS]
    provider.asked.clear()
    assert await fetch(provider, jwksUrl=f"{provider.issuer}/certs") == ["one", "two"]
    assert provider.asked == [CERTS]


@pytest.mark.parametrize("path", [CERTS, DISCOVERY])
async def test_a_provider_that_fails(provider: Provider, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each way that HTTP knows; the message says which, and nothing is taken."""
    elsewhere = Provider()
    await elsewhere.start()

    async def redirects(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": f"{elsewhere.issuer}/certs"})

    async def failing(_: web.Request) -> web.Response:
        return web.Response(status=500)

    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    async def drips(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.02)
        return response

    async def huge(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                await response.write(b" " * 65536)
        return response

    packed = gzip.compress(b" " * 10_000_000 + json.dumps({"keys": provider.keys}).encode())

    async def bomb(_: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="text/html")

    async def breaks_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.close()
        return response

    for answer, said in (
        (redirects, "status 302"),
        (failing, "status 500"),
        (slow, "has not answered within"),
        (drips, "has not answered within"),
        (huge, "more than 1048576 bytes"),
        (bomb, "JSON"),
        (page, "JSON"),
        (breaks_off, "cannot be asked"),
    ):
        provider.answers[path] = answer
        with monkeypatch.context() as patched, pytest.raises(ProviderError, match=said):
            if "within" in said:
                patched.setattr(provider_module, "FETCH_SECONDS", 0.3)
            await asyncio.wait_for(fetch(provider), 5)
    assert not elsewhere.asked
    await elsewhere.stop()
    await provider.stop()
    with pytest.raises(ProviderError, match="cannot be asked"):
        await fetch(provider)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"issuer": "https://evil.example.org"}, "is that of the issuer 'https://evil.example.org'"),
        ({"issuer": None}, "is that of the issuer"),
        ({"jwks_uri": "http://192.0.2.1/certs"}, "is not an https URL"),
        ({"jwks_uri": "file:///etc/passwd"}, "is not an https URL"),
        ({"jwks_uri": "https://user:pass@id.example.org/"}, "is not an https URL"),
        ({"jwks_uri": 7}, "is not an https URL"),
    ],
    ids=repr,
)
async def test_a_discovery_document_that_misleads(provider: Provider, changes: dict[str, object], said: str) -> None:
    """It has to be the issuer's own, and the keys come by https or from this machine."""

    async def misleading(_: web.Request) -> web.Response:
        return web.json_response({"issuer": provider.issuer, "jwks_uri": f"{provider.issuer}/certs", **changes})

    provider.answers[DISCOVERY] = misleading
    with pytest.raises(ProviderError, match=said):
        await fetch(provider)
    assert provider.asked == [DISCOVERY]


async def test_a_slash_at_the_issuers_end(provider: Provider) -> None:
    """It is part of the issuer, and not doubled in the address (OpenID Connect Discovery 4.1)."""
    provider.issuer += "/"

    async def discovery(_: web.Request) -> web.Response:
        return web.json_response({"issuer": provider.issuer, "jwks_uri": f"{provider.issuer}certs"})

    provider.answers[DISCOVERY] = discovery
    assert (await identity_of(provider, provider.token())).name == "jane"


async def test_the_providers_certificate_is_verified(provider: Provider, tmp_path: Path) -> None:
    """By the system's authorities, or those of `caFile`; by name too."""
    files = make(tmp_path)
    app = web.Application()

    async def certs(_: web.Request) -> web.Response:
        return web.json_response({"keys": provider.keys})

    app.router.add_get("/certs", certs)
    runner = web.AppRunner(app)
    await runner.setup()
    context = files.server()
    context.verify_mode = ssl.CERT_NONE
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    port = runner.addresses[0][1]
    good = f"https://127.0.0.1:{port}/certs"
    assert await fetch(provider, jwksUrl=good, caFile=str(files.authority)) == ["one", "two"]
    for url, more in ((good, {}), (f"https://localhost:{port}/certs", {"caFile": str(files.authority)})):
        with pytest.raises(ProviderError, match=r"cannot be asked: .*[Cc]ertificate"):
            await fetch(provider, jwksUrl=url, **more)
    await runner.cleanup()


# --- over time -----------------------------------------------------------------------------------------------


class Keys:
    """A source of keys whose content and failures the test sets."""

    def __init__(self) -> None:
        self.keys = [jwk(RSA_KEY, "one")]
        self.error: Exception | None = None
        self.count = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def __call__(self) -> Any:
        self.count += 1
        await self.hold.wait()
        if self.error is not None:
            raise self.error
        return read_key_set(json.dumps({"keys": self.keys}).encode())


@pytest.fixture
def clock() -> Clock:
    """A clock that the test sets."""
    return Clock()


@pytest.fixture
def keys() -> Keys:
    """What a keyring fetches."""
    return Keys()


@pytest.fixture
async def keyring(keys: Keys, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Keyring]:
    """A keyring that has fetched once, and does so by itself no more."""
    ring = Keyring(keys, clock)
    ring.start()
    assert await ring.find("one", "RS256") is not None
    yield ring
    await ring.close()


async def test_rotation(keyring: Keyring, keys: Keys, clock: Clock) -> None:
    """A key that the provider has only just begun to use is fetched, one that it takes back is gone with the next."""
    keys.keys.append(jwk(OTHER_RSA_KEY, "new"))
    clock.now += UNKNOWN_SECONDS
    assert await keyring.find("new", "RS256") is not None
    assert await keyring.find("one", "RS256") is not None
    assert keys.count == 2
    del keys.keys[0]
    clock.now += UNKNOWN_SECONDS
    await keyring.find("unknown", "RS256")
    assert await keyring.find("one", "RS256") is None


async def test_unknown_keys_cost_one_fetch_a_minute(keyring: Keyring, keys: Keys, clock: Clock) -> None:
    """Anybody can make them up; many at once share one."""
    for number in range(50):
        assert await keyring.find(f"unknown{number}", "RS256") is None
    assert keys.count == 1
    clock.now += UNKNOWN_SECONDS
    assert set(await asyncio.gather(*(keyring.find(f"other{number}", "RS256") for number in range(50)))) == {None}
    assert keys.count == 2
    clock.now += UNKNOWN_SECONDS - 1
    assert await keyring.find("last", "RS256") is None
    assert keys.count == 2


async def test_old_keys_stay_while_the_provider_is_down(
    keyring: Keyring, keys: Keys, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """For a day; then tokens are refused with 503, since a key may have been taken back long ago. Said once each."""
    keys.error = ProviderError("it is down")
    for _ in range(20):
        clock.now += KEPT_SECONDS / 21
        assert await keyring.find("one", "RS256") is not None
        assert await keyring.find("unknown", "RS256") is None
    clock.now += KEPT_SECONDS
    for kid in ("one", "unknown"):
        with pytest.raises(Refusal) as caught:
            await keyring.find(kid, "RS256")
        assert (caught.value.status, caught.value.retry_after) == (503, RETRY_SECONDS)
    keys.error = None
    clock.now += UNKNOWN_SECONDS
    assert await keyring.find("one", "RS256") is not None
    said = [(record.levelno, record.getMessage()) for record in caplog.records if record.name.startswith("proxy")]
    assert said == [
        (logging.WARNING, "the keys for tokens of the identity provider cannot be had (key: auth.jwt): it is down")
    ]


async def test_any_failure_leaves_the_keys_as_they_are(
    keyring: Keyring, keys: Keys, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that nobody has thought of; that one with its traceback."""
    keys.error = RuntimeError("surprise")
    clock.now += UNKNOWN_SECONDS
    assert await keyring.find("unknown", "RS256") is None
    assert await keyring.find("one", "RS256") is not None
    assert any(record.exc_info for record in caplog.records)


async def test_who_asks_while_the_keys_are_fetched_waits(keys: Keys, clock: Clock) -> None:
    """Right after the start; and who leaves does not take the fetch along."""
    keys.hold.clear()
    ring = Keyring(keys, clock)
    ring.start()
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(ring.find("one", "RS256")) for _ in range(3)]
    await asyncio.sleep(0.01)
    waiting[0].cancel()
    keys.hold.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert None not in found[1:]
    assert keys.count == 1
    await ring.close()


async def test_ending_while_the_keys_are_fetched(keys: Keys) -> None:
    """Nothing is left."""
    keys.hold.clear()
    ring = Keyring(keys)
    ring.start()
    await asyncio.sleep(0.01)
    await asyncio.wait_for(ring.close(), 1)


async def test_keys_are_fetched_again_by_themselves(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sooner where it failed."""
    assert FRESH_SECONDS > RETRY_SECONDS
    monkeypatch.setattr(keyring_module, "FRESH_SECONDS", 0.01)
    monkeypatch.setattr(keyring_module, "RETRY_SECONDS", 0.01)
    for error in (None, ProviderError("down")):
        keys.error, keys.count = error, 0
        ring = Keyring(keys)
        ring.start()
        async with asyncio.timeout(5):
            while keys.count < 3:
                await asyncio.sleep(0.01)
        await ring.close()


async def test_a_provider_that_is_down_at_the_start(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy starts; tokens get 503 until the provider answers, others may sign in meanwhile."""
    port = int(provider.issuer.split(":")[2].partition("/")[0])
    await provider.stop()
    auth = {**provider.settings(), "tokens": [token()]}
    async with guarded(auth) as proxy:
        code, headers, body = await asked(proxy, bearer(provider.token()))
        assert (code, headers["Retry-After"]) == (503, "30")
        assert b"the identity provider does not answer" in body
        assert await status(proxy, bearer()) == 200
        await provider.start(port)
        monkeypatch.setattr(keyring_module, "UNKNOWN_SECONDS", 0.0)
        assert await status(proxy, bearer(provider.token())) == 200


async def test_rotation_over_http(proxy: Proxy, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tokens are good while the provider has both keys."""
    assert await status(proxy, bearer(provider.token())) == 200
    provider.keys.append(jwk(OTHER_RSA_KEY, "new"))
    new = provider.token(OTHER_RSA_KEY, "new")
    assert await status(proxy, bearer(new)) == 401
    monkeypatch.setattr(keyring_module, "UNKNOWN_SECONDS", 0.0)
    assert await status(proxy, bearer(new)) == await status(proxy, bearer(provider.token())) == 200
