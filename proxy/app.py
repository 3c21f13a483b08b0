"""Routes and middlewares, and nothing else: all that the server answers, on one page."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from aiohttp import web

from proxy.archive.archives import Archives
from proxy.config_schema import Config
from proxy.dicomweb import qido, wado
from proxy.dicomweb.attributes import Resource
from proxy.dicomweb.errors import Truncated, error_response, response_for
from proxy.dicomweb.keys import ARCHIVES, PUBLIC_URL
from proxy.dicomweb.streaming import has_begun, note_begun, reset
from proxy.security.cors import set_up_cors
from proxy.web import cache, health, page

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("GET", "/", page.status_page),
    ("GET", "/ping", health.ping),
    ("GET", "/health", health.health),
    ("GET", "/status", health.status),
    ("POST", "/dimse/echo", health.echo),
    ("DELETE", "/cache", cache.purge),
    ("DELETE", "/cache/studies/{study}", cache.purge),
    *(("GET", resource.value, partial(qido.search, resource=resource)) for resource in Resource),
    ("GET", "/studies/{study}", wado.retrieve),
    ("GET", "/studies/{study}/series/{series}", wado.retrieve),
    ("GET", "/studies/{study}/series/{series}/instances/{instance}", wado.retrieve),
)

MAX_BODY: Final = 64 * 1024
"""Bytes of a request body; nothing in this version takes more than a few."""


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure as JSON, every unexpected one logged with its traceback and answered without it."""
    try:
        return await handler(request)
    except Exception as error:
        gone = request.transport is None or request.transport.is_closing()
        if gone and isinstance(error, ConnectionError | Truncated):
            return web.Response()  # for nobody: the client has left, or was cut off on purpose
        response = response_for(error)
        if response is None:
            logger.exception(
                "%s failed", request.match_info.route.resource and request.match_info.route.resource.canonical
            )
            response = error_response(500, "the proxy failed for a reason of its own; its log says more")
        if has_begun(request) and request.transport is not None:
            reset(request.transport)  # no second answer behind the first
        return response


def build_app(config: Config, archives: Archives) -> web.Application:
    """The application for dimse mode."""
    app = web.Application(middlewares=[errors], client_max_size=MAX_BODY)
    app[ARCHIVES] = archives
    app[PUBLIC_URL] = config.public_url or ""
    app[qido.SETTINGS] = qido.QidoSettings(config.qido_append_wildcard, config.qido_min_chars)
    app[health.PROXY_MODE] = config.proxy_mode
    app[health.STARTED] = time.monotonic()
    for method, path, handler in ROUTES:
        if method == "GET":
            app.router.add_get(path, handler, allow_head=False)
        else:
            app.router.add_route(method, path, handler)
    app.on_response_prepare.append(note_begun)
    set_up_cors(app, config.cors)
    return app
