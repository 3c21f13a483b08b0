"""Metadata over HTTP: what arrives and what is cached, against pydicom and Orthanc; and what cannot be read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from tests import corpus
from tests.corpus import Corpus, Sample
from tests.faultpeer import Retrieve, Stored, in_front_of, small_study
from tests.faultpeer.retrieves import failing
from tests.faultpeer.stored import other
from tests.peers.orthanc import Orthanc
from tests.proxy.dicomfiles import ITEM_END, deflated, long, short
from tests.proxy.retrieved import get, kept, path_of
from tests.proxy.running import Proxy
from tests.proxy.test_dicomjson import json_of

pytestmark = pytest.mark.usefixtures("nothing_left")

ADDED = {"00083002", "00080005"}
"""What metadata has beside the attributes of the data set: Available Transfer Syntax UID, and that JSON is UTF-8."""


async def models(proxy: Proxy, path: str, status: int = 200) -> list[Any]:
    """Get metadata as JSON."""
    answer = await get(proxy, path + "/metadata")
    assert answer.status == status, answer.body
    assert answer.content_type == "application/dicom+json"
    return json.loads(answer.body)


def attributes(model: dict[str, Any], *, inline: bool = True) -> dict[str, Any]:
    """A model without what was added, and without values that are by reference, or that may be."""
    left_out = ("BulkDataURI",) if inline else ("BulkDataURI", "InlineBinary")
    found = {}
    for tag, attribute in model.items():
        if tag in ADDED:
            continue
        left = {key: value for key, value in attribute.items() if key not in left_out}
        if attribute["vr"] == "SQ":
            left["Value"] = [attributes(item, inline=inline) for item in attribute.get("Value", [])]
        found[tag] = left
    return found


def without_bulk_data(data_set: Dataset) -> Dataset:
    """The same without the values that are by reference."""
    for element in data_set:
        if element.VR == "SQ":
            for item in element.value:
                without_bulk_data(item)
        elif element.VR in ("OB", "OD", "OF", "OL", "OV", "OW", "UN") and (
            element.tag == 0x7FE00010 or len(element.value or b"") > 1024
        ):
            element.value = b""
    return data_set


def as_pydicom_has_it(file: Path | BytesIO) -> dict[str, Any]:
    """pydicom's reading of an instance."""
    return attributes(json_of(without_bulk_data(pydicom.dcmread(file))))


# --- contents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [False, True])
async def test_all_kinds_of_instances(use_cache: bool, samples: Corpus, tmp_path: Path) -> None:
    """As pydicom reads them, all character sets and encodings, arriving and out of the cache."""
    held = [Stored.of(path.read_bytes()) for path in samples.paths()]
    options = {"enableCache": use_cache, "storagePath": str(tmp_path)}
    async with in_front_of(held, **options) as (archive, proxy):
        for study_uid in samples.study_uids:
            wanted = samples.of_study(study_uid)
            for _ in range(2 if use_cache else 1):
                found = {model["00080018"]["Value"][0]: model for model in await models(proxy, f"/studies/{study_uid}")}
                assert found.keys() == {sample.sop_instance_uid for sample in wanted}
                for sample in wanted:
                    model = found[sample.sop_instance_uid]
                    assert list(model) == sorted(model)
                    assert attributes(model) == as_pydicom_has_it(samples.path(sample))
                    assert model["00083002"] == {"vr": "UI", "Value": [sample.transfer_syntax_uid]}
                    if "7FE00010" in model:
                        uri = f"{proxy.url}{path_of(sample)}/bulkdata/7FE00010"
                        assert model["7FE00010"] == {"vr": model["7FE00010"]["vr"], "BulkDataURI": uri}
                if use_cache:
                    await kept(proxy.http)
        if use_cache:
            assert len(archive.requests) == len(samples.study_uids)


async def test_series_and_instance() -> None:
    study = small_study()
    async with in_front_of(study, use_cget=True) as (_, proxy):
        for level, wanted in (("series", study[:2]), ("instance", study[:1])):
            found = await models(proxy, path_of(study[0].sample, level))
            assert [model["00080018"]["Value"][0] for model in found] == [s.sample.sop_instance_uid for s in wanted]


async def test_orthanc_has_the_same(samples: Corpus, orthanc_dicomweb: Orthanc) -> None:
    """Orthanc's own DICOMweb server, attribute by attribute.

    It has binary values by reference whatever their length, leaves compressed pixel data out, and drops what is not
    ASCII where a data set names no character set.
    """
    held = [Stored.of(path.read_bytes()) for path in samples.paths()]
    async with in_front_of(held) as (_, proxy):
        for sample in samples.samples:
            if sample.patient_id == "REPORT":
                continue
            (ours,) = await models(proxy, path_of(sample))
            (theirs,) = orthanc_dicomweb.rest("GET", f"/dicom-web{path_of(sample)}/metadata")
            if sample.patient_id == "COMPRESSED":
                del ours["7FE00010"]
            assert attributes(ours, inline=False) == attributes(theirs, inline=False), sample


async def test_dicomweb_client_reads_it() -> None:
    study = small_study()
    async with in_front_of(study, use_cget=True) as (_, proxy):
        client = DICOMwebClient(proxy.url)
        found = await asyncio.to_thread(client.retrieve_study_metadata, study[0].sample.study_uid)
        data_sets = [Dataset.from_json(model, lambda _: b"") for model in found]
        assert {data_set.SOPInstanceUID for data_set in data_sets} == {s.sample.sop_instance_uid for s in study}


async def test_values_that_are_small_are_inline_and_large_ones_have_a_uri() -> None:
    """In sequences too; the path in the URI is tags, and numbers of items from 0."""
    data_set = corpus.header(corpus.CT_STUDY, 1, 1, 1)
    item = Dataset()
    item.add_new(0x00420011, "OB", b"\1\2" * 5000)
    data_set.RelatedSeriesSequence = [Dataset(), item]
    data_set.add_new(0x00282000, "OB", b"\1\2")
    stored = Stored.of(corpus.encode(data_set))
    async with in_front_of([stored], use_cget=True) as (_, proxy):
        (model,) = await models(proxy, path_of(stored.sample))
        uri = f"{proxy.url}{path_of(stored.sample)}/bulkdata/00081250/1/00420011"
        assert model["00081250"]["Value"] == [{}, {"00420011": {"vr": "OB", "BulkDataURI": uri}}]
        assert model["00282000"] == {"vr": "OB", "InlineBinary": "AQI="}


async def test_uris_have_the_public_address() -> None:
    study = small_study(1, 1)
    async with in_front_of(study, use_cget=True, publicUrl="https://dicom.example.org/web") as (_, proxy):
        (model,) = await models(proxy, path_of(study[0].sample))
        assert model["7FE00010"]["BulkDataURI"].startswith("https://dicom.example.org/web/studies/")


async def test_the_default_character_set_of_the_archive_holds() -> None:
    data_set = corpus.header(corpus.CT_STUDY, 1, 1, 1)
    data_set.PatientName = "Greek"
    stored = Stored.of(corpus.encode(data_set))
    stored = replace(stored, data=stored.whole.replace(b"Greek ", b"\xc4\xe9\xef\xed\xfd\xf3"))
    async with in_front_of([stored], use_cget=True, peer={"defaultCharacterSet": "ISO_IR 126"}) as (_, proxy):
        (model,) = await models(proxy, path_of(stored.sample))
        assert model["00100010"]["Value"] == [{"Alphabetic": "Διονύσ"}]


# --- streaming -------------------------------------------------------------------------------------------------------


async def test_the_answer_begins_with_the_first_instance() -> None:
    study = small_study(1, 3)
    go_on = asyncio.Event()

    async def slow(request: Retrieve) -> None:
        async with request.way() as send:
            for stored in request.instances:
                await send(stored)
                await go_on.wait()
        await request.final(completed=3, failed=0, warning=0)

    path = path_of(study[0].sample, "series") + "/metadata"
    async with (
        asyncio.timeout(10),
        in_front_of(study, slow, use_cget=True) as (_, proxy),
        proxy.http.get(path) as response,
    ):
        begun = await response.content.readany()
        while study[0].sample.sop_instance_uid.encode() not in begun:
            begun += await response.content.readany()
        go_on.set()
        whole = begun + await response.read()
    assert len(json.loads(whole)) == 3


async def test_what_cannot_be_completed_is_cut() -> None:
    study = small_study(1, 3)
    async with in_front_of(study, failing(study[2:]), use_cget=True) as (_, proxy):
        with pytest.raises(aiohttp.ClientPayloadError):
            await get(proxy, path_of(study[0].sample, "series") + "/metadata")


async def test_what_is_known_to_be_missing_is_206(tmp_path: Path) -> None:
    study = small_study(1, 3)
    options = {"enableCache": True, "storagePath": str(tmp_path)}
    async with in_front_of(study, failing(study[2:]), use_cget=True, **options) as (_, proxy):
        path = path_of(study[0].sample, "series")
        with pytest.raises(aiohttp.ClientPayloadError):
            await get(proxy, path + "/metadata")
        await kept(proxy.http)
        answer = await get(proxy, path + "/metadata")
        assert (answer.status, len(json.loads(answer.body))) == (206, 2)
        assert "1 of the instances could not be sent" in answer.headers["Warning"]


async def test_a_client_that_has_it_gets_304(tmp_path: Path) -> None:
    study = small_study()
    async with in_front_of(study, use_cget=True, enableCache=True, storagePath=str(tmp_path)) as (_, proxy):
        path = path_of(study[0].sample, "series") + "/metadata"
        assert "ETag" not in (await get(proxy, path)).headers
        await kept(proxy.http)
        json_tag = (await get(proxy, path)).headers["ETag"]
        xml_tag = (await get(proxy, path, Accept='multipart/related; type="application/dicom+xml"')).headers["ETag"]
        assert json_tag != xml_tag
        answer = await get(proxy, path, **{"If-None-Match": json_tag})
        assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", json_tag)
        assert {each.strip() for each in answer.headers["Vary"].split(",")} >= {"Accept"}
        assert (await get(proxy, path, **{"If-None-Match": xml_tag})).status == 200


# --- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "application/dicom+json"),
        ("application/json", "application/json"),
        ("application/dicom+json, application/json;q=0.5", "application/dicom+json"),
        ('multipart/related; type="application/dicom+xml"', "multipart/related"),
        ("multipart/related; type=application/dicom+xml, application/dicom+json;q=0.9", "multipart/related"),
    ],
)
async def test_media_types(accept: str, content_type: str) -> None:
    study = small_study(1, 1)
    async with in_front_of(study, use_cget=True) as (_, proxy):
        answer = await get(proxy, path_of(study[0].sample) + "/metadata", Accept=accept)
        assert answer.status == 200
        assert answer.content_type.split(";")[0] == content_type


async def test_wrong_requests() -> None:
    study = small_study(1, 1)
    path = path_of(study[0].sample)
    async with in_front_of(study, use_cget=True) as (_, proxy):
        assert "not a valid UID" in (await get(proxy, "/studies/1.2.x/metadata")).failure(400)
        assert "application/dicom+xml" in (await get(proxy, path + "/metadata", Accept="image/png")).failure(406)
        (await get(proxy, "/studies/1.2.3/metadata")).failure(404)


# --- instances that cannot be read -----------------------------------------------------------------------------------


def malformed(stored: Stored) -> Stored:
    """The same with the end of an item where there is none, behind its UIDs."""
    at = stored.whole.index(b"\xe0\x7f\x10\0OW")
    return replace(stored, data=stored.whole[:at] + ITEM_END + stored.whole[at:])


@pytest.mark.parametrize("use_cache", [False, True])
async def test_one_that_is_malformed_does_not_hide_the_others(use_cache: bool, tmp_path: Path) -> None:
    study = small_study(1, 3)
    study[1] = malformed(study[1])
    sample = study[1].sample
    options = {"enableCache": use_cache, "storagePath": str(tmp_path)}
    async with in_front_of(study, use_cget=True, **options) as (_, proxy):
        for _ in range(2):
            found = await models(proxy, path_of(sample, "series"))
            assert len(found) == 3
            assert found[1] == {
                "00080016": {"vr": "UI", "Value": [sample.sop_class_uid]},
                "00080018": {"vr": "UI", "Value": [sample.sop_instance_uid]},
                "00083002": {"vr": "UI", "Value": [sample.transfer_syntax_uid]},
                "0020000D": {"vr": "UI", "Value": [sample.study_uid]},
                "0020000E": {"vr": "UI", "Value": [sample.series_uid]},
            }
            message = (await get(proxy, path_of(sample) + "/metadata")).failure(502)
            assert "cannot be read" in message
            assert sample.sop_instance_uid not in message
            await kept(proxy.http)


async def test_truncated_pixel_data_is_no_reason_to_have_no_metadata() -> None:
    study = small_study(1, 1)
    stored = replace(study[0], data=study[0].whole[:-1000])
    async with in_front_of([stored], use_cget=True) as (_, proxy):
        (model,) = await models(proxy, path_of(stored.sample))
        assert "BulkDataURI" in model["7FE00010"]


async def pinged(proxy: Proxy, stop: asyncio.Event) -> AsyncIterator[float]:
    """How long the proxy takes to answer something else, over and over."""
    loop = asyncio.get_running_loop()
    while not stop.is_set():
        start = loop.time()
        async with proxy.http.get("/ping") as response:
            await response.read()
        yield loop.time() - start


BOMBS = {
    "many elements": (ExplicitVRLittleEndian, short(0x00280010, "US", b"\1\2") * 900_000),
    "a deflate bomb": (DeflatedExplicitVRLittleEndian, deflated(long(0x00204000, "UT", b" " * 200_000_000))),
    "nesting": (ExplicitVRLittleEndian, long(0x0040A730, "SQ", b"\xfe\xff\0\xe0\xff\xff\xff\xff", 0xFFFFFFFF) * 10_000),
}


@pytest.mark.parametrize("what", BOMBS)
async def test_hostile_instances_do_not_stall_the_others(what: str) -> None:
    """The event loop goes on, and the client is told."""
    syntax, data = BOMBS[what]
    sample: Sample = other(1).sample
    stored = Stored(replace(sample, transfer_syntax_uid=syntax), data)
    async with in_front_of([stored], use_cget=True) as (_, proxy):
        stop = asyncio.Event()
        answer = asyncio.create_task(get(proxy, path_of(sample) + "/metadata"))
        answer.add_done_callback(lambda _: stop.set())
        latencies = [latency async for latency in pinged(proxy, stop)]
        (await answer).failure(502)
        assert max(latencies) < 0.5
