"""An archive in memory for the tests of searches: it matches as it should, save for the faults that a test gives it."""

from __future__ import annotations

import fnmatch
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

import dul
from dul import uids
from tests.corpus import uid
from tests.dul.archive import decode, encode

UNIQUE = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
LEVELS = tuple(UNIQUE)
AT_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")


@dataclass(frozen=True)
class Entry:
    """A study of the archive, with a series of one instance for each of `modalities`."""

    number: int
    patient: str = "P1"
    name: str = "Doe^John"
    day: str = ""
    modalities: tuple[str, ...] = ("CT",)
    availability: str = ""

    @property
    def study_uid(self) -> str:
        """The Study Instance UID."""
        return uid(9, self.number)

    def rows(self, level: str) -> Iterator[Dataset]:
        """Give everything that is known of each entity of that level."""
        row = Dataset()
        row.SpecificCharacterSet = "ISO_IR 100"
        row.PatientID, row.PatientName, row.PatientSex = self.patient, self.name, "O"
        row.StudyInstanceUID, row.StudyDate = self.study_uid, self.day
        row.ModalitiesInStudy = list(self.modalities)
        if self.availability:
            row.InstanceAvailability = self.availability
        if LEVELS.index(level) < LEVELS.index("SERIES"):
            yield row
            return
        for number, modality in enumerate(self.modalities, 1):
            row.SeriesInstanceUID, row.Modality, row.SeriesNumber = f"{self.study_uid}.{number}", modality, number
            row.SOPInstanceUID, row.InstanceNumber = f"{self.study_uid}.{number}.1", 1
            yield row


def entries(count: int, *, first: date = date(2024, 1, 1), per_day: int = 1, **more: object) -> list[Entry]:
    """Make studies, so many for each day from `first`."""
    days = (first + timedelta(days=number // per_day) for number in range(count))
    return [replace(Entry(number, day=f"{day:%Y%m%d}"), **more) for number, day in enumerate(days)]  # type: ignore[arg-type]


def _matches(keyword: str, wanted: str, values: list[str]) -> bool:
    if wanted == "":
        return True
    if keyword.endswith("Date") and "-" in wanted:
        low, high = wanted.split("-")
        return any(value and low <= value <= (high or "99999999") for value in values)
    return any(fnmatch.fnmatchcase(value, one) for value in values for one in wanted.split("\\"))


def _texts(row: Dataset, keyword: str) -> list[str]:
    value = row.get(keyword)
    if value is None:
        return [""]
    return [str(one) for one in value] if isinstance(value, MultiValue | Sequence) else [str(value)]


@dataclass
class Shelf:
    """The script of an archive; give it as one to `scripted`.

    `cap` is the most answers that it gives to a C-FIND; `status` is what it ends with beyond, None for Success.
    `ignores` are keywords that it does not match, `hides` those that it does not return, `refuses` those that it fails
    with `refusal` for. `begun` is called with each search.
    """

    entries: list[Entry] | tuple[Entry, ...]
    cap: int | None = None
    status: int | None = None
    comment: str | None = None
    ignores: Iterable[str] = ()
    hides: Iterable[str] = ()
    refuses: Iterable[str] = ()
    refusal: int = 0xA900
    newest_first: bool = False
    begun: Callable[[Dataset], None] = field(default=lambda _: None)

    async def __call__(self, keys: Dataset) -> AsyncGenerator[Dataset | bytes, None]:
        self.begun(keys)
        if any(keyword in keys for keyword in self.refuses):
            raise dul.StatusError("C-FIND", self.refusal)
        for number, answer in enumerate(self._answers(keys)):
            if number == self.cap:
                if self.status is not None:
                    raise dul.StatusError("C-FIND", self.status, self.comment)
                return
            yield answer

    def _answers(self, keys: Dataset) -> Iterator[Dataset]:
        level = keys.QueryRetrieveLevel
        wanted = {each.keyword: "\\".join(_texts(keys, each.keyword)) for each in keys}
        own = {"QueryRetrieveLevel", "SpecificCharacterSet", *self.ignores}
        given = set()
        order = sorted(self.entries, key=lambda entry: entry.day, reverse=True) if self.newest_first else self.entries
        for row in (row for entry in order for row in entry.rows(level)):
            name = row[UNIQUE[level]].value
            if name in given or not all(
                _matches(keyword, value, _texts(row, keyword))
                for keyword, value in wanted.items()
                if keyword not in own
            ):
                continue
            given.add(name)
            answer = Dataset()
            for keyword in wanted:
                if keyword not in self.hides:
                    setattr(answer, keyword, row.get(keyword, None))
            answer.QueryRetrieveLevel, answer.SpecificCharacterSet = level, "ISO_IR 100"
            yield answer


class PatientRoot(dul.Handler):
    """An archive that knows Patient Root alone, and below PATIENT wants the Patient ID, plain and single-valued.

    `lenient` makes it answer a C-FIND without Patient ID at the STUDY level all the same. `searches` is what it was
    asked.
    """

    def __init__(self, shelf: Shelf, *, lenient: bool = False) -> None:
        self.shelf = shelf
        self.lenient = lenient
        self.searches: list[Dataset] = []

    async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
        keys = decode(request.identifier, request.transfer_syntax)
        self.searches.append(keys)
        if request.model != uids.PATIENT_ROOT_FIND:
            raise dul.StatusError("C-FIND", 0x0122)
        self._check(keys)
        async for answer in self.shelf(keys):
            assert isinstance(answer, Dataset)
            yield encode(answer, request.transfer_syntax)

    def _check(self, keys: Dataset) -> None:
        level = keys.QueryRetrieveLevel
        for above in LEVELS[: LEVELS.index(level)]:
            value = str(keys.get(UNIQUE[above], ""))
            missing = not value or any(mark in value for mark in "*?\\")
            if missing and not (self.lenient and above == "PATIENT"):
                raise dul.StatusError("C-FIND", 0xA900, f"{UNIQUE[above]} is missing")
        if level != "PATIENT" and any(keyword in keys for keyword in AT_PATIENT[1:]):
            raise dul.StatusError("C-FIND", 0xA900, "a key of another level")

    @property
    def asked(self) -> list[tuple[str, str]]:
        """The level of each search with its Patient ID."""
        return [(keys.QueryRetrieveLevel, str(keys.get("PatientID", "") or "")) for keys in self.searches]
