"""How one archive is asked for what a retrieval is for, until it is proven that all of it has come.

By C-MOVE, with C-STOREs that come in through the inbox, or by C-GET. Neither the final status nor the counters are
believed alone: where they do not agree with what has arrived, a C-FIND at IMAGE level tells what there should be. What
is missing then is asked for once more, one instance after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from typing import Final, Protocol

import dul
from dul import dimse
from proxy.archive.errors import (
    ArchiveBusyError,
    ArchiveError,
    ArchiveFailedError,
    ArchiveTimeoutError,
    IncompleteError,
    NotFoundError,
)
from proxy.archive.peers.archive import Archive, Contexts, Lease
from proxy.archive.query import search as query
from proxy.archive.query.known import Known
from proxy.archive.retrieval.contexts import contexts_for_get
from proxy.archive.retrieval.retrieval import Retrieval
from proxy.archive.retrieval.target import Key, Target
from proxy.archive.spool.spool import InstanceInfo
from proxy.dataset.levels import Level
from proxy.dataset.peek import UidPeek
from proxy.dataset.values import first_value

logger = logging.getLogger(__name__)

ARRIVAL_GRACE_SECONDS: Final = 5.0
"""How long to wait, after the final response, for C-STOREs that are still to come, since the last one."""

BUSY_BACK_OFF: Final = (1.0, 2.0, 4.0)
"""Seconds to wait before an archive that reports Success and sends nothing is asked again."""

IN_VAIN: Final = 3
"""Instances asked for one by one, in a row, that did not come: no more are asked for."""

INSTANCE_AVAILABILITY: Final = 0x00080056

_MAY_HAVE_SENT: Final = frozenset({dimse.REFUSED_SUB_OPERATIONS, dimse.SUB_OPERATIONS_WITH_FAILURES})
"""Final statuses that say that single sub-operations failed, not that the request was refused (PS3.4 C.4.2.1.5)."""


class Inbox(Protocol):
    """Where C-STOREs come in; see `proxy.archive.retrieval.inbox`."""

    def expect(self, message_id: int, retrieval: Retrieval, archive: Archive) -> None:
        """C-STOREs of that C-MOVE belong to `retrieval`."""

    def forget(self, message_id: int) -> None:
        """That C-MOVE is over."""


class Fetch:
    """Fetches a retrieval's target from one archive."""

    def __init__(self, retrieval: Retrieval, archive: Archive, inbox: Inbox, known: Known) -> None:
        self._retrieval = retrieval
        self._archive = archive
        self._inbox = inbox
        self._known = known
        self._target = retrieval.target
        self._contexts: list[dul.Context] | None = None
        self._patient_id: str | None = None
        self._progress = dul.Progress(dimse.PENDING)
        self._listed: set[Key] | None = None
        """What the archive lists, where that was asked after the last request."""
        self._is_queued = False
        self._reason = ""
        """Why something is missing, in words for a client."""

    async def whole(self) -> None:
        """Fetch the target. Raises `NotFoundError`, or what kept any of it from coming."""
        await self._with_progress(self._whole())

    async def rest(self) -> None:
        """Fetch what this archive has of the target beyond what has arrived already."""
        await self._with_progress(self._rest())

    async def _whole(self) -> None:
        missing = await self._in_one_go()
        if missing:
            await self._one_by_one(missing)

    async def _rest(self) -> None:
        missing = self._not_arrived(await self.expected())
        known = {series for series, _ in self._retrieval.arrived}
        for series in sorted({series for series, _ in missing} - known):
            with contextlib.suppress(ArchiveFailedError):  # what does not come is asked for one by one, and reported
                await self._ask(Target(self._target.study, series))
        if missing := self._not_arrived(missing):
            await self._one_by_one(missing)

    # --- patience --------------------------------------------------------------------------------------------

    async def _with_progress(self, work: Awaitable[None]) -> None:
        """Await `work` as long as something arrives at least every `retrieve` (or `idle`, if less) seconds.

        Time in which it waits for its turn, or the archive is held back by slow readers, does not count. An archive
        that has to bring what is asked for from its long-term store first (InstanceAvailability NEARLINE or OFFLINE)
        gets `nearline` seconds.
        """
        timeouts = self._archive.peer.timeouts
        seconds = min(timeouts.retrieve, timeouts.idle)
        task = asyncio.ensure_future(work)
        asked = False
        self._retrieval.progressed()  # what another archive did before is not this one's fault
        try:
            while not task.done():
                await asyncio.wait([task], timeout=self._time_left(seconds))
                if task.done() or self._time_left(seconds) > 0:
                    continue
                if not asked and not self._retrieval.arrived and await self._is_nearline():
                    seconds = max(seconds, timeouts.nearline)
                    logger.info("%s has it in its long-term store; waiting up to %g s", self._archive.name, seconds)
                elif not task.done():
                    raise ArchiveTimeoutError(f"nothing arrived for {seconds:g} s", self._archive.name)
                asked = True
            await task
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # or asyncio complains that nobody has looked at it

    def _time_left(self, seconds: float) -> float:
        now = asyncio.get_running_loop().time()
        if self._is_queued or self._retrieval.spool.is_held_back:
            self._retrieval.last_progress = now
        return self._retrieval.last_progress + seconds - now

    async def _is_nearline(self) -> bool:
        wanted = query.Search(Level.STUDY, {Level.STUDY: self._target.study}, returned=[(INSTANCE_AVAILABILITY,)])
        try:
            async with contextlib.aclosing(query.search([self._archive], wanted, self._known).answers) as answers:
                async for found in answers:
                    return first_value(found.elements[Level.STUDY], INSTANCE_AVAILABILITY) in ("NEARLINE", "OFFLINE")
        except ArchiveError:
            pass
        return False

    # --- all in one go ---------------------------------------------------------------------------------------

    async def _in_one_go(self) -> set[Key]:
        """Ask for the target as a whole; returns what is missing then.

        Some archives report Success without having sent anything when they are busy: these are asked again.
        """
        for pause in (*BUSY_BACK_OFF, None):
            failure = await self._try(self._target)
            if failure is None and self._is_proven:
                return set()
            missing = await self._find_missing(failure)
            if not missing and not self._retrieval.arrived:
                raise NotFoundError("nothing found", self._archive.name)
            sent_nothing = not self._retrieval.arrived and not self._progress.failed
            if not missing or failure is not None or not sent_nothing or self._progress.status != dimse.SUCCESS:
                return missing
            if pause is not None:
                await asyncio.sleep(pause)
        raise ArchiveBusyError("the archive has it but sent nothing", self._archive.name)

    async def _try(self, target: Target) -> ArchiveError | None:
        """Ask for `target`; returns a failure after which it makes sense to go on, and raises others."""
        before = len(self._retrieval.arrived)
        self._listed = None
        self._progress = dul.Progress(dimse.PENDING)
        try:
            await self._ask(target)
        except ArchiveFailedError as error:
            self._reason = str(error).removeprefix(f"{self._archive.name}: ")
            refused = isinstance(error.__cause__, dul.StatusError)
            lost = isinstance(error.__cause__, dul.AssociationError)
            if not refused and not (lost and len(self._retrieval.arrived) > before):
                raise
            return error
        if self._progress.failed or self._progress.status != dimse.SUCCESS:
            self._reason = f"status {dul.describe_status(self._progress.status)}"
        return None

    @property
    def _is_proven(self) -> bool:
        """True when the archive counted as many as came, and says that this was all."""
        sent = _sent(self._progress)
        success = self._progress.status == dimse.SUCCESS and not self._progress.failed
        return success and sent == self._retrieval.taken and bool(self._retrieval.arrived)

    async def _find_missing(self, failure: ArchiveError | None) -> set[Key]:
        """What a C-FIND lists and has not come. Raises `failure` where that explains it better."""
        try:
            listed = await self.expected() if self._listed is None else self._listed
        except ArchiveError:
            if failure is not None:
                raise failure from failure.__cause__
            raise
        missing = self._not_arrived(listed)
        refused = self._progress.status not in _MAY_HAVE_SENT
        if missing and failure is not None and refused and not self._retrieval.arrived:
            raise failure from failure.__cause__
        return missing

    async def expected(self) -> set[Key]:
        """The series and SOP Instance UIDs that the archive lists for the target."""
        keys, results = await list_keys([self._archive], self._target, self._known)
        if results.remarks.short:
            raise ArchiveFailedError(
                "its list of the instances is cut, so that nothing proves that all came", self._archive.name
            )
        self._retrieval.progressed()
        return keys

    def _not_arrived(self, keys: Iterable[Key]) -> set[Key]:
        return {key for key in keys if not self._retrieval.has_key(key)}

    # --- one by one ------------------------------------------------------------------------------------------

    async def _one_by_one(self, missing: set[Key]) -> None:
        """Ask for single instances; raises what is missing in the end."""
        in_vain = 0
        for series, sop_instance in sorted(missing):
            if in_vain == IN_VAIN:
                break
            failure = await self._try(Target(self._target.study, series, sop_instance))
            in_vain = 0 if self._retrieval.has_key((series, sop_instance)) else in_vain + 1
            if failure is not None and not isinstance(failure.__cause__, dul.StatusError):
                break
        if missing := self._not_arrived(missing):
            reason = f", {self._reason}" if self._reason else ""
            message = f"{len(missing)} of the instances could not be sent by the archive{reason}"
            if not self._retrieval.arrived:
                raise ArchiveFailedError(message, self._archive.name)
            raise IncompleteError(message, self._archive.name, frozenset(missing))

    # --- C-MOVE and C-GET ------------------------------------------------------------------------------------

    async def _ask(self, target: Target) -> None:
        """Ask for `target`; the final response is in `_progress`, also when it is raised as a failure."""
        if self._archive.peer.query_model == "PATIENT" and self._patient_id is None:
            self._patient_id = await query.patient_id(self._archive, target.study, self._known)
        await (self._get(target) if self._archive.peer.use_cget else self._move(target))

    @contextlib.asynccontextmanager
    async def _lease(self, contexts: Contexts) -> AsyncIterator[Lease]:
        self._is_queued = True
        try:
            async with self._archive.lease(contexts, long=True) as lease:
                self._is_queued = False
                self._retrieval.progressed()
                yield lease
        finally:
            self._is_queued = False

    async def _move(self, target: Target) -> None:
        taken = self._retrieval.taken
        with contextlib.ExitStack() as expecting:
            try:
                await self._c_move(target, expecting)
            except ArchiveFailedError as error:
                if isinstance(error.__cause__, dul.StatusError):
                    await self._wait_for_stragglers(taken + (_sent(self._progress) or 0))
                raise
            sent = _sent(self._progress)
            await self._wait_for_stragglers(taken + (sent or 0))
            if sent is None and target == self._target:
                self._listed = await self.expected()
                missing = self._not_arrived(self._listed)
                await self._wait_for_stragglers(self._retrieval.taken + len(missing))

    async def _c_move(self, target: Target, expecting: contextlib.ExitStack) -> None:
        archive = self._archive
        async with self._lease(archive.move_contexts) as lease:
            operation = lease.association.move(
                lambda syntax: target.identifier(syntax, self._patient_id),
                destination=archive.peer.local_aet,
                model=archive.move_model,
            )
            self._inbox.expect(operation.message_id, self._retrieval, archive)
            expecting.callback(self._inbox.forget, operation.message_id)
            try:
                async for progress in operation:
                    if progress != self._progress:  # some archives send the same for ever
                        self._retrieval.progressed()
                    self._progress = progress
            finally:
                self._progress = operation.progress

    async def _wait_for_stragglers(self, expected: int) -> None:
        """Some archives send the final response before the last C-STORE, or over other associations."""
        retrieval = self._retrieval
        while retrieval.is_receiving or retrieval.taken < expected:
            try:
                async with asyncio.timeout(None if retrieval.is_receiving else ARRIVAL_GRACE_SECONDS):
                    await retrieval.spool.arrivals.wait()
            except TimeoutError:
                return

    async def _get(self, target: Target) -> None:
        archive = self._archive
        if self._contexts is None:
            self._contexts = await contexts_for_get(archive, target.study, self._known)
        async with self._lease(self._contexts) as lease:
            operation = lease.association.get(
                lambda syntax: target.identifier(syntax, self._patient_id), model=archive.get_model
            )
            try:
                async for store in operation:
                    info, head = await peek(store)
                    if target.covers(info):
                        await self._retrieval.take(store, info, head, archive)
                    else:  # some archives look only at the lowest UID
                        await store.finish()
            finally:
                self._progress = operation.progress


async def list_keys(archives: Sequence[Archive], target: Target, known: Known) -> tuple[set[Key], query.Results]:
    """The keys of all instances of a target that the archives list, and what there is to say of their answers.

    Raises `ArchiveError` when none of them answers, or one fails midway.
    """
    results = query.search(archives, query.Search(Level.IMAGE, target.uids), known)
    keys: set[Key] = set()
    async with contextlib.aclosing(results.answers) as answers:
        async for found in answers:
            keys.add((found.found_uids[Level.SERIES], found.found_uids[Level.IMAGE]))
    return keys, results


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
        patient=scanner.patient or "",
    )
    return info, head
