"""Archives that take their time, and those that do not hear C-CANCEL.

The docstrings quote what archives do in practice.
"""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest

from tests.dul.conftest import until
from tests.faultpeer import Script, honest, in_front_of, small_study
from tests.faultpeer.finds import answer_for_ever, ignore_cancel
from tests.faultpeer.outcomes import assert_whole, get_study, until_free
from tests.faultpeer.retrieves import (
    aborting_after_cancel,
    breaking_off,
    keep_still,
    nearline,
    say_pending,
)
from tests.faultpeer.retrieves import ignore_cancel as ignore_cancel_of_retrieval
from tests.proxy.finding import ask
from tests.proxy.retrieved import path_of

pytestmark = pytest.mark.usefixtures("nothing_left")

CANCEL_SECONDS = 2.0
"""How long an archive has to answer C-CANCEL before it is aborted."""


# --- Pending for ever ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [say_pending, keep_still])
@pytest.mark.parametrize("timeout", ["retrieve", "idle"])
async def test_no_end_after_some_instances(script: Script, timeout: str, use_cget: bool) -> None:
    """'Pending for ever, or minutes of silence', in the middle of a retrieval: a visible end, in time."""
    study = small_study()
    peer = {"timeouts": {timeout: 0.4}}
    async with in_front_of(study, breaking_off(2, script), use_cget=use_cget, peer=peer) as (archive, proxy):
        start = time.monotonic()
        with pytest.raises(aiohttp.ClientPayloadError):
            await get_study(proxy, study)
        assert 0.3 < time.monotonic() - start < 2
        archive.script = honest
        await assert_whole(proxy, study)


async def test_a_search_that_has_no_end() -> None:
    """'Pending for ever': a client that wants ten gets ten, from an archive that gives the same ones for ever."""
    study = small_study(12, 1)
    async with in_front_of(study, use_cget=True, answer=answer_for_ever) as (archive, proxy):
        path = path_of(study[0].sample, "study") + "/series?limit=10"
        async with asyncio.timeout(2):
            assert len(await ask(proxy, path)) == 10
        await until(lambda: archive.open_associations <= 1)


# --- C-CANCEL ------------------------------------------------------------------------------------------------


async def test_a_cancel_that_is_ignored_costs_an_abort(use_cget: bool) -> None:
    """'C-CANCEL ignored': the client has its 504 in time, and the association goes."""
    study = small_study()
    peer = {"timeouts": {"retrieve": 0.3}}
    async with in_front_of(study, ignore_cancel_of_retrieval, use_cget=use_cget, peer=peer) as (archive, proxy):
        start = time.monotonic()
        (await get_study(proxy, study)).failure(504)
        assert time.monotonic() - start < 0.3 + CANCEL_SECONDS + 1
        await until(lambda: archive.requests[0].channel.ended is not None)
        archive.script = honest
        await assert_whole(proxy, study)


async def test_an_abort_some_time_after_cancel(use_cget: bool) -> None:
    """'C-CANCEL ignored, or an abort 20 s after it': the client has gone, and nothing is left over."""
    study = small_study()
    script = breaking_off(1, aborting_after_cancel(0.2))
    async with in_front_of(study, script, use_cget=use_cget) as (archive, proxy):
        async with proxy.http.get(path_of(study[0].sample, "study")) as response:
            await response.content.readany()
            response.close()
        await until(lambda: archive.requests[0].channel.ended is not None)
        assert len(archive.cancelled_at) == 1
        await until_free(proxy, kept=int(use_cget))  # that of the C-FIND before it
        archive.script = honest
        await assert_whole(proxy, study)


async def test_a_search_whose_cancel_is_ignored() -> None:
    """'C-CANCEL ignored' by a C-FIND: the answer is not later for it, and right."""
    study = small_study(40, 1, side=4)
    async with in_front_of(study, use_cget=True, answer=ignore_cancel) as (_, proxy):
        path = path_of(study[0].sample, "study") + "/series"
        async with asyncio.timeout(1):
            assert len(await ask(proxy, path + "?limit=3")) == 3
            assert len(await ask(proxy, path)) == 40


# --- slow storage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("availability", ["NEARLINE", "OFFLINE"])
async def test_instances_that_are_brought_back(availability: str, use_cget: bool) -> None:
    """'instances NEARLINE or OFFLINE': longer than `retrieve`, and all of it comes."""
    study = small_study()
    peer = {"timeouts": {"retrieve": 0.3, "nearline": 5}}
    async with in_front_of(study, nearline(0.9), use_cget=use_cget, peer=peer) as (archive, proxy):
        archive.availability = availability
        await assert_whole(proxy, study)
    assert archive.retrieves == {"STUDY": 1}


async def test_online_instances_that_do_not_come(use_cget: bool) -> None:
    """'instances NEARLINE or OFFLINE': those that are not either are given up after `retrieve`."""
    study = small_study()
    peer = {"timeouts": {"retrieve": 0.3, "nearline": 5}}
    async with in_front_of(study, nearline(4), use_cget=use_cget, peer=peer) as (archive, proxy):
        start = time.monotonic()
        (await get_study(proxy, study)).failure(504)
        assert 0.25 < time.monotonic() - start < 1.5
        assert len(archive.cancelled_at) == 1


async def test_instances_that_are_never_brought_back(use_cget: bool) -> None:
    """'instances NEARLINE or OFFLINE': there is an end to it, `nearline`."""
    study = small_study()
    peer = {"timeouts": {"retrieve": 0.2, "nearline": 0.8}}
    async with in_front_of(study, nearline(10), use_cget=use_cget, peer=peer) as (archive, proxy):
        archive.availability = "NEARLINE"
        start = time.monotonic()
        (await get_study(proxy, study)).failure(504)
        assert 0.7 < time.monotonic() - start < 2
        archive.script, archive.availability = honest, "ONLINE"
        await assert_whole(proxy, study)
