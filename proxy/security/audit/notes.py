"""What those who serve a request tell the record of it, beside what can be seen from outside.

Nothing of HTTP's or DICOM's other modules is known here: handlers import this, and the middleware reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from aiohttp import web


@dataclass(slots=True)
class Notes:
    """What is known of one request. All of it is optional.

    `claimed` is the name under which somebody was refused. `results` is how many answers a search gave. `patients` are
    Patient IDs (0010,0020). `stored` and `failed` hold the SOP Instance UIDs of an upload by Study Instance UID, which
    is empty where an instance has none. `failure` is what the handler raised.
    """

    claimed: str = ""
    results: int | None = None
    patients: set[str] = field(default_factory=set)
    stored: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)
    failure: Exception | None = None


_NOTES: Final = web.RequestKey("audit_notes", Notes)


def notes_of(request: web.Request) -> Notes:
    """The notes on a request, to be written on; where nothing is recorded, nobody reads them."""
    if _NOTES not in request:
        request[_NOTES] = Notes()
    return request[_NOTES]
