"""What happened lately: values that are forgotten after a while, and when there are too many."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final, Generic, TypeVar

LIMIT: Final = 1000

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A mapping whose entries last `seconds`, the newest `LIMIT` of them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value, while it lasts."""
        entry = self._entries.get(key)
        return entry[1] if entry is not None and entry[0] > time.monotonic() else None

    def put(self, key: K, value: V) -> None:
        """Remember a value from now on."""
        self._entries.pop(key, None)
        self._entries[key] = (time.monotonic() + self._seconds, value)
        if len(self._entries) > LIMIT:
            self._entries.popitem(last=False)

    def forget(self, key: K) -> None:
        """Remember no more."""
        self._entries.pop(key, None)
