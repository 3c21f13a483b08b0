"""`kill -9` in the middle, of the archive and of the proxy: nothing incomplete is served, and no file is left over."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

import aiohttp
import pytest

from tests import corpus
from tests.corpus import Sample
from tests.faultpeer import ScriptedArchive, Stored
from tests.peers.orthanc import Orthanc
from tests.peers.process import Address, free_port
from tests.proxy.command import Program, program, write_config
from tests.proxy.retrieved import Answer, digests, expected, kept, path_of
from tests.proxy.running import PROXY_AET, settings

SERIES, INSTANCES, SIDE = 2, 20, 512


@dataclass(frozen=True, slots=True)
class Site:
    """Where a proxy runs, and again after it was killed."""

    folder: Path
    storage: Path
    archive: Address
    dimse_port: int
    use_cget: bool

    @contextlib.asynccontextmanager
    async def proxy(self) -> AsyncIterator[tuple[Program, aiohttp.ClientSession]]:
        """Run the proxy."""
        options = settings(
            self.archive,
            use_cget=self.use_cget,
            dimse_port=self.dimse_port,
            enableCache=True,
            storagePath=str(self.storage),
        )
        folder = Path(tempfile.mkdtemp(dir=self.folder))  # each run has a log of its own
        config = write_config(folder, options)
        async with (
            program("run", "--config", str(config), folder=folder) as running,
            aiohttp.ClientSession(running.url) as http,
        ):
            yield running, http

    def files(self) -> list[Path]:
        """All files of spool and cache, but for the index."""
        found = [*self.storage.glob("spool/**/*"), *self.storage.glob("cache/*/*/*")]
        return [file for file in found if file.is_file()]


async def get_whole(http: aiohttp.ClientSession, samples: Iterable[Sample], level: str) -> str:
    """Get what the samples make up; asserts that it is all there. Returns X-Cache."""
    samples = list(samples)
    async with asyncio.timeout(20), http.get(path_of(samples[0], level)) as response:
        answer = await Answer.read(response)
    assert digests(answer.files) == expected(samples)
    return answer.headers["X-Cache"]


@pytest.fixture
def study() -> list[Stored]:
    """21 MB in two series."""
    return [Stored.of(file) for file in corpus.ct_study(SERIES, INSTANCES, SIDE)]


async def test_the_proxy_is_killed_midway_and_started_again(
    study: list[Stored], use_cget: bool, tmp_path: Path
) -> None:
    """At several moments, while one series is in the cache and another on its way."""
    storage = tmp_path / "storage"
    series = [stored.sample for stored in study[:INSTANCES]]
    rest = [stored.sample for stored in study[INSTANCES:]]
    destination = Address(PROXY_AET, free_port())
    async with ScriptedArchive(study, destination=destination) as archive:
        site = Site(tmp_path, storage, archive.address, destination.port, use_cget)
        async with site.proxy() as (_, http):
            await get_whole(http, series, "series")
            await kept(http)
        for size in (1, 1_000_000, 8_000_000):
            async with site.proxy() as (running, http):
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(path_of(rest[0], "series")) as response:
                        await response.content.readexactly(size)
                        running.process.signal(SIGKILL)
                        await response.read()
                        pytest.fail("an answer that was cut by a kill looked whole")
                await asyncio.to_thread(running.process.stop)
        async with site.proxy() as (_, http):
            assert await get_whole(http, series, "series") == "HIT"
            archive.requests.clear()
            await get_whole(http, rest, "series")
            await kept(http)
            assert archive.retrieves == {"SERIES": 1}
            assert await get_whole(http, rest, "series") == "HIT"
            async with http.delete("/cache") as response:
                assert (await response.json())["instances"] == len(study)
            assert site.files() == []


async def test_the_archive_is_killed_midway_and_started_again(use_cget: bool, tmp_path: Path) -> None:
    """Orthanc; what came whole before is kept, and none of it is taken for all."""
    destination = Address(PROXY_AET, free_port())
    files = list(corpus.ct_study(SERIES, 2 * INSTANCES, SIDE))
    samples = [corpus.describe(file, "") for file in files]
    with Orthanc(tmp_path) as orthanc:
        orthanc.know(destination)
        await asyncio.to_thread(orthanc.upload, files)
        site = Site(tmp_path, tmp_path / "storage", orthanc.address, destination.port, use_cget)
        async with site.proxy() as (_, http):
            async with http.get(path_of(samples[0], "study")) as response:
                assert response.status == 200
                await response.content.readexactly(1)
                orthanc.kill()
                with pytest.raises(aiohttp.ClientError):
                    await response.read()
            await kept(http)
            assert 0 < len(site.files()) < len(files)
            await asyncio.to_thread(orthanc.start_again, destination)
            await get_whole(http, samples, "study")
            await kept(http)
            assert await get_whole(http, samples, "study") == "HIT"
            assert [*site.storage.glob("spool/*")] == []
