"""Patient Root (PS3.4 C.6.1): below the PATIENT level each identifier names the patient, by one plain Patient ID.

What may live here: which patients a search has to look into, and whose a study is.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.archive.errors import ArchiveFailedError
from proxy.archive.peers.archive import Archive
from proxy.archive.query.cfind import Answer, Remarks, keep_all, read, text_in
from proxy.archive.query.known import Known
from proxy.archive.query.lists import Lists
from proxy.archive.query.plan import Plan, Search, patient_plan
from proxy.archive.query.refilter import Refilter
from proxy.archive.query.statuses import says_wrong_keys
from proxy.dataset.levels import PATIENT, PATIENT_ID, UNIQUE_KEY, Level
from proxy.dataset.matching import is_literal
from proxy.dataset.reader import Element

_STUDY: Final = UNIQUE_KEY[Level.STUDY]


@dataclass(frozen=True, slots=True)
class Patient:
    """A patient to look into: the unique key, and the elements that the C-FIND returned, where there had to be one."""

    patient_id: str
    elements: Sequence[Element] = ()


# --- whose a study is ----------------------------------------------------------------------------------------


async def patient_id(archive: Archive, study: str, known: Known | None = None) -> str | None:
    """The Patient ID of a study, for identifiers in the Patient Root model; None when the archive has no such study.

    Asked for in this order: what `known` remembers; a C-FIND for the study, which strict archives refuse without a
    Patient ID, or answer with nothing; a C-FIND for all patients, and one for the studies of each until it is found.
    What comes to light on the way is remembered. Raises `ArchiveError`, `TooBroadError` for too many patients.
    """
    return (await patient_ids(archive, [study], known)).get(study)


async def patient_ids(archive: Archive, studies: Iterable[str], known: Known | None = None) -> dict[str, str]:
    """The same for several studies, by their UIDs; those that the archive does not have are left out."""
    known = Known() if known is None else known
    owners: dict[str, str] = {}
    missing: set[str] = set()
    for study in studies:
        owner = known.patient_id(study, archive.name)
        if owner is None:
            missing.add(study)
        else:
            owners[study] = owner
    for ask in (_owners_told, _owners_sought):
        if missing:
            owners |= await ask(archive, frozenset(missing), known)
            missing -= owners.keys()
    return owners


async def _owners_told(archive: Archive, studies: frozenset[str], known: Known) -> dict[str, str]:
    """The owners that an archive tells without being told them."""
    owners: dict[str, str] = {}
    habits = archive.habits
    if habits.refuses(PATIENT_ID):
        return owners
    plan = Plan(Level.STUDY, _STUDY, {(_STUDY,): "\\".join(sorted(studies))}, ((PATIENT_ID,),))
    try:
        async with contextlib.aclosing(Lists(archive, Remarks()).answers(plan, {})) as answers:
            async for answer in answers:
                if owner := text_in(archive, answer.elements, PATIENT_ID):
                    owners[answer.uid] = owner
                    known.learn(answer.uid, archive.name, patient_id=owner)
    except ArchiveFailedError as error:
        if not says_wrong_keys(error):
            raise
        habits.note_refused(PATIENT_ID)
    if owners:
        habits.note_taken(PATIENT_ID)
    return owners


async def _owners_sought(archive: Archive, studies: frozenset[str], known: Known) -> dict[str, str]:
    """The owners, found by looking into one patient after the other; not where an archive tells who is there."""
    owners: dict[str, str] = {}
    if archive.habits.takes(PATIENT_ID):
        return owners
    lists = Lists(archive, Remarks())
    everybody = Plan(PATIENT, PATIENT_ID)
    for kept in await keep_all(lists.answers(everybody, {}), archive):
        owner = read(archive, kept, PATIENT_ID).uid
        async with contextlib.aclosing(lists.answers(Plan(Level.STUDY, _STUDY), {PATIENT_ID: owner})) as answers:
            async for answer in answers:
                known.learn(answer.uid, archive.name, patient_id=owner)
                if answer.uid in studies:
                    owners[answer.uid] = owner
        if owners.keys() >= studies:
            break
    return owners


# --- which patients a search is for --------------------------------------------------------------------------


async def patients_of(lists: Lists, search: Search, known: Known | None) -> AsyncGenerator[Patient, None]:
    """The patients that a search has to look into: those who match, one by one.

    One who is named by the search, or by its studies, costs a C-FIND only when more than the name is wanted.
    """
    plan = patient_plan(search)
    named = await _named(lists.archive, search, known)
    if named is None:
        for kept in await keep_all(lists.answers(plan, {}), lists.archive):
            answer = read(lists.archive, kept, PATIENT_ID)
            yield Patient(answer.uid, answer.elements)
        return
    for name in named:
        if not plan.returned and all(value in ("", name) for value in plan.matches.values()):
            yield Patient(name)
        else:
            for answer in await _matching(lists, plan, name):
                yield Patient(answer.uid, answer.elements)


async def _named(archive: Archive, search: Search, known: Known | None) -> list[str] | None:
    """The Patient IDs that the search names, or its studies belong to; None when it names neither."""
    wanted = search.matches.get((PATIENT_ID,), "")
    if is_literal("LO", wanted) and "\\" not in wanted:
        return [wanted]
    studies = search.fixed.get(Level.STUDY) or search.matches.get((_STUDY,), "")
    if not studies:
        return None
    owners = await patient_ids(archive, studies.split("\\"), known)
    return list(dict.fromkeys(owners.values()))


async def _matching(lists: Lists, plan: Plan, name: str) -> list[Answer]:
    """The answers for one patient that match the plan, whose own key for the Patient ID may have wildcards.

    Some archives take no notice of case; from here on the Patient ID is as they write it.
    """
    refilter = Refilter(plan.matches, lists.archive.peer.default_character_set)
    kept = await keep_all(lists.answers(plan.matching(PATIENT_ID, name), {}), lists.archive)
    answers = [read(lists.archive, each, PATIENT_ID) for each in kept]
    return [
        answer for answer in answers if answer.uid.casefold() == name.casefold() and refilter.passes(answer.elements)
    ]
