"""Header fields on their way: what goes on, what is about one connection only, and what the proxy says itself."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator

import pytest
from yarl import URL

from tests.peers.process import HOST, free_port
from tests.proxy.forwarding import Recorder, answering, forward_to, ok, recorder
from tests.proxy.running import Proxy

PACSBIN = {"origin": ["pacsbin.com"]}


@pytest.fixture
async def upstream() -> AsyncIterator[Recorder]:
    async with recorder() as upstream:
        yield upstream


@pytest.fixture
async def proxy(upstream: Recorder) -> AsyncIterator[Proxy]:
    async with forward_to(upstream.url) as proxy:
        yield proxy


async def exchange(proxy: Proxy, *fields: str | bytes, method: str = "GET", body: bytes = b"") -> bytes:
    """Send a request with these header lines, and read its whole answer."""
    reader, writer = await asyncio.open_connection(HOST, int(proxy.url.rpartition(":")[2]))
    lines = [f"{method} /studies HTTP/1.1", "Connection: close", *fields]
    if not any(line[:5] in ("Host:", b"Host:") for line in fields):
        lines.append("Host: proxy.local:3006")
    octets = [line if isinstance(line, bytes) else line.encode("latin-1") for line in lines]
    writer.write(b"\r\n".join([*octets, b"", b""]) + body)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


async def shown(*lines: str, **more: object) -> list[tuple[str, str]]:
    """Return the header fields of the proxy's answer when the upstream's has these."""
    async with (
        recorder(answering(ok(b"{}", *lines))) as upstream,
        forward_to(upstream.url, **more) as proxy,  # type: ignore[arg-type]
        proxy.http.get("/studies", headers={"Origin": "https://pacsbin.com"}) as response,
    ):
        assert response.status == 200
        return [(name.lower(), value) for name, value in response.headers.items()]


def values(fields: list[tuple[str, str]], name: str) -> list[str]:
    """Return the values of the fields of a name."""
    return [value for each, value in fields if each == name.lower()]


# --- towards the upstream ------------------------------------------------------------------------------------


async def test_what_a_client_says_goes_on_as_it_is(upstream: Recorder) -> None:
    """Negotiation, conditions, ranges, cookies, codings, and what nobody here knows; twice, and in its order."""
    lines = [
        'Accept: multipart/related; type="application/octet-stream"; transfer-syntax=*',
        "Accept: application/dicom+json;q=0.5",
        "Accept-Charset: utf-8",
        "Accept-Encoding: gzip, br;q=0.1",
        "Accept-Language: de",
        "Authorization: Bearer abc.def",
        "Cookie: a=b; c=d",
        'If-None-Match: "x", W/"y"',
        "If-Modified-Since: Tue, 24 Nov 2026 10:00:00 GMT",
        "Range: bytes=0-9",
        "User-Agent: viewer/1.0",
        "X-Unknown: a",
        "X-Unknown: b",
        "X-Empty: ",
        "Referer: https://viewer.example/",
        "Cache-Control: no-cache",
    ]
    async with forward_to(upstream.url, forward={"rewriteUrls": False}) as proxy:
        await exchange(proxy, *lines)
    sent = [tuple(line.split(": ", 1)) for line in lines]
    assert [field for field in upstream.only.fields if field in sent] == sent


async def test_nothing_is_said_for_a_client_that_is_silent(proxy: Proxy, upstream: Recorder) -> None:
    """No Accept and no User-Agent of the library's; where answers are rewritten, they must not be compressed."""
    await exchange(proxy)
    assert {name for name, _ in upstream.only.fields} == {
        "Host",
        "Accept-Encoding",
        "Via",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "Forwarded",
    }
    assert upstream.only.one("Accept-Encoding") == "identity"


async def test_codings_are_not_asked_for_where_answers_are_rewritten(proxy: Proxy, upstream: Recorder) -> None:
    await exchange(proxy, "Accept-Encoding: gzip", "accept-encoding: br")
    assert upstream.only.all("Accept-Encoding") == ["identity"]


@pytest.mark.parametrize(
    "line",
    [
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "Trailer: X-Checksum",
        "Upgrade: websocket",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        "Proxy-Authorization: Basic eDp5",
        "Proxy-Connection: keep-alive",
        "Proxy-Anything: x",
        "Proxy_Authorization: Basic eDp5",
        "Transfer_Encoding: chunked",
        "Origin: https://evil.example",
        "X-Original-URL: /admin",
        "X-Rewrite-URL: /admin",
        "X_Original_Url: /admin",
        "X-HTTP-Method-Override: DELETE",
        "X-HTTP-Method: DELETE",
        "X-Method-Override: DELETE",
        "Max-Forwards: 5",
        "X-Forwarded-Server: evil",
        "X-Forwarded-Prefix: /evil",
        "X-Forwarded-Port: 1",
        "X_Forwarded_Host: evil",
        "X-Real-IP: 1.2.3.4",
        "True-Client-IP: 1.2.3.4",
        "Proxy: http://evil.example",
        "Access-Control-Request-Headers: x",
    ],
)
async def test_what_ends_here(proxy: Proxy, upstream: Recorder, line: str) -> None:
    """Fields about the client's connection (RFC 9110 7.6.1), and those by which a client could claim to be another."""
    await exchange(proxy, line)
    name = line.partition(":")[0]
    assert upstream.only.all(name) == []
    assert all("evil" not in value and "admin" not in value for _, value in upstream.only.fields)


@pytest.mark.parametrize("connection", ["X-Secret, close", "close,x-secret", "close, X-SECRET , ,upgrade"])
async def test_what_connection_names_ends_here(proxy: Proxy, upstream: Recorder, connection: str) -> None:
    reader = await exchange(proxy, f"Connection: {connection}", "X-Secret: 1", "X-Other: 2")
    assert b" 200 " in reader.split(b"\r\n")[0]
    assert upstream.only.all("X-Secret") == []
    assert upstream.only.one("X-Other") == "2"
    assert upstream.only.all("Connection") == []


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
async def test_no_other_protocol(proxy: Proxy, upstream: Recorder, protocol: str) -> None:
    """A request to go on in another one is a request for what its path names, and the connection goes on as it was."""
    reader, writer = await asyncio.open_connection(HOST, int(proxy.url.rpartition(":")[2]))
    wish = f"Connection: Upgrade\r\nUpgrade: {protocol}\r\nSec-WebSocket-Version: 13\r\n"
    for fields in (wish, ""):
        writer.write(f"GET /studies HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode())
        async with asyncio.timeout(5):
            assert b" 200 OK" in await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    assert [request.all("Upgrade") + request.all("Connection") for request in upstream.requests] == [[], []]


async def test_connection_cannot_remove_what_the_proxy_says(
    upstream: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the length or host of a request."""
    monkeypatch.setenv("UPSTREAM_TOKEN", "abc")
    async with forward_to(upstream.url, forward={"credentials": {"secretVariable": "UPSTREAM_TOKEN"}}) as proxy:
        names = "Host, Content-Length, Authorization, Via, Forwarded, X-Forwarded-For, X-Forwarded-Host"
        await exchange(proxy, f"Connection: {names}", "Content-Length: 3", method="POST", body=b"abc")
    request = upstream.only
    assert request.one("Authorization") == "Bearer abc"
    assert request.one("Host") == f"{HOST}:{upstream.port}"
    assert all(request.all(name) for name in ("Via", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host"))
    assert request.body == b"abc"


async def test_for_whom_it_is(proxy: Proxy, upstream: Recorder) -> None:
    """Who asks, and by which address of the proxy. What a client says itself of that is dropped."""
    await exchange(
        proxy,
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Proto: https",
        "Forwarded: for=1.2.3.4;host=evil.example;proto=https",
        "Host: proxy.local:3006",
    )
    request = upstream.only
    assert request.one("X-Forwarded-For") == HOST
    assert request.one("X-Forwarded-Host") == "proxy.local:3006"
    assert request.one("X-Forwarded-Proto") == "http"
    assert request.one("Forwarded") == f"for={HOST};proto=http"


async def test_behind_a_trusted_proxy(upstream: Recorder) -> None:
    """What that says is believed, and said on; what came before it is not."""
    async with forward_to(upstream.url, trustedProxies=[HOST]) as proxy:
        await exchange(
            proxy,
            "X-Forwarded-For: 6.6.6.6, 2001:db8::7",
            "X-Forwarded-Host: images.hospital.example",
            "X-Forwarded-Proto: https",
        )
    request = upstream.only
    assert request.one("X-Forwarded-For") == "2001:db8::7"
    assert request.one("X-Forwarded-Host") == "images.hospital.example"
    assert request.one("X-Forwarded-Proto") == "https"
    assert request.one("Forwarded") == 'for="[2001:db8::7]";proto=https'


async def test_a_public_address(upstream: Recorder) -> None:
    """The configured one counts, whatever a client calls the proxy."""
    async with forward_to(upstream.url, publicUrl="https://images.example:8443/dicomweb") as proxy:
        await exchange(proxy, "Host: other:1")
    assert upstream.only.one("X-Forwarded-Host") == "images.example:8443"
    assert upstream.only.one("X-Forwarded-Proto") == "https"


async def test_via(proxy: Proxy, upstream: Recorder) -> None:
    """Both ways, behind those who were there before (RFC 9110 7.6.3)."""
    answer = await exchange(proxy, "Via: 1.0 first", "Via: 1.1 second (x)")
    before, _, own = upstream.only.one("Via").rpartition(", ")
    assert before == "1.0 first, 1.1 second (x)"
    assert own.startswith("1.1 dicomweb-proxy-")
    assert f"\r\nvia: {own}\r\n".encode() in answer.lower()


async def test_octets_that_are_no_utf8(proxy: Proxy, upstream: Recorder) -> None:
    """ISO 8859-1 in a header, as old programs write it, is no failure."""
    await exchange(proxy, b"X-Name: M\xfcller", b"X-Other: M\xc3\xbcller")
    assert [upstream.only.one(name) for name in ("X-Name", "X-Other")] == ["M\xc3\xbcller"] * 2


# --- credentials ---------------------------------------------------------------------------------------------


async def test_credentials_of_the_proxy_take_the_place_of_the_clients(
    upstream: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_PASSWORD", "pässword:x")
    credentials = {"username": "proxy", "secretVariable": "UPSTREAM_PASSWORD"}
    async with forward_to(upstream.url, forward={"credentials": credentials}) as proxy:
        await exchange(proxy, "Authorization: Bearer of-the-client")
        await exchange(proxy)
    assert [each.all("Authorization") for each in upstream.requests] == [["Basic cHJveHk6cMOkc3N3b3JkOng="]] * 2


async def test_what_signs_in_at_the_proxy_is_not_handed_on(upstream: Recorder) -> None:
    """A token of the proxy's own is nobody else's business; and without the right to write, nobody uploads."""
    users = [{"name": "viewer", "tokenHash": hashlib.sha256(b"t" * 43).hexdigest()}]
    async with forward_to(upstream.url, auth={"enabled": True, "tokens": users}) as proxy:
        assert b" 401 " in (await exchange(proxy)).split(b"\r\n")[0]
        assert b" 200 " in (await exchange(proxy, f"Authorization: Bearer {'t' * 43}")).split(b"\r\n")[0]
        assert b" 403 " in (await exchange(proxy, f"Authorization: Bearer {'t' * 43}", method="POST")).split(b"\r\n")[0]
    assert upstream.only.all("Authorization") == []


async def test_credentials_that_the_upstream_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the proxy's fault and not the client's, whose browser must not ask for a password: 502."""
    monkeypatch.setenv("UPSTREAM_TOKEN", "abc")
    answer = ok(b"", "WWW-Authenticate: Basic", status="401 Unauthorized")
    async with recorder(answering(answer)) as upstream:
        forward = {"credentials": {"secretVariable": "UPSTREAM_TOKEN"}}
        async with forward_to(upstream.url, forward=forward) as proxy, proxy.http.get("/studies") as response:
            assert response.status == 502
            assert "WWW-Authenticate" not in response.headers
            assert "refuses the credentials of the proxy" in json.loads(await response.read())["error"]
        async with forward_to(upstream.url) as proxy, proxy.http.get("/studies") as response:
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Basic")


# --- towards the client --------------------------------------------------------------------------------------


async def test_what_the_upstream_says_goes_on_as_it_is() -> None:
    """Also twice, and with the words of its status."""
    lines = [
        'ETag: "abc"',
        "Last-Modified: Tue, 24 Nov 2026 10:00:00 GMT",
        "Cache-Control: private, max-age=60",
        "Set-Cookie: a=b; Path=/; HttpOnly",
        "Set-Cookie: c=d",
        'Warning: 299 up "something"',
        "Content-Disposition: attachment; filename=x",
        "X-Unknown: a",
        "Server: upstream/1.0",
        "Date: Tue, 24 Nov 2026 10:00:01 GMT",
        "Link: <https://x>; rel=next",
    ]
    fields = await shown(*lines, forward={"rewriteUrls": False})
    expected = [(name.lower(), value) for name, value in (line.split(": ", 1) for line in lines)]
    assert [field for field in fields if field in expected] == expected
    assert values(fields, "server") == ["upstream/1.0"]
    assert values(fields, "content-length") == ["2"]


@pytest.mark.parametrize(
    "line",
    [
        "Keep-Alive: timeout=5",
        "Proxy-Authenticate: Basic",
        "Trailer: X",
        "Upgrade: h2c",
        'Alt-Svc: h3=":443"',
        "Strict-Transport-Security: max-age=1",
        "Access-Control-Allow-Origin: https://evil.example",
        "Access-Control-Allow-Credentials: false",
        "Access-Control-Max-Age: 1",
        "Access-Control-Anything: evil",
    ],
)
async def test_what_ends_here_on_the_way_back(line: str) -> None:
    """Fields about its connection, about its own host and port, and its CORS."""
    fields = await shown(line, "Connection: keep-alive, x-secret", "X-Secret: y", cors=PACSBIN)
    name, _, value = line.partition(": ")
    assert value not in values(fields, name)
    assert not values(fields, "x-secret")
    assert not values(fields, "connection")
    assert values(fields, "Access-Control-Allow-Origin") == ["https://pacsbin.com"]
    assert values(fields, "Access-Control-Allow-Credentials") == ["true"]


async def test_vary_is_merged() -> None:
    (vary,) = values(await shown("Vary: Accept", "Vary: Origin, Accept-Encoding", cors=PACSBIN), "Vary")
    assert sorted(vary.split(", ")) == ["Accept", "Accept-Encoding", "Origin"]


async def test_words_that_are_no_utf8() -> None:
    """Nor has the reason of a status to be."""
    async with (
        recorder(answering(ok(status="404 Nicht verf\xfcgbar"))) as upstream,
        forward_to(upstream.url) as proxy,
        proxy.http.get("/studies") as response,
    ):
        assert (response.status, response.reason) == (404, "Nicht verfügbar")


async def test_octets_that_are_no_utf8_on_the_way_back() -> None:
    fields = await shown("Content-Disposition: attachment; filename=\xfc")
    assert values(fields, "Content-Disposition") == ["attachment; filename=ü"]


async def test_what_is_about_the_bytes_of_a_body_that_is_rewritten() -> None:
    """Its length and checksums are no longer true, and its tag is weak; of other bodies they stay."""
    about = [
        'ETag: "abc"',
        "Content-MD5: x",
        "Digest: y",
        "Repr-Digest: z",
        "Content-Digest: z",
        "Accept-Ranges: bytes",
    ]
    for kind, expected in (("application/dicom+json", 'W/"abc"'), ("application/dicom", '"abc"')):
        answer = answering(ok(b"{}", *about, content_type=kind))
        async with recorder(answer) as upstream, forward_to(upstream.url) as proxy:
            for method in ("GET", "HEAD"):
                async with proxy.http.request(method, "/studies") as response:
                    assert response.headers["ETag"] == expected
                    is_rewritten = kind != "application/dicom"
                    for name in ("Content-MD5", "Digest", "Repr-Digest", "Content-Digest", "Accept-Ranges"):
                        assert (name in response.headers) != is_rewritten
                    assert response.headers.get("Content-Length") == (None if is_rewritten else "2")


# --- CORS ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/studies", "/any/where", "/status", "/"])
async def test_preflights_are_answered_by_the_proxy(upstream: Recorder, path: str) -> None:
    async with forward_to(upstream.url, cors=PACSBIN) as proxy:
        for origin, status in (("https://pacsbin.com", 200), ("https://evil.example", 403)):
            asked = {
                "Origin": origin,
                "Access-Control-Request-Method": "GET",
                "Access-Control-Request-Headers": "accept",
            }
            async with proxy.http.options(path, headers=asked) as response:
                assert response.status == status
                assert response.headers.get("Access-Control-Allow-Origin") == (origin if status == 200 else None)
    assert upstream.requests == []


@pytest.mark.parametrize("path", ["/studies", "/"])
async def test_other_options_are_for_the_upstream(proxy: Proxy, upstream: Recorder, path: str) -> None:
    """It describes what it can do (PS3.18 8.9); what the proxy can, is in Allow."""
    async with proxy.http.options(path) as response:
        assert response.status == 200
    assert upstream.only.line == f"OPTIONS /base{path} HTTP/1.1"
    async with proxy.http.options("/status") as response:
        assert (response.status, response.headers["Allow"]) == (204, "GET, OPTIONS")
    async with proxy.http.options("/studies", headers={"Max-Forwards": "0"}) as response:
        assert response.status == 204
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(("said", "handed_on"), [("2", ["1"]), ("1", ["0"]), ("x", []), ("9" * 5000, [])])
async def test_how_often_options_may_be_handed_on(
    proxy: Proxy, upstream: Recorder, said: str, handed_on: list[str]
) -> None:
    """Once less behind each server (RFC 9110 7.6.2)."""
    async with proxy.http.options("/studies", headers={"Max-Forwards": said}) as response:
        assert response.status == 200
    assert upstream.only.all("Max-Forwards") == handed_on


async def test_errors_of_the_proxy_can_be_read_by_pages() -> None:
    """Those that the upstream does not know of, too."""
    async with forward_to(f"http://{HOST}:{free_port()}", cors=PACSBIN) as proxy:
        for path, status in (("/studies", 502), ("/%2e%2e", 400)):
            url = URL(proxy.url + path, encoded=True)
            async with proxy.http.get(url, headers={"Origin": "https://pacsbin.com"}) as response:
                assert response.status == status
                assert response.headers["Access-Control-Allow-Origin"] == "https://pacsbin.com"
