"""Turns at an archive's associations: so many at once, first come first served, and no kind in the way of the other.

Uses are short (C-FIND, C-ECHO) or long (C-MOVE, C-GET). One slot is never given to a long one, so that a search does
not wait for a retrieval to end; and where both kinds wait for the same slot, they take turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

QUEUE_LIMIT: Final = 1000
"""Uses that may wait at once; beyond, a client is told to come back."""


class TooManyWaitError(Exception):
    """There is no room for another one to wait."""


@dataclass(slots=True, eq=False)
class _Line:
    """The uses of one kind: how many may go on at once, how many do, and those that wait."""

    limit: int
    taken: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    @property
    def can_go_on(self) -> bool:
        return bool(self.waiting) and self.taken < self.limit


class Turns:
    """The slots of one archive. Its state belongs to the event loop's thread."""

    def __init__(self, slots: int, *, sequential: bool = False) -> None:
        """`sequential` allows one long use at a time."""
        self._slots = slots
        self._short = _Line(slots)
        self._long = _Line(1 if sequential else max(slots - 1, 1))
        self._last = self._long

    @property
    def taken(self) -> int:
        """Slots in use."""
        return self._short.taken + self._long.taken

    @property
    def waiting(self) -> int:
        """Uses that wait for a slot."""
        return len(self._short.waiting) + len(self._long.waiting)

    async def take(self, *, long: bool, seconds: float) -> None:
        """Wait for a slot; the caller has to `free` it.

        Raises `TooManyWaitError`, `TimeoutError` when there is none within `seconds`, or what `refuse` was given.
        """
        line = self._line(long)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting.append(turn)
        self._hand_out()
        if turn.done():
            return
        if self.waiting > QUEUE_LIMIT:
            line.waiting.remove(turn)
            raise TooManyWaitError
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException:
            if turn in line.waiting:
                line.waiting.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self.free(long=long)  # the slot was handed over in the same moment
            raise

    def free(self, *, long: bool) -> None:
        """Give a slot back, to the next in turn."""
        self._line(long).taken -= 1
        self._hand_out()

    def refuse(self, error: Callable[[], Exception]) -> None:
        """Let all that wait fail."""
        for line in (self._short, self._long):
            while line.waiting:
                turn = line.waiting.popleft()
                if not turn.done():
                    turn.set_exception(error())

    def _line(self, long: bool) -> _Line:
        return self._long if long else self._short

    def _hand_out(self) -> None:
        while self.taken < self._slots:
            lines = [line for line in (self._short, self._long) if line.can_go_on]
            if not lines:
                return
            line = lines[0] if lines[0] is not self._last else lines[-1]
            turn = line.waiting.popleft()
            if not turn.done():
                line.taken += 1
                self._last = line
                turn.set_result(None)
