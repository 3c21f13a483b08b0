"""A client that is much slower than the archive: its gigabytes wait in the spool, or at the archive, not in memory."""

from __future__ import annotations

import time
from pathlib import Path

import aiohttp
import pytest

from proxy.archive.spool import spool
from tests.faultpeer import ScriptedArchive
from tests.hardening.watching import MIB, watched
from tests.proxy.retrieved import path_of
from tests.proxy.test_wado_clients import NO_STORAGE, Sent, large_study, read_slowly

SPOOL_BOUND = spool.KEEP + spool.UNWRITTEN_LIMIT
"""Bytes of a retrieval that the spool may have in memory; less where it has no files."""

MOST_BEYOND = 16 * MIB
PER_SECOND = MIB


async def read_to_the_end(response: aiohttp.ClientResponse) -> tuple[int, bytes]:
    """Read as fast as it comes; returns the number of bytes, and the last ones."""
    size, end = 0, b""
    async for piece in response.content.iter_any():
        size += len(piece)
        end = (end + piece)[-100:]
    return size, end


async def slow_reader(folder: Path, *, use_cget: bool, with_storage: bool, instances: int, seconds: float) -> None:
    """Let a client take so many instances of 2 MB at 1 MiB/s for so long, and then the rest."""
    sent = Sent()
    study = large_study(instances, sent)
    path = path_of(study[0].sample, "study")
    more = {} if with_storage else {"storagePath": NO_STORAGE}
    async with (
        ScriptedArchive(study) as archive,
        watched(archive, folder, use_cget=use_cget, **more) as site,
    ):
        async with site.proxy.http.get("/studies/1.2.3") as response:
            assert response.status == 404
        with site.little_memory(SPOOL_BOUND + MOST_BEYOND):
            begun = time.monotonic()
            async with site.proxy.http.get(path) as response:
                assert response.status == 200
                body = bytearray()
                await read_slowly(response, body, per_second=PER_SECOND, seconds=seconds)
                assert len(body) <= PER_SECOND * (time.monotonic() - begun) + 4 * MIB
                whole = sum(stored.sample.size for stored in study)
                assert (sent.size >= whole) == with_storage, "it waits for the client where it has to, and only there"
                size, end = await read_to_the_end(response)
        assert len(body) + size > whole
        assert end.endswith(b"--\r\n"), "it is whole"


@pytest.mark.parametrize(("use_cget", "with_storage"), [(False, True), (True, False)], ids=["move", "get, no storage"])
async def test_a_reader_of_1_mib_a_second_costs_no_memory(use_cget: bool, with_storage: bool, tmp_path: Path) -> None:
    """160 MB, of which nearly all waits; a test that is run on demand has 4 GiB."""
    await slow_reader(tmp_path, use_cget=use_cget, with_storage=with_storage, instances=80, seconds=2)


@pytest.mark.long
@pytest.mark.parametrize("with_storage", [True, False], ids=["storage", "no storage"])
async def test_4_gib_to_a_reader_of_1_mib_a_second(use_cget: bool, with_storage: bool, tmp_path: Path) -> None:
    """At that pace for two minutes, and then as fast as it goes."""
    await slow_reader(tmp_path, use_cget=use_cget, with_storage=with_storage, instances=2048, seconds=120)
