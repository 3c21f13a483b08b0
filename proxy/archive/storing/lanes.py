"""The associations by which instances go to one archive: each a lane, on which one instance goes after the other.

A lane proposes what its first instance needs, and what others needed lately: so the second association of an upload of
several kinds mostly takes them all. A lane with nothing to do stays for a moment, since uploaders send one request for
each instance, but only where others have room beside it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from typing import Final

import dul
from dul import dimse, uids
from dul.negotiation import find_context
from proxy.archive.errors import ArchiveBusyError, ArchiveError, ArchiveFailedError
from proxy.archive.peers.archive import Archive
from proxy.archive.storing.job import Job, SourceError

logger = logging.getLogger(__name__)

TRANSFER_SYNTAX_NOT_SUPPORTED: Final = 0xC122
"""PS3.18 Table I.2-2: the archive takes the SOP class, but not as it is encoded."""

LINGER_SECONDS: Final = 1.0
"""How long a lane without an instance stays open. A retrieval may have to wait for it that long."""

CROWDED_LINGER_SECONDS: Final = 0.1
"""The same where every association of the archive is in use: as long as the next part of an upload may take."""

KEPT_FOR_OTHERS: Final = 2
"""Associations of an archive that uploads leave to searches and retrievals, where it allows so many."""

REMEMBERED_KINDS: Final = 40
"""Pairs of SOP class and transfer syntax to propose; with one more context for each class, they fit into 128."""

WAITING_LIMIT: Final = 100
"""Instances that may wait for a lane, each with its first bytes in memory (some 100 KiB)."""


class Lanes:
    """The lanes to one archive. Its state belongs to the event loop's thread."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.limit = 1 if archive.peer.sequential else max(1, archive.peer.max_associations - KEPT_FOR_OTHERS)
        self._lanes: set[_Lane] = set()
        self._waiting: deque[Job] = deque()
        self._timers: dict[Job, asyncio.TimerHandle] = {}
        self._kinds: OrderedDict[tuple[str, str], None] = OrderedDict()

    def put(self, job: Job) -> None:
        """Have an instance sent, when its turn comes; `job` tells how it fares."""
        self._remember(job.kind)
        if len(self._waiting) >= WAITING_LIMIT:
            job.fail(ArchiveBusyError("too many uploads wait for an association", self.archive.name))
            return
        loop = asyncio.get_running_loop()
        self._timers[job] = loop.call_later(self.archive.peer.timeouts.retrieve, self._expire, job)
        self._waiting.append(job)
        self.hand_out()

    def drop(self, job: Job) -> None:
        """Send an instance no more. Where it is under way its association is aborted, so that no part of it is kept."""
        if job in self._waiting:
            self._take(job)
            job.drop()
            return
        for lane in self._lanes:
            if lane.job is job:
                lane.task.cancel()

    def again(self, job: Job) -> None:
        """Put an instance back whose association turned out to be dead."""
        self._waiting.appendleft(job)

    def left(self, lane: _Lane) -> None:
        """A lane has ended."""
        self._lanes.discard(lane)
        self.hand_out()

    def hand_out(self) -> None:
        """Give instances that wait to lanes, to the first that fits each; begin and end lanes as needed."""
        for job in list(self._waiting):
            idle = [lane for lane in self._lanes if lane.is_idle]
            fitting = next((lane for lane in idle if lane.fits(job.kind)), None)
            if fitting is not None:
                self._take(job)
                fitting.give(job)
            elif len(self._lanes) < self.limit:
                self._take(job)
                self._lanes.add(_Lane(self, job, self._contexts()))
            else:
                if idle:
                    idle[0].end()  # and it goes on when there is room
                return

    async def close(self) -> None:
        """Abort what is under way, and take nothing more."""
        while self._waiting:
            job = self._waiting[0]
            self._take(job)
            job.fail(ArchiveFailedError("the proxy is stopping", self.archive.name))
        tasks = [lane.task for lane in self._lanes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, job: Job) -> None:
        self._waiting.remove(job)
        if (timer := self._timers.pop(job, None)) is not None:
            timer.cancel()

    def _expire(self, job: Job) -> None:
        self._take(job)
        job.fail(ArchiveBusyError("every association is in use", self.archive.name))

    def _remember(self, kind: tuple[str, str]) -> None:
        self._kinds[kind] = None
        self._kinds.move_to_end(kind)
        if len(self._kinds) > REMEMBERED_KINDS:
            self._kinds.popitem(last=False)

    def _contexts(self) -> list[dul.Context]:
        """A context for each kind, and one that tells whether the archive knows the class at all.

        That one is for Implicit VR Little Endian, which whoever takes a class has to take (PS3.5 10.1).
        """
        default = uids.IMPLICIT_VR_LITTLE_ENDIAN
        kinds = dict.fromkeys(reversed(self._kinds))
        kinds.update(dict.fromkeys((sop_class, default) for sop_class, _ in list(kinds)))
        return [dul.Context(sop_class, (syntax,)) for sop_class, syntax in kinds]


class _Lane:
    """One association, with the task that has it. It begins with an instance to send."""

    def __init__(self, lanes: Lanes, job: Job, contexts: list[dul.Context]) -> None:
        self.job: Job | None = job
        self._lanes = lanes
        self._contexts = contexts
        self._kinds = {(context.abstract_syntax, context.transfer_syntaxes[0]) for context in contexts}
        self._association: dul.Association | None = None
        self._wake = asyncio.Event()
        self._ending = False
        self._used = False
        self.task = asyncio.get_running_loop().create_task(self._run())

    @property
    def is_idle(self) -> bool:
        """True while it has no instance, and is not about to end."""
        return self.job is None and not self._ending

    def fits(self, kind: tuple[str, str]) -> bool:
        """Tell whether it is open, and the archive was asked about this kind; if it refused, asking again is no use."""
        return self._association is not None and self._association.is_open and kind in self._kinds

    def give(self, job: Job) -> None:
        """Send this next."""
        self.job = job
        self._wake.set()

    def end(self) -> None:
        """Make room for another lane."""
        self._ending = True
        self._wake.set()

    async def _run(self) -> None:
        archive = self._lanes.archive
        try:
            async with archive.lease(self._contexts, long=True) as lease:
                self._association = lease.association
                while self.job is not None:
                    await self._send(self.job, lease.association)
                    self.job = None
                    self._lanes.hand_out()
                    await self._wait_for_next()
        except ArchiveError as error:
            self._failed(error)
        except SourceError as error:
            assert self.job is not None
            assert error.__cause__ is not None
            self.job.fail_source(error.__cause__)
        except Exception:
            logger.exception("an upload failed for a reason of the proxy's own")
        finally:
            self._ending = True
            if self.job is not None and not self.job.done.is_set():
                self.job.drop()
            self._lanes.left(self)

    async def _send(self, job: Job, association: dul.Association) -> None:
        if find_context(association.contexts, *job.kind) is None:
            known = find_context(association.contexts, job.info.sop_class_uid) is not None
            job.answer(TRANSFER_SYNTAX_NOT_SUPPORTED if known else dimse.SOP_CLASS_NOT_SUPPORTED)
            return
        job.answer(await job.run(association, self._lanes.archive.peer.timeouts.idle))
        self._used = True

    def _failed(self, error: ArchiveError) -> None:
        """The association could not be had, or ended: the archive may have closed it while it was not used."""
        job = self.job
        if job is None:
            return
        dead = isinstance(error.__cause__, dul.AssociationError) and not isinstance(error.__cause__, dul.PeerTimeout)
        if self._used and dead and job.may_retry:
            self.job = None
            self._lanes.again(job)
        else:
            job.fail(error)

    async def _wait_for_next(self) -> None:
        """Wait a moment for another instance, and a shorter one where others may need the room."""
        archive = self._lanes.archive
        if self.job is None and not self._ending:
            self._wake.clear()
            crowded = archive.open_associations >= archive.peer.max_associations
            try:
                async with asyncio.timeout(CROWDED_LINGER_SECONDS if crowded else LINGER_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                self._ending = True
