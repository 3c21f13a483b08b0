"""The files of the spool: one for each instance, written in a thread, removed when the last reader has left.

Files are 0600 in a directory that is 0700: they hold patients' images. What is left of a killed process is removed
when the storage is opened next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller
from pathlib import Path
from typing import BinaryIO, Final

from proxy.threads import in_thread

logger = logging.getLogger(__name__)

_MAX_VECTORS: Final = 512
"""Pieces in one write; Linux takes 1,024."""


class SpoolFile:
    """The file of one instance. `write` and `close` are for one thread at a time."""

    __slots__ = ("_descriptor", "checksum", "end", "path", "written")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        """The offset behind what was written last."""
        self.written = 0
        """Bytes written; less than `end` where some were left out."""
        self.checksum = 0
        """CRC-32 of them."""
        self._descriptor = -1

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        """Write pieces at `offset`, which is `end` or behind it; `OSError` when it cannot be done."""
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self.path, flags, 0o600)
        self.end = offset
        for start in range(0, len(pieces), _MAX_VECTORS):
            self._write(list(pieces[start : start + _MAX_VECTORS]))

    def _write(self, pieces: list[bytes]) -> None:
        wanted, done = sum(map(len, pieces)), 0
        left = pieces
        while True:
            step = os.pwritev(self._descriptor, left, self.end)
            self.end += step
            self.written += step
            done += step
            if done == wanted:
                break
            left = [b"".join(pieces)[done:]]  # a disk that is nearly full, or a signal
        for piece in pieces:
            self.checksum = zlib.crc32(piece, self.checksum)

    def close(self) -> None:
        """Close the file; what was written can be read on."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


Batch = Sequence[tuple[SpoolFile, int, Sequence[bytes]]]
"""What to write: for each file, where, and the pieces."""


class SpoolFolder:
    """Where all retrievals spool to: the folder, the threads that write, and the bound on bytes.

    `limit` bounds the bytes of all retrievals together.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self.used = 0
        self.threads = ThreadPoolExecutor(4, thread_name_prefix="spool")

    def new(self) -> RetrievalFolder:
        """A folder for one retrieval or answer, made when its first file is."""
        return RetrievalFolder(self, self.folder / secrets.token_hex(8))

    def close(self) -> None:
        """End the threads; nothing is spooled any more."""
        self.threads.shutdown(wait=True)


class RetrievalFolder:
    """The files of one retrieval, or of one answer out of the cache."""

    def __init__(self, parent: SpoolFolder, path: Path) -> None:
        self._parent = parent
        self._path = path
        self._count = 0
        self._bytes = 0
        self._made = False

    @property
    def threads(self) -> ThreadPoolExecutor:
        """What reads and writes its files."""
        return self._parent.threads

    def has_room(self, size: int) -> bool:
        """True when so many more bytes are within the bound."""
        return self._parent.used + size <= self._parent.limit

    def file(self) -> SpoolFile:
        """A new file, which comes into being with its first byte."""
        self._count += 1
        return SpoolFile(self._path / f"{self._count}.part")

    async def write(self, batch: Batch) -> None:
        """Write to files; `OSError` when that fails midway."""
        before = sum(file.written for file, _, _ in batch)
        try:
            await in_thread(self._write, batch, executor=self.threads)
        finally:
            grown = sum(file.written for file, _, _ in batch) - before
            self._bytes += grown
            self._parent.used += grown

    def _write(self, batch: Batch) -> None:
        self._make()
        for file, offset, pieces in batch:
            file.write(offset, pieces)

    async def new_file(self) -> BinaryIO:
        """A new empty file, open for another process to write; `count` what it has written. `OSError`."""
        path = self.file().path
        return await in_thread(self._open_new, path, executor=self.threads, undo=methodcaller("close"))

    def _open_new(self, path: Path) -> BinaryIO:
        self._make()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.fdopen(os.open(path, flags, 0o600), "r+b")

    def count(self, size: int) -> None:
        """Count bytes that another process has written to its files."""
        self._bytes += size
        self._parent.used += size

    async def link(self, files: Sequence[Path]) -> list[Path]:
        """Link files to this folder, so that they stay while it does; one that is gone has no file at its link.

        `OSError` when links cannot be made.
        """
        links = [self._path / f"{number}.link" for number in range(len(files))]
        await in_thread(self._link, files, links, executor=self.threads)
        return links

    def _link(self, files: Sequence[Path], links: Sequence[Path]) -> None:
        self._make()
        for file, link in zip(files, links, strict=True):
            with contextlib.suppress(FileNotFoundError):
                link.hardlink_to(file)

    def _make(self) -> None:
        if not self._made:
            self._path.mkdir(mode=0o700)
            self._made = True

    async def remove(self) -> None:
        """Remove the folder with all files; readers that have one open can go on."""
        self._parent.used -= self._bytes
        self._bytes = 0
        if self._made:
            # Whoever waits for it may be cancelled, but not the removal.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self.threads, self._remove))

    def _remove(self) -> None:
        try:
            shutil.rmtree(self._path)
        except OSError as error:
            logger.error("the spool cannot be emptied: %s", error.strerror)
