"""What is remembered for a short while, in bounded space."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class Remembered(Generic[_Value]):
    """Values by key, each for `seconds` from when it was noted; the oldest goes first when there are too many."""

    def __init__(self, seconds: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._values: OrderedDict[bytes, tuple[float, _Value]] = OrderedDict()

    def __len__(self) -> int:
        """How many are held, those included whose time is over and which nobody has asked for since."""
        return len(self._values)

    def get(self, key: bytes) -> _Value | None:
        """What was noted, None where nothing was or its time is over."""
        noted = self._values.get(key)
        if noted is None:
            return None
        until, value = noted
        if self._clock() >= until:
            del self._values[key]
            return None
        return value

    def note(self, key: bytes, value: _Value) -> None:
        """Remember a value from now on."""
        self._values.pop(key, None)
        while len(self._values) >= self._most:
            self._values.popitem(last=False)
        self._values[key] = (self._clock() + self._seconds, value)
