"""How the proxy says that it fares, to load balancers, to programs and to people, and that it says what is true."""

from __future__ import annotations

import asyncio
import html
import json
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from proxy import __version__
from proxy.archive.peers import archive as peers
from proxy.demo.archive import DemoArchive
from proxy.web.page import _duration
from tests.peers.orthanc import Orthanc
from tests.peers.process import HOST, Address, free_port
from tests.proxy.finding import scripted, study
from tests.proxy.running import Proxy, proxy_for


@pytest.fixture
async def up() -> AsyncIterator[Address]:
    """An archive that answers, and holds nothing."""
    async with DemoArchive(None) as archive:
        yield Address("DEMO", archive.port)


@pytest.fixture
def down() -> Address:
    """An archive that is not there."""
    return Address("DOWN", free_port())


@pytest.fixture
def asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of an archive does not hold, so that no test waits until it does no more."""
    monkeypatch.setattr(peers, "HEALTH_SECONDS", 0.0)


async def state_of(proxy: Proxy, path: str = "/health") -> tuple[int, dict[str, Any]]:
    """GET a state."""
    async with proxy.http.get(path) as response:
        return response.status, await response.json(content_type=None)


# --- /ping, /health, /status ---------------------------------------------------------------------------------


async def test_ping(down: Address) -> None:
    """It tells that the process answers, whatever its archives do."""
    async with proxy_for(down) as proxy, proxy.http.get("/ping") as response:
        assert (response.status, response.content_type) == (200, "text/plain")
        assert await response.text() == "pong"


async def test_health_follows_the_archive(asked_each_time: None, down: Address) -> None:
    """503 while it is down, from the start, and 200 as soon as it is up; down again, 503 again."""
    async with proxy_for(down) as proxy:
        for _ in range(2):
            status, state = await state_of(proxy)
            assert (status, state["status"]) == (503, "unhealthy")
            assert state["archives"][0]["up"] is False
            assert "Connection refused" in state["archives"][0]["lastError"]
            async with DemoArchive(None, ae_title=down.aet, port=down.port):
                status, state = await state_of(proxy)
                assert (status, state["status"]) == (200, "healthy")
                assert state["archives"][0]["up"] is True


async def test_a_request_that_succeeds_makes_it_healthy_at_once(down: Address) -> None:
    async with proxy_for(down) as proxy:
        assert (await state_of(proxy))[0] == 503
        async with DemoArchive(None, ae_title=down.aet, port=down.port):
            async with proxy.http.get("/studies") as response:
                assert response.status == 200
            assert (await state_of(proxy))[0] == 200


async def test_one_archive_that_answers_is_enough(up: Address, down: Address) -> None:
    async with proxy_for(down, up) as proxy:
        status, state = await state_of(proxy)
        assert (status, state["status"]) == (200, "healthy")
        assert [archive["up"] for archive in state["archives"]] == [False, True]
    async with proxy_for(down, Address("DOWN2", free_port())) as proxy:
        assert (await state_of(proxy))[0] == 503


async def test_an_archive_that_says_nothing_is_down() -> None:
    """It accepts the connection and no more. Many who ask at once cost no more time than one."""
    with socket.create_server((HOST, 0)) as silent:
        address = Address("SILENT", silent.getsockname()[1])
        async with proxy_for(address, peer={"timeouts": {"associate": 0.2}}) as proxy:
            async with asyncio.timeout(3):
                states = await asyncio.gather(*(state_of(proxy) for _ in range(5)))
            assert {status for status, _ in states} == {503}


async def test_health_does_not_wait_for_a_free_association(asked_each_time: None) -> None:
    """With every association in use, what was known last is what is said."""
    go_on = asyncio.Event()

    async def slow(_: Dataset) -> AsyncGenerator[Dataset, None]:
        await go_on.wait()
        yield study()

    async with scripted(slow) as archive, proxy_for(archive.address, maxAssociations=1) as proxy:
        assert (await state_of(proxy))[0] == 200
        async with asyncio.TaskGroup() as group:
            search = group.create_task(state_of(proxy, "/studies"))
            while not archive.searches:
                await asyncio.sleep(0.01)
            async with asyncio.timeout(2):
                code, state = await state_of(proxy)
            assert code == 200
            assert state["archives"][0]["associations"] == state["archives"][0]["maxAssociations"] == 1
            go_on.set()
        assert search.result()[0] == 200


async def test_status(up: Address, down: Address) -> None:
    """The fields that programs of the field read, with true values; 200 also when no archive answers."""
    before = datetime.now(UTC)
    async with proxy_for(up) as proxy:
        code, state = await state_of(proxy, "/status")
        assert (code, state["status"]) == (200, "healthy")
        assert before.timestamp() - 0.001 <= datetime.fromisoformat(state["timestamp"]).timestamp()
        assert state["timestamp"].endswith("Z")
        assert state["version"] == __version__
        assert state["proxyMode"] == "dimse"
        assert 0 <= state["uptime"] < 30
        assert 10e6 < state["memory"]["rss"] <= state["memory"]["maxRss"] < 4e9
        assert state["cache"] == {"enabled": False, "failure": None}
        assert (state["retrievals"], state["storesRefused"], state["callersRejected"]) == (0, 0, 0)
        (archive,) = state["archives"]
        assert archive == {
            "name": up.aet,
            "aet": up.aet,
            "up": True,
            "associations": 0,
            "maxAssociations": 4,
            "lastError": None,
            "breaker": "closed",
            "retrySeconds": None,
        }
        assert (await state_of(proxy, "/health"))[1].keys() == state.keys()
    async with proxy_for(down) as proxy:
        code, state = await state_of(proxy, "/status")
        assert (code, state["status"]) == (200, "unhealthy")


async def test_health_leaves_no_connection_open(asked_each_time: None, up: Address, down: Address) -> None:
    """Asked a hundred times, as load balancers do."""
    async with proxy_for(up, down) as proxy:
        await state_of(proxy)
        await asyncio.sleep(0.1)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(100):
            await state_of(proxy)
        await asyncio.sleep(0.1)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


# --- POST /dimse/echo ----------------------------------------------------------------------------------------


async def post(proxy: Proxy, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    """POST to /dimse/echo."""
    async with proxy.http.post("/dimse/echo", data=body, headers=headers) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def test_echo(orthanc: Orthanc, down: Address) -> None:
    """To the archive of that index, the first where none is given."""
    where = {"aet": orthanc.address.aet, "ip": HOST, "port": orthanc.address.port}
    async with proxy_for(orthanc.address, down) as proxy:
        for body in (b'{"peerIndex": 0}', b"{}", b""):
            status, answer = await post(proxy, body)
            assert status == 200
            assert 0 < answer.pop("responseTime") < 5000
            assert answer == {"success": True, "message": "C-ECHO succeeded", "peer": where}
        status, answer = await post(proxy, b'{"peerIndex": 1}')
        assert status == 200
        assert answer.pop("responseTime") >= 0
        assert answer == {
            "success": False,
            "error": f"DOWN: no connection to {HOST} port {down.port}: Connection refused",
            "peer": {"aet": "DOWN", "ip": HOST, "port": down.port},
        }


@pytest.mark.parametrize("index", ["2", "-1", "1.0", '"0"', "true", "null", "[]", "1" * 5000, "1e400"])
async def test_an_index_that_is_none(up: Address, down: Address, index: str) -> None:
    async with proxy_for(up, down) as proxy:
        status, answer = await post(proxy, b'{"peerIndex": %s}' % index.encode())
        assert status == 400
        assert answer["statusCode"] == 400
        assert "peerIndex" in answer["error"]


@pytest.mark.parametrize(
    "body",
    [b"?", b"[]", b"0", b"null", b'"peerIndex"', b'{"peerIndex": 0', b"\xff\xfe", b"[" * 60_000],
    ids=lambda body: repr(body[:12]),
)
async def test_a_body_that_is_no_object(up: Address, body: bytes) -> None:
    async with proxy_for(up) as proxy:
        status, answer = await post(proxy, body)
        assert (status, answer["error"]) == (400, 'the body must be JSON such as {"peerIndex": 0}')


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/json; charset=utf-7", "application/json; charset=nonsense"]
)
async def test_the_content_type_does_not_matter(up: Address, kind: str) -> None:
    async with proxy_for(up) as proxy:
        status, answer = await post(proxy, b'{"peerIndex": 0}', **{"Content-Type": kind})
        assert (status, answer["success"]) == (200, True)


async def test_a_body_that_is_too_large(up: Address) -> None:
    """Refused, whether its length was told beforehand or not."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 10_000

    async with proxy_for(up) as proxy:
        for body in (b" " * 200_000, pieces()):
            async with proxy.http.post("/dimse/echo", data=body) as response:
                assert response.status == 413
                assert (await response.json())["statusCode"] == 413


# --- GET / ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


async def page_of(proxy: Proxy) -> tuple[str, Page]:
    """GET / as a browser does."""
    async with proxy.http.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        text = await response.text()
        return text, Page(text)


async def test_the_page_tells_the_state(up: Address, down: Address) -> None:
    async with proxy_for(up, down) as proxy:
        _, page = await page_of(proxy)
        assert re.search(rf"Version {re.escape(__version__)}, mode dimse, up 0 min \d+ s\. It is healthy", page.text)
        assert re.search(r"DEMO\s*DEMO\s*answers\s*0 of 4\s*none", page.text)
        assert re.search(r"DOWN\s*DOWN\s*does not answer\s*0 of 4\s*DOWN: no connection to", page.text)


async def test_the_page_needs_nothing_from_elsewhere(up: Address) -> None:
    """No script, no picture, no font, no frame; every link leads to the proxy itself."""
    async with proxy_for(up) as proxy:
        text, page = await page_of(proxy)
        assert "://" not in text
        assert "url(" not in text
        assert not {"script", "img", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
        links = [value for _, name, value in page.attributes if name in ("href", "src", "action")]
        assert links
        for link in links:
            assert re.match(r"/(?!/)", link)
            async with proxy.http.get(link) as response:
                assert response.status == 200
        assert not [name for _, name, _ in page.attributes if name.startswith("on")]


async def test_names_cannot_break_out_of_the_page(down: Address) -> None:
    """What the configuration names is text, whatever it holds."""
    name = "<script>alert(1)</script>\"'&amp;</td>"
    address = Address("<b>A&'\"", down.port)
    async with proxy_for(address, peer={"name": name}) as proxy:
        text, page = await page_of(proxy)
        assert not {"script", "b"} & set(page.tags)
        assert text.count(html.escape(name)) == 2  # its name, and its last error
        assert name in page.text
        assert address.aet in page.text
        assert json.loads(await (await proxy.http.get("/status")).text())["archives"][0]["name"] == name


def test_durations() -> None:
    texts = {0.9: "0 min 0 s", 61: "1 min 1 s", 3600: "1 h 0 min", 86399: "23 h 59 min", 90000.5: "1 d 1 h"}
    assert {seconds: _duration(seconds) for seconds in texts} == texts
