"""nginx behind the proxy, as hospitals have it in front of archives: TLS, base paths, redirects, passwords, limits."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from multidict import CIMultiDictProxy

from tests.dul import certificates
from tests.peers.nginx import Nginx
from tests.peers.orthanc import Orthanc
from tests.peers.process import free_port, require_program
from tests.proxy.forwarding import forward_to
from tests.proxy.running import Proxy

LARGE = bytes(range(256)) * 40_000
PASSWORD = "pässword:1"

LOCATIONS = """
    location = /base/moved { return 301 $scheme://$http_host/base/found?x=1; }
    location = /base/relative { absolute_redirect off; return 302 /base/found; }
    location = /base/away { return 302 https://login.example.org/auth; }
    location = /base/dropped { return 444; }
    location = /base/slow.dcm { limit_rate 8m; }
    location /base/gone/ { proxy_pass http://127.0.0.1:%d; }
    location /base/small { client_max_body_size 1k; proxy_pass http://127.0.0.1:%d; }
    location /base/compressed/ { gzip on; gzip_proxied any; gzip_types application/dicom+json; gzip_min_length 10; }
"""


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> certificates.Certificates:
    """A private authority, and a certificate for 127.0.0.1."""
    return certificates.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory, pki: certificates.Certificates) -> Iterator[Nginx]:
    """nginx over TLS, with some files below /base."""
    folder = tmp_path_factory.mktemp("nginx")
    dead = free_port()
    with Nginx(folder, LOCATIONS % (dead, dead), certificates=pki) as nginx:
        base = folder / "files" / "base"
        (base / "compressed").mkdir(parents=True)
        (base / "folder").mkdir()
        (base / "large.dcm").write_bytes(LARGE)
        (base / "slow.dcm").write_bytes(LARGE)
        (base / "found").write_bytes(b"found")
        addresses = json.dumps([f"{nginx.url}/base/studies/{number}" for number in range(2000)])
        (base / "compressed" / "list.json").write_text(addresses)
        yield nginx


@pytest.fixture
def trusting(pki: certificates.Certificates) -> dict[str, object]:
    """Keys for an upstream whose certificate a private authority has signed."""
    return {"caFile": str(pki.authority)}


async def fetched(proxy: Proxy, path: str, **more: object) -> tuple[int, CIMultiDictProxy[str], bytes]:
    """GET without following."""
    async with proxy.http.get(path, allow_redirects=False, **more) as response:  # type: ignore[arg-type]
        return response.status, response.headers, await response.read()


async def test_files_over_tls(nginx: Nginx, trusting: dict[str, object]) -> None:
    """Whole, in part, and only when they have changed; the connection is used again."""
    async with forward_to(f"{nginx.url}/base", forward=trusting) as proxy:
        status, fields, body = await fetched(proxy, "/large.dcm")
        assert (status, fields["Content-Length"], fields["Content-Type"]) == (200, str(len(LARGE)), "application/dicom")
        assert hashlib.sha256(body).digest() == hashlib.sha256(LARGE).digest()
        status, part, body = await fetched(proxy, "/large.dcm", headers={"Range": "bytes=1000-1999"})
        assert (status, part["Content-Range"]) == (206, f"bytes 1000-1999/{len(LARGE)}")
        assert body == LARGE[1000:2000]
        status, unchanged, body = await fetched(proxy, "/large.dcm", headers={"If-None-Match": fields["ETag"]})
        assert (status, unchanged["ETag"], body) == (304, fields["ETag"], b"")
        async with proxy.http.head("/large.dcm") as response:
            assert (response.status, response.content_length) == (200, len(LARGE))


async def test_without_its_authority(nginx: Nginx) -> None:
    async with forward_to(f"{nginx.url}/base") as proxy:
        status, _, body = await fetched(proxy, "/large.dcm")
        assert status == 502
        assert "is not accepted: unable to get local issuer certificate" in json.loads(body)["error"]


async def test_redirects(nginx: Nginx, trusting: dict[str, object]) -> None:
    """They stay with the proxy, or they are refused; nginx was asked once for each."""
    before = len(nginx.requests)
    async with forward_to(f"{nginx.url}/base", forward=trusting) as proxy:
        for path, expected in (
            ("/moved", f"{proxy.url}/found?x=1"),
            ("/relative", f"{proxy.url}/found"),
            ("/folder", f"{proxy.url}/folder/"),
            ("/away", None),
        ):
            status, fields, _ = await fetched(proxy, path)
            assert fields.get("Location") == expected
            assert (status == 502) == (expected is None)
        async with proxy.http.get("/moved") as response:
            assert await response.read() == b"found"
    lines = [line for line in nginx.requests[before:] if "StudyInstanceUID" not in line]
    assert len(lines) == 6


async def test_no_answer(nginx: Nginx, trusting: dict[str, object]) -> None:
    """What nginx says of a server behind it that is dead goes on; when it drops the connection, the proxy says so."""
    async with forward_to(f"{nginx.url}/base", forward=trusting) as proxy:
        status, fields, body = await fetched(proxy, "/gone/x")
        assert (status, fields["Content-Type"]) == (502, "text/html")
        assert b"nginx" in body
        status, _, body = await fetched(proxy, "/dropped")
        assert (status, json.loads(body)["statusCode"]) == (502, 502)


async def test_a_slow_answer(nginx: Nginx, trusting: dict[str, object]) -> None:
    """It takes the time that it takes, and longer than `idle` as a whole."""
    forward = {**trusting, "timeouts": {"idle": 0.5}}
    async with forward_to(f"{nginx.url}/base", forward=forward) as proxy:
        started = time.monotonic()
        _, _, body = await fetched(proxy, "/slow.dcm")
        assert time.monotonic() - started > 0.8
        assert body == LARGE


async def test_an_upload_that_nginx_refuses(nginx: Nginx, trusting: dict[str, object]) -> None:
    """413 by its head alone: the client gets nginx's own answer, and no failure of a connection."""
    async with forward_to(f"{nginx.url}/base", forward=trusting) as proxy:
        for expect in (False, True):
            async with proxy.http.post("/small", data=LARGE[:1_000_000], expect100=expect) as response:
                assert response.status == 413
                assert b"nginx" in await response.read()


async def test_compression(nginx: Nginx, trusting: dict[str, object]) -> None:
    """Asked for by the client, and given by nginx, only where nothing has to be rewritten."""
    gzip = {"Accept-Encoding": "gzip"}
    async with forward_to(f"{nginx.url}/base", forward={**trusting, "rewriteUrls": False}) as proxy:
        _, fields, body = await fetched(proxy, "/compressed/list.json", headers=gzip)
        assert fields["Content-Encoding"] == "gzip"
        assert body[:2] == b"\x1f\x8b"
    async with forward_to(f"{nginx.url}/base", forward=trusting) as proxy:
        _, fields, body = await fetched(proxy, "/compressed/list.json", headers=gzip)
        assert "Content-Encoding" not in fields
        assert json.loads(body) == [f"{proxy.url}/studies/{number}" for number in range(2000)]


def signing_in(name: str, password: str) -> dict[str, str]:
    """Return the header of HTTP Basic."""
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


async def test_passwords(tmp_path: Path) -> None:
    """The proxy signs in for everybody, with the password of a file; a wrong one is its own fault."""
    openssl = require_program("openssl", "openssl")
    hashed = subprocess.run([openssl, "passwd", "-apr1", PASSWORD], capture_output=True, check=True, text=True).stdout
    (tmp_path / "passwords").write_text(f"proxy:{hashed}")
    secret = tmp_path / "secret"
    secret.write_text(f"{PASSWORD}\n")
    locations = f'location / {{ auth_basic "x"; auth_basic_user_file {tmp_path}/passwords; }}'
    with Nginx(tmp_path, locations) as nginx:
        (tmp_path / "files" / "x").write_bytes(b"x")
        credentials = {"username": "proxy", "secretFile": str(secret)}
        async with forward_to(nginx.url, forward={"credentials": credentials}) as proxy:
            assert (await fetched(proxy, "/x"))[0] == 200
            assert (await fetched(proxy, "/x", headers=signing_in("somebody", "else")))[0] == 200
        async with forward_to(nginx.url) as proxy:
            status, fields, _ = await fetched(proxy, "/x")
            assert (status, fields["WWW-Authenticate"]) == (401, 'Basic realm="x"')
            assert (await fetched(proxy, "/x", headers=signing_in("proxy", PASSWORD)))[0] == 200
        secret.write_text("wrong")
        async with forward_to(nginx.url, forward={"credentials": credentials}) as proxy:
            status, fields, body = await fetched(proxy, "/x")
            assert (status, "WWW-Authenticate" in fields) == (502, False)
            assert b"refuses the credentials" in body
            assert b"wrong" not in body
            async with proxy.http.get("/health") as response:
                state = await response.json(content_type=None)
                error = state["upstreams"][0]["lastError"]
                assert (response.status, error) == (503, "it refuses the credentials of the proxy")


@pytest.mark.parametrize(
    "header",
    [
        "proxy_set_header Host $http_host;",
        'proxy_set_header Forwarded "for=$remote_addr;proto=https;host=$http_x_forwarded_host";',
    ],
    ids=["host", "forwarded"],
)
async def test_orthanc_behind_nginx(
    orthanc_dicomweb: Orthanc, pki: certificates.Certificates, tmp_path: Path, header: str
) -> None:
    """Orthanc does not know that nginx speaks TLS, or goes by what nginx says of the proxy: its addresses are found."""
    locations = f"location /dicom-web/ {{ proxy_pass {orthanc_dicomweb.url}; {header} }}"
    with Nginx(tmp_path, locations, certificates=pki) as nginx:
        async with forward_to(f"{nginx.url}/dicom-web", forward={"caFile": str(pki.authority)}) as proxy:
            status, _, body = await fetched(proxy, "/studies", headers={"Accept": "application/dicom+json"})
            assert status == 200
            urls = re.findall(rb'"(https?://[^"]+)"', body)
            assert urls
            for url in urls:
                assert url.startswith(f"{proxy.url}/studies/".encode())
            async with proxy.http.get(urls[0].decode() + "/metadata") as response:
                assert response.status == 200


async def test_many_at_once(nginx: Nginx, trusting: dict[str, object]) -> None:
    """Each gets what it has asked for."""
    async with forward_to(f"{nginx.url}/base", forward=trusting) as proxy:

        async def part(number: int) -> None:
            start = number * 1000
            _, _, body = await fetched(proxy, "/large.dcm", headers={"Range": f"bytes={start}-{start + 999}"})
            assert body == LARGE[start : start + 1000]

        await asyncio.gather(*map(part, range(200)))
