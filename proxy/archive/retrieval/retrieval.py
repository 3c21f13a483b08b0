"""A `Retrieval`: what was asked for and what has arrived of it, for all who want it or a part of it.

It ends well only when everything that the archives have was taken whole. Otherwise a reader gets an `ArchiveError`:
from `first()` when it got nothing yet, later from the iteration; unless what is missing is nothing that it wants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import dul
from dul.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from proxy.archive.errors import ArchiveError, IncompleteError, NotFoundError, from_dul
from proxy.archive.peers.archive import Archive
from proxy.archive.retrieval.target import Key, Target
from proxy.archive.spool.reader import InstanceReader
from proxy.archive.spool.signal import Signal
from proxy.archive.spool.spool import InstanceInfo, Position, Spool, SpooledInstance
from proxy.dataset.part10 import Part10Error, file_header


class Retrieval:
    """What arrives for one target. All state is of the event loop's thread."""

    def __init__(self, target: Target, spool: Spool, *, keeping: bool = False) -> None:
        self.target = target
        self.spool = spool
        self.keeping = keeping
        """True when what comes is to be kept in the cache."""
        self.arrived: set[Key] = set()
        """What was received whole."""
        self.taken = 0
        """C-STOREs that were answered with Success, those of instances that were here already included."""
        self.readers: set[Reader] = set()
        self.has_served = False
        """True when somebody has got what he wanted of it."""
        self.ended = False
        self.error: ArchiveError | None = None
        self.left = Signal()
        """Set when a reader leaves."""
        self.last_progress = asyncio.get_running_loop().time()
        self._arriving: list[InstanceInfo] = []

    # --- what arrives ----------------------------------------------------------------------------------------

    async def take(self, store: dul.IncomingStore, info: InstanceInfo, head: list[bytes], archive: Archive) -> None:
        """Take an instance whose first chunks are `head`; returns when its last byte is in the spool.

        One that is here already is dropped: some archives send what they take for failed again. Raises `ArchiveError`
        when it cannot be taken, and the `DulError` that ended its association.
        """
        if self.has(info):
            await store.finish()
            self.taken += 1
            self.progressed()
            return
        header = _file_header(info, archive)
        self._arriving.append(info)
        self.progressed()
        try:
            instance = await self.spool.begin(info, header)
            await self._fill(instance, store, head, archive)
        finally:
            self._arriving.remove(info)
            self.progressed()

    async def _fill(
        self, instance: SpooledInstance, store: dul.IncomingStore, head: list[bytes], archive: Archive
    ) -> None:
        try:
            for chunk in head:
                await instance.put(chunk)
            async for chunk in store:
                await instance.put(chunk)
                self.last_progress = asyncio.get_running_loop().time()
            instance.finish()
            self.arrived.add(instance.info.key)
            self.taken += 1
        except dul.DulError as error:
            instance.fail(from_dul(error, archive.name))
            raise
        finally:
            instance.fail(IncompleteError("an instance was cut short", archive.name))

    @property
    def is_wanted(self) -> bool:
        """True while there is somebody, or some reason, to go on for.

        When one got an instance of a series that is kept, others will want the rest; and when it was all that was
        asked for, the archive is about to say so.
        """
        served = self.has_served and (self.target.instance is not None or (self.keeping and self.spool.is_joinable))
        return bool(self.readers) or served

    @property
    def is_receiving(self) -> bool:
        """True while an instance has begun to come in and is not whole."""
        return bool(self._arriving)

    def has(self, info: InstanceInfo) -> bool:
        """True when that instance has arrived, or is arriving; False where its UIDs do not tell."""
        if not info.sop_instance_uid or info.series is None:
            return False
        return info.key in self.arrived or any(each.key == info.key for each in self._arriving)

    def has_key(self, key: Key) -> bool:
        """True when an instance with this key has arrived; one whose series was not told counts for any series."""
        return key in self.arrived or ("", key[1]) in self.arrived

    def progressed(self) -> None:
        """Something came."""
        self.last_progress = asyncio.get_running_loop().time()
        self.spool.arrivals.set()

    def end(self, error: ArchiveError | None = None) -> None:
        """Nothing more will come; with `error`, what has come is not everything. Counts once."""
        if self.ended:
            return
        self.ended = True
        self.error = error
        self.spool.fail(error or IncompleteError("the retrieval has ended"))

    # --- its readers -----------------------------------------------------------------------------------------

    def reader(self, target: Target, tolerated: Collection[Key] = frozenset()) -> Reader:
        """A reader for `target`, which is this retrieval's or a part of it. It must be closed.

        That instances of `tolerated` are missing is no failure: who reads has been told.
        """
        return Reader(self, target, tolerated)


class Reader:
    """One client's view: the instances that its target covers, in order of arrival, as an async iterator."""

    def __init__(self, retrieval: Retrieval, target: Target, tolerated: Collection[Key]) -> None:
        self._retrieval = retrieval
        self._spool = retrieval.spool
        self._target = target
        self._tolerated = tolerated
        self._is_part = target != retrieval.target
        self._index = 0
        self._current: InstanceReader | None = None
        self._got = 0
        self.patients: set[str] = set()
        """The Patient IDs of the instances handed out so far."""
        retrieval.readers.add(self)
        self._spool.positions.add(self._position)

    async def first(self) -> InstanceInfo:
        """Wait for the first instance to begin; raises why there will be none."""
        instance = await self._next()
        if instance is None:
            raise NotFoundError("nothing found")
        return instance.info

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> InstanceReader:
        self._leave_current()
        instance = await self._next()
        if instance is None:
            raise StopAsyncIteration
        self.patients.add(instance.info.patient)
        self._current = InstanceReader(self._spool, instance)
        return self._current

    async def _next(self) -> SpooledInstance | None:
        """The next instance, once it has begun; None when there is none any more."""
        instances = self._spool.instances
        while True:
            while self._index < len(instances):
                if self._wants(instances[self._index]):
                    return instances[self._index]
                self._move_on()
            if self._got and self._target.instance is not None:
                return None
            if self._retrieval.ended:
                self._check_end()
                return None
            await self._spool.arrivals.wait()

    def _wants(self, instance: SpooledInstance) -> bool:
        if instance.error is not None or (self._got and self._target.instance is not None):
            return False  # one that failed before anything of it was read may come again
        if self._is_part:
            return self._target.holds_key(instance.info.key)
        return self._target.covers(instance.info)

    def _check_end(self) -> None:
        """Raise unless this reader has got all that it wants."""
        error = self._retrieval.error
        missing = error.missing if isinstance(error, IncompleteError) else None
        if missing is None and error is not None:
            raise error
        lacking = {key for key in missing or () if self._target.holds_key(key)} - set(self._tolerated)
        if error is not None and lacking:
            raise error

    def _leave_current(self) -> None:
        if self._current is not None:
            self._got += self._current.has_all
            self._current.close()
            self._current = None
            self._move_on()

    def _move_on(self) -> None:
        self._index += 1
        self._spool.forget_what_was_read()

    def _position(self) -> Position:
        return self._index, self._current.offset if self._current is not None else 0

    def close(self) -> None:
        """Let go. Says so to the retrieval, which may have nobody left to go on for."""
        self._leave_current()
        if self._got and (self._target.instance is not None or self._retrieval.ended):
            self._retrieval.has_served = True
        self._spool.positions.discard(self._position)
        self._retrieval.readers.discard(self)
        self._retrieval.left.set()
        self._spool.forget_what_was_read()


def _file_header(info: InstanceInfo, archive: Archive) -> bytes:
    try:
        return file_header(
            info.sop_class_uid,
            info.sop_instance_uid,
            info.transfer_syntax,
            source_aet=archive.peer.aet,
            implementation_class_uid=IMPLEMENTATION_CLASS_UID,
            implementation_version=IMPLEMENTATION_VERSION_NAME,
        )
    except Part10Error as error:
        raise IncompleteError("an instance came with UIDs that cannot be written", archive.name) from error
