"""Archives that do deliver, in their own way, and what may be stored with the proxy at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import dul
from dul import dimse, uids
from tests import corpus
from tests.corpus import Corpus
from tests.faultpeer import Retrieve, Script, Stored, in_front_of, small_study
from tests.peers.dcmtk import Scu
from tests.peers.orthanc import Orthanc
from tests.peers.process import Address
from tests.proxy.retrieved import digests, expected, get, path_of
from tests.proxy.running import Proxy, proxy_for

pytestmark = pytest.mark.usefixtures("nothing_left")

COUNTED = {"completed": 4, "failed": 0, "warning": 0}


async def assert_complete(
    script: Script, *, use_cget: bool = False, study: list[Stored] | None = None, **peer: object
) -> None:
    """Fail unless the client gets all of a study, with a proper end."""
    study = study or small_study()
    async with in_front_of(study, script, use_cget=use_cget, peer=peer) as (_, proxy):
        answer = await get(proxy, path_of(study[0].sample, "study"))
        assert digests(answer.files) == expected(stored.sample for stored in study)


# --- the order of things -------------------------------------------------------------------------------------


@pytest.mark.parametrize("counters", [COUNTED, {}], ids=["counted", "not counted"])
async def test_the_final_response_before_the_last_instances(counters: dict[str, int]) -> None:
    async def script(request: Retrieve) -> None:
        async with request.way() as send:
            await send(request.instances[0])
            await request.final(**counters)
            for stored in request.instances[1:]:
                await asyncio.sleep(0.05)
                await send(stored)

    await assert_complete(script)


async def test_the_final_response_before_any_instance() -> None:
    async def script(request: Retrieve) -> None:
        await request.final(**COUNTED)
        async with request.way() as send:
            for stored in request.instances:
                await send(stored)

    await assert_complete(script)


async def test_one_move_over_parallel_associations() -> None:
    async def script(request: Retrieve) -> None:
        async with request.way() as one, request.way() as two, request.way() as three:
            ways = (one, two, three, two)
            await asyncio.gather(*(send(each) for send, each in zip(ways[:3], request.instances, strict=False)))
            await two(request.instances[3])
        await request.final(**COUNTED)

    await assert_complete(script)


@pytest.mark.parametrize("at_once", [False, True])
async def test_instances_sent_again_come_once(at_once: bool) -> None:
    async def script(request: Retrieve) -> None:
        async with request.way() as one, request.way() as two:
            for stored in request.instances:
                if at_once:
                    await asyncio.gather(one(stored), two(stored))
                else:
                    await one(stored)
                    await two(stored)
        await request.final(completed=8, failed=0, warning=0)

    await assert_complete(script)


async def test_a_new_association_for_each_instance() -> None:
    async def script(request: Retrieve) -> None:
        for stored in request.instances:
            async with request.way() as send:
                await send(stored)
        await request.final(**COUNTED)

    await assert_complete(script)


async def test_no_response_until_the_end_however_long_that_takes(use_cget: bool) -> None:
    """What counts is that instances come, not that the archive tells of them."""

    async def script(request: Retrieve) -> None:
        async with request.way() as send:
            for stored in request.instances:
                await asyncio.sleep(0.25)
                await send(stored)
        await request.final(**COUNTED)

    await assert_complete(script, use_cget=use_cget, timeouts={"idle": 0.5, "retrieve": 0.5, "response": 0.5})


# --- counters ------------------------------------------------------------------------------------------------


async def test_no_counters_at_all(use_cget: bool) -> None:
    async def script(request: Retrieve) -> None:
        async with request.way() as send:
            for stored in request.instances:
                await send(stored)
                await request.pending()
        await request.final()

    await assert_complete(script, use_cget=use_cget)


@pytest.mark.parametrize(
    ("status", "counters"),
    [
        (dimse.SUB_OPERATIONS_WITH_FAILURES, {"completed": 1, "failed": 0, "warning": 3}),
        (dimse.SUCCESS, {"completed": 0, "failed": 0, "warning": 0}),
        (dimse.SUCCESS, {"completed": 4}),
        (dimse.SUCCESS, {"completed": 4, "failed": 0, "warning": 0, "remaining": 0}),
    ],
    ids=["warnings only", "counts nothing", "counts what is completed only", "a zero of what remains"],
)
async def test_counters_that_mean_everything(status: int, counters: dict[str, int], use_cget: bool) -> None:
    async def script(request: Retrieve) -> None:
        async with request.way() as send:
            for stored in request.instances:
                await send(stored)
        await request.final(status, **counters)

    await assert_complete(script, use_cget=use_cget)


async def test_an_archive_that_looks_only_at_the_study(use_cget: bool) -> None:
    """It sends all of the study for one of its series: the client gets what it asked for, or a failure."""
    study = small_study()
    series = [stored for stored in study if stored.sample.series_uid == study[0].sample.series_uid]

    async def script(request: Retrieve) -> None:
        statuses = []
        async with request.way() as send:
            statuses += [await send(stored) for stored in study]
        failed = sum(status != dimse.SUCCESS for status in statuses)
        assert failed == (0 if use_cget else 2)
        await request.final(completed=4 - failed, failed=failed, warning=0)

    async with in_front_of(study, script, use_cget=use_cget) as (_, proxy):
        if use_cget:
            answer = await get(proxy, path_of(study[0].sample, "series"))
            assert digests(answer.files) == expected(stored.sample for stored in series)
            answer = await get(proxy, path_of(study[1].sample) + "?multipart=false")
            assert digests([answer.body]) == expected([study[1].sample])


# --- presentation contexts of a C-GET ------------------------------------------------------------------------


def many_classes(count: int) -> list[Stored]:
    """Make a study with an instance of each of `count` SOP classes."""
    files = []
    for number in range(1, count + 1):
        data_set = corpus.header(corpus.CT_STUDY, 7, 1, number, f"{corpus.UID_ROOT}.9.{number}")
        data_set.Modality = "OT"
        files.append(Stored.of(corpus.encode(data_set)))
    return files


@pytest.mark.parametrize("count", [1, 45, 100])
@pytest.mark.parametrize("told", ["SOPClassesInStudy", "SOPClassUID"])
async def test_a_c_get_proposes_what_the_study_has(count: int, told: str) -> None:
    study = many_classes(count)
    async with in_front_of(study, use_cget=True) as (archive, proxy):
        archive.hidden = frozenset({"SOPClassesInStudy", "SOPClassUID"} - {told})
        answer = await get(proxy, path_of(study[0].sample, "study"))
        assert digests(answer.files) == expected(stored.sample for stored in study)
        contexts = archive.proposed[-1].presentation_contexts
    assert len(contexts) <= 128
    assert contexts[0].abstract_syntax == uids.STUDY_ROOT_GET
    classes = {stored.sample.sop_class_uid for stored in study}
    assert {context.abstract_syntax for context in contexts[1:]} == classes
    levels = [keys.QueryRetrieveLevel for keys in archive.finds]
    assert levels == (["STUDY"] if told == "SOPClassesInStudy" else ["STUDY", "SERIES", "IMAGE"])


async def test_a_c_get_proposes_the_common_classes_where_the_archive_tells_none() -> None:
    study = small_study()
    async with in_front_of(study, use_cget=True) as (archive, proxy):
        archive.hidden = frozenset({"SOPClassesInStudy", "SOPClassUID"})
        answer = await get(proxy, path_of(study[0].sample, "study"))
        assert digests(answer.files) == expected(stored.sample for stored in study)
        assert 100 < len(archive.proposed[-1].presentation_contexts) <= 128
        (await get(proxy, "/studies/1.2.3")).failure(404)


# --- who may store what --------------------------------------------------------------------------------------


@pytest.fixture
async def proxy(orthanc: Orthanc) -> AsyncIterator[Proxy]:
    """The proxy in front of an archive that is not asked for anything."""
    async with proxy_for(orthanc.address) as running:
        yield running


async def refused(proxy: Proxy) -> int:
    """Return the count of refused C-STOREs."""
    async with proxy.http.get("/status") as response:
        return int((await response.json())["storesRefused"])


async def store(proxy: Proxy, file: Path, *, calling: str, called: str | None = None) -> str:
    """Send a file by `storescu`; returns what it printed."""
    scu = Scu(Address(called or proxy.address.aet, proxy.address.port), aet=calling)
    return (await asyncio.to_thread(scu.store, [file])).output


async def test_what_nobody_asked_for_is_refused_and_counted(proxy: Proxy, samples: Corpus) -> None:
    assert await refused(proxy) == 0
    output = await store(proxy, samples.path(samples.samples[0]), calling="ORTHANC")
    assert "Received Store Response (Unknown Status: 0x124)" in output, output
    assert await refused(proxy) == 1


async def test_an_unknown_caller_is_rejected(proxy: Proxy, samples: Corpus) -> None:
    output = await store(proxy, samples.path(samples.samples[0]), calling="STRANGER")
    assert "Calling AE Title Not Recognized" in output, output
    assert await refused(proxy) == 0


async def test_another_called_title_is_rejected(proxy: Proxy, samples: Corpus) -> None:
    output = await store(proxy, samples.path(samples.samples[0]), calling="ORTHANC", called="OTHER")
    assert "Called AE Title Not Recognized" in output, output


async def test_storing_under_another_title_takes_store_aets() -> None:
    async def script(request: Retrieve) -> None:
        async with request.way(calling="STOREONLY") as send:
            for stored in request.instances:
                await send(stored)
        await request.final(**COUNTED)

    await assert_complete(script, storeAets=["OTHER", "STOREONLY"])


async def test_storing_under_another_title_is_rejected_without() -> None:
    study = small_study()

    async def script(request: Retrieve) -> None:
        with pytest.raises(dul.AssociationRejected, match="calling AE title not recognized"):
            async with request.way(calling="STOREONLY"):
                pass
        await request.final(dimse.REFUSED_SUB_OPERATIONS, completed=0, failed=4, warning=0)

    async with in_front_of(study, script) as (_, proxy):
        message = (await get(proxy, path_of(study[0].sample, "study"))).failure(502)
    assert "0xA702" in message
