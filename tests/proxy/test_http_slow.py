"""What is too slow or too large: heads, bodies, and clients that take no answer; and that the next one is served."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path

import pytest

from proxy import PRODUCT
from proxy.dicomweb import sendfile
from proxy.security.http import connection, listening
from tests.faultpeer import in_front_of, small_study
from tests.peers.process import HOST
from tests.proxy.forwarding import Conversation, forward_to, ok, recorder
from tests.proxy.limiting import PING, SEARCH, ask, is_served, limited, takes_one, until, waiting
from tests.proxy.rawhttp import Connection, connected, port_of
from tests.proxy.retrieved import get, kept, path_of

# --- heads that do not come ------------------------------------------------------------------------------------


async def test_a_silent_connection_is_closed() -> None:
    """Without an answer, since browsers open connections that they may not need."""
    async with limited(headerSeconds=0.2) as proxy, connected(port_of(proxy)) as client:
        started = time.monotonic()
        assert await client.is_closed()
        assert 0.15 < time.monotonic() - started < 0.9


@pytest.mark.parametrize("sent", ["G", "GET /ping", "GET /ping HTTP/1.1\r\n", PING[:-2], PING[:-1]])
async def test_half_a_head_is_answered_with_408(sent: str) -> None:
    async with limited(headerSeconds=0.2) as proxy, connected(port_of(proxy)) as client:
        answer = await ask(client, sent)
        assert (answer.status, answer.is_error, answer.headers["connection"]) == (408, True, "close")
        assert await client.is_closed()
        assert await is_served(proxy)


async def test_drips_do_not_extend_the_time_for_a_head() -> None:
    """Neither of the first request on a connection nor of the next one."""
    async with limited(headerSeconds=0.25) as proxy:
        for before in (False, True):
            async with connected(port_of(proxy)) as client:
                if before:
                    assert (await ask(client)).status == 200
                started = time.monotonic()
                dripping = asyncio.create_task(drip(client, "GET /ping HTTP/1.1\r\nX: " + "a" * 1000))
                answer = await client.answer(2)
                dripping.cancel()
                assert answer is not None
                assert answer.status == 408
                assert 0.2 < time.monotonic() - started < 0.9


async def drip(client: Connection, text: str) -> None:
    """Send a byte every 20 ms."""
    for character in text:
        await client.send(character)
        await asyncio.sleep(0.02)


async def test_an_idle_connection_is_kept_beyond_the_time_for_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as connections are kept alive; then it is closed."""
    monkeypatch.setattr(connection, "KEEPALIVE_SECONDS", 0.6)
    async with limited(headerSeconds=0.15) as proxy, connected(port_of(proxy)) as client:
        assert (await ask(client)).status == 200
        await asyncio.sleep(0.3)
        assert (await ask(client)).status == 200
        started = time.monotonic()
        assert await client.is_closed(2)
        assert 0.5 < time.monotonic() - started < 1.5


async def test_a_slow_answer_has_nothing_to_do_with_heads() -> None:
    """Nor has the body of an upload."""
    async with waiting(limits={"headerSeconds": 0.15}) as (archive, proxy), connected(port_of(proxy)) as client:
        await client.send(SEARCH)
        await asyncio.sleep(0.3)
        archive.go.set()
        answer = await client.answer(5)
        assert answer is not None
        assert answer.status == 200
        await client.send("POST /dimse/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\n\r\n")
        await drip(client, '{"peerIndex":9}')
        answer = await client.answer(5)
        assert answer is not None
        assert (answer.status, "peerIndex" in answer.json["error"]) == (400, True)
        assert (await ask(client)).status == 200


async def test_a_head_that_comes_with_the_end_of_a_body() -> None:
    """Two requests in any pieces: the bound for heads never takes a body for one."""
    body = '{"peerIndex":9}'
    echo = f"POST /dimse/echo HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    async with limited(headerSeconds=5) as proxy, connected(port_of(proxy)) as client:
        for size in (1, 7, 40, 90, 1000):
            text = echo + PING + echo + PING
            for start in range(0, len(text), size):
                await client.send(text[start : start + size])
                await asyncio.sleep(0)
            answers = [await client.answer(5) for _ in range(4)]
            assert [each and each.status for each in answers] == [400, 200, 400, 200]


# --- what is too large -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (f"GET /studies?limit=1&x={'a' * connection.MAX_TARGET} HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (f"GET /{'a' * 1_000_000}", 414),
        (f"GET /ping HTTP/1.1\r\nHost: a\r\nX: {'a' * (connection.MAX_FIELD + 10)}\r\n\r\n", 431),
        (f"GET /ping HTTP/1.1\r\nHost: a\r\n{'x' * (connection.MAX_FIELD + 10)}: a\r\n\r\n", 431),
        (f"GET /ping HTTP/1.1\r\nHost: a\r\nX: {'a' * 1_000_000}", 431),
        ("GET /ping HTTP/1.1\r\nHost: a\r\n" + "X: a\r\n" * (connection.MAX_FIELDS + 10) + "\r\n", 431),
        ("GET /ping HTTP/1.1\r\nHost: a\r\n" + "X: a\r\n" * 100_000, 431),
        ("GET /ping HTTP/1.1\r\nHost: a\r\n" + f"X: {'a' * 9000}\r\n" * 20, 431),
        ("A" * 1_000_000, 400),
    ],
    ids=["target", "endless target", "value", "name", "endless value", "headers", "endless headers", "head", "method"],
)
async def test_heads_that_are_too_large(text: str, status: int) -> None:
    """The answer says which limit it is, and the connection ends."""
    async with limited() as proxy, connected(port_of(proxy)) as client:
        sending = asyncio.create_task(client.send(text))
        answer = await client.answer(2)
        assert answer is not None
        assert (answer.status, answer.is_error, answer.headers["server"]) == (status, True, PRODUCT)
        assert await client.is_closed()
        await sending
        assert await is_served(proxy)


async def test_a_large_head_behind_a_request() -> None:
    """It is not read to its end while another request is answered, whose answer is sent, and nothing behind it."""
    async with waiting() as (archive, proxy), connected(port_of(proxy)) as client:
        await client.send(SEARCH + "GET /ping HTTP/1.1\r\n")
        await archive.until_asked(1)
        sending = asyncio.create_task(client.send(f"X: {'a' * 9000}\r\n" * 12))
        await asyncio.wait([sending], timeout=0.2)
        archive.go.set()
        answer = await client.answer(5)
        assert answer is not None
        assert answer.status == 200
        assert await client.is_closed()
        await sending


async def test_heads_that_are_just_not_too_large() -> None:
    target = f"/ping?{'a' * (connection.MAX_TARGET - 10)}"
    fields = "X: a\r\n" * (connection.MAX_FIELDS - 5)
    large = f"X: {'a' * (connection.MAX_FIELD - 100)}\r\n"
    async with limited() as proxy, connected(port_of(proxy)) as client:
        for line, more in ((target, ""), ("/ping", fields), ("/ping", large), (target, large * 2)):
            assert (await ask(client, f"GET {line} HTTP/1.1\r\nHost: a\r\n{more}\r\n")).status == 200


async def test_a_small_body_that_is_not_small() -> None:
    """What is read whole has a bound; it is answered at once where the length says it, and else when it is passed."""
    async with limited() as proxy:
        for length in (f"Content-Length: {2**40}", "Transfer-Encoding: chunked"):
            async with connected(port_of(proxy)) as client:
                await client.send(f"POST /dimse/echo HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n")
                sending = asyncio.create_task(client.send(f"{2**20:x}\r\n" + "a" * 2**20))
                answer = await client.answer(2)
                assert answer is not None
                assert (answer.status, answer.is_error) == (413, True)
                sending.cancel()
        assert await is_served(proxy)


# --- clients that are slow -------------------------------------------------------------------------------------


async def test_a_body_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a reset, also when a byte comes now and then; the place of the request is free again."""
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.2)
    async with limited(requests=1) as proxy:
        for dripping in (False, True):
            async with connected(port_of(proxy)) as client:
                await client.send("POST /dimse/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
                task = asyncio.create_task(drip(client, "a" * 100 if dripping else ""))
                assert await client.is_closed()
                task.cancel()
            async with connected(port_of(proxy)) as client:
                assert (await ask(client, "GET /status HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200


@pytest.mark.parametrize("rest", ["zzz\r\n", "5\r\nhello!!", "-1\r\n"])
async def test_a_body_that_goes_wrong_midway_is_given_up(rest: str, caplog: pytest.LogCaptureFixture) -> None:
    """At once: nobody tells the handler, which waits for more, and would keep its place as long as the client likes."""
    async with limited() as proxy, connected(port_of(proxy)) as client:
        await client.send("POST /dimse/echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await asyncio.sleep(0.05)  # it is with its handler
        await client.send(rest)
        assert await client.is_closed()
        assert await is_served(proxy)
    assert "127.0.0.1: malformed body of a request, cut" in caplog.text


@pytest.mark.parametrize("path", ["/dimse/echo", "/studies", "/nowhere"])
async def test_a_body_that_cannot_be_decoded_is_the_clients_fault(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """And no reason for tracebacks, with which anybody could fill the log."""
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/dicom\r\nContent-Encoding: gzip\r\n"
    async with limited() as proxy, connected(port_of(proxy)) as client:
        answer = await ask(client, f"{head}Content-Length: 8\r\n\r\nDoe^Jane")
        assert (answer.status, answer.is_error) == (404 if path == "/nowhere" else 400, True)
        assert await client.is_closed()
        assert await is_served(proxy)
    assert [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"] == []
    assert "malformed body" in caplog.text


async def test_bodies_one_after_the_other_have_a_time_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.3)
    async with limited() as proxy, connected(port_of(proxy)) as client:
        for _ in range(4):
            await client.send("POST /dimse/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\n\r\n")
            await asyncio.sleep(0.15)
            assert (await ask(client, '{"peerIndex":9}')).status == 400


async def test_a_body_that_is_held_back_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is the proxy that does not read on."""
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.2)
    go = asyncio.Event()

    async def slow(conversation: Conversation) -> None:
        await go.wait()
        await conversation.read_body()
        await conversation.send(ok(b"{}"))

    async with recorder(slow) as upstream, forward_to(upstream.url) as proxy, connected(port_of(proxy)) as client:
        head = "POST /studies HTTP/1.1\r\nHost: a\r\nContent-Type: application/dicom\r\n"
        size = 2**25
        await client.send(f"{head}Content-Length: {size}\r\n\r\n")
        sending = asyncio.create_task(client.send("a" * size))
        await asyncio.sleep(0.7)
        go.set()
        answer = await client.answer(10)
        await sending
        assert answer is not None
        assert answer.status == 200


async def test_a_client_that_takes_none_of_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of answers that no handler streams: it is the system that ends the connection."""
    monkeypatch.setattr(listening, "NO_ACKNOWLEDGEMENT_SECONDS", 0.5)
    async with limited(connections=1) as proxy:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (HOST, port_of(proxy)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    for _ in range(1000):
                        await loop.sock_sendall(client, b"GET /conformance HTTP/1.1\r\nHost: a\r\n\r\n" * 30)
            assert not await takes_one(proxy)
            await until(lambda: takes_one(proxy), 5)


async def test_a_client_that_takes_none_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent by the kernel, out of the cache, is cut as what the proxy writes: by a reset, seen by the client."""
    monkeypatch.setattr(sendfile, "CLIENT_STALL_SECONDS", 0.3)
    files = small_study(2, 6, side=1024)
    options = {"enableCache": True, "storagePath": str(tmp_path), "limits": {"requests": 1}}
    async with in_front_of(files, use_cget=True, **options) as (_, proxy):
        path = path_of(files[0].sample, "study")
        whole = await get(proxy, path)
        await kept(proxy.http)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (HOST, port_of(proxy)))
            await loop.sock_sendall(client, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())

            async def free() -> bool:
                async with connected(port_of(proxy)) as other:
                    return (await ask(other, "GET /status HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200

            await asyncio.sleep(0.1)
            assert not await free()
            await until(free)
            taken = 0
            with pytest.raises(ConnectionResetError):
                while piece := await loop.sock_recv(client, 2**16):
                    taken += len(piece)
            assert taken < len(whole.body)
