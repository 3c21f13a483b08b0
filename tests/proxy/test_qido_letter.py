"""QIDO-RS to the letter of PS3.18: what is optional, rare, or easily got wrong. The ordinary is in `test_qido`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from xml.etree import ElementTree

import pytest
from pydicom.dataset import Dataset

from tests.corpus import Corpus, uid
from tests.peers.orthanc import Orthanc
from tests.proxy.finding import Scripted, ask, fetch, giving, many, proxied, scripted, study, tag, value, values
from tests.proxy.running import Proxy, proxy_for

NATIVE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"
XML = 'multipart/related; type="application/dicom+xml"'


def warnings_of(headers: dict[str, str]) -> str:
    """Return the Warning header, or nothing."""
    return headers.get("Warning", "")


# --- XML -----------------------------------------------------------------------------------------------------


async def xml(proxy: Proxy, target: str) -> list[ElementTree.Element]:
    """Search, and return the documents of the parts."""
    async with proxy.http.get(target, headers={"Accept": XML}) as response:
        assert response.status == 200
        content_type = response.headers["Content-Type"]
        assert content_type.startswith(f"{XML}; boundary=")
        body = await response.read()
    boundary = content_type.rpartition("=")[2].encode()
    opening, closing = b"--" + boundary + b"\r\n", b"\r\n--" + boundary + b"--\r\n"
    assert body.startswith(opening)
    assert body.endswith(closing)
    parts = body[len(opening) : -len(closing)].split(b"\r\n" + opening)
    heads, documents = zip(*(part.split(b"\r\n\r\n", 1) for part in parts), strict=True)
    assert set(heads) == {b"Content-Type: application/dicom+xml"}
    return [ElementTree.fromstring(document) for document in documents]


def in_xml(document: ElementTree.Element) -> dict[str, list[str]]:
    """Return the values of the attributes of a document, as text."""
    assert document.tag == f"{NATIVE}NativeDicomModel"
    return {each.attrib["tag"]: [part.text or "" for part in each.iter() if not len(part)] for each in document}


async def test_xml_says_the_same_as_json(orthanc: Orthanc) -> None:
    """All attributes of all matches, with names in any script and sequences."""
    async with proxy_for(orthanc.address, use_cget=True) as proxy:
        for target in ("/studies", "/series?Modality=MR", "/instances?PatientID=JAPANESE&includefield=all"):
            documents, entities = await xml(proxy, target), await ask(proxy, target)
            assert len(documents) == len(entities) > 0
            for document, entity in zip(documents, entities, strict=True):
                found = in_xml(document)
                assert list(found) == list(entity)
                for name, attribute in entity.items():
                    given = attribute.get("Value", [])
                    if attribute["vr"] not in ("PN", "SQ"):
                        assert [text for text in found[name] if text] == [str(one) for one in given], name
        (name,) = [in_xml(document)[tag("PatientName")] for document in await xml(proxy, "/studies?PatientID=JAPANESE")]
        assert name == ["Yamada", "Tarou", "山田", "太郎", "やまだ", "たろう"]


async def test_xml_of_very_many_matches_is_streamed() -> None:
    async with proxied(many(1000)) as (_, proxy):
        documents = await xml(proxy, "/studies")
    assert len({in_xml(document)[tag("StudyInstanceUID")][0] for document in documents}) == 1000


async def test_no_match_in_xml(orthanc: Orthanc) -> None:
    """204: there is no multipart body without a part. In JSON it is an empty array."""
    async with (
        proxy_for(orthanc.address, use_cget=True) as proxy,
        proxy.http.get("/studies?PatientID=NOBODY", headers={"Accept": XML}) as response,
    ):
        assert (response.status, await response.read()) == (204, b"")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (f"{XML}, application/dicom+json;q=0.5", "multipart/related"),
        (f"{XML};q=0.5, application/dicom+json", "application/dicom+json"),
        (f"{XML};q=0.5, application/json", "application/dicom+json"),
        (f"{XML};q=0.5, */*;q=0.4", "multipart/related"),
        ("multipart/related", "multipart/related"),
        ("*/*", "application/dicom+json"),
    ],
)
async def test_the_client_chooses_the_form(accept: str, expected: str) -> None:
    async with (
        proxied(giving(study())) as (_, proxy),
        proxy.http.get("/studies", headers={"Accept": accept}) as response,
    ):
        assert (response.status, response.content_type) == (200, expected)


# --- paging ----------------------------------------------------------------------------------------------------


def numbered(first: int, count: int, pause: float) -> Any:
    """Return a script of studies that come with a pause before each."""

    async def script(_: Dataset) -> AsyncGenerator[Dataset, None]:
        for number in range(first, first + count):
            await asyncio.sleep(pause)
            yield study(number)

    return script


async def test_pages_of_several_archives_fit_together() -> None:
    """The order of the list is the same for each page, whichever archive is the quicker at the time."""
    async with (
        scripted(numbered(1, 12, 0.004), aet="SLOW") as slow,
        scripted(numbered(10, 12, 0), aet="QUICK") as quick,
        proxy_for(slow.address, quick.address, use_cget=True) as proxy,
    ):
        found: list[str] = []
        for offset in range(0, 25, 5):
            page = await ask(proxy, f"/studies?limit=5&offset={offset}")
            found += values(page, "StudyInstanceUID")
            # The two change places.
            slow.script, quick.script = (
                (numbered(1, 12, 0), numbered(10, 12, 0.004))
                if offset % 2
                else (numbered(1, 12, 0.004), numbered(10, 12, 0))
            )
        # Each study once, those of the archive that is configured first before those that only the other has.
        assert found == [uid(9, number) for number in range(1, 22)]


async def test_a_limit_on_several_archives_cancels_both() -> None:
    async with (
        scripted(many(), aet="ONE") as one,
        scripted(many(), aet="TWO") as two,
        proxy_for(one.address, two.address, use_cget=True) as proxy,
    ):
        assert len(await ask(proxy, "/studies?limit=150")) == 150
        for archive in (one, two):
            await asyncio.wait_for(archive.closed.wait(), 2)


async def test_without_a_limit_a_slow_archive_holds_nothing_up() -> None:
    """The answers of one are not kept back for those of another, as no page has to be found again."""
    async with (
        scripted(numbered(1, 3, 0.05), aet="SLOW") as slow,
        scripted(numbered(10, 3, 0), aet="QUICK") as quick,
        proxy_for(slow.address, quick.address, use_cget=True) as proxy,
    ):
        found = values(await ask(proxy, "/studies"), "StudyInstanceUID")
    assert sorted(found) == sorted(uid(9, number) for number in (1, 2, 3, 10, 11, 12))
    assert found[-1] == uid(9, 3)


# --- matching that is beyond the literal -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fuzzymatching", "Only literal matching has been performed."),
        ("emptyvaluematching", "Empty Value Matching has not been performed."),
        ("multiplevaluematching", "Multiple Value Matching has not been performed."),
    ],
)
async def test_what_is_not_supported_is_said(name: str, words: str) -> None:
    """The words of PS3.18 8.3.4.2, 8.3.4.5 and 8.3.4.6; the search itself is made without."""
    async with proxied(giving(study())) as (archive, proxy):
        reply = await fetch(proxy, f"/studies?{name}=true")
        assert (reply.status, len(reply.json)) == (200, 1)
        assert f'"The {name} parameter is not supported. {words}"' in warnings_of(reply.headers)
        assert warnings_of((await fetch(proxy, f"/studies?{name}=false")).headers) == ""
        assert archive.searches[0] == archive.searches[1]


# --- sequences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "RequestAttributesSequence.RequestedProcedureID",
        "00400275.00401001",
        "00400275.RequestedProcedureID",
        "RequestAttributesSequence.00401001",
    ],
)
async def test_a_key_within_a_sequence(name: str) -> None:
    """By keywords, by tags, or mixed: one item with that key (PS3.4 C.2.2.2.6)."""
    async with proxied(giving()) as (archive, proxy):
        await ask(proxy, f"/studies/1.2/series?{name}=RP1")
    (item,) = archive.searches[0].RequestAttributesSequence
    assert item.RequestedProcedureID == "RP1"


async def test_keys_within_the_same_sequence_share_an_item() -> None:
    async with proxied(giving()) as (archive, proxy):
        prefix = "RequestAttributesSequence."
        await ask(
            proxy,
            f"/studies/1.2/series?{prefix}RequestedProcedureID=RP1&{prefix}ScheduledProcedureStepID=S1"
            f"&includefield={prefix}RequestedProcedureDescription",
        )
    (item,) = archive.searches[0].RequestAttributesSequence
    assert (item.RequestedProcedureID, item.ScheduledProcedureStepID) == ("RP1", "S1")
    assert item.RequestedProcedureDescription == ""


# --- includefield=all -----------------------------------------------------------------------------------------------


async def asked_for(archive: Scripted, proxy: Proxy, target: str) -> dict[str, set[str]]:
    """Return the keywords that the archive is asked for, by level."""
    archive.searches.clear()
    await ask(proxy, target)
    return {keys.QueryRetrieveLevel: {element.keyword for element in keys} for keys in archive.searches}


async def test_all_is_asked_for_by_name() -> None:
    """Of the levels that the resource shows, and of no other: an archive may refuse keys of other levels."""
    async with proxied(giving()) as (archive, proxy):
        found = await asked_for(archive, proxy, "/studies?includefield=all")
        assert {"OtherPatientIDs", "PatientComments", "ProcedureCodeSequence", "SOPClassesInStudy"} <= found["STUDY"]
        found = await asked_for(archive, proxy, "/studies/1.2/series?includefield=all")
        assert found.keys() == {"SERIES"}
        assert {"ProtocolName", "BodyPartExamined", "OperatorsName"} <= found["SERIES"]
        assert not {"PatientComments", "ContentDate"} & found["SERIES"]
        found = await asked_for(archive, proxy, "/studies/1.2/series/1.3/instances?includefield=all")
        assert found.keys() == {"IMAGE"}
        assert {"ImageType", "ContentDate", "ConceptNameCodeSequence", "DocumentTitle"} <= found["IMAGE"]
        assert "ProtocolName" not in found["IMAGE"]


async def test_all_shows_what_the_archive_has(samples: Corpus, orthanc: Orthanc) -> None:
    """Orthanc looks into its files for what it does not have in its index."""
    series = samples.of_patient("IMPLICIT")[0]
    async with proxy_for(orthanc.address, use_cget=True) as proxy:
        target = f"/studies/{series.study_uid}/series/{series.series_uid}/instances"
        (few,), (many_,) = await ask(proxy, target), await ask(proxy, f"{target}?includefield=all")
    assert few.items() <= many_.items()
    assert many_[tag("ImageType")]["Value"] == ["DERIVED", "SECONDARY", "OTHER"]
    assert value(many_, "SliceLocation") is not None
    assert value(many_, "PhotometricInterpretation") == "MONOCHROME2"


# --- values as they are sent ------------------------------------------------------------------------------------------


async def test_values_are_decoded_from_the_url() -> None:
    """As UTF-8 (PS3.18 8.3.1): letters, and what has a meaning in a URL."""
    async with proxied(giving()) as (archive, proxy):
        for sent, meant in (("%C3%9Cz%C3%BCm", "Üzüm*"), ("A%26B", "A&B*"), ("A+B", "A B*"), ("A%2BB", "A+B*")):
            await ask(proxy, f"/studies?PatientName={sent}")
            assert archive.searches[-1].PatientName == meant


async def test_uids_in_a_list_are_one_key() -> None:
    """UIDs may be listed in one C-FIND (PS3.4 C.2.2.2.2), however the client splits them."""
    for query in ("SOPInstanceUID=1.2,1.3", "SOPInstanceUID=1.2%5C1.3", "00080018=1.2%2C1.3&00080018=1.2"):
        async with proxied(giving()) as (archive, proxy):
            await ask(proxy, f"/studies/1.2/series/1.3/instances?{query}")
        (keys,) = archive.searches
        assert list(keys.SOPInstanceUID) == ["1.2", "1.3"]
