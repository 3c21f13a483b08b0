"""What is known of studies: which archives have one, its availability and its patient; and who tells that."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from proxy.archive.query import known as known_module
from proxy.archive.query import search as query
from proxy.archive.query.known import KEEP_SECONDS, Known
from proxy.archive.query.search import Search
from proxy.dataset.levels import Level
from tests.corpus import uid
from tests.proxy.clock import Clock
from tests.proxy.finding import Answers, giving, study
from tests.proxy.test_query import archive_of, everything

SERIES_OF = {Level.STUDY: uid(9, 1)}


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock(0.0)


@pytest.fixture
def known(clock: Clock) -> Known:
    """An empty memory."""
    return Known(clock)


def test_what_was_never_learned_is_not_known(known: Known) -> None:
    assert known.archives("1.2") == ()
    assert known.availability("1.2", "ONE") is None
    assert known.patient_id("1.2", "ONE") is None
    known.forget("1.2", "ONE")


def test_each_archive_has_its_own(known: Known) -> None:
    known.learn("1.2", "ONE", availability="ONLINE", patient_id="A")
    known.learn("1.2", "TWO", availability="NEARLINE", patient_id="B")
    assert known.archives("1.2") == ("ONE", "TWO")
    assert (known.availability("1.2", "TWO"), known.patient_id("1.2", "TWO")) == ("NEARLINE", "B")
    known.forget("1.2", "ONE")
    assert known.archives("1.2") == ("TWO",)
    assert known.patient_id("1.2", "ONE") is None
    known.forget("1.2", "TWO")
    assert len(known) == 0


def test_what_an_answer_does_not_show_is_still_known_from_the_one_before(known: Known, clock: Clock) -> None:
    """But no longer than that one holds: what is shown again and again only in part must not live for ever."""
    known.learn("1.2", "ONE", availability="NEARLINE", patient_id="A")
    for _ in range(3):
        clock.now += KEEP_SECONDS / 4
        known.learn("1.2", "ONE", availability="")
    assert (known.availability("1.2", "ONE"), known.patient_id("1.2", "ONE")) == ("NEARLINE", "A")
    clock.now += KEEP_SECONDS / 4
    assert known.archives("1.2") == ()


def test_an_answer_that_shows_nothing_more_holds_anew(known: Known, clock: Clock) -> None:
    for _ in range(5):
        known.learn("1.2", "ONE", availability="", patient_id="A")
        clock.now += KEEP_SECONDS - 1
        assert known.archives("1.2") == ("ONE",)


def test_an_answer_holds_for_an_hour(known: Known, clock: Clock) -> None:
    known.learn("1.2", "ONE", patient_id="A")
    clock.now = KEEP_SECONDS - 1
    known.learn("1.2", "TWO")
    assert known.archives("1.2") == ("ONE", "TWO")
    clock.now = KEEP_SECONDS
    assert known.archives("1.2") == ("TWO",)
    assert known.patient_id("1.2", "ONE") is None


def test_the_studies_not_used_for_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch, known: Known) -> None:
    monkeypatch.setattr(known_module, "MAX_STUDIES", 3)
    for number in range(3):
        known.learn(f"1.{number}", "ONE", patient_id="A")
    assert known.patient_id("1.0", "ONE") == "A"  # it is used
    known.learn("1.3", "ONE")
    assert len(known) == 3
    assert [known.archives(f"1.{number}") for number in range(4)] == [("ONE",), (), ("ONE",), ("ONE",)]


# --- what teaches it -----------------------------------------------------------------------------------------


async def test_a_search_teaches_what_every_archive_told(known: Known) -> None:
    """Also of those whose answer is dropped, because another has the study too."""
    first = study(1, PatientID="A", InstanceAvailability="ONLINE")
    second = study(1, PatientID="B", InstanceAvailability="NEARLINE")
    async with archive_of(giving(first)) as (_, one), archive_of(giving(second)) as (_, two):
        two.peer = two.peer.model_copy(update={"name": "TWO"})
        assert len(await everything(query.search([one, two], Search(Level.STUDY), known))) == 1
    assert set(known.archives(uid(9, 1))) == {"SCRIPTED", "TWO"}
    assert known.patient_id(uid(9, 1), "TWO") == "B"
    assert known.availability(uid(9, 1), "TWO") == "NEARLINE"


async def below(keys: Dataset) -> Answers:
    """A study of one series, without any attributes."""
    answer = Dataset()
    answer.StudyInstanceUID = keys.StudyInstanceUID or uid(9, 1)
    if keys.QueryRetrieveLevel == "SERIES":
        answer.SeriesInstanceUID = "1.3"
    yield answer


@pytest.mark.parametrize("search", [Search(Level.SERIES, SERIES_OF), Search(Level.SERIES)])
async def test_a_search_below_the_study_teaches_as_well(known: Known, search: Search) -> None:
    """One that walks over studies, and one below a study that the client knows."""
    async with archive_of(below) as (_, archive):
        assert len(await everything(query.search([archive], search, known))) == 1
    assert known.archives(uid(9, 1)) == ("SCRIPTED",)
    assert known.patient_id(uid(9, 1), "SCRIPTED") is None


async def test_nothing_found_teaches_nothing(known: Known) -> None:
    async with archive_of(giving()) as (_, archive):
        assert await everything(query.search([archive], Search(Level.SERIES, SERIES_OF), known)) == []
    assert len(known) == 0
