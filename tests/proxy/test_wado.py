"""WADO-RS retrieval against real archives, by C-MOVE and by C-GET: what the archive has is what the client gets.

`dcmqrscp` holds no private SOP classes and nothing compressed, and sends all it has in Explicit VR Little Endian; the
two others hold every sample and send each as it was stored.
"""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import quote

import pydicom
import pytest
import yarl
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from tests import corpus
from tests.corpus import Corpus, Sample
from tests.faultpeer import Retrieve, Stored, in_front_of, small_study
from tests.peers.orthanc import Orthanc
from tests.proxy.conftest import Source
from tests.proxy.retrieved import Answer, digests, expected, get, path_of
from tests.proxy.running import Proxy, proxy_for

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
MULTIPART = 'multipart/related; type="application/dicom"'
LEVELS = ("study", "series", "instance")


@pytest.fixture
async def fast(orthanc: Orthanc) -> AsyncIterator[Proxy]:
    """The proxy in front of the fastest of the archives, for what does not depend on the archive."""
    async with proxy_for(orthanc.address, use_cget=True) as running:
        yield running


def one_of_each_kind(samples: list[Sample]) -> list[Sample]:
    """Return a sample for each transfer syntax and for each SOP class."""
    by_class = {sample.sop_class_uid: sample for sample in samples}
    by_syntax = {sample.transfer_syntax_uid: sample for sample in samples}
    return list(dict.fromkeys([*by_class.values(), *by_syntax.values()]))


# --- every kind of object ------------------------------------------------------------------------------------


async def test_every_study_comes_whole_and_byte_for_byte(source: Source, proxy: Proxy) -> None:
    for study_uid in dict.fromkeys(sample.study_uid for sample in source.held):
        samples = [sample for sample in source.held if sample.study_uid == study_uid]
        answer = await get(proxy, f"/studies/{study_uid}")
        assert answer.headers["X-Cache"] == "MISS"
        found = digests(answer.files)
        assert found.keys() == expected(samples).keys()
        kept = [sample for sample in samples if source.keeps(sample)]
        assert expected(kept).items() <= found.items()
        syntaxes = {
            sample.sop_instance_uid: sample.transfer_syntax_uid if source.keeps(sample) else ExplicitVRLittleEndian
            for sample in samples
        }
        for part in answer.parts:
            data_set = pydicom.dcmread(io.BytesIO(part.content))
            assert part.fields.keys() == {"content-type", "content-location"}
            sample = source.samples.by_uid[data_set.SOPInstanceUID]
            assert part.transfer_syntax == data_set.file_meta.TransferSyntaxUID == syntaxes[sample.sop_instance_uid]
            assert part.location == proxy.url + path_of(sample)
            assert data_set.file_meta.SourceApplicationEntityTitle == source.address.aet


async def test_series_and_instances_come_alone(source: Source, proxy: Proxy) -> None:
    study = source.samples.of_patient("LATIN1")
    for series_uid in {sample.series_uid for sample in study}:
        series = [sample for sample in study if sample.series_uid == series_uid]
        assert len(series) == 3
        answer = await get(proxy, path_of(series[0], "series"))
        assert digests(answer.files) == expected(series)
        answer = await get(proxy, path_of(series[1]))
        assert digests(answer.files) == expected(series[1:2])


async def test_content_location_leads_to_the_part(source: Source, proxy: Proxy) -> None:
    sample = source.samples.of_patient("LATIN1")[0]
    whole = await get(proxy, path_of(sample, "series"))
    part = whole.parts[-1]
    again = await get(proxy, part.location.removeprefix(proxy.url), Accept="application/dicom")
    assert again.body == part.content


async def test_one_instance_of_each_kind_as_a_file(source: Source, proxy: Proxy) -> None:
    for number, sample in enumerate(one_of_each_kind(source.held)):
        if number % 2:
            answer = await get(proxy, path_of(sample) + "?multipart=false", Accept="*/*")
        else:
            answer = await get(proxy, path_of(sample), Accept="application/dicom")
        assert answer.status == 200
        meta = pydicom.dcmread(io.BytesIO(answer.body), stop_before_pixels=True).file_meta
        assert answer.content_type == f"application/dicom; transfer-syntax={meta.TransferSyntaxUID}"
        if source.keeps(sample):
            assert digests([answer.body]) == expected([sample])
            assert meta.TransferSyntaxUID == sample.transfer_syntax_uid


async def test_deflated_data_sets_pass_untouched(use_cget: bool) -> None:
    plain = Stored.of(next(corpus.ct_study(1, 1, 64)))
    assert isinstance(plain.data, bytes)
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = compressor.compress(plain.data) + compressor.flush()
    deflated += b"\0" * (len(deflated) % 2)
    sample = corpus.describe(next(corpus.ct_study(1, 1, 64)), "")
    stored = Stored(replace(sample, transfer_syntax_uid=DeflatedExplicitVRLittleEndian), deflated)
    async with in_front_of([stored], use_cget=use_cget) as (_, proxy):
        answer = await get(proxy, path_of(sample, "study"))
    (part,) = answer.parts
    assert part.transfer_syntax == DeflatedExplicitVRLittleEndian
    assert corpus.data_set_bytes(part.content) == deflated
    assert pydicom.dcmread(io.BytesIO(part.content)).SOPInstanceUID == sample.sop_instance_uid
    assert part.location.endswith(path_of(sample)), "the series was read from the deflated data set"


# --- what the client accepts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "multipart/related",
        MULTIPART,
        "multipart/related; type=application/dicom",
        f"{MULTIPART}; transfer-syntax=*",
        f"{MULTIPART}; transfer-syntax={ExplicitVRLittleEndian}",
        f"{MULTIPART}; transfer-syntax={JPEG_BASELINE}, {MULTIPART}; transfer-syntax={ExplicitVRLittleEndian}; q=0.5",
        "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
        f"application/json, {MULTIPART}; q=0.1",
    ],
)
@pytest.mark.parametrize("level", LEVELS)
async def test_multipart_where_it_is_accepted(fast: Proxy, samples: Corpus, accept: str, level: str) -> None:
    sample = samples.of_patient("UTF8")[0]
    answer = await get(fast, path_of(sample, level), Accept=accept)
    assert digests(answer.files) == expected([sample])


async def test_multipart_where_nothing_is_said(fast: Proxy, samples: Corpus) -> None:
    sample = samples.of_patient("UTF8")[0]
    async with fast.http.get(path_of(sample), skip_auto_headers={"Accept"}) as response:
        answer = await Answer.read(response)
    assert digests(answer.files) == expected([sample])


@pytest.mark.parametrize(
    "accept",
    [
        "image/jpeg",
        "application/dicom+json",
        'multipart/related; type="application/octet-stream"',
        f"{MULTIPART}; transfer-syntax={JPEG_BASELINE}",
        f"{MULTIPART}; q=0",
    ],
)
@pytest.mark.parametrize("level", LEVELS)
async def test_406_where_it_is_not(fast: Proxy, samples: Corpus, accept: str, level: str) -> None:
    sample = samples.of_patient("UTF8")[0]
    (await get(fast, path_of(sample, level), Accept=accept)).failure(406)


@pytest.mark.parametrize("level", ["study", "series"])
async def test_a_single_file_is_for_a_single_instance(fast: Proxy, samples: Corpus, level: str) -> None:
    path = path_of(samples.of_patient("UTF8")[0], level)
    assert MULTIPART in (await get(fast, path, Accept="application/dicom")).failure(406)
    (await get(fast, path + "?multipart=false")).failure(400)


async def test_a_transfer_syntax_for_a_single_file(fast: Proxy, samples: Corpus) -> None:
    path = path_of(samples.of_patient("UTF8")[0])
    answer = await get(fast, path, Accept=f"application/dicom; transfer-syntax={JPEG_BASELINE}")
    assert ExplicitVRLittleEndian in answer.failure(406), "it says what there is"
    answer = await get(fast, path, Accept=f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}")
    assert answer.content_type == f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"


async def test_compressed_instances_come_as_they_are_where_no_syntax_is_named(fast: Proxy, samples: Corpus) -> None:
    sample = next(each for each in samples.of_patient("COMPRESSED") if each.transfer_syntax_uid == JPEG_BASELINE)
    for accept in (MULTIPART, f"{MULTIPART}; transfer-syntax={JPEG_BASELINE}"):
        answer = await get(fast, path_of(sample), Accept=accept)
        assert digests(answer.files) == expected([sample])


async def test_the_query_parameter_goes_before_the_header(fast: Proxy, samples: Corpus) -> None:
    sample = samples.of_patient("UTF8")[0]
    path = path_of(sample)
    answer = await get(fast, f"{path}?accept=application/dicom", Accept=MULTIPART)
    assert digests([answer.body]) == expected([sample])
    answer = await get(fast, f"{path}?accept={quote(MULTIPART, safe='')}", Accept="application/dicom")
    assert digests(answer.files) == expected([sample])
    answer = await get(fast, f"{path}?accept=image/jpeg", Accept=MULTIPART)
    assert digests(answer.files) == expected([sample]), "PS3.18 8.7.8.1: the header is turned to then"


# --- what cannot be had --------------------------------------------------------------------------------------


async def test_404_for_what_the_archive_does_not_have(source: Source, proxy: Proxy) -> None:
    sample = source.samples.of_patient("LATIN1")[0]
    other = source.samples.of_patient("UTF8")[0]
    for path in (
        "/studies/1.2.3.4.5",
        f"/studies/{sample.study_uid}/series/1.2.3.4.5",
        f"/studies/{sample.study_uid}/series/{other.series_uid}",
        f"{path_of(sample, 'series')}/instances/1.2.3.4.5",
        f"{path_of(sample, 'series')}/instances/{other.sop_instance_uid}",
        f"/studies/{other.study_uid}/series/{sample.series_uid}/instances/{sample.sop_instance_uid}",
    ):
        message = (await get(proxy, path)).failure(404)
        assert message == f"{source.address.aet}: nothing found"


@pytest.mark.parametrize(
    "path",
    [
        "/studies/abc",
        "/studies/1..2",
        "/studies/.1",
        "/studies/1.2.",
        "/studies/" + "1.2" * 22,
        "/studies/%2e%2e",
        "/studies/1.2%5C3",
        "/studies/1.2*",
        "/studies/1.2%00",
        "/studies/1.2.3/series/x",
        "/studies/1.2.3/series/1.2/instances/1-2",
    ],
)
async def test_400_for_what_is_no_uid(fast: Proxy, path: str) -> None:
    async with fast.http.get(yarl.URL(fast.url + path, encoded=True)) as response:
        message = (await Answer.read(response)).failure(400)
    assert message.endswith("in the path is not a valid UID")


async def test_400_for_another_value_of_multipart(fast: Proxy, samples: Corpus) -> None:
    path = path_of(samples.of_patient("UTF8")[0])
    (await get(fast, f"{path}?multipart=maybe")).failure(400)
    assert (await get(fast, f"{path}?multipart=true")).parts


# --- streaming -----------------------------------------------------------------------------------------------


async def test_the_client_reads_while_the_archive_is_sending(use_cget: bool) -> None:
    """The archive sends its second instance only when the client has had the first, and half of each at a time."""
    whole = small_study(1, 2, side=512)
    read = [asyncio.Event() for _ in range(3)]  # half of the first, all of it, half of the second

    def halves(number: int) -> Stored:
        data = whole[number].data
        assert isinstance(data, bytes)

        async def pieces() -> AsyncIterator[bytes]:
            middle = len(data) // 2 & ~1
            yield data[:middle]
            yield data[middle : middle + 2]  # a piece goes out when the next one is there
            await asyncio.wait_for(read[2 * number].wait(), 5)
            yield data[middle + 2 :]

        return Stored(whole[number].sample, pieces)

    async def script(request: Retrieve) -> None:
        async with request.way() as send:
            await send(request.instances[0])
            await asyncio.wait_for(read[1].wait(), 5)
            await send(request.instances[1])
        await request.final(completed=2, failed=0, warning=0)

    sample = whole[0].sample
    async with (
        in_front_of([halves(0), halves(1)], script, use_cget=use_cget) as (_, proxy),
        proxy.http.get(path_of(sample, "study")) as response,
    ):
        body = b""
        for event, size in zip(read, (sample.size // 2, sample.size, sample.size * 3 // 2), strict=True):
            while len(body) < size:
                body += await response.content.readany()
            event.set()
        body += await response.read()
        answer = Answer(response.status, dict(response.headers), body)
    assert digests(answer.files) == expected(stored.sample for stored in whole)
