"""The numbers of the hardening tests as they are in service, which take minutes. The others shorten them."""

from __future__ import annotations

import asyncio

import pytest

from tests.dul.archive import Archive, serving
from tests.dul.conftest import until
from tests.dul.crowds import half_of_each, little_left
from tests.dul.test_hardening_floods import MEMORY
from tests.dul.test_hardening_silence import ARTIM, GOES_DEAF, NOTICED, TOLERANCE, noticed_after, slow_peers

pytestmark = pytest.mark.long


async def test_slow_peers_are_closed_after_30_s_whatever_the_drip() -> None:
    seconds = await slow_peers(1.0)
    assert {name: each for name, each in seconds.items() if abs(each - ARTIM) > TOLERANCE} == {}


async def test_ten_thousand_associations_cost_no_memory_and_leave_no_task() -> None:
    async with serving(Archive()) as server:
        await half_of_each(server.port, 1000)
        tasks = asyncio.all_tasks()
        with little_left(MEMORY):
            await half_of_each(server.port, 10_000)
            await until(lambda: (server.connection_count, server.association_count) == (0, 0))
        assert asyncio.all_tasks() == tasks


async def test_archive_that_is_gone_midway_is_noticed_within_a_minute() -> None:
    assert max(await asyncio.gather(*map(noticed_after, GOES_DEAF))) < NOTICED
