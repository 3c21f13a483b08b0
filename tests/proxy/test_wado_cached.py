"""What the cache has: how it is sent, how a client saves having it sent again, and what happens to damaged files."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.faultpeer import ScriptedArchive, Stored, in_front_of, small_study
from tests.faultpeer.retrieves import failing
from tests.peers.process import HOST, Address, free_port
from tests.proxy.command import program, write_config
from tests.proxy.openfiles import open_below
from tests.proxy.retrieved import RAW, Answer, digests, expected, get, kept, path_of, read_parts
from tests.proxy.running import PROXY_AET, Proxy, settings

pytestmark = pytest.mark.usefixtures("nothing_left")


@contextlib.asynccontextmanager
async def warm(study: list[Stored], storage: Path, **more: object) -> AsyncIterator[tuple[ScriptedArchive, Proxy]]:
    """Run a proxy that has a study in its cache."""
    options = {"enableCache": True, "storagePath": str(storage), **more}
    async with in_front_of(study, use_cget=True, **options) as (archive, proxy):
        await get(proxy, path_of(study[0].sample, "study"))
        await kept(proxy.http)
        archive.requests.clear()
        yield archive, proxy


def files_in(storage: Path) -> list[Path]:
    """Return the files of the cache."""
    return sorted(storage.glob("cache/*/*/*.dcm"))


async def test_one_instance_as_a_file(tmp_path: Path) -> None:
    study = small_study()
    async with warm(study, tmp_path) as (archive, proxy):
        answer = await get(proxy, path_of(study[0].sample) + RAW)
        assert answer.headers["X-Cache"] == "HIT"
        assert answer.content_type == f"application/dicom; transfer-syntax={study[0].sample.transfer_syntax_uid}"
        assert int(answer.headers["Content-Length"]) == len(answer.body)
        assert "Transfer-Encoding" not in answer.headers
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert {each.strip() for each in answer.headers["Vary"].split(",")} >= {"Accept"}
        assert digests([answer.body]) == expected([study[0].sample])
        assert archive.requests == []


@pytest.mark.parametrize("level", ["study", "series", "instance"])
async def test_multipart_has_the_same_form_as_what_arrives(level: str, tmp_path: Path) -> None:
    """Boundary, part headers and Content-Location; and a length, since it is known."""
    study = small_study()
    path = path_of(study[0].sample, level)
    wanted = [stored for stored in study if path_of(stored.sample, level) == path]
    async with in_front_of(study, use_cget=True, enableCache=False) as (_, proxy):
        cold = await get(proxy, path)
    async with warm(study, tmp_path) as (archive, proxy):
        answer = await get(proxy, path)
        assert answer.headers["X-Cache"] == "HIT"
        assert int(answer.headers["Content-Length"]) == len(answer.body)
        assert digests(answer.files) == expected(stored.sample for stored in wanted)
        places = {part.location.partition("/studies")[2]: part.content for part in cold.parts}
        assert {part.location.partition("/studies")[2]: part.content for part in answer.parts} == places
        assert archive.requests == []


@pytest.mark.parametrize("uvloop", [True, False])
async def test_on_either_event_loop_a_slow_client_gets_it_whole(uvloop: bool, tmp_path: Path) -> None:
    """sendfile goes around the event loop: it has to wait for the client, and must not overtake what was written."""
    study = small_study(2, 4, side=512)
    destination = Address(PROXY_AET, free_port())
    async with ScriptedArchive(study, destination=destination) as archive:
        options = settings(archive.address, use_cget=True, enableCache=True, storagePath=str(tmp_path / "storage"))
        config = write_config(tmp_path, options)
        async with (
            program("run", "--config", str(config), folder=tmp_path, uvloop=uvloop) as proxy,
            aiohttp.ClientSession(proxy.url, read_bufsize=4096) as http,
        ):
            path = path_of(study[0].sample, "study")
            for cache in ("MISS", "HIT"):
                async with http.get(path) as response:
                    body = b""
                    while piece := await response.content.read(100_000):
                        body += piece
                        await asyncio.sleep(0.001)
                    assert response.headers["X-Cache"] == cache
                    parts = read_parts(body, response.headers["Content-Type"])
                assert digests(part.content for part in parts) == expected(stored.sample for stored in study)
                await asyncio.sleep(0.2)
            results = await asyncio.gather(*(http.get(path_of(stored.sample) + RAW) for stored in study * 3))
            for stored, response in zip(study * 3, results, strict=True):
                assert digests([await response.read()]) == expected([stored.sample])


async def test_a_client_that_leaves_midway_leaves_no_file_open(tmp_path: Path) -> None:
    study = small_study(1, 16, side=1024)  # more than fits into the buffers of a connection
    async with warm(study, tmp_path) as (_, proxy):
        for _ in range(3):
            reader, writer = await asyncio.open_connection(HOST, int(proxy.url.rpartition(":")[2]), limit=1000)
            writer.write(f"GET {path_of(study[0].sample, 'study')} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            await reader.readexactly(500)
            assert list(tmp_path.glob("spool/*/*"))
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        async with asyncio.timeout(5):
            while open_below(tmp_path) or list(tmp_path.glob("spool/*")):
                await asyncio.sleep(0.01)


# --- ETag ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "multipart", "study"])
async def test_what_the_client_has_is_not_sent_again(form: str, tmp_path: Path) -> None:
    study = small_study()
    path = path_of(study[0].sample, "study" if form == "study" else "instance") + (RAW if form == "raw" else "")
    async with warm(study, tmp_path) as (_, proxy):
        first = await get(proxy, path)
        etag = first.headers["ETag"]
        assert etag.startswith('"' if form == "raw" else 'W/"')
        assert study[0].sample.sop_instance_uid not in etag
        for known in (etag, f'"other", {etag}', "*", etag.removeprefix("W/")):
            again = await get(proxy, path, **{"If-None-Match": known})
            assert (again.status, again.body) == (304, b"")
            assert again.headers["ETag"] == etag
            assert again.headers["X-Cache"] == "HIT"
        changed = await get(proxy, path, **{"If-None-Match": '"other"'})
        assert (changed.status, changed.headers["ETag"]) == (200, etag)


async def test_other_contents_have_another_etag(tmp_path: Path) -> None:
    study = small_study()
    async with warm(study, tmp_path) as (_, proxy):
        etags = [(await get(proxy, path_of(stored.sample) + RAW)).headers["ETag"] for stored in study]
        assert len(set(etags)) == len(study)


# --- damage --------------------------------------------------------------------------------------------------


def remove(file: Path) -> None:
    """Delete it."""
    file.unlink()


def cut_short(file: Path) -> None:
    """Leave its first half."""
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    """Change a byte of the pixels, and say that nothing happened."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


@pytest.mark.parametrize("damage", [remove, cut_short, flip])
@pytest.mark.parametrize("level", ["study", "instance"])
async def test_a_damaged_file_is_fetched_again(damage: object, level: str, tmp_path: Path) -> None:
    """Never a wrong byte: what is found before the answer begins costs a retrieval, later a cut connection."""
    study = small_study(1, 3)
    path = path_of(study[0].sample, level) + (RAW if level == "instance" else "")
    async with warm(study, tmp_path) as (archive, proxy):
        for file in files_in(tmp_path):
            damage(file)  # type: ignore[operator]
        wanted = study if level == "study" else study[:1]
        for _ in range(len(study) + 1):
            try:
                answer = await get(proxy, path)
            except aiohttp.ClientPayloadError:
                continue
            files = answer.files if level == "study" else [answer.body]
            assert digests(files) == expected(stored.sample for stored in wanted)
            break
        else:
            pytest.fail("it was never mended")
        assert archive.requests


async def test_a_storage_that_cannot_be_used_is_no_reason_not_to_serve(caplog: pytest.LogCaptureFixture) -> None:
    study = small_study()
    async with in_front_of(study, use_cget=True, enableCache=True, storagePath="/dev/null/none") as (_, proxy):
        for _ in range(2):
            answer = await get(proxy, path_of(study[0].sample, "study"))
            assert answer.headers["X-Cache"] == "MISS"
            assert digests(answer.files) == expected(stored.sample for stored in study)
        async with proxy.http.get("/status") as response:
            cache = (await response.json())["cache"]
    assert cache["enabled"] is False
    assert "/dev/null/none" in cache["failure"]
    assert [record for record in caplog.records if "going on without storage" in record.getMessage()]


async def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """As the operating system tells it, by a limit on the size of files: all is served, and the failure is shown."""
    study = small_study(1, 3, side=1024)
    destination = Address(PROXY_AET, free_port())
    async with ScriptedArchive(study, destination=destination) as archive:
        options = settings(archive.address, use_cget=True, enableCache=True, storagePath=str(tmp_path / "storage"))
        config = write_config(tmp_path, options)
        async with (
            program("run", "--config", str(config), folder=tmp_path) as proxy,
            aiohttp.ClientSession(proxy.url) as http,
        ):

            async def fetch(level: str) -> str:
                async with http.get(path_of(study[0].sample, level)) as response:
                    answer = await Answer.read(response)
                assert digests(answer.files) == expected(stored.sample for stored in study)
                return answer.headers["X-Cache"]

            async def failure() -> object:
                await asyncio.sleep(0.2)  # it is noted when the retrieval has been seen through
                async with http.get("/status") as response:
                    return (await response.json())["cache"]["failure"]

            unlimited = resource.prlimit(proxy.process.pid, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
            assert [await fetch("series"), await fetch("series")] == ["MISS", "MISS"]
            assert await failure() == "the spool cannot be written: File too large"
            resource.prlimit(proxy.process.pid, resource.RLIMIT_FSIZE, unlimited)
            assert await fetch("study") == "MISS"
            assert await failure() is None
            assert await fetch("study") == "HIT"


async def test_a_folder_that_another_proxy_has(tmp_path: Path) -> None:
    """Each would take the other's files away: the second does not start."""
    first = write_config(tmp_path, settings(Address("NOBODY", free_port()), use_cget=True), "first.json")
    second = write_config(tmp_path, settings(Address("NOBODY", free_port()), use_cget=True), "second.json")
    async with program("run", "--config", str(first), folder=tmp_path):
        from tests.proxy.command import command

        ended = await command("run", "--config", str(second), cwd=tmp_path)
    assert ended.code == 3
    assert "another proxy uses the storage (key: storagePath)" in ended.err


# --- what the archive cannot send ----------------------------------------------------------------------------


async def test_the_rest_is_answered_with_206_out_of_the_cache(tmp_path: Path) -> None:
    """The first client's answer is cut, since it had begun; who comes later is told before the first byte."""

    study = small_study(1, 4)
    options = {"enableCache": True, "storagePath": str(tmp_path)}
    async with in_front_of(study, failing(study[1:2]), use_cget=True, **options) as (archive, proxy):
        path = path_of(study[0].sample, "series")
        with pytest.raises(aiohttp.ClientPayloadError):
            await get(proxy, path)
        await kept(proxy.http)
        archive.requests.clear()
        for _ in range(2):
            answer = await get(proxy, path)
            assert answer.status == 206
            assert answer.headers["X-Cache"] == "HIT"
            assert "1 of the instances could not be sent" in answer.headers["Warning"]
            parts = read_parts(answer.body, answer.content_type)
            assert digests(part.content for part in parts) == expected(s.sample for s in (study[0], *study[2:]))
        assert archive.requests == []
        (await get(proxy, path_of(study[1].sample) + RAW)).failure(502)
        assert set(archive.retrieves) == {"IMAGE"}, "the series is not fetched again for the one that is missing"


async def test_purge_over_http(tmp_path: Path) -> None:
    study = small_study()
    async with warm(study, tmp_path) as (archive, proxy):
        sample = study[0].sample
        async with proxy.http.delete(f"/cache/studies/{sample.study_uid}") as response:
            purged = await response.json()
            assert purged["instances"] == 4
            assert purged["bytes"] > sum(stored.sample.size for stored in study)
        assert files_in(tmp_path) == []
        assert (await get(proxy, path_of(sample) + RAW)).headers["X-Cache"] == "MISS"
        await kept(proxy.http)
        assert len(archive.requests) == 1
        async with proxy.http.delete("/cache") as response:
            assert (await response.json())["instances"] == 2
        async with proxy.http.delete("/cache/studies/none") as response:
            answer = await Answer.read(response)
            answer.failure(400)


def test_the_checksum_of_the_samples_is_of_their_bytes() -> None:
    """The digests that these tests compare with are those of the data sets as the archive holds them."""
    for stored in small_study():
        assert hashlib.sha256(stored.whole).hexdigest() == stored.sample.sha256
