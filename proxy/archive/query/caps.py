"""Archives that give only so many answers to a C-FIND: telling that from an answer list that just has that length.

What may live here: what the number of answers says of the list. Nothing here asks an archive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

SUSPICIOUS: Final = frozenset(
    {100, 200, 250, 256, 300, 400, 500, 512, 600, 750, 1000, 1024, 1500, 2000, 2048, 2500, 3000, 4000, 4096, 5000}
    | {10_000, 16_384, 20_000, 25_000, 32_768, 50_000, 65_535, 65_536, 100_000}
)
"""Numbers of answers that somebody may have put into a configuration as the most that there are to be."""


@dataclass(slots=True)
class Caps:
    """What one archive's numbers of answers have been found to mean.

    `cap` is the most that it gives, where that is proven.
    """

    cap: int | None = None
    _honest: set[int] = field(default_factory=set)  # a part of SUSPICIOUS
    _most: dict[str, int] = field(default_factory=dict)  # by level

    def note(self, level: str, answers: int) -> None:
        """Take note of the number of answers to one C-FIND."""
        self._most[level] = max(answers, self._most.get(level, 0))
        if self.cap is not None and answers > self.cap:
            self.cap = None

    def suspects(self, level: str, answers: int) -> bool:
        """True when there may be more than these answers; never for less than the archive has given before."""
        if answers < self._most.get(level, 0):
            return False
        return answers == self.cap or (answers in SUSPICIOUS and answers not in self._honest)

    def confirm(self, answers: int) -> None:
        """There was more than these answers."""
        self.cap = answers

    def clear(self, answers: int) -> None:
        """There was no more than these answers."""
        if answers in SUSPICIOUS:
            self._honest.add(answers)
