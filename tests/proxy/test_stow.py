"""Uploads end in the archive byte for byte, whichever archive it is, and the answer says what came of each instance."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session

from dul import dimse, uids
from tests import corpus
from tests.corpus import Corpus, Sample
from tests.peers.dcmtk import Storescp
from tests.peers.orthanc import Orthanc
from tests.peers.pynetdicom_peer import PynetdicomScp
from tests.proxy.retrieved import digests, expected, get, path_of
from tests.proxy.running import proxy_for
from tests.proxy.uploading import (
    CONTENT_TYPE,
    FAILED,
    OTHERS,
    REFERENCED,
    URL,
    instances,
    multipart,
    post,
    reasons,
    received,
    receiving,
    report_of,
)

pytestmark = pytest.mark.usefixtures("nothing_left")

Archive = Orthanc | Storescp | PynetdicomScp


@pytest.fixture(params=["storescp", "pynetdicom", "orthanc"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    """An empty archive of each kind."""
    made: Archive
    if request.param == "storescp":
        made = Storescp(tmp_path)
    elif request.param == "pynetdicom":
        made = PynetdicomScp(tmp_path)
    else:
        made = Orthanc(tmp_path, aet="STOWED")
    with made:
        yield made


def files_of(samples: Corpus, chosen: list[Sample]) -> list[bytes]:
    """Return the files of samples."""
    return [samples.path(sample).read_bytes() for sample in chosen]


async def test_every_kind_of_instance_arrives_byte_for_byte(archive: Archive, samples: Corpus) -> None:
    chosen = list(samples.samples)
    async with proxy_for(archive.address, use_cget=True) as proxy:
        answer = await post(proxy, multipart(files_of(samples, chosen)))
        assert answer.status in (200, 202), answer.body
        report = report_of(answer, answer.status)
        failed = reasons(report)
        sent = [sample for sample in chosen if sample.sop_instance_uid not in failed]
        for uid, item in instances(report, REFERENCED).items():
            sample = samples.by_uid[uid]
            assert item["00081150"]["Value"] == [sample.sop_class_uid]
            assert item[URL]["Value"] == [proxy.url + path_of(sample)]
        assert instances(report, REFERENCED).keys() == {sample.sop_instance_uid for sample in sent}
    found = await asyncio.to_thread(received, archive)
    assert found == expected(sent)
    # Only a class or transfer syntax that the archive does not know may be refused.
    assert set(failed.values()) <= {dimse.SOP_CLASS_NOT_SUPPORTED, 0xC122}
    assert len(sent) >= len(chosen) - 3, failed


async def test_what_was_uploaded_can_be_retrieved_at_once(tmp_path: Path, samples: Corpus) -> None:
    chosen = samples.of_patient("LATIN1")
    first, *others = files_of(samples, chosen)
    with Orthanc(tmp_path, aet="STOWED") as archive:
        async with proxy_for(archive.address, use_cget=True, enableCache=True) as proxy:
            path = path_of(chosen[0], "study")
            report = report_of(await post(proxy, multipart([first]), path), 200)
            assert report[URL]["Value"] == [proxy.url + path]
            assert digests((await get(proxy, path)).files) == expected(chosen[:1])
            report_of(await post(proxy, multipart(others), path), 200)
            assert digests((await get(proxy, path)).files) == expected(chosen), "the cache has the study as it was"


async def test_an_instance_of_another_study_than_the_path_fails_alone(samples: Corpus) -> None:
    mine, other = samples.of_patient("LATIN1")[0], samples.of_patient("UTF8")[0]
    async with receiving() as receiver, proxy_for(receiver.address) as proxy:
        answer = await post(proxy, multipart(files_of(samples, [other, mine])), path_of(mine, "study"))
        report = report_of(answer, 202)
        assert reasons(report) == {other.sop_instance_uid: 0xA901}
        assert receiver.stored == expected([mine])
        report = report_of(await post(proxy, multipart(files_of(samples, [other])), path_of(mine, "study")), 409)
        assert reasons(report) == {other.sop_instance_uid: 0xA901}
        assert REFERENCED not in report


async def test_parts_that_are_no_dicom_do_not_keep_others_from_being_stored(samples: Corpus) -> None:
    sample = samples.samples[0]
    (file,) = files_of(samples, [sample])
    no_study = pydicom.dcmread(samples.path(sample))
    del no_study.StudyInstanceUID
    parts = [b"", b"text", file, bytes(128) + b"DICM", file[:140], corpus.encode(no_study), b"\xff" * 300_000]
    async with receiving() as receiver, proxy_for(receiver.address) as proxy:
        report = report_of(await post(proxy, multipart(parts)), 202)
        assert receiver.stored == expected([sample])
        assert [item["00081197"]["Value"] for item in report[OTHERS]["Value"]] == [[0xC000]] * 5
        assert reasons(report) == {sample.sop_instance_uid: 0xA900}
        assert "no part" in (await post(proxy, multipart([b"text", b""]))).failure(400)
        assert "no part" in (await post(proxy, multipart([]))).failure(400)
        assert receiver.begun == 1


async def test_one_instance_as_the_whole_body(samples: Corpus) -> None:
    sample = samples.samples[0]
    (file,) = files_of(samples, [sample])
    async with receiving() as receiver, proxy_for(receiver.address) as proxy:
        report = report_of(await post(proxy, file, content_type="application/dicom"), 200)
        assert instances(report, REFERENCED).keys() == {sample.sop_instance_uid}
        assert receiver.stored == expected([sample])
        assert "no part" in (await post(proxy, b"text", content_type="application/dicom")).failure(400)


async def test_what_the_archive_answers_is_reported(samples: Corpus) -> None:
    chosen = list(samples.of_patient("LATIN1"))[:4]
    statuses = dict(zip([sample.sop_instance_uid for sample in chosen], [0, 0xB000, 0xA700, 0x0124], strict=False))

    async def respond(store: object) -> int:
        return statuses[store.sop_instance_uid]  # type: ignore[attr-defined]

    async with receiving(respond) as receiver, proxy_for(receiver.address) as proxy:
        files = files_of(samples, chosen)
        report = report_of(await post(proxy, multipart(files)), 202)
        failed = {uid: status for uid, status in statuses.items() if status in (0xA700, 0x0124)}
        assert reasons(report) == failed
        stored = instances(report, REFERENCED)
        warned = {uid: item["00081196"]["Value"][0] for uid, item in stored.items() if "00081196" in item}
        assert warned == {uid: status for uid, status in statuses.items() if status == 0xB000}
        assert stored.keys() == statuses.keys() - failed.keys()
        assert report_of(await post(proxy, multipart(files[1:2])), 202).keys() == {URL, REFERENCED}
        assert report_of(await post(proxy, multipart(files[2:3])), 409).keys() == {URL, FAILED}


async def test_what_the_archive_does_not_take_is_told_by_class_and_by_transfer_syntax(samples: Corpus) -> None:
    ct = next(each for each in samples.samples if each.sop_class_uid == corpus.CT_IMAGE)
    compressed = next(each for each in samples.samples if each.transfer_syntax_uid in uids.COMPRESSED)
    other = next(each for each in samples.samples if each.sop_class_uid == corpus.ENCAPSULATED_PDF)

    def supported(sop_class: str) -> tuple[str, ...]:
        return uids.UNCOMPRESSED if sop_class in (ct.sop_class_uid, compressed.sop_class_uid) else ()

    async with receiving(supported=supported) as receiver, proxy_for(receiver.address) as proxy:
        report = report_of(await post(proxy, multipart(files_of(samples, [other, compressed, ct]))), 202)
        assert reasons(report) == {other.sop_instance_uid: 0x0122, compressed.sop_instance_uid: 0xC122}
        assert receiver.stored == expected([ct])


async def test_forms_of_the_request(samples: Corpus) -> None:
    sample = samples.samples[0]
    (file,) = files_of(samples, [sample])
    body = multipart([file])
    async with receiving() as receiver, proxy_for(receiver.address) as proxy:
        for content_type in (
            CONTENT_TYPE,
            "multipart/related; type=application/dicom; boundary=5f2b0c6d",
            'Multipart/Related; Boundary="5f2b0c6d"; Type="Application/DICOM"',
            "multipart/related; boundary=5f2b0c6d",
        ):
            report_of(await post(proxy, body, content_type=content_type), 200)
        for content_type in (
            'multipart/related; type="application/dicom+json"; boundary=5f2b0c6d',
            'multipart/related; type="application/dicom+xml"; boundary=5f2b0c6d',
            "application/dicom+xml",
            "multipart/form-data; boundary=5f2b0c6d",
            "application/octet-stream",
            "text/plain",
        ):
            assert "application/dicom" in (await post(proxy, body, content_type=content_type)).failure(415)
        for content_type in ("multipart/related; type=application/dicom", f"multipart/related; boundary={'b' * 300}"):
            assert "boundary" in (await post(proxy, body, content_type=content_type)).failure(400)
        assert "UID" in (await post(proxy, body, "/studies/not-a-uid")).failure(400)
        (await post(proxy, body, headers={"Accept": "text/html"})).failure(406)
        assert receiver.begun == 4


async def test_forms_of_the_answer(samples: Corpus) -> None:
    sample = samples.samples[0]
    body = multipart(files_of(samples, [sample]))
    async with receiving() as receiver, proxy_for(receiver.address, publicUrl="https://pacs.example/web") as proxy:
        for accept in ("*/*", "application/dicom+json", "application/dicom+json, application/dicom+xml;q=0.5"):
            report = report_of(await post(proxy, body, headers={"Accept": accept}), 200)
            assert report[URL]["Value"] == ["https://pacs.example/web" + path_of(sample, "study")]
        assert (await post(proxy, body, headers={"Accept": "application/json"})).content_type == "application/json"
        answer = await post(proxy, body, headers={"Accept": "application/dicom+xml"})
        assert answer.content_type == "application/dicom+xml"
        root = ET.fromstring(answer.body)
        uid = root.find(".//{*}DicomAttribute[@keyword='ReferencedSOPInstanceUID']/{*}Value")
        assert uid is not None
        assert uid.text == sample.sop_instance_uid


async def test_expect_100_continue_is_answered_when_the_body_is_wanted(samples: Corpus) -> None:
    body = multipart(files_of(samples, samples.samples[:1]))
    async with receiving() as receiver, proxy_for(receiver.address) as proxy:
        port = int(proxy.url.rpartition(":")[2])
        for content_type, first in ((CONTENT_TYPE, b"HTTP/1.1 100 "), ("text/plain", b"HTTP/1.1 415 ")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                f"POST /studies HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Type: {content_type}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
            )
            assert (await reader.readline()).startswith(first)
            if b" 100 " in first:
                await reader.readline()
                writer.write(body)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize("count", [1, 6], ids=["small", "chunked"])
async def test_the_python_client_uploads(archive: Archive, samples: Corpus, count: int) -> None:
    """It sends bodies of over its chunk size in chunks, and raises where it does not understand the answer."""
    chosen = [each for each in samples.samples if each.transfer_syntax_uid == uids.EXPLICIT_VR_LITTLE_ENDIAN][:count]
    data_sets = [pydicom.dcmread(samples.path(sample)) for sample in chosen]
    async with proxy_for(archive.address, use_cget=True) as proxy:
        session = create_session()
        client = DICOMwebClient(proxy.url, session=session, chunk_size=10_000)
        answer = await asyncio.to_thread(client.store_instances, data_sets)
        session.close()
        assert {item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence} == expected(chosen).keys()
        urls = {item.RetrieveURL for item in answer.ReferencedSOPSequence}
        assert urls == {proxy.url + path_of(sample) for sample in chosen}
    assert (await asyncio.to_thread(received, archive)).keys() == expected(chosen).keys()


async def test_orthanc_answers_the_same_upload_in_the_same_way(tmp_path: Path, samples: Corpus) -> None:
    """The attributes and references that its DICOMweb plugin gives are those that the proxy gives."""
    chosen = samples.of_patient("LATIN1")
    body = multipart(files_of(samples, chosen))
    with Orthanc(tmp_path, aet="STOWED", dicomweb=True) as archive:
        async with proxy_for(archive.address) as proxy:
            ours = report_of(await post(proxy, body), 200)
            headers = {"Content-Type": CONTENT_TYPE, "Accept": "application/dicom+json"}
            async with proxy.http.post(f"{archive.dicomweb_url}/studies", data=body, headers=headers) as response:
                assert response.status == 200
                theirs = await response.json(content_type=None)
    ours_by_uid, theirs_by_uid = instances(ours, REFERENCED), instances(theirs, REFERENCED)
    assert ours_by_uid.keys() == theirs_by_uid.keys()
    for uid, item in theirs_by_uid.items():
        for tag in ("00081150", "00081155"):
            assert ours_by_uid[uid][tag] == item[tag]
        assert item.keys() - {"00081196"} == ours_by_uid[uid].keys()
    assert ours.keys() == theirs.keys() - {FAILED, "00080005"}
