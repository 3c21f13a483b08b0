"""What the answers to C-FINDs told of studies: which archives have one, whether it is at hand, and whose it is.

Each operation takes constant time, `archives` as much as there are archives. Nothing here asks an archive.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_STUDIES: Final = 20_000
"""Studies to remember, some 10 MB; those that were not used for longest are forgotten first."""

KEEP_SECONDS: Final = 3600.0
"""How long an answer holds: studies are moved, merged, archived and deleted."""


@dataclass(slots=True)
class _Answer:
    learned: float
    availability: str | None = None
    patient_id: str | None = None


class Known:
    """A bounded memory of studies. `clock` tells seconds that only go up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._studies: OrderedDict[str, dict[str, _Answer]] = OrderedDict()

    def __len__(self) -> int:
        """The number of studies remembered, those included whose answers hold no more."""
        return len(self._studies)

    def learn(
        self, study: str, archive: str, *, availability: str | None = None, patient_id: str | None = None
    ) -> None:
        """The archive of that name has the study. None or "" stands for what its answer did not show.

        `availability` is Instance Availability (0008,0056), `patient_id` Patient ID (0010,0020). What an earlier answer
        showed beside is still known, and holds no longer for this one.
        """
        availability, patient_id = availability or None, patient_id or None
        answer = _Answer(self._clock(), availability, patient_id)
        before = self._answer(study, archive)
        if before is not None:
            answer.availability = answer.availability or before.availability
            answer.patient_id = answer.patient_id or before.patient_id
            if (answer.availability, answer.patient_id) != (availability, patient_id):
                answer.learned = before.learned
        answers = self._studies.setdefault(study, {})
        answers[archive] = answer
        self._studies.move_to_end(study)
        if len(self._studies) > MAX_STUDIES:
            self._studies.popitem(last=False)

    def forget(self, study: str, archive: str) -> None:
        """The archive of that name does not have the study, or not any more."""
        answers = self._studies.get(study, {})
        answers.pop(archive, None)
        if not answers:
            self._studies.pop(study, None)

    def archives(self, study: str) -> tuple[str, ...]:
        """The names of the archives that have the study, as far as is known, in the order in which that was learned."""
        return tuple(archive for archive in self._studies.get(study, {}) if self._answer(study, archive) is not None)

    def availability(self, study: str, archive: str) -> str | None:
        """The study's Instance Availability there, such as "NEARLINE"; None where it is not known."""
        answer = self._answer(study, archive)
        return answer.availability if answer is not None else None

    def patient_id(self, study: str, archive: str) -> str | None:
        """The study's Patient ID there; None where it is not known."""
        answer = self._answer(study, archive)
        return answer.patient_id if answer is not None else None

    def _answer(self, study: str, archive: str) -> _Answer | None:
        answer = self._studies.get(study, {}).get(archive)
        if answer is None or self._clock() - answer.learned >= KEEP_SECONDS:
            return None
        self._studies.move_to_end(study)
        return answer
