"""The associations of an archive: leased for a use, kept for the next, ended behind the back of who leaves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

import pytest

import dul
from dul import uids
from proxy.archive.errors import ArchiveBusyError, ArchiveFailedError
from proxy.archive.peers import archive as peers
from proxy.archive.peers.archive import Archive
from tests.dul import wire
from tests.dul.archive import serving
from tests.dul.wire import Wire, response, scripted_scp
from tests.proxy.peering import STUDIES, archive_at, leave_search, peer, rejecting, search, until

MATCH = b"\x08\x00\x05\x00CS\x00\x00"


class Studies(dul.Handler):
    """Answers each C-FIND with so many studies; remembers by which model it was asked."""

    def __init__(self, count: int = 3) -> None:
        self.count = count
        self.models: list[str] = []

    async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
        self.models.append(request.model)
        for _ in range(self.count):
            yield MATCH


# --- leases --------------------------------------------------------------------------------------------------


async def test_association_of_a_search_is_kept_for_the_next() -> None:
    async with serving(Studies()) as server, archive_at(server.port) as archive:
        for reused in (False, True, True):
            async with archive.lease(archive.query_contexts) as lease:
                assert lease.reused is reused
        async with archive.lease(archive.query_contexts, fresh=True) as lease:
            assert not lease.reused
        assert archive.open_associations == server.association_count == 2


async def test_other_associations_are_not_kept() -> None:
    async with serving(Studies()) as server, archive_at(server.port) as archive:
        await archive.echo()
        async with archive.lease(archive.move_contexts, long=True):
            pass
        async with archive.lease([dul.Context(archive.get_model)], long=True):
            pass
        assert archive.open_associations == 0


async def test_failures_of_the_dicom_side_come_out_as_those_of_the_archive() -> None:
    """Those of opening, and those that are raised within the `async with`; others pass."""
    async with scripted_scp(rejecting(2, 3, 2)) as scp, archive_at(scp.port) as archive:
        with pytest.raises(ArchiveBusyError, match="main archive: association rejected: local limit exceeded"):
            async with archive.lease(archive.query_contexts):
                pass
    async with serving(Studies()) as server, archive_at(server.port) as archive:
        with pytest.raises(ArchiveFailedError, match="C-FIND ended with 0xA700"):
            async with archive.lease(archive.query_contexts):
                raise dul.StatusError("C-FIND", 0xA700)
        with pytest.raises(ZeroDivisionError):
            async with archive.lease(archive.query_contexts):
                raise ZeroDivisionError
        assert archive.open_associations == 1


async def test_one_who_is_cancelled_while_it_is_opened_leaves_nothing() -> None:
    async def late(scp: Wire) -> None:
        await scp.until_closed()

    async with scripted_scp(late) as scp, archive_at(scp.port) as archive:
        opening = asyncio.create_task(search(archive))
        await until(lambda: archive.open_associations == 1)
        await asyncio.sleep(0.02)
        opening.cancel()
        await asyncio.wait([opening])
        assert archive.open_associations == 0


# --- the query model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("STUDY", (uids.STUDY_ROOT_FIND, uids.STUDY_ROOT_MOVE, uids.STUDY_ROOT_GET)),
        ("PATIENT", (uids.PATIENT_ROOT_FIND, uids.PATIENT_ROOT_MOVE, uids.PATIENT_ROOT_GET)),
    ],
)
async def test_it_is_asked_by_its_own_model(model: str, expected: tuple[str, str, str]) -> None:
    handler = Studies()
    async with serving(handler) as server, archive_at(server.port, queryModel=model) as archive:
        assert (archive.find_model, archive.move_model, archive.get_model) == expected
        assert await search(archive) == 3
        assert await search(archive) == 3
        assert server.association_count == 1
        async with archive.lease(archive.move_contexts, long=True) as lease:
            assert lease.association.context_for(expected[1])
    assert handler.models == [expected[0]] * 2


# --- searches that are left ----------------------------------------------------------------------------------


async def deaf(scp: Wire) -> None:
    """Give one match, and then neither end the search nor heed C-CANCEL."""
    await scp.accept()
    find = await scp.message()
    await scp.send(response(find, 0xFF00, MATCH))
    assert (await scp.message()).command["field"] == wire.C_CANCEL
    await scp.expect_abort()


async def test_one_who_leaves_a_search_does_not_wait_for_an_archive_that_does_not_heed_it() -> None:
    """The slot stays taken until the association is gone, so that no more are open than the archive allows."""
    async with scripted_scp(deaf) as scp, archive_at(scp.port, maxAssociations=1) as archive:
        begun = time.perf_counter()
        await leave_search(archive)
        assert time.perf_counter() - begun < 0.5
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await search(archive)
        assert archive.open_associations == 1
        await until(lambda: archive.open_associations == 0)
        assert time.perf_counter() - begun >= dul.Timeouts().cancel


async def test_association_of_a_search_that_is_left_is_used_again() -> None:
    """An archive that heeds C-CANCEL has ended the search when its caller goes on."""
    async with serving(Studies(10**9)) as server, archive_at(server.port) as archive:
        for _ in range(5):
            await leave_search(archive)
        assert archive.open_associations == server.association_count == 1


async def test_one_who_is_cancelled_while_he_leaves_does_not_leak_the_slot() -> None:
    async with scripted_scp(deaf) as scp, archive_at(scp.port, maxAssociations=1) as archive:
        leaving = asyncio.create_task(leave_search(archive))
        await until(lambda: archive.open_associations == 1)
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert archive.open_associations == 1
        await until(lambda: archive.open_associations == 0)


async def test_the_end_does_not_wait_for_searches_that_were_left() -> None:
    async with scripted_scp(deaf) as scp:
        archive = Archive(peer(scp.port))
        await leave_search(archive)
        begun = time.perf_counter()
        await archive.close(0.1)
        assert time.perf_counter() - begun < 1.5
        assert archive.open_associations == 0


async def test_a_search_that_ends_within_the_end_keeps_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its association would otherwise be kept for a next one that never comes."""
    monkeypatch.setattr(peers, "SETTLE_SECONDS", 0.0)
    async with serving(Studies(10**9)) as server:
        async with archive_at(server.port) as archive:
            await leave_search(archive)
        await until(lambda: server.connection_count == 0)


async def test_early_end_of_a_retrieval_is_waited_for() -> None:
    """Its C-MOVE is over when its caller goes on: what still comes of it is no longer anybody's."""

    async def script(scp: Wire) -> None:
        await scp.accept()
        move = await scp.message()
        await scp.send(response(move, 0xFF00, remaining=1, completed=1, failed=0, warning=0))
        assert (await scp.message()).command["field"] == wire.C_CANCEL
        await asyncio.sleep(0.2)
        await scp.send(response(move, 0xFE00, remaining=1, completed=1, failed=0, warning=0))
        await scp.answer_release()

    async with scripted_scp(script) as scp, archive_at(scp.port) as archive:
        begun = time.perf_counter()
        async with (
            archive.lease(archive.move_contexts, long=True) as lease,
            contextlib.aclosing(_progress(lease.association)) as progress,
        ):
            await anext(progress)
        assert time.perf_counter() - begun > 0.2
        assert archive.open_associations == 0


async def _progress(association: dul.Association) -> AsyncGenerator[dul.Progress, None]:
    async for progress in association.move(STUDIES, destination="PROXY"):
        yield progress
