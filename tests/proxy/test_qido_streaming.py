"""Large answers: streamed as matches come, in bounded memory, at the pace of the reader; and cut short visibly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydicom.dataset import Dataset

import dul
from proxy.dicomweb import qido, streaming
from tests.corpus import uid
from tests.peers.process import HOST, Address, Process, answers, free_port
from tests.proxy.finding import Answers, Script, ask, fetch, made, many, proxied, scripted, tag
from tests.proxy.running import Proxy, proxy_for, settings

ROOT = Path(__file__).resolve().parents[2]
MANY = 50_000
MEMORY_GROWTH = 40e6
FIRST = 1000
"""Matches that are more than what is held back before an answer is begun."""


def high_water_mark(pid: int, name: str = "VmHWM") -> int:
    """Return the largest resident set of a process so far, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


@contextlib.asynccontextmanager
async def proxy_process(folder: Path, archive: Address) -> AsyncIterator[tuple[Proxy, int]]:
    """Run the proxy as a program of its own; yields its process id as well."""
    port = free_port()
    config = folder / "config.json"
    config.write_text(json.dumps(settings(archive, use_cget=True, webserverPort=port)))
    command = [sys.executable, "-m", "proxy", "run", "--config", str(config)]
    process = Process("proxy", command, folder, env={"PYTHONPATH": str(ROOT)})
    # The archive is in this event loop, so waiting must not block it.
    await asyncio.to_thread(process.start, lambda: answers(port))
    url = f"http://{HOST}:{port}"
    try:
        async with aiohttp.ClientSession(url) as http:
            yield Proxy(url, http, None), process.pid
    finally:
        await asyncio.to_thread(process.stop)


async def settled(count: Any, seconds: float = 0.3) -> int:
    """Wait until a counter has stood still for so long; returns it. TimeoutError when it goes on for 20 s."""
    last, since = -1, 0.0
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        while last != count() or loop.time() - since < seconds:
            if last != count():
                last, since = count(), loop.time()
            await asyncio.sleep(0.02)
    return last


# --- bounded memory ------------------------------------------------------------------------------------------


async def test_fifty_thousand_studies_in_bounded_memory(tmp_path: Path) -> None:
    async with scripted(many(MANY)) as archive, proxy_process(tmp_path, archive.address) as (proxy, pid):
        assert len(await ask(proxy, "/studies?limit=100")) == 100
        idle = high_water_mark(pid, "VmRSS")
        async with proxy.http.get("/studies") as response:
            assert response.status == 200
            assert "Content-Length" not in response.headers
            body = await response.read()
        growth = high_water_mark(pid) - idle
        assert archive.associations == 1
    assert growth < MEMORY_GROWTH
    found = json.loads(body)
    assert len(found) == MANY
    assert {entity[tag("StudyInstanceUID")]["Value"][0] for entity in found} == {
        uid(9, 100_000 + number) for number in range(MANY)
    }
    assert found[0][tag("PatientName")]["Value"] == [{"Alphabetic": "Müller^Jürgen"}]


async def test_a_slow_reader_holds_back_the_archive(tmp_path: Path) -> None:
    """An archive with answers without end stands still while nobody reads, and the proxy's memory with it."""
    async with scripted(many()) as archive, proxy_process(tmp_path, archive.address) as (proxy, pid):
        assert len(await ask(proxy, "/studies?limit=100")) == 100
        idle = high_water_mark(pid, "VmRSS")
        async with proxy.http.get("/studies") as response:
            assert response.status == 200
            stopped_at = await settled(lambda: archive.given)
            for _ in range(200):
                await response.content.readany()
            assert await settled(lambda: archive.given) > stopped_at
            assert high_water_mark(pid) - idle < MEMORY_GROWTH
            response.close()
        await asyncio.wait_for(archive.closed.wait(), 1)


async def test_the_first_bytes_come_before_the_last_match() -> None:
    more = asyncio.Event()

    async def script(_: Dataset) -> Answers:
        for number in range(FIRST):
            yield made(number)
        await more.wait()
        for number in range(FIRST, 2 * FIRST):
            yield made(number)

    async with proxied(script) as (archive, proxy):
        response = await asyncio.wait_for(proxy.http.get("/studies"), 5)
        begin = await response.content.readany()
        assert begin.startswith(b'[{"00080005"')
        assert not archive.closed.is_set()
        more.set()
        body = begin + await response.read()
    assert len(json.loads(body)) == 2 * FIRST


@pytest.mark.parametrize("count", [0, 1, 2, 60, 61, 62, 63, 64, 65, 66, 120, 500])
async def test_the_array_is_whole_whatever_its_length(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around the sizes at which an answer begins to be streamed, and at which a batch goes out."""
    monkeypatch.setattr(qido, "WHOLE_ANSWER", 64 * 1024 if count == 500 else 64 * 900)
    async with proxied(many(count)) as (_, proxy):
        found = await ask(proxy, "/studies")
    assert [entity[tag("StudyInstanceUID")]["Value"][0] for entity in found] == [
        uid(9, 100_000 + number) for number in range(count)
    ]


async def test_limit_and_offset_of_a_streamed_answer() -> None:
    async with proxied(many()) as (archive, proxy):
        found = await ask(proxy, "/studies?offset=700&limit=500")
        assert [entity[tag("StudyInstanceUID")]["Value"][0] for entity in found] == [
            uid(9, 100_000 + number) for number in range(700, 1200)
        ]
        assert len(await ask(proxy, "/studies?limit=1")) == 1
    assert archive.associations == 1


async def test_enough_is_sent_before_the_archive_has_taken_note() -> None:
    """Some archives ignore C-CANCEL, or do not get to it for seconds."""

    async def deaf(_: Dataset) -> Answers:
        for number in range(5):
            yield made(number)
        await asyncio.sleep(60)

    async with proxied(deaf) as (archive, proxy):
        async with asyncio.timeout(0.5):
            response = await proxy.http.get("/studies?limit=3")
            assert len(await response.json(content_type=None)) == 3
        assert not archive.closed.is_set()


# --- clients that leave --------------------------------------------------------------------------------------


async def test_a_client_that_leaves_midway_cancels_the_search() -> None:
    async with proxied(many()) as (archive, proxy):
        async with proxy.http.get("/studies") as response:
            await response.content.readany()
            assert not archive.closed.is_set()
            response.close()
        await asyncio.wait_for(archive.closed.wait(), 1)
        # by C-CANCEL, so that the association is good for another search
        assert len(await ask(proxy, "/studies?limit=2")) == 2
        assert archive.associations == 1


async def test_a_client_that_leaves_before_the_first_match_cancels_the_search() -> None:
    """As OHIF does with each letter that is typed."""
    begun, more = asyncio.Event(), asyncio.Event()

    async def script(_: Dataset) -> Answers:
        begun.set()
        await more.wait()
        yield made(1)
        yield made(2)

    async with proxied(script) as (archive, proxy):
        request = asyncio.create_task(fetch(proxy, "/studies"))
        await begun.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.sleep(0.05)  # for the C-CANCEL to be on its way before the archive has found something
        more.set()
        await asyncio.wait_for(archive.closed.wait(), 1)
        assert archive.given <= 1
        assert len(await ask(proxy, "/studies")) == 2
        assert archive.associations == 1


async def test_a_client_that_leaves_while_it_waits_for_an_association() -> None:
    """It gives its place in the queue back."""
    more = asyncio.Event()

    async def script(_: Dataset) -> Answers:
        await more.wait()
        yield made(1)

    async with proxied(script, maxAssociations=1) as (archive, proxy):
        first, second, third = (asyncio.create_task(fetch(proxy, "/studies")) for _ in range(3))
        while not archive.searches:
            await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.wait([second])
        more.set()
        assert [(await each).status for each in (first, third)] == [200, 200]
        assert len(archive.searches) == 2


async def test_a_client_that_reads_nothing_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CLIENT_STALL_SECONDS", 0.3)
    async with proxied(many()) as (archive, proxy):
        async with proxy.http.get("/studies") as response:
            assert response.status == 200
            await asyncio.wait_for(archive.closed.wait(), 5)
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        assert len(await ask(proxy, "/studies?limit=1")) == 1


# --- archives that fail midway -------------------------------------------------------------------------------


async def raw(proxy: Proxy, version: str) -> bytes:
    """Return all bytes of the answer to a search, up to the end of the connection."""
    assert proxy.http._base_url is not None
    reader, writer = await asyncio.open_connection(HOST, proxy.http._base_url.port)
    writer.write(f"GET /studies HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    received = b""
    try:
        while data := await reader.read(65536):
            received += data
    finally:
        writer.close()
    return received


def dying(how: str) -> tuple[Script, list[Any]]:
    """Return a script that fails after some matches, and the list into which its archive must be put."""
    archives: list[Any] = []

    async def script(_: Dataset) -> Answers:
        for number in range(FIRST):
            yield made(number)
        await asyncio.sleep(0.1)
        channels = list(archives[0].server._channels)
        match how:
            case "abort":
                for channel in channels:
                    channel.abort()
            case "kill":
                for channel in channels:
                    channel.transport._transport.abort()
            case "failure":
                raise dul.StatusError("C-FIND", 0xA700)
            case "malformed":
                yield b"\x08\x00\x20\x00DA\xff\xff20240101"
        yield made(FIRST)

    return script, archives


@pytest.mark.parametrize("how", ["abort", "kill", "failure", "malformed"])
async def test_an_answer_cut_short_never_looks_whole(how: str, caplog: pytest.LogCaptureFixture) -> None:
    script, archives = dying(how)
    async with proxied(script) as (archive, proxy):
        archives.append(archive)
        async with proxy.http.get("/studies") as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        # Without chunks, only a reset tells the end of the answer from its being cut.
        for version in ("1.1", "1.0"):
            with pytest.raises(ConnectionResetError):
                await raw(proxy, version)
        archive.script = many(3)
        assert len(await ask(proxy, "/studies")) == 3
    assert "Traceback" not in caplog.text
    assert "cut short" in caplog.text


async def test_a_killed_archive_program(tmp_path: Path) -> None:
    """An archive in a process of its own, ended by SIGKILL while it answers."""
    port = free_port()
    command = [sys.executable, "-m", "tests.proxy.endless", str(port)]
    process = Process("endless", command, tmp_path, env={"PYTHONPATH": str(ROOT)})
    await asyncio.to_thread(process.start, lambda: answers(port))
    try:
        async with proxy_for(Address("SCRIPTED", port), use_cget=True) as proxy:
            async with proxy.http.get("/studies") as response:
                assert response.status == 200
                await response.content.readany()
                process.stop(kill=True)
                with pytest.raises(aiohttp.ClientError):
                    await response.read()
            assert (await fetch(proxy, "/studies")).status == 502
    finally:
        process.stop(kill=True)
