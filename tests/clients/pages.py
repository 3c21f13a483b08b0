"""A web server for the files of a program that runs in a browser, of another origin than the proxy."""

from __future__ import annotations

import contextlib
import mimetypes
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from aiohttp import web

from tests.peers.process import HOST


@contextlib.asynccontextmanager
async def served(root: Path, pages: Mapping[str, str]) -> AsyncIterator[str]:
    """Serve the files of a folder; gives the address. `pages` are texts that stand in for files.

    Unknown paths are the index, as programs of one page want it.
    """

    async def serve(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in pages and not ((root / name).resolve().is_relative_to(root) and (root / name).is_file()):
            name = "index.html"
        content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if name in pages:
            return web.Response(text=pages[name], content_type=content_type)
        return web.FileResponse(root / name, headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/{name:.*}", serve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0).start()
        yield f"http://{HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
