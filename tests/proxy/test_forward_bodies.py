"""Bodies on their way, both ways: as they are, piece by piece, no faster than they are taken, never half for whole."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
from collections.abc import AsyncIterator

import pytest

from proxy.forward import client
from tests.proxy.forwarding import PIXELS, Answer, Conversation, answering, connected, forward_to, head_of, ok, recorder

DICOM = "application/dicom"
LARGE = 64 * 1024 * 1024
"""More than all buffers between the two ends hold, with those of the kernel."""


# --- downloads -----------------------------------------------------------------------------------------------

FRAMED = {
    "length": ok(PIXELS, content_type=DICOM),
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%b\r\n" % (len(PIXELS) // 8, PIXELS[: len(PIXELS) // 8]) for _ in range(8))
    + b"0\r\nX-Trailer: a\r\n\r\n",
}


@pytest.mark.parametrize("framing", FRAMED)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer(framing: str, version: str) -> None:
    """However it is framed, and whatever the client speaks."""
    async with recorder(answering(FRAMED[framing])) as upstream, forward_to(upstream.url) as proxy:
        reader, writer = await connected(proxy)
        writer.write(f"GET /x HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        head = await head_of(reader)
        body = await reader.read()
        writer.close()
    if b"chunked" in head:
        body = b"".join(piece for piece in _chunks(body))
    assert hashlib.sha256(body).digest() == hashlib.sha256(PIXELS).digest()
    assert (b"Content-Length" in head) == (framing == "length")


def _chunks(body: bytes) -> list[bytes]:
    pieces, place = [], 0
    while size := int(body[place : (end := body.index(b"\r\n", place))], 16):
        pieces.append(body[end + 2 : end + 2 + size])
        place = end + 2 + size + 2
    return pieces


async def test_an_answer_that_ends_with_its_connection() -> None:
    """As HTTP/1.0 has it; the client gets it in chunks, and keeps its connection."""

    async def answer(conversation: Conversation) -> None:
        await conversation.send(b"HTTP/1.0 200 OK\r\nContent-Type: application/dicom\r\n\r\n" + PIXELS)
        conversation.writer.close()

    async with recorder(answer) as upstream, forward_to(upstream.url) as proxy:
        for _ in range(2):
            async with proxy.http.get("/x") as response:
                assert response.headers["Transfer-Encoding"] == "chunked"
                assert await response.read() == PIXELS


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_answers_without_a_body(status: str) -> None:
    """No search has found anything, or what the client has is still good."""
    answer = f'HTTP/1.1 {status}\r\nETag: "x"\r\n\r\n'
    async with recorder(answering(answer)) as upstream, forward_to(upstream.url) as proxy:
        for _ in range(2):
            async with proxy.http.get("/x") as response:
                assert f"{response.status} {response.reason}" == status
                assert response.headers["ETag"] == '"x"'
                assert await response.read() == b""


async def test_a_range() -> None:
    """A part of a text cannot be rewritten, since an address could go on beyond it."""
    body = b'["http://'
    answer = ok(body, "Content-Range: bytes 0-8/99", status="206 Partial Content")
    async with (
        recorder(answering(answer)) as upstream,
        forward_to(upstream.url) as proxy,
        proxy.http.get("/x", headers={"Range": "bytes=0-8"}) as response,
    ):
        assert (response.status, response.content_length) == (206, 9)
        assert response.headers["Content-Range"] == "bytes 0-8/99"
        assert await response.read() == body


async def test_codings_pass() -> None:
    """What is compressed for the client is not touched, unless it has to be rewritten: then it is undone."""
    body = json.dumps({"a": "b" * 1000}).encode()
    coded = gzip.compress(body)
    async with recorder(answering(ok(coded, "Content-Encoding: gzip"))) as upstream:
        async with forward_to(upstream.url, forward={"rewriteUrls": False}) as proxy, proxy.http.get("/x") as response:
            assert response.headers["Content-Encoding"] == "gzip"
            assert response.content_length == len(coded)
            assert await response.read() == coded
        async with forward_to(upstream.url) as proxy, proxy.http.get("/x") as response:
            assert "Content-Encoding" not in response.headers
            assert await response.read() == body


async def test_statuses_pass() -> None:
    """The upstream's own failures are its own answers, and its words."""
    for status in ("400 Bad Request", "403 Stay away", "404 Not Found", "409 Conflict", "500 Oops", "503 Busy"):
        answer = ok(b"why", "Retry-After: 7", status=status, content_type="text/plain")
        async with (
            recorder(answering(answer)) as upstream,
            forward_to(upstream.url) as proxy,
            proxy.http.get("/x") as response,
        ):
            assert f"{response.status} {response.reason}" == status
            assert response.headers["Retry-After"] == "7"
            assert await response.read() == b"why"


async def test_what_has_come_is_there_at_once() -> None:
    """A viewer can begin with what it has got, and the upstream need not be done."""
    go_on = asyncio.Event()

    async def answer(conversation: Conversation) -> None:
        await conversation.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await conversation.send(b"5\r\nfirst\r\n")
        await go_on.wait()
        await conversation.send(b"6\r\nsecond\r\n0\r\n\r\n")

    async with (
        recorder(answer) as upstream,
        forward_to(upstream.url) as proxy,
        asyncio.timeout(5),
        proxy.http.get("/x") as response,
    ):
        assert await response.content.readany() == b"first"
        go_on.set()
        assert await response.content.read() == b"second"


async def test_a_client_that_does_not_read_holds_the_upstream_back() -> None:
    """No more is taken than fits into the buffers of sockets, and then all comes."""
    sent = 0

    async def answer(conversation: Conversation) -> None:
        nonlocal sent
        await conversation.send(f"HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n")
        for _ in range(LARGE // len(PIXELS)):
            await conversation.send(PIXELS)
            sent += len(PIXELS)

    async with recorder(answer) as upstream, forward_to(upstream.url) as proxy:
        reader, writer = await connected(proxy)
        writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        await head_of(reader)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.1)
        assert sent < LARGE // 2
        received = 0
        while piece := await reader.read(1 << 20):
            received += len(piece)
        assert received == LARGE
        writer.close()


# --- uploads -------------------------------------------------------------------------------------------------


def counting() -> Answer:
    """Return an answer that says how many bytes came, and their hash."""

    async def answer(conversation: Conversation) -> None:
        body = await conversation.read_body()
        await conversation.send(ok(json.dumps([len(body), hashlib.sha256(body).hexdigest()]).encode()))

    return answer


async def pieces(size: int = len(PIXELS), count: int = 4) -> AsyncIterator[bytes]:
    """Give some pieces of a body."""
    for _ in range(count):
        yield PIXELS[:size]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "GET", "DELETE"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
async def test_a_body(method: str, chunked: bool) -> None:
    """By its length or in chunks, as the client sends it."""
    async with recorder(counting()) as upstream, forward_to(upstream.url) as proxy:
        data = pieces() if chunked else io.BytesIO(PIXELS * 4)
        async with proxy.http.request(method, "/studies", data=data, headers={"Content-Type": "a/b"}) as response:
            assert json.loads(await response.read()) == [len(PIXELS) * 4, hashlib.sha256(PIXELS * 4).hexdigest()]
        request = upstream.only
        assert request.all("Content-Length") == ([] if chunked else [str(len(PIXELS) * 4)])
        assert request.all("Transfer-Encoding") == (["chunked"] if chunked else [])
        assert request.one("Content-Type") == "a/b"


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_an_empty_body(method: str) -> None:
    async with recorder(counting()) as upstream, forward_to(upstream.url) as proxy:
        async with proxy.http.request(method, "/x") as response:
            assert json.loads(await response.read())[0] == 0
        assert upstream.only.all("Content-Length") == ["0"]
        assert upstream.only.all("Transfer-Encoding") == []


async def test_a_coded_body_stays_coded() -> None:
    """It is for the upstream to undo what the client has done."""
    coded = gzip.compress(PIXELS)
    async with recorder(counting()) as upstream, forward_to(upstream.url) as proxy:
        async with proxy.http.post("/x", data=coded, headers={"Content-Encoding": "gzip"}) as response:
            assert json.loads(await response.read()) == [len(coded), hashlib.sha256(coded).hexdigest()]
        assert upstream.only.one("Content-Encoding") == "gzip"


async def test_an_upstream_that_does_not_read_holds_the_client_back() -> None:
    """No more is taken from the client than fits into the buffers of sockets, and then all comes."""
    go_on = asyncio.Event()

    async def answer(conversation: Conversation) -> None:
        await go_on.wait()
        await counting()(conversation)

    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(LARGE // len(PIXELS)):
            sent += len(PIXELS)
            yield PIXELS

    async with recorder(answer) as upstream, forward_to(upstream.url) as proxy, asyncio.TaskGroup() as group:
        upload = group.create_task(proxy.http.post("/x", data=body())._coro)
        before = -1
        while before != sent or not sent:
            before = sent
            await asyncio.sleep(0.1)
        assert sent < LARGE // 2
        go_on.set()
        response = await upload
        assert json.loads(await response.read())[0] == LARGE
        response.close()


async def test_an_answer_before_the_body_is_here() -> None:
    """An upstream that wants no more of it has said so; the client gets that, and the rest goes nowhere."""

    closed = asyncio.Event()

    async def answer(conversation: Conversation) -> None:
        await conversation.send(ok(b"no", status="413 Too Large", content_type="text/plain"))
        await conversation.until_closed()
        closed.set()

    async with recorder(answer) as upstream, forward_to(upstream.url) as proxy:
        reader, writer = await connected(proxy)
        writer.write(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin")
        assert b" 413 Too Large" in await head_of(reader)
        assert await reader.readexactly(2) == b"no"
        async with asyncio.timeout(5):
            await closed.wait()  # what the client still sends is no longer sent on
        writer.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
async def test_a_client_that_leaves_in_its_upload(chunked: bool) -> None:
    """The upstream never takes what came for the whole, and its connection ends at once."""
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def answer(conversation: Conversation) -> None:
        arrived.set()
        try:
            await conversation.read_body()
        finally:
            ended.set()

    async with recorder(answer) as upstream, forward_to(upstream.url) as proxy:
        _, writer = await connected(proxy)
        framing = "Transfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n" if chunked else "Content-Length: 10\r\n\r\nbegin"
        writer.write(f"POST /x HTTP/1.1\r\nHost: a\r\n{framing}".encode())
        async with asyncio.timeout(5):
            await arrived.wait()
            writer.close()
            await ended.wait()
    assert not upstream.only.whole


@pytest.mark.parametrize("announced", [True, False], ids=["length", "chunks"])
async def test_too_much(announced: bool) -> None:
    """`maxUploadMB` holds here too: 413, and the upstream has not got a whole body."""
    body = io.BytesIO(PIXELS * 2) if announced else pieces(count=2)
    async with recorder(counting()) as upstream, forward_to(upstream.url, maxUploadMB=1) as proxy:
        async with proxy.http.post("/x", data=body) as response:
            assert response.status == 413
            assert "maxUploadMB" in json.loads(await response.read())["error"]
        assert not any(request.whole for request in upstream.requests)
        assert len(upstream.requests) == (0 if announced else 1)
        async with proxy.http.post("/x", data=PIXELS[:1000000]) as response:
            assert response.status == 200


async def test_a_body_that_is_badly_framed() -> None:
    async with recorder(counting()) as upstream, forward_to(upstream.url) as proxy:
        reader, writer = await connected(proxy)
        writer.write(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\nzz\r\n")
        answer = await reader.read()
        writer.close()
        assert b" 400 " in answer.split(b"\r\n")[0]
        assert not any(request.whole for request in upstream.requests)


async def test_a_client_that_stalls_in_its_upload() -> None:
    async with recorder(counting()) as upstream:
        async with forward_to(upstream.url, forward={"timeouts": {"idle": 0.2}}) as proxy:
            reader, writer = await connected(proxy)
            writer.write(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nbegin")
            assert b" 408 " in await head_of(reader)
            writer.close()
        assert not upstream.only.whole


# --- 100 (Continue) ------------------------------------------------------------------------------------------

EXPECTS = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"


async def test_continue() -> None:
    """The client is told to send when the upstream says so, and not before."""
    say_it = asyncio.Event()

    async def answer(conversation: Conversation) -> None:
        await say_it.wait()
        await conversation.send("HTTP/1.1 100 Continue\r\n\r\n")
        await counting()(conversation)

    async with recorder(answer) as upstream, forward_to(upstream.url) as proxy:
        reader, writer = await connected(proxy)
        writer.write(EXPECTS)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        assert upstream.only.one("Expect") == "100-continue"
        say_it.set()
        assert await head_of(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert b" 200 OK" in await head_of(reader)
        writer.close()


async def test_a_final_answer_in_its_place() -> None:
    """The body never goes anywhere."""
    answer = ok(b"", status="403 Forbidden")

    async def refuse(conversation: Conversation) -> None:
        await conversation.send(answer)
        await conversation.until_closed()

    async with recorder(refuse) as upstream, forward_to(upstream.url) as proxy:
        reader, writer = await connected(proxy)
        writer.write(EXPECTS)
        assert b" 403 Forbidden" in await head_of(reader)
        assert upstream.only.body == b""
        writer.close()


async def test_a_final_answer_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the answer comes once that has begun, however long the upstream waits for the body with it."""
    monkeypatch.setattr(client, "CONTINUE_SECONDS", 0.1)

    async def refuse(conversation: Conversation) -> None:
        answer = ok(b"no, thanks", status="413 Content Too Large")
        await conversation.send(answer[:-5])
        await asyncio.sleep(0.3)
        await conversation.send(answer[-5:])
        await conversation.until_closed()

    async with recorder(refuse) as upstream, forward_to(upstream.url, forward={"rewriteUrls": False}) as proxy:
        reader, writer = await connected(proxy)
        writer.write(EXPECTS)
        assert b" 413 " in await head_of(reader)
        async with asyncio.timeout(5):
            assert await reader.readexactly(10) == b"no, thanks"
        assert upstream.only.body == b""
        writer.close()


async def test_an_upstream_that_never_says_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the body comes unasked, as a client alone would send it."""
    monkeypatch.setattr(client, "CONTINUE_SECONDS", 0.1)
    async with recorder(counting()) as upstream, forward_to(upstream.url) as proxy:
        reader, writer = await connected(proxy)
        writer.write(EXPECTS)
        assert await head_of(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert b" 200 OK" in await head_of(reader)
        assert upstream.only.body == b"body"
        writer.close()


@pytest.mark.parametrize(("expect", "status"), [("", b"200"), ("200-ok", b"417")])
async def test_other_expectations(expect: str, status: bytes) -> None:
    """An empty one is none; of any other nobody knows."""
    async with recorder(counting()) as upstream, forward_to(upstream.url) as proxy:
        reader, writer = await connected(proxy)
        writer.write(EXPECTS.replace(b"100-continue", expect.encode()) + b"body")
        assert (await head_of(reader)).split(b" ")[1] == status
        assert len(upstream.requests) == (status == b"200")
        assert all(not request.all("Expect") for request in upstream.requests)
        writer.close()
