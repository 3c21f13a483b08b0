"""Associations that fail while something is asked over them: C-FIND, C-MOVE and C-GET.

Each fault gives an HTTP error before the first byte or a visible cut after it, and leaves nothing over.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import aiohttp
import pytest

import dul
from dul import dimse
from tests.dul.conftest import until
from tests.faultpeer import FindScript, Retrieve, Script, honest, in_front_of, small_study, wire
from tests.faultpeer.finds import answer_all, answer_garbage, answering_in, break_in_answer, ending_instead, keep_still
from tests.faultpeer.greetings import GARBAGE
from tests.faultpeer.outcomes import assert_cut, assert_whole, get_study, until_free
from tests.faultpeer.retrieves import abort, breaking_off, close, die, in_bulk, reset_in_instance
from tests.faultpeer.wire import Ending, Shape
from tests.proxy.finding import ask
from tests.proxy.retrieved import get

pytestmark = pytest.mark.usefixtures("nothing_left")

SHORT = {"timeouts": {"associate": 0.5, "response": 0.3, "retrieve": 0.5, "release": 0.3}}
CANCEL_SECONDS = 2.0
"""How long an archive has to answer C-CANCEL before it is aborted."""


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for instances that are to come after the final response."""
    monkeypatch.setattr("proxy.archive.retrieval.fetch.ARRIVAL_GRACE_SECONDS", 0.2)


# --- C-FIND --------------------------------------------------------------------------------------------------

FIND_FAULTS: dict[str, tuple[FindScript, int]] = {
    "abort": (ending_instead(wire.abort), 502),
    "close": (ending_instead(wire.close), 502),
    "reset": (ending_instead(wire.reset), 502),
    "reset within an answer": (break_in_answer, 502),
    "garbage": (answer_garbage, 502),
    "silence": (keep_still, 504),
    "drips": (answering_in(Shape(dripping=0.05)), 504),
    "drips within an answer": (answering_in(Shape(dripping_data=0.005)), 504),
}


@pytest.mark.parametrize("level", ["/studies", "/series", "/instances"])
@pytest.mark.parametrize("fault", FIND_FAULTS)
async def test_a_search(fault: str, level: str) -> None:
    """Nothing of a list is given out, whichever level it is for."""
    answer, status = FIND_FAULTS[fault]
    async with in_front_of(small_study(), use_cget=True, peer=SHORT) as (archive, proxy):
        await until(lambda: archive.echoes > 0 and archive.open_associations == 0)
        archive.answer = answer
        start = time.monotonic()
        assert (await get(proxy, level)).failure(status).startswith("SCRIPTED: ")
        assert time.monotonic() - start < 0.3 + CANCEL_SECONDS + 1
        archive.answer = answer_all
        assert len(await ask(proxy, level)) == {"/studies": 1, "/series": 2, "/instances": 4}[level]


@pytest.mark.parametrize("fault", FIND_FAULTS)
async def test_the_search_before_a_c_get(fault: str) -> None:
    """A C-GET needs to know the SOP classes first: when that fails, so does the retrieval."""
    answer, status = FIND_FAULTS[fault]
    study = small_study()
    async with in_front_of(study, use_cget=True, peer=SHORT) as (archive, proxy):
        await until(lambda: archive.echoes > 0 and archive.open_associations == 0)
        archive.answer = answer
        assert (await get_study(proxy, study)).failure(status).startswith("SCRIPTED: ")
        assert archive.requests == []
        archive.answer = answer_all
        await assert_whole(proxy, study)


# --- C-MOVE and C-GET ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [abort, close, die])
async def test_a_retrieval_before_anything_came(how: Script, use_cget: bool) -> None:
    """502 at once, and the next one is served."""
    study = small_study()
    async with in_front_of(study, breaking_off(0, how), use_cget=use_cget, peer=SHORT) as (archive, proxy):
        start = time.monotonic()
        assert (await get_study(proxy, study)).failure(502).startswith("SCRIPTED: ")
        assert time.monotonic() - start < 2
        assert len(archive.requests) == 1
        await until_free(proxy, kept=int(use_cget))
        archive.script = honest
        if how is die:
            await archive.listen()
        await assert_whole(proxy, study)


async def test_a_retrieval_whose_archive_dies(use_cget: bool) -> None:
    """Cut in the middle, 502 while the archive is away, and whole when it is back."""
    study = small_study(1, 4)
    async with in_front_of(study, breaking_off(2, die), use_cget=use_cget, peer=SHORT) as (archive, proxy):
        await assert_cut(proxy, study)
        (await get_study(proxy, study[3:], "instance")).failure(502)
        await until_free(proxy)
        archive.script = honest
        await archive.listen()
        await assert_whole(proxy, study)


@pytest.mark.parametrize("how", [wire.abort, wire.close, wire.reset])
async def test_the_association_for_storing_ends(how: Ending) -> None:
    """A C-MOVE whose C-STORE association ends in the middle: what it should have brought is asked for once more."""
    study = small_study(1, 4)

    async def script(request: Retrieve) -> None:
        async with request.way() as send:
            await send(request.instances[0])
            how(archive.sending[-1].channel)
        await request.final(dimse.SUB_OPERATIONS_WITH_FAILURES, completed=1, failed=3, warning=0)

    async with in_front_of(study, in_bulk(script), peer=SHORT) as (archive, proxy):
        await assert_whole(proxy, study)
    assert archive.moves == {"STUDY": 1, "IMAGE": 3}


async def test_a_reset_within_an_instance() -> None:
    """C-GET: half a PDU, and a reset. Where the client has had some of that instance the answer is cut, else whole."""
    study = small_study(1, 3)
    script = in_bulk(breaking_off(2, reset_in_instance))
    async with in_front_of(study, script, use_cget=True, peer=SHORT) as (_, proxy):
        with contextlib.suppress(aiohttp.ClientPayloadError):
            await assert_whole(proxy, study)
        await assert_whole(proxy, study[2:3], "instance")


async def test_garbage_within_a_retrieval(use_cget: bool) -> None:
    """What is no PDU, after half of the instances: never taken for an instance, and the association is aborted."""
    study = small_study(1, 4)

    async def babble(request: Retrieve) -> None:
        request.channel.transport.write([GARBAGE])
        await asyncio.wait_for(request.channel.transport.wait_closed(), 5)

    script = in_bulk(breaking_off(2, babble))
    async with in_front_of(study, script, use_cget=use_cget, peer=SHORT) as (archive, proxy):
        with contextlib.suppress(aiohttp.ClientPayloadError):
            await assert_whole(proxy, study)
        assert isinstance(archive.requests[0].channel.ended, dul.AssociationAborted)
        archive.script = honest
        await assert_whole(proxy, study[2:3], "instance")
