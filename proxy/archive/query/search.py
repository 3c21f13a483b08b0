"""C-FIND over all archives: a search is walked level by level on each of them, and the answers are merged by UID.

This is the door to what the other modules do: `plan` (which keys go where), `walk` (one search on one archive),
`patients` (Patient Root), `lists` (lists that an archive cuts), `modalities`, `cfind` (one C-FIND), `merge`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from proxy.archive.errors import ArchiveError
from proxy.archive.peers.archive import Archive
from proxy.archive.query.cfind import QUERY_RETRIEVE_LEVEL, Remarks
from proxy.archive.query.known import Known
from proxy.archive.query.merge import merge, without_repeats
from proxy.archive.query.patients import patient_id
from proxy.archive.query.plan import Found, Path, Search, check
from proxy.archive.query.walk import Walk

__all__ = [
    "QUERY_RETRIEVE_LEVEL",
    "Found",
    "Path",
    "Remarks",
    "Results",
    "Search",
    "check",
    "patient_id",
    "search",
]


@dataclass(slots=True)
class Results:
    """The answers to a search, as an async iterator, the archives that failed to give theirs, and `Remarks`.

    Failures are complete once the first answer has come, or the end: only then is the first answer given. An
    archive that fails later fails the whole search, since an answer list cut short must not look whole. The remarks are
    complete at the end.
    """

    answers: AsyncGenerator[Found, None]
    failures: list[ArchiveError]
    remarks: Remarks

    @property
    def unchecked(self) -> set[tuple[str, int]]:
        """Names of archives, and the keys whose matching was left to them because their answers hold no value."""
        return self.remarks.unchecked

    @property
    def cut(self) -> set[str]:
        """Names of archives whose list may be cut: what they have not given says nothing."""
        return self.remarks.cut


def search(archives: Sequence[Archive], wanted: Search, known: Known | None = None) -> Results:
    """Ask all archives at once; `known` learns which of them have a study. Close `answers` when leaving early; that
    cancels the C-FINDs.

    Raises `ArchiveError` from `answers` when no archive can answer.
    """
    failures: list[ArchiveError] = []
    remarks = Remarks()
    walks = [Walk(archive, wanted, remarks, known).run() for archive in archives]
    if len(walks) == 1:
        return Results(walks[0], failures, remarks)
    merged = merge(walks, failures, in_order=wanted.in_order)
    return Results(without_repeats(merged, wanted.level), failures, remarks)
