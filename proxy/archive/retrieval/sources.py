"""Several archives as one: which of them have a study, and fetching it from those until nothing is missing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence

from proxy.archive.errors import ArchiveError, IncompleteError, NotFoundError
from proxy.archive.peers.archive import Archive
from proxy.archive.query import search as query
from proxy.archive.query.known import Known
from proxy.archive.retrieval.fetch import Fetch, Inbox, list_keys
from proxy.archive.retrieval.retrieval import Retrieval
from proxy.archive.retrieval.target import Key, Target
from proxy.dataset.levels import Level

logger = logging.getLogger(__name__)


class Sources:
    """The archives that retrievals are fetched from."""

    def __init__(self, archives: Sequence[Archive], inbox: Inbox, known: Known) -> None:
        self._archives = archives
        self._inbox = inbox
        self._known = known

    async def fetch(self, retrieval: Retrieval) -> None:
        """Fetch what `retrieval` is for.

        A study, and even a series, may lie in several archives in parts: each is asked for what the others did not
        bring. An archive that fails does no harm when all that it lists came from others, or when it cannot even list
        it and another had it all.

        Raises `NotFoundError` only when every archive has answered that it has nothing, `IncompleteError` with what
        is missing, or else the first failure.
        """
        failures: list[ArchiveError] = []
        listed: set[Key] = set()  # by archives that could not send all of it
        succeeded = False
        async with contextlib.aclosing(self._having(retrieval.target)) as archives:
            async for archive in archives:
                fetch = Fetch(retrieval, archive, self._inbox, self._known)
                try:
                    await (fetch.rest() if retrieval.arrived else fetch.whole())
                    succeeded = True
                except ArchiveError as error:
                    failures.append(error)
                    listed |= await self._listed(fetch, error)
                if succeeded and retrieval.target.level is Level.IMAGE:
                    break
        lacking = frozenset(key for key in listed if not retrieval.has_key(key))
        if lacking or not succeeded:
            raise _worst(failures, lacking if retrieval.arrived else frozenset())

    async def listed(self, target: Target) -> set[Key] | None:
        """The keys of all instances of a target; None when not every archive answers."""
        try:
            keys, results = await list_keys(self._archives, target, self._known)
        except ArchiveError:
            return None
        return keys if not results.failures and not results.remarks.short else None

    async def _listed(self, fetch: Fetch, error: ArchiveError) -> set[Key]:
        """What an archive lists that failed: others may have it. Empty where that cannot be known."""
        if isinstance(error, IncompleteError) and error.missing is not None:
            return set(error.missing)
        if len(self._archives) == 1 or isinstance(error, NotFoundError):
            return set()
        try:
            return await fetch.expected()
        except ArchiveError:
            logger.warning("what an archive has cannot be known; going on with the others")
            return set()

    async def _having(self, target: Target) -> AsyncGenerator[Archive, None]:
        """The archives that have the study, those first that are known to; one that is alone need not be asked."""
        if len(self._archives) == 1:
            yield self._archives[0]
            return
        known: list[Archive] = []
        if target.level is Level.IMAGE:
            names = self._known.archives(target.study)
            known = [archive for archive in self._archives if archive.name in names and archive.health.is_up]
        for archive in known:
            yield archive
        having, failures = await self._who_has(target.study)
        for archive in having:
            if archive not in known:
                yield archive
        if not having and not known:
            raise failures[0] if failures else NotFoundError("nothing found")

    async def _who_has(self, study: str) -> tuple[list[Archive], list[ArchiveError]]:
        """The archives that list the study, and the failures of those that do not answer."""
        outcomes = await asyncio.gather(*(self._has(archive, study) for archive in self._archives))
        having = [each for each, outcome in zip(self._archives, outcomes, strict=True) if outcome is True]
        return having, [outcome for outcome in outcomes if isinstance(outcome, ArchiveError)]

    async def _has(self, archive: Archive, study: str) -> bool | ArchiveError:
        wanted = query.Search(Level.STUDY, {Level.STUDY: study})
        try:
            async with contextlib.aclosing(query.search([archive], wanted, known=self._known).answers) as answers:
                async for _ in answers:
                    return True
        except ArchiveError as error:
            return error
        return False


def _worst(failures: Sequence[ArchiveError], lacking: frozenset[Key]) -> ArchiveError:
    """What to tell the client: what is missing, else why nothing came, else that there is nothing."""
    telling = next((each for each in failures if not isinstance(each, NotFoundError)), None)
    if telling is None:
        return failures[0] if len(failures) == 1 else NotFoundError("nothing found")
    if lacking and not (isinstance(telling, IncompleteError) and telling.missing == lacking):
        return IncompleteError(f"{len(lacking)} of the instances could not be sent; {telling}", missing=lacking)
    return telling
