"""The cache on a storage that fails: one that cannot be used, damaged files, a full disk."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.archive.cache.cache import Cache, CacheError, DamagedError, NewFile, StorageInUseError
from proxy.archive.cache.index import Index
from tests.dul.conftest import until
from tests.proxy.caching import (
    HOUR,
    OTHER_STUDY,
    PLENTY,
    SERIES,
    STUDY,
    cache_at,
    check_storage,
    files_below,
    found,
    new_file,
    read,
)
from tests.proxy.clock import Clock


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Cache]:
    """An empty cache."""
    async with cache_at(tmp_path) as opened:
        yield opened


# --- a storage that cannot be used ---------------------------------------------------------------------------


async def test_two_at_once(tmp_path: Path, cache: Cache) -> None:
    """The second is told so, and the first is not disturbed; later it can have it."""
    await cache.keep([new_file(cache)], None)
    second = Cache(tmp_path, retention_seconds=HOUR, max_bytes=PLENTY, clock=Clock())
    with pytest.raises(StorageInUseError) as raised:
        await second.open()
    assert str(raised.value) == f"another proxy uses the storage (key: storagePath) at {tmp_path}"
    assert read(cache) == b"Part 10"
    assert list(cache.spool_folder.iterdir())
    await cache.close()
    await second.open()
    assert read(second) == b"Part 10"
    await second.close()


def _file_for_folder(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def _below_a_file(folder: Path) -> Path:
    return _file_for_folder(folder) / "storage"


def _file_for_spool(folder: Path) -> Path:
    (folder / ".lock").touch()
    (folder / "spool").touch()
    return folder


def _read_only(folder: Path) -> Path:
    return Path("/proc/sys/storage")  # where even root makes no folder


@pytest.mark.parametrize(
    ("make", "place", "reason"),
    [
        (_file_for_folder, "file", "Not a directory"),
        (_below_a_file, "file/storage", "Not a directory"),
        (_file_for_spool, "spool", "Not a directory"),
        (_read_only, "/proc/sys/storage", "(Permission denied|No such file or directory|Read-only file system)"),
    ],
)
async def test_a_storage_that_cannot_be_used(
    tmp_path: Path, make: Callable[[Path], Path], place: str, reason: str
) -> None:
    """The error names the key, the place and the reason; nothing is held."""
    cache = Cache(make(tmp_path), retention_seconds=HOUR, max_bytes=PLENTY)
    for _ in range(2):
        with pytest.raises(CacheError, match=rf"\(key: storagePath\) at {tmp_path / place}: {reason}$") as raised:
            await cache.open()
        assert not isinstance(raised.value, StorageInUseError)
    assert cache.instances(STUDY, None) == []
    assert not await cache.keep([], None)


@pytest.mark.parametrize("name", ["spool", "cache"])
async def test_folders_that_are_not_the_proxys(tmp_path: Path, name: str) -> None:
    """With "/var" for the storage, /var/spool would be emptied. What is the proxy's own may lack its lock file."""
    (tmp_path / name / "mail").mkdir(parents=True)
    (tmp_path / name).chmod(0o755)
    cache = Cache(tmp_path, retention_seconds=HOUR, max_bytes=PLENTY)
    with pytest.raises(CacheError, match=f"{tmp_path / name} is there already and not this proxy's"):
        await cache.open()
    assert (tmp_path / name / "mail").exists()
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o755
    (tmp_path / name / "mail").rmdir()
    await cache.open()
    new_file(cache)
    await cache.close()
    (tmp_path / ".lock").unlink()
    await cache.open()
    await cache.close()


async def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out at the start."""
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    cache = Cache(tmp_path, retention_seconds=HOUR, max_bytes=PLENTY)
    with pytest.raises(CacheError, match="Operation not permitted"):
        await cache.open()
    monkeypatch.undo()
    await cache.open()
    await cache.close()


async def test_the_spool_is_empty_after_a_start(tmp_path: Path) -> None:
    async with cache_at(tmp_path) as cache:
        new_file(cache)
        (cache.spool_folder / "retrieval").mkdir()
        (cache.spool_folder / "retrieval" / "1.part").touch()
        (cache.spool_folder / "elsewhere").symlink_to(tmp_path / "cache")
    async with cache_at(tmp_path) as cache:
        assert list(cache.spool_folder.iterdir()) == []
        assert (tmp_path / "cache" / "index.sqlite").exists()


def failing(number: int, after: int = 0, times: int = 10**6) -> Callable[..., object]:
    """A system call that fails `times` times, once it has been called `after` times."""
    original, calls = os.link, iter(range(10**9))

    def call(*arguments: object, **options: object) -> object:
        if after <= next(calls) < after + times:
            raise OSError(number, os.strerror(number), "some path")
        return original(*arguments, **options)  # type: ignore[arg-type]

    return call


# --- damaged files -------------------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)


def _replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


def _link_elsewhere(path: Path) -> None:
    path.rename(path.with_suffix(".new"))
    path.symlink_to(path.with_suffix(".new"))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("damage", [_truncate, _flip, _replace, Path.unlink, _link_elsewhere, _folder])
async def test_a_damaged_file(tmp_path: Path, damage: Callable[[Path], None], *, restarted: bool) -> None:
    """It is never handed out; once forgotten it is gone, with the completeness of its series and study."""
    async with cache_at(tmp_path) as cache:
        files = [new_file(cache), new_file(cache, "1.9"), new_file(cache, series="1")]
        await cache.keep(files, (STUDY, None))
        for file in files:
            file.path.unlink()
        if not restarted:
            await damaged(cache, damage)
    if restarted:
        async with cache_at(tmp_path) as cache:
            await damaged(cache, damage)
    for path in tmp_path.glob("cache/*/*/*.dcm/"):
        path.rmdir()  # a folder is nothing that the cache has made, nor removes
    assert check_storage(tmp_path) == 2


async def damaged(cache: Cache, damage: Callable[[Path], None]) -> None:
    """Damage an instance and find it out."""
    instance = cache.instance(STUDY, SERIES, "1.2.3.4.5")
    assert instance is not None
    damage(instance.path)
    with pytest.raises(DamagedError):
        cache.open_file(instance)
    await cache.forget(instance)
    assert cache.instance(STUDY, SERIES, "1.2.3.4.5") is None
    assert [cache.proven(STUDY, series) is not None for series in (None, SERIES, "1")] == [False, False, True]
    assert found(cache) == ["1.9", "1.2.3.4.5"]
    await cache.forget(instance)


async def test_too_many_open_files_are_no_damage(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    await cache.keep([new_file(cache)], None)
    (instance,) = cache.instances(STUDY, None)

    def fail(*arguments: object, **options: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(CacheError, match="Too many open files") as raised:
        cache.open_file(instance)
    assert not isinstance(raised.value, DamagedError)


async def test_what_replaced_a_damaged_one_is_not_forgotten(cache: Cache) -> None:
    await cache.keep([new_file(cache, content=b"old")], None)
    (old,) = cache.instances(STUDY, None)
    await cache.keep([new_file(cache, content=b"renewed")], (STUDY, None))
    with pytest.raises(DamagedError):
        cache.open_file(old)
    await cache.forget(old)
    assert read(cache) == b"renewed"
    assert cache.proven(STUDY, None) is not None


# --- what cannot be kept -------------------------------------------------------------------------------------


async def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What was used longest ago goes, and it is tried once more: then all of it is there."""
    async with cache_at(tmp_path) as cache:
        await cache.keep([new_file(cache, content=bytes(100), study=OTHER_STUDY)], (OTHER_STUDY, None))
        await cache.keep([new_file(cache, content=bytes(10), series="1")], (STUDY, None))
        monkeypatch.setattr(os, "link", failing(errno.ENOSPC, after=1, times=1))
        assert await cache.keep([new_file(cache), new_file(cache, "1.9")], (STUDY, SERIES))
        assert found(cache) == ["1.2.3.4.5", "1.2.3.4.5", "1.9"]
        assert cache.proven(STUDY, SERIES) is not None
        assert cache.instances(OTHER_STUDY, None) == []
    assert check_storage(tmp_path) == 3
    assert not caplog.records


async def test_a_disk_that_stays_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is left, neither rows nor files; it is said once, and said again only after it was well."""
    async with cache_at(tmp_path) as cache:
        await cache.keep([new_file(cache, study=OTHER_STUDY)], (OTHER_STUDY, None))
        monkeypatch.setattr(os, "link", failing(errno.ENOSPC, after=1))
        for _ in range(3):
            assert not await cache.keep([new_file(cache), new_file(cache, "1.9")], (STUDY, None))
            assert found(cache) == []
            assert cache.proven(STUDY, None) is None
        assert files_below(tmp_path) == {}
        assert cache.usage().failure == "No space left on device"
        monkeypatch.undo()
        assert await cache.keep([new_file(cache)], (STUDY, None))
        assert cache.usage().failure is None
        assert [record.getMessage() for record in caplog.records] == [
            "the cache cannot take over files: No space left on device"
        ]
        monkeypatch.setattr(os, "link", failing(errno.EDQUOT))
        assert not await cache.keep([new_file(cache, "1.9")], (STUDY, None))
        assert len(caplog.records) == 2
    check_storage(tmp_path)


async def test_an_index_that_cannot_grow(tmp_path: Path) -> None:
    """SQLite finds the disk full. Look-ups go on, and so does keeping once there is room."""
    async with cache_at(tmp_path) as cache:
        await cache.keep([new_file(cache)], (STUDY, None))
        execute = cache._store._index._execute
        await cache._run(execute, "PRAGMA max_page_count = 1")
        many = [new_file(cache, f"2.{number}", series=f"{number}") for number in range(200)]
        assert not await cache.keep(many, (STUDY, None))
        assert cache.usage().failure == "database or disk is full"
        await cache._run(execute, "PRAGMA max_page_count = 100000")
        assert await cache.keep(many, (STUDY, None))
        assert len(found(cache)) == 200
    assert check_storage(tmp_path) == 200


async def test_a_disk_so_full_that_nothing_can_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even rows, since the log of that needs room: the cache starts anew, or it would stay so for ever."""
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL

    def fail(*arguments: object) -> list[object]:
        raise full

    async with cache_at(tmp_path) as cache:
        await cache.keep([new_file(cache)], (STUDY, None))
        with monkeypatch.context() as patched:
            patched.setattr(Index, "evict", fail)
            assert not await cache.keep([new_file(cache, study=OTHER_STUDY)], None)
            assert cache.usage().failure == "the disk is full, and nothing can be removed from the index"
        await until(lambda: not files_below(tmp_path))
        assert found(cache) == []
        assert await cache.keep([new_file(cache)], (STUDY, None))
    assert check_storage(tmp_path) == 1


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_a_failure_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """All or nothing: of the call nothing is left, and what it was to replace is there as it was, or gone."""
    async with cache_at(tmp_path) as cache:
        await cache.keep([new_file(cache, "1.1"), new_file(cache, "1.9", series="9")], (STUDY, None))
        monkeypatch.setattr(os, "link", failing(errno.EIO, after=after))
        files = [new_file(cache, f"1.{number}", b"renewed") for number in (1, 2, 3)]
        assert not await cache.keep(files, None)
        assert found(cache) == ["1.9"]
        assert [cache.proven(STUDY, series) is not None for series in (None, SERIES, "9")] == [False, False, True]
        check_storage(tmp_path)
        monkeypatch.undo()
        assert await cache.keep(files, (STUDY, SERIES))
    assert check_storage(tmp_path) == 4


@pytest.mark.parametrize("change", [Path.unlink, _truncate, _link_elsewhere, _folder])
async def test_a_spool_file_that_is_not_what_was_written(
    tmp_path: Path, cache: Cache, change: Callable[[Path], None]
) -> None:
    files: list[NewFile] = [new_file(cache), new_file(cache, "1.9")]
    change(files[1].path)
    assert not await cache.keep(files, (STUDY, None))
    assert found(cache) == []
    assert check_storage(tmp_path) == 0


async def test_a_look_up_that_fails(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """It is a miss; said once, until it works again."""
    await cache.keep([new_file(cache)], (STUDY, None))
    assert cache._reader is not None
    cache._reader.close()
    for _ in range(2):
        assert cache.instance(STUDY, SERIES, "1.2.3.4.5") is None
        assert cache.instances(STUDY, None) == []
        assert cache.proven(STUDY, None) is None
        assert cache.usage().instances == 0
    assert len(caplog.records) == 1
    assert cache.usage().failure == "Cannot operate on a closed database."
    cache._open_reader()
    assert found(cache) == ["1.2.3.4.5"]
    assert cache.usage().failure is None
