"""What the cache keeps for views of some archives: apart from each other, and within the same bounds."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request

from proxy.archive.archives import Archives
from proxy.archive.cache.cache import Cache, Purged, Shelf, purge_storage
from proxy.archive.cache.files import Storage, study_name
from proxy.config.checking import parse_config
from proxy.dicomweb.keys import ARCHIVES, archives_of
from proxy.security.identity import ANYBODY, Identity, identify
from tests.peers.process import Address
from tests.proxy.caching import OTHER_STUDY, SERIES, STUDY, cache_at, check_storage, files_below, new_file
from tests.proxy.clock import Clock
from tests.proxy.running import settings

INSTANCE = "1.2.3.4.5"
PROXY = Path(__file__).parents[2] / "proxy"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


async def keep(shelf: Shelf, cache: Cache, content: bytes, study: str = STUDY, complete: bool = True) -> None:
    assert await shelf.keep([new_file(cache, content=content, study=study)], (study, None) if complete else None)


def content_of(shelf: Shelf, study: str = STUDY) -> bytes | None:
    cached = shelf.instance(study, SERIES, INSTANCE)
    if cached is None:
        assert shelf.instances(study, None) == []
        assert shelf.proven(study, None) is None
        return None
    assert [each.path for each in shelf.instances(study, SERIES)] == [cached.path]
    with shelf.open_file(cached) as file:
        return file.read()


async def test_shelves_have_nothing_in_common(storage: Path) -> None:
    """The same instance is another file on each, with its own content, and is complete or not by itself."""
    async with cache_at(storage) as cache:
        one, two, three = (cache.shelf(view) for view in ("one", "two", "three"))
        await keep(one, cache, b"of one")
        await keep(two, cache, b"of two", complete=False)
        assert [content_of(each) for each in (cache, one, two, three)] == [None, b"of one", b"of two", None]
        assert one.proven(STUDY, SERIES) is not None
        assert two.proven(STUDY, SERIES) is None
        await keep(cache, cache, b"of all")
        assert [content_of(each) for each in (cache, one, two, three)] == [b"of all", b"of one", b"of two", None]
        assert cache.shelf("one") is one
        assert cache.shelf("") is cache
    assert check_storage(storage) == 3


async def test_they_are_there_after_a_restart(storage: Path) -> None:
    async with cache_at(storage) as cache:
        await keep(cache.shelf("one"), cache, b"of one")
    async with cache_at(storage) as cache:
        assert [content_of(cache.shelf(view)) for view in ("one", "two", "")] == [b"of one", None, None]


async def test_removing_from_one(storage: Path) -> None:
    """An instance that is damaged, a study, or everything of it; and all of them by that of all archives."""
    async with cache_at(storage) as cache:
        one, two = cache.shelf("one"), cache.shelf("two")
        shelves = (cache, one, two)

        async def fill() -> None:
            for shelf in shelves:
                for study in (STUDY, OTHER_STUDY):
                    await keep(shelf, cache, b"content", study)

        await fill()
        damaged = one.instance(STUDY, SERIES, INSTANCE)
        assert damaged is not None
        await one.forget(damaged)
        assert [content_of(each) for each in shelves] == [b"content", None, b"content"]
        await fill()
        assert await one.purge(STUDY) == Purged(1, 7)
        assert await one.purge(STUDY) == Purged(0, 0)
        assert [content_of(each) for each in shelves] == [b"content", None, b"content"]
        assert content_of(one, OTHER_STUDY) == b"content"
        assert await two.purge() == Purged(2, 14)
        assert [content_of(each, OTHER_STUDY) for each in shelves] == [b"content", b"content", None]
        await fill()
        assert await cache.purge(STUDY) == Purged(3, 21)
        assert [content_of(each, OTHER_STUDY) for each in shelves] == [b"content"] * 3
        assert check_storage(storage) == 3
        assert await cache.purge() == Purged(3, 21)
        assert not files_below(storage)


async def test_what_a_killed_process_left_of_a_view(storage: Path) -> None:
    """Is removed with the study, though no row tells of it; and by the next start."""
    for purged in (True, False):
        async with cache_at(storage) as cache:
            await keep(cache.shelf("one"), cache, b"content", OTHER_STUDY)
        left = Storage(storage).cache / study_name(STUDY, "one") / ("0" * 32)
        left.mkdir(parents=True)
        (left / f"{'1' * 32}.dcm").write_bytes(b"left")
        if purged:
            assert purge_storage(storage, STUDY) == Purged(0, 0)
        else:
            async with cache_at(storage), asyncio.timeout(5):
                while left.exists():
                    await asyncio.sleep(0.005)
        assert len(files_below(storage)) == 1


async def test_retention_and_room(storage: Path) -> None:
    """Whatever is kept for whomever grows old, and makes room for what came later; also for a view that is no more."""
    clock = Clock()
    async with cache_at(storage, retention_seconds=100, max_bytes=20, clock=clock) as cache:
        one, two = cache.shelf("one"), cache.shelf("two")
        await keep(one, cache, b"ten bytes.")
        clock.now += 1
        await keep(two, cache, b"ten bytes.")
        clock.now += 1
        one.touch((STUDY, None))
        await keep(cache, cache, b"ten bytes.")
        assert [content_of(each) for each in (cache, one, two)] == [b"ten bytes.", b"ten bytes.", None]
    clock.now += 101
    async with cache_at(storage, retention_seconds=100, clock=clock) as cache:
        await cache.sweep()
        assert not files_below(storage)


async def test_usage(storage: Path) -> None:
    """Counts what one holds; that of all archives counts everything, since the bound is for everything."""
    async with cache_at(storage) as cache:
        one, two = cache.shelf("one"), cache.shelf("two")
        await keep(one, cache, b"content")
        await keep(cache, cache, b"content", OTHER_STUDY)
        one.hits, two.misses, cache.hits = 3, 2, 1
        usages = [each.usage() for each in (cache, one, two)]
        assert [(each.instances, each.bytes) for each in usages] == [(2, 14), (1, 7), (0, 0)]
        assert [(each.hits, each.misses) for each in usages] == [(4, 2), (3, 0), (0, 2)]


# --- who gets which view ---------------------------------------------------------------------------------------------


def archives(*, limited: bool) -> Archives:
    raw = settings(Address("ALPHA", 104), Address("BRAVO", 105))
    config = parse_config(raw)
    auth = config.auth.model_copy(update={"enabled": limited})
    return Archives(config.model_copy(update={"auth": auth}))


def limited_to(*names: str) -> Identity:
    return Identity("somebody", "token", frozenset(names), write=True, admin=True)


async def test_the_view_is_of_the_identity() -> None:
    """Everybody who may use the same archives shares one; there are never more than sets of archives."""
    everything = archives(limited=True)

    def seen_by(identity: Identity) -> object:
        request = make_mocked_request("GET", "/studies", app={ARCHIVES: everything})  # type: ignore[arg-type]
        identify(request, identity)
        return archives_of(request)

    assert seen_by(ANYBODY) is everything
    alpha = seen_by(limited_to("ALPHA"))
    assert alpha is not everything
    assert seen_by(limited_to("ALPHA")) is alpha
    assert seen_by(limited_to("ALPHA", "UNKNOWN")) is alpha
    assert seen_by(limited_to("ALPHA", "BRAVO")) not in (alpha, everything)
    assert [each.name for each in everything.view(frozenset({"ALPHA"})).archives] == ["ALPHA"]
    assert everything.view(frozenset()).archives == ()
    await everything.close(0)


async def test_nobody_is_taken_for_one_who_may_see_everything() -> None:
    """A handler without an identity fails where users are told apart; where nobody signs in, all see all."""
    for limited in (True, False):
        everything = archives(limited=limited)
        request = make_mocked_request("GET", "/studies", app={ARCHIVES: everything})  # type: ignore[arg-type]
        if limited:
            with pytest.raises(RuntimeError):
                archives_of(request)
        else:
            assert archives_of(request) is everything
        await everything.close(0)


def test_no_handler_goes_around_it() -> None:
    """All archives of the application are for the start and for `archives_of` alone."""
    users = [path.relative_to(PROXY) for path in PROXY.rglob("*.py") if re.search(r"\bARCHIVES\b", path.read_text())]
    assert sorted(map(str, users)) == ["app.py", "dicomweb/keys.py"]
