"""The cache: what was kept is found again, for its time and within its space; what is complete is known."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.archive.cache import cache as cache_module
from proxy.archive.cache import files as cachefiles
from proxy.archive.cache.cache import Cache, NewFile, Purged
from tests.dul.conftest import until
from tests.proxy.caching import (
    HOUR,
    OTHER_SERIES,
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
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Cache]:
    """An empty cache with room for 1 GiB, which keeps things for an hour."""
    async with cache_at(tmp_path, clock=clock) as opened:
        yield opened


# --- keeping and finding -------------------------------------------------------------------------------------


async def test_found_again_after_a_restart(tmp_path: Path) -> None:
    """Everything that was handed over, and the same content; the spool file is the retrieval's to remove."""
    async with cache_at(tmp_path) as cache:
        file = new_file(cache, content=b"header and data set")
        assert await cache.keep([file], (STUDY, None))
        assert file.path.exists()
        file.path.unlink()
        proven = cache.proven(STUDY, None)
    async with cache_at(tmp_path) as cache:
        instance = cache.instance(STUDY, SERIES, "1.2.3.4.5")
        assert instance is not None
        assert instance.info == file.info
        assert (instance.size, instance.header_size, instance.checksum) == (19, 3, file.checksum)
        assert instance.etag == f"{file.checksum:08x}-13"
        assert cache.instances(STUDY, None) == cache.instances(STUDY, SERIES) == [instance]
        assert cache.proven(STUDY, None) == cache.proven(STUDY, SERIES) == proven is not None
        assert read(cache) == b"header and data set"
    assert check_storage(tmp_path) == 1


async def test_what_is_not_there(cache: Cache) -> None:
    await cache.keep([new_file(cache)], None)
    assert cache.instance(STUDY, SERIES, "1.2.3.4.50") is None
    assert cache.instance(STUDY, OTHER_SERIES, "1.2.3.4.5") is None
    assert cache.instance(OTHER_STUDY, SERIES, "1.2.3.4.5") is None
    assert cache.instances(OTHER_STUDY, None) == cache.instances(STUDY, OTHER_SERIES) == []
    assert cache.proven(OTHER_STUDY, None) is None


async def test_nothing_before_it_is_opened_and_after_it_is_closed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, retention_seconds=HOUR, max_bytes=PLENTY)
    for _ in range(2):
        assert cache.instance(STUDY, SERIES, "1.2.3.4.5") is None
        assert cache.instances(STUDY, None) == []
        assert cache.proven(STUDY, None) is None
        assert not await cache.keep([], None)
        assert await cache.purge() == Purged(0, 0)
        await cache.open()
        assert await cache.keep([new_file(cache)], (STUDY, None))
        await cache.close()
        await cache.close()


async def test_in_order_of_arrival(cache: Cache) -> None:
    """Those of the study, whatever their series and UIDs."""
    one = [new_file(cache, f"1.{number}", series=series) for number, series in ((9, "1"), (1, "2"), (5, "1"))]
    await cache.keep(one, None)
    await cache.keep([new_file(cache, "1.3", series="2"), new_file(cache, "1.7", study=OTHER_STUDY)], None)
    assert found(cache) == ["1.9", "1.1", "1.5", "1.3"]
    assert found(cache, STUDY, "2") == ["1.1", "1.3"]
    assert found(cache, OTHER_STUDY) == ["1.7"]


async def test_the_same_instance_uid_in_two_series(cache: Cache) -> None:
    await cache.keep([new_file(cache, content=b"one"), new_file(cache, content=b"two", series=OTHER_SERIES)], None)
    assert read(cache) == b"one"
    assert read(cache, series=OTHER_SERIES) == b"two"


async def test_of_files_for_one_instance_the_last_counts(tmp_path: Path, cache: Cache) -> None:
    """Within one call, and over several."""
    assert await cache.keep([new_file(cache, content=b"one"), new_file(cache, content=b"second")], None)
    assert read(cache) == b"second"
    before = cache.instance(STUDY, SERIES, "1.2.3.4.5")
    assert before is not None
    with cache.open_file(before) as file:
        assert await cache.keep([new_file(cache, content=b"the third")], None)
        assert file.read() == b"second", "what is open can be read on"
    assert read(cache) == b"the third"
    assert cache.usage().bytes == 9
    assert check_storage(tmp_path) == 1


async def test_the_entity_tag_is_of_the_content(cache: Cache) -> None:
    contents = {"1.1": b"one", "1.2": b"two", "1.3": b"one"}
    await cache.keep([new_file(cache, instance, content) for instance, content in contents.items()], None)
    one, two, same = (each.etag for each in cache.instances(STUDY, None))
    assert one == same != two


async def test_a_file_is_read_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what this process has stored; what was there before, when it is opened the first time."""
    passes: list[object] = []
    checksum = cachefiles._checksum
    monkeypatch.setattr(cachefiles, "_checksum", lambda file: passes.append(file) or checksum(file))
    async with cache_at(tmp_path) as cache:
        await cache.keep([new_file(cache)], None)
        assert read(cache) == read(cache) == b"Part 10"
        assert len(passes) == 0
    async with cache_at(tmp_path) as cache:
        assert read(cache) == read(cache) == b"Part 10"
        assert len(passes) == 1


# --- completeness --------------------------------------------------------------------------------------------


async def test_a_complete_study_makes_its_series_complete(cache: Cache, clock: Clock) -> None:
    await cache.keep([new_file(cache, "1.1", series="1"), new_file(cache, "1.2", series="2")], (STUDY, None))
    assert [cache.proven(STUDY, series) for series in (None, "1", "2", "3")] == [clock.now, clock.now, clock.now, None]


async def test_a_complete_series_says_nothing_of_its_study(cache: Cache, clock: Clock) -> None:
    await cache.keep([new_file(cache, "1.1", series="1")], (STUDY, "1"))
    await cache.keep([new_file(cache, "1.2", series="2")], None)
    assert [cache.proven(STUDY, series) for series in (None, "1", "2")] == [None, clock.now, None]


async def test_series_that_are_complete_in_a_study_that_is_not(cache: Cache, clock: Clock) -> None:
    files = [new_file(cache, f"1.{series}", series=series) for series in ("1", "2", "3")]
    await cache.keep(files, None, ["1", "3", "4"])
    assert [cache.proven(STUDY, series) for series in (None, "1", "2", "3", "4")] == [
        None,
        clock.now,
        None,
        clock.now,
        None,
    ]


async def test_another_instance_undoes_the_proof(cache: Cache, clock: Clock) -> None:
    """The archive has got more, and nobody knows whether that is all. Other series are as complete as before."""
    await cache.keep([new_file(cache, "1.1", series="1"), new_file(cache, "1.2", series="2")], (STUDY, None))
    await cache.keep([new_file(cache, "1.3", series="2")], None)
    assert [cache.proven(STUDY, series) for series in (None, "1", "2")] == [None, clock.now, None]


async def test_the_same_content_again_does_not_undo_the_proof(tmp_path: Path, cache: Cache, clock: Clock) -> None:
    """And counts as stored now. A file that is gone is put in place again, and then it is another instance."""
    await cache.keep([new_file(cache), new_file(cache, "1.9")], (STUDY, None))
    first, clock.now = clock.now, clock.now + HOUR / 2
    await cache.keep([new_file(cache), new_file(cache, "1.9")], None)
    assert cache.proven(STUDY, None) == first
    clock.now += HOUR / 2
    assert len(found(cache)) == 2
    cached = cache.instance(STUDY, SERIES, "1.9")
    assert cached is not None
    cached.path.unlink()
    await cache.keep([new_file(cache, "1.9")], None)
    assert cache.proven(STUDY, None) is None
    assert check_storage(tmp_path) == 2


async def test_what_is_complete_has_nothing_else(tmp_path: Path, cache: Cache) -> None:
    """What the archive has no more is not served on as a part of the study."""
    await cache.keep([new_file(cache, f"1.{series}", series=series) for series in ("1", "2")], None)
    await cache.keep([new_file(cache, "1.3", series="2")], (STUDY, "2"))
    assert found(cache) == ["1.1", "1.3"]
    await cache.keep([new_file(cache, "1.1", series="1"), new_file(cache, "1.4", series="4")], (STUDY, None))
    assert found(cache) == ["1.1", "1.4"]
    assert check_storage(tmp_path) == 2
    assert len(list((tmp_path / "cache").glob("*/*/"))) == 2, "folders go with the last file"


async def test_proven_again(cache: Cache, clock: Clock) -> None:
    """Only what was complete, and it does not make anything younger."""
    await cache.keep([new_file(cache, "1.1", series="1")], (STUDY, "1"))
    await cache.keep([new_file(cache, "1.2", study=OTHER_STUDY)], (OTHER_STUDY, None))
    clock.now += 100
    await cache.renew(STUDY, None)
    await cache.renew(STUDY, "1")
    await cache.renew(STUDY, "2")
    await cache.renew(OTHER_STUDY, None)
    assert [cache.proven(STUDY, series) for series in (None, "1", "2")] == [None, clock.now, None]
    assert cache.proven(OTHER_STUDY, None) == cache.proven(OTHER_STUDY, SERIES) == clock.now
    clock.now += HOUR - 100
    assert cache.proven(STUDY, "1") is cache.proven(OTHER_STUDY, None) is None
    assert found(cache) == []


# --- age -----------------------------------------------------------------------------------------------------


async def test_nothing_is_left_after_its_time(tmp_path: Path, cache: Cache, clock: Clock) -> None:
    """It counts from when a thing was stored, not from its last use; and completeness goes with the first part."""
    await cache.keep([new_file(cache, "1.1", series="1")], None)
    clock.now += 10
    await cache.keep([new_file(cache, "1.1", series="1"), new_file(cache, "1.2", series="2")], (STUDY, None))
    clock.now += 10
    await cache.keep([new_file(cache, "1.1", series="1")], None)
    clock.now += HOUR - 10.5
    cache.touch((STUDY, None))
    await cache.sweep()
    assert found(cache) == ["1.1", "1.2"]
    assert cache.proven(STUDY, None) is not None
    clock.now += 0.5
    assert found(cache) == ["1.1"], "at once, not only when it is swept"
    assert [cache.proven(STUDY, series) is not None for series in (None, "1", "2")] == [False, True, False]
    await cache.sweep()
    assert check_storage(tmp_path) == 1
    assert [cache.proven(STUDY, series) is not None for series in (None, "1", "2")] == [False, True, False]
    clock.now += 10
    await cache.sweep()
    assert check_storage(tmp_path) == 0
    assert not list((tmp_path / "cache").glob("*/"))
    assert cache.usage().instances == 0


async def test_what_is_dated_ahead_is_removed(tmp_path: Path, cache: Cache, clock: Clock) -> None:
    """The clock was set back: nobody knows how old it is. A minute ahead is let pass."""
    await cache.keep([new_file(cache)], None)
    clock.now -= 59
    await cache.sweep()
    assert check_storage(tmp_path) == 1
    clock.now -= 2
    await cache.sweep()
    assert check_storage(tmp_path) == 0


async def test_it_sweeps_by_itself(tmp_path: Path, clock: Clock) -> None:
    """At its start, and then at least once a second where things are kept for a moment only."""
    async with cache_at(tmp_path, retention_seconds=2, clock=clock) as cache:
        await cache.keep([new_file(cache)], None)
    clock.now += 2
    async with cache_at(tmp_path, retention_seconds=2, clock=clock) as cache:
        await until(lambda: not files_below(tmp_path))
        await cache.keep([new_file(cache)], None)
        clock.now += 2
        await until(lambda: not files_below(tmp_path))


# --- space ---------------------------------------------------------------------------------------------------


async def fill(cache: Cache, clock: Clock, *series: str, size: int = 100, study: str = STUDY) -> None:
    """Keep series of two instances with `size` bytes together, one after the other."""
    for each in series:
        clock.now += 1
        files = [new_file(cache, f"1.{number}", bytes(size // 2), study=study, series=each) for number in (1, 2)]
        assert await cache.keep(files, (study, each))


async def test_series_used_longest_ago_make_room(tmp_path: Path, clock: Clock) -> None:
    """Whole series; use is what was stored, or touched as an instance, a series or a study, also before a restart."""
    async with cache_at(tmp_path, max_bytes=500, clock=clock) as cache:
        await fill(cache, clock, "1", "2", "3", "4")
        await fill(cache, clock, "1", study=OTHER_STUDY)
        clock.now += 1
        instance = cache.instance(STUDY, "2", "1.1")
        assert instance is not None
        cache.touch(instance)
        cache.touch((STUDY, "1"))
        await fill(cache, clock, "5")
        assert {each.info.series for each in cache.instances(STUDY, None)} == {"1", "2", "4", "5"}
        clock.now += 1
        cache.touch((STUDY, None))
        await cache.sweep()
        clock.now += 1
        cache.touch((STUDY, "4"))
    async with cache_at(tmp_path, max_bytes=500, clock=clock) as cache:
        await fill(cache, clock, "6")
        assert cache.instances(OTHER_STUDY, None) == []
        await fill(cache, clock, "7", size=300)
        assert {each.info.series for each in cache.instances(STUDY, None)} == {"4", "6", "7"}
        assert check_storage(tmp_path) == 6


async def test_completeness_goes_with_a_series(tmp_path: Path, clock: Clock) -> None:
    async with cache_at(tmp_path, max_bytes=300, clock=clock) as cache:
        files = [new_file(cache, f"1.{series}", bytes(100), series=series) for series in ("1", "2")]
        await cache.keep(files, (STUDY, None))
        clock.now += 1
        cache.touch((STUDY, "1"))
        await fill(cache, clock, "3", size=200, study=OTHER_STUDY)
        assert [cache.proven(STUDY, series) is not None for series in (None, "1", "2")] == [False, True, False]
        assert cache.proven(OTHER_STUDY, "3") is not None


async def test_a_smaller_limit_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    async with cache_at(tmp_path, clock=clock) as cache:
        await fill(cache, clock, "1", "2", "3")
    async with cache_at(tmp_path, max_bytes=200, clock=clock) as cache:
        await until(lambda: cache.usage().bytes == 200)
        assert {each.info.series for each in cache.instances(STUDY, None)} == {"2", "3"}


async def test_what_is_larger_than_the_cache(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """It is not tried, or everything else would have gone for nothing. Said once."""
    async with cache_at(tmp_path, max_bytes=200, clock=clock) as cache:
        await fill(cache, clock, "1", "2")
        for _ in range(2):
            assert not await cache.keep([new_file(cache, content=bytes(201))], (STUDY, None))
        assert cache.proven(STUDY, "1") is not None
        assert cache.usage().failure == "what was retrieved is larger than the whole cache"
        assert len(caplog.records) == 1
        assert await cache.keep([new_file(cache, content=bytes(200))], (STUDY, SERIES))
        assert found(cache) == ["1.2.3.4.5"]
        assert cache.usage().failure is None


async def test_a_series_that_grows_beyond_the_cache(tmp_path: Path, clock: Clock) -> None:
    """The part that is there is not removed for the part that comes; nothing changes."""
    async with cache_at(tmp_path, max_bytes=300, clock=clock) as cache:
        await fill(cache, clock, "0")
        await fill(cache, clock, "1", size=200)
        assert not await cache.keep([new_file(cache, "1.3", bytes(200), series="1")], None)
        assert cache.usage().bytes == 300
        assert cache.proven(STUDY, "0") is not None
        assert cache.proven(STUDY, "1") is not None
        assert check_storage(tmp_path) == 4


# --- names, rights, figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", ["../..", "/etc/passwd", "a\0b", "", ".", "x" * 10_000, "\N{SNOWMAN}", "1.2/../3"])
async def test_no_uid_leads_out_of_the_folder(tmp_path: Path, uid: str) -> None:
    """Nor is one refused, nor can one be read off a name."""
    storage = tmp_path / "a" / "b" / "storage"
    async with cache_at(storage) as cache:
        file = new_file(cache, uid, study=uid, series=uid)
        assert await cache.keep([file], (uid, None))
        instance = cache.instance(uid, uid, uid)
        assert instance is not None
        assert instance.info == file.info
        assert read(cache, uid, uid, uid) == b"Part 10"
        file.path.unlink()
        (name,) = files_below(storage)
        assert all(len(part.removesuffix(".dcm")) == 32 for part in name.parts)
        assert list(tmp_path.rglob("*.dcm")) == [storage / "cache" / name]
        assert await cache.purge(uid) == Purged(1, 7)


async def test_a_uid_that_is_no_text(cache: Cache) -> None:
    """Half of a surrogate pair: nothing is found, nothing fails."""
    assert cache.instance("\ud800", "1", "1") is None
    assert cache.instances("\ud800", None) == []


async def test_everything_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask, and whatever there was before."""
    before = os.umask(0)
    try:
        storage = tmp_path / "a" / "storage"
        async with cache_at(storage):
            pass
        (storage / "cache").chmod(0o755)
        (storage / "cache" / "index.sqlite").chmod(0o644)
        async with cache_at(storage) as cache:
            file = new_file(cache)
            file.path.chmod(0o644)
            await cache.keep([file], (STUDY, None))
            paths = [tmp_path / "a", storage, *storage.rglob("*")]
            modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in paths}
            assert len(paths) == 12
            assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}
            assert all(mode == (0o700 if (tmp_path / name).is_dir() else 0o600) for name, mode in modes.items())
    finally:
        os.umask(before)


async def test_usage(cache: Cache) -> None:
    await cache.keep([new_file(cache), new_file(cache, "1.9")], None)
    cache.hits += 2
    cache.misses += 1
    usage = cache.usage()
    assert (usage.instances, usage.bytes, usage.max_bytes) == (2, 14, PLENTY)
    assert (usage.retention_seconds, usage.hits, usage.misses, usage.failure) == (HOUR, 2, 1, None)


async def test_uses_that_are_remembered_are_bounded(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "TOUCH_LIMIT", 3)
    for number in (1, 2, 3, 1, 4, 5):
        cache.touch((STUDY, f"{number}"))
    assert [series for _, series in cache._touched] == ["3", "4", "5"]


async def test_nothing_at_info_names_a_study(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    study, series, instance = "1.2.777.1", "1.2.777.2", "1.2.777.3"
    file = new_file(cache, instance, study=study, series=series)
    assert await cache.keep([file], (study, None))
    assert not await cache.keep([replace(file, path=file.path.with_name("gone"), size=1)], None)
    await cache.purge(study)
    assert "No such file" in caplog.text
    assert "1.2.777" not in caplog.text
    assert cachefiles.name_of(study) not in caplog.text


async def test_ten_thousand_instances(cache: Cache, record_property: Callable[[str, object], None]) -> None:
    """Looked up on the event loop, so in no time. The bounds are far above what it takes."""
    series = [f"1.{number}" for number in range(20)]
    shared = new_file(cache)
    infos = [replace(shared.info, sop_instance_uid=f"1.2.{n}", series=series[n % 20]) for n in range(10_000)]
    files = [NewFile(info, shared.path, shared.size, shared.header_size, shared.checksum) for info in infos]

    took = {}
    started = time.perf_counter()
    assert await cache.keep(files, (STUDY, None))
    took["keep all"] = time.perf_counter() - started
    started = time.perf_counter()
    assert len(cache.instances(STUDY, None)) == 10_000
    took["instances of the study"] = time.perf_counter() - started
    started = time.perf_counter()
    assert all(cache.instance(STUDY, info.series or "", info.sop_instance_uid) for info in infos[:1000])
    took["instance"] = (time.perf_counter() - started) / 1000
    started = time.perf_counter()
    assert cache.proven(STUDY, series[3]) is not None
    took["proven"] = time.perf_counter() - started
    for what, seconds in took.items():
        record_property(what, f"{seconds * 1000:.2f} ms")
    assert took["keep all"] < 10
    assert took["instances of the study"] < 2
    assert took["instance"] < 0.002
    assert took["proven"] < 0.05
