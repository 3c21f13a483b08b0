"""An instance between its C-STORE and its reader: a bounded buffer in memory.

The C-STORE side puts chunks in and waits when `BUFFER_LIMIT` bytes are unread, which holds the archive back through
TCP; the reader takes them out at its own pace. The data set's bytes pass as they came.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

from proxy.archive.errors import ArchiveError

BUFFER_LIMIT: Final = 2 * 1024 * 1024
"""Unread bytes of one instance at which its C-STORE waits: enough for the archive to send on while a chunk is
written to the client, little enough that many retrievals fit into memory."""


@dataclass(frozen=True, slots=True)
class InstanceInfo:
    """What is known of an instance before its data set is read: from the command, the context, and the first bytes.

    `study` and `series` are None where the data set's beginning does not tell.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: str
    study: str | None
    series: str | None

    @property
    def key(self) -> tuple[str, str]:
        """Series (empty where not known) and SOP instance UID, which tell instances of one study apart."""
        return self.series or "", self.sop_instance_uid


class ArrivingInstance:
    """One instance on its way, with one writer and one reader."""

    __slots__ = ("_chunks", "_error", "_finished", "_room", "_unread", "_waiter", "info", "size")

    def __init__(self, info: InstanceInfo) -> None:
        self.info = info
        self.size = 0
        """Bytes put in so far."""
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._finished = False
        self._error: ArchiveError | None = None
        self._waiter: asyncio.Future[None] | None = None  # the reader's
        self._room: asyncio.Future[None] | None = None  # the writer's

    @property
    def unread(self) -> int:
        """Bytes put in and not taken out."""
        return self._unread

    @property
    def is_held_back(self) -> bool:
        """True while the writer waits for the reader."""
        return self._room is not None

    # --- the writer's side -----------------------------------------------------------------------------------

    async def put(self, chunk: bytes) -> None:
        """Add bytes; waits while too many are unread. Raises what failed the instance meanwhile."""
        while self._unread >= BUFFER_LIMIT and self._error is None:
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None
        if self._error is not None:
            raise self._error
        self._chunks.append(chunk)
        self._unread += len(chunk)
        self.size += len(chunk)
        _wake(self._waiter)

    def finish(self) -> None:
        """The data set is whole."""
        self._finished = True
        _wake(self._waiter)

    def fail(self, error: ArchiveError) -> None:
        """The rest will not come; both sides are told."""
        if not self._finished and self._error is None:
            self._error = error
            _wake(self._waiter)
            _wake(self._room)

    # --- the reader's side -----------------------------------------------------------------------------------

    def __aiter__(self) -> ArrivingInstance:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._finished:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = self._chunks.popleft()
        self._unread -= len(chunk)
        if self._unread < BUFFER_LIMIT:
            _wake(self._room)
        return chunk


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
