"""The answers to the C-FINDs of one level, as whole as an archive lets them be had.

Some archives cut their lists, silently or with a failure status. At the STUDY level the missing studies are looked for
by C-FINDs for parts of the study dates. No association is held between two C-FINDs.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from proxy.archive.errors import ArchiveFailedError
from proxy.archive.peers.archive import Archive
from proxy.archive.query.cfind import Answer, Remarks, c_find
from proxy.archive.query.datespan import DateSpan
from proxy.archive.query.plan import Path, Plan, value_combinations
from proxy.archive.query.statuses import says_too_many
from proxy.dataset.levels import STUDY_DATE, Level
from proxy.dataset.values import find

MAX_PARTS: Final = 64
"""C-FINDs for parts of the study dates that one search may cost at one archive."""


class Lists:
    """What one archive answers to one search. The C-FINDs for parts are counted over all of it."""

    def __init__(self, archive: Archive, remarks: Remarks) -> None:
        self.archive = archive
        self.remarks = remarks
        self._parts_left = MAX_PARTS

    def take_part(self) -> bool:
        """True when one more C-FIND for a part may be made; it is counted."""
        self._parts_left -= 1
        return self._parts_left >= 0

    def answers(self, plan: Plan, above: Mapping[int, str]) -> AsyncGenerator[Answer, None]:
        """The answers of one level that match, each entity once; `above` are the `fixed` values for `c_find`."""
        lists = [_List(self, plan, matches, above).answers() for matches in value_combinations(plan.matches)]
        return lists[0] if len(lists) == 1 else _union(lists)


async def _union(lists: Iterable[AsyncGenerator[Answer, None]]) -> AsyncGenerator[Answer, None]:
    seen: set[str] = set()
    for each in lists:
        async with contextlib.aclosing(each) as answers:
            async for answer in answers:
                if answer.uid not in seen:
                    seen.add(answer.uid)
                    yield answer


@dataclass(slots=True, eq=False)
class _Part:
    """A C-FIND for the studies of a span, or of another level, and what came of it."""

    span: DateSpan | None
    received: int = 0
    dates: Counter[bytes] = field(default_factory=Counter)
    ignores_dates: bool = False
    failure: ArchiveFailedError | None = None

    def halves(self) -> tuple[DateSpan, ...]:
        """What to ask for instead; empty where it can be no less."""
        return () if self.span is None or self.ignores_dates else self.span.halves(self.dates)


class _List:
    """The list for one combination of values, with its parts where it is cut."""

    def __init__(self, lists: Lists, plan: Plan, matches: Mapping[Path, str], above: Mapping[int, str]) -> None:
        self._lists = lists
        self._archive = lists.archive
        self._caps = lists.archive.habits.caps
        self._plan = plan
        self._matches = matches
        self._above = above
        self._uids: set[str] = set()
        span = DateSpan.of(matches.get((STUDY_DATE,), "")) if plan.level == Level.STUDY else None
        self._whole = _Part(span)

    async def answers(self) -> AsyncGenerator[Answer, None]:
        """The whole list: what one C-FIND gives, and what is missing from that."""
        whole = self._whole
        if self._caps.cap is not None and (whole.span is None or whole.span.is_universal):
            self._lists.remarks.limited[self._archive.name] = self._caps.cap
        async with contextlib.aclosing(self._ask(whole)) as answers:
            async for answer in answers:
                yield answer
        if whole.failure is not None or self._caps.suspects(self._plan.level, whole.received):
            async with contextlib.aclosing(self._missing()) as missing:
                async for answer in missing:
                    yield answer

    async def _ask(self, part: _Part) -> AsyncGenerator[Answer, None]:
        """One C-FIND; its answers that match and have not come before. One of a date not asked for ends a part."""
        fixed = dict(self._above)
        if part is not self._whole and part.span is not None:
            fixed[STUDY_DATE] = part.span.key
        found = c_find(self._archive, self._plan, self._matches, fixed, self._lists.remarks)
        try:
            async with contextlib.aclosing(found) as answers:
                async for answer in answers:
                    part.received += 1
                    self._look_at_date(part, answer)
                    if part.ignores_dates and part is not self._whole:
                        return
                    if answer.passes and answer.uid not in self._uids:
                        self._uids.add(answer.uid)
                        yield answer
        except ArchiveFailedError as error:
            if not says_too_many(error, part.received):
                raise
            part.failure = error
        finally:
            self._caps.note(self._plan.level, part.received)

    def _look_at_date(self, part: _Part, answer: Answer) -> None:
        element = None if part.span is None else find(answer.elements, STUDY_DATE)
        if part.span is None or element is None or not isinstance(element.value, bytes):
            return
        if element.value not in part.dates and part.span.leaves_out(element.value):
            part.ignores_dates = True
        part.dates[element.value] += 1

    async def _missing(self) -> AsyncGenerator[Answer, None]:
        """Ask for the parts of a list that may be cut, and for the parts of those that may still be."""
        before = len(self._uids)
        pending = [*self._whole.halves()]
        complete = bool(pending)
        answered = False
        while pending:
            part = _Part(pending.pop())
            if not self._lists.take_part():
                complete = False
                break
            async with contextlib.aclosing(self._ask(part)) as answers:
                async for answer in answers:
                    yield answer
            if part.ignores_dates:
                complete = False
                break
            if not self._may_be_cut(part):
                answered = True
            elif halves := part.halves():
                pending += halves
            else:
                complete = False
                if part.failure is not None and not answered:
                    break  # the archive fails whatever it is asked
        self._conclude(complete, answered=answered, gained=len(self._uids) > before)

    def _may_be_cut(self, part: _Part) -> bool:
        if part.failure is not None:
            return True
        return self._whole.failure is None and part.received == self._whole.received

    def _conclude(self, complete: bool, *, answered: bool, gained: bool) -> None:
        """Say and remember what the parts have shown. A failure that no part was free of stays one, and one that
        leaves nothing at all: an empty list would say that there is nothing."""
        whole, remarks, name = self._whole, self._lists.remarks, self._archive.name
        if whole.failure is not None and not (complete or (answered and self._uids)):
            raise whole.failure
        suspected = self._caps.suspects(self._plan.level, whole.received)
        was_cut = whole.failure is not None or (gained and suspected)
        if was_cut and suspected:
            self._caps.confirm(whole.received)
        elif complete and not was_cut:
            self._caps.clear(whole.received)
        if not complete:
            remarks.cut.add(name)
            remarks.short.update({name} if was_cut else ())
        elif was_cut and whole.span is not None and whole.span.is_universal:
            remarks.undated.add(name)
