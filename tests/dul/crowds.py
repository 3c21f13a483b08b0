"""Many connections at once, and what they leave: for tests of floods, whose numbers differ."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psutil  # type: ignore[import-untyped]

from tests.dul import wire
from tests.dul.wire import VERIFICATION, Wire

PROPOSAL = (1, VERIFICATION, [wire.IMPLICIT])
ECHO = wire.message(1, field=wire.C_ECHO, message_id=1, sop_class=VERIFICATION)


async def echo(port: int, source: str = wire.HOST) -> float:
    """Associate, C-ECHO and release, as a peer that is not ours; returns the seconds that this took."""
    start = time.monotonic()
    with await Wire.connect(port, source) as peer:
        await peer.associate(VERIFICATION)
        await peer.send(ECHO)
        assert (await peer.message()).number("status") == 0
        await peer.send(wire.RELEASE_RQ_PDU)
        assert (await peer.pdu())[0] == wire.RELEASE_RP
    return time.monotonic() - start


async def abrupt(port: int, source: str = wire.HOST) -> None:
    """Associate, begin a request and reset the connection within it."""
    with await Wire.connect(port, source) as peer:
        await peer.associate(VERIFICATION)
        await peer.send(ECHO[:30])
        peer.reset()


async def half_of_each(port: int, count: int, at_once: int = 10) -> None:
    """So many associations, every other of them abrupt, from several loopback addresses."""
    for start in range(0, count, at_once):
        numbers = range(start, start + at_once)
        sources = [f"127.0.{number // 10 % 50}.{number % 100 + 2}" for number in numbers]
        await asyncio.gather(
            *((abrupt if number % 2 else echo)(port, source) for number, source in zip(numbers, sources, strict=True))
        )


class Crowd:
    """Connections that ask for an association and then stay; `answers` counts what they get."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self._go_home = asyncio.Event()

    async def come(self, port: int, source: str) -> None:
        """Be one of them, until `go_home`."""
        with await Wire.connect(port, source) as peer:
            try:
                await peer.send(wire.associate_rq(PROPOSAL))
                kind, body = await peer.pdu()
                self.answers["accepted" if kind == wire.AC else f"rejected {tuple(body[1:])}"] += 1
            except (ConnectionError, EOFError):
                self.answers["closed"] += 1
            await self._go_home.wait()

    def go_home(self) -> None:
        """Close all of them."""
        self._go_home.set()


@contextmanager
def little_left(most: int) -> Iterator[None]:
    """Fail when the process is larger after what runs meanwhile than before, by more than so many bytes."""
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    yield
    gc.collect()
    left = process.memory_info().rss - before
    assert left <= most, f"{left / 2**20:.1f} MiB are left"


@contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    """Allow so many open files, where the system's limit for this process is lower and can be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
