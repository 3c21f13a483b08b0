"""Rules between the keys below `auth`, and between those and others; for the raw file, as in `rules`."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from proxy.config.errors import HIDDEN, MISSING, ConfigProblem, show
from proxy.config.keys import dig
from proxy.config.types import A_PROVIDER_URL, is_provider_url

WAYS = ("users", "tokens", "jwt", "certificates")
"""The keys that let somebody sign in."""


def between_auth_keys(raw: Mapping[str, object], peer_names: Iterable[str]) -> Iterator[ConfigProblem]:
    """`peer_names` are the names of the archives; there are none in dicomweb mode."""
    auth = raw.get("auth")
    if not isinstance(auth, Mapping):
        return
    enabled = auth.get("enabled") is True
    if enabled and not any(auth.get(key) for key in WAYS):
        yield ConfigProblem(
            "auth.enabled", True, f"false, or one of {', '.join(WAYS)} set, so that somebody can sign in"
        )
    yield from _repeated(auth, "users", "name")
    yield from _repeated(auth, "tokens", "name")
    yield from _repeated(auth, "tokens", "tokenHash")
    yield from _repeated(auth, "certificates", "name")
    yield from _unknown_peers(raw, auth, list(peer_names))
    yield from _unfounded_certificates(raw, auth, enabled)
    yield from _undiscoverable_issuer(auth.get("jwt"))


def _entries(auth: Mapping[str, object], key: str) -> list[tuple[str, Mapping[str, object]]]:
    """The objects below a key with their paths, wherever there are any."""
    value = auth.get(key)
    if isinstance(value, Mapping):
        return [(f"auth.{key}", value)]
    items = value if isinstance(value, (list, tuple)) else ()
    return [(f"auth.{key}[{index}]", item) for index, item in enumerate(items) if isinstance(item, Mapping)]


def _repeated(auth: Mapping[str, object], key: str, field: str) -> Iterator[ConfigProblem]:
    first: dict[str, str] = {}
    for path, entry in _entries(auth, key):
        value = entry.get(field)
        if not isinstance(value, str):
            continue
        same = value.lower() if field == "tokenHash" else unicodedata.normalize("NFC", value)
        earlier = first.setdefault(same, path)
        if earlier != path:
            shown = HIDDEN if field == "tokenHash" else value
            yield ConfigProblem(f"{path}.{field}", shown, f"another than that of {earlier.removeprefix('auth.')}")


def _unknown_peers(raw: Mapping[str, object], auth: Mapping[str, object], names: list[str]) -> Iterator[ConfigProblem]:
    for path, entry in (found for key in WAYS for found in _entries(auth, key)):
        peers = entry.get("peers")
        if not isinstance(peers, (list, tuple)):
            continue
        if raw.get("proxyMode") == "dicomweb":
            yield ConfigProblem(f"{path}.peers", peers, "left out, since there are no peers in dicomweb mode")
            continue
        for index, name in enumerate(peers):
            if isinstance(name, str) and names and name not in names:
                allowed = f"the name of a peer: {', '.join(map(show, names))}"
                yield ConfigProblem(f"{path}.peers[{index}]", name, allowed)


def _unfounded_certificates(
    raw: Mapping[str, object], auth: Mapping[str, object], enabled: bool
) -> Iterator[ConfigProblem]:
    if not enabled or not auth.get("certificates"):
        return
    if dig(raw, "ssl.enabled") is not True:
        given = dig(raw, "ssl.enabled")
        yield ConfigProblem("ssl.enabled", given, "true, since auth.certificates is set")
    if dig(raw, "ssl.clientCaFile") in (MISSING, None):
        given = dig(raw, "ssl.clientCaFile")
        yield ConfigProblem("ssl.clientCaFile", given, "a path, since auth.certificates is set")


def _undiscoverable_issuer(settings: object) -> Iterator[ConfigProblem]:
    if not isinstance(settings, Mapping) or settings.get("jwksUrl") or settings.get("jwksFile"):
        return
    issuer = settings.get("issuer")
    if isinstance(issuer, str) and issuer and ("?" in issuer or not is_provider_url(issuer)):
        allowed = f"{A_PROVIDER_URL}, without query, since neither jwksUrl nor jwksFile is set"
        yield ConfigProblem("auth.jwt.issuer", issuer, allowed)
