"""What a client gets of a scripted archive's study: all of it, a part of it, or a visible failure."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest

from tests.corpus import data_set_bytes
from tests.faultpeer.stored import Stored
from tests.proxy.retrieved import Answer, digests, expected, get, path_of, read_parts
from tests.proxy.running import Proxy


async def get_study(proxy: Proxy, study: Sequence[Stored], level: str = "study") -> Answer:
    """Retrieve the study, or the series or instance, of the first of these."""
    return await get(proxy, path_of(study[0].sample, level))


async def assert_whole(proxy: Proxy, study: Sequence[Stored], level: str = "study") -> None:
    """Fail unless a client that asks for these gets them all, with a proper end."""
    answer = await get_study(proxy, study, level)
    assert digests(answer.files) == expected(stored.sample for stored in study)


def data_sets(answer: Answer) -> list[str]:
    """Return the SHA-256 of the data set of each part, in ascending order, whatever its UIDs are."""
    return sorted(hashlib.sha256(data_set_bytes(file)).hexdigest() for file in answer.files)


async def assert_cut(proxy: Proxy, study: Sequence[Stored], level: str = "study") -> None:
    """Fail unless an answer begins, and a client sees that it is not whole."""
    async with proxy.http.get(path_of(study[0].sample, level)) as response:
        assert response.status == 200, await response.read()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def assert_partial(proxy: Proxy, study: Sequence[Stored], missing: int) -> None:
    """Fail unless the answer is 206, well-formed, has exactly these, and says how many are missing."""
    answer = await get_study(proxy, study)
    assert answer.status == 206, answer.body
    assert re.fullmatch(rf'299 \S+ "[^"]*\b{missing}\b[^"]*"', answer.headers["Warning"]), answer.headers["Warning"]
    files = [part.content for part in read_parts(answer.body, answer.content_type)]
    assert digests(files) == expected(stored.sample for stored in study)


async def status_of(proxy: Proxy) -> dict[str, Any]:
    """Return what `/status` says."""
    async with proxy.http.get("/status") as response:
        state: dict[str, Any] = await response.json()
        return state


async def associations_of(proxy: Proxy) -> int:
    """Return how many associations the proxy has to its first archive."""
    return int((await status_of(proxy))["archives"][0]["associations"])


async def until_free(proxy: Proxy, kept: int = 0, seconds: float = 3) -> None:
    """Wait until the proxy has no more associations to its first archive than `kept`."""
    async with asyncio.timeout(seconds):
        while await associations_of(proxy) > kept:
            await asyncio.sleep(0.01)
