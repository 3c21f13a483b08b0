"""One instance as a file that can be read at any offset, wherever it comes from.

What the cache has is its own file. What arrives is read to its end into a temporary one: a small instance into
memory, a larger one into the storage's spool, where nobody else finds it. Both are gone with the `async with`, also
when the client has left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Final

from dul.uids import IMPLEMENTATION_CLASS_UID
from proxy.archive.errors import IncompleteError, NotFoundError
from proxy.archive.retrieval.delivery import Arriving, Cached, Delivery
from proxy.archive.spool.files import RetrievalFolder
from proxy.archive.spool.reader import InstanceReader
from proxy.archive.spool.spool import InstanceInfo
from proxy.archive.views import ArchivesView
from proxy.dataset.layout import inflate_to
from proxy.dataset.part10 import file_header
from proxy.dataset.reader import LIMITS
from proxy.dicomweb.errors import Unavailable
from proxy.threads import in_thread

SMALL: Final = 4 * 1024 * 1024
"""Bytes of an instance that stay in memory where there is a storage: nearly all single images, which then cost no
writing."""

MEMORY_LIMIT: Final = 512 * 1024 * 1024
"""Bytes of all temporary files in memory, over all requests. It takes the largest multi-frame images where there is
no storage, and leaves a small machine the rest of its memory."""

INFLATED: Final = {
    "1.2.840.10008.1.2.1.99": "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.4.95": "1.2.840.10008.1.2.4.94",
    "1.2.840.10008.1.2.4.205": "1.2.840.10008.1.2.4.204",
}
"""Deflated transfer syntaxes, and what their data sets are in once they are inflated."""

_BATCH: Final = 1024 * 1024
"""Bytes that are written to a file at once."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """An instance as a Part 10 file, for as long as it is open.

    `file` has a descriptor: `os.pread` reads it in any thread without moving its position.
    """

    file: BinaryIO
    info: InstanceInfo
    header_size: int
    """Bytes up to the data set."""
    size: int
    """Bytes of the whole file."""
    etag: str | None
    """Made of the content alone, without quotes; None for what is not from the cache."""


class _Memory:
    """Counts the bytes of temporary files in memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Count `size` bytes more; False when they are beyond the limit."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True


_memory: Final = _Memory(MEMORY_LIMIT)


def take_memory(size: int) -> None:
    """Count bytes of another temporary file in memory, until `give_memory`; `Unavailable` when it is too much."""
    if not _memory.take(size):
        raise Unavailable("too many large instances are being read at the moment")


def give_memory(size: int) -> None:
    """Count them no more."""
    _memory.used -= size


@contextlib.asynccontextmanager
async def local_file(delivery: Delivery, archives: ArchivesView) -> AsyncIterator[LocalFile]:
    """The first instance of a delivery, whole.

    Raises what failed it, `NotFoundError` when there is none, `Unavailable` when there is no room for it.
    """
    if isinstance(delivery, Cached):
        async with contextlib.aclosing(delivery.files()) as files:
            async for instance, file in files:
                yield LocalFile(file, instance.info, instance.header_size, instance.size, instance.etag)
                return
    elif isinstance(delivery, Arriving):
        async for reader in delivery.reader:
            async with arrived_file(reader, archives) as local:
                yield local
            return
    raise NotFoundError("nothing found")


@contextlib.asynccontextmanager
async def inflated(local: LocalFile) -> AsyncIterator[LocalFile]:
    """The same instance with its data set inflated (PS3.5 A.5); it itself where that is not deflated.

    The file has a header of the transfer syntax that it is in then. Raises `DatasetError` when it cannot be inflated,
    `Unavailable` when there is no room for it.
    """
    syntax = INFLATED.get(local.info.transfer_syntax)
    if syntax is None:
        yield local
        return
    info = replace(local.info, transfer_syntax=syntax)
    header = file_header(
        info.sop_class_uid, info.sop_instance_uid, syntax, implementation_class_uid=IMPLEMENTATION_CLASS_UID
    )
    taken = len(header) + LIMITS.most_inflated(local.size - local.header_size)
    take_memory(taken)
    try:
        with os.fdopen(os.memfd_create("inflated", os.MFD_CLOEXEC), "w+b") as file:
            os.write(file.fileno(), header)
            size = await in_thread(inflate_to, local.file.fileno(), local.header_size, local.size, file.fileno())
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            give_memory(taken - len(header) - size)
            taken = len(header) + size
            yield LocalFile(file, info, len(header), taken, local.etag)
    finally:
        give_memory(taken)


@contextlib.asynccontextmanager
async def arrived_file(reader: InstanceReader, archives: ArchivesView) -> AsyncIterator[LocalFile]:
    """An instance that is arriving, once it is whole. The errors are those of `local_file`."""
    temporary = _Temporary(archives.depot.new_folder())
    try:
        async for chunk in reader:
            await temporary.add(chunk)
        instance = reader.instance
        file = await temporary.finish()
        yield LocalFile(file, instance.info, instance.header_size, instance.size, None)
    finally:
        await temporary.close()


class _Temporary:
    """A temporary file that begins in memory, and moves to the spool when it outgrows `SMALL`.

    In memory it is a file all the same (memfd_create), so that whoever reads it needs to know one way only.
    """

    def __init__(self, folder: RetrievalFolder | None) -> None:
        self._folder = folder
        self._file = folder.file() if folder is not None else None
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._descriptor = -1
        """Of the file in memory, then of the one that is read."""
        self._taken = 0
        """Bytes that are counted as in memory."""
        self._moved = False
        self._opened: BinaryIO | None = None

    async def add(self, chunk: bytes) -> None:
        """Add bytes; `Unavailable` when there is no room for them, or they cannot be written."""
        self._pending.append(chunk)
        self._pending_size += len(chunk)
        if not self._moved and not self._fits_in_memory(len(chunk)):
            if self._folder is None:
                raise Unavailable("too many large instances are being read at the moment")
            self._moved = True
        if self._moved and self._pending_size >= _BATCH:
            await self._write()
        elif not self._moved and self._folder is None and self._pending_size >= _BATCH:
            self._to_memory()

    def _fits_in_memory(self, size: int) -> bool:
        if self._folder is not None and self._taken + size > SMALL:
            return False
        if not _memory.take(size):
            return False
        self._taken += size
        return True

    def _to_memory(self) -> None:
        if self._descriptor < 0:
            self._descriptor = os.memfd_create("instance", os.MFD_CLOEXEC)
        data = memoryview(b"".join(self._pending))
        while data:
            data = data[os.write(self._descriptor, data) :]
        self._pending, self._pending_size = [], 0

    async def _write(self) -> None:
        assert self._folder is not None
        assert self._file is not None
        if not self._folder.has_room(self._pending_size):
            raise Unavailable("the storage has no room for the instance at the moment")
        pending, self._pending, self._pending_size = self._pending, [], 0
        try:
            await self._folder.write([(self._file, self._file.end, pending)])
        except OSError as error:
            raise Unavailable(f"the storage cannot be written: {error.strerror}") from error
        give_memory(self._taken)
        self._taken = 0

    async def finish(self) -> BinaryIO:
        """The file, from its beginning, once all was added."""
        if self._moved:
            await self._write()
            self._reopen()
        else:
            self._to_memory()
            os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._opened = os.fdopen(self._descriptor, "rb")
        return self._opened

    def _reopen(self) -> None:
        assert self._file is not None
        self._file.close()
        try:
            # Not in a thread: the file was made a moment ago, and who is cancelled would leave it open.
            self._descriptor = os.open(self._file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise IncompleteError(f"the spool cannot be read: {error.strerror}") from error

    async def close(self) -> None:
        """Nothing of it is left."""
        self._pending = []
        give_memory(self._taken)
        self._taken = 0
        if self._opened is not None:
            self._opened.close()
        elif self._descriptor >= 0:
            os.close(self._descriptor)
        if self._file is not None:
            self._file.close()
        if self._folder is not None:
            await self._folder.remove()
