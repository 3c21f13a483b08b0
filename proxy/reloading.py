"""Reading files anew while the proxy runs, as SIGHUP asks for. What is read, and how, its owners know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)


class Reloads:
    """What there is to read anew; one after the other, and never twice at a time."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._all: list[Callable[[], Awaitable[None] | None]] = []

    def add(self, reload: Callable[[], Awaitable[None] | None]) -> None:
        """Have something read anew. It says itself what came of it, and keeps what it has when that fails."""
        self._all.append(reload)

    def ask(self) -> None:
        """Read everything anew, soon; for a signal handler."""
        self._asked.set()

    async def run(self) -> None:
        """Wait for `ask`, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            if not self._all:
                logger.info("SIGHUP: there is nothing to read anew")
            for reload in self._all:
                try:
                    if (reading := reload()) is not None:
                        await reading
                except Exception:
                    logger.exception("what was to be read anew stays as it was")
