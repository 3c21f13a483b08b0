"""Routes and middlewares, and nothing else: all that the server answers, on one page."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, web

from proxy.archive.archives import Archives
from proxy.archive.cache.depot import MEGABYTE
from proxy.config_schema import Config
from proxy.dicomweb import bulkdata, capabilities, frames, metadata, qido, rendered, stow, wado, wadouri
from proxy.dicomweb.attributes import Resource
from proxy.dicomweb.errors import Truncated, error_response, response_for
from proxy.dicomweb.keys import ARCHIVES, PUBLIC_URL, WORKERS
from proxy.dicomweb.streaming import has_begun, note_begun, reset
from proxy.dicomweb.tidypaths import TidyPaths
from proxy.render.pool import Workers
from proxy.security.cors import set_up_cors
from proxy.web import cache, health, page

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

RENDERED: Final = (
    "/studies/{study}",
    "/studies/{study}/series/{series}",
    "/studies/{study}/series/{series}/instances/{instance}",
    "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}",
)

ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("GET", "/", page.status_page),
    ("GET", capabilities.PATH, capabilities.retrieve),
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
    ("POST", "/studies", stow.store),
    ("POST", "/studies/{study}", stow.store),
    ("GET", "/studies/{study}/metadata", metadata.retrieve),
    ("GET", "/studies/{study}/series/{series}/metadata", metadata.retrieve),
    ("GET", "/studies/{study}/series/{series}/instances/{instance}/metadata", metadata.retrieve),
    ("GET", "/studies/{study}/series/{series}/instances/{instance}/bulkdata/{path:.+}", bulkdata.retrieve),
    ("GET", "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}", frames.retrieve),
    *(("GET", path + "/rendered", rendered.retrieve) for path in RENDERED),
    *(("GET", path + "/thumbnail", rendered.thumbnail) for path in RENDERED),
    ("GET", "/wado", wadouri.retrieve),
)

VERSIONS: Final = (HttpVersion10, HttpVersion11)
"""Of HTTP. Others, which aiohttp takes for one of these, may mean something else to a program in between."""

MAX_BODY: Final = 64 * 1024
"""Bytes of a request body that is read whole; uploads are streamed and have a bound of their own."""


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure as JSON, every unexpected one logged with its traceback and answered without it."""
    try:
        if request.version not in VERSIONS:
            raise web.HTTPVersionNotSupported
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


async def _end_workers(app: web.Application) -> None:
    await app[WORKERS].close()


def build_app(config: Config, archives: Archives) -> web.Application:
    """The application for dimse mode."""
    middlewares = [errors, capabilities.answer_options, capabilities.check_parameters]
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY)
    app[ARCHIVES] = archives
    app[WORKERS] = Workers()
    app[PUBLIC_URL] = config.public_url or ""
    app[qido.SETTINGS] = qido.QidoSettings(config.qido_append_wildcard, config.qido_min_chars)
    app[stow.MAX_UPLOAD] = config.max_upload_mb * MEGABYTE
    app[health.PROXY_MODE] = config.proxy_mode
    app[health.STARTED] = time.monotonic()
    app[capabilities.CAPABILITIES] = capabilities.Capabilities((method, path) for method, path, _ in ROUTES)
    resources = {path: app.router.add_resource(path) for path in dict.fromkeys(path for _, path, _ in ROUTES)}
    for method, path, handler in ROUTES:
        expect = stow.wait_for_handler if handler is stow.store else None
        resources[path].add_route(method, handler, expect_handler=expect)
    app.on_response_prepare.append(note_begun)
    app.on_cleanup.append(_end_workers)
    set_up_cors(app, config.cors)
    app.router.register_resource(TidyPaths(app.router))
    return app
