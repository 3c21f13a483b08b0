"""A thousand connections at once: silent ones, ones that drip, and ones that want TLS and say nothing.

The proxy stays small, serves who was there, and is as it was when they have gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from proxy.config.checking import parse_config
from proxy.security.http import listening
from proxy.security.http.listening import Door, Site
from tests.dul.certificates import make
from tests.peers.process import HOST, Address, free_port
from tests.proxy.command import Program, program, write_config
from tests.proxy.rawhttp import connected
from tests.proxy.running import settings

CROWD, CAP = 1000, 200
MEGABYTE = 1024**2
PING = b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"
LOOPS = pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])


@contextlib.asynccontextmanager
async def limited(folder: Path, *, uvloop: bool = True, **limits: float) -> AsyncIterator[Program]:
    """The proxy as a process, with these limits."""
    config = settings(Address("NOBODY", free_port()), use_cget=True, limits={"connectionsPerClient": CROWD, **limits})
    path = write_config(folder, config)
    async with program("run", "--config", str(path), folder=folder, uvloop=uvloop) as proxy:
        yield proxy


class Crowd:
    """Many clients."""

    def __init__(self) -> None:
        self.clients: list[socket.socket] = []

    async def come(self, port: int, number: int, says: bytes = b"") -> None:
        """Connect, and send something."""
        for _ in range(number):
            client = socket.socket()
            self.clients.append(client)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, (HOST, port))
            self._send(client, says)

    def say(self, text: bytes) -> None:
        """Send something from all."""
        for client in self.clients:
            self._send(client, text)

    @staticmethod
    def _send(client: socket.socket, text: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            client.send(text)

    def closed(self) -> list[socket.socket]:
        """Those whose connection the proxy has ended."""
        return [client for client in self.clients if not self._is_open(client)]

    @staticmethod
    def _is_open(client: socket.socket) -> bool:
        try:
            return client.recv(4096, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except ConnectionError:
            return False

    async def until_closed(self, number: int, seconds: float) -> None:
        """Wait until so many have been closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while len(self.closed()) < number:
                    await asyncio.sleep(0.02)
        assert len(self.closed()) == number

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()


async def served(client: socket.socket) -> float:
    """Send a request on a connection that is there; returns the seconds until its answer."""
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    await loop.sock_sendall(client, PING)
    answer = await asyncio.wait_for(loop.sock_recv(client, 4096), 5)
    assert answer.endswith(b"pong")
    return time.perf_counter() - started


async def answers(port: int) -> bool:
    """Tell whether a new client is answered."""
    async with connected(port) as client:
        await client.send(PING)
        return (await client.answer()) is not None


async def until_back(process: psutil.Process, descriptors: int) -> None:
    """Wait until a process has no more descriptors than at the start."""
    async with asyncio.timeout(5):
        while process.num_fds() > descriptors:
            await asyncio.sleep(0.02)


@LOOPS
async def test_a_thousand_connections(tmp_path: Path, *, uvloop: bool) -> None:
    """Those over the cap are closed; the others are answered, soon; memory and descriptors are back afterwards."""
    async with limited(tmp_path, uvloop=uvloop, connections=CAP) as proxy:
        process = psutil.Process(proxy.process.pid)
        assert await answers(proxy.port)
        await asyncio.sleep(0.05)
        descriptors, memory = process.num_fds(), process.memory_info().rss
        with Crowd() as crowd:
            await crowd.come(proxy.port, CROWD)
            await crowd.until_closed(CROWD - CAP, 5)
            assert process.num_fds() <= descriptors + CAP
            closed = set(crowd.closed())
            took = sorted([await served(client) for client in crowd.clients if client not in closed])
            assert took[len(took) * 99 // 100] < 0.5
            assert not await answers(proxy.port)
        await until_back(process, descriptors)
        assert await answers(proxy.port)
        assert process.memory_info().rss - memory < 16 * MEGABYTE
        assert proxy.log().count("a connection was closed") == 1


async def test_a_crowd_that_drips(tmp_path: Path) -> None:
    """Heads that come byte by byte hold their places for as long as a head may take, and no longer."""
    async with limited(tmp_path, connections=CAP, headerSeconds=0.4) as proxy:
        process = psutil.Process(proxy.process.pid)
        assert await answers(proxy.port)
        await asyncio.sleep(0.05)
        descriptors, memory = process.num_fds(), process.memory_info().rss
        for _ in range(2):
            with Crowd() as crowd:
                await crowd.come(proxy.port, CAP, b"GET /ping HTTP/1.1\r\nX: " + b"a" * 8000)
                started = time.monotonic()
                while time.monotonic() - started < 0.7:
                    crowd.say(b"a")
                    await asyncio.sleep(0.1)
                await until_back(process, descriptors)
                assert await answers(proxy.port)
        assert process.memory_info().rss - memory < 16 * MEGABYTE


# --- TLS -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def encrypted(folder: Path, **limits: float) -> AsyncIterator[tuple[Door, int, ssl.SSLContext]]:
    """A server that speaks TLS, in this event loop; gives its port, and a context for clients."""
    certificates = make(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    app = web.Application()

    async def ping(_: web.Request) -> web.Response:
        return web.Response(text="pong")

    app.router.add_get("/ping", ping)
    runner = web.AppRunner(app)
    await runner.setup()
    door = Door(parse_config(settings(Address("NOBODY", 104), limits=limits)))
    try:
        await Site(runner, door, HOST, 0, ssl_context=context).start()
        yield door, runner.addresses[0][1], certificates.client()
    finally:
        await runner.cleanup()
        async with asyncio.timeout(2):
            while door.places.taken:
                await asyncio.sleep(0.01)


async def test_silent_clients_of_tls_have_places_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is one too many is closed without a handshake; who says nothing loses the place after a while."""
    monkeypatch.setattr(listening, "HANDSHAKE_SECONDS", 0.5)
    async with encrypted(tmp_path, connections=20) as (door, port, client):
        with Crowd() as crowd:
            await crowd.come(port, 20)
            while door.places.taken < 20:
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection(HOST, port)
            assert await asyncio.wait_for(reader.read(), 1) == b""
            writer.close()
            await crowd.until_closed(20, 3)
        assert door.places.taken == 0
        reader, writer = await asyncio.open_connection(HOST, port, ssl=client)
        writer.write(PING)
        assert b"pong" in await asyncio.wait_for(reader.readuntil(b"pong"), 2)
        assert door.places.taken == 1
        writer.close()


async def test_half_a_head_within_tls(tmp_path: Path) -> None:
    """The client is told, and then it is cut off, also where it never says that it has seen the end."""
    async with encrypted(tmp_path, headerSeconds=0.2) as (door, port, context):

        def waits() -> bytes:
            with context.wrap_socket(socket.create_connection((HOST, port)), server_hostname=HOST) as client:
                client.send(b"GET /ping HTTP/1.1\r\n")
                answer = client.recv(4096)
                deadline = time.monotonic() + 3
                while door.places.taken and time.monotonic() < deadline:
                    time.sleep(0.02)
                assert door.places.taken == 0
                return answer

        assert b" 408 " in await asyncio.to_thread(waits)


async def test_what_is_no_tls_is_closed_and_gives_its_place_back(tmp_path: Path) -> None:
    async with encrypted(tmp_path) as (door, port, _):
        for text in (PING, b"\x00" * 100, b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\xff\xff" + b"a" * 100_000):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(text)
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 1)
            writer.close()
        async with asyncio.timeout(2):
            while door.places.taken:
                await asyncio.sleep(0.01)


async def test_the_end_waits_for_no_handshake(tmp_path: Path) -> None:
    """Connections that are in one when the server ends are closed."""
    with Crowd() as crowd:
        async with encrypted(tmp_path) as (door, port, _):
            await crowd.come(port, 10)
            while door.places.taken < 10:
                await asyncio.sleep(0.01)
            started = time.monotonic()
        assert time.monotonic() - started < 1
        await crowd.until_closed(10, 1)
