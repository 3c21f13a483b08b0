"""What an access is called, and how it ended: by the route that served it and by the answer.

Tables, and finding an entry in them. What is in no table is recorded too, under its method and route.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto
from functools import lru_cache
from typing import Final

from proxy.dicomweb.transactions import transaction_of


class Outcome(IntEnum):
    """EventOutcomeIndicator (PS3.15 Table A.5.2-1)."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12

    @property
    def words(self) -> str:
        """Such as `minor failure`."""
        return _WORDS[self]


_WORDS: Final = {outcome: outcome.name.lower().replace("_", " ") for outcome in Outcome}


class Category(Enum):
    """What an event is to the receiver of DICOM audit messages; `OTHER` is told to nobody by these."""

    START = auto()
    STOP = auto()
    SEARCH = auto()
    TRANSFER = auto()
    ACCESS = auto()
    STORE = auto()
    SIGN_IN = auto()
    ALERT = auto()
    OTHER = auto()


Event = tuple[str, Category]

REFUSED_SIGN_IN: Final[Event] = ("Refused Sign-In", Category.SIGN_IN)
NO_SIGN_IN: Final[Event] = ("No Sign-In", Category.OTHER)
"""A request without credentials where there must be some: what a browser sends before it asks the user."""
REDIRECT: Final[Event] = ("Redirect", Category.OTHER)
REFUSED_ACCESS: Final[Event] = ("Refused Access", Category.ALERT)
UNKNOWN: Final[Event] = ("Unknown Resource", Category.OTHER)

_OWN: Final[dict[tuple[str, str], Event]] = {
    ("DELETE", "/cache"): ("Purge Cache", Category.OTHER),
    ("DELETE", "/cache/studies/{study}"): ("Purge Cache", Category.OTHER),
    ("POST", "/dimse/echo"): ("Echo", Category.OTHER),
}


@lru_cache(maxsize=256)
def event_of(method: str, template: str) -> Event:
    """What a method of a resource is."""
    transaction = transaction_of(method, template)
    if transaction is not None:
        return transaction.name, _category(transaction.name)
    return _OWN.get((method, template)) or (f"{method} {template}", Category.OTHER)


def _category(name: str) -> Category:
    match name.split():
        case ["Search", *_]:
            return Category.SEARCH
        case ["Store", *_]:
            return Category.STORE
        case [*_, "Metadata" | "Thumbnail"] | ["Retrieve", "Rendered", *_]:
            return Category.ACCESS
        case _:
            return Category.TRANSFER


def outcome_of(status: int, *, partial: bool = False) -> Outcome:
    """How a request went by the status of its answer; `partial` says that the answer lacks something."""
    if status == 403 or status >= 500:
        return Outcome.SERIOUS_FAILURE
    return Outcome.MINOR_FAILURE if partial or status >= 400 or status == 202 else Outcome.SUCCESS
