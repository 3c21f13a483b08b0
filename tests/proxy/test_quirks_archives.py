"""A study that lies in several archives, in parts or twice, and archives that stand in for each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.dul.conftest import until
from tests.faultpeer import Script, ScriptedArchive, Stored, honest, small_study
from tests.faultpeer.finds import keep_still as keep_still_of_find
from tests.faultpeer.greetings import rejecting
from tests.faultpeer.outcomes import assert_cut, assert_whole, get_study
from tests.faultpeer.retrieves import (
    breaking_off,
    claim_success,
    die,
    failing,
    in_bulk,
    keep_still,
    losing,
    reset,
)
from tests.peers.process import Address, free_port
from tests.proxy.finding import ask, fetch
from tests.proxy.running import Proxy, proxy_for

pytestmark = pytest.mark.usefixtures("nothing_left")

SHORT = {"timeouts": {"connect": 0.5, "associate": 0.3, "response": 0.3, "retrieve": 0.4}}


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for instances that are to come after the final response."""
    monkeypatch.setattr("proxy.archive.retrieval.fetch.ARRIVAL_GRACE_SECONDS", 0.2)


Two = tuple[ScriptedArchive, ScriptedArchive, Proxy]


@contextlib.asynccontextmanager
async def two_archives(one: Sequence[Stored], two: Sequence[Stored], *, use_cget: bool) -> AsyncIterator[Two]:
    """Run two archives and the proxy in front of both; returns when it has greeted them."""
    async with (
        ScriptedArchive(list(one), aet="ONE") as first,
        ScriptedArchive(list(two), aet="TWO") as second,
        proxy_for(first.address, second.address, use_cget=use_cget, peer=SHORT) as proxy,
    ):
        if not use_cget:
            first.destination = second.destination = proxy.address
        await until(lambda: all(each.echoes and not each.open_associations for each in (first, second)))
        yield first, second, proxy


# --- a study in parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0, 1, 2], ids=["apart", "overlapping", "one has all"])
async def test_a_study_in_two_archives(overlap: int, use_cget: bool) -> None:
    """Two series: the first in one archive, the second in the other, and some in both."""
    study = small_study(2, 2)
    async with two_archives(study[: 2 + overlap], study[2:], use_cget=use_cget) as (_, _, proxy):
        await assert_whole(proxy, study)
        for stored in study:
            await assert_whole(proxy, [stored], "instance")


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_series_in_two_archives(reverse: bool, use_cget: bool) -> None:
    """All of it is in one archive, and one instance of it in the other as well: 200 is all, or nothing is."""
    study = small_study(1, 3)
    both = (study, study[:1]) if reverse else (study[:1], study)
    async with two_archives(*both, use_cget=use_cget) as (_, _, proxy):
        await assert_whole(proxy, study, "series")


async def test_a_study_in_one_of_two_archives(use_cget: bool) -> None:
    """The other is not asked to send what it has not."""
    study, unrelated = small_study(2, 2), small_study(1, 1, study=2)
    async with two_archives(unrelated, study, use_cget=use_cget) as (one, two, proxy):
        await assert_whole(proxy, study)
    assert one.requests == []
    assert two.retrieves == {"STUDY": 1}


async def test_what_one_lacks_the_other_sends(use_cget: bool) -> None:
    """Both list all of a study, and each fails with another half of it."""
    study = small_study(1, 4)
    async with two_archives(study, study, use_cget=use_cget) as (one, two, proxy):
        one.script = failing(study[:2])
        two.script = failing(study[2:])
        await assert_whole(proxy, study)


# --- one for the other ---------------------------------------------------------------------------------------


FAILURES: dict[str, Script] = {
    "A702": failing(small_study()),
    "Success with failures": claim_success,
    "loses all": losing(small_study()),
    "loses all in bulk": in_bulk(losing(small_study()), claim_success),
    "reset": breaking_off(0, reset),
    "dies": breaking_off(0, die),
    "silence": breaking_off(0, keep_still),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_the_other_stands_in(failure: str, use_cget: bool) -> None:
    """Both have the study; the first does not get it sent."""
    study = small_study()
    async with two_archives(study, study, use_cget=use_cget) as (one, two, proxy):
        one.script = FAILURES[failure]
        await assert_whole(proxy, study)
        assert len(one.requests) >= 1
        assert two.retrieves["STUDY"] + two.retrieves["SERIES"] >= 1
        await assert_whole(proxy, study[:2], "series")


async def test_the_other_goes_on_where_the_first_dies(use_cget: bool) -> None:
    """The first archive is killed in the middle of a study."""
    study = small_study(1, 6)

    async with two_archives(study, study, use_cget=use_cget) as (one, two, proxy):
        one.script = breaking_off(2, die)
        await assert_whole(proxy, study)
        assert len(two.requests) >= 1
        one.script = honest
        await one.listen()
        await assert_whole(proxy, study)


async def test_neither_has_all(use_cget: bool) -> None:
    """One instance that both list and neither can send: the client sees that it is missing."""
    study = small_study(1, 4)
    async with two_archives(study, study, use_cget=use_cget) as (one, two, proxy):
        one.script = failing(study[3:])
        two.script = failing(study[3:])
        await assert_cut(proxy, study)


async def test_one_that_does_not_answer_does_not_hide_the_other(use_cget: bool) -> None:
    """Whether the study is there is asked of both: one rejects, one has it."""
    study = small_study()
    async with two_archives([], study, use_cget=use_cget) as (one, _, proxy):
        one.greeting = rejecting(1, 1, 1)
        await assert_whole(proxy, study)
        (await get_study(proxy, small_study(1, 1, study=2))).failure(502)
    assert one.requests == []


# --- searches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["down", "rejects", "silent"])
async def test_a_search_names_the_archive_that_does_not_answer(how: str) -> None:
    """The client gets what the others have, and a Warning."""
    study = small_study()
    async with ScriptedArchive(study, aet="ONE") as one, ScriptedArchive(study, aet="TWO") as two:
        address = Address("TWO", free_port()) if how == "down" else two.address
        async with proxy_for(one.address, address, use_cget=True, peer=SHORT) as proxy:
            if how == "rejects":
                two.greeting = rejecting(1, 1, 1)
            elif how == "silent":
                two.answer = keep_still_of_find
            reply = await fetch(proxy, "/studies")
            assert reply.status == 200
            assert len(reply.json) == 1
            assert reply.headers["Warning"].startswith("299 ")
            assert "TWO" in reply.headers["Warning"]
            assert "ONE" not in reply.headers["Warning"]


async def test_a_study_that_both_have_is_listed_once() -> None:
    """'the same result listed twice', by two archives."""
    study, unrelated = small_study(), small_study(1, 1, study=2)
    async with two_archives(study + unrelated, study, use_cget=True) as (one, two, proxy):
        lists = await asyncio.gather(*(ask(proxy, "/studies") for _ in range(3)))
        assert [len(each) for each in lists] == [2, 2, 2]
    assert one.searches == two.searches == {"STUDY": 3}
