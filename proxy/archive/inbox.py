"""The C-STORE SCP: which retrieval is an arriving instance for?

By the Move Originator Message ID, which is unique in this process; where an archive leaves it out or gives another,
by study, series and SOP instance UID. What nobody asked for is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import dul
from dul import dimse, pdu
from dul.errors import REASON_CALLING_AE_TITLE_NOT_RECOGNIZED, REJECTED_PERMANENT, SOURCE_SERVICE_USER
from proxy.archive.errors import ArchiveError
from proxy.archive.retrieve import Retrieval, peek
from proxy.archive.spool import InstanceInfo
from proxy.config_schema import Peer

logger = logging.getLogger(__name__)


class Inbox(dul.Handler):
    """Hands C-STOREs to the retrievals that wait for them."""

    def __init__(self, peers: Iterable[Peer]) -> None:
        self._callers = {title for peer in peers for title in (peer.aet, *peer.store_aets)}
        self._expected: dict[int, Retrieval] = {}
        self.refused = 0
        """C-STOREs that nobody had asked for."""

    def admit(self, request: pdu.AAssociateRQ, host: str) -> pdu.AAssociateRJ | None:
        """Only the configured archives may call."""
        if request.calling_ae_title in self._callers:
            return None
        return pdu.AAssociateRJ(REJECTED_PERMANENT, SOURCE_SERVICE_USER, REASON_CALLING_AE_TITLE_NOT_RECOGNIZED)

    def expect(self, message_id: int, retrieval: Retrieval) -> None:
        """C-STOREs of the C-MOVE with that Message ID belong to `retrieval`."""
        self._expected[message_id] = retrieval

    def forget(self, message_id: int) -> None:
        """That C-MOVE is over."""
        self._expected.pop(message_id, None)

    async def on_store(self, store: dul.IncomingStore) -> int:
        """C-STORE: hand it on; refused when nobody asked for it (PS3.4 B.2.3)."""
        info, head = await peek(store)
        retrieval = self._find(store, info)
        if retrieval is None:
            self.refused += 1
            logger.warning("an instance from %s was refused: no retrieval asked for it", store.calling_ae_title)
            return dimse.NOT_AUTHORIZED
        try:
            await retrieval.take(store, info, head)
        except ArchiveError:
            return dimse.REFUSED_OUT_OF_RESOURCES
        return dimse.SUCCESS

    def _find(self, store: dul.IncomingStore, info: InstanceInfo) -> Retrieval | None:
        named = self._expected.get(store.move_originator_message_id or 0)
        candidates = [] if named is None else [named]
        if info.study is not None:
            candidates += self._expected.values()
        fitting = [each for each in candidates if each.target.covers(info) and self._may_send(each, store)]
        # Of equal claims, the oldest that lacks it: parallel moves of the same series each send it once.
        lacking = [retrieval for retrieval in fitting if not retrieval.has(info)]
        return next(iter(lacking or fitting), None)

    @staticmethod
    def _may_send(retrieval: Retrieval, store: dul.IncomingStore) -> bool:
        peer = retrieval.archive.peer
        return store.calling_ae_title == peer.aet or store.calling_ae_title in peer.store_aets
