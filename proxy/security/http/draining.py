"""What of the answers has not gone out yet, for a proxy that is about to end.

Transports know it of plain connections. Of encrypted ones they know only what waits for encryption; what waits behind
that in the event loop, nothing tells. But it moves into the kernel's queue as soon as there is room, and that queue can
be looked at.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Iterable
from typing import Final

QUIET_LOOKS: Final = 3
"""How often the queues of encrypted connections must be found empty, with turns of the event loop in between."""

_NUMBER: Final = struct.Struct("i")


class Unsent:
    """What of the answers on some connections has not gone out."""

    def __init__(self, transports: Iterable[asyncio.Transport]) -> None:
        self._plain: list[asyncio.Transport] = []
        self._encrypted: list[asyncio.Transport] = []
        for each in transports:
            is_plain = each.get_extra_info("sslcontext") is None
            (self._plain if is_plain else self._encrypted).append(each)
        sockets = [each.get_extra_info("socket") for each in self._encrypted]  # None for one that is closed already
        self._queues = [_Queue(each.fileno()) for each in sockets if each is not None]
        self._quiet = 0

    def is_empty(self) -> bool:
        """Tell whether all has gone out; to be asked again some turns of the event loop later."""
        busy = any(queue.size() for queue in self._queues)
        self._quiet = 0 if busy else self._quiet + 1
        quiet = not self._queues or self._quiet >= QUIET_LOOKS
        return quiet and not any(each.get_write_buffer_size() for each in self._plain)

    def end(self) -> None:
        """End encrypted connections, of which some wait for the client to say that it has seen their end."""
        for each in self._encrypted:
            each.abort()


class _Queue:
    """The kernel's queue of one connection."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._identity = _identity(descriptor)

    def size(self) -> int:
        """Bytes that the other side has not acknowledged (SIOCOUTQ, tcp(7)); 0 when the connection is closed."""
        # Its descriptor is soon another file's then.
        if self._identity is None or _identity(self._descriptor) != self._identity:
            return 0
        return int(_NUMBER.unpack(fcntl.ioctl(self._descriptor, termios.TIOCOUTQ, _NUMBER.pack(0)))[0])


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino
