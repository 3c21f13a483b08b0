"""Uploads: instances that go to the archive of `storeTo` by C-STORE, while they arrive.

While the archive works on one instance, the next goes out already on another association.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

import dul
from dul import dimse
from proxy.archive.cache.depot import Depot
from proxy.archive.errors import ArchiveBusyError
from proxy.archive.peers.archive import Archive
from proxy.archive.query.known import Known
from proxy.archive.spool.spool import InstanceInfo
from proxy.archive.storing.job import Job
from proxy.archive.storing.lanes import Lanes

logger = logging.getLogger(__name__)

UNANSWERED_LIMIT: Final = 2
"""Instances of one upload that the archive has whole and has not answered: more would take it all for one client."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an instance: a status of PS3.4 Table B.2-1 or PS3.18 Annex I."""

    info: InstanceInfo
    status: int

    @property
    def stored(self) -> bool:
        """True when the archive has taken it."""
        return dul.status_class(self.status) in (dul.StatusClass.SUCCESS, dul.StatusClass.WARNING)

    @property
    def warned(self) -> bool:
        """True when the archive has taken it with a warning."""
        return dul.status_class(self.status) is dul.StatusClass.WARNING


class Upload:
    """The instances of one request."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._jobs: list[Job] = []

    async def store(self, info: InstanceInfo, head: Sequence[bytes], rest: AsyncIterator[bytes]) -> None:
        """Send an instance; returns when nothing more is wanted of `rest`. What came of it is in `outcomes`.

        Raises what `rest` raises, and an `ArchiveError` when no instance could be sent so far: then there is no sense
        in going on.
        """
        while len(waiting := [job for job in self._jobs if not job.done.is_set()]) >= UNANSWERED_LIMIT:
            await waiting[0].done.wait()
        job = Job(info, head, rest)
        self._jobs.append(job)
        self._lanes.put(job)
        try:
            await job.sent.wait()
        except BaseException:
            self._lanes.drop(job)
            await job.sent.wait()  # soon: until then, somebody else reads from `rest`
            raise
        if job.source_error is not None:
            raise job.source_error
        if job.error is not None:
            await self._check_reached()

    @property
    def settled(self) -> list[Outcome]:
        """What came of each instance of which that is known by now."""
        return [Outcome(job.info, _status(job)) for job in self._jobs if job.done.is_set()]

    async def outcomes(self) -> list[Outcome]:
        """Wait for the archive's last answers; what came of each instance. `ArchiveError` when none could be sent."""
        await self._check_reached()
        outcomes = self.settled
        failures = Counter(outcome.status for outcome in outcomes if not outcome.stored)
        name = self._lanes.archive.name
        for status, count in failures.items():
            words = dul.describe_status(status)
            logger.warning("%s did not store %d of %d instances: %s", name, count, len(outcomes), words)
        return outcomes

    async def _check_reached(self) -> None:
        for job in self._jobs:
            await job.done.wait()
        errors = [job.error for job in self._jobs if job.error is not None]
        if errors and len(errors) == len(self._jobs):
            raise errors[0]

    async def end(self) -> tuple[set[str], set[str]]:
        """Wait until no instance is under way; returns the studies that have changed, and those that may have."""
        for job in self._jobs:
            await job.done.wait()
        stored = {job.info.study for job in self._jobs if job.info.study and _is_stored(job)}
        unclear = {job.info.study for job in self._jobs if job.info.study and job.status is None}
        return stored, unclear - stored


def _status(job: Job) -> int:
    if job.status is not None:
        return job.status
    busy = isinstance(job.error, ArchiveBusyError)
    return dimse.REFUSED_OUT_OF_RESOURCES if busy else dimse.PROCESSING_FAILURE


def _is_stored(job: Job) -> bool:
    return job.status is not None and Outcome(job.info, job.status).stored


class Storing:
    """The uploads of all clients. `close` ends them."""

    def __init__(self, archive: Archive, depot: Depot, known: Known) -> None:
        self._lanes = Lanes(archive)
        self._depot = depot
        self._known = known
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Upload]:
        """An upload, for as long as the `async with` lasts. At its end, nothing of its studies is in the cache."""
        upload = Upload(self._lanes)
        try:
            yield upload
        finally:
            await asyncio.shield(self._start(self._end(upload)))

    async def close(self) -> None:
        """Abort what is under way."""
        await self._lanes.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _end(self, upload: Upload) -> None:
        """What the cache has of the studies is not all of them any more. Goes on when the client has left."""
        stored, unclear = await upload.end()
        for study in stored:
            self._known.learn(study, self._lanes.archive.name)
        for study in stored | unclear:
            if self._depot.cache is not None:
                await self._depot.cache.purge(study)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
