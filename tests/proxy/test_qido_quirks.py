"""What archives do in practice, seen by a client that searches: each is answered as well as with a good archive."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from pydicom.dataset import Dataset

import dul
from proxy.archive.query import caps
from proxy.dicomweb import qido
from tests.corpus import Corpus, uid
from tests.dul.archive import serving
from tests.peers.dcmtk import Dcmqrscp, dcmqrscp_takes
from tests.peers.orthanc import Orthanc
from tests.peers.process import Address
from tests.proxy.finding import (
    Answers,
    Script,
    ask,
    fetch,
    giving,
    proxied,
    scripted,
    study,
    tag,
    value,
    values,
)
from tests.proxy.query_archives import Entry, Shelf, entries
from tests.proxy.running import proxy_for

STUDY, SERIES = uid(9, 1), f"{uid(9, 1)}.1"
BELOW = f"/studies/{STUDY}/series/{SERIES}/instances"


def tree(*answers: Dataset) -> Script:
    """Return a script for an archive with one study, one series, and these answers of the IMAGE level."""

    async def script(keys: Dataset) -> Answers:
        if keys.QueryRetrieveLevel == "IMAGE":
            for answer in answers:
                yield answer
        else:
            answer = study(1)
            if keys.QueryRetrieveLevel == "SERIES":
                answer.SeriesInstanceUID = SERIES
            yield answer

    return script


def instance(number: int, **attributes: object) -> Dataset:
    """Return an answer of the IMAGE level."""
    answer = study(1, SeriesInstanceUID=SERIES, SOPInstanceUID=f"{SERIES}.{number}", **attributes)
    answer.QueryRetrieveLevel = "IMAGE"
    return answer


# --- keys ----------------------------------------------------------------------------------------------------


async def test_study_root_is_what_an_archive_is_asked_by() -> None:
    """Strict archives want a Patient ID in the Patient Root model; nearly all have Study Root."""
    models = []

    class Remembering(dul.Handler):
        async def on_find(self, request: dul.Request) -> Any:
            models.append(request.model)
            for answer in ():
                yield answer

    async with (
        serving(Remembering(), "SCRIPTED") as server,
        proxy_for(Address("SCRIPTED", server.port), use_cget=True) as proxy,
    ):
        await ask(proxy, "/studies")
    assert models == ["1.2.840.10008.5.1.4.1.2.2.1"]


async def test_the_character_set_is_asked_for_at_each_level() -> None:
    """Some archives give SpecificCharacterSet only to those who ask."""
    async with proxied(tree(instance(1))) as (archive, proxy):
        await ask(proxy, "/instances")
    assert [keys.QueryRetrieveLevel for keys in archive.searches] == ["STUDY", "SERIES", "IMAGE"]
    assert all("SpecificCharacterSet" in keys for keys in archive.searches)


@pytest.mark.parametrize("target", ["/instances", f"/studies/{STUDY}/instances", BELOW])
async def test_instances_are_asked_for_by_one_study_and_one_series(target: str) -> None:
    """The IMAGE level wants both UIDs above, without wildcards or lists."""
    async with proxied(tree(instance(1))) as (archive, proxy):
        assert len(await ask(proxy, target)) == 1
    keys = archive.searches[-1]
    assert (keys.QueryRetrieveLevel, keys.StudyInstanceUID, keys.SeriesInstanceUID) == ("IMAGE", STUDY, SERIES)


async def test_filters_that_an_archive_ignores_are_applied_all_the_same() -> None:
    """With whole-value wildcards, ranges and lists of UIDs."""
    shelf = Shelf(
        [Entry(1, "AB1", day="20240105"), Entry(2, "XAB1", day="20240105"), Entry(3, "AB2", day="20240201")],
        ignores=["PatientID", "StudyDate", "StudyInstanceUID"],
    )
    async with proxied(shelf) as (_, proxy):
        assert values(await ask(proxy, "/studies?PatientID=AB"), "PatientID") == ["AB1", "AB2"]
        assert values(await ask(proxy, "/studies?StudyDate=20240101-20240131"), "PatientID") == ["AB1", "XAB1"]
        listed = await ask(proxy, f"/studies?StudyInstanceUID={uid(9, 2)},{uid(9, 3)}")
        assert values(listed, "PatientID") == ["XAB1", "AB2"]


async def test_numbers_are_compared_as_numbers() -> None:
    """IS "+4" is 4; archives hand it on as the modality wrote it."""
    answers = [Dataset.from_json(instance(number).to_json()) for number in (1, 2, 3)]
    for answer, text in zip(answers, ("+4", "04", "44"), strict=True):
        answer.add_new("InstanceNumber", "IS", text)
    async with proxied(tree(*answers)) as (_, proxy):
        assert len(await ask(proxy, f"{BELOW}?InstanceNumber=4")) == 2


# --- answers -------------------------------------------------------------------------------------------------


async def test_what_an_archive_lists_twice_is_one() -> None:
    """At each level, those above that are only walked over included."""

    async def script(keys: Dataset) -> Answers:
        for _ in range(2):
            async for answer in tree(instance(1), instance(1), instance(2))(keys):
                yield answer

    async with proxied(script) as (archive, proxy):
        assert len(await ask(proxy, "/studies")) == 1
        assert len(await ask(proxy, "/series")) == 1
        archive.searches.clear()
        assert len(await ask(proxy, "/instances")) == 2
        assert len(archive.searches) == 3


async def test_the_same_sop_instance_uid_in_two_series_is_two_instances() -> None:
    """What names an instance is study, series and SOP instance UID together."""

    async def script(keys: Dataset) -> Answers:
        answer = study(1)
        for number in ("1", "2") if keys.QueryRetrieveLevel == "SERIES" else ("1",):
            answer.SeriesInstanceUID = keys.get("SeriesInstanceUID") or f"{STUDY}.{number}"
            answer.SOPInstanceUID = "1.2.3"
            yield answer

    for copies in (1, 2):  # of the same archive; those of one are merged with those of the other
        async with scripted(script) as one, scripted(script, aet="TWO") as two:
            addresses = (one.address, two.address)[:copies]
            async with proxy_for(*addresses, use_cget=True) as proxy:
                found = await ask(proxy, f"/studies/{STUDY}/instances")
        assert sorted(values(found, "SeriesInstanceUID")) == [f"{STUDY}.1", f"{STUDY}.2"]
        assert values(found, "SOPInstanceUID") == ["1.2.3"] * 2


async def test_counters_that_an_archive_does_not_know_are_empty_not_none() -> None:
    """dcm4che returns them without a value."""
    answer = study(1)
    answer.add_new(tag("NumberOfStudyRelatedInstances"), "IS", "")
    async with proxied(giving(answer)) as (_, proxy):
        (found,) = await ask(proxy, "/studies")
    assert found[tag("NumberOfStudyRelatedInstances")] == {"vr": "IS"}
    assert found[tag("NumberOfStudyRelatedSeries")] == {"vr": "IS"}


@pytest.mark.parametrize("availability", ["NEARLINE", "OFFLINE", "ONLINE"])
async def test_the_availability_of_a_study_is_shown(availability: str) -> None:
    """So that a client knows that a retrieval may take long; it is asked for unless the archive never tells."""
    async with proxied(Shelf([Entry(1, availability=availability), Entry(2)])) as (_, proxy):
        first, second = await ask(proxy, "/studies")
    assert value(first, "InstanceAvailability") == availability
    assert value(second, "InstanceAvailability") is None


# --- several archives ----------------------------------------------------------------------------------------


async def test_an_entity_of_two_archives_is_the_answer_of_the_first_as_it_is() -> None:
    """Not even what its answer lacks is taken from the other's: a name of one patient and an ID of another is worse
    than no name."""
    first = study(1, PatientID="A", StudyDate="20240101", PatientName=None)
    second = study(1, PatientID="B", StudyDate="20240202", PatientName="Roe^Jane", StudyDescription="Other")
    async with scripted(giving(first), aet="ONE") as one, scripted(giving(second), aet="TWO") as two:
        async with proxy_for(one.address, use_cget=True) as proxy:
            alone = await ask(proxy, "/studies")
        async with proxy_for(one.address, two.address, use_cget=True) as proxy:
            both = await ask(proxy, "/studies")
    assert [entity | {tag("RetrieveURL"): None} for entity in both] == [
        entity | {tag("RetrieveURL"): None} for entity in alone
    ]
    assert value(both[0], "PatientID") == "A"
    assert "Value" not in both[0][tag("PatientName")]
    assert "Value" not in both[0][tag("StudyDescription")]


async def test_series_are_those_of_the_archive_that_gave_their_study() -> None:
    """Below two archives' copies of a study, each series goes with one archive's study, whole."""

    def having(series: str, patient: str) -> Script:
        async def script(keys: Dataset) -> Answers:
            answer = study(1, PatientID=patient, StudyDescription=patient)
            if keys.QueryRetrieveLevel == "SERIES":
                answer.SeriesInstanceUID = f"{STUDY}.{series}"
            yield answer

        return script

    async with (
        scripted(having("1", "A"), aet="ONE") as one,
        scripted(having("2", "B"), aet="TWO") as two,
        proxy_for(one.address, two.address, use_cget=True) as proxy,
    ):
        found = await ask(proxy, "/series")
    shown = {
        value(each, "SeriesInstanceUID")[-1]: (value(each, "PatientID"), value(each, "StudyDescription"))
        for each in found
    }
    assert shown == {"1": ("A", "A"), "2": ("B", "B")}


# --- ModalitiesInStudy ---------------------------------------------------------------------------------------


async def test_no_warning_once_the_series_have_decided() -> None:
    shelf = Shelf([Entry(1, modalities=("CT", "SR")), Entry(2, modalities=("MR",))], hides=["ModalitiesInStudy"])
    async with proxied(shelf) as (_, proxy):
        reply = await fetch(proxy, "/studies?ModalitiesInStudy=SR,MR")
        assert "Warning" not in reply.headers
        assert [each[tag("ModalitiesInStudy")]["Value"] for each in reply.json] == [["CT", "SR"], ["MR"]]
        shelf.hides = ["ModalitiesInStudy", "Modality"]
        reply = await fetch(proxy, "/studies?ModalitiesInStudy=SR")
        assert "may not have matched ModalitiesInStudy" in reply.headers["Warning"]


@pytest.mark.parametrize(("wanted", "modalities"), [("MR", {"MR"}), ("CT,ECG", {"CT", "ECG"}), ("XX", set())])
async def test_dcmtks_archive_which_ignores_the_key(
    dcmqrscp: Dcmqrscp, samples: Corpus, wanted: str, modalities: set[str]
) -> None:
    """Its index has no such attribute, so it returns all studies, and without it."""
    held = [sample for sample in samples.samples if dcmqrscp_takes(sample)]
    async with proxy_for(dcmqrscp.address, use_cget=True) as proxy:
        reply = await fetch(proxy, f"/studies?ModalitiesInStudy={wanted}")
    assert set(values(reply.json, "StudyInstanceUID")) == {s.study_uid for s in held if s.modality in modalities}
    assert all(set(each[tag("ModalitiesInStudy")]["Value"]) & modalities for each in reply.json)
    assert "Warning" not in reply.headers


# --- lists that are cut --------------------------------------------------------------------------------------


@pytest.fixture
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of 10 are suspicious, and an answer is streamed from its first match on."""
    monkeypatch.setattr(caps, "SUSPICIOUS", frozenset({10}))
    monkeypatch.setattr(qido, "WHOLE_ANSWER", 1)


async def test_pages_of_a_list_that_the_archive_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages together are the whole list, though the archive gives a part of it at a time."""
    monkeypatch.setattr(caps, "SUSPICIOUS", frozenset({10}))
    async with proxied(Shelf(entries(33), cap=10)) as (archive, proxy):
        pages = [await ask(proxy, f"/studies?limit=7&offset={offset}") for offset in range(0, 42, 7)]
        assert [len(page) for page in pages] == [7, 7, 7, 7, 5, 0]
        found = [study_uid for page in pages for study_uid in values(page, "StudyInstanceUID")]
        assert found == values(await ask(proxy, "/studies"), "StudyInstanceUID")
        assert len(set(found)) == 33
        archive.searches.clear()
        await ask(proxy, "/studies?limit=10")
        assert len(archive.searches) == 1


async def test_what_is_said_of_lists_that_were_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completed by date, proven to be cut, or suspected: each with a warning that names the archive and no patient."""
    monkeypatch.setattr(caps, "SUSPICIOUS", frozenset({10}))
    crowded = [Entry(number, day="20240601") for number in range(50, 62)]
    shelf = Shelf(entries(25), cap=10)
    async with proxied(shelf) as (_, proxy):
        reply = await fetch(proxy, "/studies")
        assert (len(reply.json), "SCRIPTED was completed by study dates" in reply.headers["Warning"]) == (25, True)
        reply = await fetch(proxy, "/studies?StudyDate=20240101-20240125")
        assert (len(reply.json), "Warning" in reply.headers) == (25, False)
        shelf.entries = [*entries(25), *crowded]
        reply = await fetch(proxy, "/studies?StudyDate=2024")
        assert reply.status == 400
        reply = await fetch(proxy, "/studies?StudyDate=20240101-20241231")
        assert (len(reply.json), "list of SCRIPTED is cut" in reply.headers["Warning"]) == (35, True)
        reply = await fetch(proxy, "/studies?StudyDate=20240601")
        assert (len(reply.json), "list of SCRIPTED may be cut" in reply.headers["Warning"]) == (10, True)
        reply = await fetch(proxy, "/studies?limit=5")
        assert "Warning" not in reply.headers


@pytest.mark.usefixtures("small_numbers")
async def test_a_long_answer_that_turns_out_to_be_cut_does_not_look_whole() -> None:
    """Its header is gone. The next time the archive is known for it, and the header says so beforehand."""
    crowded = [Entry(number, day="20240601") for number in range(50, 62)]
    async with proxied(Shelf([*entries(25), *crowded], cap=10)) as (_, proxy):
        async with proxy.http.get("/studies") as response:
            assert (response.status, "Warning" in response.headers) == (200, False)
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        reply = await fetch(proxy, "/studies")
        assert len(reply.json) == 35
        assert "SCRIPTED gives at most 10 answers to a search" in reply.headers["Warning"]


@pytest.mark.usefixtures("small_numbers")
async def test_a_suspicion_that_comes_too_late_for_the_header_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The list may be whole, so it is not cut for that."""
    async with proxied(tree(*(instance(number) for number in range(10)))) as (_, proxy):
        reply = await fetch(proxy, BELOW)
        assert (len(reply.json), "Warning" in reply.headers) == (10, False)
    assert "the list of SCRIPTED may be cut" in caplog.text
    assert STUDY not in caplog.text


@pytest.mark.usefixtures("small_numbers")
async def test_nothing_is_said_of_long_answers_of_an_archive_that_is_not_known_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        async with proxied(Shelf(entries(25))) as (_, proxy):
            reply = await fetch(proxy, "/studies")
    assert (len(reply.json), "Warning" in reply.headers) == (25, False)
    assert caplog.text == ""


@pytest.fixture(scope="module")
def limited(samples: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Orthanc with a limit of two: it ends longer lists with Cancel, though nobody has cancelled."""
    settings = {"LimitFindResults": 2, "LimitFindInstances": 2}
    with Orthanc(tmp_path_factory.mktemp("limited"), aet="LIMITED", settings=settings) as archive:
        archive.upload(samples.paths())
        yield archive


async def test_orthanc_with_a_limit(limited: Orthanc, samples: Corpus) -> None:
    """All studies are found; a list of instances that is cut is a failure, since most is made of such a list."""
    async with proxy_for(limited.address, use_cget=True) as proxy:
        reply = await fetch(proxy, "/studies")
        assert set(values(reply.json, "StudyInstanceUID")) == set(samples.study_uids)
        assert "LIMITED was completed by study dates" in reply.headers["Warning"]
        assert len(await ask(proxy, "/studies?limit=2")) == 2
        (latin,) = await ask(proxy, "/studies?PatientID=LATIN1")
        study_uid = value(latin, "StudyInstanceUID")
        assert len(await ask(proxy, f"/studies/{study_uid}/series")) == 2
        reply = await fetch(proxy, f"/studies/{study_uid}/instances")
        assert (reply.status, "0xFE00" in reply.json["error"]) == (502, True)
