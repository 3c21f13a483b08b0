"""Orthanc's DICOMweb server behind the proxy: its answers byte for byte, or with every address in them the proxy's."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from dicomweb_client import DICOMwebClient
from pydicom import dcmread
from pydicom.uid import JPEGBaseline8Bit

from tests.corpus import Corpus, Sample, ct_study, write
from tests.peers.orthanc import Orthanc
from tests.proxy.forwarding import forward_to
from tests.proxy.running import Proxy

JSON = {"Accept": "application/dicom+json"}
XML = {"Accept": 'multipart/related; type="application/dicom+xml"'}
DICOM = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
BULK = {"Accept": 'multipart/related; type="application/octet-stream"'}
ANY_FRAME = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}

_PER_REQUEST = ("Date", "Via", "Server", "Vary", "Connection", "Keep-Alive", "Content-Length", "Transfer-Encoding")
_BOUNDARY = re.compile(r'boundary="?([^";]+)"?')


@pytest.fixture
def sample(samples: Corpus) -> Sample:
    """An instance with pixels that are compressed."""
    return next(each for each in samples.samples if each.transfer_syntax_uid == JPEGBaseline8Bit)


def requests_for(sample: Sample) -> list[tuple[str, dict[str, str]]]:
    """Return requests of every kind."""
    study = f"/studies/{sample.study_uid}"
    series = f"{study}/series/{sample.series_uid}"
    instance = f"{series}/instances/{sample.sop_instance_uid}"
    return [
        ("/studies", JSON),
        ("/studies?limit=5&offset=1&includefield=all&PatientName=*", XML),
        ("/studies?PatientName=M%C3%BCller%5EJ%C3%BCrgen", JSON),
        ("/studies?StudyDate=20240101-20240105", JSON),
        ("/series", JSON),
        ("/instances?limit=3", JSON),
        (f"{study}/series", JSON),
        (f"{series}/instances", JSON),
        (f"{study}/metadata", JSON),
        (f"{study}/metadata", XML),
        (f"{instance}/metadata", JSON),
        (study, DICOM),
        (series, DICOM),
        (instance, DICOM),
        (f"{instance}/frames/1", ANY_FRAME),
        (f"{instance}/bulk/7fe00010", BULK),
        (f"{instance}/rendered", {"Accept": "image/png"}),
        ("/studies/1.2.3.4", DICOM),
        ("/nowhere", {}),
    ]


async def got(http: aiohttp.ClientSession, url: str, fields: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    """GET; what differs from one request to the next, a boundary and times, is made the same."""
    async with http.get(url, headers={"Accept-Encoding": "identity", **fields}) as response:
        body = await response.read()
        shown = {name: value for name, value in response.headers.items() if name not in _PER_REQUEST}
        if match := _BOUNDARY.search(shown.get("Content-Type", "")):
            shown["Content-Type"] = shown["Content-Type"].replace(match[1], "BOUNDARY")
            body = body.replace(match[1].encode(), b"BOUNDARY")
        return response.status, shown, body


@pytest.fixture
async def proxy(orthanc_dicomweb: Orthanc) -> AsyncIterator[Proxy]:
    async with forward_to(orthanc_dicomweb.dicomweb_url) as proxy:
        yield proxy


async def test_byte_for_byte(orthanc_dicomweb: Orthanc, sample: Sample) -> None:
    """With `rewriteUrls` off, the same requests directly and through the proxy give the same."""
    async with (
        forward_to(orthanc_dicomweb.dicomweb_url, forward={"rewriteUrls": False}) as proxy,
        aiohttp.ClientSession() as direct,
    ):
        statuses = []
        for path, fields in requests_for(sample):
            expected = await got(direct, orthanc_dicomweb.dicomweb_url + path, fields)
            status, shown, body = await got(proxy.http, path, fields)
            if "Content-Type" not in expected[1]:
                shown.pop("Content-Type")  # which every answer of aiohttp has
            assert (status, shown) == expected[:2], path
            assert hashlib.sha256(body).digest() == hashlib.sha256(expected[2]).digest(), path
            statuses.append(status)
        assert statuses == [200] * (len(statuses) - 2) + [404] * 2


async def test_every_address_is_the_proxys(orthanc_dicomweb: Orthanc, proxy: Proxy, sample: Sample) -> None:
    """What the upstream calls itself is nowhere in an answer; all else is as it was."""
    upstream = orthanc_dicomweb.dicomweb_url
    replaced = 0
    async with aiohttp.ClientSession() as direct:
        for path, fields in requests_for(sample):
            _, _, expected = await got(direct, upstream + path, fields)
            _, shown, body = await got(proxy.http, path, fields)
            assert upstream.encode() not in body
            assert upstream not in str(shown)
            by_hand = expected.replace(upstream.encode(), proxy.url.encode())
            replaced += by_hand != expected
            assert _without_lengths(body) == _without_lengths(by_hand), path
        assert replaced >= 6


def _without_lengths(body: bytes) -> bytes:
    """Without the lengths of parts, which change with what is replaced in them."""
    return re.sub(rb"\r\nContent-Length: \d+(?=\r\n)", b"", body)


async def test_every_address_leads_somewhere(proxy: Proxy, samples: Corpus) -> None:
    """RetrieveURL and BulkDataURI of all that there is, fetched through the proxy."""
    async with proxy.http.get("/instances?includefield=all", headers=JSON) as response:
        found = await response.text()
    metadata = ""
    for study in samples.study_uids:
        async with proxy.http.get(f"/studies/{study}/metadata", headers=JSON) as response:
            metadata += await response.text()
    pattern = r'"(?:BulkDataURI"|00081190"\s*:\s*\{\s*"Value")\s*:\s*\[?\s*"([^"]+)"'
    urls = set(re.findall(pattern, found + metadata))
    assert len(urls) > len(samples.samples)
    assert any("/bulk/" in url for url in urls)
    for url in sorted(urls):
        assert url.startswith(proxy.url)
        async with proxy.http.get(url, headers=BULK if "/bulk/" in url else DICOM) as response:
            assert response.status == 200, url
            assert await response.read()


async def test_instances_arrive_whole(proxy: Proxy, samples: Corpus) -> None:
    """The files that were stored, also where parts are looked into on their way."""
    for sample in samples.samples:
        path = f"/studies/{sample.study_uid}/series/{sample.series_uid}/instances/{sample.sop_instance_uid}"
        async with proxy.http.get(path, headers=DICOM) as response:
            assert response.status == 200
            boundary = _BOUNDARY.search(response.headers["Content-Type"])
            assert boundary is not None
            content = (await response.read()).split(b"\r\n\r\n", 1)[1]
            content = content[: content.rindex(f"\r\n--{boundary[1]}--".encode())]
            assert content == samples.path(sample).read_bytes()


# --- dicomweb-client -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc of its own, to store in."""
    with Orthanc(tmp_path_factory.mktemp("orthanc-empty"), aet="ORTHANCEMPTY", dicomweb=True) as archive:
        yield archive


async def test_dicomweb_client_stores_and_fetches(empty: Orthanc, tmp_path: Path) -> None:
    """An upload, and what a program does with it then: search, metadata, instances, frames, a picture."""
    corpus = write(tmp_path / "ct", ct_study(series=1, instances=3))
    data_sets = [dcmread(path) for path in corpus.paths()]
    study, series = corpus.samples[0].study_uid, corpus.samples[0].series_uid

    def work(url: str) -> None:
        client = DICOMwebClient(url)
        stored = client.store_instances(data_sets)
        assert len(stored.ReferencedSOPSequence) == 3
        assert all(item.RetrieveURL.startswith(url) for item in stored.ReferencedSOPSequence)
        (found,) = client.search_for_studies(search_filters={"StudyInstanceUID": study})
        assert found["00081190"]["Value"][0].startswith(url)
        assert len(client.search_for_series(study)) == 1
        assert len(client.search_for_instances(study, series)) == 3
        assert len(client.retrieve_study_metadata(study)) == 3
        retrieved = client.retrieve_series(study, series)
        assert {each.SOPInstanceUID for each in retrieved} == {each.SOPInstanceUID for each in data_sets}
        first = data_sets[0]
        where = (study, series, first.SOPInstanceUID)
        assert client.retrieve_instance(*where).PixelData == first.PixelData
        assert client.retrieve_instance_frames(*where, [1], media_types=("application/octet-stream",)) == [
            first.PixelData
        ]
        assert client.retrieve_instance_rendered(*where, media_types=("image/png",)).startswith(b"\x89PNG")

    async with forward_to(empty.dicomweb_url) as proxy:
        await asyncio.to_thread(work, proxy.url)


async def test_what_only_reads_removes_nothing(empty: Orthanc, samples: Corpus) -> None:
    """Orthanc takes a header field, and a parameter, for the method; who may only read could remove a study by them."""
    root = empty.dicomweb_url.rpartition("/")[0]
    users = [{"name": "viewer", "tokenHash": hashlib.sha256(b"t" * 43).hexdigest()}]
    disguises = (("", {"X-HTTP-Method-Override": "DELETE"}), ("?_method=DELETE", {}))

    async def studies_after(http: aiohttp.ClientSession, root: str, suffix: str, fields: dict[str, str]) -> int:
        empty.upload(samples.paths()[:1])
        studies = empty.rest("GET", "/studies")
        for study in studies:
            async with http.get(f"{root}/studies/{study}{suffix}", headers=fields) as response:
                await response.read()
        return len(empty.rest("GET", "/studies")) - len(studies)

    async with forward_to(root, auth={"enabled": True, "tokens": users}) as proxy, aiohttp.ClientSession() as direct:
        for suffix, fields in disguises:
            assert await studies_after(direct, root, suffix, fields) < 0, "Orthanc does so no more"
            signed_in = {"Authorization": f"Bearer {'t' * 43}", **fields}
            assert await studies_after(proxy.http, proxy.url, suffix, signed_in) == 0


async def test_an_archive_that_stops(empty: Orthanc) -> None:
    """`/health` says so, and says when it is there again."""
    async with forward_to(empty.dicomweb_url, forward={"timeouts": {"connect": 1, "response": 1}}) as proxy:
        async with proxy.http.get("/health") as response:
            assert response.status == 200
        empty.kill()
        try:
            async with proxy.http.get("/studies") as response:
                assert response.status == 502
            async with proxy.http.get("/health") as response:
                state = await response.json(content_type=None)
                assert (response.status, state["upstreams"][0]["up"]) == (503, False)
        finally:
            await asyncio.to_thread(empty.start_again)
        async with proxy.http.get("/studies") as response:
            assert response.status == 200
        async with proxy.http.get("/health") as response:
            assert response.status == 200
