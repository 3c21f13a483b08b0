"""HTTP clients that cost next to nothing, so that what is measured is the server.

HTTP/1.1 over plain TCP with GET only. Nothing is kept of large bodies, and they are not taken apart.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

BUFFER = 1 << 20
TIMEOUT = 120.0
# A first byte that is only a boundary line would say little: this much of the body counts as "the first byte".
FIRST_PART = 64 * 1024


class BenchmarkError(Exception):
    """A server answered something that makes a measurement worthless."""


@dataclass(frozen=True, slots=True)
class Download:
    """A body that was read to its end: bytes as they came over the wire, and seconds since the request."""

    size: int
    first: float
    total: float


@dataclass(frozen=True, slots=True)
class Target:
    """A server's address and the path that its DICOMweb resources are under."""

    host: str
    port: int
    root: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Take `http://host:port/root` apart."""
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"{url}: a plain http URL is needed")
        return cls(parts.hostname, parts.port or 80, parts.path.rstrip("/"))

    def request(self, path: str, accept: str, *, close: bool = False) -> bytes:
        """Return the bytes of a GET request for a path below the root."""
        connection = "close" if close else "keep-alive"
        head = f"GET {self.root}{path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
        return f"{head}Accept: {accept}\r\nConnection: {connection}\r\n\r\n".encode()

    def connect(self) -> socket.socket:
        """Open a TCP connection to it."""
        connection = socket.create_connection((self.host, self.port), timeout=TIMEOUT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
JSON = "application/dicom+json"


def download(target: Target, path: str) -> Download:
    """Get a multipart answer and count its bytes. Raises BenchmarkError unless it is a whole 200."""
    buffer = memoryview(bytearray(BUFFER))
    with target.connect() as connection:
        start = time.perf_counter()
        connection.sendall(target.request(path, DICOM, close=True))
        head = b""
        while b"\r\n\r\n" not in head:
            received = connection.recv(BUFFER)
            if not received:
                raise BenchmarkError(f"connection closed within the head of {path}")
            head += received
        header, _, body = head.partition(b"\r\n\r\n")
        if not header.startswith(b"HTTP/1.1 200"):
            raise BenchmarkError(f"{path}: {header.splitlines()[0].decode(errors='replace')} {body[:300]!r}")
        size = len(body)
        tail = body[-16:]
        first = time.perf_counter() - start if size >= FIRST_PART else 0.0
        while count := connection.recv_into(buffer):
            size += count
            tail = (tail + bytes(buffer[max(0, count - 16) : count]))[-16:]
            if not first and size >= FIRST_PART:
                first = time.perf_counter() - start
        total = time.perf_counter() - start
    if b"chunked" in header.lower() and not tail.endswith(b"\r\n0\r\n\r\n"):
        raise BenchmarkError(f"{path}: the answer was cut short after {size} bytes")
    return Download(size, first, total)


class Answer:
    """Takes one small answer after the other out of a kept-open connection's bytes."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        """Add bytes; return the body once an answer is whole. Raises BenchmarkError unless it is a 200."""
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return None
        header = bytes(self._data[:end]).lower()
        if not header.startswith(b"http/1.1 200"):
            raise BenchmarkError(bytes(self._data[:500]).decode(errors="replace"))
        if b"transfer-encoding: chunked" in header:
            return self._chunked(end + 4)
        length = int(header.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        return self._take(end + 4, length)

    def _take(self, start: int, length: int) -> bytes | None:
        if len(self._data) < start + length:
            return None
        body = bytes(self._data[start : start + length])
        del self._data[: start + length]
        return body

    def _chunked(self, position: int) -> bytes | None:
        body = b""
        while (line_end := self._data.find(b"\r\n", position)) >= 0:
            size = int(self._data[position:line_end].split(b";")[0], 16)
            position = line_end + 2 + size + 2
            if len(self._data) < position:
                return None
            if not size:
                del self._data[:position]
                return body
            body += self._data[line_end + 2 : line_end + 2 + size]
        return None


class KeptOpen:
    """A client with one connection that it keeps open. A context manager."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connection = target.connect()
        self._answer = Answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str) -> tuple[bytes, float]:
        """Return the body of a JSON answer, and the seconds that it took."""
        request = self._target.request(path, JSON)
        start = time.perf_counter()
        self._connection.sendall(request)
        while True:
            received = self._connection.recv(BUFFER)
            if not received:
                raise BenchmarkError(f"connection closed before the answer to {path}")
            body = self._answer.feed(received)
            if body is not None:
                return body, time.perf_counter() - start


class _Loader(asyncio.Protocol):
    """Sends the next request as soon as an answer is whole, until a time is over."""

    def __init__(self, requests: list[bytes], start: int, until: float, done: asyncio.Future[int]) -> None:
        self._requests = requests
        self._next = start
        self._until = until
        self._done = done
        self._count = 0
        self._answer = Answer()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1

    def data_received(self, data: bytes) -> None:
        try:
            body = self._answer.feed(data)
        except BenchmarkError as error:
            self._finish(error)
            return
        if body is None:
            return
        if len(body) < 10:
            self._finish(BenchmarkError(f"an answer without a match: {body!r}"))
            return
        self._count += 1
        if time.perf_counter() < self._until:
            self._send()
        else:
            self._finish(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(exc or BenchmarkError("the server closed the connection"))

    def _finish(self, error: Exception | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(self._count)
        else:
            self._done.set_exception(error)
        if self._transport is not None:
            self._transport.close()


def requests_per_second(target: Target, paths: list[str], clients: int, seconds: float) -> float:
    """Let some clients, each on a connection of its own, ask without a pause. Returns answers per second."""
    requests = [target.request(path, JSON) for path in paths]

    async def load() -> float:
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        futures: list[asyncio.Future[int]] = [loop.create_future() for _ in range(clients)]
        for number, future in enumerate(futures):
            first = number * len(paths) // clients

            def loader(first: int = first, future: asyncio.Future[int] = future) -> _Loader:
                return _Loader(requests, first, start + seconds, future)

            await loop.create_connection(loader, target.host, target.port)
        async with asyncio.timeout(seconds + TIMEOUT):
            counts = await asyncio.gather(*futures)
        return sum(counts) / (time.perf_counter() - start)

    return asyncio.run(load())
