"""CORS by real requests: who may call, with what, and what a page may read of the answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from multidict import CIMultiDictProxy

from proxy.app import ROUTES
from proxy.demo.archive import DemoArchive
from proxy.dicomweb.transactions import template_of
from tests.corpus import Corpus
from tests.peers.process import HOST, Address, free_port
from tests.proxy.forwarding import answering, forward_to, ok, recorder
from tests.proxy.retrieved import kept
from tests.proxy.running import Proxy, proxy_for

PACSBIN = {"origin": ["pacsbin.com"]}
"""As in the published sample configuration."""

ALLOWED = pytest.mark.parametrize("origin", ["https://pacsbin.com", "http://pacsbin.com"])
OTHERS = (
    "https://evilpacsbin.com",
    "https://pacsbin.com.evil.com",
    "https://www.pacsbin.com",
    "https://pacsbin.com:8443",
    "https://pacsbin.com.",
    "https://pacsbin.com@evil.com",
    "https://evil.com/pacsbin.com",
    "ftp://pacsbin.com",
    "pacsbin.com",
    "https://pacsbin.com, https://evil.com",
    "HTTPS://PACSBIN.COM",  # browsers send lower case: nothing else is theirs
    "null",
    "*",
    "",
)
REFUSED = pytest.mark.parametrize("origin", OTHERS)
PLACES = {"study": "1.2", "series": "1.2.3", "instance": "1.2.3.4", "frames": "1", "path": "00420011"}


def located(path: str) -> str:
    """Fill in the places of a route's path."""
    return template_of(path).format(**PLACES)


@pytest.fixture
async def archive(samples: Corpus) -> AsyncIterator[Address]:
    async with DemoArchive(samples.folder) as archive:
        yield Address("DEMO", archive.port)


@pytest.fixture
async def proxy(archive: Address) -> AsyncIterator[Proxy]:
    """The proxy as the published sample configures it."""
    async with proxy_for(archive, use_cget=True, cors=PACSBIN) as proxy:
        yield proxy


async def preflight(
    proxy: Proxy, path: str, origin: str, method: str = "GET", headers: str | None = None, **more: str
) -> tuple[int, CIMultiDictProxy[str]]:
    """Send what a browser sends before the request proper."""
    asked = {"Origin": origin, "Access-Control-Request-Method": method, **more}
    if headers is not None:
        asked["Access-Control-Request-Headers"] = headers
    async with proxy.http.options(path, headers=asked) as response:
        return response.status, response.headers


async def fetched(
    proxy: Proxy, path: str, origin: str | None, method: str = "GET", **more: Any
) -> tuple[int, CIMultiDictProxy[str]]:
    """Send a request from a page of `origin`, and read the answer to its end."""
    headers = more.pop("headers", {}) | ({} if origin is None else {"Origin": origin})
    async with proxy.http.request(method, path, headers=headers, **more) as response:
        await response.read()
        return response.status, response.headers


def access(headers: CIMultiDictProxy[str]) -> set[str]:
    """Return the names of CORS headers."""
    return {name.lower() for name in headers if name.lower().startswith("access-control-")}


def varies(headers: CIMultiDictProxy[str]) -> bool:
    """Tell whether caches are told that the answer is another for another origin."""
    return "Origin" in [each.strip() for value in headers.getall("Vary", []) for each in value.split(",")]


# --- who -----------------------------------------------------------------------------------------------------


@ALLOWED
async def test_a_listed_origin_may_read_with_credentials(proxy: Proxy, origin: str) -> None:
    status, headers = await fetched(proxy, "/studies", origin)
    assert status == 200
    assert headers.getall("Access-Control-Allow-Origin") == [origin]
    assert headers["Access-Control-Allow-Credentials"] == "true"
    exposed = set(headers["Access-Control-Expose-Headers"].split(","))
    assert exposed >= {
        "Content-Type",
        "Content-Length",
        "Content-Location",
        "ETag",
        "Content-Range",
        "Retry-After",
        "Warning",
        "WWW-Authenticate",
        "X-Cache",
    }
    assert varies(headers)


@REFUSED
async def test_no_other_origin_may_read(proxy: Proxy, origin: str) -> None:
    """Neither an answer nor an error; the answer itself is given, as to any program that is no browser."""
    for path, expected in (("/studies", 200), ("/studies?limit=x", 400), ("/nowhere", 404)):
        status, headers = await fetched(proxy, path, origin)
        assert status == expected
        assert not access(headers)
        assert varies(headers)


@REFUSED
async def test_no_other_origin_passes_a_preflight(proxy: Proxy, origin: str) -> None:
    status, headers = await preflight(
        proxy, "/studies", origin, headers="accept", **{"Access-Control-Request-Private-Network": "true"}
    )
    assert status == 403
    assert not access(headers)


async def test_two_origin_headers(proxy: Proxy) -> None:
    """No browser sends two; a listed one beside another does not make the other one listed."""
    request = b"GET /ping HTTP/1.1\r\nHost: x\r\nOrigin: https://evil.com\r\nOrigin: https://pacsbin.com\r\n\r\n"
    with socket.socket() as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, (HOST, int(proxy.url.rpartition(":")[2])))
        await loop.sock_sendall(client, request)
        answer = await loop.sock_recv(client, 65536)
    assert b"evil.com" not in answer


async def test_without_an_origin(proxy: Proxy) -> None:
    """A program that is no browser gets no CORS headers, but caches are told."""
    for path in ("/studies", "/nowhere"):
        _, headers = await fetched(proxy, path, None)
        assert not access(headers)
        assert varies(headers)


async def test_a_wildcard_never_goes_with_credentials(archive: Address) -> None:
    """The default, `"*"` and `credentials: true`: any page may read, none with a user's credentials."""
    async with proxy_for(archive, use_cget=True) as proxy:
        for origin in ("https://anywhere.example", "null"):
            for path in ("/studies", "/studies?limit=x", "/nowhere"):
                _, headers = await fetched(proxy, path, origin)
                assert headers["Access-Control-Allow-Origin"] in (origin, "*")
                assert "Access-Control-Allow-Credentials" not in headers
            status, headers = await preflight(proxy, "/studies", origin, headers="accept")
            assert status == 200
            assert "Access-Control-Allow-Credentials" not in headers


async def test_a_wildcard_beside_a_listed_origin(archive: Address) -> None:
    """The listed one keeps its credentials."""
    async with proxy_for(archive, use_cget=True, cors={"origin": ["*", "https://pacsbin.com"]}) as proxy:
        for path in ("/studies", "/nowhere"):
            _, headers = await fetched(proxy, path, "https://pacsbin.com")
            assert headers["Access-Control-Allow-Credentials"] == "true"
            _, headers = await fetched(proxy, path, "http://pacsbin.com")
            assert headers["Access-Control-Allow-Origin"] == "http://pacsbin.com"
            assert "Access-Control-Allow-Credentials" not in headers


async def test_credentials_can_be_switched_off(archive: Address) -> None:
    async with proxy_for(archive, use_cget=True, cors={**PACSBIN, "credentials": False}) as proxy:
        for path in ("/ping", "/nowhere"):
            _, headers = await fetched(proxy, path, "https://pacsbin.com")
            assert headers["Access-Control-Allow-Origin"] == "https://pacsbin.com"
            assert "Access-Control-Allow-Credentials" not in headers


# --- preflights ----------------------------------------------------------------------------------------------


@ALLOWED
async def test_a_preflight_of_every_route(proxy: Proxy, origin: str) -> None:
    """With the headers that DICOMweb clients set; the answer may be kept for two hours."""
    for method, path, _ in ROUTES:
        status, headers = await preflight(
            proxy, located(path), origin, method, "accept,authorization,content-type,range"
        )
        assert status == 200, path
        assert headers["Access-Control-Allow-Origin"] == origin
        assert headers["Access-Control-Allow-Credentials"] == "true"
        assert method in headers["Access-Control-Allow-Methods"].split(",")
        allowed = {name.strip().lower() for name in headers["Access-Control-Allow-Headers"].split(",")}
        assert allowed >= {"accept", "authorization", "content-type", "range", "if-none-match"}
        assert headers["Access-Control-Max-Age"] == "7200"
        assert varies(headers)
        assert int(headers["Content-Length"]) == 0


async def test_a_preflight_asks_no_archive() -> None:
    """Viewers send one for each frame: it is answered with the archive down.

    Also where the request proper will fail: or the page would never see the answer that says why.
    """
    async with proxy_for(Address("DEAD", free_port()), use_cget=True, cors=PACSBIN) as proxy:
        for path in ("/studies", "/studies/1.2", "/studies/no-uid", "/nowhere", "/studies?limit=x"):
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
                status, headers = await preflight(proxy, path, "https://pacsbin.com", method, "accept")
                assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://pacsbin.com")


async def test_one_preflight_does_for_all_methods_and_headers(proxy: Proxy) -> None:
    """The browser need not ask again for the next method or header of the same address."""
    _, headers = await preflight(proxy, "/studies", "https://pacsbin.com")
    assert headers["Access-Control-Allow-Methods"] == "DELETE,GET,HEAD,POST,PUT"
    assert "If-None-Match" in headers["Access-Control-Allow-Headers"].split(",")
    varies_by = {"Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"}
    assert set(headers["Vary"].split(", ")) == varies_by


async def test_a_preflight_needs_no_sign_in(archive: Address) -> None:
    """It comes without credentials, always; the request proper is told what it lacks, and the page may read that."""
    auth = {"enabled": True, "tokens": [{"name": "viewer", "tokenHash": "0" * 64}]}
    async with proxy_for(archive, use_cget=True, cors=PACSBIN, auth=auth) as proxy:
        for path in ("/studies", "/status", "/nowhere", "/ping"):
            status, headers = await preflight(proxy, path, "https://pacsbin.com", headers="authorization")
            assert status == 200
            assert "Authorization" in headers["Access-Control-Allow-Headers"].split(",")
        status, headers = await fetched(proxy, "/studies", "https://pacsbin.com")
        assert (status, headers["Access-Control-Allow-Origin"]) == (401, "https://pacsbin.com")
        assert "WWW-Authenticate" in headers["Access-Control-Expose-Headers"].split(",")
        assert "WWW-Authenticate" in headers
        status, headers = await fetched(proxy, "/studies", "https://evil.com")
        assert (status, access(headers), varies(headers)) == (401, set(), True)


async def test_other_headers_have_to_be_configured(archive: Address) -> None:
    cors = {**PACSBIN, "allowedHeaders": ["X-Request-Id"]}
    async with proxy_for(archive, use_cget=True, cors=cors) as proxy:
        for asked, expected in (("x-request-id", 200), ("X-REQUEST-ID, accept", 200), ("x-evil", 403)):
            assert (await preflight(proxy, "/studies", "https://pacsbin.com", headers=asked))[0] == expected


async def test_methods_that_are_not_configured(archive: Address) -> None:
    async with proxy_for(archive, use_cget=True, cors={**PACSBIN, "methods": ["get"]}) as proxy:
        origin = "https://pacsbin.com"
        assert (await preflight(proxy, "/studies", origin))[0] == 200
        for path, method in (("/studies", "DELETE"), ("/dimse/echo", "POST"), ("/studies", "TRACE")):
            status, headers = await preflight(proxy, path, origin, method, "content-type")
            assert status == 403
            assert not access(headers)


async def test_a_preflight_that_is_none(proxy: Proxy) -> None:
    """OPTIONS without what makes it a preflight asks what there is; a page may read it as it may any answer."""
    for headers in ({}, {"Origin": "https://pacsbin.com"}, {"Access-Control-Request-Method": "GET"}):
        async with proxy.http.options("/studies", headers=headers) as response:
            assert response.status == 200
            assert response.headers["Allow"] == "GET, OPTIONS, POST"
            assert ("Access-Control-Allow-Origin" in response.headers) is ("Origin" in headers)
            assert "Access-Control-Allow-Methods" not in response.headers


async def test_private_network_access(archive: Address, proxy: Proxy) -> None:
    """A listed public page may reach a private address; with a wildcard, the internet at large may not."""
    asked = {"Access-Control-Request-Private-Network": "true"}
    _, headers = await preflight(proxy, "/studies", "https://pacsbin.com", **asked)
    assert headers["Access-Control-Allow-Private-Network"] == "true"
    _, headers = await preflight(proxy, "/studies", "https://pacsbin.com")
    assert "Access-Control-Allow-Private-Network" not in headers
    async with proxy_for(archive, use_cget=True) as open_proxy:
        _, headers = await preflight(open_proxy, "/studies", "https://pacsbin.com", **asked)
        assert headers["Access-Control-Allow-Origin"] == "https://pacsbin.com"
        assert "Access-Control-Allow-Private-Network" not in headers


# --- every kind of answer ------------------------------------------------------------------------------------


@ALLOWED
async def test_a_page_may_read_every_kind_of_answer(samples: Corpus, archive: Address, origin: str) -> None:
    """Errors too: or a page could not tell a missing study from a proxy that is down."""
    sample = samples.samples[0]
    instance = f"/studies/{sample.study_uid}/series/{sample.series_uid}/instances/{sample.sop_instance_uid}"
    small: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
        ("GET", "/", 200, {}),
        ("GET", "/ping", 200, {}),
        ("GET", "/status", 200, {}),
        ("POST", "/dimse/echo", 200, {"data": b"{}"}),
        ("POST", "/dimse/echo", 400, {"data": b"?"}),
        ("POST", "/dimse/echo", 413, {"data": b" " * 100_000}),
        ("GET", f"/studies/{sample.study_uid}", 200, {}),
        ("GET", f"{instance}?multipart=false", 200, {}),
        ("GET", instance, 406, {"headers": {"Accept": "image/tiff"}}),
        ("GET", "/studies/no-uid", 400, {}),
        ("GET", "/studies?Nonsense=1", 400, {}),
        ("GET", "/studies/1.2.3", 404, {}),
        ("GET", "/nowhere", 404, {}),
        ("DELETE", "/studies", 405, {}),
    )
    async with proxy_for(archive, use_cget=True, cors=PACSBIN) as proxy:
        for method, path, expected, more in small:
            status, headers = await fetched(proxy, path, origin, method, **more)
            assert status == expected, (method, path)
            assert headers.getall("Access-Control-Allow-Origin") == [origin], (method, path)
            assert headers.getall("Access-Control-Allow-Credentials") == ["true"]
            assert "X-Cache" in headers["Access-Control-Expose-Headers"]
            assert varies(headers)
    async with proxy_for(Address("DEAD", free_port()), use_cget=True, cors=PACSBIN) as proxy:
        for path in ("/studies", f"/studies/{sample.study_uid}"):
            status, headers = await fetched(proxy, path, origin)
            assert (status, headers["Access-Control-Allow-Origin"]) == (502, origin)


async def test_answers_from_the_cache(samples: Corpus, archive: Address) -> None:
    """304 for what a page has already, 206 for a range, and a single Vary for all that the answer depends on."""
    sample = samples.samples[0]
    path = f"/studies/{sample.study_uid}/series/{sample.series_uid}/instances/{sample.sop_instance_uid}"
    headers = {"Accept": "application/dicom; transfer-syntax=*"}
    async with proxy_for(archive, use_cget=True, cors=PACSBIN, enableCache=True) as proxy:
        await fetched(proxy, path, "https://pacsbin.com", headers=headers)
        await kept(proxy.http)
        status, first = await fetched(proxy, path, "https://pacsbin.com", headers=headers)
        assert (status, first["X-Cache"]) == (200, "HIT")
        known = headers | {"If-None-Match": first["ETag"]}
        again, second = await fetched(proxy, path, "https://pacsbin.com", headers=known)
        assert again == 304
        some = {"Range": "bytes=0-9", "Accept": "application/octet-stream"}
        ranged, third = await fetched(proxy, f"{path}/bulkdata/7FE00010", "https://pacsbin.com", headers=some)
        assert (ranged, third["Content-Range"].partition("/")[0]) == (206, "bytes 0-9")
        assert third["Access-Control-Allow-Origin"] == "https://pacsbin.com"
        for answer in first, second:
            assert answer["Access-Control-Allow-Origin"] == "https://pacsbin.com"
            assert [sorted(value.split(", ")) for value in answer.getall("Vary")] == [["Accept", "Origin"]]


async def test_a_server_behind_has_no_say() -> None:
    """In dicomweb mode: whom it allows is not whom the proxy allows, and its answers pass on to listed origins."""

    said = ("Access-Control-Allow-Origin: *", "Access-Control-Allow-Credentials: true", "Vary: accept-encoding, Origin")
    async with recorder(answering(ok(b"[]", *said))) as upstream, forward_to(upstream.url, cors=PACSBIN) as proxy:
        for path, expected in (("/studies", 200), ("/status", 200)):
            status, headers = await fetched(proxy, path, "https://pacsbin.com")
            assert status == expected
            assert headers.getall("Access-Control-Allow-Origin") == ["https://pacsbin.com"]
            assert headers.getall("Access-Control-Allow-Credentials") == ["true"]
            assert varies(headers)
            assert headers["Vary"].lower().count("origin") == 1
            status, headers = await fetched(proxy, path, "https://evil.com")
            assert (status, access(headers), varies(headers)) == (expected, set(), True)
        for path in ("/studies", "/studies/1.2/anything", "/status"):
            assert (await preflight(proxy, path, "https://pacsbin.com", headers="accept"))[0] == 200
            assert (await preflight(proxy, path, "https://evil.com", headers="accept"))[0] == 403


async def test_a_streamed_search(samples: Corpus) -> None:
    """An answer whose headers go out before its end."""
    async with (
        DemoArchive(samples.folder) as archive,
        proxy_for(Address("DEMO", archive.port), use_cget=True, cors=PACSBIN) as proxy,
    ):
        headers = {"Origin": "https://pacsbin.com"}
        async with proxy.http.get("/instances?includefield=all", headers=headers) as response:
            assert response.status == 200
            assert response.headers["Transfer-Encoding"] == "chunked"
            assert response.headers["Access-Control-Allow-Origin"] == "https://pacsbin.com"
            assert isinstance(await response.json(content_type=None), list)


async def test_a_broken_origin_header_is_no_error(proxy: Proxy) -> None:
    for origin in ("https://" + "a" * 5000, "é", "https://pacsbin.com\tx"):
        status, headers = await fetched(proxy, "/ping", origin)
        assert status == 200
        assert not access(headers)
