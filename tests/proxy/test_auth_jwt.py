"""Tokens that an identity provider has signed: which are taken, as whose, and which are not."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from proxy.security.auth.errors import Refusal
from proxy.security.identity import Identity
from tests.peers.process import require_program
from tests.proxy.running import Proxy
from tests.proxy.signing_in import (
    AUDIENCE,
    CERTS,
    DISCOVERY,
    EC_KEY,
    OTHER_RSA_KEY,
    RSA_KEY,
    TOKEN,
    Provider,
    asked,
    bearer,
    encoded,
    guarded,
    identity_of,
    jwk,
    signed_tokens,
    status,
    token,
)

pytestmark = pytest.mark.usefixtures("nothing_left")

PUBLIC_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


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


# --- claims --------------------------------------------------------------------------------------------------


async def test_a_good_token(proxy: Proxy, provider: Provider) -> None:
    """By RSA and by elliptic curve, many times; the keys are fetched once."""
    for secret in (provider.token(), provider.token(EC_KEY, "two", "ES256")):
        for _ in range(5):
            assert await status(proxy, bearer(secret)) == 200
    assert provider.asked == [DISCOVERY, CERTS]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exp": -60}, "the token has expired"),
        ({"exp": None}, "the token is not valid"),
        ({"exp": "soon"}, "the token is not valid"),
        ({"exp": 1e400}, "the token is not valid"),
        ({"nbf": 300}, "the token is not valid yet"),
        ({"iat": 300}, "the token is not valid yet"),
        ({"nbf": []}, "the token is not valid"),
        ({"iss": "https://evil.example.org"}, "the token is by another issuer"),
        ({"iss": None}, "the token is not valid"),
        ({"aud": "another-program"}, "the token is for something else than this proxy"),
        ({"aud": ["another-program", AUDIENCE + "x"]}, "the token is for something else than this proxy"),
        ({"aud": {AUDIENCE: 1}}, "the token is for something else than this proxy"),
        ({"aud": None}, "the token is not valid"),
        ({"aud": []}, "the token is not valid"),
        ({"sub": None}, "the token does not say who its user is"),
        ({"sub": ""}, "the token does not say who its user is"),
        ({"sub": "x" * 257}, "the token does not say who its user is"),
        ({"sub": "jane\nadmin"}, "the token does not say who its user is"),
        ({"sub": 7}, "the token is not valid"),
    ],
    ids=repr,
)
async def test_wrong_claims(proxy: Proxy, provider: Provider, changes: dict[str, object], said: str) -> None:
    """401 and `invalid_token`, with the reason as far as it is of use to who sends it."""
    claims = provider.claims(**{**changes, "iss": changes.get("iss", provider.issuer)})
    secret = jwt.encode(claims, RSA_KEY, "RS256", {"kid": "one"})
    code, headers, _ = await asked(proxy, bearer(secret))
    assert code == 401
    expected = f'Bearer realm="DICOMweb proxy", error="invalid_token", error_description="{said}"'
    assert headers["WWW-Authenticate"] == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["another-program", AUDIENCE]},
        {"exp": -10},
        {"nbf": 10},
        {"iat": None},
        {"sub": "Jäne, O'Neill"},
    ],
    ids=repr,
)
async def test_claims_that_will_do(proxy: Proxy, provider: Provider, changes: dict[str, Any]) -> None:
    """Clocks may differ by `leeway` (30 s)."""
    assert await status(proxy, bearer(provider.token(**changes))) == 200


async def test_leeway(provider: Provider) -> None:
    await identity_of(provider, provider.token(exp=-60), leeway=120)
    with pytest.raises(Refusal, match="expired"):
        await identity_of(provider, provider.token(exp=-5), leeway=0)


async def test_the_issuer_is_compared_letter_by_letter(provider: Provider, tmp_path: Path) -> None:
    """A slash more or less is another issuer (RFC 7519 4.1.1)."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": provider.keys}))
    provider.issuer = "https://id.example.org"
    for issuer in ("https://id.example.org/", "https://ID.example.org", "https://id.example.or"):
        with pytest.raises(Refusal, match="another issuer"):
            await identity_of(provider, provider.token(iss=issuer), jwksFile=str(path))
    assert (await identity_of(provider, provider.token(), jwksFile=str(path))).name == "jane"


@pytest.mark.parametrize(
    ("claims", "write", "admin"),
    [
        ({}, False, False),
        ({"scope": "openid dicom.write"}, True, False),
        ({"scope": "dicom.admin"}, False, True),
        ({"scp": ["dicom.write", "dicom.admin", 7]}, True, True),
        ({"scp": "dicom.write profile"}, True, False),
        ({"scope": "dicom.writer xdicom.admin"}, False, False),
        ({"scope": {"dicom.write": True}}, False, False),
        ({"roles": ["dicom.write"]}, False, False),
    ],
    ids=repr,
)
async def test_scopes(provider: Provider, claims: dict[str, Any], write: bool, admin: bool) -> None:
    """They give rights beyond those that all users of the provider have."""
    more = {"writeScope": "dicom.write", "adminScope": "dicom.admin", "peers": ["A"]}
    identity = await identity_of(provider, provider.token(**claims), **more)
    assert identity == Identity("jane", "jwt", frozenset({"A"}), write=write, admin=admin)
    without = await identity_of(provider, provider.token(**claims), write=True)
    assert (without.write, without.admin, without.peers) == (True, False, None)


async def test_a_missing_scope_is_403(proxy: Proxy, provider: Provider) -> None:
    reader, writer = provider.token(), provider.token(scope="dicom.write")
    code, headers, _ = await asked(proxy, bearer(reader), "/studies", "POST", data=b"x")
    assert (code, 'error="insufficient_scope"' in headers["WWW-Authenticate"]) == (403, True)
    assert await status(proxy, bearer(writer), "/studies", method="POST", data=b"x") == 415


async def test_another_claim_may_name_the_user(provider: Provider) -> None:
    secret = provider.token(preferred_username="Jane Doe")
    assert (await identity_of(provider, secret, userClaim="preferred_username")).name == "Jane Doe"
    with pytest.raises(Refusal, match="who its user is"):
        await identity_of(provider, provider.token(), userClaim="preferred_username")


# --- signatures ----------------------------------------------------------------------------------------------


def forged(provider: Provider, header: dict[str, object], key: bytes | None) -> str:
    """Return a token that is signed by HMAC, or not at all."""
    text = f"{encoded({'typ': 'JWT', **header})}.{encoded(provider.claims())}"
    signature = b"" if key is None else hmac.digest(key, text.encode(), hashlib.sha256)
    return f"{text}.{encoded(signature)}"


async def test_algorithms_that_prove_nothing(proxy: Proxy, provider: Provider) -> None:
    """`none` in any case; HMAC with the public key, which everybody has (RFC 8725 2.1)."""
    public = RSA_KEY.public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    modulus = str(jwk(RSA_KEY, "one")["n"]).encode()
    odd: list[object] = ["none", "None", "NONE", "nOnE", "", None, 0, [], {}, ["RS256"], "RS256 "]
    for algorithm in odd:
        for kid in ("one", None):
            header: dict[str, object] = {"alg": algorithm} if kid is None else {"alg": algorithm, "kid": kid}
            assert await status(proxy, bearer(forged(provider, header, None))) == 401
    for key in (PUBLIC_PEM, PUBLIC_PEM.strip(), der, modulus, b"", b"secret"):
        for named in ("HS256", "HS384", "RS256", "ES256"):
            assert await status(proxy, bearer(forged(provider, {"alg": named, "kid": "one"}, key))) == 401
    assert await status(proxy, bearer(forged(provider, {"kid": "one"}, None))) == 401


async def test_an_algorithm_of_the_provider_that_is_not_configured(proxy: Proxy, provider: Provider) -> None:
    """The configuration says which, not the token."""
    for algorithm in ("RS384", "RS512", "PS256"):
        assert await status(proxy, bearer(provider.token(algorithm=algorithm))) == 401
    for algorithm in ("RS512", "PS256"):
        assert await identity_of(provider, provider.token(algorithm=algorithm), algorithms=[algorithm])


async def test_every_algorithm_that_may_be_configured(provider: Provider) -> None:
    keys: dict[str, Any] = {
        "ES384": ec.generate_private_key(ec.SECP384R1()),
        "ES512": ec.generate_private_key(ec.SECP521R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        "ES256": EC_KEY,
        **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), RSA_KEY),
    }
    provider.keys = [
        {**json.loads(jwt.get_algorithm_by_name(name).to_jwk(key.public_key())), "kid": name}
        for name, key in keys.items()
    ]
    async with signed_tokens(provider, algorithms=list(keys)) as tokens:
        for name, key in keys.items():
            assert (await tokens.identify(provider.token(key, name, name))).name == "jane"
        for name, key in keys.items():
            for kid in keys.keys() - {name}:
                if (name[:2] in ("RS", "PS")) is not (kid[:2] in ("RS", "PS")):
                    with pytest.raises(Refusal):
                        await tokens.identify(provider.token(key, kid, name))


async def test_a_key_for_one_algorithm_is_for_no_other(provider: Provider) -> None:
    """Where the provider says which (RFC 7517 4.4)."""
    provider.keys = [jwk(RSA_KEY, "one", alg="RS256")]
    async with signed_tokens(provider, algorithms=["RS256", "PS256"]) as tokens:
        await tokens.identify(provider.token())
        with pytest.raises(Refusal, match="does not have"):
            await tokens.identify(provider.token(algorithm="PS256"))


async def test_keys_that_a_token_brings_along_are_not_looked_at(proxy: Proxy, provider: Provider) -> None:
    """`jwk`, `jku`, `x5u`, `x5c` (RFC 7515 4.1): whoever signs could name them."""
    elsewhere = Provider()
    await elsewhere.start()
    elsewhere.keys = [jwk(OTHER_RSA_KEY, "one"), jwk(OTHER_RSA_KEY, "evil")]
    address = f"{elsewhere.issuer}/certs"
    for kid in ("one", "evil", None):
        named = {} if kid is None else {"kid": kid}
        for more in ({"jwk": jwk(OTHER_RSA_KEY, kid)}, {"jku": address}, {"x5u": address}, {"x5c": ["AAAA"]}):
            secret = jwt.encode(provider.claims(), OTHER_RSA_KEY, "RS256", {**named, **more})
            assert await status(proxy, bearer(secret)) == 401
            good = jwt.encode(provider.claims(), RSA_KEY, "RS256", {"kid": "one", **more})
            assert await status(proxy, bearer(good)) == 200
    assert not elsewhere.asked
    await elsewhere.stop()


async def test_a_signature_of_another_key(proxy: Proxy, provider: Provider) -> None:
    """Of another one of the provider, or of nobody's."""
    for key, kid, algorithm in (
        (OTHER_RSA_KEY, "one", "RS256"),
        (RSA_KEY, "two", "RS256"),
        (EC_KEY, "one", "ES256"),
        (RSA_KEY, "three", "RS256"),
    ):
        assert await status(proxy, bearer(provider.token(key, kid, algorithm))) == 401
    good = provider.token()
    head, claims, signature = good.split(".")
    for damaged in (
        f"{head}.{encoded(provider.claims(sub='admin'))}.{signature}",
        f"{head}.{claims}.",
        f"{head}.{claims}.{signature[:-4]}",
        f"{head}.{claims}.{signature[:-4]}AAAA",
        f"{head}.{claims}",
        f"{head}..{signature}",
        f"..{signature}",
        "..",
        f"{good}.{signature}",
        f"{head}.{claims}.{encoded(b'')}A",
    ):
        assert await status(proxy, bearer(damaged)) in (400, 401), damaged
    assert await status(proxy, bearer(good)) == 200


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"1",
        b'"x"',
        b"{",
        b"\xff\xfe",
        b"[" * 3000,
        b'{"alg":' + b"[" * 2500,
        b'{"alg": "RS256", "kid": 1}',
        b'{"alg": "RS256", "kid": ["one"]}',
        b'{"alg": "RS256", "kid": "one", "crit": ["exp"]}',
        b'{"alg": "RS256", "kid": "one", "crit": []}',
        b'{"alg": "RS256", "kid": "one", "b64": false, "crit": ["b64"]}',
        b'{"alg": "RS256", "kid": "' + b"x" * 3000 + b'"}',
        b'{"alg": ' + b"9" * 5000 + b"}",
        b'{"alg": "ES256", "kid": "one"}',
        b'{"alg": "RS256", "kid": "two"}',
    ],
    ids=lambda header: ascii(header[:40]),
)
async def test_a_malformed_token(proxy: Proxy, provider: Provider, header: bytes) -> None:
    """401 whatever it is, nested deeply too; nothing is logged as an error."""
    text = f"{encoded(header)}.{encoded(provider.claims())}"
    assert await status(proxy, bearer(f"{text}.{encoded(b'x' * 256)}")) == 401


@pytest.mark.parametrize("claims", [b"", b"[]", b"{", b"[" * 3000, b"\xff", b'{"exp": ' + b"9" * 4500 + b"}"])
async def test_malformed_claims_of_a_right_signature(proxy: Proxy, claims: bytes) -> None:
    """The provider's own mistake, and no failure of the proxy."""
    secret = jwt.PyJWS().encode(claims, RSA_KEY, "RS256", {"kid": "one"})
    assert await status(proxy, bearer(secret)) == 401


async def test_beside_tokens_of_the_proxys_own(provider: Provider) -> None:
    async with guarded({**provider.settings(), "tokens": [token()]}) as proxy:
        assert await status(proxy, bearer()) == await status(proxy, bearer(provider.token())) == 200
        assert await status(proxy, bearer(TOKEN[:-1])) == 401


# --- signed by other programs --------------------------------------------------------------------------------


def signed_by_openssl(folder: Path, text: str, options: tuple[str, ...] = ()) -> bytes:
    """Return a signature that OpenSSL's command makes with the RSA key."""
    openssl = require_program("openssl", "openssl")
    key = folder / "key.pem"
    unencrypted = serialization.NoEncryption()
    pkcs8 = serialization.PrivateFormat.PKCS8
    key.write_bytes(RSA_KEY.private_bytes(serialization.Encoding.PEM, pkcs8, unencrypted))
    line = [openssl, "dgst", "-sha256", *options, "-sign", str(key)]
    return subprocess.run(line, input=text.encode(), capture_output=True, check=True, timeout=10).stdout


async def test_signed_by_openssl(proxy: Proxy, provider: Provider, tmp_path: Path) -> None:
    """RS256 and PS256 by a program that knows nothing of tokens."""
    for algorithm, options in (
        ("RS256", ()),
        ("PS256", ("-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest")),
    ):
        text = f"{encoded({'alg': algorithm, 'kid': 'one'})}.{encoded(provider.claims())}"
        secret = f"{text}.{encoded(signed_by_openssl(tmp_path, text, options))}"
        assert (await identity_of(provider, secret, algorithms=["RS256", "PS256"])).name == "jane"
        assert await status(proxy, bearer(secret)) == (200 if algorithm == "RS256" else 401)
        changed = secret.replace(encoded(provider.claims()), encoded(provider.claims(sub="eve")))
        assert await status(proxy, bearer(changed)) == 401


JOSE = """
import { generateKeyPair, exportJWK, SignJWT } from "%s/dist/webapi/index.js";
const [issuer, audience] = process.argv.slice(2);
const { publicKey, privateKey } = await generateKeyPair("ES256");
const jwk = { ...(await exportJWK(publicKey)), kid: "jose", use: "sig", alg: "ES256" };
const token = await new SignJWT({ scope: "openid" }).setProtectedHeader({ alg: "ES256", kid: "jose", typ: "at+jwt" })
  .setIssuer(issuer).setAudience(audience).setSubject("jose").setIssuedAt().setExpirationTime("5m").sign(privateKey);
console.log(JSON.stringify({ jwk, token }));
"""


async def test_signed_by_jose(proxy: Proxy, provider: Provider, tmp_path: Path) -> None:
    """The most used library for JavaScript makes a key, its JSON form, and a token, all in its own way."""
    from tests.clients.npm import package

    script = tmp_path / "sign.mjs"
    script.write_text(JOSE % package("jose", "6.0.11"))
    node = require_program("node", "nodejs")
    line = [node, str(script), provider.issuer, AUDIENCE]
    done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    provider.keys.append(made["jwk"])
    assert (await identity_of(provider, made["token"])).name == "jose"
