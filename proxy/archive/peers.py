"""One `Archive` for each configured peer: its associations, their number, and how it fares.

The pool's mutable state is `_busy`, `_idle` and `_queue`, all of the event loop's thread: at no time are more than
`max_associations` open, idle ones included. Associations for queries are kept for a while and used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import dul
from dul import uids
from dul.channel import Channel
from proxy.archive.errors import ArchiveBusyError, ArchiveError, from_dul
from proxy.archive.optional import OptionalKeys
from proxy.config_schema import Peer

logger = logging.getLogger(__name__)

IDLE_RELEASE_SECONDS: Final = 10.0
"""How long an unused association stays open: archives count them, and drop the idle ones themselves later."""

QUEUE_LIMIT: Final = 1000
"""Requests that may wait for an association; beyond, a client is told to come back."""

QUEUE_SECONDS: Final = 30.0
"""How long a request waits for an association."""

HEALTH_SECONDS: Final = 15.0
"""How long what is known of an archive's health holds before it is asked again."""

NO_LIMIT_SECONDS: Final = 7 * 86400.0
"""For a wait that is bounded elsewhere."""

QUERY_CONTEXTS: Final = (dul.Context(uids.STUDY_ROOT_FIND),)
MOVE_CONTEXTS: Final = (dul.Context(uids.STUDY_ROOT_MOVE),)
ECHO_CONTEXTS: Final = (dul.Context(uids.VERIFICATION),)

Contexts = Sequence[dul.Context]


@dataclass(slots=True)
class Health:
    """What is known of an archive from its last use; times are seconds since the epoch."""

    last_success: float | None = None
    last_failure: float | None = None
    last_error: str | None = None

    @property
    def is_up(self) -> bool | None:
        """None until it was used."""
        if self.last_success is None and self.last_failure is None:
            return None
        return (self.last_success or 0) >= (self.last_failure or 0)


@dataclass(slots=True, eq=False)
class _Idle:
    association: dul.Association
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class Lease:
    """An association for the time of one `async with`. `reused` tells that it was open before."""

    association: dul.Association
    reused: bool


@dataclass(slots=True, eq=False)
class Archive:
    """A peer, with its pool of associations."""

    peer: Peer
    health: Health = field(default_factory=Health)
    optional_keys: OptionalKeys = field(default_factory=OptionalKeys)
    _busy: int = 0
    _idle: deque[_Idle] = field(default_factory=deque)
    _queue: deque[asyncio.Future[None]] = field(default_factory=deque)
    _releases: set[asyncio.Task[None]] = field(default_factory=set)
    _channels: weakref.WeakSet[Channel] = field(default_factory=weakref.WeakSet)  # an open socket keeps its own alive
    _checking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def name(self) -> str:
        """The configured name."""
        return self.peer.name

    @property
    def open_associations(self) -> int:
        """Associations that are open, being opened or being released, idle ones included."""
        return self._busy + len(self._idle) + len(self._releases)

    def _timeouts(self, contexts: Contexts) -> dul.Timeouts:
        t = self.peer.timeouts
        # What a C-MOVE brings comes by other associations: that its own is silent says nothing.
        idle = NO_LIMIT_SECONDS if contexts is MOVE_CONTEXTS else t.idle
        return dul.Timeouts(connect=t.connect, associate=t.associate, response=t.response, idle=idle, release=t.release)

    # --- the pool --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lease(self, contexts: Contexts, *, fresh: bool = False) -> AsyncIterator[Lease]:
        """An association for `contexts`; `fresh` asks for a new one.

        Errors of the DICOM side come out as `ArchiveError`s, those that are raised within the `async with` too.
        """
        reusable = contexts is QUERY_CONTEXTS
        await self._take_slot()
        try:
            lease = await self._idle_or_new(contexts, use_idle=reusable and not fresh)
            try:
                yield lease
            except BaseException:
                await self._give_back(lease.association, reusable=reusable)
                raise
            await self._give_back(lease.association, reusable=reusable)
            self._succeeded()
        except dul.DulError as error:
            failure = from_dul(error, self.name)
            self._failed(failure, answered=isinstance(error, dul.StatusError))
            raise failure from error
        finally:
            self._free_slot()

    async def _idle_or_new(self, contexts: Contexts, *, use_idle: bool) -> Lease:
        while use_idle and self._idle:
            idle = self._take_idle(self._idle[-1])
            if idle.association.is_open:
                return Lease(idle.association, reused=True)
        await self._make_room()
        peer = dul.Peer(self.peer.ip, self.peer.port, self.peer.aet, self.peer.local_aet)
        association = await dul.open_association(peer, contexts, timeouts=self._timeouts(contexts))
        self._channels.add(association.channel)
        return Lease(association, reused=False)

    async def _make_room(self) -> None:
        """Keep to `max_associations`: end idle ones, and wait until they are gone."""
        while self.open_associations > self.peer.max_associations:
            if self._idle:
                self._release_idle(self._idle[0])
            elif self._releases:
                await asyncio.wait(self._releases, return_when=asyncio.FIRST_COMPLETED)
            else:
                return

    async def _give_back(self, association: dul.Association, *, reusable: bool) -> None:
        if not reusable:
            await association.release()
            return
        try:
            await association.settle()
        except BaseException:
            association.abort()
            raise
        if association.is_open:
            idle = _Idle(association)
            idle.timer = asyncio.get_running_loop().call_later(IDLE_RELEASE_SECONDS, self._release_idle, idle)
            self._idle.append(idle)

    def _take_idle(self, idle: _Idle) -> _Idle:
        self._idle.remove(idle)
        if idle.timer is not None:
            idle.timer.cancel()
        return idle

    def _release_idle(self, idle: _Idle) -> None:
        self._take_idle(idle)
        task = asyncio.get_running_loop().create_task(idle.association.release())
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _take_slot(self) -> None:
        if self._busy < self.peer.max_associations and not self._queue:
            self._busy += 1
            return
        if len(self._queue) >= QUEUE_LIMIT:
            raise ArchiveBusyError("too many requests wait for an association", self.name)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(QUEUE_SECONDS):
                await turn
        except BaseException as error:
            self._leave_queue(turn)
            if isinstance(error, TimeoutError):
                raise ArchiveBusyError("every association is in use", self.name) from None
            raise

    def _leave_queue(self, turn: asyncio.Future[None]) -> None:
        if turn in self._queue:
            self._queue.remove(turn)
        elif turn.done() and not turn.cancelled():
            self._free_slot()  # the slot was handed over in the same moment

    def _free_slot(self) -> None:
        """Hand the slot to the first in the queue, or give it back."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._busy -= 1

    async def close(self, seconds: float) -> None:
        """Release what is idle, and abort what is still open after `seconds`."""
        while self._idle:
            self._release_idle(self._idle[0])
        if self._releases:
            await asyncio.wait(self._releases, timeout=seconds)
        self.abort()
        await asyncio.gather(*self._releases, *(channel.transport.wait_closed() for channel in self._channels))

    def abort(self) -> None:
        """Abort every association, whoever uses it."""
        for channel in list(self._channels):
            channel.abort()

    # --- how it fares ----------------------------------------------------------------------------------------

    def _succeeded(self) -> None:
        if self.health.is_up is False:
            logger.info("%s answers again", self.name)
        self.health.last_success = time.time()

    def _failed(self, error: ArchiveError, *, answered: bool) -> None:
        logger.warning("%s", error)
        self.health.last_error = str(error)
        if answered:
            self._succeeded()  # it answers, if not as it was hoped
        else:
            self.health.last_failure = time.time()

    # --- services --------------------------------------------------------------------------------------------

    async def echo(self) -> float:
        """C-ECHO on a new association; returns the seconds it took."""
        started = time.perf_counter()
        async with self.lease(ECHO_CONTEXTS) as lease:
            await lease.association.echo()
            return time.perf_counter() - started

    async def check(self) -> None:
        """Bring `health` up to date, unless it was within the last `HEALTH_SECONDS`; never raises for a failure."""
        async with self._checking:
            last = max(self.health.last_success or 0.0, self.health.last_failure or 0.0)
            # With every association in use, a C-ECHO would wait for one, and whoever asks for the health with it.
            in_use = self._busy >= self.peer.max_associations and self.health.is_up is not None
            if time.time() - last >= HEALTH_SECONDS and not in_use:
                with contextlib.suppress(ArchiveError):
                    await self.echo()

    async def find(self, identifier: Callable[[str], bytes]) -> AsyncGenerator[dul.Match, None]:
        """C-FIND, Study Root; once more on a new association when a kept one turns out to be dead."""
        for fresh in (False, True):
            answered = reused = False
            try:
                async with self.lease(QUERY_CONTEXTS, fresh=fresh) as lease:
                    reused = lease.reused
                    async for match in lease.association.find(identifier):
                        answered = True
                        yield match
                return
            except ArchiveError as error:
                dead = isinstance(error.__cause__, dul.AssociationError)
                if answered or not reused or not dead or isinstance(error.__cause__, dul.PeerTimeout):
                    raise
