"""Where requests go: below the configured URLs as they are, and nowhere else, whatever a client sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from proxy.forward.targets import Bases, check_target, is_search
from tests.peers.process import HOST
from tests.proxy.forwarding import Conversation, Recorder, answering, forward_to, ok, recorder
from tests.proxy.running import Proxy


@pytest.fixture
async def upstream() -> AsyncIterator[Recorder]:
    async with recorder() as upstream:
        yield upstream


@pytest.fixture
async def proxy(upstream: Recorder) -> AsyncIterator[Proxy]:
    async with forward_to(upstream.url) as proxy:
        yield proxy


async def send(proxy: Proxy, request: str | bytes) -> bytes:
    """Send bytes, and read what comes until the end."""
    reader, writer = await asyncio.open_connection(HOST, int(proxy.url.rpartition(":")[2]))
    writer.write(request.encode("latin-1") if isinstance(request, str) else request)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


async def ask(proxy: Proxy, target: str, method: str = "GET", host: str = HOST) -> int:
    """Send a request with exactly that target; returns the status."""
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = await send(proxy, head)
    return int(answer.split(b" ")[1])


# --- as they are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/studies",
        "/studies/",
        "/studies/1.2.3/series/4.5/instances/6/frames/1,2,3",
        "/studies/1.2.3/metadata?includefield=all",
        "/wado?requestType=WADO&studyUID=1&contentType=application%2Fdicom",
        "/studies?PatientName=M%c3%bcller%2A^x&a=%2a*&&=&b=+%20;c,d|e~'()!$:@/?",
        "/studies?x=%0A%00%5c..%2f..",
        "/studies?a=..//../&b=http://evil/@evil",
        "/rs/%C3%BC/%7Euser/~user/a+b/(c)/d:e@f/;g=h/...",
        "/a%2Fb/c%2fd",
        "/a//b///c",
        "/@evil.example/x",
        "/:80/x",
        "/..a/b../.c",
        "/statusx",
        "/status/x",
        "/ping/",
        "/index.html",
        "/%25",
        "/%",
        "/%zz%",
    ],
)
async def test_path_and_query_go_on_byte_for_byte(proxy: Proxy, upstream: Recorder, target: str) -> None:
    """Below the base path, to the configured host, in one request."""
    assert await ask(proxy, target) == 200
    assert upstream.only.line == f"GET /base{target} HTTP/1.1"
    assert upstream.only.all("Host") == [f"{HOST}:{upstream.port}"]


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "REPORT", "SEARCH", "LOCK"]
)
async def test_every_method(proxy: Proxy, upstream: Recorder, method: str) -> None:
    assert await ask(proxy, "/some/where", method) == 200
    assert upstream.only.line == f"{method} /base/some/where HTTP/1.1"


@pytest.mark.parametrize("path", ["", "/", "/a/b", "/a/b/"])
async def test_the_base_path_is_kept(path: str) -> None:
    """With or without a slash at its end; also where there is none."""
    async with recorder() as upstream, forward_to(f"http://{HOST}:{upstream.port}{path}") as proxy:
        assert await ask(proxy, "/studies?x=1") == 200
        assert upstream.only.target == f"{path.rstrip('/')}/studies?x=1"


# --- nowhere else --------------------------------------------------------------------------------------------

ATTACKS = (
    "//evil.example/studies",
    "///evil.example",
    "//",
    "/..",
    "/../x",
    "/studies/..",
    "/studies/../../admin",
    "/studies/./x",
    "/.",
    "/studies/%2e%2e/x",
    "/%2E%2E/admin",
    "/.%2e/x",
    "/%2e./x",
    "/%2e",
    "/studies/%2f..",
    "/studies%2f..%2f..%2fadmin",
    "/studies/..%2fadmin",
    "/%252e%252e/x",
    "/%25252e%25252e/x",
    "/..;/x",
    "/..;a=b/manager",
    "/%2e%2e%3b/x",
    "/.;/x",
    "/\\evil.example",
    "/\\..\\x",
    "/..\\x",
    "/x%5c..%5cy",
    "/%5C%5Cevil",
    "/x%255cy",
    "/x%00",
    "/x%0d%0aHost:%20evil",
    "/x%0a",
    "/x%09y",
    "/x%7f",
    "/x%250d%250aEvil:%201",
    "/%c0%ae%c0%ae/x",
    "/x%ff",
    "/x\x7fy",
    "/x\x01y",
    "/x\ty",
    "/x?y\x0by",
    "/x\x80y",
    "/x?y=\xff",
    "/studies/1.2?_method=DELETE",
    "/studies/1.2?a=b&%5fMethod=put",
    "/studies/1.2?a=b;_method",
    "/studies?PatientName=M\xc3\xbcller",
    "/x#fragment",
    "/x?y#/../z",
    "http://evil.example/studies",
    "https://evil.example/studies",
    "http://user@evil.example:80/studies",
    "HTTP://evil.example/",
    "ftp://evil.example/x",
    "evil.example/studies",
    "@evil.example/studies",
    ":80@evil.example/",
    ".evil.example/studies",
    "*",
    "?x=1",
    "studies",
    "",
)


@pytest.mark.parametrize("target", ATTACKS)
async def test_what_leads_elsewhere_goes_nowhere(proxy: Proxy, upstream: Recorder, target: str) -> None:
    """A client's mistake, and no request at all."""
    status = await ask(proxy, target)
    assert status in (400, 404)
    assert upstream.requests == []


async def test_an_attack_that_repeats_the_hosts_name(proxy: Proxy, upstream: Recorder) -> None:
    """Neither a Host field nor an absolute URL that agrees with it says where a request goes."""
    for target in ("http://evil.example/studies", "/studies"):
        assert await ask(proxy, target, host="evil.example") == 200
    assert [request.line for request in upstream.requests] == ["GET /base/studies HTTP/1.1"] * 2
    assert [request.one("Host") for request in upstream.requests] == [f"{HOST}:{upstream.port}"] * 2


@pytest.mark.parametrize("scheme", ["http", "HTTP"])
@pytest.mark.parametrize(
    "host", ["proxy.local:3006", "proxy.local", "proxy.local:80"], ids=["port", "no port", "default port"]
)
async def test_an_absolute_url_of_the_proxys_own(proxy: Proxy, upstream: Recorder, scheme: str, host: str) -> None:
    """The same as its path alone (RFC 9112 3.2.2), and what is refused of that is refused."""
    own = f"{scheme}://{host}"
    assert await ask(proxy, f"{own}/studies/1.2?x=http://y/../%2e", host=host) == 200
    assert upstream.only.line == "GET /base/studies/1.2?x=http://y/../%2e HTTP/1.1"
    assert await ask(proxy, f"{own}/status", host=host) == 200
    for attack in ATTACKS:
        if attack.startswith("/"):
            assert await ask(proxy, own + attack, host=host) in (400, 404)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("target", ["evil.example:443", f"{HOST}:22", "/studies"])
async def test_no_tunnel(proxy: Proxy, upstream: Recorder, target: str) -> None:
    assert await ask(proxy, target, "CONNECT") in (400, 404, 501)
    assert upstream.requests == []


async def test_no_trace(upstream: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer would show the credentials that the proxy adds."""
    monkeypatch.setenv("UPSTREAM_TOKEN", "abc")
    async with forward_to(upstream.url, forward={"credentials": {"secretVariable": "UPSTREAM_TOKEN"}}) as proxy:
        assert await ask(proxy, "/studies", "TRACE") == 501
    assert upstream.requests == []


@pytest.mark.parametrize(
    "request_text",
    [
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /y",
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nabcde",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, identity\r\n\r\nabcde",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\nX\x01: b\r\n\r\n",
        "GET /x y HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /x HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET /x HTTP/2.0\r\nHost: a\r\n\r\n",
    ],
)
async def test_ambiguous_requests_go_nowhere(proxy: Proxy, upstream: Recorder, request_text: str) -> None:
    """What two servers could take for different requests (RFC 9112 11.2)."""
    answer = await send(proxy, request_text)
    assert answer.split(b" ")[1] in (b"400", b"505")
    assert upstream.requests == []


async def test_one_request_is_one_request(proxy: Proxy, upstream: Recorder) -> None:
    """What a body holds is never taken for another request, by chunks, by length or in a pipeline."""
    hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
    chunks = f"{len(hidden):x}\r\n{hidden}\r\n0\r\n\r\n"
    answers = await send(
        proxy,
        f"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {len(hidden)}\r\n\r\n{hidden}"
        f"POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
        f"GET /c HTTP/1.1\r\nHost: a\r\nContent-Length: {len(hidden)}\r\n\r\n{hidden}"
        "GET /d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    assert answers.count(b"HTTP/1.1 200 OK") == 4
    assert [each.target for each in upstream.requests] == ["/base/a", "/base/b", "/base/c", "/base/d"]
    assert [each.body for each in upstream.requests] == [hidden.encode()] * 3 + [b""]


@pytest.mark.parametrize("target", ["/", "/ping", "/health", "/status", "/%70ing", "/status?x=1"])
async def test_the_proxys_own_paths(proxy: Proxy, upstream: Recorder, target: str) -> None:
    """They are answered by the proxy, whatever the method."""
    assert await ask(proxy, target) == 200
    for method in ("POST", "PUT", "HEAD", "DELETE"):
        assert await ask(proxy, target, method) == 405
    assert upstream.requests == []


async def test_a_request_that_comes_back() -> None:
    """A proxy that is configured to forward to itself says so, instead of asking itself until nothing is left."""

    running: Proxy

    async def again(conversation: Conversation) -> None:
        """Come back with what the proxy has sent, as it would with its own address for a base."""
        fields = "".join(f"{name}: {value}\r\n" for name, value in conversation.request.fields if name != "Host")
        back = await send(running, f"GET /studies HTTP/1.1\r\nHost: {HOST}\r\n{fields}Connection: close\r\n\r\n")
        await conversation.send(back)
        conversation.writer.close()

    async with recorder(again) as upstream, forward_to(upstream.url) as running:
        async with running.http.get("/studies") as response:
            assert response.status == 508
            assert "leads back" in json.loads(await response.read())["error"]
        assert len(upstream.requests) == 1


# --- two URLs ------------------------------------------------------------------------------------------------

SEARCHES = (
    "/studies",
    "/studies?x=1",
    "/studies/",
    "/studies/1.2/series",
    "/studies/1.2/instances?limit=1",
    "/studies/1.2/series/3.4/instances",
    "/series",
    "/instances?x",
)
OTHERS = (
    "/studies/1.2",
    "/studies/1.2/",
    "/studies/1.2/metadata",
    "/studies/1.2/series/3.4",
    "/studies/1.2/series/3.4/instances/5.6",
    "/studies/1.2/series/3.4/instances/5.6/frames/1",
    "/studies/1.2/series/3.4/rendered",
    "/wado?requestType=WADO",
    "/workitems",
    "/studiesx",
    "/x/studies",
    "/series/1.2/x",
)


@pytest.mark.parametrize("target", SEARCHES)
async def test_searches_go_to_the_one(target: str) -> None:
    """By GET and HEAD; an upload to the same path goes to the other."""
    async with recorder() as qido, recorder() as wado, forward_to(qido.url, wado.url) as proxy:
        assert await ask(proxy, target) == 200
        assert qido.only.target == f"/base{target}"
        assert await ask(proxy, target, "HEAD") == 200
        assert not wado.requests
        assert await ask(proxy, target, "POST") == 200
        assert wado.only.line == f"POST /base{target} HTTP/1.1"
        assert len(qido.requests) == 2


@pytest.mark.parametrize("target", OTHERS)
async def test_all_else_goes_to_the_other(target: str) -> None:
    async with recorder() as qido, recorder() as wado, forward_to(qido.url, wado.url) as proxy:
        for method in ("GET", "POST", "DELETE"):
            assert await ask(proxy, target, method) == 200
        assert [each.target for each in wado.requests] == [f"/base{target}"] * 3
        assert not qido.requests


async def test_addresses_of_both_become_the_proxys() -> None:
    """A search's answer names the server that has the images."""
    async with recorder() as wado:
        answer = answering(ok(json.dumps([f"{wado.url}/studies/1", f"http://{HOST}:1/x"]).encode()))
        async with (
            recorder(answer) as qido,
            forward_to(qido.url, wado.url) as proxy,
            proxy.http.get("/studies") as response,
        ):
            assert json.loads(await response.read()) == [f"{proxy.url}/studies/1", f"http://{HOST}:1/x"]


def test_the_rules_alone() -> None:
    """What is refused, and what is a search, without a proxy around it."""
    for target in ATTACKS:
        with pytest.raises(ValueError, match=r"path|URL"):
            check_target(target.encode("latin-1").decode("utf-8", "surrogateescape"))
    assert all(is_search("GET", target.partition("?")[0]) for target in SEARCHES)
    assert not any(is_search("GET", target.partition("?")[0]) for target in OTHERS)
    bases = Bases("https://q.example/qido", "https://w.example:8443")
    assert str(bases.target("GET", "/studies?a=%2f").url) == "https://q.example/qido/studies?a=%2f"
    assert str(bases.target("GET", "/@x").url) == "https://w.example:8443/@x"
    assert bases.target("GET", "/:1@evil/").url.host == "w.example"
