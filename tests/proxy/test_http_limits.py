"""How much is served at once: requests and connections, of all clients and of one; and what one too many is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from proxy.config.security import HttpLimits
from proxy.security.http import listening
from tests.peers.process import HOST, Address, free_port
from tests.proxy.finding import many, proxied
from tests.proxy.forwarding import Conversation, forward_to, ok, recorder
from tests.proxy.limiting import PING, SEARCH, ask, is_served, limited, takes_one, until, waiting
from tests.proxy.rawhttp import connected, port_of
from tests.proxy.running import proxy_for

OTHER_HOST = "127.0.0.2"
"""Another client, as far as the proxy can tell."""


# --- requests at once ------------------------------------------------------------------------------------------


async def test_too_many_requests_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """503 with Retry-After, which a page may read; the status of the process can be asked all the same."""
    async with waiting(limits={"requests": 2}) as (archive, proxy), contextlib.AsyncExitStack() as stack:
        port = port_of(proxy)
        clients = [await stack.enter_async_context(connected(port)) for _ in range(3)]
        for client in clients[:2]:
            await client.send(SEARCH)
        await archive.until_asked(2)
        for _ in range(3):
            answer = await ask(clients[2], SEARCH)
            assert (answer.status, answer.is_error) == (503, True)
            assert "limits.requests" in answer.json["error"]
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["access-control-allow-origin"] == "https://viewer.example"
            assert "Retry-After" in answer.headers["access-control-expose-headers"]
            assert (await ask(clients[2])).status == 200
        assert len(archive.archive.searches) == 2
        archive.go.set()
        for client in clients[:2]:
            answered = await client.answer(5)
            assert answered is not None
            assert answered.status == 200
        assert (await ask(clients[2], SEARCH)).status == 200
    lines = [record for record in caplog.records if record.name == "proxy.security.http.limits"]
    assert len(lines) == 1, "one line a minute"


async def test_too_many_requests_of_one_client() -> None:
    """429 for that client, and no other."""
    async with waiting(limits={"requestsPerClient": 1}) as (archive, proxy):
        port = port_of(proxy)
        async with connected(port) as one, connected(port) as two, connected(port, from_host=OTHER_HOST) as other:
            await one.send(SEARCH)
            await archive.until_asked(1)
            answer = await ask(two, SEARCH)
            assert (answer.status, answer.is_error) == (429, True)
            assert "limits.requestsPerClient" in answer.json["error"]
            assert int(answer.headers["retry-after"]) > 0
            await other.send(SEARCH)
            await archive.until_asked(2)
            archive.go.set()
            for client in one, other:
                answered = await client.answer(5)
                assert answered is not None
                assert answered.status == 200
            assert (await ask(two, SEARCH)).status == 200


async def test_clients_behind_a_trusted_proxy_are_told_apart() -> None:
    """By what that says; where it says nothing, it is not taken for one client."""
    limits = {"requestsPerClient": 1, "connectionsPerClient": 1}
    async with waiting(limits=limits, trustedProxies=[HOST]) as (archive, proxy), contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port_of(proxy))) for _ in range(6)]
        said = ["X-Forwarded-For: 203.0.113.1", "X-Forwarded-For: 203.0.113.2", "X-A: b", "X-A: b"]
        for client, header in zip(clients, said, strict=False):
            await client.send(SEARCH.replace("Host: a", f"Host: a\r\n{header}"))
        await archive.until_asked(4)
        answer = await ask(clients[4], SEARCH.replace("Host: a", f"Host: a\r\n{said[0]}"))
        assert answer.status == 429
        archive.go.set()


async def test_a_client_that_leaves_gives_its_place_back() -> None:
    """And one whose request fails, or whose answer is cut midway."""
    async with waiting(limits={"requests": 1}) as (archive, proxy):
        for times in range(1, 4):
            async with connected(port_of(proxy)) as client:
                await client.send(SEARCH)
                await archive.until_asked(times)

            async def free() -> bool:
                async with connected(port_of(proxy)) as client:
                    return (await ask(client, "GET /studies?limit=x HTTP/1.1\r\nHost: a\r\n\r\n")).status == 400

            await until(free)


async def test_an_answer_counts_as_long_as_it_is_streamed() -> None:
    async with (
        proxied(many(), limits={"requests": 1}) as (archive, proxy),
        connected(port_of(proxy)) as other,
        connected(port_of(proxy)) as reader,
    ):
        await reader.send(SEARCH)

        async def streams() -> bool:
            return archive.given > 1000

        await until(streams)
        assert (await ask(other, SEARCH.replace("studies", "studies/1"))).status == 503


async def test_an_upload_that_is_refused_is_not_read() -> None:
    """The connection ends with the answer."""
    async with waiting(limits={"requests": 1}) as (archive, proxy), connected(port_of(proxy)) as one:
        await one.send(SEARCH)
        await archive.until_asked(1)
        async with connected(port_of(proxy)) as two:
            upload = (
                "POST /studies HTTP/1.1\r\nHost: a\r\nContent-Type: application/dicom\r\nContent-Length: 99\r\n\r\nabc"
            )
            answer = await ask(two, upload)
            assert (answer.status, answer.headers["connection"]) == (503, "close")


async def test_requests_that_are_forwarded_have_the_same_limits() -> None:
    go = asyncio.Event()

    async def slow(conversation: Conversation) -> None:
        await go.wait()
        await conversation.send(ok())

    async with (
        recorder(slow) as upstream,
        forward_to(upstream.url, limits={"requests": 1}) as proxy,
        connected(port_of(proxy)) as one,
        connected(port_of(proxy)) as two,
    ):

        async def arrived() -> bool:
            return len(upstream.requests) == 1

        await one.send(SEARCH)
        await until(arrived)
        assert (await ask(two, SEARCH)).status == 503
        assert (await ask(two)).status == 200
        go.set()
        answer = await one.answer(5)
        assert answer is not None
        assert answer.status == 200


# --- connections at once ---------------------------------------------------------------------------------------


async def test_too_many_connections(caplog: pytest.LogCaptureFixture) -> None:
    """One too many is closed without an answer; those that are there are served, and the next when one has gone."""
    async with limited(connections=3) as proxy, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port_of(proxy))) for _ in range(2)]
        async with connected(port_of(proxy)) as third:
            assert [(await ask(client)).status for client in (*clients, third)] == [200, 200, 200]
            for _ in range(5):
                async with connected(port_of(proxy), from_host=OTHER_HOST) as more:
                    await more.send(PING)
                    assert await more.is_closed()
            assert (await ask(clients[0])).status == 200
        await until(lambda: takes_one(proxy))
    lines = [record.getMessage() for record in caplog.records if record.name == "proxy.security.http.listening"]
    assert len(lines) == 1
    assert "limits.connections)" in lines[0]


async def test_too_many_connections_of_one_client() -> None:
    async with limited(connectionsPerClient=2) as proxy, contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(connected(port_of(proxy)))
        async with connected(port_of(proxy)) as third:
            assert await third.is_closed()
        assert await takes_one(proxy, OTHER_HOST)


async def test_a_trusted_proxy_has_as_many_connections_as_all_have() -> None:
    limits = {"connectionsPerClient": 1, "connections": 5}
    nobody = Address("NOBODY", free_port())
    async with (
        proxy_for(nobody, use_cget=True, limits=limits, trustedProxies=[HOST]) as proxy,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(connected(port_of(proxy))) for _ in range(5)]
        assert [(await ask(client)).status for client in clients] == [200] * 5
        async with connected(port_of(proxy)) as sixth:
            assert await sixth.is_closed()


async def test_nobody_is_accepted_while_descriptors_are_short(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No busy loop and no flood of the log; when there are some again, who waits is served."""
    monkeypatch.setattr(listening, "PAUSE_SECONDS", 0.1)
    tried = 0

    class Short(socket.socket):
        def accept(self) -> Any:
            nonlocal tried
            tried += 1
            if tried <= 2:
                raise OSError(24, "Too many open files")
            return super().accept()

    made = listening._listening
    monkeypatch.setattr(listening, "_listening", lambda *place: Short(fileno=made(*place).detach()))
    async with limited() as proxy:
        assert await is_served(proxy)
    assert tried >= 3
    lines = [record.getMessage() for record in caplog.records if record.name == "proxy.security.http.listening"]
    assert lines == ["cannot accept connections: Too many open files"]


def test_the_limit_of_open_files_is_raised(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As far as the system allows; it is said where that is too little."""
    given: list[tuple[int, int]] = []
    has = (1024, 4096)
    monkeypatch.setattr(listening.resource, "getrlimit", lambda _: has)
    monkeypatch.setattr(listening.resource, "setrlimit", lambda _, pair: given.append(pair))
    listening.allow_descriptors(HttpLimits(requests=100, connections=1000))
    assert given == [(1556, 4096)]
    assert not caplog.records
    listening.allow_descriptors(HttpLimits(requests=1000, connections=5000))
    assert given[1:] == [(4096, 4096)]
    assert "LimitNOFILE" in caplog.text
    has = (8192, 8192)
    listening.allow_descriptors(HttpLimits(requests=100, connections=1000))
    assert len(given) == 2


async def test_pipelined_requests_are_bounded() -> None:
    """They are answered in order; while one is under way, no more are read than so many."""
    async with waiting() as (archive, proxy), connected(port_of(proxy)) as client:
        await client.send(SEARCH)
        await archive.until_asked(1)
        sending = asyncio.create_task(client.send(PING * 500_000))
        await asyncio.wait([sending], timeout=0.3)
        assert not sending.done(), "20 MB were taken"
        archive.go.set()
        answers = [await client.answer(5) for _ in range(300)]
        assert [each and each.body for each in answers[1:]] == [b"pong"] * 299
        sending.cancel()
        assert await is_served(proxy)
