"""Attributes that answers show where the archive has them, and that some archives have never.

PS3.18 lists attributes that few archives store beside their index: for each study of an answer, such an archive reads
a file to find out that it has no value. So an archive that gave none in `ENOUGH` answers in a row is not asked for the
attribute any more, for a while; a client that names it asks all the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from proxy.dataset.levels import Level
from proxy.dataset.reader import Element

RARE: Final = frozenset(
    {
        0x00080056,  # InstanceAvailability
        0x00080201,  # TimezoneOffsetFromUTC
    }
)

ENOUGH: Final = 100
ASK_AGAIN_SECONDS: Final = 3600.0


@dataclass(slots=True)
class _Record:
    empty_answers: int = 0
    asked_last: float = 0.0


@dataclass(slots=True)
class OptionalKeys:
    """What one archive has been found to answer, by level and attribute."""

    _records: dict[tuple[Level, int], _Record] = field(default_factory=dict)

    def worth_asking(self, level: Level, tag: int) -> bool:
        """False for a rare attribute that this archive did not give lately."""
        if tag not in RARE:
            return True
        record = self._records.get((level, tag))
        if record is None or record.empty_answers < ENOUGH:
            return True
        if time.monotonic() - record.asked_last < ASK_AGAIN_SECONDS:
            return False
        record.empty_answers = 0
        return True

    def learn(self, level: Level, asked: Iterable[int], elements: list[Element]) -> None:
        """Take note of what an answer held of the rare attributes that were asked for."""
        for tag in asked:
            record = self._records.setdefault((level, tag), _Record())
            given = any(element.tag == tag and element.value for element in elements)
            record.empty_answers = 0 if given else record.empty_answers + 1
            record.asked_last = time.monotonic()
