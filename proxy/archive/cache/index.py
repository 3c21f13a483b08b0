"""The cache's index: which instances are there, which series and studies are complete, what was used last.

Only SQL lives here: no file of an instance is touched. The index is one SQLite database in WAL mode, so that readers
never wait for a writer. Studies, series and instances are keyed by the names that `files` gives them, of which that of
a study tells views apart. The column `view` is only for counting and purging.

An instance is `pending` from before its file is made until it is there. Two rules follow, and hold across processes:

- A file may be removed, or its folder, only within `Index.writing` and while it has no row.
- A change of the rows of a series undoes the proof that the series and its study are complete (triggers see to it);
  `Index.complete` alone writes it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.archive.cache.files import CacheError, InstanceKey, SeriesKey, Storage, file_name, name_of, study_name
from proxy.archive.spool.spool import InstanceInfo

VERSION: Final = 2
"""Of the schema. An index of another version is not read."""

WAL_LIMIT: Final = 16 * 1024 * 1024
"""Bytes that the write-ahead log keeps on the disk when it was longer for a while."""

_SCHEMA: Final = """
CREATE TABLE instances (
    id INTEGER PRIMARY KEY,  -- grows in order of arrival
    study TEXT NOT NULL, series TEXT NOT NULL, instance TEXT NOT NULL,  -- names
    view TEXT NOT NULL,
    study_uid TEXT NOT NULL, series_uid TEXT NOT NULL, sop_instance_uid TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL, transfer_syntax TEXT NOT NULL, patient TEXT NOT NULL,
    size INTEGER NOT NULL, header_size INTEGER NOT NULL, checksum INTEGER NOT NULL,
    stored REAL NOT NULL, pending INTEGER NOT NULL,
    UNIQUE (study, series, instance)
);
CREATE INDEX by_age ON instances (stored);
CREATE INDEX pending ON instances (pending) WHERE pending;
CREATE TABLE series (
    study TEXT NOT NULL, series TEXT NOT NULL, view TEXT NOT NULL,
    instances INTEGER NOT NULL, bytes INTEGER NOT NULL, used REAL NOT NULL, proven REAL,
    PRIMARY KEY (study, series)
) WITHOUT ROWID;
CREATE TABLE studies (study TEXT PRIMARY KEY, proven REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE views (view TEXT PRIMARY KEY) WITHOUT ROWID;  -- all that anything was ever kept for
CREATE TRIGGER added AFTER INSERT ON instances BEGIN
    INSERT INTO series VALUES (new.study, new.series, new.view, 1, new.size, new.stored, NULL)
        ON CONFLICT DO UPDATE SET instances = instances + 1, bytes = bytes + new.size,
            used = max(used, new.stored), proven = NULL;
    DELETE FROM studies WHERE study = new.study;
END;
CREATE TRIGGER removed AFTER DELETE ON instances BEGIN
    UPDATE series SET instances = instances - 1, bytes = bytes - old.size, proven = NULL
        WHERE study = old.study AND series = old.series;
    DELETE FROM series WHERE study = old.study AND series = old.series AND instances = 0;
    DELETE FROM studies WHERE study = old.study;
END;
"""

_WRONG_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,  # no such table, no such column
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_NOTADB,
    }
)


class NoIndexError(CacheError):
    """There is no index that can be used: it is of another version, was removed, or cannot even forget things."""


@dataclass(frozen=True, slots=True)
class CachedInstance:
    """An instance in the cache; study and series of `info` are always set."""

    info: InstanceInfo
    path: Path
    size: int
    """Bytes of the Part 10 file."""
    header_size: int
    """Bytes of it up to the data set."""
    checksum: int
    """CRC-32 of the whole file."""

    @property
    def etag(self) -> str:
        """An entity tag (RFC 9110 8.8.3) without its quotes, made of the content alone."""
        return f"{self.checksum:08x}-{self.size:x}"


@dataclass(frozen=True, slots=True)
class NewFile:
    """A Part 10 file that a retrieval has written to the spool, where it stays the retrieval's to remove.

    Study and series of `info` must be set; the other fields are those of `CachedInstance`.
    """

    info: InstanceInfo
    path: Path
    size: int
    header_size: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge has removed."""

    instances: int
    bytes: int


def key_of(info: InstanceInfo, view: str) -> InstanceKey:
    """The key for a view of an instance whose study and series are known."""
    assert info.study is not None
    assert info.series is not None
    return InstanceKey(study_name(info.study, view), name_of(info.series), name_of(info.sop_instance_uid))


def is_damage(error: Exception) -> bool:
    """Say whether the index itself is at fault, so that only a new one helps."""
    if isinstance(error, NoIndexError):
        return True
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF in _WRONG_CODES


def _connect(path: Path, mode: str, seconds: float) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=seconds, isolation_level=None)


# --- reading -------------------------------------------------------------------------------------------------

_COLUMNS: Final = (
    "study, series, instance, sop_class_uid, sop_instance_uid, transfer_syntax, study_uid, series_uid, "
    "patient, size, header_size, checksum"
)


class IndexReader:
    """Look-ups for one thread. Each is one indexed SELECT, and fails (sqlite3.Error) rather than wait.

    `oldest` is the time of storing, in seconds since the epoch, up to which instances count as gone.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._connection = _connect(storage.index, "ro", 0)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def instance(self, key: InstanceKey, oldest: float) -> CachedInstance | None:
        """One instance."""
        where = "study = ? AND series = ? AND instance = ?"
        found = self._select(where, key, oldest)
        return found[0] if found else None

    def instances(self, study: str, series: str | None, oldest: float) -> list[CachedInstance]:
        """The instances of a study, or of a series of it, in order of arrival."""
        if series is None:
            return self._select("study = ?", (study,), oldest)
        return self._select("study = ? AND series = ?", (study, series), oldest)

    def _select(self, where: str, values: tuple[str, ...], oldest: float) -> list[CachedInstance]:
        # By way of the numbers alone, rows are read in their order, and not sorted whole.
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM instances WHERE id IN (SELECT id FROM instances WHERE {where}) "  # noqa: S608
            "AND stored > ? AND NOT pending ORDER BY id",
            (*values, oldest),
        ).fetchall()
        folders = {series: self._storage.series_folder(series) for series in {SeriesKey(*row[:2]) for row in rows}}
        return [CachedInstance(InstanceInfo(*row[3:9]), folders[row[:2]] / file_name(row[2]), *row[9:]) for row in rows]

    def proven(self, study: str, series: str | None, oldest: float) -> float | None:
        """When a study, or a series of it, was proven complete."""
        expired = "SELECT 1 FROM instances INDEXED BY by_age WHERE stored <= ? AND study = ?"
        if series is None:
            query = f"SELECT proven FROM studies WHERE study = ? AND NOT EXISTS ({expired})"  # noqa: S608
            values: tuple[object, ...] = (study, oldest, study)
        else:
            query = (
                "SELECT proven FROM series WHERE study = ? AND series = ? AND "  # noqa: S608
                f"NOT EXISTS ({expired} AND series = ?)"
            )
            values = (study, series, oldest, study, series)
        row = self._connection.execute(query, values).fetchone()
        return None if row is None else row[0]

    def totals(self, view: str = "") -> tuple[int, int]:
        """The number of instances and their bytes, of one view, or of all of them for that of all archives."""
        return _totals(self._connection, view)


def _totals(connection: sqlite3.Connection, view: str) -> tuple[int, int]:
    condition, values = ("view = ?", (view,)) if view else ("TRUE", ())
    totals = f"SELECT total(instances), total(bytes) FROM series WHERE {condition}"  # noqa: S608
    row: tuple[int, int] = connection.execute(totals, values).fetchone()
    return int(row[0]), int(row[1])


# --- writing -------------------------------------------------------------------------------------------------


class Index:
    """The index for one thread that changes it. What changes something is called within `writing`."""

    def __init__(self, path: Path, seconds: float) -> None:
        """Open the index, an empty file included; other writers are waited for `seconds`.

        Raises NoIndexError or sqlite3.Error; see `is_damage`.
        """
        self._path = path
        self._inode = path.stat().st_ino
        self._connection = _connect(path, "rw", seconds)
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        for setting in ("journal_mode = WAL", "synchronous = NORMAL", f"journal_size_limit = {WAL_LIMIT}"):
            self._execute(f"PRAGMA {setting}")
        (version,) = self._execute("PRAGMA user_version").fetchone()
        if version == 0 and self._execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT")
        elif version != VERSION:
            raise NoIndexError("its index is of another version")

    def _execute(self, query: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        return self._connection.execute(query, values)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that no other writer, of whatever process, overlaps. An exception undoes it."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.commit()
        except BaseException:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    def check(self) -> None:
        """Raise NoIndexError when the file was removed: SQLite would go on with what nobody else sees."""
        if not self._path.exists() or self._path.stat().st_ino != self._inode:
            raise NoIndexError("its index was removed")

    def rewind(self) -> None:
        """Have the write-ahead log written from its start again, so that it need not grow on a full disk."""
        self._execute("PRAGMA wal_checkpoint(RESTART)")

    # --- storing ---------------------------------------------------------------------------------------------

    def same(self, key: InstanceKey, file: NewFile) -> int | None:
        """The row of this instance, if it has the very same content."""
        row = self._execute(
            "SELECT id FROM instances WHERE study = ? AND series = ? AND instance = ? AND NOT pending "
            "AND sop_class_uid = ? AND transfer_syntax = ? AND size = ? AND header_size = ? AND checksum = ?",
            (*key, file.info.sop_class_uid, file.info.transfer_syntax, file.size, file.header_size, file.checksum),
        ).fetchone()
        return None if row is None else int(row[0])

    def note_view(self, view: str) -> None:
        """Take note of a view before anything is added for it, so that a purge finds all names of a study."""
        self._execute("INSERT OR IGNORE INTO views VALUES (?)", (view,))

    def add(self, key: InstanceKey, file: NewFile, view: str, now: float) -> int:
        """Add a pending row, in place of any other for this instance; returns its number."""
        self._execute("DELETE FROM instances WHERE study = ? AND series = ? AND instance = ?", key)
        info = file.info
        uids = (info.sop_class_uid, info.sop_instance_uid, info.transfer_syntax, info.study, info.series)
        row = self._execute(
            f"INSERT INTO instances ({_COLUMNS}, view, stored, pending) "  # noqa: S608
            "VALUES (?,?,?, ?,?,?,?,?,?, ?,?,?, ?,?,1)",
            (*key, *uids, info.patient, file.size, file.header_size, file.checksum, view, now),
        ).lastrowid
        assert row is not None
        return row

    def publish(self, rows: Collection[int], now: float) -> bool:
        """Let rows be seen, as stored now; False when one of them is no longer there."""
        changed = self._connection.executemany(
            "UPDATE instances SET stored = ?, pending = 0 WHERE id = ?", [(now, row) for row in rows]
        ).rowcount
        return not rows or changed == len(rows)

    def remove_others(self, study: str, series: str | None, rows: Collection[int]) -> set[SeriesKey]:
        """Remove what there is of a study, or of a series of it, beside these rows; returns its series."""
        found = self._execute(
            "SELECT id, study, series FROM instances WHERE study = ?1 AND (?2 IS NULL OR series = ?2)", (study, series)
        )
        others = {row: SeriesKey(*names) for row, *names in found if row not in rows}
        self.remove(others)
        return set(others.values())

    def complete(self, study: str, series: str | None, now: float) -> None:
        """Write down that a study and each of its series, or one of these, is complete."""
        if series is not None:
            self._execute("UPDATE series SET proven = ? WHERE study = ? AND series = ?", (now, study, series))
            return
        if self._execute("UPDATE series SET proven = ? WHERE study = ?", (now, study)).rowcount:
            self._execute("INSERT OR REPLACE INTO studies VALUES (?, ?)", (study, now))

    def renew(self, study: str, series: str | None, now: float) -> None:
        """Write down that what was complete is so now."""
        if series is None:
            known = self._execute("SELECT 1 FROM studies WHERE study = ?", (study,))
        else:
            known = self._execute(
                "SELECT 1 FROM series WHERE study = ? AND series = ? AND proven IS NOT NULL", (study, series)
            )
        if known.fetchone() is not None:
            self.complete(study, series, now)

    def touch(self, used: Iterable[tuple[str, str | None, float]]) -> None:
        """Write down when series, or all series of a study, were used."""
        for study, series, when in used:
            self._execute(
                "UPDATE series SET used = max(used, ?1) WHERE study = ?2 AND (?3 IS NULL OR series = ?3)",
                (when, study, series),
            )

    # --- removing: the files are then ones without a row ------------------------------------------------------

    def remove(self, rows: Iterable[int]) -> None:
        """Remove these rows."""
        self._connection.executemany("DELETE FROM instances WHERE id = ?", [(row,) for row in rows])

    def remove_instance(self, key: InstanceKey, size: int, checksum: int) -> None:
        """Remove an instance, unless it has been replaced by one of another content."""
        self._execute(
            "DELETE FROM instances WHERE study = ? AND series = ? AND instance = ? AND size = ? AND checksum = ?",
            (*key, size, checksum),
        )

    def remove_pending(self) -> set[SeriesKey]:
        """Remove what was never finished; returns its series."""
        return self._remove_where("pending", ())

    def remove_old(self, oldest: float, newest: float) -> set[SeriesKey]:
        """Remove what was not stored between these times; returns its series."""
        return self._remove_where("stored <= ? OR stored > ?", (oldest, newest))

    def _remove_where(self, condition: str, values: tuple[object, ...]) -> set[SeriesKey]:
        found = self._execute(f"SELECT DISTINCT study, series FROM instances WHERE {condition}", values)  # noqa: S608
        series = {SeriesKey(*row) for row in found}
        if series:
            self._execute(f"DELETE FROM instances WHERE {condition}", values)  # noqa: S608
        return series

    def evict(self, excess: int, spared: Container[SeriesKey] = ()) -> list[SeriesKey]:
        """Remove whole series that are not `spared`, those first that were used longest ago.

        Returns them: as many as have `excess` bytes together, or all that there are.
        """
        evicted: list[SeriesKey] = []
        for study, series, size in self._execute("SELECT study, series, bytes FROM series ORDER BY used").fetchall():
            if excess <= 0:
                break
            if SeriesKey(study, series) not in spared:
                self._execute("DELETE FROM instances WHERE study = ? AND series = ?", (study, series))
                evicted.append(SeriesKey(study, series))
                excess -= size
        return evicted

    def purge(self, study: str | None) -> Purged:
        """Remove everything, or everything of a study."""
        condition, values = ("TRUE", ()) if study is None else ("study = ?", (study,))
        found = self._execute(f"SELECT total(instances), total(bytes) FROM series WHERE {condition}", values)  # noqa: S608
        instances, size = found.fetchone()
        self._execute(f"DELETE FROM instances WHERE {condition}", values)  # noqa: S608
        return Purged(int(instances), int(size))

    # --- asking ----------------------------------------------------------------------------------------------

    def bytes(self) -> int:
        """The bytes of all instances."""
        return _totals(self._connection, "")[1]

    def views(self) -> list[str]:
        """All views that anything was kept for."""
        return [view for (view,) in self._execute("SELECT view FROM views")]

    def studies(self, view: str) -> list[str]:
        """The names of the studies of a view."""
        return [study for (study,) in self._execute("SELECT DISTINCT study FROM series WHERE view = ?", (view,))]

    def names(self, series: SeriesKey) -> set[str]:
        """The names of the instances of a series."""
        found = self._execute("SELECT instance FROM instances WHERE study = ? AND series = ?", series)
        return {name for (name,) in found}

    def has_study(self, study: str) -> bool:
        """Say whether there is an instance of the study."""
        return self._execute("SELECT 1 FROM series WHERE study = ? LIMIT 1", (study,)).fetchone() is not None
