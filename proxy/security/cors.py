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


def is_preflight(request: web.Request) -> bool:
    """Tell a preflight from an OPTIONS of another kind (Fetch standard, "CORS-preflight request")."""
    names = ("Origin", "Access-Control-Request-Method")
    return request.method == "OPTIONS" and all(name in request.headers for name in names)


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
    for resource in list(app.router.resources()):
        setup.add(resource)  # not its routes: aiohttp-cors takes their methods for allowed, whatever `methods` says
    app.on_response_prepare.append(_Rest(cors).complete)


class _Rest:
    """What aiohttp-cors leaves out."""

    def __init__(self, cors: Cors) -> None:
        self._origins = frozenset(cors.allowed_origins)
        self._credentials = cors.credentials

    async def complete(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add to the headers of a response that is about to be sent."""
        headers = response.headers
        # Or a shared cache would give one origin's answer to another.
        headers.add("Vary", "Origin")
        origin = request.headers.get("Origin")
        if origin is None:
            return
        if is_preflight(request):
            self._allow_private_network(request, origin, response)
        elif "Access-Control-Allow-Origin" not in headers and (origin in self._origins or "*" in self._origins):
            # An unknown path or a wrong method: without these, a web page is not told so.
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = ",".join(EXPOSED_HEADERS)
            if self._credentials and origin in self._origins - {"*"}:
                headers["Access-Control-Allow-Credentials"] = "true"

    def _allow_private_network(self, request: web.Request, origin: str, response: web.StreamResponse) -> None:
        """Answer a public page's preflight for a private address (Private Network Access).

        Only to origins that are listed: a wildcard is no wish to be called from the whole of the internet.
        """
        asked = request.headers.get("Access-Control-Request-Private-Network") == "true"
        if asked and origin in self._origins - {"*"} and "Access-Control-Allow-Origin" in response.headers:
            response.headers["Access-Control-Allow-Private-Network"] = "true"
