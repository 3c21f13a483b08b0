"""The cache's files: their names, and making, checking and removing them. No index and no asyncio live here.

    <storage>/.lock                  held by the proxy that uses the storage
    <storage>/spool/                 what retrievals write; empty after a start
    <storage>/cache/index.sqlite     see `index`
    <storage>/cache/<study>/<series>/<instance>.dcm

Folders and Part 10 files are named by a hash of the UID: no UID leads out of the folder, and none can be read off a
name. The name of a study is made of its UID and of the view (see `cache.Shelf`) that it is kept for, so that what is
kept for one is not found for another. All calls block. Folders are for their owner alone (0700), and so are files
(0600).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import threading
import zlib
from collections import OrderedDict
from collections.abc import Container, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

VERIFIED_LIMIT: Final = 100_000
"""Files that are remembered as checked, about 20 MB of memory. Others are checked again when they are opened."""

_SUFFIX: Final = ".dcm"
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_READ_SIZE: Final = 1024 * 1024

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EIO})
"""Errors that speak against the file, not against this process (which may have too many files open)."""


class CacheError(Exception):
    """The storage cannot be used; the message says where and why, for an administrator."""


class StorageInUseError(CacheError):
    """Another proxy uses the storage."""


class DamagedError(CacheError):
    """A file of the cache is not, or no longer, what was stored."""


class SeriesKey(NamedTuple):
    """A series by the names of its folders."""

    study: str
    series: str


class InstanceKey(NamedTuple):
    """An instance by the names of its folders and of its file, without suffix."""

    study: str
    series: str
    instance: str

    @property
    def of_series(self) -> SeriesKey:
        """The series that it is in."""
        return SeriesKey(self.study, self.series)


def name_of(uid: str) -> str:
    """The name under which `uid` is stored: 128 bits of its SHA-256, in hexadecimal digits."""
    return hashlib.sha256(uid.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def study_name(study: str, view: str) -> str:
    """The name under which a study is stored for a view; each view that is not of all archives has names of its own."""
    return name_of(f"{view}/{study}" if view else study)


def file_name(instance: str) -> str:
    """The name of an instance's file, from the name of the instance."""
    return f"{instance}{_SUFFIX}"


class Storage:
    """The folder `storagePath` and what is below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool = folder / "spool"
        self.cache = folder / "cache"
        self.index = self.cache / "index.sqlite"
        self._lock = folder / ".lock"

    # --- start -----------------------------------------------------------------------------------------------

    def take(self) -> int:
        """Make the folders, empty the spool, and return the descriptor of the lock, which closing gives back.

        Raises StorageInUseError, CacheError when the folders are not the proxy's, else OSError.
        """
        _make_folder(self.folder)
        self._refuse_what_others_made()
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            self._hold(lock)
            self.make_folders()
            _empty(self.spool)
            self._try_linking()
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _refuse_what_others_made(self) -> None:
        # With "/var" as storagePath, the spool and cache of the whole machine would be emptied.
        if self._lock.exists() or self.index.exists():
            return
        for folder in (self.spool, self.cache):
            if folder.exists() and any(folder.iterdir()):
                raise CacheError(f"{folder} is there already and not this proxy's; choose another storagePath")

    def make_folders(self) -> None:
        """Make sure that the spool and the cache have their folders."""
        for folder in (self.spool, self.cache):
            _make_folder(folder)
            folder.chmod(0o700)

    def _hold(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageInUseError(f"another proxy uses the storage (key: storagePath) at {self.folder}") from error

    def _try_linking(self) -> None:
        """Find out now whether files can be taken over from the spool: not on every file system."""
        source, target = self.spool / "probe", self.cache / "probe"
        target.unlink(missing_ok=True)
        source.touch(0o600)
        try:
            os.link(source, target)
            target.unlink()
        finally:
            source.unlink()

    def make_index(self) -> None:
        """Make sure that the index's file is there, and private from its first moment: SQLite would go by the umask."""
        try:
            os.close(os.open(self.index, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            self.index.chmod(0o600)

    def remove_index(self) -> None:
        """Remove the index, so that every file is one without a row. No connection to it may be open."""
        for suffix in ("", "-wal", "-shm", "-journal"):
            self.index.with_name(self.index.name + suffix).unlink(missing_ok=True)

    # --- Part 10 files ---------------------------------------------------------------------------------------

    def series_folder(self, series: SeriesKey) -> Path:
        """Where the instances of a series are."""
        return self.cache / series.study / series.series

    def path(self, key: InstanceKey) -> Path:
        """Where an instance is."""
        return self.series_folder(key.of_series) / file_name(key.instance)

    def has(self, key: InstanceKey, size: int) -> bool:
        """Say whether an instance's file is there and of that size."""
        try:
            status = self.path(key).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == size

    def make_series_folder(self, series: SeriesKey) -> None:
        """Make the folder of a series."""
        folder = self.series_folder(series)
        _make_folder(folder.parent)
        _make_folder(folder)

    def link(self, source: Path, key: InstanceKey, size: int) -> os.stat_result:
        """Take over a file of `size` bytes as that instance, in place of any other; returns its status.

        The series' folder must be there. Raises OSError, also when `source` has another size.
        """
        status = source.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise OSError(errno.EIO, "a file has changed since it was written", str(source))
        if stat.S_IMODE(status.st_mode) != 0o600:
            source.chmod(0o600)
        target = self.path(key)
        try:
            os.link(source, target)
        except FileExistsError:
            target.unlink()
            os.link(source, target)
        return status

    def series_folders(self, study: str | None = None) -> Iterator[SeriesKey]:
        """The series that have a folder, of one study or of all."""
        for parent in [study] if study is not None else _folders_in(self.cache):
            for series in _folders_in(self.cache / parent):
                yield SeriesKey(parent, series)

    def remove_all_but(self, series: SeriesKey, instances: Container[str]) -> None:
        """Remove the files of a series, except those named. Open files can be read on."""
        try:
            files = list(self.series_folder(series).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return
        for file in files:
            if file.suffix != _SUFFIX or file.stem not in instances:
                file.unlink(missing_ok=True)

    def remove_folder(self, study: str, series: str = "") -> None:
        """Remove the folder of a series, or of a study, if it is there and empty."""
        try:
            (self.cache / study / series).rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _folders_in(folder: Path) -> list[str]:
    """The sub-folders that have the name of a study or series."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if _NAME.fullmatch(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


# --- checking ------------------------------------------------------------------------------------------------


class Verifier:
    """Opens files and checks their content, once for each file that it has not seen before. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verified: OrderedDict[tuple[int, int, int], int] = OrderedDict()
        """CRC-32 by inode, time of change and size, the one used last at the end."""

    def trust(self, status: os.stat_result, checksum: int) -> None:
        """Take it that the file with this status has that checksum."""
        key = (status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            self._verified[key] = checksum
            self._verified.move_to_end(key)
            if len(self._verified) > VERIFIED_LIMIT:
                self._verified.popitem(last=False)

    def open(self, path: Path, size: int, checksum: int) -> BinaryIO:
        """Open a file that must have that size and CRC-32; it is read through unless that was done before.

        Raises DamagedError when it is not what it should be, CacheError when it cannot be opened for other reasons.
        """
        try:
            file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
        except OSError as error:
            raise _failure(error) from error
        try:
            self._check(file, size, checksum)
        except OSError as error:
            file.close()
            raise _failure(error) from error
        except BaseException:
            file.close()
            raise
        return file

    def _check(self, file: BinaryIO, size: int, checksum: int) -> None:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise DamagedError("a file of the cache has another size than was stored")
        with self._lock:
            known = self._verified.get((status.st_ino, status.st_mtime_ns, status.st_size))
        if (_checksum(file) if known is None else known) != checksum:
            raise DamagedError("a file of the cache has another content than was stored")
        self.trust(status, checksum)


def _checksum(file: BinaryIO) -> int:
    """The CRC-32 of the whole file; its position is at the start again."""
    checksum = 0
    while chunk := file.read(_READ_SIZE):
        checksum = zlib.crc32(chunk, checksum)
    file.seek(0)
    return checksum


def _failure(error: OSError) -> CacheError:
    kind = DamagedError if error.errno in _GONE else CacheError
    return kind(f"a file of the cache cannot be read: {error.strerror}")
