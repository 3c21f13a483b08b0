"""A headless Chromium, driven over the Chrome DevTools Protocol: open a page, look at it, and do what a user does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.peers.process import Process, find_program

START_SECONDS = 20
CALL_SECONDS = 20
POLL_SECONDS = 0.1
WIDTH, HEIGHT = 1280, 900

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Software rendering, since a viewer draws with WebGL and test machines have no graphics card.
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--log-level=3",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--remote-debugging-port=0",
    f"--window-size={WIDTH},{HEIGHT}",
)


def find_browser() -> str | None:
    """Return the path of a Chromium, if there is one."""
    return next((path for name in PROGRAMS if (path := find_program(name))), None)


@dataclass
class Page:
    """One tab, in a `context` of its own. `events` are those of the protocol that have come, in order."""

    socket: aiohttp.ClientWebSocketResponse
    session: str = ""
    context: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _waiting: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)

    async def read(self) -> None:
        """Take what the browser sends, for as long as it runs."""
        async for message in self.socket:
            content = json.loads(message.data)
            if waiting := self._waiting.pop(content.get("id", -1), None):
                if not waiting.done():
                    waiting.set_result(content)
            elif "method" in content:
                self.events.append(content)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        request = {"id": number, "method": method, "params": parameters}
        if self.session:
            request["sessionId"] = self.session
        await self.socket.send_json(request)
        async with asyncio.timeout(CALL_SECONDS):
            content = await self._waiting[number]
        assert "error" not in content, f"{method}: {content['error']}"
        result: dict[str, Any] = content["result"]
        return result

    async def goto(self, url: str) -> None:
        """Begin to load a page."""
        self.events.clear()
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript in the page, which may be a promise."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, expression: str, seconds: float, what: str) -> Any:
        """Wait until an expression is true, and return its value; fails with what the page shows instead."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (found := await self.evaluate(expression)):
                    await asyncio.sleep(POLL_SECONDS)
                return found
        shown = await self.evaluate("document.body?.innerText ?? ''")
        raise AssertionError(f"after {seconds:g} s not: {what}; the page shows: {shown[:500]!r}; {self.problems()}")

    def answered(self) -> list[str]:
        """The addresses of the requests that were answered, in order."""
        return [
            event["params"]["response"]["url"] for event in self.events if event["method"] == "Network.responseReceived"
        ]

    def problems(self) -> list[str]:
        """What the page has complained of, and which requests failed."""
        found = []
        for event in self.events:
            content = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(content["exceptionDetails"].get("exception", {}).get("description"))[:300])
            elif event["method"] == "Network.loadingFailed" and not content.get("canceled"):
                found.append(str(content["errorText"]))
            elif event["method"] == "Network.responseReceived" and content["response"]["status"] >= 400:
                found.append(f"{content['response']['status']} {content['response']['url']}")
        return found

    async def screenshot(self, rectangle: dict[str, float] | None = None) -> bytes:
        """Return what is on the screen, or in a rectangle `{x, y, width, height}` of it, as PNG."""
        clip = {"clip": {**rectangle, "scale": 1}} if rectangle else {}
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png", **clip))["data"])

    async def point(self, x: float, y: float) -> None:
        """Move the mouse to a place."""
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def wheel(self, x: float, y: float, delta: float) -> None:
        """Turn the mouse wheel at a place, downwards where `delta` is positive; comes back when the page has it."""
        await self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)


@contextlib.contextmanager
def browser(program: str, *options: str) -> Iterator[str]:
    """Run a browser with further options of its command line; gives the address of its DevTools."""
    profile = Path(tempfile.mkdtemp(prefix="chromium-"))
    process = Process("chromium", [program, *OPTIONS, *options, f"--user-data-dir={profile}", "about:blank"], profile)
    port_file = profile / "DevToolsActivePort"
    try:
        process.start(lambda: port_file.exists() and bool(port_file.read_text()), START_SECONDS)
        port, path = port_file.read_text().split()
        yield f"ws://127.0.0.1:{port}{path}"
    finally:
        process.stop(kill=True)
        shutil.rmtree(profile, ignore_errors=True)


@contextlib.asynccontextmanager
async def new_page(address: str) -> AsyncIterator[Page]:
    """Open a tab in a running browser that has no storage, cache or cookies in common with any other."""
    async with aiohttp.ClientSession() as http, http.ws_connect(address, max_msg_size=0) as socket:
        page = Page(socket)
        reading = asyncio.create_task(page.read())
        try:
            page.context = (await page.call("Target.createBrowserContext", disposeOnDetach=True))["browserContextId"]
            target = await page.call("Target.createTarget", url="about:blank", browserContextId=page.context)
            attached = await page.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            page.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Network"):
                await page.call(f"{domain}.enable")
            yield page
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
