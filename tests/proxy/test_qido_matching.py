"""Searches, end to end: which entities a query finds (PS3.18 8.3.4.1, PS3.4 C.2.2.2).

Real archives show that a query finds what it should; scripted ones show what exactly an archive is asked for, where
the real ones know less than the standard.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

import pydicom
import pytest

from proxy.demo.archive import DemoArchive
from proxy.demo.index import Index, scan
from tests.corpus import FILES, MIXED_STUDY, NAMES, Corpus, header, uid, write
from tests.corpus import encode as encode_file
from tests.peers.dcmtk import Dcmqrscp, Scu, dcmqrscp_takes
from tests.peers.orthanc import Orthanc
from tests.peers.process import Address
from tests.proxy.finding import Entity, Scripted, ask, giving, proxied, scripted, study, tag, value, values
from tests.proxy.running import proxy_for

ORTHANC, DEMO, DCMQRSCP, PYNETDICOM = "orthanc", "demo", "dcmqrscp", "pynetdicom_archive"
ALL = (ORTHANC, DEMO, DCMQRSCP, PYNETDICOM)
WITH_RANGES = (ORTHANC, DEMO, DCMQRSCP)  # the pynetdicom one matches text only
WITH_MODALITIES = (ORTHANC, DEMO)  # dcmqrscp ignores keys that are not in its index, and matches all

CT = ("LATIN1", "UTF8", "JAPANESE", "GREEK", "CYRILLIC", "KOREAN", "GB18030")
MR = ("COMPRESSED", "BIGENDIAN", "IMPLICIT")
EVERYBODY = tuple(dict.fromkeys([*(name[0] for name in NAMES), "UNUSUAL", *(file[0] for file in FILES)]))
STUDY_1, STUDY_2 = uid(MIXED_STUDY, 1), uid(MIXED_STUDY, 2)
SERIES_1, SERIES_2 = uid(MIXED_STUDY, 1, 1), uid(MIXED_STUDY, 1, 2)


@pytest.fixture(scope="session")
def index(samples: Corpus) -> Index:
    """The index of a demo archive with the mixed set."""
    index = Index()
    assert all(reason is None for reason in scan(index, samples.folder) if reason != "no DICOM Part 10 file")
    return index


@pytest.fixture
async def archive(request: pytest.FixtureRequest, index: Index) -> AsyncIterator[Address]:
    """The archive of this name; the demo archive is one that sends names in the character set of the file."""
    if request.param != DEMO:
        yield request.getfixturevalue(request.param).address
        return
    async with DemoArchive(None, index=index) as demo:
        yield Address("DEMO", demo.port)


def on(archives: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test on each of these archives."""
    return pytest.mark.parametrize("archive", archives, indirect=True)


@dataclass(frozen=True)
class Case:
    """A query string, and the patients whose studies it finds on `archives`."""

    query: str
    patients: Iterable[str]
    archives: tuple[str, ...] = ALL


STUDIES = (
    Case("PatientID=LATIN1", ["LATIN1"]),
    Case("PatientID=LATIN", ["LATIN1"]),  # qidoAppendWildcard
    Case("PatientID=?ATIN1", ["LATIN1"]),
    Case("PatientID=%2AATIN%2A", ["LATIN1"]),
    Case("PatientID=NOBODY", []),
    Case("PatientID=", EVERYBODY),  # universal matching
    Case("00100020=GREEK", ["GREEK"]),
    Case("0020000d=" + STUDY_1, ["LATIN1"]),
    Case("PatientName=Sample%5ENumber*", ["UNUSUAL"], WITH_RANGES),
    Case("PatientName=Sample", ["UNUSUAL"], WITH_RANGES),
    Case("PatientName=%C5%81ukasiewicz", ["UTF8"], (ORTHANC, DEMO, DCMQRSCP)),
    Case("PatientName=M%C3%BCller", ["LATIN1"], WITH_RANGES),
    Case("PatientName=M*%5EJ%C3%BCrgen", ["LATIN1"], WITH_RANGES),
    Case("PatientName=*%E5%B1%B1%E7%94%B0*", ["JAPANESE"], (ORTHANC, DEMO)),
    Case("PatientName=%CE%94%CE%B9%CE%BF", ["GREEK"], WITH_RANGES),
    Case("PatientName=%D0%98%D0%B2%D0%B0%D0%BD%D0%BE%D0%B2%D0%B0", ["CYRILLIC"], WITH_RANGES),
    Case("PatientName=*%ED%99%8D*", ["KOREAN"], (ORTHANC, DEMO)),
    Case("PatientName=*%E7%8E%8B*", ["GB18030"], (ORTHANC, DEMO, DCMQRSCP)),
    Case("StudyDate=20240404", ["JAPANESE"]),
    Case("StudyDate=20240404-20240606", ["JAPANESE", "GREEK", "CYRILLIC", "ECG"], WITH_RANGES),
    Case("StudyDate=20241010-", ["COMPRESSED", "BIGENDIAN", "IMPLICIT"], WITH_RANGES),
    Case("StudyDate=-20240202", ["LATIN1", "REPORT"], WITH_RANGES),
    Case("StudyTime=100000-102000&PatientID=KOREAN", ["KOREAN"], WITH_RANGES),
    Case("StudyTime=1100-", [], WITH_RANGES),
    Case("AccessionNumber=A300003", ["JAPANESE"]),
    Case("AccessionNumber=A30000", []),  # the wildcard is for names and IDs only
    Case("AccessionNumber=A30001*", ["BIGENDIAN", "IMPLICIT", "REPORT", "RADIOTHERAPY", "SEGMENTATION", "ECG"]),
    Case("StudyDescription=Study%205", ["CYRILLIC"]),
    Case(f"StudyInstanceUID={STUDY_1},{STUDY_2}", ["LATIN1", "UTF8"]),
    Case(f"StudyInstanceUID={STUDY_1}%2C{STUDY_2}", ["LATIN1", "UTF8"]),
    Case(f"StudyInstanceUID={STUDY_1}%5C{STUDY_2}", ["LATIN1", "UTF8"]),
    Case(f"StudyInstanceUID={STUDY_1}&StudyInstanceUID={STUDY_2}", ["LATIN1", "UTF8"]),
    Case("ModalitiesInStudy=MR", MR, WITH_MODALITIES),
    Case("ModalitiesInStudy=CT,MR", CT + MR, WITH_MODALITIES),
    Case("ModalitiesInStudy=CT%5CMR&PatientID=*N*", ["JAPANESE", "KOREAN", "BIGENDIAN", "LATIN1"], WITH_MODALITIES),
    Case("ModalitiesInStudy=US,OT,XA", ["UNUSUAL", "COMPRESSED"], WITH_MODALITIES),  # two of them in one study
    Case("00080061=SR", ["REPORT"], WITH_MODALITIES),
)


@pytest.mark.parametrize(
    ("archive", "case"), [(name, case) for case in STUDIES for name in case.archives], indirect=["archive"]
)
async def test_studies(samples: Corpus, archive: Address, case: Case) -> None:
    async with proxy_for(archive, use_cget=True) as proxy:
        found = await ask(proxy, f"/studies?{case.query}")
    there = {sample.patient_id for sample in samples.samples if archive.aet != "DCMQRSCP" or dcmqrscp_takes(sample)}
    assert sorted(values(found, "PatientID")) == sorted(there.intersection(case.patients))


@dataclass(frozen=True)
class Below:
    """A query, and the last numbers of the UIDs of the series or instances that it finds."""

    target: str
    numbers: Iterable[str]
    archives: tuple[str, ...] = ALL


BELOW = (
    # filters of the level itself
    Below("/series?Modality=MR&PatientID=BIGENDIAN", ["10.9"]),
    Below("/series?Modality=CT,MR&PatientID=*IAN", ["10.9"]),
    Below("/series?SeriesNumber=2", ["1.2", "8.2", "9.2"], (ORTHANC, DEMO, PYNETDICOM)),
    Below(f"/series?SeriesInstanceUID={SERIES_1},{SERIES_2}", ["1.1", "1.2"]),
    Below(f"/studies/{STUDY_1}/series?SeriesNumber=2", ["1.2"]),
    Below(f"/studies/{STUDY_1}/series?Modality=MR", []),
    Below("/instances?InstanceNumber=3", ["1.1.3", "1.2.3"]),
    Below(f"/studies/{STUDY_1}/series/{SERIES_1}/instances?InstanceNumber=2", ["1.1.2"]),
    Below("/instances?SOPClassUID=1.2.840.10008.5.1.4.1.1.88.33", ["12.11.1"], (ORTHANC, DEMO, PYNETDICOM)),
    Below("/instances?Rows=16", ["8.1.1", "8.2.1"], (ORTHANC, DEMO, PYNETDICOM)),
    # filters of the levels above
    Below("/series?PatientID=LATIN1", ["1.1", "1.2"]),
    Below("/series?StudyDate=20240101-20240202", ["1.1", "1.2", "12.11"], WITH_RANGES),
    Below(f"/series?StudyInstanceUID={STUDY_1},{STUDY_2}&SeriesNumber=1", ["1.1", "2.1"]),
    Below("/series?ModalitiesInStudy=SR,ECG", ["12.11", "15.14"], WITH_MODALITIES),
    Below("/instances?PatientID=LATIN1&SeriesNumber=2&InstanceNumber=3", ["1.2.3"]),
    Below(f"/instances?SeriesInstanceUID={SERIES_2}", ["1.2.1", "1.2.2", "1.2.3"]),
    Below(f"/studies/{STUDY_1}/series?PatientID=NOBODY", []),
    Below(f"/studies/{STUDY_1}/series?PatientID=LATIN1", ["1.1", "1.2"]),
    Below(f"/studies/{STUDY_1}/instances?SeriesNumber=1", ["1.1.1", "1.1.2", "1.1.3"]),
    Below(f"/studies/{STUDY_1}/instances?Modality=CT&InstanceNumber=2", ["1.1.2", "1.2.2"]),
    Below(f"/studies/{STUDY_1}/series/{SERIES_1}/instances?Modality=MR", []),
    Below(f"/studies/{STUDY_1}/series/{SERIES_1}/instances?PatientID=LATIN1&Modality=CT&InstanceNumber=1", ["1.1.1"]),
    # a UID that repeats what the path says
    Below(f"/studies/{STUDY_1}/series?StudyInstanceUID={STUDY_1}&SeriesNumber=2", ["1.2"]),
)


@pytest.mark.parametrize(
    ("archive", "case"), [(name, case) for case in BELOW for name in case.archives], indirect=["archive"]
)
async def test_series_and_instances(archive: Address, case: Below) -> None:
    async with proxy_for(archive, use_cget=True) as proxy:
        found = await ask(proxy, case.target)
    unique = "SOPInstanceUID" if "/instances" in case.target else "SeriesInstanceUID"
    assert sorted(values(found, unique)) == sorted(f"{uid(MIXED_STUDY)}.{number}" for number in case.numbers)


# --- character sets ------------------------------------------------------------------------------------------

GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


@on(ALL)
async def test_names_come_as_utf_8(archive: Address) -> None:
    """Three of the archives answer in the character set of the file, Orthanc in its own."""
    async with proxy_for(archive, use_cget=True) as proxy:
        found = {value(entity, "PatientID"): entity for entity in await ask(proxy, "/studies")}
    for patient_id, _, name in NAMES:
        assert value(found[patient_id], "PatientName") == dict(zip(GROUPS, name.split("="), strict=False))
        assert value(found[patient_id], "SpecificCharacterSet") == "ISO_IR 192"


@on(ALL)
async def test_names_of_other_levels_keep_their_character_set(archive: Address) -> None:
    """The study's answer may be in another character set than that of the instance."""
    async with proxy_for(archive, use_cget=True) as proxy:
        found = await ask(proxy, "/instances?PatientID=JAPANESE")
    assert values(found, "PatientName") == [dict(zip(GROUPS, NAMES[2][2].split("="), strict=True))]


def latin_without_character_set() -> bytes:
    """Return an answer in Latin-1 that does not say so."""
    answer = study(PatientName="M?ller^J?rgen", PatientID="X")
    return _encoded(answer).replace(b"?", b"\xfc")


def _encoded(answer: pydicom.Dataset) -> bytes:
    from tests.dul.archive import encode

    return encode(answer, pydicom.uid.ExplicitVRLittleEndian)


async def test_default_character_set_of_a_peer() -> None:
    async with scripted(giving(latin_without_character_set())) as archive:
        for term, name in (("ISO_IR 100", "Müller^Jürgen"), ("ISO_IR 126", "Mόller^Jόrgen")):
            async with proxy_for(archive.address, use_cget=True, peer={"defaultCharacterSet": term}) as proxy:
                (found,) = await ask(proxy, "/studies")
                assert value(found, "PatientName") == {"Alphabetic": name}


async def test_what_is_no_text_in_the_character_set_still_comes() -> None:
    broken = _encoded(study(SpecificCharacterSet="ISO_IR 192", PatientName="M?ller")).replace(b"?", b"\xfc")
    async with proxied(giving(broken)) as (_, proxy):
        (found,) = await ask(proxy, "/studies")
    assert value(found, "PatientName") == {"Alphabetic": "M\ufffdller"}


async def test_other_text_comes_in_its_character_set_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Descriptions and codes, in a code-extended character set, from an archive with such a file."""
    data_set = header(MIXED_STUDY, 1, 1, 1)
    data_set.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    data_set.StudyDescription = "頭部CT"
    data_set.SeriesDescription = "造影 後"
    request = pydicom.Dataset()
    request.RequestedProcedureID = "RP1"
    request.ScheduledProcedureStepID = "SPS1"
    request.RequestedProcedureDescription = "胸部"
    data_set.RequestAttributesSequence = [request]
    corpus = write(tmp_path_factory.mktemp("text"), [encode_file(data_set)])
    async with DemoArchive(corpus.folder) as demo, proxy_for(Address("DEMO", demo.port), use_cget=True) as proxy:
        (found,) = await ask(proxy, f"/series?StudyDescription={quote('頭*')}")
        assert value(found, "StudyDescription") == "頭部CT"
        assert value(found, "SeriesDescription") == "造影 後"
        item = value(found, "RequestAttributesSequence")
        assert value(item, "RequestedProcedureDescription") == "胸部"
        # and a nested key finds it
        nested = "/series?RequestAttributesSequence.RequestedProcedureID="
        assert values(await ask(proxy, nested + "RP1"), "SeriesDescription") == ["造影 後"]
        assert await ask(proxy, nested + "RP2") == []
        assert len(await ask(proxy, "/series?00400275.00400009=SPS?")) == 1
        assert len(await ask(proxy, "/instances?00400275.00401001=RP1&InstanceNumber=1")) == 1


# --- what the archive is asked -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def asked(target: str, **settings: object) -> AsyncIterator[Scripted]:
    """Search on an archive that has nothing, and give it with what it was asked."""
    async with proxied(giving(), **settings) as (archive, proxy):
        assert await ask(proxy, target) == []
        yield archive


@pytest.mark.parametrize(
    ("settings", "value_given", "value_asked"),
    [
        ({}, "Doe", "Doe*"),
        ({}, "Doe*", "Doe*"),
        ({}, "D?e", "D?e"),
        ({}, "", None),
        ({"qidoAppendWildcard": False}, "Doe", "Doe"),
        ({"qidoMinChars": 3}, "Do", "Do"),
        ({"qidoMinChars": 3}, "Doe", "Doe*"),
        ({"qidoMinChars": 3}, "D*", "D*"),
    ],
)
async def test_the_appended_wildcard(settings: dict[str, object], value_given: str, value_asked: str | None) -> None:
    for keyword in ("PatientName", "PatientID"):
        async with asked(f"/studies?{keyword}={value_given}&AccessionNumber=A1", **settings) as archive:
            assert (archive.searches[0][keyword].value or None) == value_asked
            assert archive.searches[0].AccessionNumber == "A1"


async def test_a_name_in_other_letters_is_asked_for_in_utf_8() -> None:
    async with asked("/studies?PatientName=" + quote("山田*")) as archive:
        (keys,) = archive.searches
    assert keys.SpecificCharacterSet == "ISO_IR 192"
    assert keys.PatientName == "山田*"


async def test_a_nested_key_goes_out_as_an_item() -> None:
    target = "/studies/1.2/series?RequestAttributesSequence.RequestedProcedureID=RP1&includefield=00400275.00400007"
    async with asked(target) as archive:
        (keys,) = archive.searches
    (item,) = keys.RequestAttributesSequence
    assert item.RequestedProcedureID == "RP1"
    assert item["ScheduledProcedureStepDescription"].is_empty


async def test_modalities_are_asked_for_one_by_one() -> None:
    """An archive need not match lists of anything but UIDs; a study that two queries find is one."""
    both = study(1, ModalitiesInStudy=["CT", "MR"])
    async with proxied(giving(both)) as (archive, proxy):
        assert len(await ask(proxy, "/studies?ModalitiesInStudy=CT,MR,CT")) == 1
    assert [keys.ModalitiesInStudy for keys in archive.searches] == ["CT", "MR"]


async def test_uids_are_asked_for_at_once() -> None:
    async with asked("/studies?StudyInstanceUID=1.2,1.3%5C1.4&StudyInstanceUID=1.5") as archive:
        (keys,) = archive.searches
    assert list(keys.StudyInstanceUID) == ["1.2", "1.3", "1.4", "1.5"]


async def test_an_archive_that_ignores_uids_is_not_believed() -> None:
    """Some answer with everything; what was not asked for is left out."""
    async with proxied(giving(study(1), study(2), study(3))) as (_, proxy):
        found = await ask(proxy, f"/studies?StudyInstanceUID={uid(9, 2)}")
    assert values(found, "StudyInstanceUID") == [uid(9, 2)]


async def test_pending_ff01_is_a_match(samples: Corpus, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Matches whose optional keys the archive does not support (PS3.4 C.4.1.1.4)."""
    from tests.peers.pynetdicom_peer import PynetdicomScp

    folder = tmp_path_factory.mktemp("ff01")
    with PynetdicomScp(folder, serve=samples.folder, pending=0xFF01) as archive:
        async with proxy_for(archive.address, use_cget=True) as proxy:
            assert len(await ask(proxy, "/studies")) == len(samples.study_uids)


# --- fuzzy matching ------------------------------------------------------------------------------------------


async def test_fuzzy_matching_is_answered_with_a_warning(orthanc: Orthanc) -> None:
    async with proxy_for(orthanc.address, use_cget=True) as proxy:
        for switch, warned in (("true", True), ("false", False)):
            async with proxy.http.get(f"/studies?PatientName=Sample&fuzzymatching={switch}") as response:
                found: list[Entity] = await response.json(content_type=None)
                assert values(found, "PatientID") == ["UNUSUAL"]
                assert ("Warning" in response.headers) == warned
                if warned:
                    assert response.headers["Warning"].startswith("299 ")
                    assert "literal matching" in response.headers["Warning"]


async def test_ohifs_study_list(orthanc: Orthanc, dcmqrscp: Dcmqrscp) -> None:
    query = (
        "limit=101&offset=0&fuzzymatching=true&includefield=00081030%2C00080060%2C00080090%2C00100030"
        "&PatientName=*am*&00100020=*I*&StudyDate=20240101-20241231"
    )
    for archive, patients in ((orthanc, ["SEGMENTATION", "BIGENDIAN"]), (dcmqrscp, ["BIGENDIAN"])):
        async with proxy_for(archive.address, use_cget=True) as proxy:
            found = await ask(proxy, f"/studies?{query}")
        assert set(patients) <= set(values(found, "PatientID"))
        assert all(tag("StudyDescription") in entity for entity in found)


@pytest.fixture(scope="module")
def strict(samples: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dcmqrscp]:
    """An archive that refuses C-FINDs with keys of other levels as a whole (`dcmqrscp -XF`)."""
    with Dcmqrscp(tmp_path_factory.mktemp("strict"), aet="STRICT", options=["-XF"]) as archive:
        files = [samples.path(sample) for sample in samples.of_patient("LATIN1")]
        Scu(archive.address).store(files, "--required").succeeded()
        yield archive


@pytest.mark.parametrize(
    ("target", "count"),
    [
        ("/studies?limit=101&offset=0&fuzzymatching=true&includefield=00081030%2C00080060%2C00080090%2C00100030", 1),
        ("/studies?includefield=SOPClassUID,SeriesNumber", 1),
        (f"/studies/{STUDY_1}/series?includefield=0008103E%2C00080021,00080018", 2),
        (f"/studies/{STUDY_1}/series/{SERIES_1}/instances?limit=1&includefield=00080018", 1),
        (f"/studies/{STUDY_1}/instances?includefield=PatientName,StudyDescription", 6),
        ("/series?PatientID=LATIN1&Modality=CT", 2),
        ("/instances?PatientID=LATIN1&SeriesNumber=1", 3),
        ("/studies?includefield=all", 1),
        ("/instances?includefield=all", 6),
    ],
)
async def test_viewers_get_along_with_a_strict_archive(strict: Dcmqrscp, target: str, count: int) -> None:
    """OHIF asks for Modality with each study, which is an attribute of the series."""
    async with proxy_for(strict.address, use_cget=True) as proxy:
        assert len(await ask(proxy, target)) == count
