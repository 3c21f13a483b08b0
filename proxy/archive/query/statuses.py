"""What the failure status of a C-FIND may mean beside failure (PS3.4 C.4.1.1.4)."""

from __future__ import annotations

import re
from typing import Final

import dul
from dul import dimse
from proxy.archive.errors import ArchiveError

_CUT: Final = frozenset({dimse.REFUSED_OUT_OF_RESOURCES, dimse.CANCEL})
"""Statuses of a list that is cut; Orthanc ends one by Cancel, though nobody has asked for that."""

_MISMATCH: Final = 0xA9
"""The first two digits of Identifier does not match SOP Class, 0xA900 to 0xA9FF."""

_UNABLE_TO_PROCESS: Final = 0xC
"""The first digit of Unable to process, 0xC000 to 0xCFFF."""

_TOO_MANY: Final = re.compile(r"too (?:many|much|large|broad)|limit|exceed|maxim", re.IGNORECASE)


def says_too_many(error: ArchiveError, answers: int) -> bool:
    """True for a failure, after so many answers, that may mean that the archive has more than it likes to give."""
    cause = error.__cause__
    if not isinstance(cause, dul.StatusError):
        return False
    if cause.status in _CUT or _TOO_MANY.search(cause.comment or ""):
        return True
    return cause.status >> 12 == _UNABLE_TO_PROCESS and answers > 0


def says_wrong_keys(error: ArchiveError) -> bool:
    """True for a failure without answers that may be due to the keys of the identifier."""
    cause = error.__cause__
    if not isinstance(cause, dul.StatusError) or says_too_many(error, 0):
        return False
    return cause.status >> 8 == _MISMATCH or cause.status >> 12 == _UNABLE_TO_PROCESS
