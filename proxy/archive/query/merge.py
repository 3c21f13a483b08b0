"""The answers of several archives in one list. An entity is one archive's answer, never a blend."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Final

from proxy.archive.errors import ArchiveError
from proxy.archive.query.plan import Found
from proxy.dataset.levels import Level

MERGE_QUEUE: Final = 100
"""Answers of each archive that wait to be merged, before its C-FIND is held back."""

_END: Final = None
_Outcome = Found | ArchiveError | None


async def without_repeats(answers: AsyncGenerator[Found, None], level: Level) -> AsyncGenerator[Found, None]:
    """The answers, each entity once: the first answer that names it, whole."""
    seen: set[tuple[str, ...]] = set()
    async with contextlib.aclosing(answers):
        async for found in answers:
            key = tuple(found.found_uids.get(each, "") for each in level.and_above)
            if key not in seen:
                seen.add(key)
                yield found


async def merge(
    walks: Sequence[AsyncGenerator[Found, None]], failures: list[ArchiveError], *, in_order: bool = False
) -> AsyncGenerator[Found, None]:
    """The answers of all walks. Those that fail before their first answer are added to `failures`, before any answer
    is given; when all do, the first failure is raised. One that fails later fails the whole.

    `in_order` gives the answers of one walk after those of another, which is the same order each time; as they come,
    they need not wait for those of a slow archive.
    """
    queues: list[asyncio.Queue[_Outcome]] = [asyncio.Queue(MERGE_QUEUE) for _ in walks]
    arrived = asyncio.Event()
    tasks = [asyncio.create_task(_pump(walk, queue, arrived)) for walk, queue in zip(walks, queues, strict=True)]
    try:
        first = [await queue.get() for queue in queues]
        failures += [outcome for outcome in first if isinstance(outcome, ArchiveError)]
        if len(failures) == len(walks):
            raise failures[0]
        running = [(outcome, queue) for queue, outcome in zip(queues, first, strict=True) if isinstance(outcome, Found)]
        groups = [[each] for each in running] if in_order else [running]
        for group in groups:
            for found, _ in group:
                yield found
            async for found in _rest((queue for _, queue in group), arrived):
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
