"""Bearer tokens that the proxy has made (RFC 6750): random texts, whose hashes the configuration holds."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from datetime import UTC, datetime

from proxy.config.security import Token
from proxy.security.auth.errors import Refusal
from proxy.security.auth.hashing import token_hash
from proxy.security.auth.rights import identity_with
from proxy.security.identity import Identity


class Tokens:
    """The programs that sign in by a token."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._tokens = [(each.token_hash, each.expires, identity_with(each.name, "token", each)) for each in tokens]

    def identify(self, token: str) -> Identity | None:
        """Whose token it is; None where it is nobody's. Raises `Refusal` for one that has expired."""
        digest = token_hash(token)
        # All of them, always: neither where one stands nor how much of a hash is right can be told from the time.
        found = [entry for entry in self._tokens if hmac.compare_digest(entry[0], digest)]
        if not found:
            return None
        _, expires, identity = found[0]
        if expires is not None and datetime.now(UTC) >= expires:
            raise Refusal(401, "the token has expired", bearer_error="invalid_token")
        return identity
