"""Attacks by what is sent: requests that two programs may read in two ways, and what is no HTTP at all.

For each: one answer that says no, or none, within a second; nothing of it gets anywhere; the next client is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from proxy import PRODUCT
from tests.peers.nginx import Nginx
from tests.peers.process import HOST, Address, free_port
from tests.proxy.attacks import (
    CHUNKED,
    CHUNKS,
    CLIMBING,
    END,
    GET,
    HEADS,
    LENGTHS,
    LINE_BREAKS,
    NO_HTTP,
    ODD,
    PING,
    POST,
    SMUGGLED,
)
from tests.proxy.finding import giving, proxied, study
from tests.proxy.forwarding import Recorder, forward_to, recorder
from tests.proxy.rawhttp import Answer, connected, port_of
from tests.proxy.running import Proxy, proxy_for

T = TypeVar("T")


@pytest.fixture
async def forwarding() -> AsyncIterator[tuple[Recorder, Proxy]]:
    """A proxy in dicomweb mode, and the server behind it, where all can be seen that gets through."""
    async with recorder() as upstream, forward_to(upstream.url) as proxy:
        yield upstream, proxy


async def sent(port: int, data: bytes | str, *, end: bool = False) -> tuple[list[Answer], bool]:
    """Send bytes on a connection of their own; returns the answers, and whether the connection was closed then."""
    async with connected(port) as client:
        await client.send(data)
        if end:
            client.end()
        found = []
        with contextlib.suppress(TimeoutError):
            while (answer := await client.answer(1)) is not None:
                found.append(answer)
        return found, client.closed


async def still_serves(port: int) -> None:
    """Fail unless the next client is served."""
    async with connected(port) as client:
        await client.send(PING)
        answer = await client.answer(1)
        assert answer is not None
        assert answer.body == b"pong"


async def each(table: Mapping[str, T], check: Callable[[T], Awaitable[None]]) -> None:
    """Check each entry of a table; fails with the names of all that are not as they should be."""
    failed: dict[str, str] = {}
    for name, entry in table.items():
        try:
            await check(entry)
        except (AssertionError, TimeoutError) as error:
            failed[name] = f"{type(error).__name__}: {error}"
    assert failed == {}


# --- lengths and heads -----------------------------------------------------------------------------------------


async def refused(upstream: Recorder, proxy: Proxy, data: bytes | str) -> list[Answer]:
    """Send what must be refused: at most one answer, an error of the client's, then the end; nothing gets through."""
    found, closed = await sent(port_of(proxy), data)
    assert closed, f"the connection stays open after {found}"
    assert len(found) <= 1
    assert all(answer.is_error and (400 <= answer.status < 500 or answer.status in (501, 505)) for answer in found)
    assert all(answer.headers["server"] == PRODUCT for answer in found)
    assert upstream.requests == []
    await still_serves(port_of(proxy))
    return found


async def test_a_body_whose_length_is_in_doubt(forwarding: tuple[Recorder, Proxy]) -> None:
    """Neither it nor what follows is taken for a request."""

    async def check(text: str) -> None:
        assert len(await refused(*forwarding, text)) == 1

    await each(LENGTHS, check)


async def test_heads_that_are_not_allowed(forwarding: tuple[Recorder, Proxy]) -> None:
    async def check(text: str) -> None:
        await refused(*forwarding, text + SMUGGLED)

    await each(HEADS, check)


async def test_chunks_that_are_none(forwarding: tuple[Recorder, Proxy]) -> None:
    """A request that has begun to be forwarded is not completed by what follows, which is no request either."""
    upstream, proxy = forwarding

    async def check(text: str) -> None:
        upstream.requests.clear()
        found, closed = await sent(port_of(proxy), text)
        assert closed
        assert [answer.status for answer in found if answer.status != 400] == []
        assert not any(request.whole or "smuggled" in request.line for request in upstream.requests)
        await still_serves(port_of(proxy))

    await each(CHUNKS, check)


async def test_what_is_no_http(forwarding: tuple[Recorder, Proxy]) -> None:
    upstream, proxy = forwarding

    async def check(data: bytes) -> None:
        found, closed = await sent(port_of(proxy), data, end=True)
        assert closed
        assert all(answer.is_error and answer.status in (400, 505) for answer in found)
        assert len(found) <= 1
        assert upstream.requests == []
        await still_serves(port_of(proxy))

    await each(NO_HTTP, check)


async def test_odd_requests_that_are_allowed(forwarding: tuple[Recorder, Proxy]) -> None:
    """Each is one request, with the body that it says, and the next one on the connection is another."""
    upstream, proxy = forwarding

    async def check(entry: tuple[str, bytes]) -> None:
        upstream.requests.clear()
        text, body = entry
        found, _ = await sent(port_of(proxy), text + PING)
        assert [answer.status for answer in found] == [200, 200]
        assert found[1].body == b"pong"
        assert upstream.only.target == "/base/studies"
        assert upstream.only.body == body
        assert upstream.only.one("Host") == f"{HOST}:{upstream.port}"

    await each(ODD, check)


async def test_the_absolute_form_of_this_servers_resources() -> None:
    """RFC 9112 3.2.2 wants it accepted; the host in it changes nothing."""
    async with proxied(giving(study())) as (archive, proxy):
        for target, host in (
            ("http://a/studies", "a"),
            ("HTTP://A:80/studies", "a"),
            ("http://a:8080/studies?limit=1", "A:8080"),
        ):
            before = len(archive.searches)
            found, _ = await sent(port_of(proxy), f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n{PING}")
            assert [answer.status for answer in found] == [200, 200]
            assert len(archive.searches) == before + 1
            assert f"http://{host}".encode() in found[0].body


async def test_what_is_altered_at_random(forwarding: tuple[Recorder, Proxy]) -> None:
    """Bytes that are changed, left out, doubled or put in, in requests with and without a body: no failure, no leak."""
    _, proxy = forwarding
    chance = random.Random(1)
    originals = [f"{CHUNKED}5\r\nhello\r\n{END}", f"{POST}Content-Length: 5\r\n\r\nhello", f"{GET}Accept: a/b\r\n\r\n"]
    marks = b"\r\n\t\0 :;,\"'\\/%?#@-+=_0123456789abcdef\x0b\x0c\x7f\x80\xff"
    for _ in range(150):
        data = bytearray(chance.choice(originals).encode())
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[place] = chance.choice(marks)
                case 1:
                    del data[place]
                case 2:
                    data[place:place] = data[place : place + chance.randint(1, 20)]
                case _:
                    data.insert(place, chance.choice(marks))
        found, closed = await sent(port_of(proxy), bytes(data), end=True)
        assert closed, bytes(data)
        assert all(answer.status < 500 or answer.status in (501, 502, 505) for answer in found), bytes(data)
    await still_serves(port_of(proxy))


async def test_a_trace_shows_nothing() -> None:
    """In neither mode: a page's script would read what the browser keeps from it."""
    trace = "TRACE {} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nCookie: secret\r\n\r\n"
    async with recorder() as upstream, forward_to(upstream.url) as forwarder, proxied(giving()) as (_, proxy):
        for port in map(port_of, (forwarder, proxy)):
            for path in ("/studies", "/ping", "/nowhere"):
                found, _ = await sent(port, trace.format(path))
                assert [answer.status in (404, 405, 501) for answer in found] == [True]
                assert b"secret" not in found[0].body
        assert upstream.requests == []


# --- what comes back -------------------------------------------------------------------------------------------


async def test_line_breaks_in_what_comes_back() -> None:
    """Values of parameters and headers never become headers of an answer."""
    uids = "/studies/1.2/series/1.3/instances/1.4"
    targets = [
        "/studies?PatientName={}",
        "/studies?{}=1",
        "/studies?limit={}",
        "/studies?accept={}",
        "/studies/{}",
        "/studies/1.2?accept={}",
        "/studies/1.2/series/{}/metadata",
        f"{uids}/frames/{{}}",
        f"{uids}/rendered?viewport={{}}",
        f"{uids}/bulkdata/{{}}",
        "/wado?requestType=WADO&studyUID={}&seriesUID=1.3&objectUID=1.4",
        "/wado?requestType=WADO&studyUID=1.2&seriesUID=1.3&objectUID=1.4&contentType={}",
        "/conformance?accept={}",
        "/{}",
        "//{}",
    ]
    async with proxied(giving(study())) as (_, proxy):
        for target in targets:
            for value in LINE_BREAKS:
                (answer,), _ = await sent_once(proxy, target.format(value))
                assert answer.status < 500
                assert "x-evil" not in answer.headers
                assert not any("X-Evil: yes" in each for each in answer.headers.values())
        for name in ("Host", "X-Forwarded-Host", "Accept", "Origin", "Range", "If-None-Match", "Accept-Charset"):
            host = "" if name == "Host" else "Host: a\r\n"
            request = f"GET /conformance HTTP/1.1\r\n{host}{name}: a%0d%0aX-Evil:%20yes\r\nConnection: close\r\n\r\n"
            found, _ = await sent(port_of(proxy), request)
            assert len(found) == 1
            assert b"X-Evil" not in found[0].body
            assert "x-evil" not in found[0].headers


async def sent_once(proxy: Proxy, target: str) -> tuple[list[Answer], bool]:
    """Send one GET request."""
    return await sent(port_of(proxy), f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")


async def test_paths_that_climb(tmp_path: Path) -> None:
    """UIDs name files of the cache: what is no UID is refused, and nothing appears or is read elsewhere."""
    storage = tmp_path / "inner" / "storage"
    nobody = Address("NOBODY", free_port())
    async with proxy_for(nobody, use_cget=True, enableCache=True, storagePath=str(storage)) as proxy:
        before = sorted(path for path in tmp_path.rglob("*") if storage not in path.parents)
        for value in CLIMBING:
            for target in (
                f"/studies/{value}",
                f"/studies/{value}/metadata",
                f"/studies/1.2/series/{value}",
                f"/studies/1.2/series/1.3/instances/{value}",
                f"/studies/1.2/series/1.3/instances/1.4/bulkdata/{value}",
                f"/studies/1.2/series/1.3/instances/1.4/frames/{value}",
                f"/wado?requestType=WADO&studyUID={value}&seriesUID=1.3&objectUID=1.4",
                f"/{value}",
            ):
                found, _ = await sent_once(proxy, target)
                assert len(found) == 1, target
                assert found[0].status in (400, 404, 414, 502), target
                assert b"root:" not in found[0].body
            found, _ = await sent(
                port_of(proxy), f"DELETE /cache/studies/{value} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            )
            assert found[0].status in (400, 404, 405), value
        assert sorted(path for path in tmp_path.rglob("*") if storage not in path.parents) == before
        await still_serves(port_of(proxy))


async def test_nothing_that_is_sent_makes_the_proxy_call_elsewhere() -> None:
    """Addresses in parameters, headers and bodies are never connected to."""
    calls = 0

    async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.close()

    trap = await asyncio.start_server(called, HOST, 0)
    place = f"{HOST}:{trap.sockets[0].getsockname()[1]}"
    url = f"http://{place}/"
    headers = (
        f"Host: {place}",
        f"X-Forwarded-Host: {place}",
        f"X-Original-URL: {url}",
        f"X-Rewrite-URL: {url}",
        f"Forwarded: host={place};for={place}",
        f"Referer: {url}",
        f"Origin: http://{place}",
        f"Destination: {url}",
        f"X-Forwarded-For: {HOST}",
        f"Proxy: {url}",
    )
    async with (
        trap,
        proxied(giving(study())) as (archive, proxy),
        recorder() as upstream,
        forward_to(upstream.url) as other,
    ):
        for port in map(port_of, (proxy, other)):
            for header in headers:
                host = "" if header.startswith("Host") else "Host: a\r\n"
                await sent(port, f"GET /studies HTTP/1.1\r\n{host}{header}\r\nConnection: close\r\n\r\n")
            for target in (
                f"/studies?url={url}",
                f"/studies?RetrieveURL={url}",
                f"/wado?requestType=WADO&url={url}",
                url,
                f"//{place}/",
            ):
                await sent(port, f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            body = f'{{"peerIndex": 0, "ip": "{HOST}", "port": {place.rpartition(":")[2]}, "aet": "X", "url": "{url}"}}'
            head = f"POST /dimse/echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            await sent(port, head + body)
        assert upstream.requests
        assert all(request.one("Host") == f"{HOST}:{upstream.port}" for request in upstream.requests)
        assert len(archive.searches) > 0
    assert calls == 0


# --- behind nginx ----------------------------------------------------------------------------------------------

NGINX = """
        location / {
            proxy_pass http://proxy;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_request_buffering off;
        }
"""


@contextlib.asynccontextmanager
async def nginx(folder: Path, behind: int) -> AsyncIterator[int]:
    """Run nginx in front of a port, with one connection that all clients share; gives its port."""
    server = Nginx(folder, NGINX, settings=f"upstream proxy {{ server {HOST}:{behind}; keepalive 1; }}")
    await asyncio.to_thread(server.__enter__)
    try:
        yield server.port
    finally:
        await asyncio.to_thread(server.__exit__)


async def test_one_request_is_one_behind_nginx(forwarding: tuple[Recorder, Proxy], tmp_path: Path) -> None:
    """Whatever nginx makes of an attack: what arrives is what it answers, one for one, and the next client on the same
    connection gets its own answer."""
    upstream, proxy = forwarding
    async with nginx(tmp_path, port_of(proxy)) as port:

        async def check(text: str) -> None:
            upstream.requests.clear()
            async with connected(port) as attacker:
                await attacker.send(text + ("" if "smuggled" in text else SMUGGLED) + PING)
                got = [answer for answer in await attacker.answers(0.3) if answer.body != b"pong"]
                await still_serves(port)
            assert len(upstream.requests) == sum(answer.status == 200 for answer in got)
            if len(got) == 1:
                assert not any("smuggled" in request.line for request in upstream.requests)

        # nginx answers HTTP/0.9, without a head.
        heads = {name: text for name, text in HEADS.items() if "HTTP/" in text}
        await each({**LENGTHS, **CHUNKS, **heads}, check)

        async def check_body(entry: tuple[str, bytes]) -> None:
            upstream.requests.clear()
            text, body = entry
            found, _ = await sent(port, text + PING)
            assert [answer.status for answer in found] == [200, 200]
            assert upstream.only.body == body

        # nginx does not allow a tab there.
        await each({name: entry for name, entry in ODD.items() if "\t" not in entry[0]}, check_body)
