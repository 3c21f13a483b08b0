"""One entry of the audit trail, and its line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from proxy.security.audit.events import Category, Outcome

MAX_NAMED: Final = 100
"""SOP Instance UIDs of an upload that a record names; the count beside them is of all."""

MAX_STUDIES: Final = 20
"""Studies of an upload that a record names."""

_ENCODE: Final = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What came of a study's instances in an upload: those that are named, and how many there are."""

    study: str
    instances: Sequence[str]
    count: int


def uploaded(by_study: Mapping[str, Sequence[str]]) -> tuple[Uploaded, ...]:
    """Take SOP Instance UIDs by study into a record, within its bounds."""
    if not by_study:
        return ()
    left = MAX_NAMED
    studies = []
    for study, instances in list(by_study.items())[:MAX_STUDIES]:
        named = tuple(instances[:left])
        left -= len(named)
        studies.append(Uploaded(study, named, len(instances)))
    return tuple(studies)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Who did what, from where, to whose data, and how it ended. What is empty or None is not in its line.

    `time` is in seconds since 1970. `user` is the name that somebody has signed in with, by `sign_in`; `claimed` one
    that was refused. `client` and `connection` are addresses: of the client, and of the TCP connection where that is a
    reverse proxy's. `caller` is a calling AE title. `resource` is the template of the path; `path` is the beginning of
    the path itself, percent-encoded, without a query, which may hold anything. `query` holds the attributes that a
    search asked for. `ended` is `cut` where the proxy broke the answer off, `client gone` where the client did. `sent`
    and `received` are bytes, `seconds` is how long it took, `lost` how many records there are not.
    """

    time: float
    event: str
    category: Category
    outcome: Outcome
    status: int | None = None
    ended: str = ""
    failure: str = ""
    description: str = ""
    user: str = ""
    sign_in: str = ""
    claimed: str = ""
    client: str = ""
    connection: str = ""
    caller: str = ""
    method: str = ""
    resource: str = ""
    path: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    results: int | None = None
    patients: tuple[str, ...] = ()
    stored: tuple[Uploaded, ...] = ()
    failed: tuple[Uploaded, ...] = ()
    cache: str = ""
    sent: int | None = None
    received: int | None = None
    seconds: float | None = None
    identifier: str = ""
    lost: int | None = None

    def line(self) -> bytes:
        """The record as a line of JSON, in ASCII."""
        shown: dict[str, Any] = {
            "time": timestamp(self.time),
            "event": self.event,
            "outcome": int(self.outcome),
            "result": self.outcome.words,
        }
        for key, name in _SHOWN:
            value = getattr(self, name)
            if value or value == 0:
                shown[key] = value
        if not self.resource and self.path:
            shown["path"] = self.path
        if self.seconds is not None:
            shown["ms"] = round(self.seconds * 1000, 1)
        for key, studies in (("stored", self.stored), ("failed", self.failed)):
            if studies:
                shown[key] = [_shown(study) for study in studies]
        return _ENCODE(shown).encode() + b"\n"


_SHOWN: Final = (
    ("status", "status"),
    ("ended", "ended"),
    ("failure", "failure"),
    ("description", "description"),
    ("user", "user"),
    ("signIn", "sign_in"),
    ("claimed", "claimed"),
    ("client", "client"),
    ("connection", "connection"),
    ("caller", "caller"),
    ("method", "method"),
    ("resource", "resource"),
    ("study", "study"),
    ("series", "series"),
    ("instance", "instance"),
    ("query", "query"),
    ("results", "results"),
    ("patients", "patients"),
    ("cache", "cache"),
    ("sent", "sent"),
    ("received", "received"),
    ("id", "identifier"),
    ("lost", "lost"),
)
"""Keys of a line that have an attribute's value as it is."""


def timestamp(seconds: float) -> str:
    """A time in UTC with milliseconds (RFC 3339)."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return f"{_second(whole)}.{milliseconds:03d}Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    # A busy proxy makes a thousand records in one second.
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _shown(study: Uploaded) -> dict[str, Any]:
    return {"study": study.study, "count": study.count, "instances": study.instances}
