"""ModalitiesInStudy (0008,0061) on archives that do not return it, refuse it or ignore it: the series decide."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from proxy.archive.errors import ArchiveFailedError, TooBroadError
from proxy.archive.peers import habits
from proxy.archive.peers.archive import Archive
from proxy.archive.query import cfind
from proxy.archive.query import search as query
from proxy.archive.query.search import Results, Search
from proxy.dataset.levels import MODALITIES_IN_STUDY, Level
from proxy.dataset.values import find, text_of
from tests.proxy.finding import Answers, Scripted, failing
from tests.proxy.query_archives import Entry, Shelf
from tests.proxy.test_query import archive_of, everything

KEY = (MODALITIES_IN_STUDY,)
PATIENT_NAME = (0x00100010,)
SHELF = [
    Entry(1, modalities=("CT", "SR")),
    Entry(2, modalities=("MR",)),
    Entry(3, modalities=("CT",)),
    Entry(4, modalities=("PT", "CT", "CT")),
    Entry(5, modalities=("US",)),
]
IGNORES = {"ignores": ["ModalitiesInStudy"], "hides": ["ModalitiesInStudy"]}


def wanting(modalities: str, level: Level = Level.STUDY) -> Search:
    """Return a search for studies (or what is in them) with these modalities."""
    return Search(level, {}, {KEY: modalities}, [KEY, PATIENT_NAME])


async def found_by(archive: Archive, wanted: Search) -> tuple[dict[str, str], Results]:
    """Return the modalities that each study found shows, by the last number of its UID."""
    results = query.search([archive], wanted)
    shown = {}
    for found in await everything(results):
        element = find(found.elements[Level.STUDY], MODALITIES_IN_STUDY)
        shown[found.found_uids[Level.STUDY].rpartition(".")[2]] = text_of(element) if element is not None else ""
    return shown, results


def levels(archive: Scripted) -> list[str]:
    """Return the level of each search."""
    return [str(keys.QueryRetrieveLevel) for keys in archive.searches]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("CT", {"1": "CT\\SR", "3": "CT", "4": "PT\\CT"}),
        ("MR", {"2": "MR"}),
        ("MR\\US", {"2": "MR", "5": "US"}),
        ("P*", {"4": "PT\\CT"}),
        ("XA", {}),
    ],
)
@pytest.mark.parametrize("faults", [IGNORES, {"hides": ["ModalitiesInStudy"]}, {"refuses": ["ModalitiesInStudy"]}])
async def test_the_series_decide_where_studies_do_not_show_it(
    wanted: str, expected: dict[str, str], faults: dict[str, list[str]]
) -> None:
    """The attribute is shown as the series have it, and nothing is left for the client to be warned of."""
    if "refuses" in faults:
        faults = {**faults, "hides": ["ModalitiesInStudy"]}
    async with archive_of(Shelf(SHELF, **faults)) as (_, archive):
        shown, results = await found_by(archive, wanting(wanted))
    assert shown == expected
    assert results.unchecked == set()


async def test_an_archive_that_shows_it_is_not_asked_for_series() -> None:
    """It may ignore the key all the same."""
    async with archive_of(Shelf(SHELF, ignores=["ModalitiesInStudy"])) as (there, archive):
        shown, _ = await found_by(archive, wanting("CT"))
        assert levels(there) == ["STUDY"]
    assert shown == {"1": "CT\\SR", "3": "CT", "4": "PT\\CT\\CT"}


async def test_each_study_costs_one_search_whatever_the_number_of_values() -> None:
    """Each value is a C-FIND of its own, which an archive that ignores the key answers with the same studies."""
    async with archive_of(Shelf(SHELF, **IGNORES)) as (there, archive):
        await found_by(archive, wanting("CT\\MR\\US"))
        assert levels(there) == ["STUDY"] * 3 + ["SERIES"] * len(SHELF)


async def test_the_studies_are_all_there_before_series_are_asked_for() -> None:
    """With a single association, to hold one and want another would never end."""
    async with archive_of(Shelf(SHELF, **IGNORES)) as (there, archive):
        await found_by(archive, wanting("CT"))
        assert levels(there) == ["STUDY"] + ["SERIES"] * len(SHELF)
        assert there.most == 1


async def test_leaving_early_spares_the_other_series() -> None:
    async with archive_of(Shelf(SHELF, **IGNORES)) as (there, archive):
        results = query.search([archive], wanting("CT"))
        assert (await anext(results.answers)).found_uids[Level.STUDY] == SHELF[0].study_uid
        await results.answers.aclose()
        assert levels(there) == ["STUDY", "SERIES"]


async def test_series_below_studies_that_were_decided() -> None:
    """A search for series shows the attribute of their study too."""
    async with archive_of(Shelf(SHELF, **IGNORES)) as (_, archive):
        shown, _ = await found_by(archive, wanting("PT", Level.SERIES))
    assert shown == {"4": "PT\\CT"}


async def test_studies_whose_series_show_nothing_are_believed_and_noted() -> None:
    async with archive_of(Shelf(SHELF, hides=["ModalitiesInStudy", "Modality"])) as (_, archive):
        shown, results = await found_by(archive, wanting("MR"))
    assert shown == {"2": ""}
    assert results.unchecked == {("SCRIPTED", MODALITIES_IN_STUDY)}


async def test_a_bound_on_the_studies_to_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfind, "MAX_PARENTS", 3)
    async with archive_of(Shelf(SHELF, **IGNORES)) as (there, archive):
        with pytest.raises(TooBroadError, match="more than 3"):
            await found_by(archive, wanting("CT"))
        assert levels(there) == ["STUDY"]


# --- archives that refuse it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0xC001])
@pytest.mark.parametrize("matches", [{KEY: "CT"}, {}])
async def test_an_archive_that_refuses_the_key_is_asked_without_it(status: int, matches: dict[tuple[int], str]) -> None:
    """Also where it was only to be returned; and that is remembered for a while."""
    shelf = Shelf(SHELF, refuses=["ModalitiesInStudy"], refusal=status, hides=["ModalitiesInStudy"])
    wanted = Search(Level.STUDY, {}, matches, [KEY, PATIENT_NAME])
    async with archive_of(shelf) as (there, archive):
        for asked_with in (1, 0, 0):
            there.searches.clear()
            shown, _ = await found_by(archive, wanted)
            assert set(shown) == ({"1", "3", "4"} if matches else {"1", "2", "3", "4", "5"})
            assert sum("ModalitiesInStudy" in keys for keys in there.searches) == asked_with
            assert levels(there).count("SERIES") == (len(SHELF) if matches else 0)


async def test_after_a_while_the_key_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(SHELF, refuses=["ModalitiesInStudy"])
    async with archive_of(shelf) as (there, archive):
        await found_by(archive, wanting("CT"))
        shelf.refuses = ()
        monkeypatch.setattr(habits, "ASK_AGAIN_SECONDS", 0.0)
        there.searches.clear()
        await found_by(archive, wanting("CT"))
        assert levels(there) == ["STUDY"]


async def test_a_failure_for_another_reason_stays_one_and_is_not_held_against_the_key() -> None:
    async with archive_of(failing(0xA900)) as (there, archive):
        with pytest.raises(ArchiveFailedError, match="0xA900"):
            await found_by(archive, wanting("CT"))
        assert ["ModalitiesInStudy" in keys for keys in there.searches] == [True, False]
        assert not archive.habits.refuses(MODALITIES_IN_STUDY)


@pytest.mark.parametrize("status", [0x0122, 0x0110])
async def test_other_failures_are_not_asked_for_twice(status: int) -> None:
    async with archive_of(failing(status)) as (there, archive):
        with pytest.raises(ArchiveFailedError):
            await found_by(archive, wanting("CT"))
        assert len(there.searches) == 1


async def test_a_failure_after_answers_is_not_begun_again() -> None:
    """What was given cannot be taken back."""

    async def script(keys: Dataset) -> Answers:
        async for answer in Shelf(SHELF[:1])(keys):
            yield answer
        async for answer in failing(0xA900)(keys):
            yield answer

    async with archive_of(script) as (there, archive):
        with pytest.raises(ArchiveFailedError, match="0xA900"):
            await found_by(archive, wanting("CT"))
        assert len(there.searches) == 1
