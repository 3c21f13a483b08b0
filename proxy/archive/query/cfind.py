"""One C-FIND: its identifier, and its answers, read and matched once more (PS3.4 C.4.1)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import dul
from dul import uids
from proxy.archive.errors import ArchiveFailedError, TooBroadError
from proxy.archive.peers.archive import Archive
from proxy.archive.query.plan import Path, Plan
from proxy.archive.query.refilter import Refilter
from proxy.dataset.charset import encodings_of
from proxy.dataset.dictionary import vr_of
from proxy.dataset.levels import MODALITIES_IN_STUDY, PATIENT_ID
from proxy.dataset.reader import DatasetError, Element, Limits, parse
from proxy.dataset.values import encodings_in, first_value
from proxy.dataset.writer import encode_identifier

QUERY_RETRIEVE_LEVEL: Final = 0x00080052

MAX_PARENTS: Final = 100_000
"""Patients, studies or series that one search may have to look into; their answers are kept meanwhile, some 50 MB."""

ANSWER_LIMITS: Final = Limits(elements=20_000)
"""A C-FIND answer holds what was asked for, some dozens of elements; a hostile one shall not cost a second."""


@dataclass(slots=True)
class Remarks:
    """What a search's C-FINDs showed beside their answers; archives are named as configured.

    `unchecked` has the keys whose matching was left to an archive because its answers hold no value. `cut` are the
    archives whose list may be cut, `short` those of them whose list is. `undated` are those whose list was cut and then
    completed by study dates, so that studies without one may be missing. `limited` has those that are known to give at
    most so many answers, where a longer list could not be completed, or not wholly: what can be said before the end of
    a list is known.
    """

    unchecked: set[tuple[str, int]] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    short: set[str] = field(default_factory=set)
    undated: set[str] = field(default_factory=set)
    limited: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer in little memory: as it was encoded, with what was found out of it since."""

    match: dul.Match
    modalities: Element | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One C-FIND response: the value of its level's unique key, "" for none, and its elements.

    `passes` is False for one that does not match what was asked for.
    """

    uid: str
    elements: list[Element]
    kept: Kept
    passes: bool = True

    def with_modalities(self, modalities: Element) -> Answer:
        """The same with Modalities in Study (0008,0061), which the archive did not give."""
        return replace(self, elements=_filled(self.elements, modalities), kept=Kept(self.kept.match, modalities))


def _filled(elements: list[Element], added: Element) -> list[Element]:
    return [*(element for element in elements if element.tag != added.tag), added]


def read(archive: Archive, kept: Kept, unique: int) -> Answer:
    """Read an answer. Raises `ArchiveFailedError` for a malformed one."""
    match = kept.match
    try:
        elements = parse(match.data, match.transfer_syntax, limits=ANSWER_LIMITS)
    except DatasetError as error:
        raise ArchiveFailedError(f"a C-FIND response is malformed: {error}", archive.name) from error
    if kept.modalities is not None:
        elements = _filled(elements, kept.modalities)
    return Answer(text_in(archive, elements, unique), elements, kept)


def text_in(archive: Archive, elements: list[Element], tag: int) -> str:
    """The first value of an attribute of an answer as text; "" where there is none."""
    if vr_of(tag) == "UI":
        return first_value(elements, tag)
    default = encodings_of(archive.peer.default_character_set)
    return first_value(elements, tag, encodings_in(elements, default))


async def keep_all(answers: AsyncGenerator[Answer, None], archive: Archive) -> list[Kept]:
    """All of the answers: searches that each held an association for these, and wanted another to look into one,
    would wait for each other for ever. Raises `TooBroadError` for more than `MAX_PARENTS`."""
    kept: list[Kept] = []
    async with contextlib.aclosing(answers):
        async for answer in answers:
            keep(kept, answer, archive)
    return kept


def keep(kept: list[Kept], answer: Answer, archive: Archive) -> None:
    """Keep one more answer. Raises `TooBroadError` for more than `MAX_PARENTS`."""
    if len(kept) >= MAX_PARENTS:
        raise TooBroadError(f"more than {MAX_PARENTS} patients, studies or series to look into", archive.name)
    kept.append(answer.kept)


async def c_find(
    archive: Archive, plan: Plan, matches: Mapping[Path, str], fixed: Mapping[int, str], remarks: Remarks
) -> AsyncGenerator[Answer, None]:
    """One C-FIND with the keys of `plan`; all of its answers, in the order given.

    `matches` are the plan's with one value for each key. `fixed` are values that stand for those of the plan and are
    not matched once more: those of the unique keys of the levels above, and of this level where it is known. Nor is
    Modalities in Study: see `modalities`.
    """
    keys, welcome = _keys(archive, plan, matches, fixed)
    unique = keys[(plan.unique,)] if vr_of(plan.unique) == "UI" else ""
    wanted = unique.split("\\") if unique else None
    patient_id = fixed.get(PATIENT_ID)
    refilter = Refilter(
        {path: value for path, value in matches.items() if path != (MODALITIES_IN_STUDY,)},
        archive.peer.default_character_set,
    )

    def identifier(transfer_syntax: str) -> bytes:
        return encode_identifier(keys, explicit=transfer_syntax != uids.IMPLICIT_VR_LITTLE_ENDIAN)

    async with contextlib.aclosing(archive.find(identifier)) as found:
        async for match in found:
            answer = read(archive, Kept(match), plan.unique)
            archive.habits.learn(plan.level, welcome, answer.elements)
            # An answer without its unique key is of no use, one with another is of an archive that ignores keys.
            passes = answer.uid != "" and (wanted is None or answer.uid in wanted)
            passes = passes and (patient_id is None or _is_of(archive, answer, patient_id))
            if passes and refilter.passes(answer.elements):
                remarks.unchecked.update((archive.name, tag) for tag in refilter.unchecked)
                yield answer
            else:
                yield replace(answer, passes=False)


def _keys(
    archive: Archive, plan: Plan, matches: Mapping[Path, str], fixed: Mapping[int, str]
) -> tuple[dict[Path, str], list[int]]:
    """The keys of the identifier, and which of them are merely welcome."""
    keys: dict[Path, str] = dict.fromkeys(plan.returned, "")
    welcome = [tag for tag in plan.welcome if archive.habits.worth_asking(plan.level, tag)]
    keys.update(((tag,), "") for tag in welcome)
    keys[(plan.unique,)] = ""
    keys.update(matches)
    keys[(QUERY_RETRIEVE_LEVEL,)] = plan.level
    keys.update(((tag,), value) for tag, value in fixed.items())
    return keys, welcome


def _is_of(archive: Archive, answer: Answer, patient_id: str) -> bool:
    """False for an answer that names another patient than the one whose entities were asked for."""
    given = text_in(archive, answer.elements, PATIENT_ID)
    return not given or given.casefold() == patient_id.casefold()
