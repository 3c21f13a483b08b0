"""What every route has in common: unknown paths, wrong methods, failures of every kind, and answers cut midway."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest

from proxy import PRODUCT
from proxy.app import ROUTES
from proxy.demo.archive import DemoArchive
from proxy.dicomweb import multipart
from proxy.web import health
from tests.corpus import Corpus
from tests.peers.process import HOST, Address, free_port
from tests.proxy.finding import failing, giving, scripted, study
from tests.proxy.running import Proxy, proxy_for
from tests.proxy.test_cors import located

SECRET = "Doe^Jane"
EXPECTING = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: nonsense"


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy whose archive is not there: nothing here asks one."""
    async with proxy_for(Address("NOBODY", free_port())) as proxy:
        yield proxy


async def error(proxy: Proxy, method: str, path: str) -> tuple[int, dict[str, Any]]:
    """Send a request that must fail with a JSON answer of the one form that errors have."""
    async with proxy.http.request(method, path) as response:
        assert response.content_type == "application/json"
        answer = await response.json()
        assert set(answer) == {"error", "statusCode", "timestamp"}
        assert answer["statusCode"] == response.status
        assert datetime.fromisoformat(answer["timestamp"]).utcoffset() is not None
        return response.status, answer


async def raw(proxy: Proxy, request: str) -> bytes:
    """Send the text of a request, and read until the end. Raises ConnectionResetError for a reset."""
    loop = asyncio.get_running_loop()
    pieces: list[bytes] = []
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, (HOST, int(proxy.url.rpartition(":")[2])))
        await loop.sock_sendall(client, request.encode())
        while piece := await loop.sock_recv(client, 65536):
            pieces.append(piece)
    return b"".join(pieces)


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as an error."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# --- routes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nowhere", "/studies/1.2/nowhere", "/dimse", "/dimse//", "/..%2f..%2fetc/passwd"])
async def test_an_unknown_path(proxy: Proxy, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        status, answer = await error(proxy, method, path)
        assert (status, answer["error"]) == (404, "Not Found")


@pytest.mark.parametrize("path", sorted({located(path) for _, path, _ in ROUTES}))
async def test_a_wrong_method(proxy: Proxy, path: str) -> None:
    """405, and which methods there are, in the header and in words."""
    right = {each for each, other, _ in ROUTES if located(other) == path}
    for wrong in {"GET", "POST", "PUT", "DELETE", "PATCH"} - right:
        async with proxy.http.request(wrong, path) as response:
            assert response.status == 405
            assert response.headers["Allow"] == ", ".join(sorted({*right, "OPTIONS"}))
            assert (await response.json())["error"].endswith(f"allowed: {response.headers['Allow']}")


async def test_no_answer_tells_a_version(proxy: Proxy) -> None:
    """Neither of the proxy nor of what it is made with: those without credentials get answers too."""
    for method, path in (
        ("GET", "/"),
        ("GET", "/nowhere"),
        ("OPTIONS", "/studies"),
        ("GET", "/studies"),
        ("HEAD", "/"),
    ):
        async with proxy.http.request(method, path) as response:
            assert response.headers["Server"] == PRODUCT
    for request in (EXPECTING, "nonsense"):
        head = (await raw(proxy, f"{request}\r\n\r\n")).partition(b"\r\n\r\n")[0].decode()
        assert re.findall("(?im)^server: (.*?)\r?$", head) == [PRODUCT]


async def test_head_starts_nothing(samples: Corpus) -> None:
    """HEAD of a study would retrieve all of it for the sake of some headers: it is no method of any resource."""
    async with scripted(giving(study())) as archive, proxy_for(archive.address, use_cget=True) as proxy:
        await asyncio.sleep(0.1)  # the greeting
        archive.most = 0
        for _, path, _ in ROUTES:
            async with proxy.http.head(located(path)) as response:
                assert response.status == 405
                assert {"GET", "POST", "DELETE"} & set(response.headers["Allow"].split(", "))
                assert await response.read() == b""
        assert archive.most == 0


async def test_no_route_is_missing_from_the_page(proxy: Proxy) -> None:
    """Every path of `ROUTES` leads somewhere, and not to the handler of another."""
    for method, path, _ in ROUTES:
        async with proxy.http.request(method, located(path)) as response:
            assert response.status not in (404, 405, 500), path
    assert len({(method, located(path)) for method, path, _ in ROUTES}) == len(ROUTES)


# --- failures ------------------------------------------------------------------------------------------------


async def test_a_failure_of_the_proxys_own(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 without a word of what it was; all of that is in the log. The connection and the proxy go on."""

    async def broken(_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(health, "status_of", broken)
    for path in ("/status", "/health"):
        status, answer = await error(proxy, "GET", path)
        assert (status, answer["error"]) == (500, "the proxy failed for a reason of its own; its log says more")
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in logged] == ["/status failed", "/health failed"]
    assert all(record.exc_info and record.exc_info[0] is RuntimeError for record in logged)
    async with proxy.http.get("/ping") as response:
        assert response.status == 200


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_failure_of_the_proxys_own_midway(
    samples: Corpus, version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer that has begun is cut by a reset, and no second one follows it on the connection."""

    def broken(_: str) -> bytes:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(multipart, "closing", broken)
    async with (
        DemoArchive(samples.folder) as archive,
        proxy_for(Address("DEMO", archive.port), use_cget=True) as proxy,
    ):
        with pytest.raises(ConnectionResetError):
            await raw(proxy, f"GET /studies/{samples.study_uids[0]} HTTP/{version}\r\nHost: {HOST}\r\n\r\n")
    assert errors_in(caplog) == ["/studies/{study} failed"]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_archive_that_fails_midway(version: str, caplog: pytest.LogCaptureFixture) -> None:
    """A search whose answer has begun is cut, and the log says why: that is no error of the proxy."""
    studies = [study(number, StudyDescription="x" * 60) for number in range(500)]
    async with scripted(failing(0xC001, *studies)) as archive, proxy_for(archive.address) as proxy:
        with pytest.raises(ConnectionResetError):
            await raw(proxy, f"GET /studies HTTP/{version}\r\nHost: {HOST}\r\n\r\n")
    assert any("cut short" in record.getMessage() for record in caplog.records)
    assert not errors_in(caplog)
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_client_that_leaves(caplog: pytest.LogCaptureFixture) -> None:
    """It is nobody's error, whether it leaves before the answer or while it is being written."""
    studies = [study(number, StudyDescription="x" * 60) for number in range(5000)]
    async with scripted(giving(*studies)) as archive, proxy_for(archive.address) as proxy:
        for wait in (0.0, 0.1, 0.3):
            _, writer = await asyncio.open_connection(HOST, int(proxy.url.rpartition(":")[2]))
            writer.write(f"GET /studies HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            await writer.drain()
            await asyncio.sleep(wait)
            writer.transport.abort()
        async with asyncio.timeout(5):
            while archive.server is not None and len(archive.searches) < 2:
                await asyncio.sleep(0.01)
        async with proxy.http.get("/ping") as response:
            assert response.status == 200
    assert not errors_in(caplog)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    "request_text",
    ["GET /studies?PatientName=Doe^Jane X HTTP/1.1", "GET / HTTP/1.1\r\nHost: a\r\nHost: b", "Doe^Jane"],
)
async def test_a_request_that_is_no_http(proxy: Proxy, request_text: str) -> None:
    """400, and the connection ends."""
    answer = await raw(proxy, f"{request_text}\r\n\r\n")
    assert answer.startswith(b"HTTP/1.") and b" 400 " in answer.split(b"\r\n")[0]


async def test_errors_are_valid_json_whatever_they_name(proxy: Proxy) -> None:
    """A parameter's name is repeated in the answer; it cannot break out of it."""
    async with proxy.http.get("/studies", params={'"}<script>\u0000é': "1"}) as response:
        assert response.status == 400
        assert response.content_type == "application/json"
        json.loads(await response.read())
