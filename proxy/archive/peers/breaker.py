"""The circuit breaker of an archive: when it is asked no more, since it does not answer, and when it is tried again.

Requests to an archive that is down fail at once instead of each waiting for its timeouts. Pure: no clock of its own,
no task; `peers` tells it what happened and carries out the trials.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

FAILURES: Final = 3
"""Failures to reach an archive, one after the other, after which it is asked no more."""

FIRST_BACK_OFF_SECONDS: Final = 1.0
LAST_BACK_OFF_SECONDS: Final = 30.0
"""Each trial that fails doubles the time until the next, from the first of these up to the last."""


class BreakerState(enum.StrEnum):
    """The usual names: current flows while the breaker is closed."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Closed until `FAILURES` failures; then open, and half-open for the time of each trial."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that only go forward."""
        self._clock = clock
        self._failures = 0
        self._back_off = FIRST_BACK_OFF_SECONDS
        self._retry_at = 0.0
        self.state = BreakerState.CLOSED

    @property
    def retry_seconds(self) -> float | None:
        """Seconds until the next trial, 0 during one, None while the breaker is closed."""
        if self.state is BreakerState.CLOSED:
            return None
        return max(self._retry_at - self._clock(), 0.0) if self.state is BreakerState.OPEN else 0.0

    def reached(self) -> None:
        """The archive answered, whatever it was that it said."""
        self.state = BreakerState.CLOSED
        self._failures = 0

    def failed(self) -> bool:
        """The archive could not be reached; returns True when the breaker opens by that.

        While it is not closed, failures of what had begun before change nothing: the trials decide.
        """
        if self.state is not BreakerState.CLOSED:
            return False
        self._failures += 1
        if self._failures < FAILURES:
            return False
        self._open(FIRST_BACK_OFF_SECONDS)
        return True

    def begin_trial(self) -> None:
        """The time until the next trial is over, and it begins."""
        self.state = BreakerState.HALF_OPEN

    def end_trial(self) -> None:
        """The trial is over. Unless the archive was reached meanwhile, the next is further off."""
        if self.state is BreakerState.HALF_OPEN:
            self._open(min(2 * self._back_off, LAST_BACK_OFF_SECONDS))

    def _open(self, back_off: float) -> None:
        self.state = BreakerState.OPEN
        self._back_off = back_off
        self._retry_at = self._clock() + back_off
