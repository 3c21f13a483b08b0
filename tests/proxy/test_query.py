"""`proxy.archive.query` by itself: which C-FINDs a search becomes, and what is made of their answers (PS3.4 C.4.1)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest
from pydicom.dataset import Dataset

from proxy.archive.errors import ArchiveFailedError, TooBroadError
from proxy.archive.peers import habits
from proxy.archive.peers.archive import Archive
from proxy.archive.query import cfind, merge, plan
from proxy.archive.query import search as query
from proxy.archive.query.search import Found, Path, Search
from proxy.config.schema import Peer
from proxy.dataset.levels import Level
from tests.corpus import uid
from tests.peers.process import HOST, free_port
from tests.proxy.finding import Answers, Script, Scripted, failing, giving, many, scripted, study

STUDY, SERIES, IMAGE = Level.STUDY, Level.SERIES, Level.IMAGE
STUDY_UID, SERIES_UID, INSTANCE_UID = (0x0020000D,), (0x0020000E,), (0x00080018,)
PATIENT_NAME, MODALITIES, MODALITY, SERIES_NUMBER, INSTANCE_NUMBER, ROWS = (
    (0x00100010,),
    (0x00080061,),
    (0x00080060,),
    (0x00200011,),
    (0x00200013,),
    (0x00280010,),
)
AVAILABILITY = 0x00080056


@contextlib.asynccontextmanager
async def archive_of(script: Script) -> AsyncIterator[tuple[Scripted, Archive]]:
    """Run a scripted archive, and give it as `proxy.archive` sees it."""
    async with scripted(script) as there:
        archive = Archive(peer(there.address.port))
        try:
            yield there, archive
        finally:
            await archive.close(1.0)


def peer(port: int, aet: str = "SCRIPTED") -> Peer:
    """Return the configuration of a peer on this machine."""
    return Peer.model_validate({"aet": aet, "ip": HOST, "port": port, "name": aet, "localAet": "PROXY"})


async def run(archive: Archive, search: Search) -> list[Found]:
    """Return all that a search finds."""
    return await everything(query.search([archive], search))


async def everything(results: query.Results) -> list[Found]:
    """Return all answers."""
    async with contextlib.aclosing(results.answers) as answers:
        return [found async for found in answers]


def one_of_each() -> Script:
    """Return a script for an archive with one study of one series of one instance."""
    unique = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}

    async def script(keys: Dataset) -> Answers:
        answer = Dataset()
        keyword = unique[keys.QueryRetrieveLevel]
        setattr(answer, keyword, keys[keyword].value or uid(9, len(keyword)))
        yield answer

    return script


def asked(searches: Sequence[Dataset]) -> list[tuple[str, set[str]]]:
    """Return the level of each search with the keywords of its keys."""
    own = {"QueryRetrieveLevel", "SpecificCharacterSet"}
    return [(each.QueryRetrieveLevel, {element.keyword for element in each} - own) for each in searches]


# --- which C-FINDs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (Search(STUDY), [("STUDY", {"StudyInstanceUID"})]),
        (Search(SERIES, {STUDY: "1.2"}), [("SERIES", {"StudyInstanceUID", "SeriesInstanceUID"})]),
        # A fixed parent is asked for only when its attributes are wanted, or matched.
        (
            Search(SERIES, {STUDY: "1.2"}, returned=[PATIENT_NAME, STUDY_UID]),
            [("STUDY", {"StudyInstanceUID", "PatientName"}), ("SERIES", {"StudyInstanceUID", "SeriesInstanceUID"})],
        ),
        (
            Search(IMAGE, {STUDY: "1.2", SERIES: "1.3"}, {MODALITY: "CT"}),
            [
                ("SERIES", {"StudyInstanceUID", "SeriesInstanceUID", "Modality"}),
                ("IMAGE", {"StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"}),
            ],
        ),
        # Open parents are walked, each level with its own keys and the UIDs above.
        (
            Search(IMAGE, {}, {PATIENT_NAME: "A", SERIES_NUMBER: "1", INSTANCE_NUMBER: "2"}, [ROWS, MODALITY]),
            [
                ("STUDY", {"StudyInstanceUID", "PatientName"}),
                ("SERIES", {"StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality"}),
                ("IMAGE", {"StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "InstanceNumber", "Rows"}),
            ],
        ),
        # What belongs to no level is asked for at the last one.
        (
            Search(SERIES, {}, returned=[(0x00080054,)]),
            [
                ("STUDY", {"StudyInstanceUID"}),
                ("SERIES", {"StudyInstanceUID", "SeriesInstanceUID", "RetrieveAETitle"}),
            ],
        ),
        # What is below the level is not asked for.
        (Search(STUDY, {}, {}, [MODALITY, ROWS, PATIENT_NAME]), [("STUDY", {"StudyInstanceUID", "PatientName"})]),
    ],
)
async def test_the_searches_that_an_archive_gets(search: Search, expected: list[tuple[str, set[str]]]) -> None:
    async with archive_of(one_of_each()) as (there, archive):
        await run(archive, search)
        assert asked(there.searches) == expected


async def test_the_walk_goes_below_what_was_found() -> None:
    async with archive_of(one_of_each()) as (there, archive):
        (found,) = await run(archive, Search(IMAGE, {}, {PATIENT_NAME: "A"}))
    last = there.searches[-1]
    assert (last.StudyInstanceUID, last.SeriesInstanceUID) == (uid(9, 16), uid(9, 17))
    assert found.found_uids == {STUDY: uid(9, 16), SERIES: uid(9, 17), IMAGE: uid(9, 14)}
    assert set(found.elements) == {STUDY, SERIES, IMAGE}


async def test_nothing_above_means_nothing_below() -> None:
    async with archive_of(giving()) as (there, archive):
        assert await run(archive, Search(IMAGE)) == []
        assert len(there.searches) == 1


async def test_each_combination_of_listed_values_is_a_search() -> None:
    matches: Mapping[Path, str] = {MODALITIES: "CT\\MR", PATIENT_NAME: "A\\B\\A", STUDY_UID: "1.2\\1.3"}
    async with archive_of(giving()) as (there, archive):
        await run(archive, Search(STUDY, {}, matches))
    pairs = [(keys.ModalitiesInStudy, keys.PatientName) for keys in there.searches]
    assert pairs == [("CT", "A"), ("CT", "B"), ("MR", "A"), ("MR", "B")]
    assert all(list(keys.StudyInstanceUID) == ["1.2", "1.3"] for keys in there.searches)


def test_too_many_combinations_are_refused_before_any_search() -> None:
    many_values = "\\".join(map(str, range(plan.MAX_VALUE_COMBINATIONS + 1)))
    with pytest.raises(ValueError, match="combinations"):
        query.check(Search(STUDY, {}, {MODALITIES: many_values}))
    query.check(Search(STUDY, {}, {MODALITIES: many_values.rpartition("\\")[0]}))
    query.check(Search(STUDY, {}, {STUDY_UID: "\\".join(["1.2"] * 1000)}))


def test_values_that_no_identifier_can_hold_are_refused_before_any_search() -> None:
    with pytest.raises(ValueError, match=r"\(0010,0040\)") as error:
        query.check(Search(STUDY, {}, {(0x00100040,): "weiß"}))
    assert "wei" not in str(error.value)


# --- the answers ---------------------------------------------------------------------------------------------


async def test_answers_of_no_use_are_left_out() -> None:
    """One without its UID, and one of another UID than was asked for; repeats count once."""
    answers = giving(study(1), Dataset(), study(1), study(2), study(3))
    async with archive_of(answers) as (_, archive):
        found = await run(archive, Search(STUDY))
        assert [each.found_uids[STUDY] for each in found] == [uid(9, 1), uid(9, 2), uid(9, 3)]
        found = await run(archive, Search(STUDY, {}, {STUDY_UID: f"{uid(9, 3)}\\{uid(9, 1)}"}))
        assert [each.found_uids[STUDY] for each in found] == [uid(9, 1), uid(9, 3)]
        found = await run(archive, Search(STUDY, {STUDY: uid(9, 2)}))
        assert [each.found_uids[STUDY] for each in found] == [uid(9, 2)]


async def test_a_bound_on_what_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfind, "MAX_PARENTS", 10)
    async with archive_of(many()) as (there, archive):
        with pytest.raises(TooBroadError, match="more than 10"):
            await run(archive, Search(SERIES))
        await asyncio.wait_for(there.closed.wait(), 1)
        assert archive.open_associations == 1  # idle, to be used again


async def test_leaving_early_cancels_and_keeps_the_association() -> None:
    async with archive_of(many()) as (there, archive):
        async with contextlib.aclosing(query.search([archive], Search(STUDY)).answers) as answers:
            async for _ in answers:
                break
        assert there.closed.is_set()
        assert archive.open_associations == 1
        async with contextlib.aclosing(query.search([archive], Search(STUDY)).answers) as answers:
            assert await anext(answers)
        assert there.associations == 1


async def test_a_walk_that_is_left_asks_no_more() -> None:
    async with archive_of(many(100)) as (there, archive):
        async with contextlib.aclosing(query.search([archive], Search(SERIES)).answers) as answers:
            with contextlib.suppress(StopAsyncIteration, ArchiveFailedError):
                await anext(answers)
        searches = len(there.searches)
        await asyncio.sleep(0.05)
        assert len(there.searches) == searches


# --- several archives ----------------------------------------------------------------------------------------


async def test_failures_are_known_with_the_first_answer() -> None:
    async with archive_of(giving(study(1), study(2))) as (_, archive):
        down = Archive(peer(free_port(), "DOWN"))
        results = query.search([down, archive], Search(STUDY))
        async with contextlib.aclosing(results.answers) as answers:
            assert (await anext(answers)).archive is archive
            assert [failure.archive for failure in results.failures] == ["DOWN"]
            assert len([each async for each in answers]) == 1


async def test_failures_are_known_at_the_end_of_nothing() -> None:
    async with archive_of(giving()) as (_, archive):
        results = query.search([archive, Archive(peer(free_port(), "DOWN"))], Search(STUDY))
        assert await everything(results) == []
        assert [failure.archive for failure in results.failures] == ["DOWN"]


async def test_no_answer_from_any_is_a_failure() -> None:
    archives = [Archive(peer(free_port(), name)) for name in ("ONE", "TWO")]
    with pytest.raises(ArchiveFailedError, match="ONE"):
        await everything(query.search(archives, Search(STUDY)))


async def test_an_archive_that_fails_late_fails_the_search() -> None:
    async with archive_of(giving(study(1))) as (_, one), archive_of(failing(0xA700, study(2))) as (_, two):
        with pytest.raises(ArchiveFailedError, match="0xA700"):
            await everything(query.search([one, two], Search(STUDY)))


async def test_the_merge_holds_back_the_quick() -> None:
    """One of two archives without end is not read on while nobody takes its answers."""
    async with archive_of(many()) as (quick, one), archive_of(giving(study(1))) as (_, two):
        results = query.search([one, two], Search(STUDY))
        async with contextlib.aclosing(results.answers) as answers:
            await anext(answers)
            before = -1
            async with asyncio.timeout(10):
                while before != quick.given:
                    before = quick.given
                    await asyncio.sleep(0.2)
            for _ in range(5 * merge.MERGE_QUEUE):
                await anext(answers)
        assert quick.closed.is_set()


# --- attributes that an archive never has --------------------------------------------------------------------


async def test_an_attribute_that_never_comes_is_not_asked_for_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(STUDY, welcome=[AVAILABILITY])
    async with archive_of(giving(*(study(n) for n in range(60)))) as (there, archive):
        for _ in range(3):
            assert len(await run(archive, search)) == 60
        assert ["InstanceAvailability" in keys for keys in there.searches] == [True, True, False]
        # A client that names it asks all the same, and after a while it is tried again.
        await run(archive, Search(STUDY, returned=[(AVAILABILITY,)], welcome=[AVAILABILITY]))
        monkeypatch.setattr(habits, "ASK_AGAIN_SECONDS", 0.0)
        await run(archive, search)
        assert ["InstanceAvailability" in keys for keys in there.searches[3:]] == [True, True]


async def test_an_attribute_that_comes_now_and_then_stays_asked_for() -> None:
    answers = [study(n) for n in range(60)]
    answers[30].InstanceAvailability = "ONLINE"
    async with archive_of(giving(*answers)) as (there, archive):
        for _ in range(5):
            await run(archive, Search(STUDY, welcome=[AVAILABILITY]))
        assert all("InstanceAvailability" in keys for keys in there.searches)
