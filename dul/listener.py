"""Listening TCP sockets: bound, accepted from, closed. What becomes of an accepted socket is its owner's business.

asyncio's own server is not used for this: a connection that arrives while it closes is lost with its socket open,
and those within a TLS handshake can neither be counted nor ended.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from dul import limits

logger = logging.getLogger("dul")

_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class Listener:
    """Calls `arrived` with each accepted socket, which is non-blocking, and its peer's address."""

    def __init__(self, arrived: Callable[[socket.socket, str], None]) -> None:
        self._arrived = arrived
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._pauses: set[asyncio.TimerHandle] = set()

    @property
    def port(self) -> int:
        """The port of the first address."""
        return int(self._sockets[0].getsockname()[1])

    async def open(self, host: str, port: int) -> None:
        """Listen on every address of `host`, on all interfaces if it is empty; `OSError` when that cannot be had.

        Port 0 takes any free one. An address of a family that this machine does not have, as often `::1` of
        `localhost`, is left out unless it is the only one.
        """
        found = await self._loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        missing: OSError | None = None
        try:
            for family, address in dict.fromkeys((info[0], info[4]) for info in found):
                try:
                    self._sockets.append(socket.create_server(address, family=family, backlog=limits.LISTEN_BACKLOG))
                except OSError as error:
                    if error.errno not in _NO_SUCH_FAMILY:
                        raise
                    missing = error
            if missing is not None and not self._sockets:
                raise missing
        except BaseException:
            self.close()
            raise
        for listening in self._sockets:
            listening.setblocking(False)
            self._loop.add_reader(listening, self._readable, listening)

    def close(self) -> None:
        """Listen no more. May be called twice."""
        for pause in self._pauses:
            pause.cancel()
        for listening in self._sockets:
            self._loop.remove_reader(listening)
            listening.close()
        self._sockets.clear()

    def _readable(self, listening: socket.socket) -> None:
        for _ in range(limits.ACCEPTED_AT_ONCE):
            try:
                accepted, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listening, error)
                return
            accepted.setblocking(False)
            self._arrived(accepted, str(address[0]))

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        logger.error("no connection can be accepted for %g s: %s", limits.ACCEPT_PAUSE, error)
        self._loop.remove_reader(listening)

        def resume() -> None:
            self._pauses.discard(handle)
            self._loop.add_reader(listening, self._readable, listening)

        handle = self._loop.call_later(limits.ACCEPT_PAUSE, resume)
        self._pauses.add(handle)
