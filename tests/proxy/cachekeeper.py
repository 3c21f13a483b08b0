"""A process that fills a cache until it is killed: `python -m tests.proxy.cachekeeper FOLDER`.

It prints a dot for each study that it has kept.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

from proxy.archive.cache.cache import Cache
from tests.proxy.caching import new_file
from tests.proxy.clock import Clock

INSTANCES = 12
STUDIES = 8


async def fill(folder: Path) -> None:
    """Keep one study after the other, with another content each time round, in a cache that holds half of them."""
    cache = Cache(folder, retention_seconds=3600, max_bytes=STUDIES * INSTANCES * 1000 // 2, clock=Clock())
    await cache.open()
    for turn in itertools.count():
        study = f"1.2.{turn % STUDIES}"
        content = f"{turn}".encode().ljust(1000)
        files = [new_file(cache, f"{n}", content, study=study, series=f"1.{n % 3}") for n in range(INSTANCES)]
        print(end="." if await cache.keep(files, (study, None)) else "-", flush=True)
        for file in files:
            file.path.unlink()


if __name__ == "__main__":
    asyncio.run(fill(Path(sys.argv[1])))
