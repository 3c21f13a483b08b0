"""Archives that cut their answer lists: found out, completed by study date, remembered, and said where it cannot be.

The archives are in memory (`Shelf`), so that each C-FIND that they get can be counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import date

import pytest

from proxy.archive.errors import ArchiveFailedError
from proxy.archive.peers.archive import Archive
from proxy.archive.query import caps, lists
from proxy.archive.query import search as query
from proxy.archive.query.search import Results, Search
from proxy.dataset.levels import Level
from tests.proxy.finding import Scripted, failing, study
from tests.proxy.query_archives import Entry, Shelf, entries
from tests.proxy.test_query import archive_of, everything

STUDY_DATE, PATIENT_ID = (0x00080020,), (0x00100020,)
STUDIES = Search(Level.STUDY, returned=[STUDY_DATE, PATIENT_ID])
CAP = 10


@pytest.fixture(autouse=True)
def ten_is_suspicious(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small numbers do for the tests."""
    monkeypatch.setattr(caps, "SUSPICIOUS", frozenset({CAP, 20}))


def asked_dates(archive: Scripted) -> list[str]:
    """Return the key for the study date of each C-FIND."""
    return [str(keys.get("StudyDate", "") or "") for keys in archive.searches]


async def search(archive: Archive, wanted: Search = STUDIES) -> tuple[list[str], Results]:
    """Return the study UIDs that a search finds, and its results."""
    results = query.search([archive], wanted)
    return [found.found_uids[Level.STUDY] for found in await everything(results)], results


def uids_of(studies: Sequence[Entry]) -> set[str]:
    """Return the Study Instance UIDs."""
    return {entry.study_uid for entry in studies}


def on(key: str) -> Search:
    """Return a search for the studies of these dates."""
    return Search(Level.STUDY, {}, {STUDY_DATE: key}, [PATIENT_ID])


# --- lists that are cut silently -----------------------------------------------------------------------------


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize(("count", "per_day"), [(11, 1), (25, 1), (90, 4), (60, 9)])
async def test_a_cut_list_is_completed_by_study_date(count: int, per_day: int, newest_first: bool) -> None:
    """Whichever the archive leaves out; each study is given once, what came first stays first."""
    shelf = Shelf(entries(count, per_day=per_day), cap=CAP, newest_first=newest_first)
    async with archive_of(shelf) as (there, archive):
        found, results = await search(archive)
        assert len(there.searches) <= 1 + lists.MAX_PARTS
    assert len(found) == count
    assert set(found) == uids_of(shelf.entries)
    assert (results.cut, results.remarks.undated) == (set(), {"SCRIPTED"})


async def test_without_dates_in_the_answers_the_time_is_halved() -> None:
    """The answers need not show dates: halving goes by the calendar then."""
    shelf = Shelf(entries(25, first=date(1990, 5, 1), per_day=1), cap=CAP, hides=["StudyDate"])
    async with archive_of(shelf) as (_, archive):
        found, results = await search(archive)
    assert set(found) == uids_of(shelf.entries)
    assert (results.cut, results.unchecked) == (set(), set())


async def test_a_range_of_the_client_is_split_and_kept_to() -> None:
    """Studies without a date cannot match a range, so none can be missing."""
    shelf = Shelf(entries(60), cap=CAP)
    async with archive_of(shelf) as (there, archive):
        found, results = await search(archive, on("20240110-20240209"))
        assert all("20240110" <= part <= "20240209-20240209" for part in asked_dates(there))
    assert set(found) == uids_of(shelf.entries[9:40])
    assert (results.cut, results.remarks.undated) == (set(), set())


async def test_an_honest_number_costs_once() -> None:
    """Two C-FINDs more, for the two halves, and from then on none."""
    async with archive_of(Shelf(entries(CAP))) as (there, archive):
        for searches in (3, 4, 5):
            found, results = await search(archive)
            assert len(found) == CAP
            assert (results.cut, results.remarks.undated) == (set(), set())
            assert len(there.searches) == searches


async def test_a_proven_cap_is_remembered_whatever_the_number() -> None:
    """Lists of that length are suspicious from then on; shorter ones are not."""
    shelf = Shelf(entries(25), cap=CAP)
    async with archive_of(shelf) as (there, archive):
        await search(archive)
        assert archive.habits.caps.cap == CAP
        there.searches.clear()
        await search(archive, on("20240101-20240109"))
        assert len(there.searches) == 1
        shelf.cap = 20  # the administrator has raised it
        found, _ = await search(archive)
        assert set(found) == uids_of(shelf.entries)
        assert archive.habits.caps.cap == 20


async def test_a_number_below_what_was_once_given_is_no_cap() -> None:
    shelf = Shelf(entries(25))
    async with archive_of(shelf) as (there, archive):
        await search(archive)
        shelf.entries = entries(CAP)
        await search(archive)
        assert len(there.searches) == 2


async def test_leaving_early_costs_nothing() -> None:
    """A page that is full before the end of the list needs no more than the list."""
    async with archive_of(Shelf(entries(25), cap=CAP)) as (there, archive):
        async with contextlib.aclosing(query.search([archive], STUDIES).answers) as answers:
            for _ in range(CAP):
                await anext(answers)
        assert len(there.searches) == 1


async def test_the_list_has_the_same_order_each_time() -> None:
    """So that pages, each a search of its own, fit together."""
    async with archive_of(Shelf(entries(60, per_day=3), cap=CAP)) as (_, archive):
        orders = [(await search(archive))[0] for _ in range(3)]
    assert orders[0] == orders[1] == orders[2]


async def test_the_studies_to_look_into_are_completed_too() -> None:
    """A search for series without a study has to find all studies first."""
    shelf = Shelf(entries(25), cap=CAP)
    async with archive_of(shelf) as (_, archive):
        results = query.search([archive], Search(Level.SERIES, returned=[STUDY_DATE]))
        found = {each.found_uids[Level.STUDY] for each in await everything(results)}
    assert found == uids_of(shelf.entries)
    assert results.remarks.undated == {"SCRIPTED"}


# --- where a list cannot be completed ------------------------------------------------------------------------


async def test_a_single_day_cannot_be_split() -> None:
    async with archive_of(Shelf(entries(25, per_day=25), cap=CAP)) as (there, archive):
        found, results = await search(archive, on("20240101"))
        assert len(there.searches) == 1
    assert len(found) == CAP
    assert (results.cut, results.remarks.short) == ({"SCRIPTED"}, set())


async def test_a_day_that_alone_exceeds_the_cap_leaves_the_list_cut() -> None:
    """The other days are complete all the same."""
    crowded = [Entry(number, day="20240301") for number in range(100, 112)]
    shelf = Shelf([*entries(25), *crowded], cap=CAP)
    async with archive_of(shelf) as (_, archive):
        found, results = await search(archive)
    assert uids_of(shelf.entries[:25]) <= set(found)
    assert len(found) == 25 + CAP
    assert results.cut == results.remarks.short == {"SCRIPTED"}


async def test_splitting_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MAX_PARTS", 6)
    async with archive_of(Shelf(entries(200), cap=CAP)) as (there, archive):
        found, results = await search(archive)
        assert len(there.searches) == 7
    assert CAP < len(found) < 200
    assert results.cut == {"SCRIPTED"}


async def test_an_archive_that_ignores_dates_is_not_asked_for_ever() -> None:
    """Its first answer of another date shows it; the answers are given once, and the list may be cut."""
    async with archive_of(Shelf(entries(25), cap=CAP, ignores=["StudyDate"])) as (there, archive):
        found, results = await search(archive)
        assert len(there.searches) <= 3
    assert len(found) == len(set(found)) == CAP
    assert results.cut == {"SCRIPTED"}


@pytest.mark.parametrize(("count", "cut"), [(CAP, {"SCRIPTED"}), (CAP + 1, set())])
async def test_below_the_study_a_suspicious_list_may_be_cut(count: int, cut: set[str]) -> None:
    """Series and instances have no key to split by that archives must match as a range."""
    shelf = Shelf([Entry(1, modalities=("CT",) * count)])
    async with archive_of(shelf) as (there, archive):
        _, results = await search(archive, Search(Level.SERIES, {Level.STUDY: shelf.entries[0].study_uid}))
        assert len(there.searches) == 1
    assert results.cut == cut


async def test_what_is_known_before_the_end_of_a_list() -> None:
    """That the archive has a cap, where a list that exceeds it cannot be completed or may lack studies without date."""
    shelf = Shelf(entries(25), cap=CAP)
    below = {Level.STUDY: shelf.entries[0].study_uid}
    async with archive_of(shelf) as (_, archive):
        assert (await search(archive))[1].remarks.limited == {}
        for wanted in (STUDIES, Search(Level.SERIES, below), Search(Level.IMAGE, below)):
            assert (await search(archive, wanted))[1].remarks.limited == {"SCRIPTED": CAP}
        assert (await search(archive, on("20240101-20240131")))[1].remarks.limited == {}


# --- lists that end with a failure ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "comment"),
    [(0xA700, None), (0xFE00, None), (0xC001, None), (0xC001, "too many matches"), (0x0110, "Limit exceeded")],
)
async def test_a_list_that_ends_with_a_failure_is_completed_by_study_date(status: int, comment: str | None) -> None:
    """Or by Cancel, though nobody has cancelled."""
    shelf = Shelf(entries(25), cap=CAP + 1, status=status, comment=comment)
    async with archive_of(shelf) as (_, archive):
        found, results = await search(archive)
    assert len(found) == 25
    assert set(found) == uids_of(shelf.entries)
    assert (results.cut, results.remarks.undated) == (set(), {"SCRIPTED"})


@pytest.mark.parametrize(("status", "comment"), [(0xA700, None), (0xC001, "Query too broad")])
async def test_an_archive_that_gives_nothing_of_what_is_too_much(status: int, comment: str | None) -> None:
    """It refuses a list that would be too long as a whole."""
    shelf = Shelf(entries(25), cap=0, status=status, comment=comment)

    def begun(keys: object) -> None:
        shelf.cap = None if sum(1 for _ in shelf._answers(keys)) <= CAP else 0  # type: ignore[arg-type]

    shelf.begun = begun
    async with archive_of(shelf) as (_, archive):
        found, results = await search(archive)
    assert set(found) == uids_of(shelf.entries)
    assert results.cut == set()


async def test_a_day_that_fails_by_itself_leaves_the_list_cut() -> None:
    shelf = Shelf([*entries(25), *(Entry(number, day="20240301") for number in range(100, 112))], CAP, 0xA700)
    async with archive_of(shelf) as (_, archive):
        found, results = await search(archive)
    assert len(found) == 25 + CAP
    assert results.cut == results.remarks.short == {"SCRIPTED"}


@pytest.mark.parametrize("answers", [0, 3])
async def test_a_failure_that_no_part_is_free_of_stays_a_failure(answers: int) -> None:
    """The archive fails whatever it is asked, so that what it gave must not look whole; and soon."""
    async with archive_of(failing(0xA700, *map(study, range(answers)))) as (there, archive):
        with pytest.raises(ArchiveFailedError, match="0xA700"):
            await search(archive)
        assert len(there.searches) <= 20


async def test_nothing_but_failures_and_empty_parts_is_a_failure() -> None:
    """An empty list would say that there is nothing, where there is too much of it."""
    async with archive_of(Shelf(entries(25, per_day=25), cap=0, status=0xA700)) as (_, archive):
        with pytest.raises(ArchiveFailedError, match="0xA700"):
            await search(archive)


@pytest.mark.parametrize("status", [0xA700, 0xFE00])
async def test_below_the_study_a_failure_stays_a_failure(status: int) -> None:
    """There is no key to split by, and a part of a study must not be taken for all of it."""
    shelf = Shelf([Entry(1, modalities=("CT",) * 5)], cap=3, status=status)
    async with archive_of(shelf) as (there, archive):
        with pytest.raises(ArchiveFailedError, match=f"0x{status:04X}"):
            await search(archive, Search(Level.SERIES, {Level.STUDY: shelf.entries[0].study_uid}))
        assert len(there.searches) == 1


@pytest.mark.parametrize("status", [0xA900, 0x0122, 0x0110])
async def test_other_failures_are_no_reason_to_split(status: int) -> None:
    async with archive_of(Shelf(entries(25), cap=3, status=status)) as (there, archive):
        with pytest.raises(ArchiveFailedError):
            await search(archive)
        assert len(there.searches) == 1
