"""Searches, end to end on real archives: the six resources, what they return, and RetrieveURL (PS3.18 10.6).

The truth is the corpus's manifest; Orthanc's own DICOMweb server is asked the same as a second witness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pydicom
import pytest
import yarl
from dicomweb_client.api import DICOMwebClient

from tests.corpus import MIXED_STUDY, Corpus, Sample, uid
from tests.peers.dcmtk import dcmqrscp_takes
from tests.peers.orthanc import Orthanc
from tests.peers.process import Address
from tests.proxy.finding import Entity, ask, fetch, giving, proxied, study, tag, value, values
from tests.proxy.running import Proxy, proxy_for

STUDY = uid(MIXED_STUDY, 1)
SERIES = uid(MIXED_STUDY, 1, 1)

# PS3.18 Tables 10.6.3-3 to 10.6.3-5, and StudyDescription.
OF_STUDY = [
    "SpecificCharacterSet",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "InstanceAvailability",
    "ModalitiesInStudy",
    "ReferringPhysicianName",
    "TimezoneOffsetFromUTC",
    "StudyDescription",
    "RetrieveURL",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
]
OF_SERIES = [
    "SpecificCharacterSet",
    "Modality",
    "TimezoneOffsetFromUTC",
    "SeriesDescription",
    "RetrieveURL",
    "SeriesInstanceUID",
    "SeriesNumber",
    "NumberOfSeriesRelatedInstances",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "RequestAttributesSequence",
]
OF_INSTANCE = [
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "InstanceAvailability",
    "TimezoneOffsetFromUTC",
    "RetrieveURL",
    "InstanceNumber",
    "Rows",
    "Columns",
    "BitsAllocated",
    "NumberOfFrames",
]


@dataclass(frozen=True)
class Loaded:
    """An archive and what is in it."""

    address: Address
    samples: Sequence[Sample]

    @property
    def studies(self) -> set[str]:
        """Its study UIDs."""
        return {sample.study_uid for sample in self.samples}

    @property
    def series(self) -> set[tuple[str, str]]:
        """Its pairs of study and series UID."""
        return {(sample.study_uid, sample.series_uid) for sample in self.samples}


@pytest.fixture(params=["orthanc", "dcmqrscp", "pynetdicom_archive"])
def loaded(request: pytest.FixtureRequest, samples: Corpus) -> Loaded:
    """Each of three archives, loaded with the mixed set."""
    is_there: Callable[[Sample], bool] = dcmqrscp_takes if request.param == "dcmqrscp" else lambda _: True
    archive = request.getfixturevalue(request.param)
    return Loaded(archive.address, [sample for sample in samples.samples if is_there(sample)])


def study_of(entity: Entity) -> str:
    """Return the Study Instance UID."""
    return str(value(entity, "StudyInstanceUID"))


def series_of(entity: Entity) -> tuple[str, str]:
    """Return the UIDs down to the series."""
    return study_of(entity), str(value(entity, "SeriesInstanceUID"))


def instance_of(entity: Entity) -> tuple[str, str, str]:
    """Return the UIDs down to the instance."""
    return *series_of(entity), str(value(entity, "SOPInstanceUID"))


def triple(sample: Sample) -> tuple[str, str, str]:
    """Return the same of a sample."""
    return sample.study_uid, sample.series_uid, sample.sop_instance_uid


def assert_returned(entities: Iterable[Entity], keywords: Iterable[str]) -> None:
    """Each entity has all these attributes, be they empty, in the order of their tags; each has a VR."""
    wanted = {tag(keyword) for keyword in keywords}
    for entity in entities:
        assert wanted - entity.keys() == set()
        assert list(entity) == sorted(entity)
        assert all(len(attribute["vr"]) == 2 for attribute in entity.values())
        assert all("Value" not in attribute or attribute["Value"] for attribute in entity.values())
        assert tag("QueryRetrieveLevel") not in entity


# --- the resources -------------------------------------------------------------------------------------------


async def test_all_studies(loaded: Loaded) -> None:
    async with proxy_for(loaded.address, use_cget=True) as proxy:
        found = await ask(proxy, "/studies")
    assert sorted(map(study_of, found)) == sorted(loaded.studies)
    assert_returned(found, OF_STUDY)
    patients = {sample.study_uid: sample.patient_id for sample in loaded.samples}
    for entity in found:
        assert value(entity, "PatientID") == patients[study_of(entity)]
        number = int(study_of(entity).rpartition(".")[2])
        assert value(entity, "AccessionNumber") == f"A3{number:05d}"
        assert value(entity, "StudyDate") == f"2024{number % 12 + 1:02d}{number % 28 + 1:02d}"
        assert value(entity, "ReferringPhysicianName") == {"Alphabetic": "Referrer^Rita"}


async def test_series_of_a_study(loaded: Loaded) -> None:
    async with proxy_for(loaded.address, use_cget=True) as proxy:
        found = [entity for uid_ in loaded.studies for entity in await ask(proxy, f"/studies/{uid_}/series")]
    assert sorted(map(series_of, found)) == sorted(loaded.series)
    assert_returned(found, OF_SERIES)
    modalities = {sample.series_uid: sample.modality for sample in loaded.samples}
    assert {value(entity, "SeriesInstanceUID"): value(entity, "Modality") for entity in found} == modalities


async def test_instances_of_a_study(loaded: Loaded) -> None:
    async with proxy_for(loaded.address, use_cget=True) as proxy:
        found = [entity for uid_ in loaded.studies for entity in await ask(proxy, f"/studies/{uid_}/instances")]
    assert sorted(map(instance_of, found)) == sorted(map(triple, loaded.samples))
    assert_returned(found, [*OF_SERIES, *OF_INSTANCE])


async def test_instances_of_a_series(loaded: Loaded) -> None:
    async with proxy_for(loaded.address, use_cget=True) as proxy:
        found = [
            entity
            for study_uid, series_uid in loaded.series
            for entity in await ask(proxy, f"/studies/{study_uid}/series/{series_uid}/instances")
        ]
    assert sorted(map(instance_of, found)) == sorted(map(triple, loaded.samples))
    assert_returned(found, OF_INSTANCE)


async def test_all_series_with_the_attributes_of_their_studies(loaded: Loaded) -> None:
    async with proxy_for(loaded.address, use_cget=True) as proxy:
        found = await ask(proxy, "/series")
    assert sorted(map(series_of, found)) == sorted(loaded.series)
    assert_returned(found, [*OF_STUDY, *OF_SERIES])
    patients = {(sample.study_uid, sample.series_uid): sample.patient_id for sample in loaded.samples}
    assert {series_of(entity): value(entity, "PatientID") for entity in found} == patients


async def test_all_instances_with_the_attributes_of_their_parents(loaded: Loaded) -> None:
    async with proxy_for(loaded.address, use_cget=True) as proxy:
        found = await ask(proxy, "/instances")
    assert sorted(map(instance_of, found)) == sorted(map(triple, loaded.samples))
    assert_returned(found, [*OF_STUDY, *OF_SERIES, *OF_INSTANCE])
    expected = {triple(sample): (sample.patient_id, sample.modality) for sample in loaded.samples}
    shown = {instance_of(entity): (value(entity, "PatientID"), value(entity, "Modality")) for entity in found}
    assert shown == expected


async def test_values_of_instances_are_those_of_the_files(samples: Corpus, orthanc: Orthanc) -> None:
    async with proxy_for(orthanc.address, use_cget=True) as proxy:
        found = await ask(proxy, "/instances")
    for entity in found:
        stored = pydicom.dcmread(samples.path(samples.by_uid[instance_of(entity)[2]]), stop_before_pixels=True)
        for keyword in ("SOPClassUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames"):
            assert value(entity, keyword) == stored.get(keyword), keyword


async def test_the_archive_is_asked_for_its_own_levels_keys_only() -> None:
    """Archives refuse keys of other levels (PS3.4 C.4.1.1.3.1): above the level, only unique keys are sent."""
    async with proxied(giving()) as (archive, proxy):
        await ask(proxy, f"/studies/{STUDY}/series/{SERIES}/instances")
        await ask(proxy, f"/studies/{STUDY}/series")
    instances, series = archive.searches
    assert (instances.QueryRetrieveLevel, series.QueryRetrieveLevel) == ("IMAGE", "SERIES")
    for keyword in ("PatientID", "PatientName", "StudyDate", "ModalitiesInStudy", "Modality", "SeriesNumber"):
        assert keyword not in instances
    for keyword in ("PatientID", "StudyDate", "SOPInstanceUID", "Rows"):
        assert keyword not in series
    assert (instances.StudyInstanceUID, instances.SeriesInstanceUID) == (STUDY, SERIES)


# --- what comes back -----------------------------------------------------------------------------------------


async def test_nothing_found_is_an_empty_array(loaded: Loaded) -> None:
    """Existing uploaders expect this, not 204."""
    async with proxy_for(loaded.address, use_cget=True) as proxy:
        for target in ("/studies?PatientID=NOBODY", f"/studies/{uid(MIXED_STUDY, 99)}/series", "/series?PatientID=NO"):
            assert await ask(proxy, target) == []


@pytest.mark.parametrize("accept", ["application/dicom+json", "application/json", "*/*", "application/*;q=0.5", ""])
async def test_dicom_json_for_all_that_means_it(orthanc: Orthanc, accept: str) -> None:
    async with proxy_for(orthanc.address, use_cget=True) as proxy:
        reply = await fetch(proxy, "/studies?limit=1", Accept=accept)
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("application/dicom+json")
    assert len(reply.json) == 1


@pytest.mark.parametrize(
    "field", ["StationName", "00081010", "00081010,SeriesDate", "SeriesDate&includefield=00081010"]
)
async def test_included_attributes(orthanc: Orthanc, field: str) -> None:
    async with proxy_for(orthanc.address, use_cget=True) as proxy:
        found = await ask(proxy, f"/series?Modality=MR&includefield={field}")
        without = await ask(proxy, "/series?Modality=MR")
    assert "TOSHIBA_AMR" in str(found) or any(values(found, "StationName"))
    assert all(tag("StationName") not in entity for entity in without)
    if "SeriesDate" in field:
        assert all(tag("SeriesDate") in entity for entity in found)


async def test_included_attributes_that_are_always_returned_change_nothing(orthanc: Orthanc) -> None:
    """RetrieveURL and SpecificCharacterSet are the proxy's own; asking for them must not disturb them."""
    async with proxy_for(orthanc.address, use_cget=True) as proxy:
        plain = await ask(proxy, "/studies")
        named = await ask(proxy, "/studies?includefield=RetrieveURL,SpecificCharacterSet,PatientName")
    assert named == plain


async def test_everything_included(loaded: Loaded) -> None:
    async with proxy_for(loaded.address, use_cget=True) as proxy:
        for resource in ("studies", "series", "instances"):
            plain = await ask(proxy, f"/{resource}?PatientID=LATIN1")
            everything = await ask(proxy, f"/{resource}?PatientID=LATIN1&includefield=all")
            assert len(everything) == len(plain) > 0
            for few, many in zip(plain, everything, strict=True):
                assert few.items() <= many.items()


async def test_everything_includes_what_is_not_returned_otherwise(orthanc: Orthanc) -> None:
    async with proxy_for(orthanc.address, use_cget=True) as proxy:
        for resource, keyword in (("studies", "SOPClassesInStudy"), ("series", "ProtocolName")):
            for entity in await ask(proxy, f"/{resource}?includefield=all"):
                assert tag(keyword) in entity


async def test_limit_and_offset_cut_the_same_list(loaded: Loaded) -> None:
    async with proxy_for(loaded.address, use_cget=True) as proxy:
        everything = list(map(series_of, await ask(proxy, "/series")))
        for limit, offset in ((0, 0), (1, 0), (5, 0), (3, 4), (100, 0), (100, 5), (5, 1000), (0, 3)):
            part = list(map(series_of, await ask(proxy, f"/series?limit={limit}&offset={offset}")))
            assert part == everything[offset : offset + limit]
        assert list(map(series_of, await ask(proxy, "/series?offset=7"))) == everything[7:]


async def test_enough_cancels_the_search() -> None:
    """The archive has answers without end, and still one association does for the next search."""

    async def endless(_: pydicom.Dataset) -> Any:
        number = 0
        while True:
            number += 1
            yield study(number)

    async with proxied(endless) as (archive, proxy):
        assert len(await ask(proxy, "/studies?limit=3&offset=4")) == 3
        assert len(await ask(proxy, "/studies?limit=1")) == 1
        await asyncio.wait_for(archive.closed.wait(), 1)
        assert archive.associations == 1


# --- RetrieveURL ---------------------------------------------------------------------------------------------


async def test_retrieve_url_leads_to_what_was_found(loaded: Loaded) -> None:
    async with proxy_for(loaded.address, use_cget=True) as proxy:
        for entity in await ask(proxy, "/instances"):
            study_uid, series_uid, instance_uid = instance_of(entity)
            expected = f"{proxy.url}/studies/{study_uid}/series/{series_uid}/instances/{instance_uid}"
            assert value(entity, "RetrieveURL") == expected
        (entity,) = await ask(proxy, "/series?SeriesInstanceUID=" + SERIES)
        assert value(entity, "RetrieveURL") == f"{proxy.url}/studies/{STUDY}/series/{SERIES}"
        (entity,) = await ask(proxy, "/studies?StudyInstanceUID=" + STUDY)
        assert value(entity, "RetrieveURL") == f"{proxy.url}/studies/{STUDY}"


async def retrieve_url(proxy: Proxy, host: str) -> str:
    """Return the RetrieveURL of a study, up to its path."""
    reply = await fetch(proxy, "/studies?StudyInstanceUID=" + STUDY, Host=host)
    assert reply.status == 200, reply.json
    return str(value(reply.json[0], "RetrieveURL")).removesuffix(f"/studies/{STUDY}")


async def test_retrieve_url_follows_a_good_host_header(orthanc: Orthanc) -> None:
    async with proxy_for(orthanc.address, use_cget=True) as proxy:
        port = yarl.URL(proxy.url).port
        assert await retrieve_url(proxy, "pacs.example.org:8080") == "http://pacs.example.org:8080"
        assert await retrieve_url(proxy, "[::1]:8080") == "http://[::1]:8080"
        # Python's dicomweb-client leaves the port out.
        assert await retrieve_url(proxy, "pacs.example.org") == f"http://pacs.example.org:{port}"
        assert await retrieve_url(proxy, "pacs.example.org:80") == "http://pacs.example.org"


@pytest.mark.parametrize(
    "host",
    [
        'evil"><script>alert(1)</script>',
        "evil/studies",
        "user@evil.example",
        "evil example",
        "evil\\",
        "evil#",
        "evil:99999",
        "evil:0",
        "evil:",
        ":80",
        "[evil]",
        "",
    ],
)
async def test_a_bad_host_header_is_not_repeated(orthanc: Orthanc, host: str) -> None:
    async with proxy_for(orthanc.address, use_cget=True) as proxy:
        assert await retrieve_url(proxy, host) == proxy.url


async def test_retrieve_url_is_the_configured_one(orthanc: Orthanc) -> None:
    public = "https://pacs.example.org/dicomweb"
    async with proxy_for(orthanc.address, use_cget=True, publicUrl=public) as proxy:
        assert await retrieve_url(proxy, "evil.example") == public
        assert await retrieve_url(proxy, "127.0.0.1") == public


# --- other witnesses -----------------------------------------------------------------------------------------

S = f"/studies/{STUDY}"
SAME_QUESTIONS = (
    "/studies",
    "/series",
    "/instances",
    f"{S}/series",
    f"{S}/instances",
    f"{S}/series/{SERIES}/instances",
    "/studies?PatientName=Sample*",
    "/studies?00100020=LATIN1",
    "/studies?StudyDate=20240101-20240505&includefield=00081030",
    "/studies?StudyDate=20240404-",
    "/series?Modality=CT",
    "/instances?SOPClassUID=1.2.840.10008.5.1.4.1.1.2",
    f"/instances?StudyInstanceUID={STUDY}&SeriesNumber=2",
)


@pytest.mark.parametrize("question", SAME_QUESTIONS)
async def test_orthancs_own_server_answers_the_same(orthanc_dicomweb: Orthanc, question: str) -> None:
    """The same entities, and equal values wherever both return an attribute with one."""
    async with proxy_for(orthanc_dicomweb.address, use_cget=True) as proxy:
        ours = {entity_key(entity): entity for entity in await ask(proxy, question)}
        url = yarl.URL(orthanc_dicomweb.dicomweb_url + question, encoded=True)
        async with proxy.http.get(url, headers={"Accept": "application/dicom+json"}) as response:
            theirs = {entity_key(entity): entity for entity in await response.json(content_type=None)}
    assert ours.keys() == theirs.keys()
    assert ours
    # Each server names itself; and Orthanc gives a study the time zone of whichever of its instances it looks at.
    differ = {tag("RetrieveURL"), tag("TimezoneOffsetFromUTC")}
    for key, entity in ours.items():
        for both in (entity.keys() & theirs[key].keys()) - differ:
            assert entity[both] == theirs[key][both], both


def entity_key(entity: Entity) -> tuple[Any, ...]:
    """Return the UIDs that an entity has."""
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return tuple(value(entity, keyword) for keyword in keywords if tag(keyword) in entity)


async def test_the_python_dicomweb_client(samples: Corpus, orthanc: Orthanc) -> None:
    async with proxy_for(orthanc.address, use_cget=True) as proxy:
        client = DICOMwebClient(proxy.url)

        def run() -> None:
            assert {study_of(entity) for entity in client.search_for_studies()} == set(samples.study_uids)
            filters = {"PatientID": "LATIN1", "StudyDate": "20240101-20241231"}
            (found,) = client.search_for_studies(search_filters=filters, fields=["StudyDescription"])
            assert value(found, "PatientName") == {"Alphabetic": "Müller^Jürgen"}
            # It sends no port in Host; the URL has it all the same.
            assert value(found, "RetrieveURL") == f"{proxy.url}/studies/{STUDY}"
            assert len(client.search_for_studies(limit=3, offset=1)) == 3
            assert len(client.search_for_series(STUDY)) == 2
            assert len(client.search_for_series(search_filters={"Modality": "CT"})) == 8
            assert len(client.search_for_instances(STUDY, SERIES)) == 3
            assert len(client.search_for_instances(STUDY)) == 6
            assert len(client.search_for_instances(search_filters={"PatientID": "LATIN1"})) == 6
            assert client.search_for_studies(search_filters={"PatientID": "NOBODY"}) == []
            data_set = pydicom.Dataset.from_json(found)
            assert data_set.PatientName == "Müller^Jürgen"

        await asyncio.to_thread(run)
