"""Modalities in Study (0008,0061): an optional key that some archives do not match, do not return, or refuse.

Where an answer does not show it, the modalities of its series decide (PS3.4 C.6.2.1: Modality is a required key).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Final

from proxy.archive.errors import ArchiveFailedError
from proxy.archive.query.cfind import Answer, Kept, keep, read
from proxy.archive.query.lists import Lists
from proxy.archive.query.plan import Plan
from proxy.archive.query.statuses import says_wrong_keys
from proxy.dataset.levels import MODALITIES_IN_STUDY, MODALITY, UNIQUE_KEY, Level
from proxy.dataset.matching import Test, value_test
from proxy.dataset.reader import Element
from proxy.dataset.values import find, text_of

_SERIES: Final = Plan(Level.SERIES, UNIQUE_KEY[Level.SERIES], returned=((MODALITY,),))


def studies(lists: Lists, plan: Plan, above: Mapping[int, str]) -> AsyncGenerator[Answer, None]:
    """The answers of the STUDY level that match, that key included; `above` are the `fixed` values for `c_find`.

    A study whose answer does not show its modalities costs a C-FIND for its series, after that for the studies has
    ended, and gets the attribute from them. One whose series show none either is believed to match, and noted. Raises
    `TooBroadError` for more than `MAX_PARENTS` such studies.
    """
    wanted = plan.matches.get((MODALITIES_IN_STUDY,), "")
    test = value_test("CS", wanted.casefold().split("\\"))
    asked = _asked(lists, plan, above) if plan.asks_for(MODALITIES_IN_STUDY) else lists.answers(plan, above)
    return asked if test is None else _decided(lists, plan, above, asked, test)


async def _decided(
    lists: Lists, plan: Plan, above: Mapping[int, str], asked: AsyncGenerator[Answer, None], test: Test
) -> AsyncGenerator[Answer, None]:
    """Those of the answers that pass the test of their modalities."""
    undecided: list[Kept] = []
    async with contextlib.aclosing(asked) as answers:
        async for answer in answers:
            given = _values(answer, MODALITIES_IN_STUDY)
            if _any_passes(test, given):
                yield answer
            elif not given:
                keep(undecided, answer, lists.archive)
    for kept in undecided:
        answer = read(lists.archive, kept, plan.unique)
        modalities = await _of_series(lists, {**above, plan.unique: answer.uid})
        if not modalities:
            lists.remarks.unchecked.add((lists.archive.name, MODALITIES_IN_STUDY))
            yield answer
        elif _any_passes(test, modalities):
            yield answer.with_modalities(_element(modalities))


async def _asked(lists: Lists, plan: Plan, above: Mapping[int, str]) -> AsyncGenerator[Answer, None]:
    """The answers with the key or, where the archive refuses it, without."""
    habits = lists.archive.habits
    attempts = [plan, plan.without(MODALITIES_IN_STUDY)]
    if habits.refuses(MODALITIES_IN_STUDY):
        del attempts[0]
    for attempt in attempts:
        answered = False
        try:
            async with contextlib.aclosing(lists.answers(attempt, above)) as answers:
                async for answer in answers:
                    answered = True
                    yield answer
        except ArchiveFailedError as error:
            if answered or attempt is attempts[-1] or not says_wrong_keys(error):
                raise
            continue
        if attempt is not attempts[0]:
            habits.note_refused(MODALITIES_IN_STUDY)
        return


async def _of_series(lists: Lists, above: Mapping[int, str]) -> list[str]:
    """The modalities of a study's series, each once, in the order given."""
    modalities: dict[str, None] = {}
    async with contextlib.aclosing(lists.answers(_SERIES, above)) as answers:
        async for answer in answers:
            modalities.update(dict.fromkeys(_values(answer, MODALITY)))
    return list(modalities)


def _values(answer: Answer, tag: int) -> list[str]:
    element = find(answer.elements, tag)
    return [] if element is None else [value for value in text_of(element).split("\\") if value]


def _any_passes(test: Test, values: list[str]) -> bool:
    return any(test(value.casefold()) for value in values)


def _element(modalities: list[str]) -> Element:
    text = "\\".join(modalities)
    return Element(MODALITIES_IN_STUDY, "CS", text.encode("ascii", "replace"))
