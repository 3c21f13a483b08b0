"""What keeps one address from taking everything: token buckets, and log lines that cannot become a flood.

Pure but for the clock and the logger, which are passed in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dul import limits

_SWEEP_SECONDS: Final = 1.0
_OTHERS: Final = ""


@dataclass(slots=True)
class _Bucket:
    left: float
    since: float
    refused: int = 0


class TokenBuckets:
    """A bucket for each key: `at_once` may be taken at any speed, and `per_second` from then on.

    A bucket that is full again is forgotten; one with refusals to tell of only where its room is needed. Beyond
    `limits.MAX_BUCKETS` keys, all further ones share a bucket.
    """

    def __init__(self, at_once: int, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once = at_once
        self._per_second = per_second
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._swept = clock()

    def take(self, key: str) -> int | None:
        """Take one; returns how often that was refused since it last was not, or None when it is refused now."""
        now = self._clock()
        bucket = self._bucket(key, now)
        bucket.left = self._level(bucket, now)
        bucket.since = now
        if bucket.left < 1:
            bucket.refused += 1
            return None
        bucket.left -= 1
        refused, bucket.refused = bucket.refused, 0
        return refused

    def _level(self, bucket: _Bucket, now: float) -> float:
        return min(bucket.left + (now - bucket.since) * self._per_second, self._at_once)

    def _bucket(self, key: str, now: float) -> _Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            if now - self._swept >= _SWEEP_SECONDS:
                self._swept = now
                self._sweep(now)
            if len(self._buckets) >= limits.MAX_BUCKETS:
                key = _OTHERS
            bucket = self._buckets.setdefault(key, _Bucket(self._at_once, now))
        return bucket

    def _sweep(self, now: float) -> None:
        full = [key for key, bucket in self._buckets.items() if self._level(bucket, now) >= self._at_once]
        for key in full:
            if not self._buckets[key].refused or len(self._buckets) >= limits.MAX_BUCKETS:
                del self._buckets[key]


class QuietLog:
    """Warnings about hosts: a few at once of each, then one now and then, which says how many were left out."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._lines = TokenBuckets(limits.LOG_LINES_AT_ONCE, limits.LOG_LINES_PER_SECOND, clock)

    def warn_of(self, host: str, message: str, *args: object) -> None:
        """Log a warning about `host`, unless there were too many of late."""
        left_out = self._lines.take(host)
        if left_out is None:
            return
        if left_out:
            message += "; %d more about this address were not logged"
            args += (left_out,)
        self._logger.warning(message, *args, stacklevel=2)
