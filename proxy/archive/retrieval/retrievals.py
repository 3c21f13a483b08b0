"""Who asks for what: one `Retrieval` for each thing, shared by all who want it or a part of it.

What the cache has is not asked for again. What is asked for is as wide as `useFetchLevel` says, so that a series whose
instances are requested one by one costs the archive one C-MOVE. What has come whole goes to the cache; as complete only
what is proven to be.

All of it is of one view of the archives: nothing is shared with those who may use others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from proxy.archive.cache.cache import CachedInstance, NewFile, Shelf
from proxy.archive.cache.depot import Depot
from proxy.archive.errors import ArchiveError, ArchiveFailedError, IncompleteError, NotFoundError
from proxy.archive.retrieval.delivery import Arriving, Cached, Delivery
from proxy.archive.retrieval.recent import Recent
from proxy.archive.retrieval.retrieval import Retrieval
from proxy.archive.retrieval.target import Key, Target
from proxy.archive.spool.spool import Spool, SpooledInstance
from proxy.dataset.levels import Level

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 60.0
"""How long a study or series that was proven complete is taken to be so still; then a C-FIND tells whether the archive
has got more, or has something no more."""

REMEMBER_SECONDS: Final = 300.0
"""How long it is remembered what the archives could not send, and what could not be kept."""


@dataclass(frozen=True, slots=True)
class _Unsent:
    """What no archive could send, and how many instances came."""

    missing: frozenset[Key]
    arrived: int


class Origin(Protocol):
    """Where things are fetched from; see `proxy.archive.retrieval.sources`."""

    async def fetch(self, retrieval: Retrieval) -> None:
        """Fetch what `retrieval` is for; raises why not all of it came."""

    async def listed(self, target: Target) -> set[Key] | None:
        """The keys of all instances of a target; None when not every archive answers."""


class Retrievals:
    """The retrievals under way from the archives of `origin`. `close` ends them.

    `view` is the name under which the cache keeps what comes from these archives; see `Shelf`.
    """

    def __init__(self, origin: Origin, depot: Depot, fetch_level: Level, view: str) -> None:
        self._origin = origin
        self._depot = depot
        self._view = view
        self._fetch_level = fetch_level
        self._active: dict[Retrieval, asyncio.Task[None]] = {}
        self._owners: set[asyncio.Task[None]] = set()
        self._unsent: Recent[Target, _Unsent] = Recent(REMEMBER_SECONDS)
        self._unkept: Recent[Target, bool] = Recent(REMEMBER_SECONDS)
        # What was fetched and could not be kept is not fetched on the chance that more of it will be wanted.

    @property
    def count(self) -> int:
        """Retrievals under way."""
        return len(self._active)

    @property
    def _cache(self) -> Shelf | None:
        return self._depot.shelf(self._view)

    @contextlib.asynccontextmanager
    async def open(self, target: Target) -> AsyncIterator[Delivery]:
        """What a client gets for `target`, for as long as the `async with` lasts.

        Leaving early ends the retrieval by C-CANCEL when nobody else needs it.
        """
        cached = await self._cached(target)
        if cached is not None:
            try:
                yield cached
            finally:
                await cached.close()
            return
        retrieval = self._joinable(target) or self._begin(target)
        unsent = self._unsent.get(target)
        missing = unsent.missing if unsent is not None else frozenset()
        reader = retrieval.reader(target, missing)
        try:
            yield Arriving(reader, len(missing))
        finally:
            reader.close()
            self._left(retrieval)

    # --- the cache -------------------------------------------------------------------------------------------

    async def _cached(self, target: Target) -> Cached | None:
        """What the cache has of `target`, if that is all there is and the files are as they should be."""
        cache = self._cache
        if cache is None:
            return None
        instances, missing = await self._kept(cache, target)
        cached = Cached(cache, instances, missing, self._depot.new_folder())
        if not instances or not await cached.open():
            cache.misses += 1
            return None
        cache.hits += 1
        cache.touch((target.study, target.series))
        return cached

    async def _kept(self, cache: Shelf, target: Target) -> tuple[list[CachedInstance], int]:
        """What the cache has, if it is all of the target; else nothing. And how many instances nobody could send."""
        if target.instance is not None:
            assert target.series is not None
            found = cache.instance(target.study, target.series, target.instance)
            return ([found] if found is not None else []), 0
        instances = cache.instances(target.study, target.series)
        if await self._is_all(cache, target, instances):
            return instances, 0
        unsent = self._unsent.get(target)
        if unsent is not None and len(instances) == unsent.arrived:
            return instances, len(unsent.missing)
        return [], 0

    async def _is_all(self, cache: Shelf, target: Target, instances: list[CachedInstance]) -> bool:
        """True when these are proven to be all of the target, lately or by asking now."""
        proven = cache.proven(target.study, target.series)  # after `instances`: see there
        if proven is None:
            return False
        if 0 <= time.time() - proven < FRESH_SECONDS:
            return True
        listed = await self._origin.listed(target)
        if listed is None:
            logger.info("the cache is used without asking whether there is more: an archive does not answer")
            return True
        if listed == {each.info.key for each in instances}:
            await cache.renew(target.study, target.series)
            return True
        await cache.purge(target.study)
        return False

    # --- retrievals ------------------------------------------------------------------------------------------

    def _joinable(self, target: Target) -> Retrieval | None:
        for retrieval in self._active:
            if retrieval.target.holds(target) and retrieval.spool.is_joinable and retrieval.error is None:
                return retrieval
        return None

    def _begin(self, target: Target) -> Retrieval:
        target = self._widened(target)
        keeping = self._is_keeping(target)
        spool = Spool(self._depot.new_folder(), eager=keeping)
        retrieval = Retrieval(target, spool, keeping=keeping)
        loop = asyncio.get_running_loop()
        fetching = self._active[retrieval] = loop.create_task(self._fetch(retrieval))
        owner = loop.create_task(self._see_through(retrieval, fetching))
        self._owners.add(owner)
        owner.add_done_callback(self._owners.discard)
        return retrieval

    def _is_keeping(self, target: Target) -> bool:
        return self._cache is not None and not self._unkept.get(target)

    def _widened(self, target: Target) -> Target:
        """What to fetch, so that more of it need not be fetched later."""
        wide = target.widened(self._fetch_level)
        cache = self._cache
        if wide == target or cache is None or not self._is_keeping(wide):
            return target
        unsent = self._unsent.get(wide)
        if cache.proven(wide.study, wide.series) is not None or (unsent is not None and target.instance is not None):
            return target  # the rest is here already
        return wide

    def _left(self, retrieval: Retrieval) -> None:
        """A reader has left: end what nobody needs any more."""
        if retrieval.ended or retrieval.is_wanted:
            return
        # At once, and not after the C-CANCEL: an archive that is held back in a C-STORE would not read that.
        retrieval.end(IncompleteError("the retrieval was cancelled"))
        self._active[retrieval].cancel()

    async def _fetch(self, retrieval: Retrieval) -> None:
        """Fetch and `end` it; never raises but CancelledError."""
        try:
            await self._origin.fetch(retrieval)
            self._remember_unsent(retrieval, None)
            retrieval.end()
        except NotFoundError as error:
            retrieval.end(error)
        except ArchiveError as error:
            logger.warning("retrieval failed: %s", error)
            self._remember_unsent(retrieval, error)
            retrieval.end(error)
        except asyncio.CancelledError:
            retrieval.end(IncompleteError("the retrieval was cancelled"))
            raise
        except Exception:
            logger.exception("retrieval failed")
            retrieval.end(ArchiveFailedError("the retrieval failed for a reason of the proxy's own"))

    async def _see_through(self, retrieval: Retrieval, fetching: asyncio.Task[None]) -> None:
        """Own a retrieval from its beginning until its last reader has left."""
        try:
            await asyncio.wait([fetching])
            if retrieval.keeping:
                await self._keep(retrieval)
            if retrieval.spool.has_written:
                self._depot.note_writing(retrieval.spool.write_error)
            self._active.pop(retrieval)
            while retrieval.readers:
                await retrieval.left.wait()
        finally:
            fetching.cancel()
            await asyncio.wait([fetching])
            self._active.pop(retrieval, None)
            await retrieval.spool.close()

    async def close(self) -> None:
        """End everything, readers or not."""
        for retrieval in list(self._active):
            retrieval.end(IncompleteError("the proxy is stopping"))
        for owner in self._owners:
            owner.cancel()
        await asyncio.gather(*self._owners, return_exceptions=True)

    # --- keeping ---------------------------------------------------------------------------------------------

    async def _keep(self, retrieval: Retrieval) -> None:
        """Put into the cache what came whole, and remember what did not come."""
        cache, target = self._cache, retrieval.target
        assert cache is not None
        await retrieval.spool.flush()
        whole = [instance for instance in retrieval.spool.instances if instance.finished]
        files = [file for instance in whole if (file := _new_file(instance, target)) is not None]
        all_kept = len(files) == len(whole)
        complete = (target.study, target.series) if all_kept and retrieval.error is None else None
        if target.instance is not None:
            complete = None
        missing = retrieval.error.missing if isinstance(retrieval.error, IncompleteError) else None
        if files:
            series = _series_of(files) - {series for series, _ in missing} if missing and all_kept else ()
            all_kept = await cache.keep(files, complete, series) and all_kept
        if not all_kept:
            self._unkept.put(target, True)

    def _remember_unsent(self, retrieval: Retrieval, error: ArchiveError | None) -> None:
        """Take note of what did not come, before anybody is told that it will not."""
        target = retrieval.target
        missing = error.missing if isinstance(error, IncompleteError) and error.missing else frozenset()
        for each in {target, *(Target(target.study, series) for series, _ in missing)}:
            lacking = frozenset(key for key in missing if each.holds_key(key))
            if lacking:
                self._unsent.put(each, _Unsent(lacking, sum(map(each.holds_key, retrieval.arrived))))
            else:
                self._unsent.forget(each)


def _series_of(files: list[NewFile]) -> set[str]:
    return {file.info.series for file in files if file.info.series is not None}


def _new_file(instance: SpooledInstance, target: Target) -> NewFile | None:
    """What the cache is given of an instance; None when it is not all in a file, or its UIDs are not known."""
    info = replace(instance.info, study=target.study, series=instance.info.series or target.series)
    file = instance.file
    if file is None or file.written != instance.size or info.series is None or not info.sop_instance_uid:
        return None
    return NewFile(info, file.path, instance.size, instance.header_size, file.checksum)
