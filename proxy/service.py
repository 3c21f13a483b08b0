"""The running proxy: start everything in order, serve until told to stop, drain, stop everything in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from proxy.app import build_app
from proxy.archive.archives import Archives
from proxy.archive.cache.files import StorageInUseError
from proxy.archive.errors import ArchiveError
from proxy.archive.peers.archive import Archive
from proxy.archive.retrieval.listeners import ListenError
from proxy.config.schema import Config
from proxy.dicomweb.streaming import reset
from proxy.forward.errors import UpstreamSettingsError
from proxy.forward.upstream import Upstream
from proxy.reloading import Reloads
from proxy.security.audit.middleware import RECORDER
from proxy.security.audit.trail import AuditError
from proxy.security.auth.errors import AuthSettingsError, MissingLibraryError
from proxy.security.http.connection import Connection
from proxy.security.http.draining import Unsent
from proxy.security.http.listening import Door, Site, allow_descriptors
from proxy.security.tls.https import CertificateKeeper, https_files, https_url

logger = logging.getLogger(__name__)

CUT_SECONDS: Final = 0.5
"""How long requests that were cut at the end have to say C-CANCEL, and how long idle associations have to be
released; an archive that does not listen gets an abort then."""

ABORT_SECONDS: Final = 1.1
"""How long until such an association is gone, which takes `dul` a second at most."""

_POLL_SECONDS: Final = 0.02

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StartError(Exception):
    """The proxy cannot start as it is configured."""


@dataclass(frozen=True, slots=True)
class Running:
    """Where a running proxy listens; `dimse_port` is None where nothing listens for C-STORE, `https_port` without
    HTTPS."""

    http_port: int
    dimse_port: int | None
    https_port: int | None


@contextlib.asynccontextmanager
async def running(config: Config, reloads: Reloads | None = None) -> AsyncIterator[Running]:
    """The proxy, for as long as the `async with` lasts. What can be read anew meanwhile is added to `reloads`.

    At its end it takes no more connections, gives requests `shutdown_seconds` to finish, cuts those that have not,
    and then ends the associations; C-STOREs are taken as long as requests may need them.

    Raises `StartError` when an address or port cannot be had, or the configuration needs what is not there, and
    `CertificateError` when HTTPS has no certificate that can be used.
    """
    check_supported(config)
    reloads = reloads or Reloads()
    keeper = CertificateKeeper(https_files(config)) if config.ssl.enabled else None
    context = await keeper.load() if keeper is not None else None
    behind = _what_is_behind(config)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(behind.close, CUT_SECONDS)
        await _start_behind(config, behind)
        app = _app(config, behind)
        runner = web.AppRunner(
            app,
            handler_cancellation=True,
            # Never reached, and not 0, which aiohttp takes for "no limit": `_stop_http` keeps the bound.
            shutdown_timeout=config.shutdown_seconds + 60,
        )
        await runner.setup()
        stack.push_async_callback(_stop_http, runner, behind.abort, config.shutdown_seconds)
        door = Door(config)
        await _start_http(config, runner, door)
        if keeper is not None and context is not None:
            keeper.use = (await _start_https(config, runner, door, context)).use_tls
            reloads.add(keeper.reload)
            stack.push_async_callback(_end, asyncio.create_task(keeper.watch()))
        _add_reloads(reloads, config, behind, app)
        stack.push_async_callback(_end, asyncio.create_task(reloads.run()))
        greeting = asyncio.create_task(_greet(behind))
        stack.push_async_callback(_end, greeting)
        yield Running(runner.addresses[0][1], behind.port, config.ssl.port if config.ssl.enabled else None)


def check_supported(config: Config) -> None:
    """Raise `StartError` when the configuration asks for what this version does not have."""
    if config.unsupported:
        raise StartError("\n".join(str(problem) for problem in config.unsupported))


def _app(config: Config, behind: Archives | Upstream) -> web.Application:
    try:
        return build_app(config, behind)
    except (AuditError, AuthSettingsError, MissingLibraryError) as error:
        raise StartError(str(error)) from error


def _what_is_behind(config: Config) -> Archives | Upstream:
    if config.proxy_mode == "dimse":
        return Archives(config)
    try:
        return Upstream(config)
    except UpstreamSettingsError as error:
        raise StartError(str(error)) from error


async def _start_behind(config: Config, behind: Archives | Upstream) -> None:
    if isinstance(behind, Archives):
        await _start_dimse(config, behind)
    else:
        await behind.start()
        logger.info("requests are forwarded to %s", " and ".join(map(str, behind.bases.all)))


async def _start_dimse(config: Config, archives: Archives) -> None:
    assert config.dimse is not None
    server = config.dimse.proxy_server
    try:
        await archives.start()
    except ListenError as error:
        raise StartError(_cannot_listen(error, error.host, error.port, error.key)) from error
    except StorageInUseError as error:
        raise StartError(str(error)) from error
    if archives.port is not None:
        logger.info("DIMSE: AE title %s listens on %s port %d", server.aet, server.ip, archives.port)


async def _start_http(config: Config, runner: web.AppRunner, door: Door) -> None:
    host, port = config.webserver_host, config.webserver_port
    try:
        allow_descriptors(config.limits)
        await Site(runner, door, host, port).start()
    except OSError as error:
        raise StartError(_cannot_listen(error, host, port, "webserverPort, webserverHost")) from error
    what = ", and sends clients to HTTPS" if config.ssl.redirect_http else ""
    logger.info("HTTP: listens on %s port %d%s", host, runner.addresses[0][1], what)


async def _start_https(config: Config, runner: web.AppRunner, door: Door, context: ssl.SSLContext) -> Site:
    host, port = config.webserver_host, config.ssl.port
    site = Site(runner, door, host, port, ssl_context=context)
    try:
        await site.start()
    except OSError as error:
        raise StartError(_cannot_listen(error, host, port, "ssl.port, webserverHost")) from error
    logger.info("HTTPS: listens on %s port %d, as %s", host, port, https_url(config))
    return site


def _add_reloads(reloads: Reloads, config: Config, behind: Archives | Upstream, app: web.Application) -> None:
    """Have read anew, beside the certificate of HTTPS, those of DICOM TLS, and a file of audit lines that was moved."""
    dimse = config.dimse
    if isinstance(behind, Archives) and dimse and (dimse.proxy_server.tls or any(peer.tls for peer in dimse.peers)):
        reloads.add(behind.reload_certificates)
    if RECORDER in app:
        reloads.add(app[RECORDER].trail.reopen)


def _cannot_listen(error: OSError, host: str, port: int, keys: str) -> str:
    reasons = {
        errno.EADDRINUSE: "another program uses that port",
        errno.EACCES: "ports below 1024 need the capability CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "this machine has no such address",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return f"cannot listen on {host} port {port} (keys: {keys}): {reason}"


async def _greet(behind: Archives | Upstream) -> None:
    """Say at the start what answers; the proxy starts without it all the same."""
    if isinstance(behind, Archives):
        await asyncio.gather(*map(_greet_one, behind.archives))
        return
    await behind.check()
    for health in behind.healths:
        if health.is_up:
            logger.info("%s answers", health.base)
        else:
            logger.warning("%s does not answer yet: %s", health.base, health.last_error)


async def _greet_one(archive: Archive) -> None:
    try:
        seconds = await archive.echo()
    except ArchiveError:
        logger.warning("%s does not answer yet; it is tried again by itself", archive.name)
    else:
        logger.info("%s answers (C-ECHO in %.0f ms)", archive.name, seconds * 1000)


# --- the end -------------------------------------------------------------------------------------------------


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _stop_http(runner: web.AppRunner, abort: Callable[[], None], seconds: float) -> None:
    """Listen no more, close idle connections, let requests finish for `seconds`, then cut and cancel them.

    `abort` ends what they wait for.
    """
    server = runner.server
    assert server is not None
    for site in list(runner.sites):
        await site.stop()
    await asyncio.sleep(_POLL_SECONDS)  # it takes some turns of the loop until what was accepted is a connection
    transports = [each.transport for each in server.connections if each.transport is not None]
    finished = asyncio.create_task(_finish(runner, Unsent(transports)))
    await asyncio.wait([finished], timeout=seconds)
    if not finished.done():
        logger.warning("requests are still under way after %g s, and are cut", seconds)
        for transport in transports:
            reset(transport)  # cancels the handler
        await asyncio.wait([finished], timeout=CUT_SECONDS)
        abort()
        await asyncio.wait([finished], timeout=ABORT_SECONDS)
    await _end(finished)


async def _finish(runner: web.AppRunner, unsent: Unsent) -> None:
    """Return when every request is answered and every byte of the answers has gone out."""
    assert runner.server is not None
    connections = [each for each in runner.server.connections if isinstance(each, Connection)]
    await asyncio.gather(*(each.close_behind_body() for each in connections))
    await runner.cleanup()
    # A handler is done when its last bytes are in the transport's buffer, and a slow client has yet to take them.
    while not unsent.is_empty():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(_POLL_SECONDS)
    unsent.end()


async def serve_until_stopped(config: Config, ready: Callable[[Running], None] | None = None) -> None:
    """Run the proxy until SIGTERM or SIGINT, which are ignored from then on: the process is to end by itself.

    At SIGHUP it reads anew what can be read anew while it runs.
    """
    stop = asyncio.Event()
    reloads = Reloads()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reloads.ask)
    try:
        async with running(config, reloads) as where:
            if ready is not None:
                ready(where)
            await stop.wait()
            logger.info("stopping; requests under way have %g s to finish", config.shutdown_seconds)
    finally:
        for number in (*_STOP_SIGNALS, signal.SIGHUP):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
    logger.info("stopped")
