"""Retrievals at the same time: each gets all of its own and nothing else, also where only UIDs tell whose is whose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dul import dimse
from tests.corpus import Sample
from tests.faultpeer import Retrieve, Script, honest, in_front_of, small_study
from tests.proxy.conftest import Source
from tests.proxy.retrieved import digests, expected, get, path_of
from tests.proxy.running import Proxy

pytestmark = pytest.mark.usefixtures("nothing_left")


async def assert_alone(proxy: Proxy, wanted: list[Sample], level: str) -> None:
    """Fail unless the retrieval of what the samples make up gives these and no others."""
    answer = await get(proxy, path_of(wanted[0], level))
    assert digests(answer.files) == expected(wanted)


async def test_eight_at_once_of_different_and_the_same_series(source: Source, proxy: Proxy) -> None:
    held = source.samples
    latin = held.of_patient("LATIN1")
    series = [sample for sample in latin if sample.series_uid == latin[0].series_uid]
    async with asyncio.TaskGroup() as group:
        for patient in ("UTF8", "JAPANESE", "GREEK"):
            group.create_task(assert_alone(proxy, held.of_patient(patient), "study"))
        for _ in range(3):
            group.create_task(assert_alone(proxy, series, "series"))
        group.create_task(assert_alone(proxy, latin, "study"))
        group.create_task(assert_alone(proxy, series[1:2], "instance"))
    async with proxy.http.get("/status") as response:
        assert (await response.json())["storesRefused"] == 0


# --- whose is whose ------------------------------------------------------------------------------------------


Originator = Callable[[Retrieve], tuple[str, int] | bool | None]


def another(request: Retrieve) -> tuple[str, int]:
    """The Message ID of another retrieval that is under way, if there is one."""
    others = [each for each in request.archive.requests if each is not request] or [request]
    return (request.calling_ae_title, others[-1].message_id)


ORIGINATORS: dict[str, Originator] = {
    "true": lambda request: True,
    "none": lambda request: None,
    "always 1": lambda request: ("PROXY", 1),
    "another's": another,
}


def naming(originator: Originator) -> Script:
    """Return a script that sends everything, a bit at a time, with an originator of choice."""

    async def script(request: Retrieve) -> None:
        async with request.way(originator=originator(request)) as send:
            statuses = []
            for stored in request.instances:
                await asyncio.sleep(0.005)
                statuses.append(await send(stored))
        failed = sum(status != dimse.SUCCESS for status in statuses)
        await request.final(completed=len(statuses) - failed, failed=failed, warning=0)

    return script


@pytest.mark.parametrize("originator", ORIGINATORS)
async def test_instances_find_their_retrieval(originator: str) -> None:
    studies = [small_study(2, 3, study=number) for number in (1, 2, 3)]
    samples = [[stored.sample for stored in study] for study in studies]
    everything = [stored for study in studies for stored in study]
    script = naming(ORIGINATORS[originator])
    async with in_front_of(everything, script, peer={"maxAssociations": 12}) as (archive, proxy):
        async with asyncio.TaskGroup() as group:
            # From what is narrow to what is wide, since what is under way is shared by all who want a part of it.
            group.create_task(assert_alone(proxy, samples[0][1:2], "instance"))
            for study in samples:
                group.create_task(assert_alone(proxy, study[:3], "series"))
                group.create_task(assert_alone(proxy, study[3:], "series"))
            await asyncio.sleep(0)
            for study in samples:
                group.create_task(assert_alone(proxy, study, "study"))
        assert len(archive.requests) == 10
        async with proxy.http.get("/status") as response:
            assert (await response.json())["storesRefused"] == 0


@pytest.mark.parametrize("originator", ["true", "none"])
async def test_eight_clients_of_one_series(originator: str) -> None:
    """They share one C-MOVE."""
    series = small_study(1, 5)
    script = naming(ORIGINATORS[originator])
    async with in_front_of(series, script, peer={"maxAssociations": 8}) as (archive, proxy):
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(assert_alone(proxy, [stored.sample for stored in series], "series"))
        assert len(archive.requests) == 1


async def test_more_than_the_archive_takes_wait_for_their_turn(use_cget: bool) -> None:
    studies = [small_study(1, 2, study=number) for number in range(1, 9)]
    everything = [stored for study in studies for stored in study]
    async with in_front_of(everything, use_cget=use_cget, peer={"maxAssociations": 2}) as (archive, proxy):
        most = 0

        async def script(request: Retrieve) -> None:
            nonlocal most
            most = max(most, archive.open_associations)
            await asyncio.sleep(0.02)
            await honest(request)

        archive.script = script
        async with asyncio.TaskGroup() as group:
            for study in studies:
                group.create_task(assert_alone(proxy, [stored.sample for stored in study], "series"))
        assert len(archive.requests) == 8
    assert 1 <= most <= 2


async def test_one_that_leaves_does_not_disturb_the_others(use_cget: bool) -> None:
    study = small_study(1, 6, side=256)
    leave = asyncio.Event()

    async def script(request: Retrieve) -> None:
        completed = 0
        async with request.way() as send:
            for number, stored in enumerate(request.instances):
                if number == 3:
                    await asyncio.wait_for(leave.wait(), 5)
                    await asyncio.sleep(0.05)
                if request.channel.cancel_requested(request.message_id):
                    break
                completed += await send(stored) == dimse.SUCCESS
        remaining = len(request.instances) - completed
        status = dimse.CANCEL if remaining else dimse.SUCCESS
        await request.final(status, completed=completed, failed=0, warning=0)

    async with in_front_of(study, script, use_cget=use_cget) as (archive, proxy):
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(assert_alone(proxy, [stored.sample for stored in study], "study"))
            async with proxy.http.get(path_of(study[0].sample, "study")) as response:
                await response.content.readany()
                response.close()
            leave.set()
        assert len(archive.requests) == 1
        assert not archive.requests[0].channel.cancel_requested(archive.requests[0].message_id)
