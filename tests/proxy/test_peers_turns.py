"""Who gets an association next: so many at once, fairly, and no search behind a retrieval."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

import dul
from proxy.archive.errors import ArchiveBusyError
from proxy.archive.peers import archive as peers
from proxy.archive.peers import turns
from proxy.archive.peers.archive import Archive
from proxy.archive.peers.turns import TooManyWaitError, Turns
from tests.dul.archive import serving
from tests.dul.wire import Wire, response, scripted_scp
from tests.proxy.peering import STUDIES, archive_at, search, until

# --- by themselves -------------------------------------------------------------------------------------------


class Uses:
    """Uses of a `Turns` that go on until they are told to end; `order` is that in which they began."""

    def __init__(self, slots: int, *, sequential: bool = False) -> None:
        self.turns = Turns(slots, sequential=sequential)
        self.order: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._group = asyncio.TaskGroup()
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Uses:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *details: object) -> None:
        for end in self._ends.values():
            end.set()
        await self._group.__aexit__(*details)  # type: ignore[arg-type]
        assert (self.turns.taken, self.turns.waiting) == (0, 0)

    async def ask(self, *names: str, seconds: float = 5.0) -> None:
        """Ask for turns in this order; names that begin with an L are long uses."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = self._group.create_task(self._use(name, seconds))
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def end(self, *names: str) -> None:
        """End uses that go on."""
        for name in names:
            self._ends[name].set()
            await asyncio.wait([self.tasks[name]])
            await asyncio.sleep(0)

    async def _use(self, name: str, seconds: float) -> None:
        long = name.startswith("L")
        with contextlib.suppress(TimeoutError, TooManyWaitError, ZeroDivisionError):
            await self.turns.take(long=long, seconds=seconds)
            try:
                self.order.append(name)
                await self._ends[name].wait()
            finally:
                self.turns.free(long=long)


async def test_first_come_first_served_within_a_kind() -> None:
    async with Uses(2) as uses:
        await uses.ask("S1", "S2", "S3", "S4", "S5")
        assert uses.order == ["S1", "S2"]
        await uses.end("S2", "S1")
        assert uses.order == ["S1", "S2", "S3", "S4"]


@pytest.mark.parametrize(("slots", "long"), [(1, 1), (2, 1), (4, 3)])
async def test_one_slot_is_kept_from_long_uses_where_there_are_several(slots: int, long: int) -> None:
    async with Uses(slots) as uses:
        await uses.ask(*(f"L{number}" for number in range(10)))
        assert len(uses.order) == long
        await uses.ask("S")
        assert ("S" in uses.order) is (slots > 1)


async def test_short_uses_may_have_every_slot() -> None:
    async with Uses(3) as uses:
        await uses.ask("S1", "S2", "S3", "S4")
        assert uses.order == ["S1", "S2", "S3"]


async def test_sequential_is_one_long_use_at_a_time() -> None:
    async with Uses(4, sequential=True) as uses:
        await uses.ask("L1", "L2", "S1", "S2", "S3")
        assert uses.order == ["L1", "S1", "S2", "S3"]
        await uses.end("S1")
        assert uses.order == ["L1", "S1", "S2", "S3"]
        await uses.end("L1")
        assert uses.order == ["L1", "S1", "S2", "S3", "L2"]


async def test_kinds_that_wait_for_the_same_slot_take_turns() -> None:
    """Neither starves, be it ever so late."""
    async with Uses(1) as uses:
        await uses.ask("L1", "L2", "L3", "S1", "S2", "S3")
        for name in ("L1", "S1", "L2", "S2", "L3"):
            await uses.end(name)
        assert uses.order == ["L1", "S1", "L2", "S2", "L3", "S3"]


async def test_long_uses_get_their_slots_back_from_a_crowd_of_short_ones() -> None:
    async with Uses(2) as uses:
        await uses.ask("S1", "S2", "S3", "S4", "S5", "L1", "S6")
        assert uses.order == ["S1", "S2"]
        await uses.end("S1")
        assert uses.order[2:] == ["L1"]


async def test_one_that_waits_too_long_or_is_cancelled_leaves_the_queue() -> None:
    async with Uses(1) as uses:
        await uses.ask("S1")
        await uses.ask("S2", seconds=0.01)
        await uses.ask("S3", "S4")
        uses.tasks["S3"].cancel()
        await asyncio.wait([uses.tasks["S2"], uses.tasks["S3"]])
        assert uses.turns.waiting == 1
        await uses.end("S1")
        assert uses.order == ["S1", "S4"]


async def test_one_that_is_cancelled_as_its_turn_comes_hands_it_on() -> None:
    async with Uses(1) as uses:
        await uses.ask("S1", "L2", "S3")
        uses._ends["S1"].set()
        await asyncio.sleep(0)  # its slot is handed over, and the next does not know yet
        uses.tasks["L2"].cancel()
        await asyncio.wait([uses.tasks["L2"]])
        await asyncio.sleep(0)
        assert uses.order == ["S1", "S3"]


async def test_there_is_no_room_for_more_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """But one that need not wait is not turned away for the others' sake."""
    monkeypatch.setattr(turns, "QUEUE_LIMIT", 3)
    async with Uses(2) as uses:
        await uses.ask("L1", "L2", "L3", "L4")
        with pytest.raises(TooManyWaitError):
            await uses.turns.take(long=True, seconds=1)
        await uses.ask("S1")
        assert uses.order == ["L1", "S1"]
        with pytest.raises(TooManyWaitError):
            await uses.turns.take(long=False, seconds=1)
        assert uses.turns.waiting == 3


async def test_those_that_wait_can_be_refused() -> None:
    async with Uses(1) as uses:
        await uses.ask("S1", "S2", "L3")
        uses.turns.refuse(ZeroDivisionError)
        await asyncio.wait([uses.tasks["S2"], uses.tasks["L3"]])
        assert uses.turns.waiting == 0
        await uses.ask("S4")
        await uses.end("S1")
        assert uses.order == ["S1", "S4"]


@pytest.mark.parametrize("seed", range(5))
async def test_any_coming_and_going_keeps_the_bounds_and_serves_all(seed: int) -> None:
    chance = random.Random(seed)
    slots, sequential = chance.choice([(1, False), (2, False), (4, False), (4, True)])
    line = Turns(slots, sequential=sequential)
    now = {True: 0, False: 0}
    served = 0

    async def use(long: bool) -> None:
        nonlocal served
        await asyncio.sleep(chance.random() * 0.05)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(chance.choice([0.001, 0.01, 5])):
                await line.take(long=long, seconds=5)
                try:
                    now[long] += 1
                    assert sum(now.values()) <= line.taken <= slots
                    assert now[True] <= (1 if sequential else max(slots - 1, 1))
                    await asyncio.sleep(chance.random() * 0.002)
                finally:
                    now[long] -= 1
                    line.free(long=long)
        served += 1

    await asyncio.gather(*(use(chance.random() < 0.5) for _ in range(200)))
    assert (served, line.taken, line.waiting) == (200, 0, 0)


# --- at an archive -------------------------------------------------------------------------------------------


class Studies(dul.Handler):
    """Answers each C-FIND with three studies."""

    async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
        for _ in range(3):
            yield b"\x08\x00\x05\x00CS\x00\x00"


@pytest.fixture
async def server() -> AsyncIterator[dul.Server]:
    async with serving(Studies()) as server:
        yield server


async def hold(archive: Archive, end: asyncio.Event) -> None:
    """Hold an association as a retrieval does."""
    async with archive.lease(archive.move_contexts, long=True):
        await end.wait()


async def test_a_search_gets_through_though_twenty_retrievals_wait(server: dul.Server) -> None:
    end = asyncio.Event()
    async with archive_at(server.port, maxAssociations=4) as archive, asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(hold(archive, end))
        await until(lambda: server.association_count == 3)
        begun = time.perf_counter()
        assert await search(archive) == 3
        assert time.perf_counter() - begun < 0.5
        assert await archive.echo() < 0.5
        end.set()


async def test_retrievals_use_the_slots_of_idle_associations(server: dul.Server) -> None:
    """Those that searches left open are ended for them; never is one more open than is allowed."""
    end = asyncio.Event()
    async with archive_at(server.port, maxAssociations=2) as archive, asyncio.TaskGroup() as group:
        await asyncio.gather(search(archive), search(archive))
        assert archive.open_associations == 2
        group.create_task(hold(archive, end))
        await until(lambda: archive.open_associations == server.association_count == 2)
        end.set()


async def test_a_sequential_archive_gets_one_retrieval_at_a_time(server: dul.Server) -> None:
    now = most = 0

    async def retrieval(archive: Archive) -> None:
        nonlocal now, most
        async with archive.lease(archive.move_contexts, long=True):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1

    async with archive_at(server.port, sequential=True) as archive:
        await asyncio.gather(*(retrieval(archive) for _ in range(5)))
    assert most == 1


async def test_how_long_each_kind_waits(server: dul.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retrieval as long as for its first instance, a search for a fixed time; then the archive is busy."""
    monkeypatch.setattr(peers, "QUEUE_SECONDS", 0.05)
    end = asyncio.Event()
    async with (
        archive_at(server.port, maxAssociations=1, timeouts={"retrieve": 0.2}) as archive,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(hold(archive, end))
        await until(lambda: server.association_count == 1)
        for use, seconds in ((search(archive), 0.05), (hold(archive, end), 0.2)):
            begun = time.perf_counter()
            with pytest.raises(ArchiveBusyError, match="main archive: every association is in use"):
                await use
            assert seconds <= time.perf_counter() - begun < seconds + 0.15
        end.set()


async def test_a_full_queue_makes_the_archive_busy(server: dul.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "QUEUE_LIMIT", 0)
    end = asyncio.Event()
    async with archive_at(server.port, maxAssociations=1) as archive, asyncio.TaskGroup() as group:
        group.create_task(hold(archive, end))
        await until(lambda: server.association_count == 1)
        with pytest.raises(ArchiveBusyError, match="too many requests wait"):
            await search(archive)
        end.set()


async def test_silence_on_the_association_of_a_retrieval_is_not_bounded_here() -> None:
    """What a C-MOVE brings comes by other associations, and a C-GET may wait for a tape."""

    async def script(scp: Wire) -> None:
        await scp.accept()
        move = await scp.message()
        await asyncio.sleep(0.2)
        await scp.send(response(move, 0, completed=1, failed=0, warning=0))
        await scp.answer_release()

    async with (
        scripted_scp(script) as scp,
        archive_at(scp.port, timeouts={"idle": 0.05}) as archive,
        archive.lease(archive.move_contexts, long=True) as lease,
    ):
        operation = lease.association.move(STUDIES, destination="PROXY")
        assert [progress.completed async for progress in operation] == [1]
