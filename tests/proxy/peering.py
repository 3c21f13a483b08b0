"""What the tests of `proxy.archive.peers` share: an archive as the configuration has it, and peers to connect it to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from proxy.archive.peers.archive import Archive
from proxy.config.schema import Peer
from tests.dul import wire
from tests.dul.archive import identifier
from tests.dul.wire import Wire
from tests.peers.process import HOST

QUICK = {"connect": 1, "associate": 1, "response": 1, "release": 1}
STUDIES = identifier(StudyInstanceUID="")


def peer(port: int, **more: object) -> Peer:
    """Return the configuration of a peer on this machine, with short timeouts; `more` are further keys."""
    keys: dict[str, object] = {"aet": "SCP", "ip": HOST, "port": port, "name": "main archive", "localAet": "PROXY"}
    return Peer.model_validate({**keys, "timeouts": QUICK, **more})


@contextlib.asynccontextmanager
async def archive_at(port: int, **more: object) -> AsyncIterator[Archive]:
    """Give the archive at a port, as `proxy.archive` sees it; closed at the end, and nothing is left of it then."""
    before = asyncio.all_tasks()
    archive = Archive(peer(port, **more))
    try:
        yield archive
    finally:
        await archive.close(1.0)
        assert archive.open_associations == 0
        assert {
            task for task in asyncio.all_tasks() - before if task.get_coro().__qualname__.startswith("Archive")
        } == set()


async def search(archive: Archive) -> int:
    """Search for all studies; returns their number."""
    assert callable(STUDIES)
    async with contextlib.aclosing(archive.find(STUDIES)) as matches:
        return len([match async for match in matches])


async def leave_search(archive: Archive) -> None:
    """Search for all studies, and leave after the first."""
    assert callable(STUDIES)
    async with contextlib.aclosing(archive.find(STUDIES)) as matches:
        async for _ in matches:
            return


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    """Wait until the condition holds; fail when it does not within `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def silent(scp: Wire) -> None:
    """Say nothing until the other side gives up."""
    await scp.expect_abort()


async def closes_at_once(scp: Wire) -> None:
    """Close the connection without a word."""


async def drops_requests(scp: Wire) -> None:
    """Accept the association, and close the connection at the first request."""
    await scp.accept()
    await scp.message()


def rejecting(result: int, source: int, reason: int) -> Callable[[Wire], object]:
    """Return a script that rejects the association (PS3.8 9.3.4)."""

    async def script(scp: Wire) -> None:
        await scp.pdu()
        await scp.send(wire.pdu(wire.RJ, bytes((0, result, source, reason))))
        await scp.until_closed()

    return script
