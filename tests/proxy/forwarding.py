"""Running the proxy in dicomweb mode, and an upstream that records what arrives and answers what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import aiohttp

from proxy.config.checking import parse_config
from proxy.service import running
from tests.peers.process import HOST
from tests.proxy.running import Proxy

PIXELS = bytes(range(256)) * 4096
"""A mebibyte that is like no text."""


def forward_settings(
    upstream: str, wado: str | None = None, *, forward: Mapping[str, object] | None = None, **more: object
) -> dict[str, object]:
    """Return a configuration that forwards to a URL, or to two; `forward` are further keys of that section."""
    section = {"qidoForwardingUrl": upstream, "wadoForwardingUrl": wado or upstream, **(forward or {})}
    return {
        "proxyMode": "dicomweb",
        "webserverHost": HOST,
        "webserverPort": 0,
        "shutdownSeconds": 2,
        "dicomwebProxySettings": section,
        **more,
    }


@contextlib.asynccontextmanager
async def forward_to(
    upstream: str, wado: str | None = None, *, forward: Mapping[str, object] | None = None, **more: object
) -> AsyncIterator[Proxy]:
    """Run the proxy in front of a DICOMweb server; the arguments are those of `forward_settings`."""
    config = parse_config(forward_settings(upstream, wado, forward=forward, **more))
    async with running(config) as where:
        url = f"http://{HOST}:{where.http_port}"
        async with aiohttp.ClientSession(url, auto_decompress=False) as http:
            yield Proxy(url, http, None)


async def connected(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the proxy."""
    return await asyncio.open_connection(HOST, int(proxy.url.rpartition(":")[2]))


async def head_of(reader: asyncio.StreamReader) -> bytes:
    """Read the head of an answer."""
    async with asyncio.timeout(5):
        return await reader.readuntil(b"\r\n\r\n")


# --- an upstream ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Received:
    """A request as it came from the wire."""

    line: str
    fields: list[tuple[str, str]]
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False
    """Whether the body came to its end."""

    @property
    def method(self) -> str:
        """Such as GET."""
        return self.line.split(" ")[0]

    @property
    def target(self) -> str:
        """The path and query, byte for byte."""
        return self.line.split(" ")[1]

    def all(self, name: str) -> list[str]:
        """The values of all fields of that name."""
        return [value for each, value in self.fields if each.lower() == name.lower()]

    def one(self, name: str) -> str:
        """The value of the only field of that name."""
        (value,) = self.all(name)
        return value


Answer = Callable[["Conversation"], Awaitable[None]]


class Conversation:
    """One request at the upstream, and its connection."""

    def __init__(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.reader = reader
        self.writer = writer

    async def send(self, text: str | bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(text.encode("latin-1") if isinstance(text, str) else text)
        await self.writer.drain()

    async def read_body(self) -> bytearray:
        """Read the body of the request, by its length or in chunks."""
        request = self.request
        if "chunked" in "".join(request.all("Transfer-Encoding")).lower():
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                request.body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readuntil(b"\r\n")
        elif lengths := request.all("Content-Length"):
            request.body += await self.reader.readexactly(int(lengths[0]))
        request.whole = True
        return request.body

    def reset(self) -> None:
        """End the connection by RST, if it has not ended."""
        if self.writer.transport.is_closing():
            return
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    async def until_closed(self) -> None:
        """Return when the other side has ended the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


def answering(text: str | bytes) -> Answer:
    """Return an answer of these bytes to every request, on a connection that stays."""

    async def answer(conversation: Conversation) -> None:
        await conversation.read_body()
        octets = text.encode("latin-1") if isinstance(text, str) else text
        without = octets[: octets.index(b"\r\n\r\n") + 4]
        await conversation.send(without if conversation.request.method == "HEAD" else octets)

    return answer


def ok(
    body: bytes = b"[]", *fields: str, status: str = "200 OK", content_type: str = "application/dicom+json"
) -> bytes:
    """Return the bytes of an answer with a length."""
    head = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


@dataclass(slots=True)
class Recorder:
    """An upstream on a raw socket. `requests` are all that came, but for the proxy's own probes."""

    port: int = 0
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Its address, with a base path."""
        return f"{self.scheme}://{HOST}:{self.port}/base"

    @property
    def only(self) -> Received:
        """The one request that came."""
        (request,) = self.requests
        return request


@contextlib.asynccontextmanager
async def recorder(answer: Answer | None = None, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Recorder]:
    """Run an upstream that gives `answer` to every request, or an empty list."""
    respond = answer or answering(ok())
    record = Recorder(scheme="https" if tls else "http")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        record.connections += 1
        record.open += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *lines = head.decode("latin-1").split("\r\n")[:-2]
                fields = [(name, value.strip()) for name, _, value in (each.partition(":") for each in lines)]
                conversation = Conversation(Received(line, fields), reader, writer)
                if "StudyInstanceUID=2.25.1&" in line:
                    await conversation.send(ok())
                    continue
                record.requests.append(conversation.request)
                await respond(conversation)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            record.open -= 1
            writer.close()

    server = await asyncio.start_server(connected, HOST, 0, ssl=tls)
    record.port = server.sockets[0].getsockname()[1]
    try:
        yield record
    finally:
        server.close()
