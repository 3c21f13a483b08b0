"""What a search asks for, and which keys go into the C-FIND of which level.

What may live here: from a `Search` to the `Plan` of each level. Nothing here asks an archive.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from proxy.archive.peers.archive import Archive
from proxy.dataset.dictionary import keyword_of, vr_of
from proxy.dataset.levels import PATIENT, PATIENT_ID, PATIENT_KEYS, UNIQUE_KEY, Level, level_of
from proxy.dataset.reader import Element
from proxy.dataset.writer import encode_identifier

Path = tuple[int, ...]

MAX_VALUE_COMBINATIONS: Final = 64
"""C-FINDs that one search may cost at one level through lists of values, which only UIDs may have (PS3.4 C.2.2.2)."""


@dataclass(frozen=True, slots=True)
class Search:
    """What to look for: entities of `level`, below the UIDs that are fixed.

    `matches` and `returned` may belong to any level from STUDY down to `level`. What is `welcome` is returned as well,
    unless the archive is known never to have it. `in_order` asks for the answers of several archives in the order of
    the archives, so that they can be counted.
    """

    level: Level
    fixed: Mapping[Level, str] = field(default_factory=dict)
    matches: Mapping[Path, str] = field(default_factory=dict)
    returned: Sequence[Path] = ()
    welcome: Sequence[int] = ()
    in_order: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """One entity: its UIDs from the study down, and the elements that each level's C-FIND returned.

    `patient` are the elements of the patient, and `patient_id` its unique key, where the archive has a level for it:
    in the Patient Root model.
    """

    archive: Archive
    found_uids: Mapping[Level, str]
    elements: Mapping[Level, list[Element]]
    patient: Sequence[Element] = ()
    patient_id: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The keys of the C-FIND of one level, which is one of `Level`, or PATIENT; `unique` is its unique key."""

    level: str
    unique: int
    matches: Mapping[Path, str] = field(default_factory=dict)
    returned: tuple[Path, ...] = ()
    welcome: tuple[int, ...] = ()

    def asks_for(self, tag: int) -> bool:
        """True when the attribute is a key, to be matched or only to be returned."""
        return (tag,) in self.matches or (tag,) in self.returned

    def without(self, tag: int) -> Plan:
        """The same without that key."""
        matches = {path: value for path, value in self.matches.items() if path != (tag,)}
        return replace(self, matches=matches, returned=tuple(path for path in self.returned if path != (tag,)))

    def matching(self, tag: int, value: str) -> Plan:
        """The same with that value to match."""
        return replace(self, matches={**self.matches, (tag,): value})


def plans_of(search: Search, *, patient_root: bool = False) -> list[Plan]:
    """The levels that have to be asked, from STUDY down: the last one, and those above that are open or have keys.

    In the Patient Root model the patient's attributes belong to the level above, which `patient_plan` is for.
    """
    plans: list[Plan] = []
    for level in search.level.and_above:

        def own(paths: Iterable[Path], level: Level = level) -> list[Path]:
            here = [path for path in paths if _home(path, search.level) is level]
            return [path for path in here if not (patient_root and path[0] in PATIENT_KEYS)]

        matches = {path: search.matches[path] for path in own(search.matches)}
        # Viewers ask for attributes of the series with each study; strict archives refuse such a C-FIND as a whole.
        returned = tuple(path for path in own(search.returned) if not _is_below(search.level, path))
        # The unique key is among what is returned, but a fixed one needs no C-FIND to be known.
        wanted = [path for path in returned if path != (UNIQUE_KEY[level],)]
        if level is search.level or level not in search.fixed or matches or wanted:
            welcome = tuple(path[0] for path in own((tag,) for tag in search.welcome))
            plans.append(Plan(level, UNIQUE_KEY[level], matches, returned, welcome))
    return plans


def patient_plan(search: Search) -> Plan:
    """The keys of the PATIENT level (PS3.4 C.6.1.1.2)."""
    matches = {path: value for path, value in search.matches.items() if path[0] in PATIENT_KEYS}
    returned = tuple(path for path in search.returned if path[0] in PATIENT_KEYS)
    return Plan(PATIENT, PATIENT_ID, matches, returned)


def _home(path: Path, last: Level) -> Level:
    """The level whose C-FIND asks for the attribute: the last one for what is found at each of them."""
    found = level_of(path[0])
    return last if found is None or found not in last.and_above else found


def _is_below(level: Level, path: Path) -> bool:
    found = level_of(path[0])
    return found is not None and found not in level.and_above


def value_combinations(matches: Mapping[Path, str]) -> list[dict[Path, str]]:
    """Single-valued keys for lists of values: an archive need not match lists of anything but UIDs.

    Raises ValueError, fit for a client, when they are more than `MAX_VALUE_COMBINATIONS`.
    """
    choices = [
        [(path, value)] if vr_of(path[-1]) == "UI" else [(path, one) for one in dict.fromkeys(value.split("\\"))]
        for path, value in matches.items()
    ]
    combinations = list(itertools.islice(itertools.product(*choices), MAX_VALUE_COMBINATIONS + 1))
    if len(combinations) > MAX_VALUE_COMBINATIONS:
        raise ValueError(f"lists of values with more than {MAX_VALUE_COMBINATIONS} combinations")
    return [dict(combination) for combination in combinations]


def check(search: Search) -> None:
    """Raise ValueError, fit for a client, for a search that cannot be put into C-FINDs.

    To match what belongs to a level below is refused: some archives then find nothing, some everything.
    """
    for path in search.matches:
        if _is_below(search.level, path):
            name = keyword_of(path[0]) or f"{path[0]:08X}"
            raise ValueError(f"{name} is no attribute of the {search.level.value} level; search below it")
    for plan in plans_of(search):
        for keys in value_combinations(plan.matches):
            encode_identifier(keys, explicit=True)
