"""Routes and middlewares, and nothing else: all that the server answers, on one page."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.typedefs import Handler

from proxy.archive.archives import Archives
from proxy.archive.cache.depot import MEGABYTE
from proxy.config.schema import Config
from proxy.dicomweb import bulkdata, capabilities, frames, metadata, qido, rendered, stow, wado, wadouri
from proxy.dicomweb.attributes import Resource
from proxy.dicomweb.errors import Truncated, error_response, response_for
from proxy.dicomweb.keys import ARCHIVES, PUBLIC_URL, WORKERS
from proxy.dicomweb.streaming import has_begun, note_begun, reset, wait_for_handler
from proxy.dicomweb.tidypaths import TidyPaths
from proxy.forward import handler as forwarding
from proxy.forward.upstream import UPSTREAM, Upstream
from proxy.render.pool import Workers
from proxy.security.audit.middleware import RECORDER, record_access, set_up_audit
from proxy.security.audit.notes import notes_of
from proxy.security.auth.middleware import check_access, set_up_access
from proxy.security.clients import TRUSTED_PROXIES
from proxy.security.http.connection import name_server
from proxy.security.http.contents import make_inert
from proxy.security.http.cors import answer_preflight, set_up_cors
from proxy.security.http.limits import limit_requests, set_up_limits
from proxy.security.http.redirect import redirect_to_https, set_up_https
from proxy.security.http.requests import check_request
from proxy.security.paths import path_template
from proxy.web import cache, health, page

logger = logging.getLogger(__name__)

RENDERED: Final = (
    "/studies/{study}",
    "/studies/{study}/series/{series}",
    "/studies/{study}/series/{series}/instances/{instance}",
    "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}",
)

OWN_ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("GET", "/", page.status_page),
    ("GET", "/ping", health.ping),
    ("GET", "/health", health.health),
    ("GET", "/status", health.status),
)
"""What the proxy answers by itself in both modes."""

ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    *OWN_ROUTES,
    ("GET", capabilities.PATH, capabilities.retrieve),
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
"""What it answers in dimse mode."""

FORWARDED: Final = "/{path:(?!(?:" + "|".join(path[1:] for _, path, _ in OWN_ROUTES) + r")\Z)[\s\S]*}"
"""In dicomweb mode, every other path, whatever the method, is the upstream's."""

UPLOADS: Final[tuple[Handler, ...]] = (stow.store, forwarding.forward)
"""Handlers of uploads, which answer `Expect: 100-continue` themselves."""

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
        notes_of(request).failure = error
        gone = request.transport is None or request.transport.is_closing()
        if gone and isinstance(error, ConnectionError | Truncated):
            return web.Response()  # for nobody: the client has left, or was cut off on purpose
        response = response_for(error)
        if response is None:
            logger.exception("%s failed", path_template(request) or "a request to an unknown path")
            response = error_response(500, "the proxy failed for a reason of its own; its log says more")
        if has_begun(request) and request.transport is not None:
            reset(request.transport)  # no second answer behind the first
        return response


def build_app(config: Config, behind: Archives | Upstream) -> web.Application:
    """The application: in front of archives (dimse mode), or of another DICOMweb server (dicomweb mode)."""
    first = [record_access, errors, check_request, redirect_to_https]
    middlewares = [*first, answer_preflight, limit_requests, check_access]
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY)
    app[PUBLIC_URL] = config.public_url or ""
    app[TRUSTED_PROXIES] = config.trusted_proxies
    set_up_audit(app, config)
    app[health.PROXY_MODE] = config.proxy_mode
    app[health.STARTED] = time.monotonic()
    if isinstance(behind, Archives):
        _serve_archives(app, config, behind)
    else:
        _forward_to(app, behind)
    app.on_response_prepare.extend([note_begun, name_server])
    set_up_https(app, config)
    set_up_limits(app, config.limits)
    set_up_access(app, config)
    set_up_cors(app, config.cors)
    if isinstance(behind, Archives):
        app.router.register_resource(TidyPaths(app.router))
    return app


def _serve_archives(app: web.Application, config: Config, archives: Archives) -> None:
    app.middlewares.extend([capabilities.answer_options, capabilities.check_parameters])
    app.on_response_prepare.append(make_inert)
    app[ARCHIVES] = archives
    if RECORDER in app:
        archives.inbox.on_refusal = app[RECORDER].trail.caller_refused
    app[WORKERS] = Workers()
    app[qido.SETTINGS] = qido.QidoSettings(config.qido_append_wildcard, config.qido_min_chars)
    app[stow.MAX_UPLOAD] = config.max_upload_mb * MEGABYTE
    app[capabilities.CAPABILITIES] = capabilities.Capabilities((method, path) for method, path, _ in ROUTES)
    _add_routes(app, ROUTES)
    app.on_cleanup.append(_end_workers)


def _forward_to(app: web.Application, upstream: Upstream) -> None:
    app.middlewares.append(forwarding.answer_options)
    app[UPSTREAM] = upstream
    _add_routes(app, (*OWN_ROUTES, ("*", FORWARDED, forwarding.forward)))


def _add_routes(app: web.Application, routes: Sequence[tuple[str, str, Handler]]) -> None:
    resources = {path: app.router.add_resource(path) for path in dict.fromkeys(path for _, path, _ in routes)}
    for method, path, handler in routes:
        resources[path].add_route(method, handler, expect_handler=wait_for_handler if handler in UPLOADS else None)


async def _end_workers(app: web.Application) -> None:
    await app[WORKERS].close()
