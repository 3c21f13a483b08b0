"""What is kept on the disk at `storagePath`: the spool, and the cache where it is enabled.

A storage that cannot be used is no reason not to serve: then nothing is kept, and slow clients hold archives back.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Final

from proxy.archive.cache.cache import Cache, CacheError, Shelf, purge_storage
from proxy.archive.cache.files import Storage, StorageInUseError
from proxy.archive.spool.files import RetrievalFolder, SpoolFolder

logger = logging.getLogger(__name__)

MEGABYTE: Final = 1024 * 1024


class Depot:
    """The storage of a running proxy, between `open` and `close`."""

    def __init__(self, folder: Path, *, use_cache: bool, retention_seconds: float, max_bytes: int) -> None:
        self.cache: Cache | None = None
        self._unusable: str | None = None
        self._unwritable: str | None = None
        self._folder = folder
        self._max_bytes = max_bytes
        self._wanted = Cache(folder, retention_seconds=retention_seconds, max_bytes=max_bytes) if use_cache else None
        self._spool: SpoolFolder | None = None
        self._lock = -1

    async def open(self) -> None:
        """Take the storage; `StorageInUseError` when another proxy has it. Goes on without when it cannot be used."""
        try:
            if self._wanted is not None:
                await self._wanted.open()
                self.cache = self._wanted
            else:
                self._lock = await asyncio.to_thread(_take_without_cache, self._folder)
        except StorageInUseError:
            raise
        except (CacheError, OSError) as error:
            self._unusable = str(error)
            logger.error("going on without storage: %s", error)
        else:
            self._spool = SpoolFolder(Storage(self._folder).spool, self._max_bytes)

    def shelf(self, view: str) -> Shelf | None:
        """What the cache keeps for a view; None where nothing is kept."""
        return self.cache.shelf(view) if self.cache is not None else None

    @property
    def failure(self) -> str | None:
        """Why nothing is kept, or not all that should be, for an administrator; None when all is well."""
        failure = self.cache.usage().failure if self.cache is not None else None
        return self._unusable or self._unwritable or failure

    def note_writing(self, error: OSError | None) -> None:
        """Take note of how writing to the spool went the last time."""
        self._unwritable = None if error is None else f"the spool cannot be written: {error.strerror}"

    def new_folder(self) -> RetrievalFolder | None:
        """A folder for the spool of one retrieval."""
        return self._spool.new() if self._spool is not None else None

    async def close(self) -> None:
        """Give the storage back."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        if self.cache is not None:
            await self.cache.close()
            self.cache = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _take_without_cache(folder: Path) -> int:
    """Take the storage for the spool alone. What an earlier configuration kept goes: nobody would remove it later."""
    lock = Storage(folder).take()
    try:
        purge_storage(folder)
    except CacheError:
        os.close(lock)
        raise
    return lock
