"""The cache: Part 10 files of earlier retrievals, for as long as the configuration says.

`Cache` belongs to the event loop's thread. Look-ups are made there, over a connection that only reads. Everything else
runs in the one thread of the cache, job by job: that thread owns the `Store`, which brings files and index together.
So no job of this process overlaps another; `index` says what keeps another process (a purge) apart.

Users who may not use all archives have a view of those that they may: what came from others must not be found by them.
So each view has a `Shelf`, which is all that retrievals see of the cache.

No failure of the storage fails a request: what cannot be found is a miss, what cannot be kept is not kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from proxy.archive.cache.files import (
    CacheError,
    DamagedError,
    InstanceKey,
    SeriesKey,
    Storage,
    StorageInUseError,
    Verifier,
    name_of,
    study_name,
)
from proxy.archive.cache.index import CachedInstance, IndexReader, NewFile, Purged, is_damage
from proxy.archive.cache.store import (
    Batch,
    Scope,
    Store,
    Touched,
    as_cache_error,
    cache_owner,
    names_of,
    purge_storage,
)

__all__ = [
    "Cache",
    "CacheError",
    "CachedInstance",
    "DamagedError",
    "NewFile",
    "Purged",
    "Shelf",
    "StorageInUseError",
    "Usage",
    "cache_owner",
    "purge_storage",
]

logger = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 60.0
"""How often to look for what is too old; more often where it is kept for less than four times that."""

FUTURE_SECONDS: Final = 60.0
"""What is dated further ahead was stored before the clock was set back, and its age is not known."""

CLOSE_SECONDS: Final = 10.0
"""How long closing waits for the jobs under way."""

TOUCH_LIMIT: Final = 100_000
"""Uses that are remembered until the next sweep; beyond it those noted first are forgotten."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Usage:
    """How the cache fares. `failure` is what the storage last failed with, None when all is well."""

    instances: int
    bytes: int
    max_bytes: int
    retention_seconds: float
    hits: int
    misses: int
    failure: str | None


class _ClosedError(CacheError):
    """The cache is not open. Nothing to tell of: so it is for a moment at the end."""


class Shelf:
    """What the cache keeps for one view. Nothing that is kept for one is ever found by way of another.

    `view` is a name that tells views apart, also after a restart; that of all archives is empty. All views share the
    bounds of the cache: series make room for each other, whatever they are kept for.
    """

    def __init__(self, cache: Cache, view: str) -> None:
        self.view = view
        self.hits = 0
        """Counted by those who look up, as `misses`."""
        self.misses = 0
        self._cache = cache
        self._touched: dict[Scope, float] = {}

    # --- looking up ------------------------------------------------------------------------------------------

    def instance(self, study: str, series: str, sop_instance: str) -> CachedInstance | None:
        """The instance with these UIDs, if it is there."""
        key = InstanceKey(study_name(study, self.view), name_of(series), name_of(sop_instance))
        return self._cache._look_up(lambda reader, oldest: reader.instance(key, oldest), None)

    def instances(self, study: str, series: str | None) -> list[CachedInstance]:
        """What is there of a study, or of a series of it, in order of arrival; `proven` tells whether it is all."""
        scope = names_of((study, series), self.view)
        return self._cache._look_up(lambda reader, oldest: reader.instances(*scope, oldest), [])

    def proven(self, study: str, series: str | None) -> float | None:
        """When (seconds since the epoch) the study, or the series, was proven complete; None if it is not.

        Ask after `instances`: what is removed between the two calls is then known to be incomplete.
        """
        scope = names_of((study, series), self.view)
        return self._cache._look_up(lambda reader, oldest: reader.proven(*scope, oldest), None)

    def usage(self) -> Usage:
        """How the cache fares, as far as it concerns this view; for that of all archives, all of it."""
        return self._cache._usage(self.view)

    def open_file(self, instance: CachedInstance) -> BinaryIO:
        """Open the Part 10 file. Blocks, and may be called in any thread: the first time, it is read through.

        Raises DamagedError when it is gone or not what was stored (call `forget` then), CacheError when it cannot
        be opened for another reason.
        """
        return self._cache._verifier.open(instance.path, instance.size, instance.checksum)

    def touch(self, used: CachedInstance | Scope) -> None:
        """Take note that an instance, or a study and a series of it (None for all), was used just now."""
        if isinstance(used, CachedInstance):
            assert used.info.study is not None
            used = used.info.study, used.info.series
        self._touched[used] = self._cache._clock()
        if len(self._touched) > TOUCH_LIMIT:
            del self._touched[next(iter(self._touched))]

    # --- changing --------------------------------------------------------------------------------------------

    async def keep(self, files: Sequence[NewFile], complete: Scope | None, series_complete: Iterable[str] = ()) -> bool:
        """Take over files from the spool, all or none of them; False when that is not possible.

        `complete` is a study, or a study and a series of it, all of whose instances are among `files`: what else is
        there of it is removed. `series_complete` are such series of the study. What is there already with the same
        content counts as stored now. Series that were used longest ago make room.
        """
        return await self._cache._keep(Batch.of(self.view, files, complete, series_complete))

    async def renew(self, study: str, series: str | None) -> None:
        """Take note that a study or series that was proven complete is proven so again."""
        cache = self._cache
        with cache._noting("be written"):
            await cache._run(cache._store.renew, names_of((study, series), self.view), cache._clock())

    async def forget(self, instance: CachedInstance) -> None:
        """Remove an instance whose file is damaged or gone; its series and its study are no longer complete."""
        cache = self._cache
        with cache._noting("be written"):
            await cache._run(cache._store.forget, instance, self.view)

    async def purge(self, study: str | None = None) -> Purged:
        """Remove everything, or everything of a study. Where that fails, it is logged.

        Only what is kept for this view; but by way of that of all archives, what is kept for any.
        """
        cache = self._cache
        with cache._noting("be purged"):
            return await cache._run(purge_storage, cache._storage.folder, study, self.view)
        return Purged(0, 0)


class Cache(Shelf):
    """The cache below one folder, which is also the shelf of the view of all archives.

    Before `open` and after `close` it is empty and keeps nothing.
    """

    def __init__(
        self, folder: Path, *, retention_seconds: float, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        """`folder` is `storagePath`; `clock` tells the seconds since the epoch."""
        super().__init__(self, "")
        storage = Storage(folder)
        self.spool_folder = storage.spool
        """Where retrievals write their files; emptied by `open`."""
        self._retention_seconds = retention_seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._storage = storage
        self._verifier = Verifier()
        self._store = Store(storage, self._verifier, max_bytes)
        self._thread: ThreadPoolExecutor | None = None
        self._reader: IndexReader | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._shelves: dict[str, Shelf] = {"": self}
        self._failing: dict[str, str] = {}
        """What fails at the moment, and why: each failure is logged when it begins."""
        self._damaged = False

    # --- start and end ---------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take the storage, with what is left in it from before. Raises CacheError when it cannot be used."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache")
        try:
            with as_cache_error(self._storage.folder):
                await self._run(self._store.open)
                self._open_reader()
        except BaseException:
            await self.close()
            raise
        self._sweeper = asyncio.create_task(self._sweep_for_ever())

    async def close(self) -> None:
        """Give the storage back, once the jobs under way are done."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
            self._sweeper = None
        self._close_reader()
        if self._thread is not None:
            loop = asyncio.get_running_loop()
            closing = loop.run_in_executor(self._thread, self._store.close, self._take_touched())
            self._thread.shutdown(wait=False)
            self._thread = None
            with self._noting("be closed"):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await closing

    def _open_reader(self) -> None:
        self._reader = IndexReader(self._storage)
        self._reader.totals()  # it only connects when it is asked

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def shelf(self, view: str) -> Shelf:
        """The part of the cache that is kept for a view; always the same for the same name."""
        if view not in self._shelves:
            self._shelves[view] = Shelf(self, view)
        return self._shelves[view]

    # --- for the shelves -------------------------------------------------------------------------------------

    def _look_up(self, question: Callable[[IndexReader, float], _Result], nothing: _Result) -> _Result:
        """The answer to a question of a reader and of the time of storing up to which instances count as gone."""
        if self._reader is None:
            return nothing
        with self._noting("be read"):
            return question(self._reader, self._oldest())
        return nothing

    def _oldest(self) -> float:
        return self._clock() - self._retention_seconds

    def _usage(self, view: str) -> Usage:
        instances, size = self._look_up(lambda reader, _: reader.totals(view), (0, 0))
        failure = next(reversed(self._failing.values()), None)
        shelves = [self._shelves[view]] if view else self._shelves.values()
        hits, misses = sum(each.hits for each in shelves), sum(each.misses for each in shelves)
        return Usage(instances, size, self._max_bytes, self._retention_seconds, hits, misses, failure)

    async def _keep(self, batch: Batch) -> bool:
        with self._noting("take over files"):
            if batch.bytes > self._max_bytes:
                raise CacheError("what was retrieved is larger than the whole cache")
            await self._run(self._store.keep, batch, self._take_touched(), self._clock())
            return True
        return False

    def _take_touched(self) -> Touched:
        touched = []
        for shelf in self._shelves.values():
            if shelf._touched:
                touched.append((shelf.view, shelf._touched))
                shelf._touched = {}
        return touched

    async def _run(self, job: Callable[..., _Result], *arguments: object) -> _Result:
        """Run a job in the cache's thread, after those that came before."""
        if self._thread is None:
            raise _ClosedError("the cache is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(job, *arguments))

    @contextlib.contextmanager
    def _noting(self, doing: str) -> Iterator[None]:
        """Go on after the block when the storage fails in it. That is logged once, until it succeeds again."""
        try:
            yield
        except _ClosedError:
            return
        except (CacheError, OSError, sqlite3.Error) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or "it takes too long"
            if doing not in self._failing:
                logger.warning("the cache cannot %s: %s", doing, reason)
            self._failing[doing] = reason
            if is_damage(error) and not self._damaged:
                self._damaged = True
                self._wake.set()
        else:
            self._failing.pop(doing, None)

    # --- the sweeper -----------------------------------------------------------------------------------------

    async def _sweep_for_ever(self) -> None:
        interval = max(1.0, min(SWEEP_SECONDS, self._retention_seconds / 4))
        await self.sweep()
        await self._tidy_all()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._wake.wait()
            self._wake.clear()
            await self.sweep()

    async def sweep(self) -> None:
        """Write down what was used, and remove what is too old or too much. The cache does so by itself, regularly."""
        if self._damaged:
            await self._start_anew()
        removed: Collection[SeriesKey] = ()
        newest = self._clock() + FUTURE_SECONDS
        with self._noting("be swept"):
            removed = await self._run(self._store.sweep, self._take_touched(), self._oldest(), newest)
        await self._tidy(removed)

    async def _tidy_all(self) -> None:
        """Remove the files that have no row: they are left when a process is killed, or the power fails."""
        with self._noting("list files"):
            await self._tidy(await self._run(self._store.folders))

    async def _tidy(self, folders: Iterable[SeriesKey]) -> None:
        """Remove the files without a row in these folders: each a job of its own, so that others get their turn."""
        for series in folders:
            with self._noting("remove files"):
                await self._run(self._store.tidy, series)

    async def _start_anew(self) -> None:
        """Replace a damaged index by an empty one."""
        self._close_reader()
        with self._noting("be made anew"):
            await self._run(self._store.start_anew)
            self._open_reader()
            self._damaged = False
        await self._tidy_all()
