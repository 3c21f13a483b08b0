"""What a UID is. Only the check of its form lives here, for paths and query values.

Whether a UID names anything is for the archive to say.
"""

import re
from typing import Final

MAX_UID_LENGTH: Final = 64
"""Characters in a UID (PS3.5 9.1)."""

_FORM: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def is_valid_uid(text: str) -> bool:
    """Say whether `text` has the form of a UID (PS3.5 9.1).

    Digits and dots, at most 64 characters, no empty component. Leading zeros in a component are let
    through, against the clause: archives in the field hold such instances and they must be reachable.
    """
    return len(text) <= MAX_UID_LENGTH and _FORM.fullmatch(text) is not None
