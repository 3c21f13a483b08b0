"""C-FIND over all archives: a search is walked level by level, and the answers of all archives are merged.

Archives refuse keys of other levels and relational queries (PS3.4 C.4.1.3.2), so a search below an open parent finds
the parents first. The answers of several archives are merged by UID, never blended.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import dul
from dul import uids
from proxy.archive.errors import ArchiveError, ArchiveFailedError, TooBroadError
from proxy.archive.peers import Archive
from proxy.archive.refilter import Refilter
from proxy.dataset.dictionary import keyword_of, vr_of
from proxy.dataset.levels import UNIQUE_KEY, Level, level_of
from proxy.dataset.reader import DatasetError, Element, Limits, parse
from proxy.dataset.values import first_value
from proxy.dataset.writer import encode_identifier

Path = tuple[int, ...]
Unchecked = set[tuple[str, int]]

QUERY_RETRIEVE_LEVEL: Final = 0x00080052
MERGE_QUEUE: Final = 100
"""Answers of each archive that wait to be merged, before its C-FIND is held back."""

ANSWER_LIMITS: Final = Limits(elements=20_000)
"""A C-FIND answer holds what was asked for, some dozens of elements; a hostile one shall not cost a second."""

MAX_PARENTS: Final = 100_000
"""Studies or series that one search may have to look into; their answers are kept meanwhile, some 50 MB."""

MAX_VALUE_COMBINATIONS: Final = 64
"""C-FINDs that one search may cost at one level through lists of values, which only UIDs may have (PS3.4 C.2.2.2)."""


@dataclass(frozen=True, slots=True)
class Search:
    """What to look for: entities of `level`, below the UIDs that are fixed.

    `matches` and `returned` may belong to any level from STUDY down to `level`. What is `welcome` is returned as well,
    unless the archive is known never to have it.
    """

    level: Level
    fixed: Mapping[Level, str] = field(default_factory=dict)
    matches: Mapping[Path, str] = field(default_factory=dict)
    returned: Sequence[Path] = ()
    welcome: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """One entity: its UIDs from the study down, and the elements that each level's C-FIND returned."""

    archive: Archive
    found_uids: Mapping[Level, str]
    elements: Mapping[Level, list[Element]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The keys of the C-FIND of one level."""

    level: Level
    matches: Mapping[Path, str]
    returned: tuple[Path, ...]
    welcome: tuple[int, ...]


def _plan(search: Search) -> list[_Plan]:
    """The levels that have to be asked: the last one, and those above that are open or have keys."""
    plans: list[_Plan] = []
    for level in search.level.and_above:
        is_last = level is search.level

        def belongs(path: Path, level: Level = level, is_last: bool = is_last) -> bool:
            found = level_of(path[0])
            return is_last if found is None or found not in search.level.and_above else found is level

        matches = {path: value for path, value in search.matches.items() if belongs(path)}
        # Viewers ask for attributes of the series with each study; strict archives refuse such a C-FIND as a whole.
        returned = tuple(path for path in search.returned if belongs(path) and not _is_below(search.level, path))
        # The unique key is among what is returned, but a fixed one needs no C-FIND to be known.
        wanted = [path for path in returned if path != (UNIQUE_KEY[level],)]
        if is_last or level not in search.fixed or matches or wanted:
            welcome = tuple(tag for tag in search.welcome if belongs((tag,)))
            plans.append(_Plan(level, matches, returned, welcome))
    return plans


def _is_below(level: Level, path: Path) -> bool:
    found = level_of(path[0])
    return found is not None and found not in level.and_above


def _value_combinations(matches: Mapping[Path, str]) -> list[dict[Path, str]]:
    """Single-valued keys for lists of values: an archive need not match lists of anything but UIDs."""
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
    for plan in _plan(search):
        for keys in _value_combinations(plan.matches):
            encode_identifier(keys, explicit=True)


@dataclass(frozen=True, slots=True)
class _Answer:
    uid: str
    elements: list[Element]
    match: dul.Match


class _Walk:
    """One search on one archive."""

    def __init__(self, archive: Archive, search: Search, unchecked: Unchecked) -> None:
        self._archive = archive
        self._unchecked = unchecked
        self._plans = _plan(search)
        self._fixed = search.fixed

    def run(self) -> AsyncGenerator[Found, None]:
        return self._descend(0, Found(self._archive, self._fixed, {}))

    async def _descend(self, depth: int, above: Found) -> AsyncGenerator[Found, None]:
        plan = self._plans[depth]
        answers = self._answers(plan, above)
        if depth == len(self._plans) - 1:
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    yield self._found(above, plan.level, answer)
            return
        for match in await self._all(answers):
            found = self._found(above, plan.level, self._read(match, plan.level))
            async with contextlib.aclosing(self._descend(depth + 1, found)) as below:
                async for deeper in below:
                    yield deeper

    async def _all(self, answers: AsyncGenerator[_Answer, None]) -> list[dul.Match]:
        """Parents, as they were encoded: searches that each held one association and wanted another for the level
        below would wait for each other for ever."""
        parents: list[dul.Match] = []
        async with contextlib.aclosing(answers):
            async for answer in answers:
                parents.append(answer.match)
                if len(parents) > MAX_PARENTS:
                    raise TooBroadError(f"more than {MAX_PARENTS} studies or series to look into", self._archive.name)
        return parents

    def _found(self, above: Found, level: Level, answer: _Answer) -> Found:
        elements = {**above.elements, level: answer.elements}
        return Found(self._archive, {**above.found_uids, level: answer.uid}, elements)

    def _read(self, match: dul.Match, level: Level) -> _Answer:
        try:
            elements = parse(match.data, match.transfer_syntax, limits=ANSWER_LIMITS)
        except DatasetError as error:
            raise ArchiveFailedError(f"a C-FIND response is malformed: {error}", self._archive.name) from error
        return _Answer(first_value(elements, UNIQUE_KEY[level]), elements, match)

    async def _answers(self, plan: _Plan, above: Found) -> AsyncGenerator[_Answer, None]:
        """The answers of one level below one parent, each entity once."""
        seen: set[str] = set()
        for keys in _value_combinations(plan.matches):
            async with contextlib.aclosing(self._find(plan, keys, above.found_uids)) as answers:
                async for answer in answers:
                    if answer.uid not in seen:
                        seen.add(answer.uid)
                        yield answer

    async def _find(
        self, plan: _Plan, matches: Mapping[Path, str], above: Mapping[Level, str]
    ) -> AsyncGenerator[_Answer, None]:
        unique = (UNIQUE_KEY[plan.level],)
        keys: dict[Path, str] = dict.fromkeys(plan.returned, "")
        optional = self._archive.optional_keys
        welcome = [tag for tag in plan.welcome if optional.worth_asking(plan.level, tag)]
        keys.update(((tag,), "") for tag in welcome)
        keys[unique] = ""
        keys.update(matches)
        keys[(QUERY_RETRIEVE_LEVEL,)] = plan.level.value
        for level in plan.level.and_above:
            if level in above:
                keys[(UNIQUE_KEY[level],)] = above[level]
        wanted = keys[unique].split("\\") if keys[unique] else None

        def identifier(transfer_syntax: str) -> bytes:
            return encode_identifier(keys, explicit=transfer_syntax != uids.IMPLICIT_VR_LITTLE_ENDIAN)

        refilter = Refilter(matches, self._archive.peer.default_character_set)
        async with contextlib.aclosing(self._archive.find(identifier)) as found:
            async for match in found:
                answer = self._read(match, plan.level)
                optional.learn(plan.level, welcome, answer.elements)
                # An answer without its unique key is of no use, one with another is of an archive that ignores keys.
                if answer.uid and (wanted is None or answer.uid in wanted) and refilter.passes(answer.elements):
                    self._unchecked.update((self._archive.name, tag) for tag in refilter.unchecked)
                    yield answer


@dataclass(slots=True)
class Results:
    """The answers to a search, as an async iterator, and the archives that failed to give theirs.

    Failures are complete once the first answer has come, or the end: only then is the first answer given. An
    archive that fails later fails the whole search, since an answer list cut short must not look whole.

    `unchecked` names archives, and the keys whose matching was left to them because their answers hold no value.
    """

    answers: AsyncGenerator[Found, None]
    failures: list[ArchiveError]
    unchecked: Unchecked


def search(archives: Sequence[Archive], wanted: Search) -> Results:
    """Ask all archives at once. Close `answers` when leaving early; that cancels the C-FINDs.

    Raises `ArchiveError` from `answers` when no archive can answer.
    """
    failures: list[ArchiveError] = []
    unchecked: Unchecked = set()
    walks = [_Walk(archive, wanted, unchecked).run() for archive in archives]
    merged = walks[0] if len(walks) == 1 else _without_repeats(_merge(walks, failures), wanted.level)
    return Results(merged, failures, unchecked)


async def _without_repeats(answers: AsyncGenerator[Found, None], level: Level) -> AsyncGenerator[Found, None]:
    seen: set[tuple[str, ...]] = set()
    async with contextlib.aclosing(answers):
        async for found in answers:
            key = tuple(found.found_uids.get(each, "") for each in level.and_above)
            if key not in seen:
                seen.add(key)
                yield found


_END: Final = None
_Outcome = Found | ArchiveError | None


async def _merge(
    walks: Sequence[AsyncGenerator[Found, None]], failures: list[ArchiveError]
) -> AsyncGenerator[Found, None]:
    queues: list[asyncio.Queue[_Outcome]] = [asyncio.Queue(MERGE_QUEUE) for _ in walks]
    arrived = asyncio.Event()
    tasks = [asyncio.create_task(_pump(walk, queue, arrived)) for walk, queue in zip(walks, queues, strict=True)]
    try:
        first = [await queue.get() for queue in queues]
        failures += [outcome for outcome in first if isinstance(outcome, ArchiveError)]
        if len(failures) == len(walks):
            raise failures[0]
        for outcome in first:
            if isinstance(outcome, Found):
                yield outcome
        running = [queue for queue, outcome in zip(queues, first, strict=True) if isinstance(outcome, Found)]
        async for found in _rest(running, arrived):
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _rest(running: Iterable[asyncio.Queue[_Outcome]], arrived: asyncio.Event) -> AsyncGenerator[Found, None]:
    open_queues = list(running)
    while open_queues:
        arrived.clear()
        for queue in list(open_queues):
            while not queue.empty():
                outcome = queue.get_nowait()
                if isinstance(outcome, ArchiveError):
                    raise outcome
                if outcome is _END:
                    open_queues.remove(queue)
                    break
                yield outcome
        if open_queues and all(queue.empty() for queue in open_queues):
            await arrived.wait()


async def _pump(walk: AsyncGenerator[Found, None], queue: asyncio.Queue[_Outcome], arrived: asyncio.Event) -> None:
    last: _Outcome = _END
    async with contextlib.aclosing(walk):
        try:
            async for found in walk:
                await queue.put(found)
                arrived.set()
        except ArchiveError as error:
            last = error
    await queue.put(last)
    arrived.set()
