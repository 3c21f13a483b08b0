"""The C-STORE SCP: which retrieval is an arriving instance for?

By the Move Originator Message ID, which is unique in this process; where an archive leaves it out or gives another,
by study, series and SOP instance UID. What nobody asked for is refused, and so is who is not known.

A retrieval for users who may use only some of the archives gets nothing that might come from another: neither Message
ID nor UIDs prove where an instance is from, but the caller's AE title and address do, unless two archives share both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import dul
from dul import dimse, pdu, uids
from dul.errors import (
    REASON_CALLED_AE_TITLE_NOT_RECOGNIZED,
    REASON_CALLING_AE_TITLE_NOT_RECOGNIZED,
    REASON_NO_REASON_GIVEN,
    REJECTED_PERMANENT,
    SOURCE_SERVICE_USER,
)
from dul.flood import QuietLog
from proxy.archive.errors import ArchiveError
from proxy.archive.peers.archive import Archive
from proxy.archive.retrieval.contexts import storage_syntaxes
from proxy.archive.retrieval.fetch import peek
from proxy.archive.retrieval.retrieval import Retrieval
from proxy.archive.spool.spool import InstanceInfo
from proxy.config.schema import Peer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Expected:
    """A C-MOVE under way: what it is for, whom it was asked of, and which archives may be heard (None: all)."""

    retrieval: Retrieval
    archive: Archive
    permitted: frozenset[str] | None

    def may_come_from(self, store: dul.IncomingStore) -> bool:
        peer = self.archive.peer
        return store.calling_ae_title == peer.aet or store.calling_ae_title in peer.store_aets


class Inbox(dul.Handler):
    """Hands C-STOREs to the retrievals that wait for them.

    `allows` tells whether a calling AE title may call from a host address, `is_host_of` whether a peer may.
    """

    def __init__(
        self,
        peers: Iterable[Peer],
        allows: Callable[[str, str], bool],
        is_host_of: Callable[[Peer, str], bool],
    ) -> None:
        self._peers = tuple(peers)
        self._allows = allows
        self._is_host_of = is_host_of
        self._expected: dict[int, _Expected] = {}
        self.refused = 0
        """C-STOREs that nobody had asked for."""
        self.rejected = 0
        """Associations of callers that are not known."""
        self.on_refusal: Callable[[str, str, str], None] | None = None
        """Is told what was refused, the calling AE title and the host, for the audit trail."""
        self._told: set[str] = set()
        self._log = QuietLog(logger)

    def admit(
        self, request: pdu.AAssociateRQ, host: str, *, over_tls: bool
    ) -> pdu.AAssociateRJ | dul.TransferSyntaxPolicy:
        """Only the configured archives may call, from where they are known to be, by the AE title that the proxy calls
        itself towards them; those with `tls` only over TLS. They may send as their peer says."""
        title = request.calling_ae_title
        if not self._callers(title) or not self._allows(title, host):
            return self._reject(REASON_CALLING_AE_TITLE_NOT_RECOGNIZED, title, host)
        callers = [peer for peer in self._callers(title) if self._is_host_of(peer, host)]
        callers = [peer for peer in callers if peer.local_aet == request.called_ae_title]
        if not callers:
            return self._reject(REASON_CALLED_AE_TITLE_NOT_RECOGNIZED, title, host)
        if not over_tls and all(peer.tls is not None for peer in callers):
            names = ", ".join(peer.name for peer in callers)
            self._log.warn_of(
                host,
                "C-STOREs in clear text from %s are refused: %s has to send them over TLS, to the "
                "port of proxyServer.tls, since it has tls",
                host,
                names,
            )
            return self._reject(REASON_NO_REASON_GIVEN, title, host)
        return partial(_syntaxes, compressed=not any(peer.uncompressed for peer in callers))

    def _reject(self, reason: int, title: str, host: str) -> pdu.AAssociateRJ:
        self.rejected += 1
        self._tell_of_refusal("an association of a caller that is not known", title, host)
        return pdu.AAssociateRJ(REJECTED_PERMANENT, SOURCE_SERVICE_USER, reason)

    def _tell_of_refusal(self, what: str, caller: str, host: str) -> None:
        if self.on_refusal is not None:
            self.on_refusal(what, caller, host)

    def _callers(self, title: str) -> list[Peer]:
        return [peer for peer in self._peers if title == peer.aet or title in peer.store_aets]

    def expect(
        self, message_id: int, retrieval: Retrieval, archive: Archive, permitted: frozenset[str] | None = None
    ) -> None:
        """C-STOREs of the C-MOVE with that Message ID belong to `retrieval`.

        With `permitted`, names of archives, only those that come from one of these for certain.
        """
        self._expected[message_id] = _Expected(retrieval, archive, permitted)

    def forget(self, message_id: int) -> None:
        """That C-MOVE is over."""
        self._expected.pop(message_id, None)

    async def on_store(self, store: dul.IncomingStore) -> int:
        """C-STORE: hand it on; refused when nobody asked for it (PS3.4 B.2.3)."""
        info, head = await peek(store)
        expected = self._find(store, info)
        if expected is None:
            self.refused += 1
            title = store.calling_ae_title
            self._tell_of_refusal("an instance that no retrieval asked for", title, store.peer_host)
            self._log.warn_of(store.peer_host, "an instance from %s was refused: no retrieval asked for it", title)
            return dimse.NOT_AUTHORIZED
        try:
            await expected.retrieval.take(store, info, head, expected.archive)
        except ArchiveError:
            return dimse.REFUSED_OUT_OF_RESOURCES
        return dimse.SUCCESS

    def _find(self, store: dul.IncomingStore, info: InstanceInfo) -> _Expected | None:
        waiting = self._permitted(store, [each for each in self._expected.values() if self._is_sender(each, store)])
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

    def _is_sender(self, expected: _Expected, store: dul.IncomingStore) -> bool:
        return expected.may_come_from(store) and self._is_host_of(expected.archive.peer, store.peer_host)

    def _permitted(self, store: dul.IncomingStore, waiting: list[_Expected]) -> list[_Expected]:
        """Those who may have it, whichever archive of that AE title and address it comes from."""
        if all(each.permitted is None for each in waiting):
            return waiting
        callers = self._callers(store.calling_ae_title)
        senders = {peer.name for peer in callers if self._is_host_of(peer, store.peer_host)}
        permitted = [each for each in waiting if each.permitted is None or (senders and senders <= each.permitted)]
        if not permitted and store.calling_ae_title not in self._told:
            self._told.add(store.calling_ae_title)
            logger.warning(
                "what comes from %s may be of any of several archives, and users who may use only some of these do not "
                "get it: give the archives different AE titles, or set useCget for them",
                store.calling_ae_title,
            )
        return permitted


class LimitedInbox:
    """An `Inbox` for retrievals that only some archives, by their names, may send to."""

    def __init__(self, inbox: Inbox, permitted: frozenset[str]) -> None:
        self._inbox = inbox
        self._permitted = permitted

    def expect(self, message_id: int, retrieval: Retrieval, archive: Archive) -> None:
        """C-STOREs of the C-MOVE with that Message ID belong to `retrieval`, if they are from these archives."""
        self._inbox.expect(message_id, retrieval, archive, self._permitted)

    def forget(self, message_id: int) -> None:
        """That C-MOVE is over."""
        self._inbox.forget(message_id)


def _syntaxes(sop_class_uid: str, *, compressed: bool) -> Sequence[str]:
    if sop_class_uid == uids.VERIFICATION:
        return uids.UNCOMPRESSED
    return storage_syntaxes(sop_class_uid, compressed=compressed)
