"""A `Retrieval`: what was asked for, how the archive is asked for it, and what has arrived, in order of arrival.

It ends well only when everything that the archive has was handed over whole. Otherwise its reader gets an
`ArchiveError`: from `first()` when nothing was handed over yet, later from the iteration.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import dul
from dul import dimse, uids
from proxy.archive import query
from proxy.archive.contexts import contexts_for_get
from proxy.archive.errors import (
    ArchiveBusyError,
    ArchiveError,
    ArchiveFailedError,
    ArchiveTimeoutError,
    IncompleteError,
    NotFoundError,
    from_dul,
)
from proxy.archive.peers import MOVE_CONTEXTS, Archive
from proxy.archive.spool import ArrivingInstance, InstanceInfo
from proxy.dataset.levels import UNIQUE_KEY, Level
from proxy.dataset.peek import UidPeek
from proxy.dataset.writer import encode_identifier

logger = logging.getLogger(__name__)

PENDING_LIMIT: Final = 8 * 1024 * 1024
"""Unread bytes of one retrieval at which no further instance is begun."""

PENDING_INSTANCES: Final = 64
"""Unread instances at which no further one is begun: small ones cost more in objects than in bytes."""

ARRIVAL_GRACE_SECONDS: Final = 5.0
"""How long to wait, after the final response, for C-STOREs that are still to come, since the last one."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to retrieve: a study, a series of it, or an instance of that."""

    study: str
    series: str | None = None
    instance: str | None = None

    @property
    def level(self) -> Level:
        """The Query/Retrieve Level (0008,0052)."""
        if self.instance is not None:
            return Level.IMAGE
        return Level.SERIES if self.series is not None else Level.STUDY

    @property
    def uids(self) -> dict[Level, str]:
        """The unique keys by level."""
        values = (self.study, self.series, self.instance)
        return {level: uid for level, uid in zip(Level, values, strict=True) if uid is not None}

    def identifier(self, transfer_syntax: str) -> bytes:
        """The C-MOVE or C-GET identifier: the level and the unique keys, nothing else (PS3.4 C.4.2.1.4)."""
        keys: dict[query.Path, str] = {(UNIQUE_KEY[level],): uid for level, uid in self.uids.items()}
        keys[(query.QUERY_RETRIEVE_LEVEL,)] = self.level.value
        explicit = transfer_syntax != uids.IMPLICIT_VR_LITTLE_ENDIAN
        return encode_identifier(keys, explicit=explicit, character_set=False)

    def covers(self, info: InstanceInfo) -> bool:
        """True when an instance with these UIDs is among what is asked for; a UID not known does not speak against."""
        return (
            info.study in (None, self.study)
            and (self.series is None or info.series in (None, self.series))
            and self.instance in (None, info.sop_instance_uid)
        )


class Inbox(Protocol):
    """Where C-STOREs come in; see `proxy.archive.inbox`."""

    def expect(self, message_id: int, retrieval: Retrieval) -> None:
        """C-STOREs of that C-MOVE belong to `retrieval`."""

    def forget(self, message_id: int) -> None:
        """That C-MOVE is over."""


class Retrieval:
    """One retrieval from one archive, with one reader. Use `retrieve`.

    Its state belongs to the event loop's thread. The task that runs the C-MOVE or C-GET is owned by `retrieve`.
    """

    def __init__(self, archive: Archive, target: Target) -> None:
        self.archive = archive
        self.target = target
        self.arrived: set[tuple[str, str]] = set()
        """Series (empty where not known) and SOP instance UIDs received whole: the latter alone may repeat."""
        self._taken = 0  # C-STOREs that were answered with Success
        self._queue: deque[ArrivingInstance] = deque()
        self._arriving: set[ArrivingInstance] = set()
        self._current: ArrivingInstance | None = None
        self._ended = False
        self._error: ArchiveError | None = None
        self._changed = asyncio.Event()
        self._last_progress = asyncio.get_running_loop().time()
        self._extension: asyncio.TimerHandle | None = None

    # --- what arrives ----------------------------------------------------------------------------------------

    async def take(self, store: dul.IncomingStore, info: InstanceInfo, head: list[bytes]) -> None:
        """Take an instance whose first chunks are `head`; returns when its last byte is in the buffer.

        One that is here already is dropped: some archives send what they take for failed again.
        """
        if self.has(info):
            async for _ in store:
                pass
            self._taken += 1
            self._progressed()
            return
        instance = ArrivingInstance(info)
        self._arriving.add(instance)
        self._progressed()
        try:
            await self._wait_for_room()
            self._queue.append(instance)
            self._changed.set()
            for chunk in head:
                await instance.put(chunk)
            async for chunk in store:
                await instance.put(chunk)
                self._last_progress = asyncio.get_running_loop().time()
            instance.finish()
            self.arrived.add(info.key)
            self._taken += 1
        except dul.DulError as error:
            instance.fail(from_dul(error, self.archive.name))
            raise
        finally:
            instance.fail(IncompleteError("an instance was cut short", self.archive.name))
            self._arriving.discard(instance)
            self._progressed()

    async def _wait_for_room(self) -> None:
        while self._is_full and self._error is None:
            await self._next_change()
        if self._error is not None:
            raise self._error

    def has(self, info: InstanceInfo) -> bool:
        """True when that instance has arrived, or is arriving; False where its UIDs do not tell."""
        if not info.sop_instance_uid or info.series is None:
            return False
        return info.key in self.arrived or any(instance.info.key == info.key for instance in self._arriving)

    @property
    def _is_full(self) -> bool:
        if not self._queue:
            return False
        current = self._current.unread if self._current is not None else 0
        unread = current + sum(instance.unread for instance in self._queue)
        return unread >= PENDING_LIMIT or len(self._queue) >= PENDING_INSTANCES

    def _progressed(self) -> None:
        self._last_progress = asyncio.get_running_loop().time()
        self._changed.set()

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    @property
    def is_held_back(self) -> bool:
        """True while the archive has to wait for the reader."""
        waiting = (self._current, *self._queue)
        return self._is_full or any(instance is not None and instance.is_held_back for instance in waiting)

    # --- the reader's side -----------------------------------------------------------------------------------

    async def first(self) -> InstanceInfo:
        """Wait for the first instance to begin; raises why there will be none."""
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise NotFoundError("nothing found", self.archive.name)
            await self._next_change()
        return self._queue[0].info

    def __aiter__(self) -> Retrieval:
        return self

    async def __anext__(self) -> ArrivingInstance:
        self._current = None
        self._changed.set()  # for a C-STORE that waits for room
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            await self._next_change()
        self._current = self._queue.popleft()
        return self._current

    def end(self, error: ArchiveError | None = None) -> None:
        """Nothing more will come; with `error`, what has come is not everything."""
        self._ended = True
        self._error = error
        if error is not None:
            for instance in self._arriving:
                instance.fail(error)
        self._changed.set()

    # --- asking the archive ----------------------------------------------------------------------------------

    async def run(self, inbox: Inbox) -> None:
        """Carry it out and `end` it; never raises but CancelledError."""
        try:
            await self._with_progress(self._work(inbox))
            self.end()
        except NotFoundError as error:
            self.end(error)
        except ArchiveError as error:
            logger.warning("retrieval failed: %s", error)
            self.end(error)
        except asyncio.CancelledError:
            self.end(IncompleteError("the retrieval was cancelled", self.archive.name))
            raise
        except Exception:
            logger.exception("retrieval failed")
            self.end(ArchiveFailedError("the retrieval failed for a reason of the proxy's own", self.archive.name))

    async def _work(self, inbox: Inbox) -> None:
        try:
            await (self._get() if self.archive.peer.use_cget else self._move(inbox))
        except ArchiveFailedError as error:
            # Archives have various statuses for what they do not have.
            refused = isinstance(error.__cause__, dul.StatusError)
            if refused and not self.arrived and not self._arriving and not await self._count_missing():
                raise NotFoundError("nothing found", self.archive.name) from error
            raise

    async def _with_progress(self, work: Awaitable[None]) -> None:
        """Await `work` as long as something arrives at least every `retrieve` (or `idle`, if less) seconds.

        Time in which the archive is held back by a slow reader does not count.
        """
        seconds = min(self.archive.peer.timeouts.retrieve, self.archive.peer.timeouts.idle)
        try:
            async with asyncio.timeout(seconds) as bound:
                self._extend(bound, seconds)
                await work
        except TimeoutError:
            raise ArchiveTimeoutError(f"nothing arrived for {seconds:g} s", self.archive.name) from None
        finally:
            if self._extension is not None:
                self._extension.cancel()

    def _extend(self, bound: asyncio.Timeout, seconds: float) -> None:
        if bound.expired():
            return  # what is left is to end the operation in good order
        loop = asyncio.get_running_loop()
        if self.is_held_back:
            self._last_progress = loop.time()
        bound.reschedule(self._last_progress + seconds)
        self._extension = loop.call_later(seconds / 4, self._extend, bound, seconds)

    async def _move(self, inbox: Inbox) -> None:
        with contextlib.ExitStack() as expecting:
            async with self.archive.lease(MOVE_CONTEXTS) as lease:
                operation = lease.association.move(self.target.identifier, destination=self.archive.peer.local_aet)
                inbox.expect(operation.message_id, self)
                expecting.callback(inbox.forget, operation.message_id)
                counters = operation.progress
                async for progress in operation:
                    if progress != counters:  # some archives send the same for ever
                        self._progressed()
                    counters = progress
            await self._wait_for_stragglers(_sent(counters) or 0)
            if _sent(counters) is None and (missing := await self._count_missing()):
                await self._wait_for_stragglers(self._taken + missing)
        await self._check_complete(counters)

    async def _wait_for_stragglers(self, expected: int) -> None:
        """Some archives send the final response before the last C-STORE, or over other associations."""
        while self._arriving or self._taken < expected:
            try:
                async with asyncio.timeout(None if self._arriving else ARRIVAL_GRACE_SECONDS):
                    await self._next_change()
            except TimeoutError:
                return

    async def _get(self) -> None:
        contexts = await contexts_for_get(self.archive, self.target.study)
        async with self.archive.lease(contexts) as lease:
            operation = lease.association.get(self.target.identifier)
            others = False
            async for store in operation:
                info, head = await peek(store)
                if self.target.covers(info):
                    await self.take(store, info, head)
                else:  # some archives look only at the lowest UID
                    others = True
                    async for _ in store:
                        pass
        counters = operation.progress
        await self._check_complete(replace(counters, completed=None) if others else counters)

    # --- completeness ----------------------------------------------------------------------------------------

    async def _check_complete(self, progress: dul.Progress) -> None:
        """Raise unless everything has arrived.

        Counters are believed where they agree with what has arrived, or claim more; else a C-FIND tells.
        """
        if progress.status == dimse.CANCEL:
            raise IncompleteError("the archive cancelled the retrieval", self.archive.name)
        if progress.failed:
            message = f"{progress.failed} of the instances could not be sent by the archive"
            status = f"status {dul.describe_status(progress.status)}"
            raise IncompleteError(f"{message}, {status}", self.archive.name)
        missing = (_sent(progress) or 0) - self._taken
        proven = self.arrived and missing == 0 and progress.status == dimse.SUCCESS
        if missing <= 0 and not proven:
            missing = await self._count_missing()
        if missing > 0 and not self.arrived:
            raise ArchiveBusyError("the archive has it but sent nothing", self.archive.name)
        if missing > 0:
            raise IncompleteError(f"{missing} instances did not arrive", self.archive.name)
        if not self.arrived:
            raise NotFoundError("nothing found", self.archive.name)

    async def _count_missing(self) -> int:
        wanted = query.Search(Level.IMAGE, self.target.uids)
        missing = 0
        sop_instances = {sop_instance for series, sop_instance in self.arrived if not series}
        async with contextlib.aclosing(query.search([self.archive], wanted).answers) as answers:
            async for found in answers:
                series, sop_instance = found.found_uids[Level.SERIES], found.found_uids[Level.IMAGE]
                missing += (series, sop_instance) not in self.arrived and sop_instance not in sop_instances
        return missing


def _sent(progress: dul.Progress) -> int | None:
    """How many instances were sent by the archive's own count; None where it does not count."""
    return None if progress.completed is None else progress.completed + (progress.warning or 0)


async def peek(store: dul.IncomingStore) -> tuple[InstanceInfo, list[bytes]]:
    """Read as much of a data set as tells its study and series; returns that with the chunks read."""
    scanner = UidPeek(store.transfer_syntax)
    head: list[bytes] = []
    async for chunk in store:
        head.append(chunk)
        if scanner.feed(chunk):
            break
    info = InstanceInfo(
        sop_class_uid=store.sop_class_uid,
        sop_instance_uid=store.sop_instance_uid or scanner.sop_instance or "",
        transfer_syntax=store.transfer_syntax,
        study=scanner.study,
        series=scanner.series,
    )
    return info, head


@contextlib.asynccontextmanager
async def retrieve(archive: Archive, target: Target, inbox: Inbox) -> AsyncIterator[Retrieval]:
    """Retrieve `target` from `archive` for as long as the `async with` lasts.

    Leaving it early cancels the C-MOVE or C-GET; the association is free again when this returns.
    """
    retrieval = Retrieval(archive, target)
    task = asyncio.get_running_loop().create_task(retrieval.run(inbox))
    try:
        yield retrieval
    finally:
        if not task.done():
            # At once, and not after the C-CANCEL: an archive that is held back in a C-STORE would not read that.
            retrieval.end(IncompleteError("the retrieval was cancelled", archive.name))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
