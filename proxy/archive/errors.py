"""What can go wrong with an archive, in the five kinds that a client has to tell apart.

Messages are fit for a client: they name the archive (by its configured name) and the DICOM status, never a patient,
a study or a UID.
"""

from __future__ import annotations

import dul


class ArchiveError(Exception):
    """Base: the archive `archive` could not serve the request."""

    def __init__(self, message: str, archive: str = "") -> None:
        super().__init__(f"{archive}: {message}" if archive else message)
        self.archive = archive


class NotFoundError(ArchiveError):
    """No archive has what was asked for."""


class TooBroadError(ArchiveError):
    """The search would have to look into more than is bearable; the client has to narrow it."""


class ArchiveFailedError(ArchiveError):
    """The archive cannot be reached, refuses, or answered with a failure."""


class ArchiveBusyError(ArchiveError):
    """The archive, or every association to it, is busy; a later try may succeed."""


class ArchiveTimeoutError(ArchiveError):
    """The archive did not answer in time."""


class IncompleteError(ArchiveError):
    """The archive sent some of what was asked for, not all of it.

    `missing` are series and SOP Instance UIDs of what is known to be missing, None where that is not known.
    """

    def __init__(self, message: str, archive: str = "", missing: frozenset[tuple[str, str]] | None = None) -> None:
        super().__init__(message, archive)
        self.missing = missing


def from_dul(error: dul.DulError, archive: str) -> ArchiveError:
    """The kind of failure that an error of the DICOM side means."""
    match error:
        case dul.PeerTimeout():
            return ArchiveTimeoutError(str(error), archive)
        case dul.AssociationRejected() if error.transient:
            return ArchiveBusyError(str(error), archive)
        case dul.StatusError():
            message = f"{error.service} ended with {dul.describe_status(error.status)}"
            return ArchiveFailedError(message, archive)
        case _:
            return ArchiveFailedError(str(error), archive)
