"""The requests of the clients: many kinds, by chance, and the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from tests import corpus
from tests.corpus import Sample
from tests.soak.holdings import UID_OF_LEVEL, Holdings, path_of, uids
from tests.soak.judging import File, Files, Judge, Matches, Refusal

JSON: Final = "application/dicom+json"
MULTIPART: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
RAW: Final = "application/dicom; transfer-syntax=*"
UNKNOWN: Final = corpus.uid(99, 1)

SLOW_READ: Final = 32 * 1024
"""A slow client takes as many bytes at a time."""

_PAUSES: Final = (0.005, 0.02, 0.05)
_LEAVES_AFTER: Final = (0, 1, 1000, 20_000, 300_000)


@dataclass(frozen=True, slots=True)
class Planned:
    """A request, and what its answer has to be where no archive has a fault.

    `pause` are the seconds between the reads of a slow client. One that `leaves_after` some bytes breaks off then,
    with 0 before the answer has begun. `study` is the study that is asked for, where it is one.
    """

    kind: str
    path: str
    accept: str
    judge: Judge
    status: int = 200
    study: str = ""
    pause: float = 0.0
    leaves_after: int | None = None


class Planner:
    """Makes the requests."""

    def __init__(self, holdings: Holdings, seed: int) -> None:
        self._holdings = holdings
        self._chance = random.Random(seed)
        self._kinds: dict[Callable[[], Planned], int] = {
            self._search: 14,
            self._search_all: 4,
            self._search_page: 8,
            self._search_patient: 6,
            self._study: 10,
            self._series: 12,
            self._instance: 12,
            self._raw_instance: 16,
            self._slow: 4,
            self._leaving: 8,
            self._unknown: 2,
            self._malformed: 2,
        }

    def __iter__(self) -> Iterator[Planned]:
        while True:
            [make] = self._chance.choices(list(self._kinds), list(self._kinds.values()))
            yield make()

    def one_of_each(self) -> Iterator[Planned]:
        """Make one request of each kind."""
        for make in self._kinds:
            yield make()

    def _sample(self) -> Sample:
        # By archive and study first, or the largest studies would get nearly all requests.
        held = self._chance.choice((self._holdings.orthanc, self._holdings.scripted))
        return self._chance.choice(held.of_study(self._chance.choice(held.study_uids)))

    # --- searches --------------------------------------------------------------------------------------------

    def _search(self) -> Planned:
        """Search for a study, its series, or instances of one of them, by UIDs."""
        sample = self._sample()
        path, level, inside = self._chance.choice(
            (
                (f"/studies?StudyInstanceUID={sample.study_uid}", "study", "study"),
                (f"{path_of(sample, 'study')}/series", "series", "study"),
                (f"{path_of(sample, 'study')}/instances", "instance", "study"),
                (f"{path_of(sample, 'series')}/instances", "instance", "series"),
                (f"/series?StudyInstanceUID={sample.study_uid}", "series", "study"),
                (f"/instances?StudyInstanceUID={sample.study_uid}", "instance", "study"),
            )
        )
        found = uids(self._holdings.of(sample, inside), level)
        return Planned(f"search, {level} level", path, JSON, Matches(level, found))

    def _search_all(self) -> Planned:
        """Search for all studies, series or instances."""
        level, path = self._chance.choice((("study", "/studies"), ("series", "/series"), ("instance", "/instances")))
        return Planned(
            f"search for all, {level} level", path, JSON, Matches(level, uids(self._holdings.samples, level))
        )

    def _search_page(self) -> Planned:
        """Search for studies or instances with limit and offset."""
        sample = self._sample()
        level, path, samples = self._chance.choice(
            (
                ("study", "/studies", list(self._holdings.samples)),
                ("instance", f"{path_of(sample, 'series')}/instances", self._holdings.of(sample, "series")),
            )
        )
        found = uids(samples, level)
        limit, offset = self._chance.randint(1, 12), self._chance.choice((0, 0, 3))
        count = max(0, min(limit, len(found) - offset))
        return Planned("search, page", f"{path}?limit={limit}&offset={offset}", JSON, Matches(level, found, count))

    def _search_patient(self) -> Planned:
        """Search for the studies of a patient; the proxy puts a wildcard behind it."""
        patient = self._sample().patient_id
        found = [sample for sample in self._holdings.samples if sample.patient_id.startswith(patient)]
        path = f"/studies?PatientID={patient}"
        return Planned("search, patient", path, JSON, Matches("study", uids(found, "study")))

    # --- retrievals ------------------------------------------------------------------------------------------

    def _multipart(self, level: str) -> Planned:
        sample = self._sample()
        judge = Files(self._holdings.of(sample, level))
        return Planned(f"retrieve, {level}", path_of(sample, level), MULTIPART, judge, study=sample.study_uid)

    def _study(self) -> Planned:
        return self._multipart("study")

    def _series(self) -> Planned:
        return self._multipart("series")

    def _instance(self) -> Planned:
        return self._multipart("instance")

    def _raw_instance(self) -> Planned:
        """Retrieve an instance as a file, in either way of asking for that."""
        sample = self._sample()
        query, accept = self._chance.choice((("?multipart=false", "*/*"), ("", RAW)))
        path = path_of(sample, "instance") + query
        return Planned("retrieve, file", path, accept, File(sample), study=sample.study_uid)

    def _any_retrieval(self) -> Planned:
        return self._chance.choice((self._study, self._series, self._raw_instance))()

    def _slow(self) -> Planned:
        return replace(self._any_retrieval(), kind="retrieve, slow client", pause=self._chance.choice(_PAUSES))

    def _leaving(self) -> Planned:
        leaves_after = self._chance.choice(_LEAVES_AFTER)
        return replace(self._any_retrieval(), kind="client leaves", leaves_after=leaves_after)

    # --- what cannot be answered -----------------------------------------------------------------------------

    def _unknown(self) -> Planned:
        """Retrieve what nobody has: a study, or a series or an instance of a study that is there."""
        path = path_of(self._sample(), self._chance.choice(list(UID_OF_LEVEL)))
        parent = path.rpartition("/")[0]
        return Planned("retrieve, unknown", f"{parent}/{UNKNOWN}", MULTIPART, Refusal(), status=404)

    def _malformed(self) -> Planned:
        path = self._chance.choice(
            ("/studies?limit=-1", "/studies?NoSuchAttribute=1", "/studies/1.2.x", "/series?limit=a")
        )
        return Planned("malformed", path, JSON, Refusal(), status=400)
