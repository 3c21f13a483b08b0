"""The spool of a retrieval: its instances between the archive and their readers.

The archive's side puts chunks in; any number of readers take them out, each at its own pace and from the beginning.
What has come lately is in memory. What is to be kept goes to files at once; else only what some reader is too slow
for, and what all have had is dropped. So a slow reader does not hold the archive back. Where files cannot be written
(a full disk, the bound of the spool) the slowest does. The data sets' bytes pass as they came, behind a Part 10 header.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from proxy.archive.errors import ArchiveError
from proxy.archive.spool.files import RetrievalFolder, SpoolFile
from proxy.archive.spool.signal import Signal

logger = logging.getLogger(__name__)

KEEP: Final = 4 * 1024 * 1024
"""Bytes of one retrieval that stay in memory: a reader that keeps pace reads no file, and one who comes a moment later
than others can still have all."""

UNWRITTEN_LIMIT: Final = 8 * 1024 * 1024
"""Bytes that wait to be written at which the archive has to wait for the disk."""

BATCH: Final = 4 * 1024 * 1024
"""Bytes written at once."""

INSTANCE_LIMIT: Final = 2 * 1024 * 1024
"""Without files: unread bytes of one instance at which its C-STORE waits."""

UNREAD_LIMIT: Final = 8 * 1024 * 1024
"""Without files: unread bytes at which no further instance is begun."""

UNREAD_INSTANCES: Final = 64
"""Without files: unread instances at which no further one is begun."""

Position = tuple[int, int]
"""How far a reader is: an instance by its index, and an offset in that."""

_Part = tuple["SpooledInstance", int, list[bytes]]
"""Chunks of an instance, and their offset."""


@dataclass(frozen=True, slots=True)
class InstanceInfo:
    """What is known of an instance before its data set is read: from the command, the context, and the first bytes.

    `study` and `series` are None where the data set's beginning does not tell; `patient`, the Patient ID (0010,0020),
    is empty then.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: str
    study: str | None
    series: str | None
    patient: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Series (empty where not known) and SOP instance UID, which tell instances of one study apart."""
        return self.series or "", self.sop_instance_uid


class SpooledInstance:
    """One instance, as a Part 10 file that is still growing. Made by `Spool.begin`."""

    __slots__ = (
        "_spool",
        "chunks",
        "claimed",
        "error",
        "file",
        "finished",
        "first_number",
        "grown",
        "header_size",
        "in_memory_from",
        "info",
        "size",
        "written",
    )

    def __init__(self, info: InstanceInfo, header: bytes, spool: Spool) -> None:
        self.info = info
        self.header_size = len(header)
        self.size = 0
        """Bytes of the Part 10 file so far."""
        self.finished = False
        self.error: ArchiveError | None = None
        self.grown = Signal()
        self.file: SpoolFile | None = None
        self.chunks: deque[bytes] = deque()
        """The chunks in memory: the last ones of all."""
        self.first_number = 0
        """The number of the first of these, counted from the beginning of the instance."""
        self.in_memory_from = 0
        """The offset of its first byte."""
        self.claimed = 0
        """How many chunks, from the first, are in the file, being written to it, or were dropped without."""
        self.written = 0
        """How many are not being written any more."""
        self._spool = spool
        self._add(header)

    @property
    def is_written(self) -> bool:
        """True when all that came is in the file, or dropped."""
        return self.written == self.first_number + len(self.chunks)

    async def put(self, chunk: bytes) -> None:
        """Add bytes of the data set; waits for room. Raises what failed the instance meanwhile."""
        await self._spool.wait_for_room(self)
        if self.error is not None:
            raise self.error
        if chunk:
            self._add(chunk)

    def _add(self, chunk: bytes) -> None:
        self.chunks.append(chunk)
        self.size += len(chunk)
        self.grown.set()
        self._spool.added(len(chunk))

    def finish(self) -> None:
        """The data set is whole."""
        self.finished = True
        self.grown.set()
        self._spool.ended(self)

    def fail(self, error: ArchiveError) -> None:
        """The rest will not come; everyone is told."""
        if not self.finished and self.error is None:
            self.error = error
            self.grown.set()
            self._spool.ended(self)

    @property
    def has_ended(self) -> bool:
        """True when nothing more will come."""
        return self.finished or self.error is not None

    def chunk(self, number: int) -> bytes | None:
        """The chunk of that number, where it is in memory."""
        index = number - self.first_number
        return self.chunks[index] if 0 <= index < len(self.chunks) else None

    def drop_first(self) -> int:
        """Forget the first chunk in memory; returns its size."""
        size = len(self.chunks.popleft())
        self.first_number += 1
        self.in_memory_from += size
        self.claimed = max(self.claimed, self.first_number)
        self.written = max(self.written, self.first_number)
        return size


class Spool:
    """The instances of one retrieval, in order of arrival.

    `folder` is None where there is no storage. With `eager`, all is written at once, since it is to be kept. All state
    is of the event loop's thread. `close` ends it.
    """

    def __init__(self, folder: RetrievalFolder | None, *, eager: bool) -> None:
        self.instances: list[SpooledInstance] = []
        self.arrivals = Signal()
        """Set when an instance begins or ends."""
        self.room = Signal()
        """Set when there may be room again, and when something was written."""
        self.positions: set[Callable[[], Position]] = set()
        """How far each reader is."""
        self.is_joinable = True
        """True while a new reader can have everything from the beginning."""
        self.write_error: OSError | None = None
        self.is_beyond_bound = False
        self._folder = folder
        self._eager = eager
        self._in_memory = 0
        self._unwritten = 0
        self._oldest = 0  # index of the first instance that may have chunks in memory
        self._to_write = 0  # index of the first instance that may have chunks in no file
        self._writer: asyncio.Task[None] | None = None
        self._error: ArchiveError | None = None

    @property
    def can_write(self) -> bool:
        """False without a storage, after a file could not be written, and past the bound of the spool."""
        return self._folder is not None and self.write_error is None and not self.is_beyond_bound

    @property
    def has_written(self) -> bool:
        """True when there was something to write, whether that could be done or not."""
        return self._writer is not None

    # --- the archive's side ----------------------------------------------------------------------------------

    async def begin(self, info: InstanceInfo, header: bytes) -> SpooledInstance:
        """Take a new instance; waits for room. Raises what ended the retrieval meanwhile."""
        while self._error is None and self._is_full:
            await self.room.wait()
        if self._error is not None:
            raise self._error
        instance = SpooledInstance(info, header, self)
        self.instances.append(instance)
        self.arrivals.set()
        self.added(0)
        return instance

    async def wait_for_room(self, instance: SpooledInstance) -> None:
        """Return when `instance` may grow, or has failed."""
        while instance.error is None and self._holds_back(instance):
            await self.room.wait()

    @property
    def _is_full(self) -> bool:
        if self.can_write:
            return self._excess >= UNWRITTEN_LIMIT
        unread = sum(bool(each.chunks) for each in self._from(self._oldest))
        return self._in_memory >= UNREAD_LIMIT or unread >= UNREAD_INSTANCES

    def _holds_back(self, instance: SpooledInstance) -> bool:
        if self.can_write:
            return self._excess >= UNWRITTEN_LIMIT
        # By instance, since the one that readers wait for must go on whatever others have sent meanwhile.
        return instance.size - instance.in_memory_from >= INSTANCE_LIMIT

    @property
    def is_held_back(self) -> bool:
        """True while the archive has to wait for readers or for the disk."""
        growing = (each for each in self._from(self._oldest) if not each.has_ended)
        return self._is_full or any(map(self._holds_back, growing))

    @property
    def _excess(self) -> int:
        """Bytes that should be in files and are not."""
        return self._unwritten if self._eager else self._unwritten - KEEP

    def added(self, size: int) -> None:
        """An instance has grown."""
        self._in_memory += size
        self._unwritten += size
        self.forget_what_was_read()
        if self.can_write and self._excess > 0:
            self._start_writing()

    def ended(self, instance: SpooledInstance) -> None:
        """An instance is whole, or has failed."""
        if instance.is_written and instance.file is not None:
            instance.file.close()
        self.arrivals.set()
        self.room.set()

    def fail(self, error: ArchiveError) -> None:
        """No more will come: for whoever waits for room, and every instance that is not whole."""
        self._error = error
        for instance in self._from(0):
            instance.fail(error)
        self.room.set()
        self.arrivals.set()

    def _from(self, start: int) -> Iterator[SpooledInstance]:
        return (self.instances[index] for index in range(start, len(self.instances)))

    # --- memory ----------------------------------------------------------------------------------------------

    def _trim(self) -> None:
        """Forget the oldest chunks that are in files, down to `KEEP`."""
        while self._oldest < len(self.instances) and _is_through(self.instances[self._oldest]):
            self._oldest += 1
        for instance in self._from(self._oldest):
            while self._in_memory > KEEP and instance.chunks and instance.written > instance.first_number:
                self._drop(instance)
            if self._in_memory <= KEEP:
                break

    def forget_what_was_read(self) -> None:
        """Drop what every reader has had: down to `KEEP`, or, without files, all of it. It makes room."""
        keep = KEEP if self.can_write else 0
        if (self._eager and self.can_write) or self._in_memory <= keep:
            return
        slowest = min((position() for position in self.positions), default=(len(self.instances), 0))
        for index in range(self._oldest, min(slowest[0] + 1, len(self.instances))):
            instance = self.instances[index]
            while self._in_memory > keep and self._may_drop(instance, index, slowest):
                self._drop(instance)
            if index == self._oldest and _is_through(instance):
                self._oldest += 1
            if self._in_memory <= keep:
                break
        self.room.set()

    def _may_drop(self, instance: SpooledInstance, index: int, slowest: Position) -> bool:
        """True when the first chunk was taken by all and is not being written at the moment."""
        if not instance.chunks or instance.written <= instance.first_number < instance.claimed:
            return False
        return (index, instance.in_memory_from + len(instance.chunks[0])) <= slowest

    def _drop(self, instance: SpooledInstance) -> None:
        is_written = instance.written > instance.first_number
        size = instance.drop_first()
        self._in_memory -= size
        if not is_written:
            self._unwritten -= size
            self.is_joinable = False

    # --- files -----------------------------------------------------------------------------------------------

    def _start_writing(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        while self.can_write and (batch := self._next_batch()):
            size = sum(len(chunk) for _, _, chunks in batch for chunk in chunks)
            try:
                await self._write_batch(batch, size)
            except OSError as error:
                logger.error("the spool cannot be written: %s; going on without", error.strerror)
                self.write_error = error
            if self.can_write:
                self._written(batch, size)
            else:
                for instance, _, _ in batch:
                    instance.claimed = instance.written
        self.forget_what_was_read()

    async def _write_batch(self, batch: list[_Part], size: int) -> None:
        assert self._folder is not None
        if not self._folder.has_room(size):
            self.is_beyond_bound = True
            return
        await self._folder.write([(self._file_of(each), offset, chunks) for each, offset, chunks in batch])

    def _file_of(self, instance: SpooledInstance) -> SpoolFile:
        assert self._folder is not None
        instance.file = instance.file or self._folder.file()
        return instance.file

    def _next_batch(self) -> list[_Part]:
        """The oldest chunks that are in no file, `BATCH` bytes or a little more."""
        batch: list[_Part] = []
        room = min(BATCH, self._excess)
        for instance in self._from(self._to_write):
            if room <= 0:
                break
            before = itertools.islice(instance.chunks, instance.claimed - instance.first_number)
            offset = instance.in_memory_from + sum(map(len, before))
            chunks: list[bytes] = []
            while room > 0 and (chunk := instance.chunk(instance.claimed)) is not None:
                chunks.append(chunk)
                instance.claimed += 1
                room -= len(chunk)
            if chunks:
                batch.append((instance, offset, chunks))
        return batch

    def _written(self, batch: list[_Part], size: int) -> None:
        self._unwritten -= size
        for instance, _, _ in batch:
            instance.written = instance.claimed
            if instance.has_ended and instance.is_written and instance.file is not None:
                instance.file.close()
        while self._to_write < len(self.instances):
            first = self.instances[self._to_write]
            if not (first.has_ended and first.is_written):
                break
            self._to_write += 1
        self._trim()
        self.room.set()

    async def flush(self) -> None:
        """Return when all that came is in files, where it can be."""
        while self.can_write and self._excess > 0:
            await self.room.wait()

    async def read(self, descriptor: int, size: int, offset: int) -> bytes:
        """Read from an open file of the spool, without holding up the event loop; `OSError` when it fails."""
        assert self._folder is not None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._folder.threads, os.pread, descriptor, size, offset)

    async def close(self) -> None:
        """Drop everything, and remove the files."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait([self._writer])
        for instance in self.instances:
            if instance.file is not None:
                instance.file.close()
        self.instances.clear()
        if self._folder is not None:
            await self._folder.remove()


def _is_through(instance: SpooledInstance) -> bool:
    return instance.has_ended and not instance.chunks
