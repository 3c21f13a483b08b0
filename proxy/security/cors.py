"""CORS from the `cors` keys, by aiohttp-cors; around its edges, what it leaves out.

A wildcard origin is never answered together with credentials: it would open the archive to every web page that a
signed-in user visits (Fetch standard, "CORS protocol and credentials").
"""

from __future__ import annotations

from typing import Final

import aiohttp_cors
from aiohttp import web

from proxy.config_schema import Cors

EXPOSED_HEADERS: Final = (
    "Content-Type",
    "Content-Length",
    "Content-Location",
    "Content-Range",
    "ETag",
    "Retry-After",
    "Warning",
    "X-Cache",
)

ALWAYS_ALLOWED_HEADERS: Final = ("Accept", "Authorization", "Content-Type", "Range")
"""What DICOMweb clients send; quoted media types in Accept alone make a request need a preflight."""

PREFLIGHT_SECONDS: Final = 7200
"""How long a browser may keep a preflight's answer; Chromium keeps none longer than two hours."""


def set_up_cors(app: web.Application, cors: Cors) -> None:
    """Enable CORS on every route that `app` has."""
    methods = [method for method in cors.methods if method != "OPTIONS"]
    allowed = sorted({*cors.allowed_headers, *ALWAYS_ALLOWED_HEADERS}, key=str.lower)
    defaults = {
        origin: aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call]
            allow_credentials=cors.credentials and origin != "*",
            expose_headers=EXPOSED_HEADERS,
            allow_headers=allowed,
            max_age=PREFLIGHT_SECONDS,
            allow_methods=methods,
        )
        for origin in cors.allowed_origins
    }
    setup = aiohttp_cors.setup(app, defaults=defaults)
    for route in list(app.router.routes()):
        setup.add(route)
    app.on_response_prepare.append(_vary_by_origin)


async def _vary_by_origin(request: web.Request, response: web.StreamResponse) -> None:
    # Or a shared cache would give one origin's answer to another.
    response.headers.add("Vary", "Origin")
