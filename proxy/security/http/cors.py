"""CORS from the `cors` keys, by aiohttp-cors: which pages of other origins may read what the server answers.

aiohttp-cors goes by routes. It is given a router adapter of the proxy's own here, since a page must be able to read
every answer: of an unknown path too, of a wrong method, of a limit, and of a request that nobody has signed in for.
Only to what is no HTTP (`connection`) there is no `Origin` to answer.

A wildcard origin never goes together with credentials: that would open the archive to every web page that a signed-in
user visits (Fetch standard, "CORS protocol and credentials").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import aiohttp_cors
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp_cors.abc import AbstractRouterAdapter
from yarl import URL

from proxy.config.security import Cors
from proxy.config.types import BELOW
from proxy.dicomweb.errors import error_response
from proxy.dicomweb.urls import base_url

EXPOSED_HEADERS: Final = (
    "Accept-Ranges",
    "Allow",
    "Content-Disposition",
    "Content-Length",
    "Content-Location",
    "Content-Range",
    "Content-Type",
    "ETag",
    "Location",
    "Retry-After",
    "Vary",
    "Warning",
    "WWW-Authenticate",
    "X-Cache",
)
"""What a page may read of the headers, beside what it always may."""

ALWAYS_ALLOWED_HEADERS: Final = (
    "Accept",
    "Authorization",
    "Content-Type",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "Range",
)
"""What DICOMweb clients send; quoted media types in Accept alone make a request need a preflight."""

PREFLIGHT_SECONDS: Final = 7200
"""How long a browser may keep a preflight's answer; Chromium keeps none longer than two hours."""

_ORIGIN: Final = re.compile(r"null|[a-z][0-9a-z+.-]*://[!-~]{0,300}")
"""What is repeated to a page where all may read (RFC 6454 6.2); a host has no more than 253 characters."""

PREFLIGHT_VARIES: Final = ("Access-Control-Request-Method", "Access-Control-Request-Headers")


def is_preflight(request: web.Request) -> bool:
    """Tell a preflight from an OPTIONS of another kind (Fetch standard, "CORS-preflight request")."""
    names = ("Origin", "Access-Control-Request-Method")
    return request.method == "OPTIONS" and all(name in request.headers for name in names)


def set_up_cors(app: web.Application, cors: Cors) -> None:
    """Enable CORS for all that `app` answers. Its routes must be there, and `answer_preflight` in its middlewares."""
    rules = _Rules(cors)
    app[_RULES] = rules
    app.on_response_prepare.append(_forget_upstream)
    setup = aiohttp_cors.CorsConfig(app, router_adapter=rules)
    for resource in list(app.router.resources()):
        setup.add(resource)
    app.on_response_prepare.append(_vary)


@web.middleware
async def answer_preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a preflight, whatever its path: it carries no credentials, and costs no archive anything.

    Where it failed, a page would never see the answer that says what is wrong with the request proper.
    """
    if not is_preflight(request):
        return await handler(request)
    rules = request.app[_RULES]
    try:
        response = await rules.preflight(request)
    except web.HTTPForbidden:
        return error_response(
            403, "the web page's origin, or the method or a header that it asks for, is not allowed (key: cors)"
        )
    # More than was asked for, so that the browser need not ask again for another method or header.
    response.headers["Access-Control-Allow-Methods"] = ",".join(rules.methods)
    response.headers["Access-Control-Allow-Headers"] = ",".join(rules.headers)
    if request.headers.get("Access-Control-Request-Private-Network") == "true" and rules.lists(request):
        # A public page may reach a private address (Private Network Access, which Chromium had before it asked users).
        response.headers["Access-Control-Allow-Private-Network"] = "true"
    return response


def is_foreign(request: web.Request, *, signed_in: bool) -> bool:
    """Tell whether a request is by a page that is neither the proxy's own nor one of those that may read answers.

    Browsers send requests for any page, and only keep the answer from it. With `signed_in` the wildcard does not count.
    Browsers name the page's origin with all methods that change something; who names none is no page.
    """
    origin = request.headers.get("Origin")
    if origin is None:
        return False
    own = str(URL(base_url(request)).origin())
    return origin != own and not request.app[_RULES].allows(origin, signed_in=signed_in)


class Origins:
    """The origins that are listed, each by itself or by a host that it is below; the wildcard lists none."""

    def __init__(self, allowed: Iterable[str]) -> None:
        """`allowed` are those of `Cors.allowed_origins`."""
        patterns = [origin for origin in allowed if f"://{BELOW}" in origin]
        self._listed = frozenset(allowed) - {"*", *patterns}
        self._below = [_pattern(origin) for origin in patterns]

    def __contains__(self, origin: str) -> bool:
        return origin in self._listed or any(pattern.fullmatch(origin) for pattern in self._below)


def _pattern(origin: str) -> re.Pattern[str]:
    scheme, _, host = origin.partition(f"://{BELOW}")
    # Underscores are in no host name of RFC 1123, and yet in the names that browsers go to.
    return re.compile(rf"{scheme}://(?:[0-9a-z](?:[0-9a-z_-]{{0,61}}[0-9a-z])?\.)+{re.escape(host)}")


class _Rules(AbstractRouterAdapter):
    """The `cors` keys in the form that aiohttp-cors asks for; the same for every route, and where there is none."""

    def __init__(self, cors: Cors) -> None:
        allowed = cors.allowed_origins
        self._origins = Origins(allowed)
        self._wildcard = "*" in allowed
        head = {"HEAD"} if "GET" in cors.methods else set()  # browsers ask for no leave to send it (Fetch standard)
        self.methods: Final = sorted({*cors.methods, *head} - {"OPTIONS"})
        names = {name.lower(): name for name in (*cors.allowed_headers, *ALWAYS_ALLOWED_HEADERS)}
        self.headers: Final = sorted(names.values(), key=str.lower)
        self._with_credentials = self._options(credentials=cors.credentials)
        self._without = self._options(credentials=False)
        self.preflight: Handler

    def _options(self, *, credentials: bool) -> aiohttp_cors.ResourceOptions:
        return aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call]
            allow_credentials=credentials,
            expose_headers=EXPOSED_HEADERS,
            allow_headers=self.headers,
            max_age=PREFLIGHT_SECONDS,
            allow_methods=self.methods,
        )

    def lists(self, request: web.Request) -> bool:
        """Tell whether a request's origin is allowed by name: the wildcard is no wish to be called from anywhere."""
        return request.headers.get("Origin", "") in self._origins

    def allows(self, origin: str, *, signed_in: bool) -> bool:
        """Tell whether pages of an origin may read answers, or only those to nobody in particular."""
        return origin in self._origins or (self._wildcard and not signed_in)

    def _of(self, origin: str) -> Mapping[str, object]:
        if origin in self._origins:
            return {origin: self._with_credentials}
        return {origin: self._without} if self._wildcard and _ORIGIN.fullmatch(origin) else {}

    # --- what aiohttp-cors asks ------------------------------------------------------------------------------

    def add_preflight_handler(self, routing_entity: Any, handler: Handler, webview: bool = False) -> None:
        self.preflight = handler
        # Preflights are answered before, but the resource is to have the method (RFC 9110 9.3.7).
        if isinstance(routing_entity, web.Resource) and not {"*", "OPTIONS"} & {each.method for each in routing_entity}:
            routing_entity.add_route("OPTIONS", handler)

    def set_config_for_routing_entity(self, routing_entity: Any, config: object) -> None:
        """There is one configuration."""

    def is_preflight_request(self, request: web.Request) -> bool:
        return is_preflight(request)

    def is_cors_enabled_on_request(self, request: web.Request) -> bool:
        return True

    async def get_preflight_request_config(
        self, preflight_request: web.Request, origin: str, requested_method: str
    ) -> Mapping[str, object]:
        if requested_method not in self.methods:
            raise KeyError(requested_method)
        return self._of(origin)

    def get_non_preflight_request_config(self, request: web.Request) -> Mapping[str, object]:
        return self._of(request.headers.get("Origin", ""))


_RULES: Final = web.AppKey("cors", _Rules)


async def _forget_upstream(request: web.Request, response: web.StreamResponse) -> None:
    """Drop what another server, whose answer is handed on, has said to other origins than the proxy's."""
    if not is_preflight(request):
        for name in [name for name in response.headers if name.lower().startswith("access-control-")]:
            response.headers.popall(name, None)


async def _vary(request: web.Request, response: web.StreamResponse) -> None:
    """Tell caches what an answer depends on, or a shared one would give one origin's answer to another."""
    names = ("Origin", *PREFLIGHT_VARIES) if is_preflight(request) else ("Origin",)
    said = [each.strip() for value in response.headers.getall("Vary", []) for each in value.split(",")]
    # Field names do not depend on case (RFC 9110 5.1).
    varied = {each.lower(): each for each in (*names, *filter(None, said))}
    response.headers["Vary"] = "*" if "*" in varied else ", ".join(varied.values())
