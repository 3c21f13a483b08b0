"""Bulk data: every value that metadata refers to, ranges of it, and what is not there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicomweb_client.session_utils import create_session
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from tests import corpus
from tests.corpus import Corpus
from tests.faultpeer import Stored, in_front_of, small_study
from tests.peers.orthanc import Orthanc
from tests.peers.process import HOST
from tests.proxy.dicomfiles import deflated, encoded, long, short
from tests.proxy.openfiles import open_below
from tests.proxy.retrieved import Answer, get, kept, path_of
from tests.proxy.test_dicomweb_client import Client

pytestmark = pytest.mark.usefixtures("nothing_left")

OCTETS = 'multipart/related; type="application/octet-stream"'
VALUE = bytes(range(256)) * 2000
"""Half a megabyte: several reads of the file."""


def with_values() -> Dataset:
    """An instance with large values at the top level, and in items of sequences."""
    data_set = corpus.header(corpus.CT_STUDY, 1, 1, 1)
    inner, outer = Dataset(), Dataset()
    inner.add_new(0x00420011, "OB", VALUE)
    outer.ReferencedSeriesSequence = [Dataset(), inner]
    data_set.RelatedSeriesSequence = [outer]
    data_set.add_new(0x00282000, "OB", b"\1\2")
    data_set.add_new(0x54001010, "OW", VALUE)
    data_set.add_new(0x00660016, "OF", VALUE)
    data_set.add_new(0x7FE00009, "OD", VALUE)
    return data_set


PATHS = ["54001010", "00660016", "7FE00009", "00081250/0/00081115/1/00420011"]


def stored_as(syntax: str) -> Stored:
    """The instance in a transfer syntax."""
    stored = Stored.of(corpus.encode(with_values()))
    data = stored.whole
    if syntax == DeflatedExplicitVRLittleEndian:
        data = deflated(data)
    if syntax == ExplicitVRBigEndian:
        swapped = with_values()
        for tag, size in ((0x54001010, 2), (0x00660016, 4), (0x7FE00009, 8)):
            swapped[tag].value = b"".join(VALUE[at : at + size][::-1] for at in range(0, len(VALUE), size))
        data = encoded(swapped, implicit=False, little=False)
    return Stored(replace(stored.sample, transfer_syntax_uid=syntax), data)


SYNTAXES = {
    "explicit": pydicom.uid.ExplicitVRLittleEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
}


def parts(answer: Answer) -> list[tuple[str, bytes]]:
    """The Content-Type and content of each part."""
    assert answer.status == 200, answer.body
    match = re.fullmatch(r'multipart/related; type="([^"]+)"; boundary=([0-9a-f]+)', answer.content_type)
    assert match is not None
    opening, ending = f"--{match[2]}\r\n".encode(), f"\r\n--{match[2]}--\r\n".encode()
    assert answer.body.startswith(opening)
    assert answer.body.endswith(ending)
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    found = []
    for part in answer.body[len(opening) : -len(ending)].split(b"\r\n" + opening):
        header, _, content = part.partition(b"\r\n\r\n")
        name, _, content_type = header.decode().partition(": ")
        assert name == "Content-Type"
        assert content_type.split(";")[0] == match[1]
        found.append((content_type, content))
    return found


def uris(model: dict[str, Any]) -> Iterator[str]:
    """All BulkDataURIs of a model."""
    for attribute in model.values():
        if "BulkDataURI" in attribute:
            yield attribute["BulkDataURI"]
        if attribute["vr"] == "SQ":
            for item in attribute.get("Value", []):
                yield from uris(item)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("encoding", SYNTAXES)
async def test_values_wherever_they_are(encoding: str, use_cache: bool, tmp_path: Path) -> None:
    """Little endian, alone and as a part, whole and in ranges that go through units."""
    stored = stored_as(SYNTAXES[encoding])
    options = {"enableCache": use_cache, "storagePath": str(tmp_path)}
    async with in_front_of([stored], use_cget=True, **options) as (_, proxy):
        for path in PATHS:
            url = f"{path_of(stored.sample)}/bulkdata/{path}"
            answer = await get(proxy, url)
            assert (answer.status, answer.content_type) == (200, "application/octet-stream")
            assert answer.body == VALUE
            await kept(proxy.http)
            assert parts(await get(proxy, url, Accept=OCTETS)) == [("application/octet-stream", VALUE)]
            for start, stop in ((0, 1), (3, 70_001), (262_143, 262_145), (len(VALUE) - 5, len(VALUE))):
                part = await get(proxy, url, Range=f"bytes={start}-{stop - 1}")
                assert part.status == 206
                assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(VALUE)}"
                assert part.body == VALUE[start:stop]


async def test_every_uri_of_the_samples_leads_to_its_value(samples: Corpus) -> None:
    """What metadata refers to is what pydicom reads there."""
    held = [Stored.of(path.read_bytes()) for path in samples.paths()]
    checked = 0
    async with in_front_of(held) as (_, proxy):
        for sample in samples.samples:
            if sample.transfer_syntax_uid == ExplicitVRBigEndian:
                continue
            data_set = pydicom.dcmread(samples.path(sample))
            (model,) = json.loads((await get(proxy, path_of(sample) + "/metadata")).body)
            for uri in uris(model):
                answer = await get(proxy, uri.removeprefix(proxy.url), Accept=OCTETS)
                expected = value_at(data_set, uri.partition("/bulkdata/")[2])
                if data_set[0x7FE00010:].get("PixelData") is not None and sample.patient_id == "COMPRESSED":
                    fragments = list(generate_fragments(expected))[1:]
                    assert [content for _, content in parts(answer)] == fragments
                    assert parts(answer)[0][0].endswith(f"; transfer-syntax={sample.transfer_syntax_uid}")
                else:
                    assert [content for _, content in parts(answer)] == [expected]
                checked += 1
    assert checked > 25


def value_at(data_set: Dataset, path: str) -> bytes:
    *items, last = path.split("/")
    for tag, number in zip(items[::2], items[1::2], strict=True):
        data_set = data_set[int(tag, 16)].value[int(number)]
    value = data_set[int(last, 16)].value
    assert isinstance(value, bytes)
    return value


async def test_orthanc_has_the_same(samples: Corpus, orthanc_dicomweb: Orthanc) -> None:
    """Native pixel data, byte for byte, at the URI that Orthanc's own DICOMweb server gives for it."""
    wanted = [sample for sample in samples.samples if sample.patient_id in ("LATIN1", "UNUSUAL", "RADIOTHERAPY", "ECG")]
    held = [Stored.of(samples.path(sample).read_bytes()) for sample in wanted]
    compared = 0
    async with in_front_of(held) as (_, proxy):
        for sample in wanted:
            (theirs,) = orthanc_dicomweb.rest("GET", f"/dicom-web{path_of(sample)}/metadata")
            for uri in uris(theirs):
                path = uri.partition("/bulk/")[2]
                if "/" in path:
                    continue  # Orthanc counts items from 1
                expected = await fetched(uri)
                ours = await get(proxy, f"{path_of(sample)}/bulkdata/{path}", Accept=OCTETS)
                assert parts(ours)[0][1] == expected
                compared += 1
    assert compared > 10


async def fetched(url: str) -> bytes:
    import aiohttp

    async with aiohttp.ClientSession() as http, http.get(url, headers={"Accept": OCTETS}) as response:
        answer = await Answer.read(response)
    boundary = re.search(r"boundary=([^;]+)", answer.content_type)
    assert boundary is not None
    _, part, _ = answer.body.split(b"--" + boundary[1].strip('"').encode())
    return part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")


async def test_dicomweb_client_gets_it(samples: Corpus) -> None:
    study = small_study(1, 1)
    async with in_front_of(study, use_cget=True) as (_, proxy):
        session = create_session()
        client = Client(proxy.url, session)
        url = f"{proxy.url}{path_of(study[0].sample)}/bulkdata/7FE00010"
        pixels = pydicom.dcmread(BytesIO(corpus.encode(read(study[0])))).PixelData
        for media_types in (None, ("application/octet-stream",)):
            found = await asyncio.to_thread(client.retrieve_bulkdata, url, media_types)
            assert found == [pixels]
        session.close()


def read(stored: Stored) -> Dataset:
    from pydicom.filereader import read_dataset

    data_set = Dataset()
    data_set.update(read_dataset(BytesIO(stored.whole), False, True))
    return data_set


@pytest.mark.parametrize(
    ("media_type", "inert"),
    [
        ("text/html", True),
        ("image/svg+xml", True),
        ("application/xhtml+xml", True),
        ("text/xml", True),
        ("multipart/x-mixed-replace", True),
        ("model/stl", True),
        ("application/pdf", False),  # which browsers show in no sandbox
        ("image/jpeg", False),
    ],
)
async def test_an_encapsulated_document_cannot_run_scripts(media_type: str, inert: bool) -> None:
    """It is of the proxy's own origin, and whoever can get an instance into an archive has written it."""
    data_set = corpus.header(corpus.CT_STUDY, 1, 1, 1)
    data_set.EncapsulatedDocument = b"<script>alert(1)</script>" + b" " * 2001
    data_set.MIMETypeOfEncapsulatedDocument = media_type
    stored = Stored.of(corpus.encode(data_set))
    async with in_front_of([stored], use_cget=True) as (_, proxy):
        answer = await get(proxy, f"{path_of(stored.sample)}/bulkdata/00420011")
    assert (answer.status, answer.content_type) == (200, media_type)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers.get("Content-Security-Policy", "").endswith("; sandbox") is inert


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "application/pdf"),
        ("*/*", "application/pdf"),
        ("application/pdf", "application/pdf"),
        ("application/octet-stream", "application/octet-stream"),
        ('multipart/related; type="application/pdf", multipart/related; type="application/octet-stream"', None),
        ('multipart/related; type="*/*"', None),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", "application/pdf"),
    ],
)
async def test_an_encapsulated_document_has_its_own_media_type(accept: str | None, content_type: str | None) -> None:
    """And its own length, where the data set says it."""
    data_set = corpus.header(corpus.CT_STUDY, 1, 1, 1, corpus.ENCAPSULATED_PDF)
    document = b"%PDF-1.4\n" + b" " * 2000 + b"%%EOF\n"
    data_set.EncapsulatedDocument = document + b"\0"
    data_set.MIMETypeOfEncapsulatedDocument = "application/pdf"
    data_set.EncapsulatedDocumentLength = len(document)
    stored = Stored.of(corpus.encode(data_set))
    async with in_front_of([stored], use_cget=True) as (_, proxy):
        headers = {"Accept": accept} if accept else {}
        answer = await get(proxy, f"{path_of(stored.sample)}/bulkdata/00420011", **headers)
        if content_type is None:
            assert parts(answer) == [("application/pdf", document)]
        else:
            assert (answer.content_type, answer.body) == (content_type, document)


async def test_small_values_can_be_had_too() -> None:
    """Metadata has them inline, but who asks gets them."""
    stored = stored_as(SYNTAXES["explicit"])
    async with in_front_of([stored], use_cget=True) as (_, proxy):
        url = f"{path_of(stored.sample)}/bulkdata/00282000"
        assert (await get(proxy, url)).body == b"\1\2"
        assert (await get(proxy, url, Range="bytes=1-")).body == b"\2"
        assert parts(await get(proxy, url, Accept=OCTETS)) == [("application/octet-stream", b"\1\2")]


# --- ranges and tags -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=8190-", range(8190, 8192)),
        ("bytes=-3", range(8189, 8192)),
        ("bytes=-99999", range(8192)),
        ("bytes=0-", range(8192)),
        ("bytes=8191-99999", range(8191, 8192)),
        ("bytes=5-4", None),
        ("bytes=0-1,4-5", None),
        ("bytes=-", None),
        ("bytes=x-", None),
        ("pages=1-2", None),
    ],
)
async def test_ranges(asked: str, expected: range | None) -> None:
    """One range is sent; several, and what is none, are as if it was not there (RFC 9110 14.2)."""
    study = small_study(1, 1)
    async with in_front_of(study, use_cget=True) as (_, proxy):
        url = f"{path_of(study[0].sample)}/bulkdata/7FE00010"
        whole = await get(proxy, url)
        assert (whole.status, len(whole.body), whole.headers["Accept-Ranges"]) == (200, 8192, "bytes")
        answer = await get(proxy, url, Range=asked)
        if expected is None:
            assert (answer.status, answer.body) == (200, whole.body)
            return
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes {expected.start}-{expected.stop - 1}/8192"
        assert answer.body == whole.body[expected.start : expected.stop]


@pytest.mark.parametrize("asked", ["bytes=8192-", "bytes=9000-9001", "bytes=-0"])
async def test_ranges_that_are_not_there(asked: str) -> None:
    study = small_study(1, 1)
    async with in_front_of(study, use_cget=True) as (_, proxy):
        answer = await get(proxy, f"{path_of(study[0].sample)}/bulkdata/7FE00010", Range=asked)
        answer.failure(416)
        assert answer.headers["Content-Range"] == "bytes */8192"


async def test_tags_save_sending_it_again(tmp_path: Path) -> None:
    study = small_study(1, 1)
    async with in_front_of(study, use_cget=True, enableCache=True, storagePath=str(tmp_path)) as (_, proxy):
        url = f"{path_of(study[0].sample)}/bulkdata/7FE00010"
        await get(proxy, url)
        await kept(proxy.http)
        tag = (await get(proxy, url)).headers["ETag"]
        assert (await get(proxy, url, **{"If-None-Match": tag})).status == 304
        assert (await get(proxy, url, **{"If-Range": tag, "Range": "bytes=0-1"})).status == 206
        assert (await get(proxy, url, **{"If-Range": '"other"', "Range": "bytes=0-1"})).status == 200
        in_parts = (await get(proxy, url, Accept=OCTETS)).headers["ETag"]
        assert in_parts not in (tag, f"W/{tag}")
        known = {"Accept": OCTETS, "If-None-Match": in_parts}
        assert (await get(proxy, url, **known)).status == 304
        assert (await get(proxy, url, **known, Range="bytes=0-1")).status == 200, "browsers cut it out of the parts"


# --- what is not there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "00282001",
        "00100010",
        "00081250",
        "00081250/1/00081115/1/00420011",
        "00081250/0/00081115/2/00420011",
        "00100010/0/00420011",
        "FFFFFFFF",
    ],
)
async def test_404(path: str) -> None:
    """Absent, no bulk data, a sequence, no such item, no sequence."""
    stored = stored_as(SYNTAXES["explicit"])
    async with in_front_of([stored], use_cget=True) as (_, proxy):
        message = (await get(proxy, f"{path_of(stored.sample)}/bulkdata/{path}")).failure(404)
        assert path not in message


@pytest.mark.parametrize(
    "path",
    ["PixelData", "7FE0001", "7FE000100", "7FE00010/", "00081250/x/00420011", "00081250/0", "..%2F7FE00010", "%00"],
)
async def test_400(path: str) -> None:
    stored = stored_as(SYNTAXES["explicit"])
    async with in_front_of([stored], use_cget=True) as (archive, proxy):
        message = (await get(proxy, f"{path_of(stored.sample)}/bulkdata/{path}")).failure(400)
        assert "the path of bulk data" in message
        assert archive.requests == []


async def test_406() -> None:
    study = small_study(1, 1)
    async with in_front_of(study, use_cget=True) as (_, proxy):
        url = f"{path_of(study[0].sample)}/bulkdata/7FE00010"
        message = (await get(proxy, url, Accept="image/jpeg")).failure(406)
        assert "application/octet-stream" in message


async def test_an_instance_that_cannot_be_read_is_502() -> None:
    study = small_study(1, 1)
    broken = Stored(study[0].sample, study[0].whole[:-8200])
    async with in_front_of([broken], use_cget=True) as (_, proxy):
        (await get(proxy, f"{path_of(broken.sample)}/bulkdata/7FE00010")).failure(502)


async def test_a_value_that_was_cut_short_is_what_there_is_of_it(tmp_path: Path) -> None:
    study = small_study(1, 1)
    broken = Stored(study[0].sample, study[0].whole[:-1000])
    async with in_front_of([broken], use_cget=True) as (_, proxy):
        answer = await get(proxy, f"{path_of(broken.sample)}/bulkdata/7FE00010")
        assert answer.body == study[0].whole[-8192:-1000]


async def test_a_client_that_leaves_midway_leaves_no_file_open(tmp_path: Path) -> None:
    data_set = corpus.header(corpus.CT_STUDY, 1, 1, 1)
    data_set.EncapsulatedDocument = bytes(60_000_000)
    stored = Stored.of(corpus.encode(data_set))
    async with in_front_of([stored], use_cget=True, enableCache=True, storagePath=str(tmp_path)) as (_, proxy):
        for _ in range(2):
            reader, writer = await asyncio.open_connection(HOST, int(proxy.url.rpartition(":")[2]), limit=1000)
            path = f"{path_of(stored.sample)}/bulkdata/00420011"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            await reader.readexactly(500)
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            async with asyncio.timeout(5):
                while open_below(tmp_path) or list(tmp_path.glob("spool/*")):
                    await asyncio.sleep(0.01)


async def test_a_large_value_costs_little_memory() -> None:
    """Metadata and the value of an instance of 100 MB, which no archive and no cache holds in memory."""
    piece = bytes(1 << 20)
    head = short(0x00080060, "CS", b"CT") + long(0x7FE00010, "OW", b"", 100 << 20)

    async def data() -> AsyncIterator[bytes]:
        yield head
        for _ in range(100):
            yield piece

    sample = small_study(1, 1)[0].sample
    async with in_front_of([Stored(sample, data)], use_cget=True) as (_, proxy):
        tracemalloc.start()
        try:
            (model,) = json.loads((await get(proxy, path_of(sample) + "/metadata")).body)
            uri = model["7FE00010"]["BulkDataURI"].removeprefix(proxy.url)
            size = 0
            async with proxy.http.get(uri) as response:
                async for received in response.content.iter_any():
                    size += len(received)
            assert size == 100 << 20
            assert tracemalloc.get_traced_memory()[1] < 40_000_000
        finally:
            tracemalloc.stop()
