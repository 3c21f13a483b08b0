"""One retrieval for each thing asked for, shared by all who ask for it or a part of it, and kept for later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dul import dimse
from tests.faultpeer import Retrieve, ScriptedArchive, Stored, honest, in_front_of, small_study
from tests.faultpeer.stored import same_instances_in_two_series
from tests.proxy.conftest import Source
from tests.proxy.retrieved import RAW, Answer, digests, expected, get, kept, path_of
from tests.proxy.running import Proxy, proxy_for

pytestmark = pytest.mark.usefixtures("nothing_left")


@asynccontextmanager
async def caching(
    study: list[Stored], *, use_cget: bool = False, **more: Any
) -> AsyncIterator[tuple[ScriptedArchive, Proxy]]:
    """Run a proxy that has a cache."""
    more = {"enableCache": True, **more}
    async with in_front_of(study, use_cget=use_cget, **more) as (archive, proxy):
        yield archive, proxy


async def get_instance(proxy: Proxy, stored: Stored) -> Answer:
    """Get one instance as a Part 10 file, and check that it is that one, whole."""
    answer = await get(proxy, path_of(stored.sample) + RAW)
    assert digests([answer.body]) == expected([stored.sample])
    return answer


async def get_all(proxy: Proxy, study: list[Stored], level: str = "study") -> Answer:
    """Get a study or series, and check that it is all there."""
    answer = await get(proxy, path_of(study[0].sample, level))
    assert digests(answer.files) == expected(stored.sample for stored in study)
    return answer


class Gate:
    """A script that sends `open` instances and waits for more to be let through."""

    def __init__(self) -> None:
        self.open = 0

    async def __call__(self, request: Retrieve) -> None:
        count = len(request.instances)
        async with request.way() as send:
            for number, stored in enumerate(request.instances):
                async with asyncio.timeout(10):
                    while number >= self.open:
                        await asyncio.sleep(0.005)
                        if request.channel.cancel_requested(request.message_id):
                            await request.final(dimse.CANCEL, completed=number, remaining=count - number)
                            return
                await send(stored)
        await request.final(completed=count, failed=0, warning=0)


# --- one retrieval for all -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
async def test_ten_clients_that_want_the_same_series_at_once(cache: bool, use_cget: bool) -> None:
    """Some come before anything has arrived, some midway, one is slow: one C-MOVE or C-GET, and each gets all."""
    series = small_study(1, 6, side=128)
    gate = Gate()
    async with caching(series, use_cget=use_cget, enableCache=cache) as (archive, proxy):
        archive.script = gate
        early = [asyncio.ensure_future(get_all(proxy, series, "series")) for _ in range(5)]
        while not archive.requests:
            await asyncio.sleep(0.005)
        gate.open = 3
        async with proxy.http.get(path_of(series[0].sample, "series")) as slow:
            await slow.content.readexactly(1000)
            late = [asyncio.ensure_future(get_all(proxy, series, "series")) for _ in range(4)]
            await asyncio.sleep(0.05)
            gate.open = 6
            await asyncio.gather(*early, *late)
            await slow.read()
        assert len(archive.requests) == 1


async def test_an_instance_is_answered_as_soon_as_it_is_in(use_cget: bool) -> None:
    """While the series that it is in is still on its way."""
    series = small_study(1, 4)
    gate = Gate()
    async with caching(series, use_cget=use_cget) as (archive, proxy):
        archive.script = gate
        whole = asyncio.ensure_future(get_all(proxy, series, "series"))
        wanted = [asyncio.ensure_future(get_instance(proxy, stored)) for stored in series]
        for number in range(4):
            gate.open = number + 1
            await asyncio.wait_for(wanted[number], 5)
            assert not any(each.done() for each in wanted[number + 1 :])
        await whole
        assert len(archive.requests) == 1


async def test_a_series_out_of_a_study_that_is_on_its_way() -> None:
    study = small_study(2, 2)
    gate = Gate()
    async with caching(study) as (archive, proxy):
        archive.script = gate
        whole = asyncio.ensure_future(get_all(proxy, study))
        while not archive.requests:
            await asyncio.sleep(0.005)
        series = [asyncio.ensure_future(get_all(proxy, half, "series")) for half in (study[:2], study[2:])]
        gate.open = 4
        await asyncio.gather(whole, *series)
        assert len(archive.requests) == 1


@pytest.mark.parametrize(("level", "count"), [("STUDY", 1), ("SERIES", 2), ("IMAGE", 6)])
async def test_instances_one_by_one(level: str, count: int, use_cget: bool) -> None:
    """What existing uploaders do: each instance by a request of its own; `useFetchLevel` says what that costs."""
    study = small_study(2, 3)
    async with caching(study, use_cget=use_cget, useFetchLevel=level) as (archive, proxy):
        for start in range(0, 6, 3):
            await asyncio.gather(*(get_instance(proxy, stored) for stored in study[start : start + 3]))
            await kept(proxy.http)
        for stored in study:
            assert (await get_instance(proxy, stored)).headers["X-Cache"] == "HIT"
        assert archive.retrieves == {level: count}


async def test_without_a_cache_nothing_is_fetched_on_the_chance(use_cget: bool) -> None:
    study = small_study(1, 3)
    async with caching(study, use_cget=use_cget, enableCache=False) as (archive, proxy):
        for stored in study:
            assert (await get_instance(proxy, stored)).headers["X-Cache"] == "MISS"
        assert archive.retrieves == {"IMAGE": 3}


async def test_the_same_instance_uid_in_two_series() -> None:
    """The key is study, series and SOP instance."""
    study = same_instances_in_two_series()
    async with caching(study, useFetchLevel="STUDY") as (archive, proxy):
        for stored in [*study, *study]:
            await get_instance(proxy, stored)
        assert len(archive.requests) == 1


# --- clients that leave --------------------------------------------------------------------------------------


async def test_when_the_last_client_leaves_the_retrieval_ends(use_cget: bool) -> None:
    series = small_study(1, 4)
    gate = Gate()
    async with caching(series, use_cget=use_cget) as (archive, proxy):
        archive.script = gate
        gate.open = 1
        path = path_of(series[0].sample, "series")
        async with proxy.http.get(path) as first, proxy.http.get(path) as second:
            await first.content.readexactly(1000)
            await second.content.readexactly(1000)
            first.close()
            await asyncio.sleep(0.1)
            request = archive.requests[0]
            assert not request.channel.cancel_requested(request.message_id)
            second.close()
            async with asyncio.timeout(1):
                while not request.channel.cancel_requested(request.message_id):
                    await asyncio.sleep(0.005)
        archive.script = honest
        await get_all(proxy, series, "series")
        assert len(archive.requests) == 2


async def test_when_an_instance_was_served_the_rest_of_its_series_comes_too(use_cget: bool) -> None:
    """The next request for another of them may take a moment to arrive."""
    series = small_study(1, 4)
    gate = Gate()
    async with caching(series, use_cget=use_cget) as (archive, proxy):
        archive.script = gate
        gate.open = 1
        await get_instance(proxy, series[0])
        await asyncio.sleep(0.1)
        gate.open = 4
        await asyncio.gather(*(get_instance(proxy, stored) for stored in series[1:]))
        assert archive.retrieves == {"SERIES": 1}


async def test_one_that_leaves_before_anything_came_disturbs_nobody() -> None:
    series = small_study(1, 2)
    gate = Gate()
    async with caching(series) as (archive, proxy):
        archive.script = gate
        stays = asyncio.ensure_future(get_all(proxy, series, "series"))
        with pytest.raises(asyncio.TimeoutError):
            timeout = aiohttp.ClientTimeout(0.1)
            async with proxy.http.get(path_of(series[1].sample), timeout=timeout):
                pass
        gate.open = 2
        await stays
        assert len(archive.requests) == 1


# --- what is kept --------------------------------------------------------------------------------------------


async def test_what_was_retrieved_is_not_asked_for_again(source: Source, tmp_path: Path) -> None:
    """From each of the real archives, by C-MOVE and by C-GET, as it was stored."""
    async with proxy_for(
        source.address,
        use_cget=source.use_cget,
        dimse_port=source.destination_port,
        enableCache=True,
        storagePath=str(tmp_path / "storage"),
    ) as proxy:
        for patient in ("UTF8", "JAPANESE"):
            samples = source.samples.of_patient(patient)
            cold = await get(proxy, path_of(samples[0], "study"))
            await kept(proxy.http)
            warm = await get(proxy, path_of(samples[0], "study"))
            assert (cold.headers["X-Cache"], warm.headers["X-Cache"]) == ("MISS", "HIT")
            assert digests(warm.files) == digests(cold.files)
            assert len(cold.files) == len(samples)
            one = await get(proxy, path_of(samples[0]) + RAW)
            assert one.headers["X-Cache"] == "HIT"
            assert one.body in warm.files


async def test_a_study_that_was_retrieved_serves_its_series(use_cget: bool) -> None:
    study = small_study(2, 2)
    async with caching(study, use_cget=use_cget) as (archive, proxy):
        await get_all(proxy, study)
        await kept(proxy.http)
        for half in (study[:2], study[2:]):
            assert (await get_all(proxy, half, "series")).headers["X-Cache"] == "HIT"
        assert len(archive.requests) == 1


async def test_all_series_one_by_one_do_not_prove_the_study() -> None:
    """There may be more of them."""
    study = small_study(2, 1)
    async with caching(study) as (archive, proxy):
        for stored in study:
            await get_all(proxy, [stored], "series")
            await kept(proxy.http)
        assert (await get_all(proxy, study)).headers["X-Cache"] == "MISS"
        assert archive.retrieves == {"SERIES": 2, "STUDY": 1}


async def test_what_has_come_to_the_archive_since_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that is still being acquired when it is looked at first."""
    study = small_study(2, 2)
    async with caching(study[:3]) as (archive, proxy):
        await get_all(proxy, study[:3])
        await kept(proxy.http)
        archive.instances = study
        assert len((await get_all(proxy, study[:3])).files) == 3, "for a minute it is taken to be complete"
        monkeypatch.setattr("proxy.archive.retrieval.retrievals.FRESH_SECONDS", 0.0)
        assert (await get_all(proxy, study)).headers["X-Cache"] == "MISS"
        await kept(proxy.http)
        assert (await get_all(proxy, study)).headers["X-Cache"] == "HIT"
        archive.instances = study[1:]
        assert (await get_all(proxy, study[1:])).headers["X-Cache"] == "MISS", "what was removed there is not shown"


async def test_while_the_archive_is_away_the_cache_serves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.archive.retrieval.retrievals.FRESH_SECONDS", 0.0)
    study = small_study()
    async with caching(study) as (archive, proxy):
        await get_all(proxy, study)
        await kept(proxy.http)
        archive.kill()
        assert (await get_all(proxy, study)).headers["X-Cache"] == "HIT"


async def test_instances_that_are_not_there_cost_no_retrieval_of_the_series_each_time() -> None:
    series = small_study(1, 2)
    missing = f"{path_of(series[0].sample, 'series')}/instances/1.2.3.4"
    async with caching(series) as (archive, proxy):
        for _ in range(3):
            (await get(proxy, missing)).failure(404)
        assert archive.retrieves["SERIES"] == 1
        await get_instance(proxy, series[1])
        assert archive.retrieves["SERIES"] == 1
