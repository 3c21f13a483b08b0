"""Who has made a request: the name, and what it may do. How that is found out is in `auth`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from aiohttp import web

Kind = Literal["none", "basic", "token", "jwt", "certificate"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who has signed in, or anybody where nobody has to.

    `name` is from the configuration, or from a claim of a signed token; empty where nobody signs in. `peers` are the
    names of the archives that they may use, None stands for all. `write` allows uploads, `admin` what changes the
    proxy itself.
    """

    name: str
    kind: Kind
    peers: frozenset[str] | None
    write: bool
    admin: bool


ANYBODY: Final = Identity("", "none", None, write=True, admin=False)
"""Where `auth.enabled` is false."""

NOBODY: Final = Identity("", "none", frozenset(), write=False, admin=False)
"""Whoever asks for `/ping`; and only for that."""

ONLOOKER: Final = Identity("", "none", None, write=False, admin=False)
"""Whoever looks at the status where that is open (`auth.openStatus`); and only for that, which is of all archives."""

_IDENTITY: Final = web.RequestKey("identity", Identity)


def identify(request: web.Request, identity: Identity) -> None:
    """Note who has made a request; once, before any handler sees it."""
    request[_IDENTITY] = identity


def identity_of(request: web.Request) -> Identity | None:
    """Who has made a request; None while that is not known, or where it was refused."""
    return request.get(_IDENTITY)
