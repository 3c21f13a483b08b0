"""The associations that searches use: few, kept for a while, and never in the way of each other (PS3.8 7)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from proxy.archive.peers import archive as peers
from tests.corpus import uid
from tests.peers.process import HOST, Address
from tests.peers.pynetdicom_peer import PynetdicomScp
from tests.proxy.finding import Answers, Script, Scripted, ask, failing, fetch, giving, proxied, scripted, study, values
from tests.proxy.running import proxy_for


def answering(keys: Dataset, number: int = 1) -> Dataset:
    """Return an answer to any level: what was asked for, with a UID of that level."""
    answer = Dataset()
    level = answer.QueryRetrieveLevel = keys.QueryRetrieveLevel
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if keys.get(keyword):
            setattr(answer, keyword, keys[keyword].value)
    unique = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}[level]
    if unique not in answer:
        setattr(answer, unique, uid(9, number))
    return answer


def tree(width: int) -> Script:
    """Return a script for an archive with `width` studies of as many series of as many instances."""

    async def script(keys: Dataset) -> Answers:
        for number in range(1, width + 1):
            yield answering(keys, number)
            await asyncio.sleep(0)

    return script


async def eventually(condition: Any, seconds: float = 2.0) -> None:
    """Wait until the condition holds; fail when it does not within `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_one_association_does_for_many_searches() -> None:
    async with proxied(giving(study(1))) as (archive, proxy):
        for _ in range(20):
            assert len(await ask(proxy, "/studies")) == 1
    assert archive.associations == 1
    assert len(archive.searches) == 20


async def test_levels_share_an_association() -> None:
    async with proxied(tree(3)) as (archive, proxy):
        assert len(await ask(proxy, "/instances")) == 27
    assert archive.associations == 1
    assert len(archive.searches) == 1 + 3 + 9


async def test_a_refused_search_does_not_cost_the_association() -> None:
    async with proxied(failing(0xA900)) as (archive, proxy):
        for _ in range(3):
            assert (await fetch(proxy, "/studies")).status == 502
        archive.script = giving(study(1))
        assert len(await ask(proxy, "/studies")) == 1
    assert archive.associations == 1


@pytest.mark.parametrize("limit", [1, 2, 4])
async def test_never_more_than_the_allowed_number(limit: int) -> None:
    async with proxied(tree(4), maxAssociations=limit) as (archive, proxy):
        answers = await asyncio.gather(*(ask(proxy, "/studies") for _ in range(20)))
        assert [len(answer) for answer in answers] == [4] * 20
        state = (await fetch(proxy, "/status")).json["archives"][0]
        assert state["associations"] <= state["maxAssociations"] == limit
    assert archive.most <= limit
    assert archive.associations <= limit


async def test_searches_really_run_side_by_side() -> None:
    """With four associations, four searches that wait for each other come to an end."""
    barrier = asyncio.Barrier(4)

    async def script(_: Dataset) -> Answers:
        await barrier.wait()
        yield study(1)

    async with proxied(script, maxAssociations=4) as (archive, proxy):
        async with asyncio.timeout(3):
            await asyncio.gather(*(ask(proxy, "/studies") for _ in range(4)))
    assert archive.associations == 4


@pytest.mark.parametrize(("limit", "clients"), [(1, 1), (1, 5), (2, 20)])
async def test_walking_the_levels_never_deadlocks(limit: int, clients: int) -> None:
    """A search that held an association and waited for another would wait for ever, once enough of them do."""
    async with proxied(tree(3), maxAssociations=limit) as (archive, proxy):
        async with asyncio.timeout(15):
            answers = await asyncio.gather(*(ask(proxy, "/instances") for _ in range(clients)))
    assert [len(answer) for answer in answers] == [27] * clients
    assert archive.most <= limit


async def test_idle_associations_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "IDLE_RELEASE_SECONDS", 0.1)
    async with proxied(giving(study(1))) as (archive, proxy):
        assert archive.server is not None
        await ask(proxy, "/studies")
        assert archive.server.association_count == 1
        await eventually(lambda: archive.server is not None and archive.server.association_count == 0)
        await eventually(lambda: archive.server is not None and archive.server.connection_count == 0)
        await ask(proxy, "/studies")
        assert archive.associations == 2


async def test_use_puts_off_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "IDLE_RELEASE_SECONDS", 0.2)
    async with proxied(giving(study(1))) as (archive, proxy):
        for _ in range(6):
            await ask(proxy, "/studies")
            await asyncio.sleep(0.08)
    assert archive.associations == 1


# --- dead associations ---------------------------------------------------------------------------------------


async def test_an_archive_that_was_restarted(tmp_path: Path, samples: Any) -> None:
    with PynetdicomScp(tmp_path, serve=samples.folder) as archive:
        async with proxy_for(archive.address, use_cget=True) as proxy:
            assert len(await ask(proxy, "/studies")) == len(samples.study_uids)
            await asyncio.to_thread(archive.know, Address("OTHER", 104))  # kills and starts it
            assert len(await ask(proxy, "/studies")) == len(samples.study_uids)
            archive.kill()
            assert (await fetch(proxy, "/studies")).status == 502


class Relay:
    """Passes bytes between the proxy and an archive; `poison` makes it reset a connection at its next byte.

    So the proxy cannot know beforehand that a kept association is dead, as with a firewall that has forgotten it.
    """

    def __init__(self, target: Address) -> None:
        self._target = target
        self._poisoned: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.connections: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Address:
        self._server = await asyncio.start_server(self._connected, HOST, 0)
        return Address(self._target.aet, self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self.connections:
            writer.transport.abort()
        await self._server.wait_closed()

    def poison(self) -> None:
        """Make the connections that are there now dead."""
        self._poisoned.update(self.connections)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, there_writer = await asyncio.open_connection(self._target.host, self._target.port)
        self.connections += [writer, there_writer]
        back = asyncio.create_task(self._pass(there, writer))
        while data := await reader.read(65536):
            if writer in self._poisoned:
                writer.transport.abort()
                break
            there_writer.write(data)
        there_writer.close()
        await back
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)


async def test_a_dead_association_is_tried_again_once_and_unseen() -> None:
    relay_of = Relay
    async with scripted(giving(study(1))) as archive:
        relay = relay_of(archive.address)
        async with relay as address, proxy_for(address, use_cget=True) as proxy:
            assert len(await ask(proxy, "/studies")) == 1
            relay.poison()
            assert len(await ask(proxy, "/studies")) == 1
            assert archive.associations == 2
            assert len(await ask(proxy, "/studies")) == 1
            assert archive.associations == 2


async def test_all_of_several_dead_associations_are_no_trouble() -> None:
    """As many are dead as there may be: the new try must not meet the next dead one."""
    async with scripted(tree(2)) as archive:
        relay = Relay(archive.address)
        async with relay as address, proxy_for(address, use_cget=True, maxAssociations=3) as proxy:
            await together(archive, 3, lambda: ask(proxy, "/studies"))
            relay.poison()
            answers = await asyncio.gather(*(ask(proxy, "/studies") for _ in range(6)))
            assert [len(answer) for answer in answers] == [2] * 6
            assert len(await ask(proxy, "/series")) == 4


async def together(archive: Scripted, count: int, search: Any) -> None:
    """Run searches that each wait for all to have begun, so that each has an association of its own."""
    barrier = asyncio.Barrier(count)
    script = archive.script

    async def waiting(keys: Dataset) -> Answers:
        await barrier.wait()
        async for answer in script(keys):
            yield answer

    archive.script = waiting
    await asyncio.gather(*(search() for _ in range(count)))
    archive.script = script


async def test_a_new_association_that_dies_is_not_tried_again() -> None:
    """The archive gets the search once, not over and over, when it is the search that kills it."""

    async def deadly(_: Dataset) -> Answers:
        assert archive.server is not None
        for channel in archive.server._channels:
            channel.abort()
        yield study(1)

    async with proxied(deadly) as (archive, proxy):
        assert (await fetch(proxy, "/studies")).status == 502
        assert len(archive.searches) == 1


async def test_answers_are_not_given_twice_when_an_association_dies_between_them() -> None:
    """Once an answer has come the search is not begun again."""
    async with proxied(giving(study(1))) as (archive, proxy):
        assert values(await ask(proxy, "/studies"), "StudyInstanceUID") == [uid(9, 1)]

        async def dying(_: Dataset) -> Answers:
            yield study(1)
            await asyncio.sleep(0.05)
            assert archive.server is not None
            for channel in archive.server._channels:
                channel.abort()
            yield study(2)

        archive.script = dying
        assert (await fetch(proxy, "/studies")).status == 502
        assert len(archive.searches) == 2
