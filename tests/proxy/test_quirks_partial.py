"""Archives that send less than there is: what is missing is asked for one by one, and an answer says what it lacks.

The docstrings quote what archives do in practice.
"""

from __future__ import annotations

import asyncio

import pytest

from dul import dimse
from tests.dul.conftest import until
from tests.faultpeer import Retrieve, Script, Stored, honest, in_front_of, small_study
from tests.faultpeer.outcomes import assert_cut, assert_partial, assert_whole, get_study
from tests.faultpeer.retrieves import (
    abort,
    breaking_off,
    busy,
    claim_success,
    close,
    ending,
    failing,
    first,
    in_bulk,
    losing,
    reset,
    without_counters,
    without_pending,
)
from tests.proxy.retrieved import get

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for late instances and for busy archives."""
    monkeypatch.setattr("proxy.archive.retrieval.fetch.ARRIVAL_GRACE_SECONDS", 0.2)
    monkeypatch.setattr("proxy.archive.retrieval.fetch.BUSY_BACK_OFF", (0.02, 0.04, 0.08))


def asked_one_by_one(requests: list[Retrieve]) -> list[str]:
    """Return the SOP instance UIDs that were asked for at IMAGE level, in that order."""
    return [str(request.keys.SOPInstanceUID) for request in requests if request.level == "IMAGE"]


def uids(instances: list[Stored]) -> list[str]:
    """Return SOP instance UIDs."""
    return [stored.sample.sop_instance_uid for stored in instances]


# --- what is missing is asked for one by one -----------------------------------------------------------------


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed"])
@pytest.mark.parametrize("counted", [True, False], ids=["counted", "not counted"])
@pytest.mark.parametrize("status", [None, dimse.REFUSED_SUB_OPERATIONS, dimse.SUCCESS], ids=["B000", "A702", "Success"])
async def test_failed_instances_are_retried(status: int | None, listed: bool, counted: bool, use_cget: bool) -> None:
    """'status A702 or B000, partial success': those that failed are asked for again, and no others."""
    study = small_study(2, 3)
    script = in_bulk(failing(study[1:3], status=status, listed=listed, counted=counted))
    async with in_front_of(study, script, use_cget=use_cget) as (archive, proxy):
        await assert_whole(proxy, study)
    assert archive.retrieves == {"STUDY": 1, "IMAGE": 2}
    assert sorted(asked_one_by_one(archive.requests)) == sorted(uids(study[1:3]))


async def test_lost_instances_are_retried(use_cget: bool) -> None:
    """'C-MOVE final Success', with counters that claim more than was sent."""
    study = small_study(1, 4)
    async with in_front_of(study, in_bulk(losing(study[:2])), use_cget=use_cget) as (archive, proxy):
        await assert_whole(proxy, study, "series")
    assert archive.retrieves == {"SERIES": 1, "IMAGE": 2}


async def test_nothing_but_failures_is_retried_too(use_cget: bool) -> None:
    """'C-MOVE final Success though every sub-operation failed': one by one they may come all the same."""
    study = small_study()
    async with in_front_of(study, in_bulk(claim_success), use_cget=use_cget) as (archive, proxy):
        await assert_whole(proxy, study)
    assert archive.retrieves == {"STUDY": 1, "IMAGE": 4}


@pytest.mark.parametrize("script", [without_counters, without_pending])
async def test_counters_and_pending_are_not_needed(script: Script, use_cget: bool) -> None:
    """'counters missing, or no Pending at all': a C-FIND tells what there should be; nothing is asked for twice."""
    study = small_study()
    async with in_front_of(study, script, use_cget=use_cget) as (archive, proxy):
        await assert_whole(proxy, study)
    assert archive.retrieves == {"STUDY": 1}


async def test_a_c_find_tells_what_is_missing_where_nothing_is_counted(use_cget: bool) -> None:
    """'counters missing, or no Pending at all', and an instance too few."""
    study = small_study()
    async with in_front_of(study, in_bulk(ending(sent=3)), use_cget=use_cget) as (archive, proxy):
        await assert_whole(proxy, study)
    assert archive.retrieves == {"STUDY": 1, "IMAGE": 1}
    assert archive.searches["IMAGE"] >= 1


@pytest.mark.parametrize("how", [abort, close, reset])
async def test_an_association_lost_between_instances(how: Script, use_cget: bool) -> None:
    """An archive that breaks off a long retrieval is asked for the rest one by one."""
    study = small_study(1, 4)
    async with in_front_of(study, in_bulk(breaking_off(2, how)), use_cget=use_cget) as (archive, proxy):
        await assert_whole(proxy, study)
    assert archive.retrieves == {"STUDY": 1, "IMAGE": 2}
    assert asked_one_by_one(archive.requests) == uids(study[2:])


# --- what does not come at all -------------------------------------------------------------------------------


async def test_nothing_came(use_cget: bool) -> None:
    """'C-MOVE final Success though every sub-operation failed': three more tries, then 502 with the status."""
    study = small_study(1, 6)
    async with in_front_of(study, claim_success, use_cget=use_cget) as (archive, proxy):
        message = (await get_study(proxy, study)).failure(502)
    assert message.startswith("SCRIPTED: ")
    assert "0x0000 (success)" in message
    assert archive.retrieves == {"STUDY": 1, "IMAGE": 3}


async def test_nothing_came_and_the_archive_says_so(use_cget: bool) -> None:
    """'status A702': every instance fails."""
    study = small_study(1, 6)
    async with in_front_of(study, failing(study), use_cget=use_cget) as (archive, proxy):
        message = (await get_study(proxy, study)).failure(502)
    assert "0xA702 (refused: out of resources, unable to perform sub-operations)" in message
    assert archive.retrieves == {"STUDY": 1, "IMAGE": 3}


async def test_one_instance_that_cannot_be_sent(use_cget: bool) -> None:
    """'status A702' for a single instance: it is asked for in the same words once more, and that is all."""
    study = small_study(1, 2)
    async with in_front_of(study, failing(study[:1]), use_cget=use_cget) as (archive, proxy):
        message = (await get_study(proxy, study, "instance")).failure(502)
        assert "0xA702" in message
        assert 1 <= archive.retrieves["IMAGE"] <= 2
        await assert_whole(proxy, study[1:], "instance")


async def test_three_in_a_row_end_it(use_cget: bool) -> None:
    """'status B000, partial success': after three that bring nothing no more are asked for; the answer is cut."""
    study = small_study(1, 8)
    async with in_front_of(study, failing(study[1:]), use_cget=use_cget) as (archive, proxy):
        await assert_cut(proxy, study)
    assert archive.retrieves == {"STUDY": 1, "IMAGE": 3}


async def test_three_that_are_not_in_a_row_do_not(use_cget: bool) -> None:
    """'status B000, partial success': what can be had one by one is had."""
    study = small_study(1, 8)
    lost = [study[1], study[2], study[4], study[5]]
    script = in_bulk(failing(study[1:]), failing(lost))
    async with in_front_of(study, script, use_cget=use_cget) as (archive, proxy):
        await assert_cut(proxy, study)
    assert archive.retrieves == {"STUDY": 1, "IMAGE": 7}


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "not cached"])
async def test_who_asks_again_gets_what_there_is(cached: bool, use_cget: bool) -> None:
    """'status B000, partial success': the second answer is 206 and says how many are missing."""
    study = small_study(1, 5)
    async with in_front_of(study, failing(study[3:]), use_cget=use_cget, enableCache=cached) as (archive, proxy):
        await assert_cut(proxy, study)
        for _ in range(2):
            await assert_partial(proxy, study[:3], missing=2)
        await assert_whole(proxy, study[:1], "instance")
        archive.script = honest
        await assert_whole(proxy, study[4:], "instance")


async def test_a_part_is_never_kept_as_the_whole(use_cget: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """'status B000, partial success': never cached as complete; what is whole is, and costs the archive nothing."""
    monkeypatch.setattr("proxy.archive.retrieval.retrievals.REMEMBER_SECONDS", 0.1)
    study = small_study(1, 5)
    async with in_front_of(study, failing(study[3:]), use_cget=use_cget, enableCache=True) as (archive, proxy):
        await assert_cut(proxy, study)
        await asyncio.sleep(0.2)
        archive.script = honest
        await assert_whole(proxy, study)
        await until(lambda: archive.open_associations <= 1)
        before = len(archive.requests)
        await assert_whole(proxy, study)
        await assert_whole(proxy, study[4:], "instance")
    assert len(archive.requests) == before


# --- busy archives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [busy, ending()], ids=["zeros", "no counters"])
async def test_a_busy_archive_is_asked_again(nothing: Script, use_cget: bool) -> None:
    """'Success with 0 sub-operations when it is busy'."""
    study = small_study()
    async with in_front_of(study, first(2, nothing), use_cget=use_cget) as (archive, proxy):
        await assert_whole(proxy, study)
    assert archive.retrieves == {"STUDY": 3}


async def test_an_archive_that_stays_busy(use_cget: bool) -> None:
    """'Success with 0 sub-operations when it is busy': after three more tries 503, not 404."""
    study = small_study()
    async with in_front_of(study, busy, use_cget=use_cget) as (archive, proxy):
        answer = await get_study(proxy, study)
        answer.failure(503)
        assert int(answer.headers["Retry-After"]) >= 1
        assert archive.retrieves == {"STUDY": 4}
        archive.script = honest
        await assert_whole(proxy, study)


async def test_success_without_anything_for_what_is_not_there(use_cget: bool) -> None:
    """'Success with 0 sub-operations' is also how archives say that they have nothing: 404, at once."""
    async with in_front_of(small_study(), busy, use_cget=use_cget) as (archive, proxy):
        (await get(proxy, "/studies/1.2.3")).failure(404)
        await until(lambda: archive.open_associations <= 1)
    assert archive.retrieves["STUDY"] <= 1
