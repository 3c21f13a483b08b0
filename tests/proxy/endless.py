"""An archive that never comes to the end of its answers, to be killed: `python -m tests.proxy.endless PORT`."""

from __future__ import annotations

import asyncio
import sys

from tests.proxy.finding import many, scripted


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    async with scripted(many(), port=port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
