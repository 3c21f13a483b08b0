"""Files and index brought together: what changes the cache, in steps after each of which a process may be killed.

Everything here blocks. A `Store` belongs to one thread; a purge may run beside it in another process. Rows go before
files, both when an instance is stored and when it is removed, so a file without a row is always one to remove.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.archive.cache.files import CacheError, InstanceKey, SeriesKey, Storage, Verifier, name_of, study_name
from proxy.archive.cache.index import CachedInstance, Index, NewFile, NoIndexError, Purged, is_damage, key_of

logger = logging.getLogger(__name__)

WRITE_SECONDS: Final = 10.0
"""How long to wait for another process that writes the index: a purge takes some seconds at most."""

PURGE_SECONDS: Final = 30.0
"""How long a purge waits for the proxy to let it write."""

Scope = tuple[str, str | None]
"""A study and a series of it, or a whole study; by UIDs outside of the store, by names inside."""

Touched = Sequence[tuple[str, Mapping[Scope, float]]]
"""For each view, what was used of it and when, by UIDs."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a retrieval hands over for a view: files by key, and what is complete with them, by names."""

    view: str
    files: Mapping[InstanceKey, NewFile]
    complete: frozenset[Scope]
    """All instances of these are among the files."""

    @classmethod
    def of(cls, view: str, files: Iterable[NewFile], complete: Scope | None, series_complete: Iterable[str]) -> Batch:
        """From UIDs. Of files for the same instance, the last one counts."""
        by_key = {key_of(file.info, view): file for file in files}
        scopes = set() if complete is None else {names_of(complete, view)}
        studies = {key.study for key in by_key} | {study for study, _ in scopes}
        scopes |= {(study, name_of(series)) for study in studies for series in series_complete}
        return cls(view, by_key, frozenset(scopes))

    @property
    def bytes(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def series(self) -> set[SeriesKey]:
        """The series of the files."""
        return {key.of_series for key in self.files}


def names_of(scope: Scope, view: str) -> Scope:
    """The names for a view of a study and a series of it, if there is one."""
    study, series = scope
    return study_name(study, view), None if series is None else name_of(series)


class Store:
    """The cache's files and their index, open for changes. Methods raise CacheError, OSError and sqlite3.Error."""

    def __init__(self, storage: Storage, verifier: Verifier, max_bytes: int) -> None:
        self._storage = storage
        self._verifier = verifier
        self._max_bytes = max_bytes
        self._lock: int | None = None
        self._index: Index

    def open(self) -> None:
        """Take the storage; the index is a new one where there is none that can be read."""
        lock = self._storage.take()
        try:
            self._open_index()
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def _open_index(self) -> None:
        try:
            self._index = self._opened()
        except (NoIndexError, sqlite3.Error) as error:
            if not is_damage(error):
                raise
            logger.warning("the index of the cache is damaged or of another version: the cache starts empty")
            self._storage.remove_index()
            self._index = self._opened()

    def _opened(self) -> Index:
        self._storage.make_index()
        index = Index(self._storage.index, WRITE_SECONDS)
        try:
            with index.writing():
                index.remove_pending()
                index.bytes()  # both tables can be read
        except BaseException:
            index.close()
            raise
        return index

    def close(self, touched: Touched) -> None:
        """Give the storage back."""
        if self._lock is None:
            return
        try:
            with self._index.writing():
                self._touch(touched)
        finally:
            self._index.close()
            os.close(self._lock)
            self._lock = None

    def start_anew(self) -> None:
        """Put an empty index in the place of a damaged one; every file is then one without a row."""
        self._index.close()
        self._storage.make_folders()
        self._storage.remove_index()
        self._index = self._opened()
        logger.warning("the index of the cache cannot be used any more: the cache starts empty")

    # --- storing ---------------------------------------------------------------------------------------------

    def keep(self, batch: Batch, touched: Touched, now: float) -> None:
        """Take over all files of a batch, or none. When the disk is full, once more after making room."""
        if touched:
            with self._index.writing():
                self._touch(touched)
        try:
            self._keep(batch, now)
        except (OSError, sqlite3.Error) as error:
            if not _is_full(error) or not self._make_room_on_disk(batch):
                raise
            self._keep(batch, now)

    def _keep(self, batch: Batch, now: float) -> None:
        """Pending rows, then files, then rows to be seen: killed in between, it has left nothing that is seen."""
        same, added, emptied = self._announce(batch, now)
        try:
            for series in emptied:
                self.tidy(series)
            for series in {key.of_series for key in added}:
                self._storage.make_series_folder(series)
            for key in added:
                file = batch.files[key]
                self._verifier.trust(self._storage.link(file.path, key, file.size), file.checksum)
            with self._index.writing():
                if not self._index.publish([*same, *added.values()], now):
                    raise CacheError("they were purged while they were stored")
                for scope in batch.complete:
                    self._index.complete(*scope, now)
        except BaseException:
            self._undo(added)
            raise

    def _announce(self, batch: Batch, now: float) -> tuple[list[int], dict[InstanceKey, int], set[SeriesKey]]:
        """Make the rows. Returns those that are as they were, the new ones by key, and series that others were of."""
        same: list[int] = []
        added: dict[InstanceKey, int] = {}
        with self._index.writing():
            if batch.view:
                self._index.note_view(batch.view)
            for key, file in batch.files.items():
                row = self._index.same(key, file)
                if row is not None and self._storage.has(key, file.size):
                    same.append(row)
                else:
                    added[key] = self._index.add(key, file, batch.view, now)
            rows = {*same, *added.values()}
            emptied: set[SeriesKey] = set()
            for scope in batch.complete:
                emptied |= self._index.remove_others(*scope, rows)
            emptied.update(self._index.evict(self._index.bytes() - self._max_bytes, batch.series))
            if self._index.bytes() > self._max_bytes:
                raise CacheError("there is no room beside the rest of their series")
        return same, added, emptied

    def _make_room_on_disk(self, batch: Batch) -> bool:
        with self._removing():
            evicted = self._index.evict(max(1, batch.bytes), batch.series)
        for series in evicted:
            self.tidy(series)
        return bool(evicted)

    def _undo(self, added: Mapping[InstanceKey, int]) -> None:
        # What fails here is done by the next sweep.
        with contextlib.suppress(OSError, sqlite3.Error):
            with self._index.writing():
                self._index.remove(added.values())
            for series in {key.of_series for key in added}:
                self.tidy(series)

    def renew(self, scope: Scope, now: float) -> None:
        """Write down that what was complete is so now."""
        with self._index.writing():
            self._index.renew(*scope, now)

    def _touch(self, touched: Touched) -> None:
        for view, used in touched:
            self._index.touch((*names_of(scope, view), when) for scope, when in used.items())

    # --- removing --------------------------------------------------------------------------------------------

    def forget(self, instance: CachedInstance, view: str) -> None:
        """Remove one instance of a view, if it is still the same."""
        key = key_of(instance.info, view)
        with self._index.writing():
            self._index.remove_instance(key, instance.size, instance.checksum)
        self.tidy(key.of_series)

    def sweep(self, touched: Touched, oldest: float, newest: float) -> Collection[SeriesKey]:
        """Remove the rows of what was not stored between these times, and of what is too much.

        Returns the series whose files are still to be removed, with `tidy`. Raises NoIndexError when the index was
        removed, or nothing can be removed from it.
        """
        self._index.check()
        with self._removing():
            self._touch(touched)
            removed = self._index.remove_pending() | self._index.remove_old(oldest, newest)
            removed.update(self._index.evict(self._index.bytes() - self._max_bytes))
        return removed

    @contextlib.contextmanager
    def _removing(self) -> Iterator[None]:
        """A transaction that only removes. On a full disk it may find no room for its log.

        Then nothing could ever be removed: NoIndexError, so that the cache starts anew, which needs no room.
        """
        try:
            with contextlib.suppress(sqlite3.Error):
                self._index.rewind()
            with self._index.writing():
                yield
        except sqlite3.Error as error:
            if _is_full(error):
                raise NoIndexError("the disk is full, and nothing can be removed from the index") from error
            raise

    def folders(self) -> list[SeriesKey]:
        """The series that have a folder, whether they have rows or not."""
        return list(self._storage.series_folders())

    def tidy(self, series: SeriesKey) -> None:
        """Remove the files of a series that have no row, and its folder when there is none left."""
        _tidy(self._storage, self._index, series)


def _tidy(storage: Storage, index: Index, series: SeriesKey) -> None:
    with index.writing():  # so that no row appears meanwhile
        instances = index.names(series)
        storage.remove_all_but(series, instances)
        if not instances:
            storage.remove_folder(*series)
            if not index.has_study(series.study):
                storage.remove_folder(series.study)


def _is_full(error: OSError | sqlite3.Error) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF == sqlite3.SQLITE_FULL


# --- purging -------------------------------------------------------------------------------------------------


def cache_owner(folder: Path) -> tuple[int, int] | None:
    """The user and group that the cache below `folder`, a `storagePath`, belongs to; None when there is no cache.

    Raises CacheError when that cannot be told.
    """
    storage = Storage(folder)
    with as_cache_error(folder):
        try:
            storage.index.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        status = storage.cache.stat()
    return status.st_uid, status.st_gid


def purge_storage(folder: Path, study: str | None = None, view: str = "") -> Purged:
    """Remove everything from the cache below `folder`, or everything of a study. Raises CacheError.

    Of all views, unless one is named. Needs no lock: a proxy that uses the storage at the same time goes on with what
    is left.
    """
    if cache_owner(folder) is None:
        return Purged(0, 0)
    storage = Storage(folder)
    with as_cache_error(folder), contextlib.closing(Index(storage.index, PURGE_SECONDS)) as index:
        with index.writing():
            names = _names(index, study, view)
            purged = [index.purge(name) for name in names]
        for series in [each for name in names for each in storage.series_folders(name)]:
            _tidy(storage, index, series)
    return Purged(sum(each.instances for each in purged), sum(each.bytes for each in purged))


def _names(index: Index, study: str | None, view: str) -> Sequence[str | None]:
    """The names of what is to be purged; None stands for everything."""
    if study is not None:
        return [study_name(study, each) for each in ([view] if view else ["", *index.views()])]
    return index.studies(view) if view else [None]


@contextlib.contextmanager
def as_cache_error(folder: Path) -> Iterator[None]:
    """Turn a failure of the storage at `folder` into CacheError."""
    try:
        yield
    except (OSError, sqlite3.Error, NoIndexError) as error:
        where: object = folder
        reason = str(error)
        if isinstance(error, OSError):
            where, reason = error.filename or folder, error.strerror or reason
        raise CacheError(f"cannot use the storage (key: storagePath) at {where}: {reason}") from error
