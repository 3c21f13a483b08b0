"""What one archive has been found to make of keys and lists, so that a search need not find it out again.

PS3.18 lists attributes that few archives store beside their index: for each study of an answer, such an archive reads
a file to find out that it has no value. So an archive that gave none in `ENOUGH` answers in a row is not asked for the
attribute any more, for a while; a client that names it asks all the same. Nor is an archive asked again at once in a
way that it has refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from proxy.archive.query.caps import Caps
from proxy.dataset.levels import INSTANCE_AVAILABILITY
from proxy.dataset.reader import Element

RARE: Final = frozenset(
    {
        INSTANCE_AVAILABILITY,
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
class Habits:
    """What one archive has been found to answer, by level and attribute; `caps` has the same for whole lists."""

    caps: Caps = field(default_factory=Caps)
    _records: dict[tuple[str, int], _Record] = field(default_factory=dict)
    _refused: dict[int, float] = field(default_factory=dict)
    _taken: set[int] = field(default_factory=set)

    def worth_asking(self, level: str, tag: int) -> bool:
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

    def learn(self, level: str, asked: Iterable[int], elements: list[Element]) -> None:
        """Take note of what an answer held of the rare attributes that were asked for."""
        for tag in asked:
            record = self._records.setdefault((level, tag), _Record())
            given = any(element.tag == tag and element.value for element in elements)
            record.empty_answers = 0 if given else record.empty_answers + 1
            record.asked_last = time.monotonic()

    def refuses(self, tag: int) -> bool:
        """True when the archive lately refused that key in a C-FIND in which others take it."""
        since = self._refused.get(tag)
        return since is not None and time.monotonic() - since < ASK_AGAIN_SECONDS

    def takes(self, tag: int) -> bool:
        """True when the archive once answered a C-FIND in which others refuse that key."""
        return tag in self._taken

    def note_refused(self, tag: int) -> None:
        """Take note of a refusal for the sake of that key."""
        self._refused[tag] = time.monotonic()
        self._taken.discard(tag)

    def note_taken(self, tag: int) -> None:
        """Take note of an answer to what others refuse."""
        self._taken.add(tag)
