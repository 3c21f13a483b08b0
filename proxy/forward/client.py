"""aiohttp's client with what it leaves out.

Bodies that go out in the end, answers whose end is their real end, and no answer that is another's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Final

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

CONTINUE_SECONDS: Final = 2.0
"""How long a client's body waits for 100 (Continue) from an upstream that may not know of it (RFC 9110 10.1.1)."""


class Answer(aiohttp.ClientResponse):
    """An answer that is read to its end, or raises."""

    _ended: asyncio.Future[None] | None = None

    def watch(self, connection: Connection) -> None:
        """Note when the connection ends, and how; before anything is read from it."""
        self._ended = connection.protocol.closed if connection.protocol is not None else None
        if self._ended is not None:
            self._ended.add_done_callback(self._note_end)

    async def pieces(self, idle: float) -> AsyncGenerator[bytes, None]:
        """The body, as it arrives. Raises `aiohttp.ClientError`, and `TimeoutError` when nothing comes for `idle` s."""
        while True:
            async with asyncio.timeout(idle):
                piece = await self.content.readany()
            if not piece:
                break
            yield piece
        failure = _failure_of(self._ended)
        if failure is not None and self._ends_with_connection:
            raise aiohttp.ClientPayloadError from failure  # for aiohttp, a reset is as good an end as any

    def end(self) -> None:
        """Drop what is left of it."""
        if self._ended is not None:
            self._ended.remove_done_callback(self._note_end)
            # Once for each connection, that asyncio has nothing to say when it ends by a failure while it is idle.
            self._ended.remove_done_callback(_failure_of)
            self._ended.add_done_callback(_failure_of)
        self.close()

    @property
    def _ends_with_connection(self) -> bool:
        """True where the body has neither length nor chunks (RFC 9112 6.3, case 8)."""
        return "Content-Length" not in self.headers and "Transfer-Encoding" not in self.headers

    def _note_end(self, ended: asyncio.Future[None]) -> None:
        # aiohttp does not tell who reads the body when the reason is that the body is badly framed.
        failure = _failure_of(ended)
        content: aiohttp.StreamReader | None = self.content
        if content is not None and not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError(str(failure or "the connection has ended")))


class Request(aiohttp.ClientRequest):
    """A request whose body goes out in the end, also to an upstream that never says 100 (Continue).

    One that ends with bytes still to be sent is cut: to close the connection would be to wait until they are taken.
    """

    def update_expect_continue(self, expect: bool = False) -> None:
        """Wait for 100 (Continue) no longer than `CONTINUE_SECONDS`."""
        super().update_expect_continue(expect)
        if self._continue is not None:
            self.loop.call_later(CONTINUE_SECONDS, _go_on, self._continue)

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Begin to send the request, and watch the connection until its answer has been read."""
        if conn.transport is not None:
            conn.add_callback(partial(_abort_unsent, conn.transport))
        answer = await super().send(conn)
        if isinstance(answer, Answer):
            answer.watch(conn)
        return answer


class Connector(aiohttp.TCPConnector):
    """Keeps connections, but uses none again on which something came that nobody had asked for (RFC 9112 9.2).

    For aiohttp that is the answer to the next request, whosever that is.
    """

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            if connection.protocol is not None and not connection.protocol.should_close:
                return connection
            connection.close()
        return None


def _failure_of(ended: asyncio.Future[None] | None) -> BaseException | None:
    """How a connection has failed; None while it lasts, and when it was closed in order."""
    return ended.exception() if ended is not None and ended.done() and not ended.cancelled() else None


def _go_on(waiting: asyncio.Future[bool]) -> None:
    if not waiting.done():
        waiting.set_result(True)


def _abort_unsent(transport: asyncio.Transport) -> None:
    if transport.get_write_buffer_size():
        transport.abort()
