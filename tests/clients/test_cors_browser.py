"""CORS as a browser has it: pages that are truly at https://pacsbin.com and at addresses that look alike.

The browser is told where these hosts are, and not to look at the certificate; all else is as with any page.
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import proxy.app
from proxy.demo.archive import DemoArchive
from proxy.security.auth.hashing import token_hash
from proxy.security.http import cors
from tests.clients.browser import Page, browser, find_browser, new_page
from tests.corpus import Corpus
from tests.dul.certificates import make
from tests.peers.process import HOST, Address
from tests.proxy.running import Proxy, proxy_for

PACSBIN = "https://pacsbin.com"
PUBLISHED: Mapping[str, object] = {
    "origin": ["pacsbin.com"],
    "methods": ["GET", "POST", "PUT", "DELETE", "OPTIONS"],
    "allowedHeaders": ["Content-Type", "Authorization", "Accept"],
    "credentials": True,
}
"""The section of the published sample configuration."""
OTHERS = (
    "https://www.pacsbin.com",
    "https://evilpacsbin.com",
    "https://pacsbin.com.evil.example",
    "https://pacsbin.com.",
)

FETCH = """(async () => {
    const options = %s;
    if (options.bytes) options.body = Uint8Array.from(atob(options.bytes), each => each.charCodeAt(0));
    try {
        const response = await fetch(%s, options);
        const body = new Uint8Array(await response.arrayBuffer());
        return {
            status: response.status,
            headers: Object.fromEntries(response.headers),
            size: body.length,
            text: new TextDecoder().decode(body.slice(0, 5000)),
        };
    } catch (error) {
        return {failed: error.name};
    }
})()"""
"""What a page's script does, and all that it can learn of the answer."""

FRAMED = """(async () => {
    const frame = document.createElement('iframe');
    frame.sandbox = 'allow-scripts';
    frame.srcdoc = `<script>
        fetch(%s).then(() => 'read', () => 'refused').then(outcome => parent.postMessage(outcome, '*'));
    </script>`;
    const said = new Promise(done => addEventListener('message', event => done(`${event.origin} ${event.data}`)));
    document.body.append(frame);
    return await said;
})()"""
"""The same in a frame that has no origin."""

FAILED = {"failed": "TypeError"}
"""All that a page learns where it may not read."""


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[int]:
    """A server of https pages, whatever the host; gives its port."""
    certificates = make(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    app = web.Application()

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>a page</title>", content_type="text/html")

    app.router.add_get("/{path:.*}", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0, ssl_context=context).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def browser_for(pages: int, *options: str) -> AsyncIterator[Page]:
    """Run a browser for which every host that has a name is the server of pages."""
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium (package chromium)")
    hosts = (
        f"--host-resolver-rules=MAP *pacsbin.com {HOST}:{pages}, MAP *.example {HOST}:{pages}, MAP *com. {HOST}:{pages}"
    )
    with browser(program, hosts, "--ignore-certificate-errors", *options) as address:
        async with new_page(address) as page:
            yield page


async def visit(page: Page, origin: str) -> None:
    """Go to a page of that origin."""
    await page.goto(f"{origin}/")
    await page.until(f"location.origin === {json.dumps(origin)} && document.title === 'a page'", 10, origin)


async def fetched(page: Page, url: str, **options: Any) -> dict[str, Any]:
    """Let the page fetch something; returns what its script can learn of it."""
    found: dict[str, Any] = await page.evaluate(FETCH % (json.dumps(options), json.dumps(url)))
    return found


@contextlib.asynccontextmanager
async def in_front(samples: Corpus, **more: Any) -> AsyncIterator[Proxy]:
    """Run the proxy in front of an archive with the samples."""
    async with (
        DemoArchive(samples.folder) as archive,
        proxy_for(Address("DEMO", archive.port), use_cget=True, **{"cors": PUBLISHED, **more}) as running,
    ):
        yield running


@pytest.fixture
def preflights(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that the browser has asked for by preflights."""
    asked: list[str] = []

    @web.middleware
    async def noting(request: web.Request, handler: cors.Handler) -> web.StreamResponse:
        if cors.is_preflight(request):
            asked.append(request.path)
        return await cors.answer_preflight(request, handler)

    monkeypatch.setattr(proxy.app, "answer_preflight", noting)
    return asked


async def test_what_a_listed_page_may_do(pages: int, samples: Corpus, preflights: list[str]) -> None:
    """By the published sample: search, retrieve and upload, with credentials and without; and read what went wrong."""
    small = min(samples.samples, key=lambda sample: sample.size)
    study, multipart = f"/studies/{small.study_uid}", 'multipart/related; type="application/dicom"; transfer-syntax=*'
    async with in_front(samples) as running, browser_for(pages) as page:
        await visit(page, PACSBIN)
        url = running.url
        for credentials in ("include", "omit"):
            answer = await fetched(page, f"{url}/studies", credentials=credentials)
            assert answer["status"] == 200
            assert len(json.loads(answer["text"] if answer["size"] < 5000 else "[{}]")) > 0
        assert preflights == []

        # Quotes in Accept, and Authorization, need a preflight; the browser keeps its answer.
        for _ in range(3):
            answer = await fetched(page, url + study, headers={"Accept": multipart, "Authorization": "Bearer x"})
            assert answer["status"] == 200
            assert answer["size"] > small.size
            assert answer["headers"]["content-type"].startswith("multipart/related")
            assert answer["headers"]["x-cache"] == "MISS"
        assert preflights == [study]
        answer = await fetched(page, url + study, headers={"Accept": multipart, "Content-Type": "a/b"})
        assert answer["status"] == 200
        assert preflights == [study], "another header of the same address"

        upload = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + samples.path(small).read_bytes() + b"\r\n--b--\r\n"
        stored = await fetched(
            page,
            f"{url}/studies",
            method="POST",
            credentials="include",
            bytes=base64.b64encode(upload).decode(),
            headers={
                "Content-Type": 'multipart/related; type="application/dicom"; boundary=b',
                "Accept": "application/dicom+json",
            },
        )
        assert stored["status"] == 200, stored
        assert small.sop_instance_uid in stored["text"]

        for path, method, status in (
            ("/studies?limit=x", "GET", 400),
            ("/nowhere", "GET", 404),
            ("/studies/1.2.3", "GET", 404),
            ("/studies", "DELETE", 405),
            ("/cache", "PUT", 405),
        ):
            answer = await fetched(page, url + path, method=method, headers={"Authorization": "Bearer x"})
            assert answer["status"] == status
            assert json.loads(answer["text"])["statusCode"] == status
            assert status != 405 or "GET" in answer["headers"]["allow"] or path == "/cache"

        assert await fetched(page, f"{url}/studies", headers={"X-Other": "1"}) == FAILED
        assert await fetched(page, f"{url}/studies", method="PATCH") == FAILED


async def test_what_other_pages_may_not(pages: int, samples: Corpus) -> None:
    """Neither read nor upload, nor learn why; also not of errors, and not with the preflight of a listed page."""
    async with in_front(samples) as running, browser_for(pages) as page:
        for origin in OTHERS:
            await visit(page, origin)
            for path in ("/studies", "/ping", "/studies?limit=x", "/nowhere"):
                for options in ({}, {"credentials": "include"}, {"headers": {"Authorization": "Bearer x"}}):
                    assert await fetched(page, running.url + path, **options) == FAILED, (origin, path)
            assert (
                await fetched(
                    page, f"{running.url}/studies", method="POST", headers={"Content-Type": "application/dicom"}
                )
                == FAILED
            )
        await visit(page, PACSBIN)
        # A frame without an origin of its own, which any page can make.
        assert await page.evaluate(FRAMED % json.dumps(f"{running.url}/studies")) == "null refused"


async def test_pages_below_a_host(pages: int, samples: Corpus) -> None:
    """By a pattern: at any depth, but not the host itself."""
    async with in_front(samples, cors={"origin": ["https://*.pacsbin.com"]}) as running, browser_for(pages) as page:
        for origin in ("https://www.pacsbin.com", "https://viewer.eu.pacsbin.com"):
            await visit(page, origin)
            answer = await fetched(
                page, f"{running.url}/status", credentials="include", headers={"Authorization": "Bearer x"}
            )
            assert answer["status"] == 200
        for origin in (PACSBIN, "https://evilpacsbin.com"):
            await visit(page, origin)
            assert await fetched(page, f"{running.url}/status") == FAILED


async def test_where_any_page_may_read_none_may_with_credentials(pages: int, samples: Corpus) -> None:
    async with in_front(samples, cors={"origin": "*", "credentials": True}) as running, browser_for(pages) as page:
        await visit(page, "https://anybody.example")
        assert (await fetched(page, f"{running.url}/studies", credentials="omit"))["status"] == 200
        assert await fetched(page, f"{running.url}/studies", credentials="include") == FAILED


async def test_a_page_that_has_to_sign_in(pages: int, samples: Corpus) -> None:
    """The answer that asks for it can be read, with what it asks for; no dialog of the browser's comes up."""
    auth = {"enabled": True, "tokens": [{"name": "viewer", "tokenHash": token_hash("secret")}]}
    async with in_front(samples, auth=auth) as running, browser_for(pages) as page:
        await visit(page, PACSBIN)
        answer = await fetched(page, f"{running.url}/studies", credentials="include")
        assert (answer["status"], json.loads(answer["text"])["statusCode"]) == (401, 401)
        assert answer["headers"]["www-authenticate"].startswith("Bearer")
        signed = await fetched(page, f"{running.url}/studies", headers={"Authorization": "Bearer secret"})
        assert signed["status"] == 200
        await visit(page, "https://evilpacsbin.com")
        assert await fetched(page, f"{running.url}/studies", headers={"Authorization": "Bearer secret"}) == FAILED


async def test_a_public_page_and_a_proxy_that_is_not(pages: int, samples: Corpus) -> None:
    """Local Network Access: the browser asks its user, and the proxy has nothing to say beside CORS."""
    public = f"--ip-address-space-overrides={HOST}:{pages}=public"
    async with in_front(samples) as running, browser_for(pages, public) as page:
        await visit(page, PACSBIN)
        if await fetched(page, f"{running.url}/ping") != FAILED:
            pytest.skip("this browser lets public pages reach private addresses")
        try:
            leave: dict[str, Any] = {"origin": PACSBIN, "browserContextId": page.context}
            await page.call("Browser.grantPermissions", permissions=["loopbackNetwork"], **leave)
        except AssertionError:
            pytest.skip("this browser knows no such permission")
        for options in ({}, {"credentials": "include"}, {"headers": {"Authorization": "Bearer x"}}):
            assert (await fetched(page, f"{running.url}/studies", **options))["status"] == 200
