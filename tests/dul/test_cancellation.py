"""A task that is cancelled at any point leaves nothing behind: no task, no socket, no complaint.

Each operation is cancelled after 0, 1, 2 … steps of the event loop, until it is over before its cancellation comes.
And an operation that is left when its end has come already is not cancelled at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import dul
from tests.corpus import Corpus
from tests.dul import wire
from tests.dul.archive import Archive, address_of, identifier, peer_of, serving
from tests.dul.conftest import open_sockets, settle
from tests.dul.wire import CT_IMAGE, STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE, VERIFICATION, Wire, response
from tests.peers.orthanc import Orthanc
from tests.peers.pynetdicom_peer import PynetdicomScp

QUICK = dul.Timeouts(connect=2, associate=2, response=2, idle=2, release=2, cancel=1)
CONTEXTS = [
    dul.Context(VERIFICATION),
    dul.Context(STUDY_ROOT_FIND),
    dul.Context(STUDY_ROOT_MOVE),
    dul.Context(STUDY_ROOT_GET),
    dul.Context(CT_IMAGE, scp_role=True),
]
Operation = Callable[[dul.Association], Awaitable[object]]


async def echo(association: dul.Association) -> None:
    """Do two C-ECHOs."""
    await association.echo()
    await association.echo()


async def find(association: dul.Association) -> None:
    """Take all matches."""
    async for _ in association.find(identifier(StudyInstanceUID="")):
        pass


async def move(association: dul.Association) -> None:
    """Move two series of three instances."""
    async for _ in association.move(identifier(PatientID="LATIN1"), destination="DESTINATION"):
        pass


async def get_slowly(association: dul.Association) -> None:
    """Read instances with pauses between chunks."""
    async for instance in association.get(identifier(PatientID="LATIN1")):
        async for _ in instance:
            await asyncio.sleep(0)


async def store_a_stream(association: dul.Association) -> None:
    """Store from a source that has to be closed."""

    async def source() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(100_000)
            await asyncio.sleep(0)

    await association.store(dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, source))


async def find_and_leave(association: dul.Association) -> None:
    """Leave a find, so that C-CANCEL is on its way when the next operation begins."""
    async for _ in association.find(identifier(StudyInstanceUID="")):
        break
    await association.echo()


async def nothing(_: dul.Association) -> None:
    """Connect and release."""


async def nobody_is_left(server: dul.Server) -> None:
    """Wait until the acceptor has noticed."""
    async with asyncio.timeout(2):
        while server.connection_count or server.association_count:
            await asyncio.sleep(0)


async def cancelled_after(steps: int, work: Awaitable[Any]) -> bool:
    """Run work as a task, cancel it after some steps of the event loop; tell whether it was over before."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        if task.done():
            await task
            return True
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return False


async def clean(sockets: dict[int, int], tasks: set[asyncio.Task[Any]]) -> None:
    """Assert that there are no more sockets and tasks than before."""
    await settle()
    assert open_sockets().keys() - sockets.keys() == set()
    assert {task for task in asyncio.all_tasks() - tasks if not task.done()} == set()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("operation", [nothing, echo, find, move, get_slowly, store_a_stream, find_and_leave])
async def test_cancelled_anywhere_leaves_nothing(operation: Operation, samples: Corpus) -> None:
    destination = Archive()
    async with serving(destination, "DESTINATION") as receiver:
        archive = Archive(samples, {"DESTINATION": address_of(receiver, "DESTINATION")})
        async with serving(archive) as server:

            async def work() -> None:
                async with dul.connect(peer_of(server), CONTEXTS, timeouts=QUICK) as association:
                    await operation(association)

            steps, over = 0, False
            tasks = asyncio.all_tasks()
            sockets = open_sockets()
            while not over:
                over = await cancelled_after(steps, work())
                await nobody_is_left(server)
                await nobody_is_left(receiver)
                await clean(sockets, tasks)
                steps += 1 if steps < 60 else 7
            gc.collect()
            assert steps > 10


@pytest.mark.usefixtures("nothing_left")
async def test_cancelled_twice_leaves_nothing(samples: Corpus) -> None:
    # The second cancellation comes within the orderly end that the first one began.
    async with serving(Archive(samples)) as server:

        async def work() -> None:
            async with dul.connect(peer_of(server), CONTEXTS, timeouts=QUICK) as association:
                await find(association)

        tasks = asyncio.all_tasks()
        sockets = open_sockets()
        for first in range(0, 24, 3):
            for second in range(8):
                task = asyncio.create_task(work())
                for pause in (first, second):
                    for _ in range(pause):
                        await asyncio.sleep(0)
                    task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await nobody_is_left(server)
                await clean(sockets, tasks)


async def open_cancelled_anywhere() -> None:
    """Cancel `open_association` after any number of steps."""
    async with serving(Archive()) as server:
        tasks, sockets = asyncio.all_tasks(), open_sockets()
        steps, over = 0, False
        while not over:

            async def work() -> None:
                association = await dul.open_association(peer_of(server), CONTEXTS, timeouts=QUICK)
                association.abort()

            over = await cancelled_after(steps, work())
            await nobody_is_left(server)
            await clean(sockets, tasks)
            steps += 1


async def server_closed_at_any_time(samples: Corpus) -> None:
    """Close a server after any number of steps of a retrieval."""

    async def work(server: dul.Server) -> None:
        with contextlib.suppress(dul.AssociationError):
            async with dul.connect(peer_of(server), CONTEXTS, timeouts=QUICK) as association:
                await get_slowly(association)

    for steps in range(0, 90, 3):
        async with serving(Archive(samples)) as server:
            task = asyncio.create_task(work(server))
            for _ in range(steps):
                await asyncio.sleep(0)
        await task
        assert (server.connection_count, server.association_count) == (0, 0)


@pytest.mark.usefixtures("nothing_left")
async def test_cancelled_open_association_leaves_nothing() -> None:
    await open_cancelled_anywhere()


@pytest.mark.usefixtures("nothing_left")
async def test_server_closed_at_any_time_leaves_nothing(samples: Corpus) -> None:
    await server_closed_at_any_time(samples)


def test_cancelled_and_closed_on_uvloop(samples: Corpus) -> None:
    # It closes a socket whose connecting is cancelled without telling the protocol.
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(open_cancelled_anywhere())
        runner.run(server_closed_at_any_time(samples))


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("operation", [find, get_slowly])
async def test_cancelled_at_any_time_against_a_real_archive(
    operation: Operation, pynetdicom_archive: PynetdicomScp
) -> None:
    peer = dul.Peer("127.0.0.1", pynetdicom_archive.address.port, "PYNETDICOM", "SCU")
    tasks, sockets = asyncio.all_tasks(), open_sockets()
    for milliseconds in range(0, 60, 4):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(milliseconds / 1000):
                async with dul.connect(peer, CONTEXTS, timeouts=QUICK) as association:
                    await operation(association)
        await clean(sockets, tasks)


# --- left when it is over ------------------------------------------------------------------------------------

MATCH = b"\x08\x00\x05\x00CS\x00\x00"


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("status", [0, 0xA700, 0xFE00])
async def test_find_whose_final_response_is_here_sends_no_c_cancel(status: int) -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        find = await peer.message()
        await peer.send(response(find, 0xFF00, MATCH) * 3 + response(find, status))
        echo = await peer.message()
        assert echo.command["field"] == wire.C_ECHO
        await peer.send(response(echo, 0))
        await peer.answer_release()

    async with wire.scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        async for _ in association.find(MATCH):
            await asyncio.sleep(0.02)
            break
        assert not association.is_settled
        await association.echo()
        assert association.is_settled


@pytest.mark.usefixtures("nothing_left")
async def test_find_whose_matches_are_here_but_not_its_final_response_sends_c_cancel() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        find = await peer.message()
        await peer.send(response(find, 0xFF00, MATCH) * 3)
        assert (await peer.message()).command["field"] == wire.C_CANCEL
        await peer.send(response(find, 0xFF00, MATCH) + response(find, 0xFE00))
        await peer.answer_release()

    async with wire.scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        async for _ in association.find(MATCH):
            await asyncio.sleep(0.02)
            break
        await association.settle()
        assert association.is_open


@pytest.mark.usefixtures("nothing_left")
async def test_orthanc_has_nothing_to_complain_of_when_a_find_is_left_that_is_over(orthanc: Orthanc) -> None:
    """A C-CANCEL that comes after its final response is an error in its log: "cannot handle command: 0xfff"."""
    before = orthanc.process.log_size()
    peer = dul.Peer(orthanc.address.host, orthanc.address.port, orthanc.address.aet, "SCU")
    async with dul.connect(peer, CONTEXTS, timeouts=QUICK) as association:
        for _ in range(3):
            async for _ in association.find(identifier(StudyInstanceUID="")):
                await asyncio.sleep(0.1)
                break
            await association.settle()
        assert association.is_open
        await association.echo()
    assert "cannot handle command" not in orthanc.process.log(before)
