"""What a user may see: some of the archives, or all of them, and what is kept of retrievals from just these.

A study may lie in two archives in parts, so what is cached, under way or known to be missing for one set of archives is
neither all nor permitted for another. Each set has its own; what the sets share is each archive's pool of associations,
with what that archive has been found to do, and what is known of studies, which is known of each archive by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from proxy.archive.cache.cache import Shelf
from proxy.archive.cache.depot import Depot
from proxy.archive.peers.archive import Archive
from proxy.archive.query import search as query
from proxy.archive.query.known import Known
from proxy.archive.retrieval.delivery import Delivery
from proxy.archive.retrieval.inbox import Inbox, LimitedInbox
from proxy.archive.retrieval.retrievals import Retrievals
from proxy.archive.retrieval.sources import Sources
from proxy.archive.retrieval.target import Target
from proxy.archive.storing.storing import Storing
from proxy.dataset.levels import Level


@dataclass(frozen=True, slots=True)
class Shared:
    """What all views have in common. `receiver` is where `storing` brings uploads."""

    depot: Depot
    inbox: Inbox
    known: Known
    fetch_level: Level
    receiver: Archive
    storing: Storing


class ArchivesView:
    """Some archives as their only users see them: `archives`, in the order of the configuration.

    `name` is empty for the view of all archives, and tells the others apart; see `view_name`.
    """

    def __init__(self, archives: Sequence[Archive], shared: Shared, name: str) -> None:
        self.archives = tuple(archives)
        self.depot = shared.depot
        self.inbox = shared.inbox
        self._shared = shared
        self._name = name
        inbox = LimitedInbox(shared.inbox, frozenset(each.name for each in archives)) if name else shared.inbox
        sources = Sources(self.archives, inbox, shared.known)
        self.retrievals = Retrievals(sources, shared.depot, shared.fetch_level, name)

    @property
    def storing(self) -> Storing | None:
        """Uploads; None where the archive that they go to is not one of these."""
        return self._shared.storing if self._shared.receiver in self.archives else None

    @property
    def cache(self) -> Shelf | None:
        """What the cache keeps of these archives; None where nothing is kept."""
        return self.depot.shelf(self._name)

    @property
    def retrieval_count(self) -> int:
        """Retrievals under way."""
        return self.retrievals.count

    async def check_all(self) -> None:
        """Bring the archives' health up to date, by C-ECHO where they were not used lately."""
        await asyncio.gather(*(archive.check() for archive in self.archives))

    def search(self, wanted: query.Search) -> query.Results:
        """Ask all these archives at once; see `query.search`."""
        if not self.archives:
            return query.Results(_nothing(), [], query.Remarks())
        return query.search(self.archives, wanted, known=self._shared.known)

    def retrieve(self, target: Target) -> AbstractAsyncContextManager[Delivery]:
        """What there is of `target`, from the cache or those of the archives that have it; see `Retrievals.open`."""
        return self.retrievals.open(target)


async def _nothing() -> AsyncGenerator[query.Found, None]:
    return
    yield


def view_name(archives: Iterable[Archive]) -> str:
    """A name for the view of some archives: the same after a restart, but not when a name stands for another archive.

    What is kept for a view would else be shown to users of what only is called the same.
    """
    peers = sorted((each.name, each.peer.aet, each.peer.ip, each.peer.port) for each in archives)
    return hashlib.sha256(json.dumps(peers).encode()).hexdigest()[:32]
