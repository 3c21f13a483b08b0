"""The spool: every reader gets every byte at its own pace, memory is bounded, and a disk that fails costs nothing."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.archive.errors import IncompleteError
from proxy.archive.spool import spool as spool_module
from proxy.archive.spool.files import SpoolFolder
from proxy.archive.spool.reader import InstanceReader
from proxy.archive.spool.spool import (
    INSTANCE_LIMIT,
    KEEP,
    UNREAD_INSTANCES,
    UNWRITTEN_LIMIT,
    InstanceInfo,
    Spool,
    SpooledInstance,
)
from tests.proxy.openfiles import open_below

MB = 1024 * 1024
PIECE = 256 * 1024
HEADER = b"the Part 10 header"


def info(number: int = 1) -> InstanceInfo:
    """Return the description of an instance."""
    return InstanceInfo("1.2.840.10008.5.1.4.1.1.2", f"1.2.3.4.{number}", "1.2.840.10008.1.2.1", "1.2.3", "1.2.3.4")


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[SpoolFolder]:
    """A spool folder without a bound that matters."""
    spool_folder = SpoolFolder(tmp_path, 1 << 40)
    yield spool_folder
    spool_folder.close()
    assert list(tmp_path.iterdir()) == [], "nothing is left over"
    assert spool_folder.used == 0


async def fill(spool: Spool, pieces: Sequence[bytes], number: int = 1) -> SpooledInstance:
    """Put an instance in; waits as a C-STORE does."""
    instance = await spool.begin(info(number), HEADER)
    for piece in pieces:
        await instance.put(piece)
    instance.finish()
    return instance


async def read(spool: Spool, instance: SpooledInstance, pause: float = 0.0) -> bytes:
    """Read an instance from its beginning, and check that the header comes first."""
    reader = InstanceReader(spool, instance)
    index = spool.instances.index(instance)

    def position() -> tuple[int, int]:
        return index, reader.offset

    spool.positions.add(position)
    pieces = []
    try:
        async for piece in reader:
            pieces.append(piece)
            await asyncio.sleep(pause)
    finally:
        reader.close()
        spool.positions.discard(position)
    whole = b"".join(pieces)
    assert whole.startswith(HEADER)
    assert reader.has_all
    assert len(whole) == reader.offset == instance.size
    return whole[len(HEADER) :]


def noise(size: int, seed: int = 1) -> list[bytes]:
    """Return pieces that differ from each other."""
    source = random.Random(seed)
    return [source.randbytes(PIECE) for _ in range(size // PIECE)]


# --- every byte to every reader ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(st.binary(max_size=50), max_size=20), keep=st.integers(0, 60), eager=st.booleans())
def test_bytes_come_out_as_they_went_in(
    chunks: list[bytes], keep: int, eager: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is still in memory and whatever is in the file by then; empty chunks too."""

    async def pass_through() -> None:
        spool_folder = SpoolFolder(tmp_path_factory.getbasetemp(), 1 << 40)
        spool = Spool(spool_folder.new(), eager=eager)
        early_reader: list[asyncio.Task[bytes]] = []

        def at_the_beginning() -> tuple[int, int]:
            return 0, 0

        async def read_early() -> bytes:
            while not spool.instances:
                await spool.arrivals.wait()
            spool.positions.discard(at_the_beginning)
            return await read(spool, spool.instances[0])

        spool.positions.add(at_the_beginning)
        early_reader.append(asyncio.ensure_future(read_early()))
        instance = await fill(spool, chunks)
        await asyncio.sleep(0.001)
        if eager or spool.is_joinable:
            assert await read(spool, instance) == b"".join(chunks)
        assert await early_reader[0] == b"".join(chunks)
        await spool.close()
        spool_folder.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "KEEP", keep)
        asyncio.run(pass_through())


@pytest.mark.parametrize("eager", [True, False])
async def test_fast_slow_and_late_readers_get_the_same(folder: SpoolFolder, eager: bool) -> None:
    pieces = noise(24 * MB)
    wanted = hashlib.sha256(b"".join(pieces)).digest()
    spool = Spool(folder.new(), eager=eager)
    instance = await spool.begin(info(), HEADER)
    early = [asyncio.ensure_future(read(spool, instance, pause)) for pause in (0.0, 0.0, 0.002)]
    await asyncio.sleep(0)
    for piece in pieces:
        await instance.put(piece)
    instance.finish()
    assert spool.is_joinable or not eager
    readers = [*early, asyncio.ensure_future(read(spool, instance))] if spool.is_joinable else early
    for body in await asyncio.gather(*readers):
        assert hashlib.sha256(body).digest() == wanted
    await spool.close()


async def test_what_is_not_to_be_kept_is_not_written_for_a_reader_that_keeps_pace(
    folder: SpoolFolder, tmp_path: Path
) -> None:
    """It is in memory for a moment, and then nowhere: nobody can join any more."""
    pieces = noise(24 * MB)
    spool = Spool(folder.new(), eager=False)
    instance = await spool.begin(info(), HEADER)
    reading = asyncio.ensure_future(read(spool, instance))
    await asyncio.sleep(0)
    for piece in pieces:
        await instance.put(piece)
        await asyncio.sleep(0)
        assert sum(map(len, instance.chunks)) <= KEEP + 2 * PIECE
    instance.finish()
    assert await reading == b"".join(pieces)
    assert not spool.is_joinable
    assert list(tmp_path.iterdir()) == []
    await spool.close()


async def test_memory_is_bounded_and_nobody_is_waited_for(folder: SpoolFolder) -> None:
    """No reader takes anything, and the archive's side gets through all the same."""
    pieces = [bytes(PIECE)] * (64 * MB // PIECE)
    spool = Spool(folder.new(), eager=False)
    spool.positions.add(lambda: (0, 0))
    most = 0
    instance = await spool.begin(info(), HEADER)
    for piece in pieces:
        await instance.put(piece)
        most = max(most, sum(map(len, instance.chunks)))
    instance.finish()
    await spool.flush()
    assert most <= KEEP + UNWRITTEN_LIMIT + 2 * PIECE
    assert not spool.is_held_back
    assert await read(spool, instance) == b"".join(pieces)
    await spool.close()


async def test_without_a_need_nothing_is_written(folder: SpoolFolder, tmp_path: Path) -> None:
    spool = Spool(folder.new(), eager=False)
    instance = await fill(spool, [bytes(KEEP - PIECE)])
    await asyncio.sleep(0.01)
    assert list(tmp_path.iterdir()) == []
    assert instance.file is None
    await spool.close()


async def test_what_is_to_be_kept_is_written_at_once_and_for_the_owner_alone(
    folder: SpoolFolder, tmp_path: Path
) -> None:
    spool = Spool(folder.new(), eager=True)
    instances = [await fill(spool, [bytes([number]) * 10], number) for number in range(1, 4)]
    await spool.flush()
    for number, instance in enumerate(instances, 1):
        file = instance.file
        assert file is not None
        assert file.path.read_bytes() == HEADER + bytes([number]) * 10
        assert file.written == file.end == instance.size
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert open_below(tmp_path) == []
    await spool.close()


async def test_readers_leave_no_file_open(folder: SpoolFolder, tmp_path: Path) -> None:
    spool = Spool(folder.new(), eager=True)
    instance = await fill(spool, noise(8 * MB))
    await spool.flush()
    reader = InstanceReader(spool, instance)
    await anext(reader)
    assert len(open_below(tmp_path)) == 1
    reader.close()
    assert open_below(tmp_path) == []
    await spool.close()


# --- failures ------------------------------------------------------------------------------------------------


async def test_a_failure_is_told_to_both_sides(folder: SpoolFolder) -> None:
    spool = Spool(folder.new(), eager=True)
    instance = await spool.begin(info(), HEADER)
    reading = asyncio.ensure_future(read(spool, instance))
    await asyncio.sleep(0)
    instance.fail(IncompleteError("first"))
    instance.fail(IncompleteError("second"))
    with pytest.raises(IncompleteError, match="first"):
        await reading
    with pytest.raises(IncompleteError, match="first"):
        await instance.put(b"more")
    await spool.close()


async def test_what_is_whole_cannot_fail_any_more(folder: SpoolFolder) -> None:
    spool = Spool(folder.new(), eager=True)
    instance = await fill(spool, [b"all"])
    spool.fail(IncompleteError("too late"))
    assert await read(spool, instance) == b"all"
    with pytest.raises(IncompleteError, match="too late"):
        await spool.begin(info(2), HEADER)
    await spool.close()


@pytest.mark.parametrize("damage", ["removed", "cut short"])
async def test_a_file_that_was_damaged_is_noticed(folder: SpoolFolder, damage: str) -> None:
    spool = Spool(folder.new(), eager=True)
    instance = await fill(spool, noise(16 * MB))
    await spool.flush()
    assert instance.file is not None
    if damage == "removed":
        instance.file.path.unlink()
    else:
        os.truncate(instance.file.path, 1000)
    with pytest.raises(IncompleteError, match="spool"):
        await read(spool, instance)
    await spool.close()


async def test_a_full_disk_is_no_failure(
    folder: SpoolFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a part was written: readers get the rest from memory, the slowest sets the pace, and one line is logged."""
    written = 0
    pwritev = os.pwritev

    def full_after_4_mb(descriptor: int, pieces: Sequence[bytes], offset: int) -> int:
        nonlocal written
        if written >= 4 * MB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        step = pwritev(descriptor, pieces, offset)
        written += step
        return step

    monkeypatch.setattr(os, "pwritev", full_after_4_mb)
    pieces = noise(24 * MB)
    spool = Spool(folder.new(), eager=True)
    instance = await spool.begin(info(), HEADER)
    readers = [asyncio.ensure_future(read(spool, instance, pause)) for pause in (0.0, 0.001)]
    await asyncio.sleep(0)
    for piece in pieces:
        await instance.put(piece)
    instance.finish()
    bodies = await asyncio.gather(*readers)
    assert bodies == [b"".join(pieces)] * 2
    assert not spool.can_write
    assert not spool.is_joinable, "what all readers had is gone"
    assert [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()] == [
        "the spool cannot be written: No space left on device; going on without"
    ]
    await spool.close()


async def test_past_its_bound_the_spool_takes_no_more(tmp_path: Path) -> None:
    """The bound counts for all retrievals together, and what one gives back another may have."""
    spool_folder = SpoolFolder(tmp_path, 6 * MB)
    first, second = (Spool(spool_folder.new(), eager=True) for _ in range(2))
    await fill(first, [bytes(4 * MB)])
    await first.flush()
    assert first.can_write
    await fill(second, [bytes(4 * MB)])
    await second.flush()
    assert second.is_beyond_bound
    assert not second.can_write
    await first.close()
    third = Spool(spool_folder.new(), eager=True)
    await fill(third, [bytes(4 * MB)])
    await third.flush()
    assert third.can_write
    await second.close()
    await third.close()
    spool_folder.close()


# --- without files -------------------------------------------------------------------------------------------


async def test_without_files_the_slowest_reader_holds_back_the_archive() -> None:
    spool = Spool(None, eager=False)
    position = (0, 0)
    spool.positions.add(lambda: position)
    instance = await spool.begin(info(), HEADER)
    while sum(map(len, instance.chunks)) < INSTANCE_LIMIT:
        await instance.put(bytes(PIECE))
    waiting = asyncio.ensure_future(instance.put(b"one too many"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert spool.is_held_back
    position = (0, instance.size)
    spool.forget_what_was_read()
    await asyncio.wait_for(waiting, 1)
    assert not spool.is_joinable
    await spool.close()


async def test_without_files_only_so_many_unread_instances() -> None:
    spool = Spool(None, eager=False)
    spool.positions.add(lambda: (0, 0))
    for number in range(UNREAD_INSTANCES):
        await fill(spool, [b"small"], number)
    waiting = asyncio.ensure_future(spool.begin(info(1000), HEADER))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    spool.fail(IncompleteError("the client has left"))
    with pytest.raises(IncompleteError, match="has left"):
        await waiting
    await spool.close()


async def test_without_files_and_readers_nothing_is_held() -> None:
    spool = Spool(None, eager=False)
    instance = await fill(spool, [bytes(PIECE)] * 100)
    assert not instance.chunks
    assert not spool.is_joinable
    await spool.close()


async def test_closing_waits_for_what_is_being_written(folder: SpoolFolder) -> None:
    """Or the file would come into being after its folder was removed."""
    spool = Spool(folder.new(), eager=True)
    await fill(spool, [bytes(PIECE)] * 8)
    await spool.close()
