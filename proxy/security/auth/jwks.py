"""Sets of public keys as JSON (RFC 7517): which of their keys may verify signatures, and by which algorithms.

Imports PyJWT, so it is imported only where `auth.jwt` is set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

MAX_KEYS: Final = 100
"""Keys of a set that are looked at; providers have two to five."""

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")

_BY_TYPE: Final[Mapping[tuple[object, object], tuple[str, ...]]] = {
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("OKP", "Ed448"): ("EdDSA",),
}
"""The algorithms for a key of a type and curve (RFC 7518 3.1, RFC 8037 3.1). Symmetric keys are none of a provider."""

_PUBLIC_PARTS: Final = ("kty", "crv", "n", "e", "x", "y")


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, of the types of `cryptography`, and the algorithms of signatures that it may verify."""

    kid: str | None
    algorithms: tuple[str, ...]
    public_key: Any


class KeySetError(ValueError):
    """A text is no set of keys, or holds none that can be used."""


def read_key_set(data: bytes) -> list[Key]:
    """The keys of a set that can verify signatures; those for anything else are passed over.

    Raises `KeySetError`.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise KeySetError("is not JSON") from None
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise KeySetError("is no set of keys: it has no list named keys")
    keys = [key for entry in entries[:MAX_KEYS] if isinstance(entry, dict) and (key := _key(entry)) is not None]
    if not keys:
        raise KeySetError("holds no key that can verify signatures")
    return keys


def _key(entry: dict[str, Any]) -> Key | None:
    algorithms = _RSA if entry.get("kty") == "RSA" else _algorithms_of_curve(entry.get("kty"), entry.get("crv"))
    if "alg" in entry:
        algorithms = tuple(each for each in algorithms if each == entry["alg"])
    kid, operations = entry.get("kid"), entry.get("key_ops", ["verify"])
    fits = entry.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
    if not algorithms or not fits or not isinstance(kid, str | None):
        return None
    algorithm = jwt.get_algorithm_by_name(algorithms[0])
    try:
        # A set that holds private parts by mistake is no reason to use them.
        public_key = algorithm.from_jwk({part: entry[part] for part in _PUBLIC_PARTS if part in entry})
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    return None if algorithm.check_key_length(public_key) else Key(kid, algorithms, public_key)


def _algorithms_of_curve(kind: object, curve: object) -> tuple[str, ...]:
    return _BY_TYPE.get((kind, curve), ()) if isinstance(kind, str) and isinstance(curve, str) else ()


def find_key(keys: Iterable[Key], kid: str | None, algorithm: str) -> Key | None:
    """The key of that name for that algorithm; without a name the only one for that algorithm (OIDC Core 10.1)."""
    fitting = [key for key in keys if algorithm in key.algorithms and kid in (None, key.kid)]
    return fitting[0] if fitting and (kid is not None or len(fitting) == 1) else None
