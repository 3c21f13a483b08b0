"""Bearer tokens that the proxy has made, and what is said of wrong ones (RFC 6750)."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime, timedelta

import pytest

from proxy.config.security import Token
from proxy.security.auth import tokens as module
from proxy.security.auth.tokens import Tokens
from proxy.security.identity import Identity
from tests.proxy.signing_in import TOKEN, asked, bearer, guarded, status, token

pytestmark = pytest.mark.usefixtures("nothing_left")

OTHER = "ZZ7pYkzW0n2Vt5cQ8rXh1mJ4sLd6fGb9uEaTiOoPlKj"


def in_hours(hours: float) -> str:
    """Return a time in the form of the configuration."""
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat()


async def test_right_and_wrong() -> None:
    """A wrong one is an `invalid_token`; without one there is no error code (RFC 6750 3.1)."""
    async with guarded({"tokens": [token(), token("other", OTHER)]}) as proxy:
        assert await status(proxy, bearer()) == await status(proxy, bearer(OTHER)) == 200
        for wrong in (TOKEN[:-1], TOKEN + "A", TOKEN.lower(), TOKEN + "=", str(token()["tokenHash"]), "x", "a.b.c"):
            code, headers, _ = await asked(proxy, bearer(wrong))
            assert code == 401
            assert headers["WWW-Authenticate"].startswith('Bearer realm="DICOMweb proxy", error="invalid_token", ')
        code, headers, _ = await asked(proxy)
        assert (code, headers["WWW-Authenticate"]) == (401, 'Bearer realm="DICOMweb proxy"')


@pytest.mark.parametrize("malformed", ["", " ", "a b", "a,b", 'a"b', "a\tb", "é", "=", "=a", "a=b", "a" * 7000 + "!"])
async def test_malformed(malformed: str) -> None:
    """400 and `invalid_request`."""
    async with guarded({"tokens": [token()]}) as proxy:
        code, headers, _ = await asked(proxy, {"Authorization": f"Bearer {malformed}"})
        assert code == 400
        assert 'error="invalid_request"' in headers["WWW-Authenticate"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_in_any_case(scheme: str) -> None:
    async with guarded({"tokens": [token()]}) as proxy:
        assert await status(proxy, {"Authorization": f"{scheme} {TOKEN}"}) == 200


async def test_expiry() -> None:
    """A token that has expired is refused, and it is said why: only its owner can have sent it."""
    tokens = [token(expires=in_hours(1)), token("old", OTHER, expires=in_hours(-1))]
    async with guarded({"tokens": tokens}) as proxy:
        assert await status(proxy, bearer()) == 200
        code, headers, body = await asked(proxy, bearer(OTHER))
        assert code == 401
        assert 'error="invalid_token", error_description="the token has expired"' in headers["WWW-Authenticate"]
        assert b"the token has expired" in body


async def test_rights() -> None:
    """403 and `insufficient_scope` for what its owner may not do."""
    async with guarded({"tokens": [token(), token("writer", OTHER, write=True, admin=True)]}) as proxy:
        code, headers, _ = await asked(proxy, bearer(), "/cache", "DELETE")
        assert code == 403
        assert headers.getall("WWW-Authenticate") == [
            'Bearer realm="DICOMweb proxy", error="insufficient_scope", '
            'error_description="you are signed in, but without the right needed here: admin"'
        ]
        assert await status(proxy, bearer(OTHER), "/cache", method="DELETE") == 200
        assert await status(proxy, bearer(OTHER), "/studies", method="POST", data=b"") == 415


async def test_wrong_tokens_lock_nobody_out() -> None:
    """They cannot be guessed, and a page with an old one must not lock out its neighbours."""
    async with guarded({"tokens": [token()]}) as proxy:
        for _ in range(30):
            assert await status(proxy, bearer(OTHER)) == 401
        assert await status(proxy, bearer()) == 200


def test_all_hashes_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever it is, and whether it is one of them or none."""
    compared: list[tuple[str, str]] = []

    class Compare:
        @staticmethod
        def compare_digest(one: str, other: str) -> bool:
            compared.append((one, other))
            return hmac.compare_digest(one, other)

    monkeypatch.setattr(module, "hmac", Compare)
    held = [Token.model_validate(token(f"number {number}", f"secret{number}")) for number in range(5)]
    tokens = Tokens(held)
    for secret, owner in (("secret0", "number 0"), ("secret4", "number 4"), ("secret5", None)):
        compared.clear()
        identity = tokens.identify(secret)
        assert (identity and identity.name) == owner
        assert [one for one, _ in compared] == [each.token_hash for each in held]


def test_who_it_is() -> None:
    """With the rights of the configuration, and none that are not in it."""
    tokens = Tokens([Token.model_validate(token("uploader", peers=["A"], write=True))])
    identity = tokens.identify(TOKEN)
    assert identity is not None
    assert identity == Identity("uploader", "token", frozenset({"A"}), write=True, admin=False)
    default = Tokens([Token.model_validate(token())]).identify(TOKEN)
    assert default is not None
    assert (default.peers, default.write, default.admin) == (None, False, False)
