"""One `Archive` for each configured peer: its associations, their number, and how it fares.

Its mutable state is all of the event loop's thread: at no time are more than `max_associations` open, idle ones
included. Associations for queries are kept for a while and used again. While an archive does not answer, requests to
it fail at once, and a task of its own finds out when it answers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

import dul
from dul import uids
from dul.channel import Channel
from proxy.archive.errors import ArchiveBusyError, ArchiveError, ArchiveFailedError, from_dul
from proxy.archive.peers.breaker import Breaker, BreakerState
from proxy.archive.peers.habits import Habits
from proxy.archive.peers.tls import client_context
from proxy.archive.peers.turns import TooManyWaitError, Turns
from proxy.config.schema import Peer

logger = logging.getLogger(__name__)

IDLE_RELEASE_SECONDS: Final = 10.0
"""How long an unused association stays open: archives count them, and drop the idle ones themselves later."""

QUEUE_SECONDS: Final = 30.0
"""How long a search waits for an association; a retrieval waits as long as for its first instance."""

SETTLE_SECONDS: Final = 0.1
"""How long one who leaves a search waits until the archive has ended it: most do so within a few milliseconds, and
the association can be used again at once. With others that goes on behind his back."""

HEALTH_SECONDS: Final = 15.0
"""How long what is known of an archive's health holds before it is asked again."""

NO_LIMIT_SECONDS: Final = 7 * 86400.0
"""For a wait that is bounded elsewhere."""

ECHO_CONTEXTS: Final = (dul.Context(uids.VERIFICATION),)

Contexts = Sequence[dul.Context]

_MODELS: Final = {
    "STUDY": (uids.STUDY_ROOT_FIND, uids.STUDY_ROOT_MOVE, uids.STUDY_ROOT_GET),
    "PATIENT": (uids.PATIENT_ROOT_FIND, uids.PATIENT_ROOT_MOVE, uids.PATIENT_ROOT_GET),
}


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


class Archive:
    """A peer, with its pool of associations."""

    def __init__(self, peer: Peer) -> None:
        """Raises `TlsSettingsError` when a file of `peer.tls` cannot be used."""
        self.peer = peer
        self.health = Health()
        self.breaker = Breaker(time.monotonic)
        """Whether it is asked at all, for others to look at."""
        self.habits = Habits()
        self.find_model, self.move_model, self.get_model = _MODELS[peer.query_model]
        """The Query/Retrieve Information Model by which it is asked (PS3.4 C.6), for each service."""
        self.query_contexts: Contexts = (dul.Context(self.find_model),)
        self.move_contexts: Contexts = (dul.Context(self.move_model),)
        self._ssl = None if peer.tls is None else client_context(peer.tls, peer.name)
        self._turns = Turns(peer.max_associations, sequential=peer.sequential)
        self._idle: deque[_Idle] = deque()
        self._releases: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()  # all of its own: releases, searches that end, trials
        self._trials: asyncio.Task[None] | None = None
        self._unreachable: type[ArchiveError] = ArchiveFailedError
        self._channels = weakref.WeakSet[Channel]()  # an open socket keeps its own alive
        self._checking = asyncio.Lock()
        self._closed = False

    @property
    def name(self) -> str:
        """The configured name."""
        return self.peer.name

    def use_tls(self, context: ssl.SSLContext) -> None:
        """Speak TLS by another context on every association that is opened from now on."""
        self._ssl = context

    @property
    def open_associations(self) -> int:
        """Associations that are open, being opened or being released, idle ones included."""
        return self._turns.taken + len(self._idle) + len(self._releases)

    # --- the pool --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lease(self, contexts: Contexts, *, long: bool = False, fresh: bool = False) -> AsyncIterator[Lease]:
        """An association for `contexts`; `fresh` asks for a new one.

        `long` is to be said for a C-MOVE or C-GET. It may be silent for any time, so whoever asks for it has to bound
        it, and it waits for its turn behind its own kind only; see `turns`.

        Errors of the DICOM side come out as `ArchiveError`s, those that are raised within the `async with` too.
        """
        if self.breaker.state is not BreakerState.CLOSED:
            raise self._refusal()
        async with self._use(contexts, long=long, fresh=fresh) as lease:
            yield lease

    @contextlib.asynccontextmanager
    async def _use(self, contexts: Contexts, *, long: bool = False, fresh: bool = False) -> AsyncIterator[Lease]:
        reusable = contexts == self.query_contexts
        await self._take_turn(long)
        association: dul.Association | None = None
        try:
            lease = await self._idle_or_new(contexts, long, use_idle=reusable and not fresh)
            association = lease.association
            yield lease
            self._succeeded()
        except dul.DulError as error:
            raise self._failed(error, association) from error
        finally:  # after the failure is known, so that it may keep the next from trying
            await self._give_back(association, reusable, long)

    async def _take_turn(self, long: bool) -> None:
        seconds = self.peer.timeouts.retrieve if long else QUEUE_SECONDS
        try:
            await self._turns.take(long=long, seconds=seconds)
        except TooManyWaitError:
            raise ArchiveBusyError("too many requests wait for an association", self.name) from None
        except TimeoutError:
            raise ArchiveBusyError("every association is in use", self.name) from None

    async def _idle_or_new(self, contexts: Contexts, long: bool, *, use_idle: bool) -> Lease:
        while use_idle and self._idle:
            idle = self._take_idle(self._idle[-1])
            if idle.association.is_open:
                return Lease(idle.association, reused=True)
        await self._make_room()
        peer = dul.Peer(self.peer.ip, self.peer.port, self.peer.aet, self.peer.local_aet)
        association = await dul.open_association(peer, contexts, timeouts=self._timeouts(long), ssl=self._ssl)
        self._channels.add(association.channel)
        return Lease(association, reused=False)

    def _timeouts(self, long: bool) -> dul.Timeouts:
        t = self.peer.timeouts
        # What a C-MOVE brings comes by other associations: that its own is silent says nothing.
        idle = NO_LIMIT_SECONDS if long else t.idle
        return dul.Timeouts(connect=t.connect, associate=t.associate, response=t.response, idle=idle, release=t.release)

    async def _make_room(self) -> None:
        """Keep to `max_associations`: end idle ones, and wait until they are gone."""
        while self.open_associations > self.peer.max_associations:
            if self._idle:
                self._release_idle(self._idle[0])
            elif self._releases:
                await asyncio.wait(self._releases, return_when=asyncio.FIRST_COMPLETED)
            else:
                return

    async def _give_back(self, association: dul.Association | None, reusable: bool, long: bool) -> None:
        """Keep the association for the next one, or end it; its slot is free when that is done."""
        if association is None:
            self._turns.free(long=long)
        elif not reusable:
            try:
                await association.release()
            finally:
                self._turns.free(long=long)
        elif association.is_settled:
            self._keep(association)
            self._turns.free(long=long)
        else:
            await asyncio.wait([self._start(self._settle(association, long))], timeout=SETTLE_SECONDS)

    async def _settle(self, association: dul.Association, long: bool) -> None:
        """End a search that was left early, by C-CANCEL."""
        try:
            await association.settle()
        finally:
            self._keep(association)
            self._turns.free(long=long)

    def _keep(self, association: dul.Association) -> None:
        if self._closed:
            association.abort()
        elif association.is_open:
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
        task = self._start(idle.association.release())
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self, seconds: float) -> None:
        """Release what is idle, and abort what is still open after `seconds`."""
        self._closed = True
        if self._trials is not None:
            self._trials.cancel()
        while self._idle:
            self._release_idle(self._idle[0])
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        self.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(channel.transport.wait_closed() for channel in self._channels))

    def abort(self) -> None:
        """Abort every association, whoever uses it."""
        for channel in list(self._channels):
            channel.abort()

    # --- how it fares ----------------------------------------------------------------------------------------

    def _succeeded(self) -> None:
        self._reached()
        if self.health.is_up is False:
            logger.info("%s answers again", self.name)
        self.health.last_success = time.time()

    def _failed(self, error: dul.DulError, association: dul.Association | None) -> ArchiveError:
        failure = from_dul(error, self.name)
        is_news = self.breaker.state is BreakerState.CLOSED
        logger.log(logging.WARNING if is_news else logging.DEBUG, "%s", failure)
        self.health.last_error = str(failure)
        if isinstance(error, dul.StatusError):
            self._succeeded()  # it answers, if not as it was hoped
            return failure
        self.health.last_failure = time.time()
        reached = _was_reached(error, association)
        if reached:
            self._reached()
        elif reached is not None:
            self._not_reached(failure)
        return failure

    def _reached(self) -> None:
        self.breaker.reached()
        if self._trials is not None and self._trials is not asyncio.current_task():
            self._trials.cancel()
        self._trials = None

    def _not_reached(self, failure: ArchiveError) -> None:
        self._unreachable = type(failure)
        if self.breaker.failed() and not self._closed:
            logger.warning("%s does not answer: requests to it fail at once until it does", self.name)
            self._turns.refuse(self._refusal)
            self._trials = self._start(self._try_again())

    def _refusal(self) -> ArchiveError:
        """What requests get without asking the archive: a failure of the kind of the last."""
        seconds = self.breaker.retry_seconds
        when = f"it is tried again in {math.ceil(seconds)} s" if seconds else "it is being tried again"
        return self._unreachable(f"does not answer; {when}", self.name)

    async def _try_again(self) -> None:
        """C-ECHO at the end of each back-off, until the archive answers."""
        while (seconds := self.breaker.retry_seconds) is not None:
            await asyncio.sleep(seconds)
            self.breaker.begin_trial()
            try:
                await self.echo()
            except ArchiveError:
                pass
            except Exception:
                logger.exception("a trial of %s failed for a reason of the proxy's own", self.name)
            finally:
                self.breaker.end_trial()

    # --- services --------------------------------------------------------------------------------------------

    async def echo(self) -> float:
        """C-ECHO on a new association, also while requests fail at once; returns the seconds it took."""
        started = time.perf_counter()
        async with self._use(ECHO_CONTEXTS) as lease:
            await lease.association.echo()
            return time.perf_counter() - started

    async def check(self) -> None:
        """Bring `health` up to date, unless it was within the last `HEALTH_SECONDS`; never raises for a failure."""
        async with self._checking:
            last = max(self.health.last_success or 0.0, self.health.last_failure or 0.0)
            # With every association in use, a C-ECHO would wait for one, and whoever asks for the health with it.
            in_use = self._turns.taken >= self.peer.max_associations and self.health.is_up is not None
            # And an archive that does not answer is tried again anyway.
            is_tried = self.breaker.state is not BreakerState.CLOSED
            if time.time() - last >= HEALTH_SECONDS and not in_use and not is_tried:
                with contextlib.suppress(ArchiveError):
                    await self.echo()

    async def find(self, identifier: Callable[[str], bytes]) -> AsyncGenerator[dul.Match, None]:
        """C-FIND; once more on a new association when a kept one turns out to be dead."""
        for fresh in (False, True):
            answered = reused = False
            try:
                async with self.lease(self.query_contexts, fresh=fresh) as lease:
                    reused = lease.reused
                    async for match in lease.association.find(identifier, model=self.find_model):
                        answered = True
                        yield match
                return
            except ArchiveError as error:
                dead = isinstance(error.__cause__, dul.AssociationError)
                if answered or not reused or not dead or isinstance(error.__cause__, dul.PeerTimeout):
                    raise


def _was_reached(error: dul.DulError, association: dul.Association | None) -> bool | None:
    """Whether a failure shows that the archive is there, or that it is not; None where it may be either.

    `association` is that of the failure, None when it could not be had. Silence after a request is no sign: searches
    and retrievals may take their time.
    """
    if isinstance(error, dul.LocalProtocolError):
        return None
    if isinstance(error, dul.StatusError | dul.AssociationRejected | dul.NoPresentationContext):
        return True
    if association is None:
        return False
    lost = isinstance(error, dul.AssociationAborted | dul.ConnectionLost | dul.AssociationReleased)
    return False if lost and not association.answered else None
