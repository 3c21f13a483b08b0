"""Paths of the proxy's own, of which more is open, or less is written down, than of others.

By the route that a request leads to, never by the text of its path: the router takes more than one text for the same
path, and in dicomweb mode what only looks like one of these is the other server's.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

PING: Final = "/ping"
"""Open to all, from everywhere, without HTTPS and without a limit: it tells nothing but that the process answers, which
load balancers ask for, and they must be able to tell a busy proxy from a dead one."""

STATUS_PATHS: Final = frozenset({"/", "/health", "/status", "/metrics"})
"""What `auth.openStatus` opens."""

QUIET_PATHS: Final = STATUS_PATHS | {PING, "/conformance"}
"""They say nothing of any patient, and monitoring asks for them each second."""


def path_template(request: web.Request) -> str:
    """The path of the route that a request leads to, with its variables; empty where it leads nowhere."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical
