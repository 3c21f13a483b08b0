"""Clients that are slow or leave, and archives that are killed, all in the middle of a retrieval."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dul import dimse
from tests import corpus
from tests.corpus import Corpus
from tests.faultpeer import Retrieve, ScriptedArchive, Stored, honest, in_front_of, small_study
from tests.peers.dcmtk import Dcmqrscp, Scu
from tests.peers.orthanc import Orthanc
from tests.peers.process import Address, free_port
from tests.proxy.command import program, write_config
from tests.proxy.retrieved import digests, expected, get, path_of, read_parts
from tests.proxy.running import PROXY_AET, Proxy, proxy_for, settings

pytestmark = pytest.mark.usefixtures("nothing_left")

MB = 1_000_000
PIECE = 64 * 1024


class Sent:
    """Counts the bytes that an archive has sent."""

    size = 0


def large_study(instances: int, sent: Sent) -> list[Stored]:
    """Make a study of instances of 2 MB each, which are put together as they are sent."""
    first = corpus.header(corpus.CT_STUDY, 1, 1, 100)
    corpus.add_pixels(first, 1024, bytes(range(256)) * (1024 * 8))
    template = corpus.encode(first)
    sample = corpus.describe(template, "")
    template = corpus.data_set_bytes(template)

    def stored(number: int) -> Stored:
        uid = corpus.uid(corpus.CT_STUDY, 1, 1, number)

        def data() -> bytes:
            return template.replace(sample.sop_instance_uid.encode(), uid.encode())

        async def pieces() -> AsyncIterator[bytes]:
            whole = data()
            for start in range(0, len(whole), PIECE):
                sent.size += PIECE
                yield whole[start : start + PIECE]

        return Stored(replace(sample, sop_instance_uid=uid, sha256=hashlib.sha256(data()).hexdigest()), pieces)

    return [stored(100 + number) for number in range(instances)]


NO_STORAGE = "/dev/null/storage"
"""A `storagePath` that cannot be used."""

# --- slow clients --------------------------------------------------------------------------------------------


def peak_memory(pid: int) -> int:
    """Return the most memory that a process has had resident, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize("with_storage", [True, False], ids=["storage", "no storage"])
async def test_a_slow_client(use_cget: bool, with_storage: bool, tmp_path: Path) -> None:
    """106 MB, of which the client takes 3 MB each second at first: the proxy does not hold the rest in memory.

    It goes to the spool meanwhile, and the archive is done soon; without a spool, the archive has to wait.
    """
    sent = Sent()
    study = large_study(50, sent)
    destination = Address(PROXY_AET, free_port())
    async with ScriptedArchive(study, destination=destination) as archive:
        storage = str(tmp_path / "storage") if with_storage else NO_STORAGE
        options = settings(archive.address, use_cget=use_cget, dimse_port=destination.port, storagePath=storage)
        config = write_config(tmp_path, options)
        async with program("run", "--config", str(config), folder=tmp_path) as proxy, aiohttp.ClientSession() as http:
            async with http.get(f"{proxy.url}/studies/1.2.3") as response:
                assert response.status == 404
            before = peak_memory(proxy.process.pid)
            async with http.get(proxy.url + path_of(study[0].sample, "study")) as response:
                body = bytearray()
                marks = []
                for _ in range(3):
                    await read_slowly(response, body, per_second=3 * MB, seconds=1)
                    marks.append(sent.size)
                if with_storage:
                    assert sent.size > 100 * MB, "the archive does not have to wait"
                else:
                    assert sent.size < len(body) + 40 * MB, "what is under way is in the buffers of two connections"
                    assert marks[-1] - marks[0] < 6 * MB + 5 * MB, "the archive sends as fast as the client reads"
                body += await response.read()
                content_type = response.headers["Content-Type"]
            assert peak_memory(proxy.process.pid) - before < 40 * MB
    assert len(body) > 100 * MB
    files = (part.content for part in read_parts(bytes(body), content_type))
    assert digests(files) == expected(stored.sample for stored in study)


async def read_slowly(response: aiohttp.ClientResponse, body: bytearray, *, per_second: int, seconds: float) -> None:
    """Read at a pace, for some time."""
    start = time.monotonic()
    size = len(body)
    while (elapsed := time.monotonic() - start) < seconds:
        if len(body) - size < elapsed * per_second:
            body += await response.content.read(PIECE)
        else:
            await asyncio.sleep(0.01)


async def test_a_client_that_is_slower_than_every_timeout(use_cget: bool) -> None:
    """Time in which the client holds back the archive is not the archive's."""
    study = large_study(12, Sent())
    peer = {"timeouts": {"retrieve": 0.4, "idle": 0.4, "response": 0.4}}
    async with (
        in_front_of(study, use_cget=use_cget, peer=peer) as (_, proxy),
        proxy.http.get(path_of(study[0].sample, "study")) as response,
    ):
        await asyncio.sleep(1)
        body = await response.read()
        content_type = response.headers["Content-Type"]
    files = [part.content for part in read_parts(body, content_type)]
    assert digests(files) == expected(stored.sample for stored in study)


async def test_a_slow_client_of_an_archive_that_answers_before_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the client is on its way, and not late."""
    monkeypatch.setattr("proxy.archive.retrieval.fetch.ARRIVAL_GRACE_SECONDS", 0.2)
    study = large_study(12, Sent())

    async def script(request: Retrieve) -> None:
        await request.final(completed=12, failed=0, warning=0)
        async with request.way() as one, request.way() as two:
            for first, second in zip(request.instances[::2], request.instances[1::2], strict=True):
                await asyncio.gather(one(first), two(second))

    async with (
        in_front_of(study, script) as (_, proxy),
        proxy.http.get(path_of(study[0].sample, "study")) as response,
    ):
        await asyncio.sleep(0.6)
        body = await response.read()
        content_type = response.headers["Content-Type"]
    files = [part.content for part in read_parts(body, content_type)]
    assert digests(files) == expected(stored.sample for stored in study)


# --- clients that leave --------------------------------------------------------------------------------------


async def associations(proxy: Proxy) -> int:
    """Return the number of open associations to the archive."""
    async with proxy.http.get("/status") as response:
        return int((await response.json())["archives"][0]["associations"])


async def wait_until_free(archive: ScriptedArchive, proxy: Proxy, use_cget: bool) -> float:
    """Wait until the retrieval's association is gone on both sides; returns how long it took."""
    start = time.monotonic()
    kept = int(use_cget)  # the C-FIND before a C-GET leaves an idle association
    while archive.requests[-1].channel.ended is None or await associations(proxy) > kept:
        assert time.monotonic() - start < 5
        await asyncio.sleep(0.01)
    return time.monotonic() - start


async def until_cancelled(request: Retrieve) -> None:
    """Send instances until C-CANCEL comes."""
    cancelled = asyncio.ensure_future(request.cancelled())
    completed = 0
    async with request.way() as send:
        for stored in request.instances:
            if cancelled.done():
                break
            completed += await send(stored) == dimse.SUCCESS
        await asyncio.wait_for(cancelled, 5)
    await request.final(dimse.CANCEL, completed=completed, remaining=1, failed=0, warning=0)


@pytest.mark.parametrize("pause", [0.0, 0.5], ids=["at once", "after the buffers are full"])
async def test_a_client_that_leaves_midway(pause: float, use_cget: bool) -> None:
    sent = Sent()
    study = large_study(50, sent)
    async with in_front_of(study, until_cancelled, use_cget=use_cget, storagePath=NO_STORAGE) as (archive, proxy):
        async with proxy.http.get(path_of(study[0].sample, "study")) as response:
            await response.content.readany()
            await asyncio.sleep(pause)
            left = time.monotonic()
            response.close()
        await wait_until_free(archive, proxy, use_cget)
        assert [at - left < 1 for at in archive.cancelled_at] == [True]
        assert sent.size < 60 * MB
        archive.script = honest
        answer = await get(proxy, path_of(study[7].sample))
        assert digests(answer.files) == expected([study[7].sample])


async def test_a_client_that_leaves_before_anything_came(use_cget: bool) -> None:
    study = small_study()

    async def script(request: Retrieve) -> None:
        await asyncio.wait_for(request.cancelled(), 5)
        await request.final(dimse.CANCEL)

    async with in_front_of(study, script, use_cget=use_cget) as (archive, proxy):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await get(proxy, path_of(study[0].sample, "study"))
        left = time.monotonic()
        await wait_until_free(archive, proxy, use_cget)
        assert [at - left < 1 for at in archive.cancelled_at] == [True]


async def test_an_archive_that_ignores_the_cancel_gets_an_abort(use_cget: bool) -> None:
    study = small_study()

    async def script(request: Retrieve) -> None:
        async with request.way() as send:
            await send(request.instances[0])
            await asyncio.wait_for(request.cancelled(), 5)
            await asyncio.sleep(60)

    async with in_front_of(study, script, use_cget=use_cget) as (archive, proxy):
        async with proxy.http.get(path_of(study[0].sample, "study")) as response:
            await response.content.readany()
            response.close()
        await wait_until_free(archive, proxy, use_cget)
        assert str(archive.requests[-1].channel.ended) == "association aborted: by the service-user"


# --- archives that are killed --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A CT study of 42 MB: more than all buffers on its way."""
    return corpus.write(tmp_path_factory.mktemp("ct"), corpus.ct_study(series=1, instances=80))


def start_orthanc(ct: Corpus, folder: Path, proxy: Address) -> Iterator[tuple[Orthanc, Callable[[], Any]]]:
    """Run an Orthanc with the study; the second is what starts it again."""
    with Orthanc(folder, ramdisk=True) as archive:
        archive.upload(ct.paths())
        archive.know(proxy)

        def start_again() -> None:
            archive.__enter__()
            archive.know(proxy)

        yield archive, start_again


def start_dcmqrscp(ct: Corpus, folder: Path, proxy: Address) -> Iterator[tuple[Dcmqrscp, Callable[[], Any]]]:
    """Run a dcmqrscp with the study; the second is what starts it again."""
    with Dcmqrscp(folder, destinations=[proxy]) as archive:
        Scu(archive.address).store(ct.paths(), "--required").succeeded()
        yield archive, archive.__enter__


DESTINATION = Address(PROXY_AET, free_port())
Killable = tuple[Orthanc | Dcmqrscp, Callable[[], Any]]


@pytest.fixture(params=[start_orthanc, start_dcmqrscp], ids=["orthanc", "dcmqrscp"], scope="module")
def killable(
    request: pytest.FixtureRequest, ct: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Killable]:
    """A real archive that may be killed, and what starts it again."""
    yield from request.param(ct, tmp_path_factory.mktemp("killed"), DESTINATION)


async def test_an_archive_that_is_killed_midway_and_comes_back(killable: Killable, ct: Corpus, use_cget: bool) -> None:
    archive, start_again = killable
    path = f"/studies/{ct.study_uids[0]}"
    async with proxy_for(archive.address, use_cget=use_cget, dimse_port=DESTINATION.port) as proxy:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with proxy.http.get(path) as response:
                assert response.status == 200
                await response.content.readany()
                await asyncio.to_thread(archive.kill)
                await response.read()
        (await get(proxy, path)).failure(502)
        async with proxy.http.get("/health") as response:
            assert response.status == 503
        await asyncio.to_thread(start_again)
        async with asyncio.timeout(5):  # the proxy may have found it away so often that it asks no more for a moment
            while (answer := await get(proxy, path)).status == 502:
                await asyncio.sleep(0.05)
        assert digests(answer.files) == expected(ct.samples)
        async with proxy.http.get("/health") as response:
            assert response.status == 200


@pytest.mark.parametrize("killable", [start_orthanc], ids=["orthanc"], indirect=True)
async def test_an_archive_that_falls_silent_and_wakes_up(killable: Killable, ct: Corpus) -> None:
    archive, _ = killable
    assert isinstance(archive, Orthanc)
    path = f"/studies/{ct.study_uids[0]}"
    peer = {"timeouts": {"associate": 0.3, "response": 0.3, "retrieve": 1.0}}
    async with proxy_for(archive.address, dimse_port=DESTINATION.port, peer=peer) as proxy:
        try:
            with pytest.raises(aiohttp.ClientPayloadError):
                async with proxy.http.get(path) as response:
                    await response.content.readany()
                    archive.suspend()
                    start = time.monotonic()
                    await response.read()
            assert time.monotonic() - start < 1 + 3, "the archive has two seconds to hear of C-CANCEL"
            start = time.monotonic()
            (await get(proxy, path)).failure(504)
            assert time.monotonic() - start < 0.3 + 1
        finally:
            archive.resume()
        answer = await get(proxy, path)
        assert digests(answer.files) == expected(ct.samples)
