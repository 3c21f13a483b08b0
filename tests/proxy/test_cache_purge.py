"""Purging: by the command, from another process while the cache is in use; and what the command says and leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import cli
from proxy.archive.cache.cache import Purged, purge_storage
from proxy.archive.cache.files import SeriesKey, Storage
from proxy.cli import main
from tests.peers.process import Address
from tests.proxy.caching import (
    OTHER_STUDY,
    SERIES,
    STUDY,
    cache_at,
    check_storage,
    files_below,
    found,
    new_file,
    read,
)
from tests.proxy.command import Ended, command, write_config
from tests.proxy.running import settings

NOBODY = 65534


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def config(tmp_path: Path, storage: Path) -> Path:
    """A configuration file that names the storage."""
    return write_config(tmp_path, settings(Address("NOBODY", 104), storagePath=str(storage)))


async def purge(config: Path, *arguments: str) -> Ended:
    """Run the command as a process."""
    return await command("purge", "--config", str(config), *arguments, cwd=config.parent)


# --- while the cache is in use -------------------------------------------------------------------------------


async def test_everything_while_the_cache_is_in_use(storage: Path, config: Path) -> None:
    """It is gone at once for the proxy, which goes on, and whose open files can be read to their end."""
    async with cache_at(storage) as cache:
        files = [new_file(cache, content=b"open"), new_file(cache, "1.9", study=OTHER_STUDY)]
        await cache.keep(files, (STUDY, None))
        (instance,) = cache.instances(STUDY, None)
        with cache.open_file(instance) as file:
            ended = await purge(config)
            assert (ended.code, ended.err) == (0, "")
            assert ended.out == f"removed from the cache at {storage}: 2 instances, 11 bytes\n"
            assert file.read() == b"open"
        assert found(cache) == found(cache, OTHER_STUDY) == []
        assert cache.proven(STUDY, None) is None
        assert not list((storage / "cache").glob("*/"))
        assert len(list(cache.spool_folder.iterdir())) == 2
        assert await cache.keep([new_file(cache, content=b"again")], (STUDY, None))
        assert read(cache) == b"again"
        ended = await purge(config)
        assert ended.out == f"removed from the cache at {storage}: 1 instance, 5 bytes\n"
    assert check_storage(storage) == 0


async def test_some_studies(storage: Path, config: Path) -> None:
    """The others stay as they are; a study that is not there is no error."""
    async with cache_at(storage) as cache:
        for study in (STUDY, OTHER_STUDY, "1.2.9"):
            await cache.keep([new_file(cache, study=study)], (study, None))
        ended = await purge(config, "--study", STUDY, "1.2.9", "1.2.99")
        assert ended.out == f"removed from the cache at {storage}: 2 instances, 14 bytes\n"
        assert [len(found(cache, study)) for study in (STUDY, OTHER_STUDY, "1.2.9")] == [0, 1, 0]
        assert cache.proven(OTHER_STUDY, SERIES) is not None
        assert read(cache, OTHER_STUDY) == b"Part 10"
        assert len(files_below(storage)) == 1
    assert check_storage(storage) == 1


async def test_by_the_proxy_itself(storage: Path) -> None:
    async with cache_at(storage) as cache:
        for study in (STUDY, OTHER_STUDY):
            await cache.keep([new_file(cache, study=study)], (study, None))
        assert await cache.purge(STUDY) == Purged(1, 7)
        assert await cache.purge(STUDY) == Purged(0, 0)
        assert found(cache, OTHER_STUDY) == ["1.2.3.4.5"]
        assert await cache.purge() == Purged(1, 7)
        assert check_storage(storage) == 0


async def test_files_that_no_row_tells_of_go_too(storage: Path, config: Path) -> None:
    """What a killed process has left is not to stay because the proxy is not started again."""
    async with cache_at(storage) as cache:
        await cache.keep([new_file(cache)], None)
    folder = next(iter(files_below(storage).values())).parent
    for name in ("3", "4"):
        (folder / f"{name * 32}.dcm").touch()
    ended = await purge(config)
    assert ended.out == f"removed from the cache at {storage}: 1 instance, 7 bytes\n"
    assert sorted(path.name for path in (storage / "cache").iterdir()) == ["index.sqlite"]


@pytest.mark.parametrize("moment", [1, 2, 3])
async def test_a_purge_between_two_files(storage: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Of what was stored at that moment nothing stays, also not the files that are made after the purge."""
    link, calls = os.link, iter(range(1, 10))

    def link_then_purge(*arguments: Path) -> None:
        link(*arguments)
        if next(calls) == moment:
            purge_storage(storage)

    async with cache_at(storage) as cache:
        files = [new_file(cache, f"1.{number}") for number in (1, 2, 3)]
        monkeypatch.setattr(os, "link", link_then_purge)
        assert not await cache.keep(files, (STUDY, None))
        assert found(cache) == []
        assert cache.proven(STUDY, None) is None
        assert check_storage(storage) == 0
        monkeypatch.undo()
        assert await cache.keep(files, (STUDY, None))
    assert check_storage(storage) == 3


async def test_no_row_can_be_added_while_files_are_removed(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a purge would remove the file of an instance that another process has just announced."""
    removed: list[SeriesKey] = []
    remove_all_but = Storage.remove_all_but

    def remove_and_try(self: Storage, series: SeriesKey, instances: set[str]) -> None:
        locked = pytest.raises(sqlite3.OperationalError, match="database is locked")
        with contextlib.closing(sqlite3.connect(self.index, timeout=0)) as other, locked:
            other.execute("BEGIN IMMEDIATE")
        remove_all_but(self, series, instances)
        removed.append(series)

    async with cache_at(storage) as cache:
        await cache.keep([new_file(cache)], None)
        monkeypatch.setattr(Storage, "remove_all_but", remove_and_try)
        assert purge_storage(storage) == Purged(1, 7)
    assert len(removed) == 1
    assert check_storage(storage) == 0


async def test_purges_amid_what_is_stored(storage: Path) -> None:
    """Whoever comes first: no row is left without its file, no file without its row, and studies are whole or gone."""

    stop = threading.Event()

    def purge_often() -> int:
        purged = 0
        while not stop.wait(0.001):
            purged += sum(purge_storage(storage, study).instances for study in (None, STUDY, OTHER_STUDY))
        return purged

    async with cache_at(storage) as cache:
        files = {
            study: [new_file(cache, f"1.{number}", study=study, series=f"{number % 5}") for number in range(30)]
            for study in (STUDY, OTHER_STUDY)
        }
        purging = asyncio.create_task(asyncio.to_thread(purge_often))
        try:
            for _ in range(20):
                for study, of_study in files.items():
                    await cache.keep(of_study, (study, None))
        finally:
            stop.set()
            assert await purging > 0
        check_storage(storage)
        for study in files:
            assert len(found(cache, study)) in (0, 30)
            assert (cache.proven(study, None) is not None) == bool(found(cache, study))
            for instance in cache.instances(study, None):
                cache.open_file(instance).close()


# --- what it says --------------------------------------------------------------------------------------------


def test_no_cache(storage: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No error, and nothing is made."""
    assert main(["purge", "--config", str(config)]) == 0
    assert capsys.readouterr().out == f"there is no cache at {storage}\n"
    assert not storage.exists()
    assert purge_storage(storage) == Purged(0, 0)


@pytest.mark.parametrize("uid", ["", "1.2.x", "../..", "1..2", "1" * 65, "1.2\n"])
def test_no_uid(config: Path, uid: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["purge", "--config", str(config), "--study", "1.2", uid])
    assert ended.value.code == 2
    assert "argument --study: not a UID" in capsys.readouterr().err


def test_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["purge", "--config", str(tmp_path / "none.json")]) == 2
    assert "no configuration file found" in capsys.readouterr().err


def test_a_storage_that_cannot_be_used(storage: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (storage / "cache").mkdir(parents=True)
    (storage / "cache" / "index.sqlite").write_bytes(b"no database " * 1000)
    assert main(["purge", "--config", str(config)]) == 3
    shown = capsys.readouterr()
    assert re.fullmatch(
        rf"cannot use the storage \(key: storagePath\) at {storage}: file is not a database\n", shown.err
    )
    assert not shown.out


# --- as root -------------------------------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run it for another user")
async def test_as_root_it_is_the_user_whose_cache_it_is(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left that this user could not use, and the process is root again afterwards."""
    storage = open_folder / "storage"
    async with cache_at(storage) as cache:
        await cache.keep([new_file(cache)], (STUDY, None))
    for path in [storage, *storage.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    config = write_config(open_folder, settings(Address("NOBODY", 104), storagePath=str(storage)))
    open_folder.chmod(0o755)
    users: list[tuple[int, int]] = []

    def purge_and_note(folder: Path, study: str | None) -> Purged:
        users.append((os.geteuid(), os.getegid()))
        return purge_storage(folder, study)

    monkeypatch.setattr(cli, "purge_storage", purge_and_note)
    assert main(["purge", "--config", str(config)]) == 0
    assert (os.geteuid(), os.getegid()) == (0, 0)
    assert users == [(NOBODY, NOBODY)]
    assert files_below(storage) == {}
    assert {path.stat().st_uid for path in [storage, *storage.rglob("*")]} == {NOBODY}
