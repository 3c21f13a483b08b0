"""Plain HTTP is sent to HTTPS: to the same host, path and query, byte for byte; and nowhere else."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.peers.process import HOST, require_program
from tests.proxy.securing import ROOT, Secured, secured

HOSPITAL = "dicom.hospital.example"


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Secured]:
    """A proxy with HTTPS and the redirect, as it is by default."""
    async with secured(tmp_path, cors={"origin": ["viewer.example"]}) as running:
        yield running


async def raw(proxy: Secured, request: bytes) -> tuple[int, dict[str, str]]:
    """Send bytes over plain HTTP; returns the status and the headers of the answer."""
    reader, writer = await asyncio.open_connection(HOST, proxy.http_port)
    try:
        async with asyncio.timeout(5):
            writer.write(request)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    finally:
        writer.close()
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), headers


async def sent_to(proxy: Secured, target: bytes, host: str = HOSPITAL, method: bytes = b"GET") -> str | int:
    """Where a request for `target` is redirected to, or the status when it is not."""
    status, headers = await raw(proxy, b"%b %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (method, target, host.encode()))
    assert ("Location" in headers) is (status == 308)
    return headers.get("Location", status)


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/studies?PatientName=M%C3%BCller*&limit=1",
        b"/studies/1.2.3/",
        b"/a%2Fb/%2e%2e/..;/c?d=%26&e=+f&&g",
        b"//evil.example/path",
        b"///evil.example",
        b"/\\evil.example",
        b"/@evil.example",
        b"/x?next=http://evil.example/",
        b"/%0d%0aSet-Cookie:%20a=b",
        b'/{}|^`"<>',
        b"/" + b"x" * 4000,
    ],
    ids=lambda target: target[:40].decode(),
)
async def test_path_and_query_stay_as_they_are(proxy: Secured, target: bytes) -> None:
    """Byte for byte, and always behind the host of the request."""
    expected = f"https://{HOSPITAL}:{proxy.https_port}{target.decode()}"
    assert await sent_to(proxy, target) == expected


@pytest.mark.parametrize("target", ["/studies?PatientName=Müller".encode(), b"/\x00", b"/\x7f", b"/a\tb"], ids=repr)
async def test_bytes_that_no_header_can_have(proxy: Secured, target: bytes) -> None:
    """They are no HTTP, and come to no redirect."""
    assert await sent_to(proxy, target) == 400


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS"])
async def test_the_method_stays(proxy: Secured, method: bytes) -> None:
    """308 is for every method, and not one that becomes GET (RFC 9110 15.4.9); no browser is to keep it for ever."""
    status, headers = await raw(proxy, b"%b /studies HTTP/1.1\r\nHost: %b\r\n\r\n" % (method, HOSPITAL.encode()))
    assert (status, headers["Cache-Control"]) == (308, "no-store")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1:3006", "127.0.0.1"),
        ("dicom", "dicom"),
        ("DICOM.Hospital.Example", "DICOM.Hospital.Example"),
        ("[fd00::2]:3006", "[fd00::2]"),
        ("dicom.hospital.example.", "dicom.hospital.example."),
    ],
)
async def test_the_host_stays(proxy: Secured, host: str, name: str) -> None:
    """With the port of HTTPS in the place of that of HTTP."""
    assert await sent_to(proxy, b"/studies", host) == f"https://{name}:{proxy.https_port}/studies"


NO_HOSTS = (
    "",
    "..",
    "-",
    "a..b",
    "evil.example/",
    "a@evil.example",
    "evil.example:0",
    "evil.example:99999",
    "evil.example:80:80",
    "evil.example#",
    "evil.example?",
    "evil example",
    "http://evil.example",
    "under_score",
    "[::1",
    "[::g]",
    "1.2.3",
    "a" * 64,
    "é.example",
)


@pytest.mark.parametrize("host", NO_HOSTS)
async def test_what_is_no_host_is_no_place_to_go(proxy: Secured, host: str) -> None:
    """Where the configuration has no address for clients, that is a bad request."""
    assert await sent_to(proxy, b"/studies", host) == 400


@pytest.mark.parametrize("host", ["", "..", "a@evil.example"])
async def test_then_the_configured_address_is(tmp_path: Path, host: str) -> None:
    async with secured(tmp_path, publicUrl=f"https://{HOSPITAL}/dicomweb") as proxy:
        assert await sent_to(proxy, b"/studies?a=b", host) == f"https://{HOSPITAL}/dicomweb/studies?a=b"
        status, headers = await raw(proxy, b"GET /studies HTTP/1.0\r\n\r\n")
        assert (status, headers["Location"]) == (308, f"https://{HOSPITAL}/dicomweb/studies")


async def test_the_configured_address_of_that_host_is_taken(tmp_path: Path) -> None:
    """Its port may be another one, as in a container; other hosts are none of its business."""
    async with secured(tmp_path, publicUrl=f"https://{HOSPITAL}:8443") as proxy:
        assert await sent_to(proxy, b"/studies", HOSPITAL) == f"https://{HOSPITAL}:8443/studies"
        assert await sent_to(proxy, b"/studies", "10.1.2.3") == f"https://10.1.2.3:{proxy.https_port}/studies"


async def test_the_usual_port_is_left_out() -> None:
    from proxy.security.http.redirect import Redirect

    assert Redirect(443, None).target("a.example", "/x") == "https://a.example/x"
    assert Redirect(8443, None).target("[::1]", "/x") == "https://[::1]:8443/x"
    assert Redirect(443, None).target(None, "/x") is None


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (b"http://evil.example/studies", HOSPITAL),
        (b"http://evil.example", HOSPITAL),
        (b"https://evil.example/studies", HOSPITAL),
        (b"evil.example/studies", HOSPITAL),
        (b"http:evil.example", HOSPITAL),
        (b"http://dicom.hospital.example@evil.example/", HOSPITAL),
    ],
)
async def test_no_absolute_url_leads_elsewhere(proxy: Secured, target: bytes, host: str) -> None:
    where = await sent_to(proxy, target, host)
    assert where == 400 or re.match(rf"https://{re.escape(HOSPITAL)}:{proxy.https_port}/", str(where))


async def test_an_absolute_url_of_this_server(proxy: Secured) -> None:
    """As it is sent to a proxy (RFC 9112 3.2.2)."""
    there = f"https://{HOSPITAL}:{proxy.https_port}"
    for target, path in ((b"/studies?a=http://b/", "/studies?a=http://b/"), (b"", "/"), (b"?a=b", "/?a=b")):
        assert await sent_to(proxy, b"http://dicom.hospital.example" + target) == there + path


async def test_ping_is_answered(proxy: Secured) -> None:
    """Load balancers seldom know the certificate."""
    for path in (b"/ping", b"//ping/", b"/%70ing"):
        assert await sent_to(proxy, path) == 200
    for other in (b"/health", b"/status", b"/ping/x", b"/nothing"):
        assert str(await sent_to(proxy, other)).startswith("https://")


async def test_an_upload_is_not_read(proxy: Secured) -> None:
    """The client is told before it sends gigabytes in clear text."""
    head = b"POST /studies HTTP/1.1\r\nHost: a.example\r\nContent-Type: application/dicom\r\n"
    status, headers = await raw(proxy, head + b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n")
    assert status == 308
    assert headers["Connection"] == "close"


async def test_a_page_is_told_nothing_by_a_preflight(proxy: Secured) -> None:
    """A browser follows no redirect there, and says so to the page's author, who has to use the https address."""
    ask = b"OPTIONS /studies HTTP/1.1\r\nHost: a.example\r\nOrigin: https://viewer.example\r\n"
    status, headers = await raw(proxy, ask + b"Access-Control-Request-Method: GET\r\n\r\n")
    assert status == 308
    assert headers["Location"].startswith("https://a.example:")


async def test_what_a_trusted_proxy_took_by_https_is_not_sent_round(tmp_path: Path) -> None:
    """It would go on for ever; from anybody else the header means nothing."""
    for trusted, expected in ((["127.0.0.1"], 404), ([], 308)):
        async with secured(tmp_path, trustedProxies=trusted) as proxy:
            ask = b"GET /nothing HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-Proto: https\r\n\r\n"
            status, _ = await raw(proxy, ask)
            assert status == expected


async def test_without_https_nothing_is_redirected() -> None:
    from proxy.security.http.redirect import redirect_to_https, set_up_https
    from tests.proxy.configs import MINIMAL

    app = aiohttp.web.Application(middlewares=[redirect_to_https])
    from proxy.config.checking import parse_config

    options: dict[str, Any] = {**MINIMAL, "ssl": {"redirectHttp": True, "hstsSeconds": 5}}
    set_up_https(app, parse_config(options))
    assert not app.on_response_prepare
    assert not list(app.keys())


async def test_curl_follows(proxy: Secured, tmp_path: Path) -> None:
    """With its method and body."""
    curl = require_program("curl", "curl")
    (tmp_path / "root.pem").write_bytes(ROOT.pem())
    line = [curl, "-sS", "-L", "--cacert", str(tmp_path / "root.pem"), "-w", "%{http_code} %{num_redirects} %{method}"]
    url = f"{proxy.plain_url}/dimse/echo"
    done = await asyncio.to_thread(
        subprocess.run, [*line, "-d", '{"peerIndex": 7}', url], capture_output=True, timeout=20, check=False
    )
    assert done.stderr == b""
    assert b"peerIndex must be" in done.stdout
    assert done.stdout.endswith(b"400 1 POST")
