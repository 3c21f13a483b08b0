"""The cache after the worst: its index is damaged or removed, or its process was killed at any moment."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dul.conftest import until
from tests.proxy.cachekeeper import INSTANCES
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
    rows_below,
)
from tests.proxy.command import environment

KEEPER_ENVIRONMENT = {**environment(), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


async def tidied(folder: Path) -> None:
    """Wait until no file is without a row."""
    await until(lambda: files_below(folder).keys() == rows_below(folder).keys(), 10)


# --- a damaged index -----------------------------------------------------------------------------------------


def _garbage(index: Path) -> None:
    index.write_bytes(b"no database " * 1000)


def _cut(index: Path) -> None:
    os.truncate(index, 5000)


def _other_version(index: Path) -> None:
    with sqlite3.connect(index) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


def _other_schema(index: Path) -> None:
    with sqlite3.connect(index) as database:
        database.execute("DROP TABLE series")
    database.close()


def _missing(index: Path) -> None:
    index.unlink()


def _all_missing(index: Path) -> None:
    shutil.rmtree(index.parent)


@pytest.mark.parametrize("damage", [_garbage, _cut, _other_version, _other_schema, _missing])
async def test_a_damaged_index(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The cache starts empty and works; the files that nobody knows of any more go in the background."""
    async with cache_at(tmp_path) as cache:
        await cache.keep([new_file(cache), new_file(cache, "1.9")], (STUDY, None))
    damage(tmp_path / "cache" / "index.sqlite")
    async with cache_at(tmp_path) as cache:
        await until(lambda: not files_below(tmp_path))
        assert found(cache) == []
        assert cache.proven(STUDY, None) is None
        assert await cache.keep([new_file(cache)], (STUDY, None))
        assert read(cache) == b"Part 10"
        assert cache.usage().failure is None
    assert check_storage(tmp_path) == 1
    assert damage is _missing or "the cache starts empty" in caplog.text


@pytest.mark.parametrize("damage", [_garbage, _cut, _other_schema, _missing, _all_missing])
async def test_an_index_that_is_damaged_while_it_is_used(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """No look-up raises. What is found out makes the cache start anew by itself, and then it keeps things again."""
    async with cache_at(tmp_path) as cache:
        await cache.keep([new_file(cache, f"1.{number}") for number in range(100)], (STUDY, None))
        await cache._run(cache._store._index._execute, "PRAGMA wal_checkpoint(TRUNCATE)")
        damage(tmp_path / "cache" / "index.sqlite")
        for _ in range(3):  # it takes some steps until both connections see it
            cache.instances(STUDY, None)
            cache.instance(STUDY, SERIES, "1.1")
            await cache.keep([new_file(cache, "2.1", study=OTHER_STUDY)], (OTHER_STUDY, None))
            await cache.sweep()
        assert found(cache, OTHER_STUDY) == ["2.1"]
        assert read(cache, OTHER_STUDY, SERIES, "2.1") == b"Part 10"
    async with cache_at(tmp_path) as cache:
        assert found(cache, OTHER_STUDY) == ["2.1"]
        await tidied(tmp_path)


# --- a process that was killed -------------------------------------------------------------------------------


async def test_killed_while_it_stored(tmp_path: Path) -> None:
    """Whenever it was: no row without its file, no file without its row, nothing in the spool; studies are whole."""
    for turn in range(4):
        line = [sys.executable, "-m", "tests.proxy.cachekeeper", str(tmp_path)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, env=KEEPER_ENVIRONMENT) as keeper:
            assert keeper.stdout is not None
            assert keeper.stdout.read(10 + turn) == b"." * (10 + turn)
            time.sleep(0.003 * turn)
            keeper.kill()
        async with cache_at(tmp_path) as cache:
            assert list(cache.spool_folder.iterdir()) == []
            await tidied(tmp_path)
            studies = [f"1.2.{number}" for number in range(8)]
            complete = [study for study in studies if cache.proven(study, None) is not None]
            assert complete
            for study in complete:
                instances = cache.instances(study, None)
                assert len(instances) == INSTANCES
                for instance in instances:
                    cache.open_file(instance).close()
            assert check_storage(tmp_path) >= INSTANCES


async def test_files_without_a_row(tmp_path: Path) -> None:
    """They are removed in the background, with empty folders; what others have put beside them is not touched."""
    async with cache_at(tmp_path) as cache:
        await cache.keep([new_file(cache), new_file(cache, "1.9", series="9")], (STUDY, None))
    folder = next(iter(files_below(tmp_path).values())).parent
    stray = folder.parent.parent / ("0" * 32) / ("1" * 32)
    stray.mkdir(parents=True)
    (stray.parent / ("2" * 32)).mkdir()
    for path in (folder / f"{'3' * 32}.dcm", folder / "half.tmp", stray / f"{'4' * 32}.dcm"):
        path.touch()
    (tmp_path / "cache" / "lost+found").mkdir()
    (tmp_path / "cache" / "lost+found" / "x.dcm").touch()
    async with cache_at(tmp_path) as cache:
        await until(lambda: not stray.parent.exists())
        assert found(cache) == ["1.2.3.4.5", "1.9"]
        assert (tmp_path / "cache" / "lost+found" / "x.dcm").exists()
        shutil.rmtree(tmp_path / "cache" / "lost+found")
        await tidied(tmp_path)
    assert check_storage(tmp_path) == 2


async def test_what_is_stored_while_the_storage_is_tidied(tmp_path: Path) -> None:
    """Each folder takes its turn with what is to be stored, in whatever order."""
    async with cache_at(tmp_path) as cache:
        for number in range(30):
            await cache.keep([new_file(cache, f"1.{number}", series=f"{number}")], None)
    (tmp_path / "cache" / "index.sqlite").unlink()
    async with cache_at(tmp_path) as cache:
        for number in range(30):
            assert await cache.keep([new_file(cache, f"1.{number}", series=f"{29 - number}")], None)
        await tidied(tmp_path)
        assert len(found(cache)) == 30
    assert check_storage(tmp_path) == 30
