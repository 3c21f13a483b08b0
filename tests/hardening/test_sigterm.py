"""SIGTERM while everything is in use: what has begun is finished, nothing new is begun, and the program ends."""

from __future__ import annotations

import asyncio
import io
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from signal import SIGTERM

import aiohttp
import pytest

from proxy.demo.archive import DemoArchive
from tests.corpus import Corpus, Sample, ct_study, write
from tests.peers.process import HOST, Address, free_port
from tests.proxy.command import program, write_config
from tests.proxy.retrieved import Answer, digests, expected, path_of
from tests.proxy.running import PROXY_AET, settings
from tests.proxy.uploading import CONTENT_TYPE, multipart

CLIENTS = 24
UNDER_LOAD = 1.0
"""Seconds before the signal."""

AT_THAT_MOMENT = 0.05
"""Seconds before the signal from which on a request may not have been read."""

MOST_SECONDS = 30.0

Kind = Callable[[aiohttp.ClientSession, Sample], Awaitable[None]]


class Load:
    """Clients that send one request after the other until nobody listens; each kind checks what it gets."""

    def __init__(self, url: str, studies: list[list[Sample]], upload: bytes) -> None:
        self.answered: Counter[str] = Counter()
        self.under_way = 0
        self.signalled = float("inf")
        """When the end began, by the monotonic clock."""
        self._url = url
        self._studies = studies
        self._upload = upload

    async def run(self, number: int) -> None:
        """Be one of the clients; what an answer lacks that has begun is raised."""
        kinds: tuple[Kind, ...] = (self.study, self.metadata, self.search, self.frame, self.upload, self.slow)
        async with aiohttp.ClientSession(self._url) as http:
            for kind in itertools.islice(itertools.cycle(kinds), number, None):
                samples = self._studies[number % len(self._studies)]
                begun = time.monotonic()
                self.under_way += 1
                try:
                    await kind(http, samples[number % len(samples)])
                except aiohttp.ClientConnectionError:  # refused, or it was idle and is closed; a cut answer is no such
                    assert begun > self.signalled - AT_THAT_MOMENT, f"{kind.__name__}: it had begun, and got no answer"
                    return
                finally:
                    self.under_way -= 1
                self.answered[kind.__name__] += 1

    def _study_of(self, sample: Sample) -> list[Sample]:
        return next(samples for samples in self._studies if sample in samples)

    async def study(self, http: aiohttp.ClientSession, sample: Sample) -> None:
        async with http.get(path_of(sample, "study")) as response:
            answer = await Answer.read(response)
        assert digests(answer.files) == expected(self._study_of(sample))

    async def slow(self, http: aiohttp.ClientSession, sample: Sample) -> None:
        async with http.get(path_of(sample, "series")) as response:
            body = bytearray()
            async for piece in response.content.iter_chunked(256 * 1024):
                body += piece
                await asyncio.sleep(0.02)
            answer = Answer(response.status, response.headers.copy(), bytes(body))
        assert digests(answer.files) == expected(self._study_of(sample))

    async def metadata(self, http: aiohttp.ClientSession, sample: Sample) -> None:
        async with http.get(path_of(sample, "study") + "/metadata") as response:
            assert len(await response.json(content_type=None)) == len(self._study_of(sample))

    async def search(self, http: aiohttp.ClientSession, sample: Sample) -> None:
        async with http.get("/studies", params={"StudyInstanceUID": sample.study_uid}) as response:
            assert len(await response.json(content_type=None)) == 1

    async def frame(self, http: aiohttp.ClientSession, sample: Sample) -> None:
        async with http.get(path_of(sample) + "/frames/1") as response:
            assert response.status == 200
            assert len(await response.read()) > 512 * 512 * 2

    async def upload(self, http: aiohttp.ClientSession, sample: Sample) -> None:
        async with http.post(
            "/studies", data=io.BytesIO(self._upload), headers={"Content-Type": CONTENT_TYPE}
        ) as response:
            assert response.status == 200, await response.text()
            assert "00081198" not in await response.json(content_type=None)


def corpus_of(folder: Path) -> tuple[Corpus, list[list[Sample]]]:
    """Write three studies; returns the samples of each as well."""
    files = [file for study in (1, 2, 3) for file in ct_study(series=1, instances=8, study=study)]
    corpus = write(folder, files)
    return corpus, [[each for each in corpus.samples if each.study_uid == uid] for uid in corpus.study_uids]


@pytest.mark.parametrize(("uvloop", "use_cget"), [(True, False), (False, True)], ids=["uvloop-move", "asyncio-get"])
async def test_sigterm_under_load_drains_within_30_s(uvloop: bool, use_cget: bool, tmp_path: Path) -> None:
    """Every answer that has begun comes whole, connections are refused at once, and the exit code is 0."""
    port = free_port()
    corpus, studies = corpus_of(tmp_path / "files")
    upload = multipart(list(ct_study(series=1, instances=2, study=9)))
    async with DemoArchive(
        corpus.folder, destinations={PROXY_AET: (HOST, port)}, store_folder=tmp_path / "received"
    ) as archive:
        options = settings(
            Address("DEMO", archive.port),
            use_cget=use_cget,
            dimse_port=port,
            enableCache=uvloop,
            storagePath=str(tmp_path / "storage"),
            shutdownSeconds=20,
        )
        config = write_config(tmp_path, options)
        async with program("run", "--config", str(config), folder=tmp_path, uvloop=uvloop) as proxy:
            load = Load(proxy.url, studies, upload)
            async with asyncio.TaskGroup() as clients:
                for number in range(CLIENTS):
                    clients.create_task(load.run(number))
                await asyncio.sleep(UNDER_LOAD)
                assert load.under_way == CLIENTS
                load.signalled = time.monotonic()
                await proxy.end(SIGTERM, within=MOST_SECONDS)
        assert load.answered.keys() == {"study", "slow", "metadata", "search", "frame", "upload"}
        assert "Traceback" not in proxy.log()
        assert "stopped" in proxy.log()
        assert [*(tmp_path / "storage").glob("spool/*")] == []


@pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])
async def test_an_upload_under_way_is_stored_after_sigterm(uvloop: bool, tmp_path: Path) -> None:
    """Its body goes on to be read though the connection takes no further request."""
    files = list(ct_study(series=1, instances=8, study=9))
    body = multipart(files)
    async with DemoArchive(None, store_folder=tmp_path / "received") as archive:
        config = write_config(tmp_path, settings(Address("DEMO", archive.port), use_cget=True, shutdownSeconds=20))
        async with program("run", "--config", str(config), folder=tmp_path, uvloop=uvloop) as proxy:
            go_on = asyncio.Event()

            async def in_two_halves() -> AsyncIterator[bytes]:
                yield body[: len(body) // 2]
                await go_on.wait()
                yield body[len(body) // 2 :]

            async with aiohttp.ClientSession(proxy.url) as http:
                headers = {"Content-Type": CONTENT_TYPE}
                sending = asyncio.create_task(http.post("/studies", data=in_two_halves(), headers=headers))
                while archive.index.instance_count < len(files) // 2 - 1:
                    await asyncio.sleep(0.01)
                proxy.process.signal(SIGTERM)
                await asyncio.sleep(0.2)
                go_on.set()
                response = await asyncio.wait_for(sending, 5)
                assert response.status == 200, await response.text()
                assert len((await response.json(content_type=None))["00081199"]["Value"]) == len(files)
            assert await asyncio.to_thread(proxy.process.wait, 2) == 0
