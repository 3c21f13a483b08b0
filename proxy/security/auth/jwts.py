"""Bearer tokens that an identity provider has signed: JSON Web Tokens (RFC 7519, with the advice of RFC 8725).

Imports PyJWT, so it is imported only where `auth.jwt` is set.
"""

from __future__ import annotations

from typing import Any, Final

import jwt

from proxy.config.security import Jwt
from proxy.security.auth.errors import Refusal
from proxy.security.auth.keyring import Keyring
from proxy.security.auth.provider import source_of
from proxy.security.auth.rights import identity_with
from proxy.security.identity import Identity

MAX_NAME: Final = 256
"""Characters of a user's name; RFC 7519 sets no bound, OpenID Connect one of 255 for `sub`."""

_NEEDED: Final = ["exp", "iss", "aud"]


class SignedTokens:
    """The users of an identity provider.

    Which key it is and where from, and by which algorithms, the configuration says: headers of a token that say
    otherwise (`jwk`, `jku`, `x5u`, `x5c`) are not looked at.
    """

    def __init__(self, settings: Jwt) -> None:
        """Raises `AuthSettingsError` for files that cannot be used."""
        self._settings = settings
        self._keyring = Keyring(source_of(settings))

    def start(self) -> None:
        """Begin to fetch the provider's keys."""
        self._keyring.start()

    async def close(self) -> None:
        """End what is under way."""
        await self._keyring.close()

    async def identify(self, token: str) -> Identity:
        """Who the token says it is. Raises `Refusal`: 401 for a wrong token, 503 where that cannot be told."""
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in self._settings.algorithms:
                raise _invalid("the token is signed by an algorithm that is not allowed here")
            key = await self._keyring.find(header.get("kid"), algorithm)
            if key is None:
                raise _invalid("the token is signed with a key that the identity provider does not have")
            claims = jwt.decode(
                token,
                key.public_key,
                algorithms=[algorithm],
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                leeway=self._settings.leeway,
                options={"require": _NEEDED},
            )
        except jwt.ExpiredSignatureError:
            raise _invalid("the token has expired") from None
        except jwt.ImmatureSignatureError:
            raise _invalid("the token is not valid yet") from None
        except jwt.InvalidAudienceError:
            raise _invalid("the token is for something else than this proxy") from None
        except jwt.InvalidIssuerError:
            raise _invalid("the token is by another issuer") from None
        except jwt.PyJWTError:
            raise _invalid("the token is not valid") from None
        return self._identity(claims)

    def _identity(self, claims: dict[str, Any]) -> Identity:
        name = claims.get(self._settings.user_claim)
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise _invalid("the token does not say who its user is")
        scopes = _scopes(claims.get("scope")) | _scopes(claims.get("scp"))
        write, admin = self._settings.write_scope in scopes, self._settings.admin_scope in scopes
        return identity_with(name, "jwt", self._settings, write=write, admin=admin)


def _scopes(claim: object) -> set[str]:
    """The scopes of a claim: words in one text (RFC 8693 4.2), or a list of them, as some providers have it."""
    if isinstance(claim, str):
        return set(claim.split(" "))
    return {each for each in claim if isinstance(each, str)} if isinstance(claim, list) else set()


def _invalid(message: str) -> Refusal:
    return Refusal(401, message, bearer_error="invalid_token")
