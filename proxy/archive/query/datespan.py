"""Ranges of study dates, and halving them (PS3.4 C.2.2.2.5). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

EARLIEST: Final = date(1900, 1, 1)
"""Where halving begins in a range without a beginning; the range itself stays open."""

_DAY: Final = timedelta(days=1)
_VALUE: Final = re.compile(rb"(\d{4})\.?(\d\d)\.?(\d\d)[ \0]*")  # with points in ACR-NEMA 2.0 (PS3.5 Table 6.2-1)
_KEY: Final = re.compile(r"(\d{8})?(-?)(\d{8})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class DateSpan:
    """The dates from `low` to `high`, both included; None is an open end. Without ends: universal matching."""

    low: date | None = None
    high: date | None = None

    @classmethod
    def of(cls, key: str) -> DateSpan | None:
        """The span that a key of VR DA matches; None for one that is no date, no range and not universal."""
        form = _KEY.fullmatch("" if key.strip("*") == "" else key)
        if form is None:
            return None
        low, high = (_date((end or "").encode()) for end in (form[1], form[3]))
        if (form[1] and low is None) or (form[3] and high is None):
            return None
        return cls(low, high) if form[2] or not form[1] else cls(low, low)

    @property
    def is_universal(self) -> bool:
        """True when it matches everything, also what has no date."""
        return self.low is None and self.high is None

    @property
    def key(self) -> str:
        """The value of a key of VR DA."""
        if self.is_universal:
            return ""
        low, high = (f"{day:%Y%m%d}" if day is not None else "" for day in (self.low, self.high))
        return low if low == high else f"{low}-{high}"

    def leaves_out(self, value: bytes) -> bool:
        """True for a value of VR DA that is a date, and of another time."""
        day = _date(value)
        if day is None:
            return False
        return (self.low is not None and day < self.low) or (self.high is not None and day > self.high)

    def halves(self, known: Mapping[bytes, int]) -> tuple[DateSpan, ...]:
        """The span in two parts, which are as good as halves by the `known` number of entities for each value of VR DA.

        The part with less of them comes last, the later one where there is no difference. Empty for a single day.
        """
        low = self.low or EARLIEST
        high = self.high or datetime.now(UTC).date() + _DAY  # somewhere it is tomorrow already
        if low >= high:
            return ()
        days = sorted((day, count) for value, count in known.items() if (day := _date(value)) is not None)
        middle = min(max(_middle(days) or low + (high - low) / 2, low + _DAY), high)
        earlier, later = DateSpan(self.low, middle - _DAY), DateSpan(middle, self.high)
        before = sum(count for day, count in days if day < middle)
        return (later, earlier) if before < sum(count for _, count in days) - before else (earlier, later)


def _date(value: bytes) -> date | None:
    form = _VALUE.fullmatch(value)
    if form is None:
        return None
    try:
        return date(int(form[1]), int(form[2]), int(form[3]))
    except ValueError:
        return None


def _middle(days: list[tuple[date, int]]) -> date | None:
    """The date before which at most half of the entities are."""
    half = sum(count for _, count in days) / 2
    passed = 0
    for day, count in days:
        passed += count
        if passed > half:
            return day
    return None
