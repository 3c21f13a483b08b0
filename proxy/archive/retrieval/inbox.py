"""The C-STORE SCP: which retrieval is an arriving instance for?

By the Move Originator Message ID, which is unique in this process; where an archive leaves it out or gives another,
by study, series and SOP instance UID. What nobody asked for is refused, and so is who is not known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import dul
from dul import dimse, pdu, uids
from dul.errors import REASON_CALLING_AE_TITLE_NOT_RECOGNIZED, REJECTED_PERMANENT, SOURCE_SERVICE_USER
from proxy.archive.errors import ArchiveError
from proxy.archive.peers.archive import Archive
from proxy.archive.retrieval.contexts import storage_syntaxes
from proxy.archive.retrieval.fetch import peek
from proxy.archive.retrieval.retrieval import Retrieval
from proxy.archive.spool.spool import InstanceInfo
from proxy.config_schema import Peer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Expected:
    """A C-MOVE under way: what it is for, and whom it was asked of."""

    retrieval: Retrieval
    archive: Archive

    def may_come_from(self, store: dul.IncomingStore) -> bool:
        peer = self.archive.peer
        return store.calling_ae_title == peer.aet or store.calling_ae_title in peer.store_aets


class Inbox(dul.Handler):
    """Hands C-STOREs to the retrievals that wait for them.

    `allows` tells whether a calling AE title may call from a host address.
    """

    def __init__(self, peers: Iterable[Peer], allows: Callable[[str, str], bool]) -> None:
        self._peers = tuple(peers)
        self._allows = allows
        self._expected: dict[int, _Expected] = {}
        self.refused = 0
        """C-STOREs that nobody had asked for."""
        self.rejected = 0
        """Associations of callers that are not known."""

    def admit(self, request: pdu.AAssociateRQ, host: str) -> pdu.AAssociateRJ | dul.TransferSyntaxPolicy:
        """Only the configured archives may call, from where they are known to be, and send as their peer says."""
        callers = self._callers(request.calling_ae_title)
        if not callers or not self._allows(request.calling_ae_title, host):
            self.rejected += 1
            return pdu.AAssociateRJ(REJECTED_PERMANENT, SOURCE_SERVICE_USER, REASON_CALLING_AE_TITLE_NOT_RECOGNIZED)
        return partial(_syntaxes, compressed=not any(peer.uncompressed for peer in callers))

    def _callers(self, title: str) -> list[Peer]:
        return [peer for peer in self._peers if title == peer.aet or title in peer.store_aets]

    def expect(self, message_id: int, retrieval: Retrieval, archive: Archive) -> None:
        """C-STOREs of the C-MOVE with that Message ID belong to `retrieval`."""
        self._expected[message_id] = _Expected(retrieval, archive)

    def forget(self, message_id: int) -> None:
        """That C-MOVE is over."""
        self._expected.pop(message_id, None)

    async def on_store(self, store: dul.IncomingStore) -> int:
        """C-STORE: hand it on; refused when nobody asked for it (PS3.4 B.2.3)."""
        info, head = await peek(store)
        expected = self._find(store, info)
        if expected is None:
            self.refused += 1
            logger.warning("an instance from %s was refused: no retrieval asked for it", store.calling_ae_title)
            return dimse.NOT_AUTHORIZED
        try:
            await expected.retrieval.take(store, info, head, expected.archive)
        except ArchiveError:
            return dimse.REFUSED_OUT_OF_RESOURCES
        return dimse.SUCCESS

    def _find(self, store: dul.IncomingStore, info: InstanceInfo) -> _Expected | None:
        waiting = [each for each in self._expected.values() if each.may_come_from(store)]
        named = self._expected.get(store.move_originator_message_id or 0)
        candidates = [named] if named in waiting else []
        if info.study is not None:
            candidates += waiting
        elif len(waiting) == 1 and waiting[0].archive.peer.sequential:
            candidates += waiting  # whose study cannot be told; there is nothing else that it can be for
        fitting = [each for each in candidates if each is not None and each.retrieval.target.covers(info)]
        # Of equal claims, the oldest that lacks it: parallel moves of the same series each send it once.
        lacking = [each for each in fitting if not each.retrieval.has(info)]
        return next(iter(lacking or fitting), None)


def _syntaxes(sop_class_uid: str, *, compressed: bool) -> Sequence[str]:
    if sop_class_uid == uids.VERIFICATION:
        return uids.UNCOMPRESSED
    return storage_syntaxes(sop_class_uid, compressed=compressed)
