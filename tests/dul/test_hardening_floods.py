"""More connections than are good: caps hold, others are served, and nothing is left behind."""

from __future__ import annotations

import asyncio
import time

import pytest

import dul
from tests.dul import wire
from tests.dul.archive import Archive, serving
from tests.dul.conftest import open_sockets, until
from tests.dul.crowds import Crowd, abrupt, echo, half_of_each, little_left, many_descriptors
from tests.dul.wire import VERIFICATION, Wire

pytestmark = pytest.mark.usefixtures("nothing_left")

CAPS = dul.ServerLimits(connections=100, connections_per_host=20)
OVER_LIMIT = "rejected (2, 3, 2)"
"""PS3.8 Table 9-21: rejected-transient, by the service-provider (presentation), local limit exceeded."""

MEMORY = 5 * 2**20


async def test_a_thousand_connections_get_as_many_associations_as_the_caps_allow_and_others_are_served() -> None:
    """1,000 from four addresses: 20 of each are accepted, the rest get local limit exceeded, and a C-ECHO from
    elsewhere takes less than a second for 99 of 100; descriptors and memory are as before."""
    sources = [f"127.0.1.{number % 4 + 1}" for number in range(1000)]
    with many_descriptors(4096):
        async with serving(Archive(), server_limits=CAPS) as server:
            await half_of_each(server.port, 200)
            await until(lambda: server.connection_count == 0)
            sockets = open_sockets().keys()
            with little_left(MEMORY):
                crowd = Crowd()
                coming = [asyncio.create_task(crowd.come(server.port, source)) for source in sources]
                times = []
                for number in range(100):
                    times.append(await echo(server.port, f"127.0.2.{number % 50 + 1}"))
                await until(lambda: crowd.answers.total() == 1000, 10)
                assert crowd.answers == {"accepted": 80, OVER_LIMIT: 920}
                assert sorted(times)[98] < 1
                crowd.go_home()
                await asyncio.gather(*coming)
                await until(lambda: server.connection_count == 0)
            assert open_sockets().keys() == sockets


async def test_the_cap_of_all_addresses_together() -> None:
    sources = [f"127.0.1.{number % 10 + 1}" for number in range(300)]
    async with serving(Archive(), server_limits=CAPS) as server:
        crowd = Crowd()
        coming = [asyncio.create_task(crowd.come(server.port, source)) for source in sources]
        await until(lambda: crowd.answers.total() == 300, 10)
        assert crowd.answers == {"accepted": 100, OVER_LIMIT: 200}
        crowd.go_home()
        await asyncio.gather(*coming)
        await until(lambda: server.connection_count == 0)


async def test_a_thousand_associations_cost_no_memory_and_leave_no_task() -> None:
    """Every other one is ended by a reset within a request; a test that is run on demand has 10,000."""
    async with serving(Archive()) as server:
        await half_of_each(server.port, 500)
        await until(lambda: server.connection_count == 0)
        tasks = asyncio.all_tasks()
        with little_left(MEMORY):
            await half_of_each(server.port, 1000)
            await until(lambda: (server.connection_count, server.association_count) == (0, 0))
        assert asyncio.all_tasks() == tasks


async def test_flood_of_one_address_is_bounded_in_work_and_in_lines(caplog: pytest.LogCaptureFixture) -> None:
    """A token bucket for each address: what is over is closed unheard, and others are served as ever."""
    limits = dul.ServerLimits(arrivals_at_once=50, arrivals_per_second=10)
    archive = Archive()
    async with serving(archive, server_limits=limits) as server:

        async def tries() -> bool:
            try:
                await echo(server.port)
            except (ConnectionError, EOFError):
                return False
            return True

        start = time.monotonic()
        served = 0
        for _ in range(50):
            served += sum(await asyncio.gather(*(tries() for _ in range(10))))
        others = [await echo(server.port, "127.0.0.2") for _ in range(20)]
        elapsed = time.monotonic() - start
    assert 50 <= served <= 50 + 10 * elapsed
    assert max(others) < 1
    assert len(archive.echoes) == served + 20
    assert len(caplog.records) <= 21 + elapsed * 0.2
    assert caplog.records[0].getMessage() == (
        "a connection from 127.0.0.1 was closed: it opens too many in too short a time"
    )


async def test_archive_that_opens_an_association_for_each_instance_is_no_flood() -> None:
    """Some do: a study of 2,000 instances at any speed, here at the full speed of the loopback."""
    assert dul.ServerLimits().arrivals_at_once >= 2000
    async with serving(Archive()) as server:
        for _ in range(300):
            await abrupt(server.port)
        await until(lambda: server.connection_count == 0)
        await echo(server.port)


async def test_silent_connections_beyond_the_cap_are_told_why(caplog: pytest.LogCaptureFixture) -> None:
    """In clear text, and without their request, for which nobody waits; one line says so."""
    limits = dul.ServerLimits(connections=10, connections_per_host=3)
    async with serving(Archive(), server_limits=limits) as server:
        silent = [await Wire.connect(server.port) for _ in range(6)]
        await until(lambda: server.connection_count == 6)
        with await Wire.connect(server.port) as late:
            assert await late.pdu() == (wire.RJ, bytes((0, 2, 3, 2)))
            assert await late.receive() == b""
        with await Wire.connect(server.port, "127.0.0.2") as other:
            await other.associate(VERIFICATION)
        for peer in silent:
            peer.close()
    assert [record.getMessage() for record in caplog.records] == [
        "a connection from 127.0.0.1 was turned away: too many are open"
    ]
