"""Connections to the upstream: used again where that is safe, and nobody's but the request's that they are used for."""

from __future__ import annotations

import asyncio
import gc
import logging

import aiohttp
import pytest

from tests.proxy.forwarding import Conversation, answering, forward_to, ok, recorder


async def test_connections_are_used_again() -> None:
    """For what can be repeated. Uploads have one of their own, so that none meets one that is being closed."""
    async with recorder() as upstream, forward_to(upstream.url) as proxy:
        await asyncio.sleep(0.05)  # the greeting
        for _ in range(5):
            async with proxy.http.get("/x") as response:
                await response.read()
        assert upstream.connections == 1
        for count in (2, 3):
            async with proxy.http.post("/x", data=b"x") as response:
                await response.read()
            assert upstream.connections == count


async def test_a_kept_connection_that_the_upstream_has_closed() -> None:
    """The request goes out once more on another, and the client does not notice."""

    async def answer(conversation: Conversation) -> None:
        if len(upstream.requests) == 2:
            conversation.reset()
        else:
            await answering(ok())(conversation)

    async with recorder(answer) as upstream, forward_to(upstream.url) as proxy:
        for _ in range(2):
            async with proxy.http.get("/x") as response:
                assert response.status == 200
        assert len(upstream.requests) == 3


async def test_a_kept_connection_that_breaks_while_it_is_idle(caplog: pytest.LogCaptureFixture) -> None:
    """It concerns nobody, and nothing is said of it."""

    async def answer(conversation: Conversation) -> None:
        await answering(ok())(conversation)
        asyncio.get_running_loop().call_later(0.1, conversation.reset)

    async with recorder(answer) as upstream, forward_to(upstream.url) as proxy:
        for _ in range(3):
            async with proxy.http.get("/x") as response:
                assert response.status == 200
        async with asyncio.timeout(5):
            while upstream.open:
                await asyncio.sleep(0.01)
        gc.collect()
        await asyncio.sleep(0.05)
        async with proxy.http.get("/x") as response:
            assert response.status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "first",
    [ok(), b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n"],
    ids=["200", "204", "304"],
)
async def test_what_nobody_asked_for_is_nobodys_answer(first: bytes) -> None:
    """A server that sends a body where there is none, or one too many, cannot have another client get it (RFC 9112
    9.2)."""
    came, sent = asyncio.Event(), asyncio.Event()

    async def answer(conversation: Conversation) -> None:
        if len(upstream.requests) > 1:
            await answering(ok(b"right"))(conversation)
            return
        await conversation.send(first)
        await came.wait()
        await conversation.send(ok(b"of another"))
        sent.set()

    async with recorder(answer) as upstream, forward_to(upstream.url) as proxy:
        async with proxy.http.get("/x") as response:
            await response.read()
        came.set()
        await sent.wait()
        await asyncio.sleep(0.05)  # the proxy reads it
        async with proxy.http.get("/x") as response:
            assert await response.read() == b"right"
        assert len(upstream.requests) == 2


async def test_an_upload_is_never_sent_twice() -> None:
    """Whether it was carried out, nobody knows."""

    async def answer(conversation: Conversation) -> None:
        await conversation.read_body()
        conversation.reset()

    async with recorder(answer) as upstream, forward_to(upstream.url) as proxy:
        for method in ("POST", "PUT", "PATCH"):
            async with proxy.http.request(method, "/x", data=b"x") as response:
                assert response.status == 502
        async with proxy.http.post("/x") as response:
            assert response.status == 502
        assert [each.method for each in upstream.requests] == ["POST", "PUT", "PATCH", "POST"]


async def test_cookies_are_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the upstream sets for one client is not sent for another."""
    async with recorder(answering(ok(b"[]", "Set-Cookie: session=1; Path=/"))) as upstream:
        async with forward_to(upstream.url) as proxy, aiohttp.ClientSession(proxy.url) as other:
            async with other.get("/x") as response:
                assert response.headers["Set-Cookie"] == "session=1; Path=/"
            async with aiohttp.ClientSession(proxy.url) as another, another.get("/x") as response:
                await response.read()
        assert [request.all("Cookie") for request in upstream.requests] == [[], []]
