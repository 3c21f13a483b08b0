"""Archives whose machine or network is gone midway: the client has its 504, or its cut, within a minute.

Here the minute is shortened to 2 s; `tests.dul.test_hardening_long` has the real one.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.dul.deafness import make_deaf, notice_within
from tests.faultpeer import Find, Retrieve, in_front_of, small_study
from tests.proxy.finding import fetch
from tests.proxy.retrieved import get, path_of

pytestmark = pytest.mark.usefixtures("nothing_left")

PATIENT = {"retrieve": 60, "idle": 60, "response": 60}
"""Timeouts that are of no use here: DICOM allows so much silence, and more."""


async def gone(request: Retrieve | Find) -> None:
    """Take the request, and be gone."""
    transport = request.channel.transport._transport
    assert transport is not None
    make_deaf(transport.get_extra_info("socket"))
    await asyncio.Event().wait()


async def test_archive_that_is_gone_in_a_retrieval_is_a_504(monkeypatch: pytest.MonkeyPatch, use_cget: bool) -> None:
    notice_within(monkeypatch, 2)
    study = small_study()
    async with in_front_of(study, gone, use_cget=use_cget, peer={"timeouts": PATIENT}) as (_, proxy):
        start = time.monotonic()
        message = (await get(proxy, path_of(study[0].sample, "study"))).failure(504)
        assert time.monotonic() - start < 4
    assert message == "SCRIPTED: no TCP acknowledgement within 2 s"


async def test_archive_that_is_gone_in_a_search_is_a_504(monkeypatch: pytest.MonkeyPatch) -> None:
    notice_within(monkeypatch, 2)
    async with in_front_of(small_study(), answer=gone, use_cget=True, peer={"timeouts": PATIENT}) as (_, proxy):
        start = time.monotonic()
        assert (await fetch(proxy, "/studies")).status == 504
        assert time.monotonic() - start < 4
