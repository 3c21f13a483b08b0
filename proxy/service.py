"""The running proxy: start everything in order, serve until told to stop, drain, stop everything in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from proxy.app import build_app
from proxy.archive.archives import Archives
from proxy.archive.errors import ArchiveError
from proxy.config_schema import Config

logger = logging.getLogger(__name__)

KEEPALIVE_SECONDS: Final = 75.0


class StartError(Exception):
    """The proxy cannot start as it is configured."""


@dataclass(frozen=True, slots=True)
class Running:
    """Where a running proxy listens; `dimse_port` is None where nothing listens for C-STORE."""

    http_port: int
    dimse_port: int | None


@contextlib.asynccontextmanager
async def running(config: Config) -> AsyncIterator[Running]:
    """The proxy, for as long as the `async with` lasts; at its end requests get `shutdown_seconds` to finish.

    Raises `StartError` when an address or port cannot be had, or the configuration needs what is not there.
    """
    if config.unsupported:
        raise StartError("\n".join(str(problem) for problem in config.unsupported))
    assert config.dimse is not None
    archives = Archives(config.dimse, listen=config.uses_cmove)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(archives.close)
        await _start_dimse(config, archives)
        runner = web.AppRunner(
            build_app(config, archives),
            handler_cancellation=True,
            shutdown_timeout=config.shutdown_seconds,
            keepalive_timeout=KEEPALIVE_SECONDS,
            access_log=None,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await _start_http(config, runner)
        greeting = asyncio.create_task(_greet(archives))
        stack.callback(greeting.cancel)
        yield Running(runner.addresses[0][1], archives.port)


async def _start_dimse(config: Config, archives: Archives) -> None:
    assert config.dimse is not None
    server = config.dimse.proxy_server
    try:
        await archives.start()
    except OSError as error:
        raise StartError(_cannot_listen(error, server.ip, server.port, "dimseProxySettings.proxyServer")) from error
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
    for archive in archives.archives:
        try:
            seconds = await archive.echo()
        except ArchiveError:
            logger.warning("%s does not answer yet; it will be asked again with each request", archive.name)
        else:
            logger.info("%s answers (C-ECHO in %.0f ms)", archive.name, seconds * 1000)


async def serve_until_stopped(config: Config, ready: Callable[[Running], None] | None = None) -> None:
    """Run the proxy until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config) as where:
        if ready is not None:
            ready(where)
        await stop.wait()
        logger.info("stopping; requests under way have %g s to finish", config.shutdown_seconds)
    logger.info("stopped")
