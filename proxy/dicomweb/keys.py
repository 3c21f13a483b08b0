"""What handlers find in the application."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from proxy.archive.archives import Archives
from proxy.archive.views import ArchivesView
from proxy.render.pool import Workers
from proxy.security.identity import identity_of

ARCHIVES: Final = web.AppKey("archives", Archives)
"""All archives: for a request, only by way of `archives_of`."""
PUBLIC_URL: Final = web.AppKey("public_url", str)
"""The configured address of the proxy, or empty."""
WORKERS: Final = web.AppKey("workers", Workers)


def archives_of(request: web.Request) -> ArchivesView:
    """The archives that whoever has made the request may use.

    Raises RuntimeError where users are told apart and nobody has said who this is: better no answer than too much.
    """
    archives = request.app[ARCHIVES]
    identity = identity_of(request)
    if identity is not None:
        return archives.view(identity.peers)
    if archives.limits_users:
        raise RuntimeError("a request came to its handler without an identity")
    return archives
