"""What the tests of the cache share: files to keep, a clock that is set, and a check of all that is on the disk."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

from dul.uids import EXPLICIT_VR_LITTLE_ENDIAN
from proxy.archive.cache.cache import Cache, NewFile
from proxy.archive.spool.spool import InstanceInfo
from tests.proxy.clock import Clock

CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY, SERIES, OTHER_STUDY, OTHER_SERIES = "1.2.3", "1.2.3.4", "1.2.5", "1.2.5.6"
HOUR = 3600.0
PLENTY = 1024**3


@contextlib.asynccontextmanager
async def cache_at(
    folder: Path, *, retention_seconds: float = HOUR, max_bytes: int = PLENTY, clock: Clock | None = None
) -> AsyncIterator[Cache]:
    """An open cache."""
    cache = Cache(folder, retention_seconds=retention_seconds, max_bytes=max_bytes, clock=clock or Clock())
    await cache.open()
    try:
        yield cache
    finally:
        await cache.close()


def new_file(
    cache: Cache,
    instance: str = "1.2.3.4.5",
    content: bytes = b"Part 10",
    *,
    study: str = STUDY,
    series: str = SERIES,
) -> NewFile:
    """Write a file to the spool, as a retrieval does."""
    info = InstanceInfo(CT, instance, EXPLICIT_VR_LITTLE_ENDIAN, study, series)
    path = cache.spool_folder / f"{len(list(cache.spool_folder.iterdir()))}.part"
    path.touch(0o600)
    path.write_bytes(content)
    return NewFile(info, path, len(content), 3, zlib.crc32(content))


def files_below(folder: Path) -> dict[Path, Path]:
    """The Part 10 files of the cache, by their path in it."""
    cache = folder / "cache"
    folders = [Path(folder) for folder, _, _ in os.walk(cache) if Path(folder) != cache]  # may be gone meanwhile
    return {path.relative_to(cache): path for folder in folders for path in _files_in(folder)}


def _files_in(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return [path for path in folder.iterdir() if not path.is_dir()]
    return []


def found(cache: Cache, study: str = STUDY, series: str | None = None) -> list[str]:
    """The SOP instance UIDs that are there."""
    return [each.info.sop_instance_uid for each in cache.instances(study, series)]


def read(cache: Cache, study: str = STUDY, series: str = SERIES, instance: str = "1.2.3.4.5") -> bytes:
    """The content of an instance that must be there."""
    cached = cache.instance(study, series, instance)
    assert cached is not None
    with cache.open_file(cached) as file:
        return file.read()


def rows_below(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and CRC-32 of each instance in the index, by its path in the cache. None of them is pending."""
    with contextlib.closing(sqlite3.connect(folder / "cache" / "index.sqlite")) as index:
        rows = index.execute("SELECT study, series, instance, size, checksum, pending FROM instances").fetchall()
        totals = dict(index.execute("SELECT study || '/' || series, bytes FROM series").fetchall())
        unproven = index.execute("SELECT study FROM studies WHERE study NOT IN (SELECT study FROM series)").fetchall()
    assert not unproven
    sizes: dict[str, int] = {}
    for study, series, _, size, _, pending in rows:
        assert not pending
        sizes[f"{study}/{series}"] = sizes.get(f"{study}/{series}", 0) + size
    assert totals == sizes
    return {Path(study, series, f"{instance}.dcm"): (size, crc) for study, series, instance, size, crc, _ in rows}


def check_storage(folder: Path) -> int:
    """Assert that every row has its file, whole, and every file its row; returns how many there are."""
    files = {path: (len(data := file.read_bytes()), zlib.crc32(data)) for path, file in files_below(folder).items()}
    assert files == rows_below(folder)
    return len(files)
