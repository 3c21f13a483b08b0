"""What the tests of the audit trail share: a proxy that keeps one in a file, and its lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers.process import Address
from tests.proxy.running import Proxy, proxy_for

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trail:
    """A file with audit lines."""

    path: Path

    def all(self) -> list[Line]:
        """All lines that are whole, each of which is a JSON object."""
        text = self.path.read_text() if self.path.exists() else ""
        lines = [json.loads(line) for line in text.split("\n")[:-1]]
        assert all(isinstance(line, dict) for line in lines)
        return lines

    def accesses(self) -> list[Line]:
        """The lines without those of the proxy's own start and stop."""
        return [line for line in self.all() if not line["event"].startswith("Application ")]

    async def until(self, count: int) -> list[Line]:
        """The lines of accesses, when there are that many: they are written behind the answers."""
        async with asyncio.timeout(5):
            while len(lines := self.accesses()) < count:
                await asyncio.sleep(0.01)
        assert len(lines) == count, lines
        return lines

    async def last(self, count: int) -> Line:
        """The last of so many lines of accesses."""
        return (await self.until(count))[-1]


@contextlib.asynccontextmanager
async def audited(
    folder: Path, *archives: Address, audit: dict[str, object] | None = None, **more: Any
) -> AsyncIterator[tuple[Proxy, Trail]]:
    """A proxy that keeps an audit trail; `audit` are further keys below that, `more` is for `proxy_for`."""
    path = folder / "audit" / "audit.log"
    async with proxy_for(*archives, audit={"file": str(path), **(audit or {})}, **more) as proxy:
        yield proxy, Trail(path)
