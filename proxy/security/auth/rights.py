"""What somebody may do who has signed in: the rights of the configuration, and which requests need them."""

from __future__ import annotations

from typing import Final, Literal

from aiohttp import web

from proxy.config.security import Rights
from proxy.security.auth.errors import Refusal
from proxy.security.http.cors import is_foreign
from proxy.security.identity import Identity, Kind
from proxy.security.paths import path_template

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""These change nothing (RFC 9110 9.2.1), so no right is needed beyond having signed in."""

ADMIN_PATHS: Final = frozenset({"/cache", "/cache/studies/{study}", "/dimse/echo"})
"""What is about the proxy itself. A C-ECHO on demand tells where an archive is, and keeps it busy."""


def identity_with(name: str, kind: Kind, rights: Rights, *, write: bool = False, admin: bool = False) -> Identity:
    """Somebody with the rights that the configuration gives, and with those that something else gives besides."""
    peers = None if rights.peers is None else frozenset(rights.peers)
    return Identity(name, kind, peers, write=rights.write or write, admin=rights.admin or admin)


def needed_right(method: str, template: str) -> Literal["write", "admin"] | None:
    """The right that a request needs."""
    if method in SAFE_METHODS:
        return None
    return "admin" if template in ADMIN_PATHS else "write"


def check_rights(request: web.Request, identity: Identity) -> None:
    """Raise `Refusal` where somebody who has signed in lacks the right for a request."""
    right = needed_right(request.method, path_template(request))
    allowed = {None: True, "write": identity.write, "admin": identity.admin}
    if not allowed[right]:
        bearer_error: Final = "insufficient_scope" if identity.kind in ("token", "jwt") else None
        raise Refusal(403, f"you are signed in, but without the right needed here: {right}", bearer_error=bearer_error)


def check_page(request: web.Request, identity: Identity) -> None:
    """Raise `Refusal` where a page that may not do so has made a browser send a request that changes something.

    Browsers add passwords and client certificates by themselves, and ask for no leave (a preflight) where the body is
    like that of a form. Nobody's page has a token to send but the one that was given it.
    """
    if request.method in SAFE_METHODS or identity.kind in ("token", "jwt"):
        return
    if is_foreign(request, signed_in=identity.kind != "none"):
        raise Refusal(403, "the web page that this comes from may not do that (key: cors.origin)")
