"""What the tests of limits share: a proxy with limits, an archive that keeps requests waiting, and asking."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tests.peers.process import Address, free_port
from tests.proxy.finding import Answers, Scripted, scripted, study
from tests.proxy.rawhttp import Answer, Connection, connected, port_of
from tests.proxy.running import Proxy, proxy_for

PING = "GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"
SEARCH = "GET /studies HTTP/1.1\r\nHost: a\r\nOrigin: https://viewer.example\r\n\r\n"


def limited(**limits: float) -> Any:
    """Run a proxy with these limits; its archive is not there."""
    return proxy_for(Address("NOBODY", free_port()), use_cget=True, limits=limits)


class Waiting:
    """An archive that answers when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.archive: Scripted

    async def script(self, _: object) -> Answers:
        await self.go.wait()
        yield study()

    async def until_asked(self, times: int) -> None:
        """Wait until so many searches are under way."""
        async with asyncio.timeout(5):
            while len(self.archive.searches) < times:
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def waiting(**more: Any) -> AsyncIterator[tuple[Waiting, Proxy]]:
    """Run an archive that waits, and the proxy in front of it."""
    waits = Waiting()
    async with scripted(waits.script) as archive:
        waits.archive = archive
        async with proxy_for(archive.address, use_cget=True, peer={"maxAssociations": 50}, **more) as proxy:
            yield waits, proxy


async def ask(client: Connection, text: str = PING) -> Answer:
    """Send a request and return its answer."""
    await client.send(text)
    answer = await client.answer(5)
    assert answer is not None, "the connection was closed"
    return answer


async def is_served(proxy: Proxy) -> bool:
    """Tell whether the next client is served."""
    async with connected(port_of(proxy)) as client:
        return (await ask(client)).status == 200


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 5) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.01)


async def takes_one(proxy: Proxy, from_host: str | None = None) -> bool:
    """Tell whether a connection more is served."""
    async with connected(port_of(proxy), from_host=from_host) as client:
        await client.send(PING)
        return (await client.answer()) is not None
