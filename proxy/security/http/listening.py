"""Listening for HTTP connections, with a limit on their number, of all clients and of one (keys `limits.connections`,
`connectionsPerClient`).

Connections are accepted here and not by the event loop, so that one too many is closed before it costs anything:
above all no TLS handshake. What then speaks HTTP is in `connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
import sys
from collections.abc import Iterable
from typing import Any, Final

from aiohttp import web

from dul.handshake import describe_failure
from proxy.addresses import Network, is_in, parse_address
from proxy.config.schema import Config
from proxy.config.security import HttpLimits
from proxy.dicomweb.streaming import CLIENT_STALL_SECONDS
from proxy.logs import SparingLog
from proxy.security.http.connection import Connection, Rules
from proxy.security.http.places import Full, Place, Places

logger = logging.getLogger(__name__)

BACKLOG: Final = 512
"""Connections that the system keeps until they are accepted: a restart under load refuses none."""

ACCEPTS_AT_ONCE: Final = 32
"""Then the event loop has its turn: a flood of connections is not to hold up answers."""

PAUSE_SECONDS: Final = 1.0
"""How long nothing is accepted when that has failed: descriptors are short, and trying again at once does not help."""

DESCRIPTORS_PER_REQUEST: Final = 3
"""A file, its twin, and an association."""

OTHER_DESCRIPTORS: Final = 256
"""Logs, the index of the cache, workers that render, associations that archives make."""

HANDSHAKE_SECONDS: Final = 10.0
"""For a TLS handshake, which takes tenths of a second; a client that is silent holds a connection."""

TLS_END_SECONDS: Final = CLIENT_STALL_SECONDS
"""How long a client may take for the last bytes of an answer behind which the connection is closed, half a MiB at most,
and to say that it has seen the end (close_notify)."""

NO_ACKNOWLEDGEMENT_SECONDS: Final = CLIENT_STALL_SECONDS + 30
"""How long a client may take nothing of what was sent, after which the system ends the connection (RFC 5482). It holds
for what handlers do not wait for: the last bytes of an answer. They wait less long, and say so in the log."""


def allow_descriptors(limits: HttpLimits) -> None:
    """Let this process have as many files and sockets open as the limits ask for, as far as the system allows it.

    Without a descriptor, not only is nobody accepted: nothing that is open can be served either.
    """
    wanted = limits.connections + DESCRIPTORS_PER_REQUEST * limits.requests + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, most), hard))
    if most < wanted:
        logger.warning(
            "the system allows %d open files (LimitNOFILE, ulimit -n), and limits.connections with limits.requests "
            "may need %d",
            most,
            wanted,
        )


class Door:
    """Who may come in: the places for connections, the rules for them, and what is logged of those who found none."""

    def __init__(self, config: Config) -> None:
        limits = config.limits
        self.places: Final = Places(limits.connections, limits.connections_per_client)
        # Bodies that are handed on to another server keep the coding that they come in.
        self.rules: Final = Rules(limits.header_seconds, config.proxy_mode == "dimse", SparingLog(logger))
        self._trusted: tuple[Network, ...] = config.trusted_proxies
        self._log = SparingLog(logger)
        self._tls_log = SparingLog(logger)

    def enter(self, peer: str) -> Place | None:
        """A place for a connection from that address; None where it is to be closed.

        Trusted proxies stand for many clients, and are not counted as one.
        """
        address = parse_address(peer)
        place = self.places.take(None if is_in(address, self._trusted) else address)
        if not isinstance(place, Full):
            return place
        key = "connectionsPerClient" if place is Full.FOR_CLIENT else "connections"
        self._log.warning(f"{peer}: a connection was closed, there are as many as there may be (key: limits.{key})")
        return None

    def complain_of_tls(self, peer: str, error: OSError) -> None:
        """Say that a TLS handshake failed, and why; not of those who left within it, as some health checks do."""
        if not isinstance(error, ConnectionResetError):
            self._tls_log.warning(f"{peer}: no TLS connection: {describe_failure(error)}")

    def complain(self, error: OSError) -> None:
        """Say that the system gives no connections."""
        self._log.warning(f"cannot accept connections: {error.strerror}")


class Site(web.BaseSite):
    """Takes connections to a host and port, as `web.TCPSite` does, as far as `Door` lets them in."""

    def __init__(
        self,
        runner: web.BaseRunner,
        door: Door,
        host: str,
        port: int,
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(runner, ssl_context=ssl_context, backlog=BACKLOG)
        self._door = door
        self._host = host
        self._port = port

    def use_tls(self, context: ssl.SSLContext) -> None:
        """Speak TLS by another context from the next connection on; for a site that was made with one."""
        self._ssl_context = context
        if isinstance(self._server, _Listener):
            self._server.use_tls(context)

    @property
    def name(self) -> str:
        """For people."""
        return f"{'https' if self._ssl_context else 'http'}://{self._host}:{self._port}"

    async def start(self) -> None:
        """Begin to listen. Raises OSError where that address cannot be had."""
        await super().start()
        server = self._runner.server
        assert server is not None
        listener = _Listener(server, self._door, self._ssl_context)
        await listener.listen(self._host, self._port)
        self._server = listener


class _Listener(asyncio.AbstractServer):
    """The sockets that listen, and the connections that are not yet a protocol's: those in a TLS handshake."""

    def __init__(self, server: web.Server, door: Door, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._door = door
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._sockets: list[socket.socket] = []

    def use_tls(self, context: ssl.SSLContext) -> None:
        self._context = context

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """Those that listen."""
        return tuple(self._sockets)

    async def listen(self, host: str, port: int) -> None:
        infos = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, address in dict.fromkeys((info[0], info[4]) for info in infos):
                self._sockets.append(_listening(family, address))
        except OSError:
            self.close()
            raise
        for each in self._sockets:
            self._loop.add_reader(each, self._accept, each)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connection, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listener, error)
                return
            place = self._door.enter(peer[0])
            if place is None:
                connection.close()
            else:
                self._open(connection, place, peer[0])

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        self._door.complain(error)
        self._loop.remove_reader(listener)
        self._pauses[listener] = self._loop.call_later(PAUSE_SECONDS, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        del self._pauses[listener]
        self._loop.add_reader(listener, self._accept, listener)

    def _open(self, connection: socket.socket, place: Place, peer: str) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError, AttributeError):  # it may be gone already; only Linux has this
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(NO_ACKNOWLEDGEMENT_SECONDS * 1000))
        task = self._loop.create_task(self._hand_over(connection, place, peer))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _hand_over(self, connection: socket.socket, place: Place, peer: str) -> None:
        """Make an accepted socket a connection of the server's, after the handshake where there is TLS."""
        times: dict[str, Any] = {}
        if self._context is not None:
            times = {"ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": TLS_END_SECONDS}
        try:
            await self._loop.connect_accepted_socket(
                lambda: Connection(self._server, place, self._door.rules),
                connection,
                ssl=self._context,
                **times,
            )
        except OSError as error:  # ssl.SSLError and TimeoutError among them
            place.free()
            self._door.complain_of_tls(peer, error)
        except BaseException:
            place.free()
            raise

    def close(self) -> None:
        """Listen no more, and end handshakes under way."""
        for pause in self._pauses.values():
            pause.cancel()
        for each in self._sockets:
            self._loop.remove_reader(each)
            each.close()
        self._sockets.clear()
        if self._context is not None:
            # Not at once: a task that has not begun would drop its socket without closing it.
            self._loop.call_soon(_cancel_all, tuple(self._opening))

    async def wait_closed(self) -> None:
        """Return when nothing is being opened any more."""
        await asyncio.gather(*self._opening, return_exceptions=True)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return bool(self._sockets)

    async def start_serving(self) -> None:
        """It does from the beginning."""

    async def serve_forever(self) -> None:
        """For programs that have nothing else to do."""
        await asyncio.get_running_loop().create_future()


def _listening(family: int, address: Any) -> socket.socket:
    listener = socket.create_server(address, family=family, backlog=BACKLOG)
    listener.setblocking(False)
    return listener


def _cancel_all(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
