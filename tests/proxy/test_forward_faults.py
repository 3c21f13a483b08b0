"""An upstream that fails, and clients that leave: said at once where it can be, else an answer that is visibly cut."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.dul import certificates
from tests.peers.process import HOST, free_port
from tests.proxy.forwarding import PIXELS, Answer, Conversation, answering, connected, forward_to, head_of, ok, recorder
from tests.proxy.running import Proxy

SHORT = {"connect": 0.3, "response": 0.3, "idle": 0.3}
SECRET_PATH = "/studies/1.2.3.4?PatientName=Doe"


async def failure(proxy: Proxy, path: str = SECRET_PATH, **more: object) -> tuple[int, str]:
    """Send a request that must fail; returns the status and the words, in the one form that errors have."""
    async with asyncio.timeout(8), proxy.http.get(path, **more) as response:  # type: ignore[arg-type]
        assert response.content_type == "application/json"
        answer = json.loads(await response.read())
        assert set(answer) == {"error", "statusCode", "timestamp"}
        assert answer["statusCode"] == response.status
        return response.status, answer["error"]


def saying(octets: bytes, *, reset: bool = False) -> Answer:
    """Return an answer of these bytes, after which the connection ends."""

    async def answer(conversation: Conversation) -> None:
        await conversation.send(octets)
        if reset:
            await asyncio.sleep(0.1)  # or what was sent would be dropped
            conversation.reset()
        else:
            conversation.writer.close()

    return answer


# --- before an answer ----------------------------------------------------------------------------------------


async def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    """502, with the reason; neither that nor the log names a patient or a UID."""
    port = free_port()
    async with forward_to(f"http://{HOST}:{port}") as proxy:
        assert await failure(proxy) == (502, f"no connection to {HOST} port {port}: Connection refused")
    assert any("Connection refused" in record.getMessage() for record in caplog.records)
    assert not any(secret in caplog.text for secret in ("Doe", "1.2.3.4", "Traceback"))


async def test_no_such_host() -> None:
    async with forward_to("http://pacs.invalid", forward={"timeouts": SHORT}) as proxy:
        status, words = await failure(proxy)
        assert status in (502, 504)
        assert "no connection to pacs.invalid port 80" in words


async def test_a_server_that_says_nothing() -> None:
    """504 after `response`; the connection does not stay."""
    closed = asyncio.Event()

    async def silent(conversation: Conversation) -> None:
        await conversation.until_closed()
        closed.set()

    async with recorder(silent) as upstream, forward_to(upstream.url, forward={"timeouts": SHORT}) as proxy:
        assert await failure(proxy) == (504, f"{HOST} port {upstream.port} did not answer in time")
        async with asyncio.timeout(1):
            await closed.wait()


async def test_a_server_that_takes_no_upload() -> None:
    """504 after `idle`, though the client has more to send; and nothing is left of it."""
    arrived = asyncio.Event()

    async def deaf(conversation: Conversation) -> None:
        conversation.writer.transport.pause_reading()  # type: ignore[attr-defined]
        arrived.set()
        await asyncio.sleep(3)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield PIXELS

    async with recorder(deaf) as upstream, forward_to(upstream.url, forward={"timeouts": SHORT}) as proxy:
        started = time.monotonic()
        async with proxy.http.post("/x", data=endless()) as response:
            assert response.status == 504
        assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"220 mail.example ESMTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        b"\x16\x03\x01\x00\x00",
    ],
    ids=["nothing", "half", "no-http", "two-lengths", "huge", "101", "407", "tls"],
)
async def test_no_proper_answer(octets: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with recorder(saying(octets)) as upstream, forward_to(upstream.url) as proxy:
        status, words = await failure(proxy)
        assert status == 502
        assert words.startswith(f"{HOST} port {upstream.port} ")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_reset_before_the_answer() -> None:
    async with recorder(saying(b"", reset=True)) as upstream, forward_to(upstream.url) as proxy:
        assert (await failure(proxy))[0] == 502


# --- TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> certificates.Certificates:
    """A private authority, and a certificate for 127.0.0.1."""
    return certificates.make(tmp_path_factory.mktemp("pki"))


async def test_tls(pki: certificates.Certificates, tmp_path: Path) -> None:
    """Only a certificate that a known authority has signed will do, and only for the host that is asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.certificate, pki.key)
    trusting = {"caFile": str(pki.authority)}
    async with recorder(tls=context) as upstream:
        async with forward_to(upstream.url, forward=trusting) as proxy, proxy.http.get("/x") as response:
            assert response.status == 200
        assert len(upstream.requests) == 1
        async with forward_to(upstream.url) as proxy:
            status, words = await failure(proxy)
            where = f"the certificate of {HOST} port {upstream.port}"
            assert (status, words) == (502, f"{where} is not accepted: unable to get local issuer certificate")
        other = upstream.url.replace(HOST, "localhost")
        async with forward_to(other, forward=trusting) as proxy:
            status, words = await failure(proxy)
            assert status == 502
            assert "Hostname mismatch" in words
        assert len(upstream.requests) == 1


async def test_tls_to_a_server_without() -> None:
    async def complain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 The plain HTTP request was not sent to an HTTP port\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(complain, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with forward_to(f"https://{HOST}:{port}") as proxy:
            assert await failure(proxy) == (502, f"no TLS connection to {HOST} port {port}: wrong version number")


async def test_a_handshake_that_stalls() -> None:
    """`connect` holds for TLS too: 504."""
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        async with forward_to(f"https://{HOST}:{port}", forward={"timeouts": SHORT}) as proxy:
            assert await failure(proxy) == (504, f"no connection to {HOST} port {port} in time")


# --- midway --------------------------------------------------------------------------------------------------

HALF = PIXELS[: len(PIXELS) // 2]
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKEN = {
    "length": (ok(PIXELS, content_type="application/dicom").replace(PIXELS, HALF), False),
    "length-reset": (ok(PIXELS, content_type="application/dicom").replace(PIXELS, HALF), True),
    "chunks": (CHUNKED + b"%x\r\n%b\r\n" % (len(HALF), HALF), False),
    "in-a-chunk": (CHUNKED + b"%x\r\n%b" % (len(PIXELS), HALF), False),
    "chunks-reset": (CHUNKED + b"%x\r\n%b\r\n" % (len(HALF), HALF), True),
    "bad-chunk": (CHUNKED + b"%x\r\n%b\r\nzz\r\n" % (len(HALF), HALF), False),
    "close-reset": (b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom\r\n\r\n" + HALF, True),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_that_breaks_off(how: str, version: str, caplog: pytest.LogCaptureFixture) -> None:
    """The client's connection is reset: nobody takes half an image for a whole one, whatever HTTP it speaks."""
    octets, reset = BROKEN[how]
    async with recorder(saying(octets, reset=reset)) as upstream, forward_to(upstream.url) as proxy:
        reader, writer = await connected(proxy)
        writer.write(f"GET /x HTTP/{version}\r\nHost: a\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(5):
                await reader.read()
        writer.close()
        assert any("cut short" in record.getMessage() for record in caplog.records)
        async with proxy.http.get("/ping") as response:
            assert response.status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_an_answer_that_stands_still() -> None:
    """After `idle` it is cut."""

    async def answer(conversation: Conversation) -> None:
        await conversation.send(BROKEN["length"][0])
        await conversation.until_closed()

    async with (
        recorder(answer) as upstream,
        forward_to(upstream.url, forward={"timeouts": SHORT}) as proxy,
        asyncio.timeout(3),
        proxy.http.get("/x") as response,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


@pytest.mark.parametrize("coded", [gzip.compress(b"[]" * 99)[:-9], b"no gzip at all"], ids=["cut", "other"])
async def test_a_coding_that_is_broken(coded: bytes) -> None:
    """What cannot be inflated to its end is no answer."""
    async with (
        recorder(answering(ok(coded, "Content-Encoding: gzip"))) as upstream,
        forward_to(upstream.url) as proxy,
        proxy.http.get("/x") as response,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


# --- clients that leave --------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True], ids=["before", "midway"])
async def test_a_client_that_leaves(begun: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The request at the upstream ends at once: what nobody waits for need not be made."""
    asked, gone = asyncio.Event(), asyncio.Event()

    async def answer(conversation: Conversation) -> None:
        asked.set()
        if begun:
            await conversation.send(BROKEN["length"][0])
        await conversation.until_closed()
        gone.set()

    async with recorder(answer) as upstream, forward_to(upstream.url) as proxy:
        reader, writer = await connected(proxy)
        writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        if begun:
            await head_of(reader)
        await asked.wait()
        writer.transport.abort()
        async with asyncio.timeout(1):
            await gone.wait()
        async with proxy.http.get("/status") as response:
            assert (await response.json(content_type=None))["requests"] == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]


async def test_the_end_of_the_proxy() -> None:
    """Requests have `shutdownSeconds`, and are cut then; nothing stays connected."""
    asked, gone = asyncio.Event(), asyncio.Event()

    async def answer(conversation: Conversation) -> None:
        await conversation.send(BROKEN["length"][0])
        asked.set()
        await conversation.until_closed()
        gone.set()

    async with recorder(answer) as upstream:
        async with forward_to(upstream.url, shutdownSeconds=0.2) as proxy:
            reader, writer = await connected(proxy)
            writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            await asked.wait()
            started = time.monotonic()
        assert time.monotonic() - started < 2
        async with asyncio.timeout(1):
            await gone.wait()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


# --- redirects -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("{base}/studies/1?x=%2f", "/studies/1?x=%2f"),
        ("/base/studies/", "/studies/"),
        ("studies/", "/studies/"),
        ("?a=b", "/here?a=b"),
        ("/other", None),
        ("http://evil.example/base/studies", None),
        ("//evil.example/base", None),
        ("https://127.0.0.1@evil.example/base/x", None),
        ("/base2/x", None),
        ("../x", None),
    ],
)
async def test_redirects_are_not_followed(status: str, location: str, expected: str | None) -> None:
    """One to the upstream becomes one to the proxy; any other would lead clients and credentials elsewhere: 502."""

    async def answer(conversation: Conversation) -> None:
        where = location.format(base=upstream.url)
        await conversation.send(ok(b"", f"Location: {where}", status=status))

    async with recorder(answer) as upstream, forward_to(upstream.url) as proxy:
        async with proxy.http.get("/here", allow_redirects=False) as response:
            if expected is None:
                assert response.status == 502
                assert "Location" not in response.headers
                assert "evil" not in (await response.read()).decode()
            else:
                assert f"{response.status} {response.reason}" == status
                assert response.headers["Location"] == proxy.url + expected
        assert len(upstream.requests) == 1


async def test_redirects_pass_where_nothing_is_rewritten() -> None:
    """Then clients are meant to know the upstream."""
    async with (
        recorder(answering(ok(b"", "Location: http://a.example/x", status="302 Found"))) as upstream,
        forward_to(upstream.url, forward={"rewriteUrls": False}) as proxy,
        proxy.http.get("/here", allow_redirects=False) as response,
    ):
        assert response.headers["Location"] == "http://a.example/x"


async def test_where_something_new_is() -> None:
    """A `Location` that redirects nobody (RFC 9110 15.3.2) is rewritten where it can be, and else stays."""
    for location, expected in (
        ("/base/workitems/1", "{proxy}/workitems/1"),
        ("http://a.example/x", "http://a.example/x"),
    ):
        fields = (f"Location: {location}", f"Content-Location: {location}")
        async with (
            recorder(answering(ok(b"", *fields, status="201 Created"))) as upstream,
            forward_to(upstream.url) as proxy,
            proxy.http.post("/workitems") as response,
        ):
            for name in ("Location", "Content-Location"):
                assert response.headers[name] == expected.format(proxy=proxy.url)
