"""Frames over HTTP: media types and transfer syntaxes, lists, failures, and the same bytes that others give."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

import aiohttp
import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from proxy.dataset.part10 import file_header
from proxy.dataset.pixels import NATIVE, EncapsulatedFrames
from proxy.dicomweb import frames, localfile
from tests import corpus
from tests.faultpeer import ScriptedArchive, Stored, in_front_of, small_study
from tests.peers.orthanc import Orthanc
from tests.proxy.dicomfiles import deflated, encoded
from tests.proxy.retrieved import Answer, get, kept, path_of
from tests.proxy.running import Proxy
from tests.proxy.test_pixels import frames_of

pytestmark = pytest.mark.usefixtures("nothing_left")

EXPLICIT = "1.2.840.10008.1.2.1"
LOSSY_12_BIT = "1.2.840.10008.1.2.4.51"
DEFLATED = "1.2.840.10008.1.2.1.99"
OHIF = "multipart/related; type=application/octet-stream; transfer-syntax=*"

MEDIA_TYPES = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}


@cache
def images() -> dict[str, Stored]:
    """The mixed samples that have pixel data, by transfer syntax and number."""
    found = {}
    for number, file in enumerate(corpus.mixed()):
        stored = Stored.of(file)
        if frames_of(stored.whole, stored.sample.transfer_syntax_uid):
            found[f"{stored.sample.transfer_syntax_uid}-{number}"] = stored
    return found


def pixels_of(stored: Stored) -> list[bytes]:
    """The frames of an instance; `test_pixels` shows that they are those of pydicom."""
    return frames_of(stored.whole, stored.sample.transfer_syntax_uid)


def multi_frame(count: int = 5, side: int = 16) -> Stored:
    """An instance of several native frames."""
    data_set = corpus.header(corpus.CT_STUDY, 1, 7, 1, corpus.MULTI_FRAME_WORD)
    pixels = np.random.default_rng(count).integers(0, 4096, side * side * count, dtype=np.uint16).tobytes()
    corpus.add_pixels(data_set, side, pixels)
    data_set.NumberOfFrames = count
    return Stored.of(corpus.encode(data_set))


def compressed(*contents: list[bytes], has_bot: bool = True) -> Stored:
    """An instance whose frames are said to be JPEG; each is given by its fragments."""
    data_set = corpus.header(corpus.CT_STUDY, 1, 7, 1, corpus.RETIRED_ULTRASOUND)
    corpus.add_pixels(data_set, 16, b"")
    data_set.NumberOfFrames = len(contents)
    whole = [b"".join(fragments) for fragments in contents]
    data_set.PixelData = encapsulate(whole, fragments_per_frame=max(map(len, contents)), has_bot=has_bot)
    data_set["PixelData"].VR = "OB"
    data_set["PixelData"].is_undefined_length = True
    return Stored.of(corpus.encode(data_set, JPEGBaseline8Bit))


@contextlib.asynccontextmanager
async def serving(
    *instances: Stored, warm: bool = False, **more: object
) -> AsyncIterator[tuple[ScriptedArchive, Proxy]]:
    """Run the proxy in front of an archive that has these; `warm` has them in the cache."""
    async with in_front_of(list(instances), use_cget=True, enableCache=warm, **more) as (archive, proxy):
        if warm:
            for study in dict.fromkeys(path_of(stored.sample, "study") for stored in instances):
                await get(proxy, study)
            await kept(proxy.http)
            archive.requests.clear()
        yield archive, proxy


async def frame(proxy: Proxy, stored: Stored, numbers: str | int = 1, **headers: str) -> Answer:
    """Ask for frames."""
    return await get(proxy, f"{path_of(stored.sample)}/frames/{numbers}", **headers)


def parts(answer: Answer) -> list[tuple[str, str, str, bytes]]:
    """Media type, transfer syntax, path and content of each part; strict about all that is not of the content."""
    assert answer.status == 200, answer.body
    match = re.fullmatch(r'multipart/related; type="([a-z0-9/-]+)"; boundary=([0-9a-f]+)', answer.content_type)
    assert match is not None, answer.content_type
    opening, ending = f"--{match[2]}\r\n".encode(), f"\r\n--{match[2]}--\r\n".encode()
    assert answer.body.startswith(opening) and answer.body.endswith(ending)
    found = []
    for part in answer.body[len(opening) : -len(ending)].split(b"\r\n" + opening):
        head, _, content = part.partition(b"\r\n\r\n")
        fields = re.fullmatch(
            rf"Content-Type: {match[1]}; transfer-syntax=([0-9.]+)\r\nContent-Location: http://[^/]+(/\S+)",
            head.decode(),
        )
        assert fields is not None, head
        found.append((match[1], fields[1], fields[2], content))
    return found


def contents(answer: Answer) -> list[bytes]:
    return [content for *_, content in parts(answer)]


@pytest.mark.parametrize("warm", [False, True], ids=["arriving", "cached"])
@pytest.mark.parametrize("name", sorted(images()))
async def test_frames_as_they_are_stored(name: str, warm: bool) -> None:
    """The default, and what `*/*` and `multipart/related; type="*/*"` mean: the media type of the transfer syntax."""
    stored = images()[name]
    syntax = stored.sample.transfer_syntax_uid
    media_type = MEDIA_TYPES.get(syntax, "application/octet-stream")
    async with serving(stored, warm=warm) as (_, proxy):
        for accept in (
            "*/*",
            'multipart/related; type="*/*"',
            f'multipart/related; type="{media_type}"; transfer-syntax=*',
        ):
            answer = await frame(proxy, stored, Accept=accept)
            assert answer.headers["X-Cache"] == ("HIT" if warm else "MISS")
            assert int(answer.headers["Content-Length"]) == len(answer.body)
            sent_syntax = EXPLICIT if syntax in NATIVE else syntax
            path = path_of(stored.sample) + "/frames/1"
            assert parts(answer) == [(media_type, sent_syntax, path, pixels_of(stored)[0])]


@pytest.mark.parametrize("name", sorted(images()))
@pytest.mark.parametrize(
    "accept", [OHIF, 'multipart/related; type="application/octet-stream"; transfer-syntax="*"'], ids=["plain", "quoted"]
)
async def test_the_form_that_viewers_ask_for(name: str, accept: str) -> None:
    """octet-stream in any transfer syntax: the part says in which it is."""
    stored = images()[name]
    syntax = stored.sample.transfer_syntax_uid
    async with serving(stored) as (_, proxy):
        (part,) = parts(await frame(proxy, stored, Accept=accept))
        assert part[:2] == ("application/octet-stream", EXPLICIT if syntax in NATIVE else syntax)
        assert part[3] == pixels_of(stored)[0]


@pytest.mark.parametrize("accept", ["application/octet-stream", "application/octet-stream; transfer-syntax=*"])
async def test_a_single_frame_alone(accept: str) -> None:
    stored = multi_frame()
    async with serving(stored) as (_, proxy):
        answer = await frame(proxy, stored, 3, Accept=accept)
        assert answer.content_type == f"application/octet-stream; transfer-syntax={EXPLICIT}"
        assert answer.body == pixels_of(stored)[2]
        assert "multipart" in (await frame(proxy, stored, "3,4", Accept=accept)).failure(406)


async def test_a_list_is_answered_in_its_order_with_what_it_repeats() -> None:
    stored = multi_frame()
    expected = pixels_of(stored)
    async with serving(stored) as (_, proxy):
        answer = await frame(proxy, stored, "5,1,5,2")
        assert contents(answer) == [expected[4], expected[0], expected[4], expected[1]]
        places = [path.rpartition("/")[2] for _, _, path, _ in parts(answer)]
        assert places == ["5", "1", "5", "2"]
        assert contents(await frame(proxy, stored, "2%2C3")) == expected[1:3]


@pytest.mark.parametrize("warm", [False, True], ids=["arriving", "cached"])
async def test_frames_of_several_fragments_and_of_any_size(warm: bool) -> None:
    """Small pieces are joined, large ones go by sendfile."""
    noise = np.random.default_rng(1).bytes(600_000)
    whole = [[noise[:200], noise[200:400]], [noise[400:200_400], noise[200_400:400_400]], [noise[:2000], noise[:2000]]]
    stored = compressed(*whole)
    expected = [b"".join(fragments) for fragments in whole]
    async with serving(stored, warm=warm) as (_, proxy):
        assert contents(await frame(proxy, stored, "3,2,1,2")) == [expected[index] for index in (2, 1, 0, 1)]


@pytest.mark.parametrize(
    ("numbers", "status"), [("0", 404), ("6", 404), ("1,6", 404), ("x", 400), ("1,", 400), ("-1", 400)]
)
async def test_numbers_that_are_not_there_or_no_numbers(numbers: str, status: int) -> None:
    stored = multi_frame()
    async with serving(stored) as (archive, proxy):
        message = (await frame(proxy, stored, numbers)).failure(status)
        assert message == (
            "the instance has 5 frames, counted from 1, and not all that were asked for"
            if status == 404
            else "frames are given by their numbers, from 1 on, with commas between"
        )
        assert status == 404 or archive.requests == []


async def test_an_instance_without_pixel_data() -> None:
    stored = next(Stored.of(file) for file in corpus.mixed() if b"%PDF" in file)
    async with serving(stored) as (_, proxy):
        assert (await frame(proxy, stored)).failure(404) == "the instance has no pixel data"


async def test_an_instance_that_is_not_there() -> None:
    stored, other = small_study(1, 2)
    async with serving(stored) as (_, proxy):
        (await frame(proxy, other)).failure(404)


@pytest.mark.parametrize("accept", ["application/dicom+json", "image/jpeg", f"{OHIF[:-1]}1.2.840.10008.1.2.4.50"])
async def test_what_native_frames_cannot_be_sent_in(accept: str) -> None:
    stored = multi_frame()
    async with serving(stored) as (_, proxy):
        (await frame(proxy, stored, Accept=accept)).failure(406)


async def test_pixel_data_that_is_too_short_is_the_archive_s_failure() -> None:
    stored = multi_frame()
    cut_short = Stored(stored.sample, stored.whole.replace(b"\x28\0\x08\0IS\x02\x005 ", b"\x28\0\x08\0IS\x02\x007 "))
    async with serving(cut_short) as (_, proxy):
        assert contents(await frame(proxy, cut_short, 5)) == [pixels_of(stored)[4]]
        assert "shorter than its attributes say" in (await frame(proxy, cut_short, 7)).failure(502)


@pytest.mark.parametrize("warm", [False, True], ids=["arriving", "cached"])
async def test_a_deflated_instance_is_inflated_for_it(warm: bool) -> None:
    native = multi_frame()
    stored = Stored(native.sample, deflated(native.whole)).in_syntax(DEFLATED)
    async with serving(stored, warm=warm) as (_, proxy):
        for _ in range(2):
            answer = await frame(proxy, stored, "4,1")
            assert contents(answer) == [pixels_of(native)[3], pixels_of(native)[0]]
        assert {syntax for _, syntax, _, _ in parts(answer)} == {EXPLICIT}
        assert localfile._memory.used == 0


async def test_a_bomb_is_refused_within_a_bound() -> None:
    native = multi_frame()
    stored = Stored(native.sample, deflated(bytes(100_000_000))).in_syntax(DEFLATED)
    async with serving(stored) as (_, proxy):
        assert "larger than" in (await frame(proxy, stored)).failure(502)
        assert localfile._memory.used == 0


async def test_what_the_client_has_is_not_sent_again() -> None:
    stored = multi_frame()
    async with serving(stored, warm=True) as (archive, proxy):
        first = await frame(proxy, stored, 2)
        assert first.headers["Cache-Control"] == "private, no-cache"
        etag = first.headers["ETag"]
        again = await frame(proxy, stored, 2, **{"If-None-Match": etag})
        assert (again.status, again.body) == (304, b"")
        alone = await frame(proxy, stored, 2, Accept="application/octet-stream", **{"If-None-Match": etag})
        assert alone.status == 200
        assert not alone.headers["ETag"].startswith("W/")
        assert archive.requests == []


async def test_one_by_one_out_of_a_series_the_archive_is_asked_once() -> None:
    study = small_study(1, 6)
    async with in_front_of(study, use_cget=True, enableCache=True) as (archive, proxy):
        answers = await asyncio.gather(*(frame(proxy, stored, Accept=OHIF) for stored in study))
        assert [contents(answer) for answer in answers] == [pixels_of(stored) for stored in study]
        assert len(archive.requests) == 1


async def test_a_client_that_leaves_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(localfile, "SMALL", 1000)
    stored = multi_frame(40, side=512)
    storage = tmp_path / "storage"
    async with serving(stored, storagePath=str(storage)) as (_, proxy):
        path = f"{path_of(stored.sample)}/frames/{','.join(map(str, range(1, 41)))}"
        async with proxy.http.get(path) as response:
            await response.content.readexactly(1000)
            assert list(storage.rglob("*.part"))
            response.close()
        async with asyncio.timeout(5):
            while list(storage.rglob("*.part")):
                await asyncio.sleep(0.01)
    assert localfile._memory.used == 0


def test_what_is_remembered_of_files_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their number, and by the size of their tables; what was used last stays."""
    monkeypatch.setattr(frames, "KNOWN_FILES", 3)
    monkeypatch.setattr(frames, "KNOWN_ENTRIES", 100)
    known = frames.KnownFrames()
    tables = [table(10) for _ in range(4)]
    for number in range(3):
        known.add((number, 0, 0), tables[number])
    assert known.get((0, 0, 0)) is tables[0]
    known.add((3, 0, 0), tables[3])
    assert [known.get((number, 0, 0)) is not None for number in range(4)] == [True, False, True, True]
    known.add((4, 0, 0), table(60))
    assert known.get((4, 0, 0)) is None


def table(fragments: int) -> frames.Frames:
    """What there is to remember of an image with so many fragments."""
    return EncapsulatedFrames([0] * fragments, [0] * fragments, range(fragments + 1))


async def test_python_s_dicomweb_client() -> None:
    """Its default asks for any media type; it takes the parts apart by itself."""
    stored = multi_frame()
    async with serving(stored) as (_, proxy):
        client = DICOMwebClient(proxy.url)
        sample = stored.sample
        uids = (sample.study_uid, sample.series_uid, sample.sop_instance_uid)
        for media_types in (None, (("application/octet-stream", EXPLICIT),), (("application/octet-stream", "*"),)):
            found = await asyncio.to_thread(
                client.retrieve_instance_frames, *uids, frame_numbers=[2, 5], media_types=media_types
            )
            assert found == [pixels_of(stored)[1], pixels_of(stored)[4]]


DECODED = [name for name in sorted(images()) if name.partition("-")[0] in MEDIA_TYPES]


@pytest.mark.parametrize("name", DECODED)
async def test_compressed_frames_in_explicit_little_endian(name: str) -> None:
    """What octet-stream without a transfer syntax means, and what a client may name; as pydicom decodes them."""
    stored = images()[name]
    data_set = pydicom.dcmread(io.BytesIO(file_of(stored)))
    data_set.decompress()
    expected = frames_of(encoded(data_set, implicit=False), EXPLICIT)[0]
    async with serving(stored, warm=True) as (_, proxy):
        for accept in ("octet-stream", f"octet-stream; transfer-syntax={EXPLICIT}"):
            (part,) = parts(await frame(proxy, stored, Accept=f"multipart/related; type=application/{accept}"))
            assert part[1] == EXPLICIT
            assert part[3] == expected
            assert (await frame(proxy, stored, Accept=f"application/{accept}")).body == expected
        both = await frame(proxy, stored, "1,1", Accept="multipart/related; type=application/octet-stream")
        assert contents(both) == [expected, expected]


def file_of(stored: Stored) -> bytes:
    """The instance as a file."""
    syntax = stored.sample.transfer_syntax_uid
    header = file_header(
        stored.sample.sop_class_uid, stored.sample.sop_instance_uid, syntax, implementation_class_uid="1.2.3"
    )
    return header + stored.whole


@pytest.mark.parametrize(
    ("accept", "refused"),
    [
        (OHIF, {"1.2.840.10008.1.2.2"}),
        ('multipart/related; type="application/octet-stream"', {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}),
    ],
    ids=["stored", "decoded"],
)
async def test_the_same_as_orthanc_s_own_dicomweb(accept: str, refused: set[str], orthanc_dicomweb: Orthanc) -> None:
    """Byte for byte: native frames, stored codestreams, and those that Orthanc can decode; it fails for `refused`."""
    failed = set()
    async with serving(*images().values(), warm=True) as (_, proxy), aiohttp.ClientSession() as http:
        for stored in images().values():
            syntax = stored.sample.transfer_syntax_uid
            url = f"{orthanc_dicomweb.dicomweb_url}{path_of(stored.sample)}/frames/1"
            async with http.get(url, headers={"Accept": accept}) as response:
                theirs = await Answer.read(response)
            ours = await frame(proxy, stored, Accept=accept)
            if theirs.status != 200:
                failed.add(syntax)
            elif syntax == LOSSY_12_BIT and parts(ours)[0][1] == EXPLICIT:
                pixels = [
                    np.frombuffer(content, "<i2").astype(int) for content in (only_part(theirs), contents(ours)[0])
                ]
                assert np.abs(pixels[0] - pixels[1]).max() <= 2  # decoders may round differently
            else:
                assert contents(ours) == [only_part(theirs)]
    assert failed == refused


def only_part(answer: Answer) -> bytes:
    """The content of a multipart answer with one part."""
    boundary, _, rest = answer.body.partition(b"\r\n")
    content, end, _ = rest.partition(b"\r\n\r\n")[2].rpartition(b"\r\n" + boundary + b"--")
    assert end
    return content
