"""A data set on its way in: chunks as they arrive, read once, in order.

The association's channel puts chunks in; one reader takes them out. Unread bytes are counted, so that the channel
stops reading from the socket when its reader is slow. No data set is joined here, except by `read`, which is bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from dul import limits
from dul.errors import DulError, LocalProtocolError, RemoteProtocolError


class DataStream:
    """Async iterator over the bytes of one data set, as encoded on the wire.

    Its mutable state belongs to the event loop's thread. Iteration raises what ended the association when that
    happens before the last byte, and `PeerTimeout` when nothing comes for `idle_timeout` seconds.
    """

    __slots__ = ("_chunks", "_consumed", "_discarding", "_error", "_finished", "_wait", "_waiter", "size")

    def __init__(
        self,
        consumed: Callable[[int], None],
        wait: Callable[[asyncio.Future[None]], Awaitable[None]],
    ) -> None:
        self._consumed = consumed
        self._wait = wait
        self._chunks: deque[bytes] = deque()
        self._finished = False
        self._discarding = False
        self._error: DulError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.size = 0
        """Bytes received so far."""

    @property
    def finished(self) -> bool:
        """True once the last byte has been received (not: read)."""
        return self._finished

    @property
    def exhausted(self) -> bool:
        """True once the last byte has been read, or given up."""
        return self._finished and not self._chunks

    # --- the channel's side ----------------------------------------------------------------------------------

    def feed(self, chunk: bytes, *, last: bool) -> None:
        """Add bytes; empty ones only carry `last`."""
        self.size += len(chunk)
        self._finished = last
        if chunk and self._discarding:
            self._consumed(len(chunk))
        elif chunk:
            self._chunks.append(chunk)
        self._wake()

    def fail(self, error: DulError) -> None:
        """No more will come."""
        if not self._finished:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the reader's side -----------------------------------------------------------------------------------

    def __aiter__(self) -> DataStream:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._finished:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            if self._waiter is not None:
                raise LocalProtocolError("a data set has one reader")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._wait(self._waiter)
            finally:
                self._waiter = None
        chunk = self._chunks.popleft()
        self._consumed(len(chunk))
        return chunk

    async def read(self, limit: int = limits.MAX_IDENTIFIER) -> bytes:
        """The whole rest, for identifiers; `RemoteProtocolError` when it is more than `limit` bytes."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self:
            size += len(chunk)
            if size > limit:
                self.discard()
                raise RemoteProtocolError(f"an identifier of more than {limit} bytes")
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def discard(self) -> None:
        """Drop what is here and all that will come."""
        self._discarding = True
        dropped = sum(map(len, self._chunks))
        self._chunks.clear()
        if dropped:
            self._consumed(dropped)

    async def finish(self) -> None:
        """Drop the rest, and wait until its last byte has come: a response may follow only then."""
        self.discard()
        async for _ in self:
            pass
