"""Archives without Study Root: searches in the Patient Root model, and whose a study is (PS3.4 C.6.1)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator

import pytest

from dul import dimse
from proxy.archive.errors import ArchiveFailedError, TooBroadError
from proxy.archive.peers.archive import Archive
from proxy.archive.query import cfind
from proxy.archive.query import search as query
from proxy.archive.query.known import Known
from proxy.archive.query.patients import patient_ids
from proxy.archive.query.search import Found, Results, Search
from proxy.dataset.levels import MODALITIES_IN_STUDY, Level
from proxy.dataset.values import first_value
from tests.corpus import MIXED_STUDY, Corpus, uid
from tests.dul.archive import serving
from tests.peers.dcmtk import Dcmqrscp, Scu, dcmqrscp_takes
from tests.peers.process import Address
from tests.proxy.finding import ask, fetch, value, values
from tests.proxy.query_archives import Entry, PatientRoot, Shelf
from tests.proxy.running import proxy_for
from tests.proxy.test_query import everything, peer

PATIENT_ID, PATIENT_NAME, PATIENT_SEX, STUDY_DATE = (0x00100020,), (0x00100010,), (0x00100040,), (0x00080020,)
STUDY_UID, MODALITIES = (0x0020000D,), (MODALITIES_IN_STUDY,)
SHELF = (
    Entry(1, "P1", "Müller^Jürgen", "20240101", ("CT", "SR")),
    Entry(2, "P1", "Müller^Jürgen", "20240201", ("MR",)),
    Entry(3, "P2", "Roe^Jane", "20240101", ("CT",)),
    Entry(4, "Q3", "Poe^Max", "20240301", ("US",)),
)
UNKNOWN = uid(9, 99)


@contextlib.asynccontextmanager
async def archive_of(handler: PatientRoot) -> AsyncIterator[Archive]:
    """Run an archive, and give it as `proxy.archive` sees it."""
    async with serving(handler, "SCRIPTED") as server:
        archive = Archive(peer(server.port).model_copy(update={"query_model": "PATIENT"}))
        try:
            yield archive
        finally:
            await archive.close(1.0)


@pytest.fixture
def handler() -> PatientRoot:
    """A strict archive."""
    return PatientRoot(Shelf(SHELF))


@pytest.fixture
async def archive(handler: PatientRoot) -> AsyncIterator[Archive]:
    """The same as `proxy.archive` sees it."""
    async with archive_of(handler) as archive:
        yield archive


async def run(archive: Archive, wanted: Search, known: Known | None = None) -> list[Found]:
    """Return all that a search finds."""
    return await everything(query.search([archive], wanted, known))


def numbers(found: Iterable[Found]) -> list[int]:
    """Return the last number of each study's UID."""
    return [int(each.found_uids[Level.STUDY].rpartition(".")[2]) for each in found]


# --- searches ------------------------------------------------------------------------------------------------


async def test_a_search_begins_with_the_patients(handler: PatientRoot, archive: Archive) -> None:
    """Each level below names the patient; the patient's attributes are asked for at the PATIENT level alone."""
    found = await run(archive, Search(Level.STUDY, {}, {PATIENT_ID: "P*"}, [PATIENT_NAME, PATIENT_SEX, STUDY_DATE]))
    assert numbers(found) == [1, 2, 3]
    assert handler.asked == [("PATIENT", "P*"), ("STUDY", "P1"), ("STUDY", "P2")]
    patients, study, _ = handler.searches
    assert {"PatientName", "PatientSex"} <= {element.keyword for element in patients}
    assert "StudyDate" not in patients
    assert "StudyDate" in study
    assert [first_value(each.patient, PATIENT_SEX[0]) for each in found] == ["O"] * 3


async def test_keys_of_both_levels(handler: PatientRoot, archive: Archive) -> None:
    wanted = Search(Level.STUDY, {}, {PATIENT_NAME: "M*", STUDY_DATE: "20240201-"})
    assert numbers(await run(archive, wanted)) == [2]
    assert handler.asked == [("PATIENT", ""), ("STUDY", "P1")]


async def test_one_plain_patient_id_needs_no_search_for_patients(handler: PatientRoot, archive: Archive) -> None:
    """Unless attributes of the patient are wanted."""
    assert numbers(await run(archive, Search(Level.STUDY, {}, {PATIENT_ID: "P1"}))) == [1, 2]
    assert handler.asked == [("STUDY", "P1")]
    handler.searches.clear()
    (found, _) = await run(archive, Search(Level.STUDY, {}, {PATIENT_ID: "P1"}, [PATIENT_SEX]))
    assert handler.asked == [("PATIENT", "P1"), ("STUDY", "P1")]
    assert first_value(found.patient, PATIENT_SEX[0]) == "O"


async def test_the_levels_below_the_study(handler: PatientRoot, archive: Archive) -> None:
    found = await run(archive, Search(Level.IMAGE, {}, {PATIENT_ID: "P1"}))
    assert [each.found_uids[Level.IMAGE] for each in found] == [
        f"{uid(9, 1)}.1.1",
        f"{uid(9, 1)}.2.1",
        f"{uid(9, 2)}.1.1",
    ]
    assert set(handler.asked) == {("STUDY", "P1"), ("SERIES", "P1"), ("IMAGE", "P1")}


async def test_modalities_in_study_are_decided_by_series_of_the_patient() -> None:
    handler = PatientRoot(Shelf(SHELF, refuses=["ModalitiesInStudy"]))
    async with archive_of(handler) as archive:
        results = query.search([archive], Search(Level.STUDY, {}, {MODALITIES: "CT"}))
        assert numbers(await everything(results)) == [1, 3]
    assert results.unchecked == set()
    assert ("SERIES", "P2") in handler.asked


async def test_an_archive_that_ignores_the_patient_id_does_not_mix_patients_up() -> None:
    """What it answers for one patient about another is left out, by the Patient ID in the answer."""
    handler = PatientRoot(Shelf(SHELF, ignores=["PatientID"]))
    async with archive_of(handler) as archive:
        found = await run(archive, Search(Level.STUDY, returned=[PATIENT_NAME]))
    assert sorted((each.patient_id, *numbers([each])) for each in found) == [("P1", 1), ("P1", 2), ("P2", 3), ("Q3", 4)]


async def test_a_study_of_two_patients_is_one_study() -> None:
    """After a merge that went wrong; the first patient's answer is given whole."""
    handler = PatientRoot(Shelf([Entry(1, "P1", "Doe^John"), Entry(1, "P2", "Roe^Jane")]))
    async with archive_of(handler) as archive:
        (found,) = await run(archive, Search(Level.STUDY, returned=[PATIENT_NAME]))
    assert (found.patient_id, first_value(found.patient, PATIENT_NAME[0])) == ("P1", "Doe^John")


async def test_patients_without_an_id_are_passed_over() -> None:
    """Nothing below them can be asked for."""
    async with archive_of(PatientRoot(Shelf([Entry(1, ""), *SHELF[2:]]))) as archive:
        assert numbers(await run(archive, Search(Level.STUDY))) == [3, 4]


async def test_a_bound_on_the_patients_to_look_into(monkeypatch: pytest.MonkeyPatch, archive: Archive) -> None:
    monkeypatch.setattr(cfind, "MAX_PARENTS", 2)
    with pytest.raises(TooBroadError, match="more than 2"):
        await run(archive, Search(Level.STUDY))


async def test_a_list_of_patients_that_is_cut_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patients have no date to split by. 100 of them are a suspicious number."""
    many = [Entry(number, f"P{number}") for number in range(150)]
    handler = PatientRoot(Shelf(many, cap=100))
    async with archive_of(handler) as archive:
        results: Results = query.search([archive], Search(Level.STUDY))
        assert len(await everything(results)) == 100
    assert results.cut == {"SCRIPTED"}


# --- searches by study ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lenient", [True, False])
async def test_a_search_below_a_study_finds_out_whose_it_is(lenient: bool) -> None:
    """A lenient archive tells without being told; with a strict one it takes a walk. Then it is known."""
    handler = PatientRoot(Shelf(SHELF), lenient=lenient)
    known = Known()
    series = Search(Level.SERIES, {Level.STUDY: uid(9, 3)})
    async with archive_of(handler) as archive:
        (found,) = await run(archive, series, known)
        assert found.found_uids[Level.SERIES] == f"{uid(9, 3)}.1"
        walk = [("PATIENT", ""), ("STUDY", "P1"), ("STUDY", "P2")]
        assert handler.asked == [("STUDY", ""), *([] if lenient else walk), ("SERIES", "P2")]
        handler.searches.clear()
        await run(archive, series, known)
        assert handler.asked == [("SERIES", "P2")]


@pytest.mark.parametrize("lenient", [True, False])
async def test_several_studies_by_uid(lenient: bool) -> None:
    """Their patients are looked into, each once, and no others."""
    handler = PatientRoot(Shelf(SHELF), lenient=lenient)
    wanted = Search(Level.STUDY, {}, {STUDY_UID: f"{uid(9, 4)}\\{uid(9, 1)}\\{uid(9, 2)}\\{UNKNOWN}"})
    async with archive_of(handler) as archive:
        assert sorted(numbers(await run(archive, wanted))) == [1, 2, 4]
    assert handler.asked.count(("STUDY", "Q3")) == (1 if lenient else 2)


async def test_a_study_and_keys_of_its_patient(archive: Archive) -> None:
    """The patient found by the study still has to match, wildcards included."""
    for wanted, found in (("P*", [3]), ("Q*", []), ("P2", [3])):
        search = Search(Level.STUDY, {}, {STUDY_UID: uid(9, 3), PATIENT_ID: wanted, PATIENT_NAME: "*Jane"})
        assert numbers(await run(archive, search)) == found


async def test_an_unknown_study_is_nothing_found(archive: Archive) -> None:
    assert await run(archive, Search(Level.SERIES, {Level.STUDY: UNKNOWN})) == []


# --- whose a study is ----------------------------------------------------------------------------------------


async def test_the_patient_of_a_study(handler: PatientRoot, archive: Archive) -> None:
    assert await query.patient_id(archive, uid(9, 4)) == "Q3"
    assert handler.asked == [("STUDY", ""), ("PATIENT", ""), ("STUDY", "P1"), ("STUDY", "P2"), ("STUDY", "Q3")]
    assert await query.patient_id(archive, UNKNOWN) is None


async def test_a_refusal_is_remembered(handler: PatientRoot, archive: Archive) -> None:
    """An archive that does not tell without being told is not asked that way again for a while."""
    await query.patient_id(archive, uid(9, 1))
    handler.searches.clear()
    assert await query.patient_id(archive, uid(9, 1)) == "P1"
    assert handler.asked == [("PATIENT", ""), ("STUDY", "P1")]


async def test_an_archive_that_tells_is_believed_when_it_has_nothing_to_tell() -> None:
    """An unknown study must not cost a walk over all patients each time."""
    handler = PatientRoot(Shelf(SHELF), lenient=True)
    async with archive_of(handler) as archive:
        assert await query.patient_id(archive, uid(9, 1)) == "P1"
        assert await query.patient_id(archive, UNKNOWN) is None
    assert handler.asked == [("STUDY", ""), ("STUDY", "")]


async def test_an_archive_that_does_not_tell_any_more_is_walked_through() -> None:
    handler = PatientRoot(Shelf(SHELF), lenient=True)
    async with archive_of(handler) as archive:
        assert await query.patient_id(archive, uid(9, 1)) == "P1"
        handler.lenient = False
        assert await query.patient_id(archive, uid(9, 1)) == "P1"
    assert ("PATIENT", "") in handler.asked


async def test_an_archive_that_has_nothing_without_a_patient_id_is_walked_through() -> None:
    """It neither refuses such a C-FIND nor answers it, so an empty answer says nothing."""
    shelf = Shelf(SHELF)
    handler = PatientRoot(shelf, lenient=True)
    shelf.begun = lambda keys: setattr(
        shelf, "cap", 0 if keys.QueryRetrieveLevel == "STUDY" and not keys.PatientID else None
    )
    async with archive_of(handler) as archive:
        assert await query.patient_id(archive, uid(9, 3)) == "P2"


@pytest.mark.parametrize("status", [0xA700, 0x0110])
async def test_a_failure_for_another_reason_is_not_taken_for_a_refusal(status: int) -> None:
    """To walk over all patients is no help for an archive that has no resources."""
    handler = PatientRoot(Shelf(SHELF, refuses=["PatientID"], refusal=status), lenient=True)
    async with archive_of(handler) as archive:
        with pytest.raises(ArchiveFailedError, match=f"0x{status:04X}"):
            await query.patient_id(archive, uid(9, 1))
        assert not archive.habits.refuses(PATIENT_ID[0])
    assert "PATIENT" not in {level for level, _ in handler.asked}


async def test_an_archive_that_takes_no_notice_of_case() -> None:
    """What it calls the patient is what it is asked with below."""
    shelf = Shelf(SHELF)
    handler = PatientRoot(shelf)
    shelf.begun = lambda keys: setattr(keys, "PatientID", keys.PatientID.upper())
    async with archive_of(handler) as archive:
        found = await run(archive, Search(Level.STUDY, {}, {PATIENT_ID: "p1"}, [PATIENT_NAME]))
    assert numbers(found) == [1, 2]


async def test_a_walk_teaches_all_that_it_passes(handler: PatientRoot, archive: Archive) -> None:
    known = Known()
    assert await query.patient_id(archive, uid(9, 3), known) == "P2"
    handler.searches.clear()
    owners = await patient_ids(archive, [uid(9, 1), uid(9, 2), uid(9, 3)], known)
    assert list(owners.values()) == ["P1", "P1", "P2"]
    assert handler.asked == []


async def test_a_failure_of_the_archive_is_no_missing_study() -> None:
    """That would be answered with 404."""
    handler = PatientRoot(Shelf(SHELF, refuses=["QueryRetrieveLevel"], refusal=dimse.UNABLE_TO_PROCESS))
    async with archive_of(handler) as archive:
        with pytest.raises(ArchiveFailedError, match="0xC000"):
            await query.patient_id(archive, uid(9, 1))


# --- end to end ----------------------------------------------------------------------------------------------


async def test_names_come_in_the_character_set_of_their_own_level() -> None:
    """The PATIENT level's answer is in Latin-1; nothing says that the others are."""
    async with serving(PatientRoot(Shelf(SHELF)), "SCRIPTED") as server:
        address = Address("SCRIPTED", server.port)
        async with proxy_for(address, use_cget=True, peer={"queryModel": "PATIENT"}) as proxy:
            found = await ask(proxy, "/studies?PatientName=M")
            assert values(found, "PatientName") == [{"Alphabetic": "Müller^Jürgen"}] * 2
            assert values(found, "PatientID") == ["P1", "P1"]
            instances = await ask(proxy, "/instances?PatientID=Q3")
            assert values(instances, "PatientName") == [{"Alphabetic": "Poe^Max"}]
            reply = await fetch(proxy, f"/studies/{UNKNOWN}/series")
            assert (reply.status, reply.json) == (200, [])


@pytest.fixture(scope="module", params=["lenient", "strict"])
def patient_root(
    request: pytest.FixtureRequest, samples: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dcmqrscp]:
    """DCMTK's archive without Study Root, as it is, and refusing keys of other levels (`-XF`)."""
    options = ["--no-study-root", *(["-XF"] if request.param == "strict" else [])]
    folder = tmp_path_factory.mktemp("patient-root")
    with Dcmqrscp(folder, aet=f"PR{request.param.upper()}", options=options) as archive:
        files = [samples.path(sample) for sample in samples.samples if dcmqrscp_takes(sample)]
        Scu(archive.address).store(files, "--required").succeeded()
        yield archive


async def test_dcmtks_archive_without_study_root(patient_root: Dcmqrscp, samples: Corpus) -> None:
    """The same answers as in Study Root, at each level, and from each side."""
    held = [sample for sample in samples.samples if dcmqrscp_takes(sample)]
    study = uid(MIXED_STUDY, 1)
    async with proxy_for(patient_root.address, use_cget=True, peer={"queryModel": "PATIENT"}) as proxy:
        found = {value(entity, "StudyInstanceUID"): entity for entity in await ask(proxy, "/studies")}
        assert {key: value(entity, "PatientID") for key, entity in found.items()} == {
            sample.study_uid: sample.patient_id for sample in held
        }
        assert value(found[study], "PatientName") == {"Alphabetic": "Müller^Jürgen"}
        assert value(found[study], "StudyDate") == "20240202"
        assert len(await ask(proxy, "/studies?PatientID=LATIN")) == 1
        assert len(await ask(proxy, "/studies?PatientName=M%C3%BCller&StudyDate=20240101-20240301")) == 1
        series = await ask(proxy, f"/studies/{study}/series")
        assert set(values(series, "SeriesInstanceUID")) == {s.series_uid for s in held if s.study_uid == study}
        instances = await ask(proxy, "/instances?PatientID=LATIN1&SeriesNumber=2")
        assert len(instances) == 3
        assert values(instances, "PatientID") == ["LATIN1"] * 3
        modalities = {sample.study_uid for sample in held if sample.modality == "MR"}
        assert set(values(await ask(proxy, "/studies?ModalitiesInStudy=MR"), "StudyInstanceUID")) == modalities


async def test_study_root_is_not_understood_there(patient_root: Dcmqrscp) -> None:
    """So that the test above shows something."""
    async with proxy_for(patient_root.address, use_cget=True) as proxy:
        reply = await fetch(proxy, "/studies")
    assert (reply.status, "no presentation context" in reply.json["error"]) == (502, True)
