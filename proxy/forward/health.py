"""Whether the upstream answers: known from the requests that are forwarded, or by asking when there were none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from yarl import URL

from proxy.forward.errors import UpstreamError
from proxy.forward.targets import Target, below

HEALTH_SECONDS: Final = 10.0
"""How long what is known holds."""

PROBE_SECONDS: Final = 5.0
"""How long the upstream may take to answer a probe."""

PROBE: Final = "/studies?StudyInstanceUID=2.25.1&limit=1"
"""A search by a UID that belongs to nobody: a server that answers it does more than take connections, and finds
nothing."""

_STILL_WELL: Final = (501, 505)
"""Statuses above 499 of a server that is there and does not know what it was asked."""


class Health:
    """What is known of one configured URL. `is_up` is False until something has answered there."""

    def __init__(self, base: URL, *, signs_in: bool) -> None:
        """`signs_in` says that the proxy has credentials of its own, which may be refused."""
        self.base = base
        self.is_up = False
        self.last_error: str | None = None
        self._signs_in = signs_in
        self._known_since = -HEALTH_SECONDS
        self._lock = asyncio.Lock()

    def note_answer(self, status: int) -> None:
        """A request was answered. A failure may be that request's own: it is no sign of health, nor of the contrary."""
        if self._error_of(status) is None:
            self._note(None)

    def note_failure(self) -> None:
        """A request was not answered: what is known may hold no more."""
        self._known_since = -HEALTH_SECONDS

    async def check(self, ask: Callable[[Target], Awaitable[int]]) -> None:
        """Bring what is known up to date. `ask` sends a request, and returns the status or raises `UpstreamError`."""
        async with self._lock:  # many who want to know cost one probe
            if time.monotonic() - self._known_since < HEALTH_SECONDS:
                return
            try:
                self._note(self._error_of(await ask(below(self.base, PROBE))))
            except UpstreamError as error:
                self._note(str(error))

    def _error_of(self, status: int) -> str | None:
        if status == 401 and self._signs_in:
            return "it refuses the credentials of the proxy"
        # A gateway that answers for a dead server behind it is no server that answers.
        return f"it answers with status {status}" if status >= 500 and status not in _STILL_WELL else None

    def _note(self, error: str | None) -> None:
        self.is_up = error is None
        self.last_error = error or self.last_error
        self._known_since = time.monotonic()
