"""The running proxy: start everything in order, serve until told to stop, drain, stop everything in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from proxy.app import build_app
from proxy.archive.archives import Archives
from proxy.archive.cache.files import StorageInUseError
from proxy.archive.errors import ArchiveError
from proxy.archive.peers.archive import Archive
from proxy.config_schema import Config
from proxy.dicomweb.streaming import reset

logger = logging.getLogger(__name__)

KEEPALIVE_SECONDS: Final = 75.0

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
    """Where a running proxy listens; `dimse_port` is None where nothing listens for C-STORE."""

    http_port: int
    dimse_port: int | None


@contextlib.asynccontextmanager
async def running(config: Config) -> AsyncIterator[Running]:
    """The proxy, for as long as the `async with` lasts.

    At its end it takes no more connections, gives requests `shutdown_seconds` to finish, cuts those that have not,
    and then ends the associations; C-STOREs are taken as long as requests may need them.

    Raises `StartError` when an address or port cannot be had, or the configuration needs what is not there.
    """
    check_supported(config)
    archives = Archives(config)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(archives.close, CUT_SECONDS)
        await _start_dimse(config, archives)
        runner = web.AppRunner(
            build_app(config, archives),
            handler_cancellation=True,
            # Never reached, and not 0, which aiohttp takes for "no limit": `_stop_http` keeps the bound.
            shutdown_timeout=config.shutdown_seconds + 60,
            keepalive_timeout=KEEPALIVE_SECONDS,
            access_log=None,
        )
        await runner.setup()
        stack.push_async_callback(_stop_http, runner, archives, config.shutdown_seconds)
        await _start_http(config, runner)
        greeting = asyncio.create_task(_greet(archives))
        stack.push_async_callback(_end, greeting)
        yield Running(runner.addresses[0][1], archives.port)


def check_supported(config: Config) -> None:
    """Raise `StartError` when the configuration asks for what this version does not have."""
    if config.unsupported:
        raise StartError("\n".join(str(problem) for problem in config.unsupported))


async def _start_dimse(config: Config, archives: Archives) -> None:
    assert config.dimse is not None
    server = config.dimse.proxy_server
    try:
        await archives.start()
    except OSError as error:
        raise StartError(_cannot_listen(error, server.ip, server.port, "dimseProxySettings.proxyServer")) from error
    except StorageInUseError as error:
        raise StartError(str(error)) from error
    if archives.port is not None:
        logger.info("DIMSE: AE title %s listens on %s port %d", server.aet, server.ip, archives.port)


async def _start_http(config: Config, runner: web.AppRunner) -> None:
    host, port = config.webserver_host, config.webserver_port
    try:
        await web.TCPSite(runner, host, port, backlog=512).start()
    except OSError as error:
        raise StartError(_cannot_listen(error, host, port, "webserverPort, webserverHost")) from error
    logger.info("HTTP: listens on %s port %d", host, runner.addresses[0][1])


def _cannot_listen(error: OSError, host: str, port: int, keys: str) -> str:
    reasons = {
        errno.EADDRINUSE: "another program uses that port",
        errno.EACCES: "ports below 1024 need the capability CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "this machine has no such address",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return f"cannot listen on {host} port {port} (keys: {keys}): {reason}"


async def _greet(archives: Archives) -> None:
    """Say at the start which archives answer; the proxy starts without them all the same."""
    await asyncio.gather(*map(_greet_one, archives.archives))


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


async def _stop_http(runner: web.AppRunner, archives: Archives, seconds: float) -> None:
    """Listen no more, close idle connections, let requests finish for `seconds`, then cut and cancel them."""
    server = runner.server
    assert server is not None
    for site in list(runner.sites):
        await site.stop()
    await asyncio.sleep(_POLL_SECONDS)  # it takes some turns of the loop until what was accepted is a connection
    transports = [each.transport for each in server.connections if each.transport is not None]
    finished = asyncio.create_task(_finish(runner, transports))
    await asyncio.wait([finished], timeout=seconds)
    if not finished.done():
        logger.warning("requests are still under way after %g s, and are cut", seconds)
        for transport in transports:
            reset(transport)  # cancels the handler
        await asyncio.wait([finished], timeout=CUT_SECONDS)
        archives.abort()
        await asyncio.wait([finished], timeout=ABORT_SECONDS)
    await _end(finished)


async def _finish(runner: web.AppRunner, transports: Sequence[asyncio.Transport]) -> None:
    """Return when every request is answered and every byte of the answers has gone out."""
    await runner.cleanup()
    # A handler is done when its last bytes are in the transport's buffer, and a slow client has yet to take them.
    while any(transport.get_write_buffer_size() for transport in transports):  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(_POLL_SECONDS)


async def serve_until_stopped(config: Config, ready: Callable[[Running], None] | None = None) -> None:
    """Run the proxy until SIGTERM or SIGINT, which are ignored from then on: the process is to end by itself."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        async with running(config) as where:
            if ready is not None:
                ready(where)
            await stop.wait()
            logger.info("stopping; requests under way have %g s to finish", config.shutdown_seconds)
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
    logger.info("stopped")
