"""One search on one archive, walked level by level.

Archives refuse keys of other levels and relational queries (PS3.4 C.4.1.3.2), so a search below an open parent finds
the parents first.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from proxy.archive.peers.archive import Archive
from proxy.archive.query import modalities
from proxy.archive.query.cfind import Answer, Remarks, keep_all, read, text_in
from proxy.archive.query.known import Known
from proxy.archive.query.lists import Lists
from proxy.archive.query.merge import without_repeats
from proxy.archive.query.patients import patients_of
from proxy.archive.query.plan import Found, Plan, Search, plans_of
from proxy.dataset.levels import INSTANCE_AVAILABILITY, PATIENT_ID, UNIQUE_KEY, Level


class Walk:
    """The search on one archive; `known` learns which studies it has."""

    def __init__(self, archive: Archive, search: Search, remarks: Remarks, known: Known | None) -> None:
        self._archive = archive
        self._search = search
        self._lists = Lists(archive, remarks)
        self._known = known
        self._by_patient = archive.peer.query_model == "PATIENT"
        self._plans = plans_of(search, patient_root=self._by_patient)

    def run(self) -> AsyncGenerator[Found, None]:
        """All that is found; an async generator, to be closed when left early."""
        if self._by_patient:
            return without_repeats(self._patients(), self._search.level)
        return self._descend(0, Found(self._archive, self._search.fixed, {}))

    async def _patients(self) -> AsyncGenerator[Found, None]:
        async with contextlib.aclosing(patients_of(self._lists, self._search, self._known)) as patients:
            async for patient in patients:
                above = Found(self._archive, self._search.fixed, {}, patient.elements, patient.patient_id)
                async with contextlib.aclosing(self._descend(0, above)) as below:
                    async for found in below:
                        yield found

    async def _descend(self, depth: int, above: Found) -> AsyncGenerator[Found, None]:
        plan = self._plans[depth]
        answers = self._answers(plan, above)
        if depth == len(self._plans) - 1:
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    yield self._found(above, plan, answer)
            return
        for kept in await keep_all(answers, self._archive):
            found = self._found(above, plan, read(self._archive, kept, plan.unique))
            async with contextlib.aclosing(self._descend(depth + 1, found)) as below:
                async for deeper in below:
                    yield deeper

    def _answers(self, plan: Plan, above: Found) -> AsyncGenerator[Answer, None]:
        """The answers of one level below one parent, each entity once."""
        level = Level(plan.level)
        keys = {UNIQUE_KEY[each]: above.found_uids[each] for each in level.and_above if each in above.found_uids}
        if above.patient_id is not None:
            keys[PATIENT_ID] = above.patient_id
        return modalities.studies(self._lists, plan, keys) if level is Level.STUDY else self._lists.answers(plan, keys)

    def _found(self, above: Found, plan: Plan, answer: Answer) -> Found:
        level = Level(plan.level)
        found_uids = {**above.found_uids, level: answer.uid}
        if self._known is not None:
            self._learn(self._known, above, level, answer, found_uids[Level.STUDY])
        elements = {**above.elements, level: answer.elements}
        return Found(self._archive, found_uids, elements, above.patient, above.patient_id)

    def _learn(self, known: Known, above: Found, level: Level, answer: Answer, study: str) -> None:
        if level is Level.STUDY:
            patient_id = above.patient_id or text_in(self._archive, answer.elements, PATIENT_ID)
            availability = text_in(self._archive, answer.elements, INSTANCE_AVAILABILITY)
            known.learn(study, self._archive.name, availability=availability, patient_id=patient_id)
        elif Level.STUDY in self._search.fixed and not above.elements:
            known.learn(study, self._archive.name, patient_id=above.patient_id)
