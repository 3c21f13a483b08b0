"""A clock for what asks for one."""

from __future__ import annotations


class Clock:
    """Seconds that stand still unless a test moves them."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
