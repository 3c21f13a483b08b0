"""What a client gets: files of the cache, or instances as they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from operator import methodcaller
from typing import BinaryIO

from proxy.archive.cache.cache import CachedInstance, CacheError, DamagedError, Shelf
from proxy.archive.errors import IncompleteError
from proxy.archive.retrieval.retrieval import Reader
from proxy.archive.spool.files import RetrievalFolder
from proxy.threads import in_thread


class Arriving:
    """Instances as they arrive. `missing` is how many are known not to come."""

    def __init__(self, reader: Reader, missing: int = 0) -> None:
        self.reader = reader
        self.missing = missing

    @property
    def patients(self) -> set[str]:
        """The Patient IDs of the instances read so far; an empty one for what does not tell."""
        return self.reader.patients


class Cached:
    """Files of the cache: all that was asked for, but `missing` instances that no archive could send.

    Between `open` and `close`. Several files are linked to `folder` for that time, so that none can be gone when its
    turn comes: what is too old, or too much, is removed at any time.
    """

    def __init__(
        self, cache: Shelf, instances: Sequence[CachedInstance], missing: int, folder: RetrievalFolder | None
    ) -> None:
        self.instances = instances
        self.missing = missing
        self._cache = cache
        self._folder = folder
        self._first: BinaryIO | None = None

    @property
    def patients(self) -> set[str]:
        """The Patient IDs of the instances; an empty one for what does not tell."""
        return {instance.info.patient for instance in self.instances}

    async def open(self) -> bool:
        """Get hold of the files; False when one is not as it should be, and nothing is held then."""
        try:
            if await self._get_hold():
                return True
        except BaseException:
            await self.close()
            raise
        await self.close()
        return False

    async def _get_hold(self) -> bool:
        try:
            if len(self.instances) > 1:
                if self._folder is None:
                    return False
                links = await self._folder.link([each.path for each in self.instances])
                linked = [replace(each, path=link) for each, link in zip(self.instances, links, strict=True)]
                await self._forget_damaged(linked)
                self.instances = linked
            self._first = await self._open(self.instances[0])
        except (CacheError, OSError):
            return False
        return True

    async def _forget_damaged(self, linked: Sequence[CachedInstance]) -> None:
        sizes = await asyncio.to_thread(_sizes, linked)
        damaged = [instance for instance, size in zip(self.instances, sizes, strict=True) if size != instance.size]
        for instance in damaged:
            await self._cache.forget(instance)
        if damaged:
            raise DamagedError("files of the cache are gone or damaged")

    async def files(self) -> AsyncGenerator[tuple[CachedInstance, BinaryIO], None]:
        """Each instance with its open file, which is closed after its turn.

        Raises `IncompleteError` for one that turns out to be damaged.
        """
        for instance in self.instances:
            file, self._first = self._first, None
            if file is None:
                try:
                    file = await self._open(instance)
                except CacheError as error:
                    raise IncompleteError(f"a file of the cache cannot be used: {error}") from error
            with file:
                yield instance, file

    async def _open(self, instance: CachedInstance) -> BinaryIO:
        """Open a file in a thread: the first time, it is read through. One that is damaged is forgotten."""
        try:
            return await in_thread(self._cache.open_file, instance, undo=methodcaller("close"))
        except DamagedError:
            await self._cache.forget(instance)
            raise

    async def close(self) -> None:
        """Let go of the files."""
        if self._first is not None:
            self._first.close()
            self._first = None
        if self._folder is not None:
            await self._folder.remove()


def _sizes(instances: Sequence[CachedInstance]) -> list[int]:
    return [_size(each) for each in instances]


def _size(instance: CachedInstance) -> int:
    try:
        return instance.path.stat().st_size
    except OSError:
        return -1


Delivery = Arriving | Cached
