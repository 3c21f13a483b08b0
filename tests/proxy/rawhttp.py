"""HTTP over a plain socket, byte for byte: what no client library sends, and what comes back, split into answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from tests.peers.process import HOST
from tests.proxy.running import Proxy

SECONDS = 1.0
"""How soon an answer, or the end of the connection, has to come."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which must be JSON."""
        return json.loads(self.body)

    @property
    def is_error(self) -> bool:
        """True for the one form that errors have."""
        if not self.headers.get("content-type", "").startswith("application/json"):
            return False
        content = self.json
        return set(content) == {"error", "statusCode", "timestamp"} and content["statusCode"] == self.status


class Connection:
    """A connection to a server. `closed` is true when the server has ended it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.closed = False

    async def send(self, data: bytes | str) -> None:
        """Send bytes; a server that has closed does not matter."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(data.encode("latin-1") if isinstance(data, str) else data)
            await self._writer.drain()

    def end(self) -> None:
        """Say that there is no more to come."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    async def answer(self, seconds: float = SECONDS) -> Answer | None:
        """Read one answer; None where the server closes instead. Fails when neither comes in time."""
        async with asyncio.timeout(seconds):
            try:
                head = await self._reader.readuntil(b"\r\n\r\n")
                line, *fields = head.decode("latin-1").split("\r\n")[:-2]
                headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields)}
                return Answer(int(line.split(" ")[1]), headers, await self._body(headers))
            except asyncio.IncompleteReadError as error:
                assert error.partial == b"", "the answer is not whole"
                self.closed = True
            except ConnectionError:
                self.closed = True
        return None

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await self._reader.readexactly(int(headers.get("content-length", 0)))
        body = b""
        while size := int(await self._reader.readline(), 16):
            body += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return body

    async def answers(self, seconds: float = SECONDS) -> list[Answer]:
        """Read answers until the server closes, or until nothing came for so long."""
        found = []
        with contextlib.suppress(TimeoutError):
            while (answer := await self.answer(seconds)) is not None:
                found.append(answer)
        return found

    async def is_closed(self, seconds: float = SECONDS) -> bool:
        """Tell whether the server closes within so many seconds; nothing may come before."""
        with contextlib.suppress(TimeoutError):
            assert await self.answer(seconds) is None
        return self.closed


def port_of(proxy: Proxy) -> int:
    """Where the proxy listens for HTTP."""
    return int(proxy.url.rpartition(":")[2])


@contextlib.asynccontextmanager
async def connected(port: int, *, from_host: str | None = None) -> AsyncIterator[Connection]:
    """A connection to a port of this machine; `from_host` is another loopback address to come from."""
    local = None if from_host is None else (from_host, 0)
    reader, writer = await asyncio.open_connection(HOST, port, local_addr=local, limit=2**22)
    try:
        yield Connection(reader, writer)
    finally:
        if writer.transport.get_write_buffer_size():
            writer.transport.abort()  # nobody is to wait until it has gone out
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
