"""One instance on its way to an archive: the bytes as they are taken, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import dul
from proxy.archive.errors import ArchiveError
from proxy.archive.spool.spool import InstanceInfo


class SourceError(Exception):
    """The bytes of an instance could not be had to their end; the cause says why."""


class Job:
    """A C-STORE. `head` are the first bytes of the data set, `rest` gives the others once.

    `sent` is set when nothing more is wanted of `rest`, `done` when it is known what came of it: then one of `status`,
    `error` and `source_error` is not None, or it was `dropped`.
    """

    def __init__(self, info: InstanceInfo, head: Sequence[bytes], rest: AsyncIterator[bytes]) -> None:
        self.info = info
        self.status: int | None = None
        """The status of the C-STORE, or one of PS3.7 Annex C that says why there was none."""
        self.error: ArchiveError | None = None
        self.source_error: BaseException | None = None
        self.dropped = False
        self.sent = asyncio.Event()
        self.done = asyncio.Event()
        self.may_retry = True
        """True while it can be sent once more, on another association: no byte of `rest` was taken."""
        self._head: Sequence[bytes] = tuple(head)
        self._rest = rest
        self._stalled = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """SOP class and transfer syntax, for which there has to be a presentation context."""
        return self.info.sop_class_uid, self.info.transfer_syntax

    async def run(self, association: dul.Association, stall_seconds: float) -> int:
        """C-STORE; returns its status. Cut off when the archive takes nothing for `stall_seconds`.

        Raises `SourceError`, or a `dul.DulError`; the association is aborted then, so that no archive keeps a part for
        the whole.
        """
        instance = dul.Instance(
            self.info.sop_class_uid,
            self.info.sop_instance_uid,
            self.info.transfer_syntax,
            lambda: self._data(association, stall_seconds),
        )
        try:
            return await association.store(instance)
        except dul.AssociationAborted as error:
            if self._stalled:
                raise dul.PeerTimeout("progress in taking a data set", stall_seconds) from error
            raise
        finally:
            self._disarm()

    async def _data(self, association: dul.Association, stall_seconds: float) -> AsyncGenerator[bytes, None]:
        """The data set. While the archive has a chunk to take, a timer runs that nobody else keeps for long uses."""
        for chunk in self._head:
            self._arm(association, stall_seconds)
            yield chunk
        self._disarm()
        try:
            async for chunk in self._rest:
                self.may_retry = False
                self._arm(association, stall_seconds)
                yield chunk
                self._disarm()
        except Exception as error:
            self.may_retry = False
            raise SourceError from error
        self.sent.set()
        # The last bytes are still to be taken, and the response to come, which has a bound of its own.
        self._arm(association, stall_seconds + association.channel.timeouts.response)

    def _arm(self, association: dul.Association, seconds: float) -> None:
        self._disarm()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._stall, association)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stall(self, association: dul.Association) -> None:
        self._stalled = True
        association.abort()

    # --- what comes of it ------------------------------------------------------------------------------------

    def answer(self, status: int) -> None:
        """The archive has answered."""
        self.status = status
        self._finish()

    def fail(self, error: ArchiveError) -> None:
        """The archive could not be asked, or did not answer."""
        self.error = error
        self._finish()

    def fail_source(self, error: BaseException) -> None:
        """Its bytes could not be had."""
        self.source_error = error
        self._finish()

    def drop(self) -> None:
        """Nobody wants it any more."""
        self.dropped = True
        self._finish()

    def _finish(self) -> None:
        self.may_retry = False
        self._head = ()  # an upload keeps all of its jobs until its answer
        self.sent.set()
        self.done.set()
