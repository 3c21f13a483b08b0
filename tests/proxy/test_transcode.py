"""Instances in Explicit VR Little Endian that are stored in something else: the same values, described as they are."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from struct import pack
from typing import Any

import aiohttp
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from proxy.dataset.part10 import file_header
from proxy.dataset.reader import parse
from proxy.dicomweb import localfile, transcode
from proxy.render import jobs
from proxy.render.errors import NotPossibleError
from proxy.render.instances import instance
from proxy.render.native import write_explicit
from tests.corpus import Corpus
from tests.dul.conftest import until
from tests.faultpeer import Stored, small_study
from tests.peers.orthanc import Orthanc
from tests.peers.process import require_program
from tests.proxy.dicomfiles import dicom_file, implicit, names, quiet
from tests.proxy.rendering import EXPLICIT, from_pydicom, image_parts, part10_of, pixels_of, read
from tests.proxy.retrieved import digests, expected, get, path_of
from tests.proxy.test_frames import frame, parts, serving

pytestmark = pytest.mark.usefixtures("nothing_left")

SINGLE = f"application/dicom; transfer-syntax={EXPLICIT}"
MULTIPART = f'multipart/related; type="application/dicom"; transfer-syntax={EXPLICIT}'

COMPRESSED = (
    "SC_rgb_jpeg_dcmtk.dcm",  # JPEG baseline, YBR
    "JPGExtended.dcm",
    "SC_rgb_jpeg_gdcm.dcm",  # JPEG lossless
    "MR_small_jpeg_ls_lossless.dcm",
    "JPEGLSNearLossless_16.dcm",
    "MR_small_jp2klossless.dcm",
    "examples_jpeg2k.dcm",  # with a colour transform
    "J2K_pixelrep_mismatch.dcm",
    "MR_small_RLE.dcm",
    "SC_rgb_rle_16bit_2frame.dcm",
    "rtdose_rle.dcm",  # 32 bits, 15 frames
    "SC_rgb_small_odd_jpeg.dcm",  # an odd number of bytes
)

CHANGED = (
    *("PhotometricInterpretation", "PlanarConfiguration", "PixelData"),
    *("LossyImageCompression", "LossyImageCompressionMethod"),
)

NATIVE = (
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "image_dfl.dcm",
    "rtdose_expb.dcm",
    "liver_expb_1frame.dcm",
)


@pytest.mark.parametrize("warm", [False, True], ids=["arriving", "cached"])
@pytest.mark.parametrize("name", [*COMPRESSED, *NATIVE])
async def test_pixels_are_those_that_pydicom_decodes(name: str, warm: bool) -> None:
    file = part10_of(name)
    stored = Stored.of(file)
    async with serving(stored, warm=warm) as (_, proxy):
        answer = await get(proxy, path_of(stored.sample), Accept=SINGLE)
    assert answer.status == 200, answer.body
    assert answer.content_type == SINGLE
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    how = "decompressed" if name in COMPRESSED else "encoded anew, values unchanged"
    syntax = stored.sample.transfer_syntax_uid
    assert answer.headers["Warning"] == f'214 dicomweb-proxy "transcoded from transfer syntax {syntax}: {how}"'
    made = read(answer.body)
    assert made.file_meta.TransferSyntaxUID == EXPLICIT
    assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID == stored.sample.sop_instance_uid
    np.testing.assert_array_equal(pixels_of(answer.body), pixels_of(file))


@pytest.mark.parametrize("name", COMPRESSED)
async def test_what_describes_the_pixels_is_in_line(name: str) -> None:
    file = part10_of(name)
    stored = Stored.of(file)
    async with serving(stored) as (_, proxy):
        made = read((await get(proxy, path_of(stored.sample), Accept=SINGLE)).body)
    frames = int(made.get("NumberOfFrames") or 1)
    size = made.Rows * made.Columns * made.SamplesPerPixel * (made.BitsAllocated // 8) * frames
    assert len(made.PixelData) == size + size % 2
    vr = "OB" if made.BitsAllocated == 8 else "OW"
    assert vr == made["PixelData"].VR
    assert not made["PixelData"].is_undefined_length
    if made.SamplesPerPixel == 3:
        assert (made.PhotometricInterpretation, made.PlanarConfiguration) == ("RGB", 0)
    with quiet():
        for element in read(file):
            if element.keyword not in CHANGED:
                assert made[element.tag] == element


def never_said_to_be_lossy(data_set: Dataset) -> None:
    for keyword in ("LossyImageCompression", "LossyImageCompressionMethod"):
        data_set.pop(keyword, None)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("SC_rgb_jpeg_dcmtk.dcm", "ISO_10918_1"),
        ("JPEGLSNearLossless_16.dcm", "ISO_14495_1"),
        ("MR_small_RLE.dcm", None),
        ("SC_rgb_jpeg_gdcm.dcm", None),
    ],
)
async def test_what_was_lossy_says_so_afterwards(name: str, method: str | None) -> None:
    """PS3.3 C.7.6.1.1.5: even where the instance did not say it."""
    stored = from_pydicom(name, change=never_said_to_be_lossy)
    async with serving(stored) as (_, proxy):
        made = read((await get(proxy, path_of(stored.sample), Accept=SINGLE)).body)
    assert made.get("LossyImageCompressionMethod") == method
    assert made.get("LossyImageCompression") == (method and "01")


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("SC_rgb_jpeg_gdcm.dcm", "dcmdjpeg"),
        ("JPGExtended.dcm", "dcmdjpeg"),
        ("SC_rgb_jpeg_dcmtk.dcm", "dcmdjpeg"),
        ("MR_small_jpeg_ls_lossless.dcm", "dcmdjpls"),
        ("MR_small_RLE.dcm", "dcmdrle"),
        ("SC_rgb_rle_16bit_2frame.dcm", "dcmdrle"),
        ("MR_small_implicit.dcm", "dcmconv"),
        ("MR_small_bigendian.dcm", "dcmconv"),
        ("image_dfl.dcm", "dcmconv"),
    ],
)
async def test_pixels_are_those_that_dcmtk_decodes(name: str, program: str, tmp_path: Path) -> None:
    file = part10_of(name)
    stored = Stored.of(file)
    source, target = tmp_path / "source.dcm", tmp_path / "target.dcm"
    source.write_bytes(file)
    options = ["+te"] if program == "dcmconv" else []
    subprocess.run([require_program(program, "dcmtk"), *options, source, target], check=True, timeout=20)
    async with serving(stored) as (_, proxy):
        answer = await get(proxy, path_of(stored.sample), Accept=SINGLE)
    ours, theirs = read(answer.body), pydicom.dcmread(target)
    assert ours.PhotometricInterpretation == theirs.PhotometricInterpretation
    # Decoders of lossy JPEG may differ in the last bit (ISO/IEC 10918-2).
    tolerance = 1 if name == "JPGExtended.dcm" else 0
    assert np.abs(as_integers(ours) - as_integers(theirs)).max() <= tolerance
    if not tolerance and theirs.get("PlanarConfiguration", 0) == 0:
        assert ours.PixelData == theirs.PixelData


def native_names() -> list[str]:
    syntaxes = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
    return [name for name in names() if dicom_file(name).transfer_syntax in syntaxes]


@pytest.mark.parametrize("name", native_names())
def test_every_value_of_what_comes_with_pydicom(name: str, tmp_path: Path) -> None:
    """Implicit VR, big endian and deflated, read by pydicom before and after: nested, private, of all VRs."""
    sample = dicom_file(name)
    source, target = tmp_path / "source.dcm", tmp_path / "target.dcm"
    header = file_header("1.2.3", "1.2.4", sample.transfer_syntax, implementation_class_uid="1.2.5", source_aet="PACS")
    source.write_bytes(header + sample.data)
    target.touch()
    with source.open("rb") as opened, target.open("r+b") as made:
        assert instance(opened, made).values == {"size": target.stat().st_size}
    with quiet():
        before, after = pydicom.dcmread(source), pydicom.dcmread(target)
        assert after.file_meta.TransferSyntaxUID == EXPLICIT
        assert after.file_meta.SourceApplicationEntityTitle == "PACS"
        assert_equal(before, after)


def assert_equal(before: Dataset, after: Dataset) -> None:
    tags = [element.tag for element in before if element.tag.element]
    assert [element.tag for element in after] == tags
    for tag in tags:
        one, other = before[tag], after[tag]
        if one.VR == "SQ":
            assert len(one.value) == len(other.value)
            for item, made in zip(one.value, other.value, strict=True):
                assert_equal(item, made)
        elif tag == 0x7FE00010:
            pass  # compared as pixels, since pydicom does not turn them
        elif one.VR in ("OB", "OW", "UN", "OB or OW"):
            assert bytes(one.value or b"")[: len(other.value or b"")].rstrip(b"\0") == bytes(other.value or b"").rstrip(
                b"\0"
            )
        else:
            assert one.value == other.value
    if "PixelData" in before and "Rows" in before:
        np.testing.assert_array_equal(before.pixel_array, after.pixel_array)


def test_a_value_too_long_for_its_vr_becomes_unknown() -> None:
    """PS3.5 6.2.2, note: implicit VR has lengths of four bytes for all."""
    long_text = b"A\\" * 40_000
    pieces: list[bytes] = []
    elements = parse(implicit(0x00081030, long_text) + implicit(0x00100020, b"ID"), "1.2.840.10008.1.2")
    write_explicit(elements, lambda data: pieces.append(bytes(data)), "1.2.840.10008.1.2")
    head = pack("<HH2sHI", 0x0008, 0x1030, b"UN", 0, len(long_text))
    assert b"".join(pieces) == head + long_text + pack("<HH2sH", 0x0010, 0x0020, b"LO", 2) + b"ID"


# --- when ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accept",
    [
        "application/dicom",
        "application/dicom; transfer-syntax=*",
        "application/dicom; transfer-syntax=1.2.840.10008.1.2.5",
        f"{SINGLE}, application/dicom; transfer-syntax=1.2.840.10008.1.2.5; q=0.1",
        f"{SINGLE}, application/dicom; transfer-syntax=*; q=0.1",
        "*/*",
    ],
)
@pytest.mark.parametrize("warm", [False, True], ids=["arriving", "cached"])
async def test_what_the_client_takes_as_it_is_stored_is_not_transcoded(accept: str, warm: bool) -> None:
    stored = from_pydicom("MR_small_RLE.dcm")
    async with serving(stored, warm=warm) as (_, proxy):
        answer = await get(proxy, path_of(stored.sample), Accept=accept)
        assert "Warning" not in answer.headers
        content = answer.body if answer.content_type.startswith("application/dicom") else answer.files[0]
        assert digests([content]) == expected([stored.sample])


@pytest.mark.parametrize(
    "accept",
    [
        f"application/dicom; transfer-syntax={ImplicitVRLittleEndian}",
        "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.50",
        f"application/dicom; transfer-syntax=1.2.840.10008.1.2.5; q=0, {SINGLE}; q=0",
    ],
)
@pytest.mark.parametrize("warm", [False, True], ids=["arriving", "cached"])
async def test_what_it_is_not_transcoded_to(accept: str, warm: bool) -> None:
    stored = from_pydicom("MR_small_RLE.dcm")
    async with serving(stored, warm=warm) as (_, proxy):
        message = (await get(proxy, path_of(stored.sample), Accept=accept)).failure(406)
        if "4.50" in accept:
            assert message == (
                "the archive has it in transfer syntax 1.2.840.10008.1.2.5, "
                "and it can be transcoded only to 1.2.840.10008.1.2.1"
            )


async def test_a_refused_transfer_syntax_is_decoded() -> None:
    stored = from_pydicom("MR_small_RLE.dcm")
    accept = "application/dicom, application/dicom; transfer-syntax=1.2.840.10008.1.2.5; q=0"
    async with serving(stored) as (_, proxy):
        assert (await get(proxy, path_of(stored.sample), Accept=accept)).content_type == SINGLE


@pytest.mark.parametrize("warm", [False, True], ids=["arriving", "cached"])
async def test_a_series_of_several_transfer_syntaxes(warm: bool) -> None:
    """Each part says what it is in and what was done; what is in it already goes out byte for byte."""
    files = [
        part10_of(name, number)
        for number, name in enumerate(["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_implicit.dcm"], 1)
    ]
    instances = [Stored.of(file) for file in files]
    by_uid = {stored.sample.sop_instance_uid: (stored, file) for stored, file in zip(instances, files, strict=True)}
    async with serving(*instances, warm=warm) as (archive, proxy):
        answer = await get(proxy, path_of(instances[0].sample, "series"), Accept=MULTIPART)
        assert answer.headers["X-Cache"] == ("HIT" if warm else "MISS")
        assert len(archive.requests) == (0 if warm else 1)
    found = image_parts(answer)
    assert len(found) == 3
    for fields, content in found:
        made = read(content)
        stored, file = by_uid[made.SOPInstanceUID]
        assert fields["Content-Type"] == SINGLE
        assert fields["Content-Location"].endswith(path_of(stored.sample))
        if stored.sample.transfer_syntax_uid == EXPLICIT:
            assert "Content-Description" not in fields
            assert digests([content]) == expected([stored.sample])
        else:
            assert fields["Content-Description"].startswith(
                f"transcoded from transfer syntax {stored.sample.transfer_syntax_uid}: "
            )
            np.testing.assert_array_equal(made.pixel_array, pixels_of(file))


async def test_an_entity_tag_saves_transcoding() -> None:
    stored = from_pydicom("MR_small_RLE.dcm")
    async with serving(stored, warm=True) as (_, proxy):
        path = path_of(stored.sample)
        tags = set()
        for accept in (SINGLE, MULTIPART, "application/dicom"):
            answer = await get(proxy, path, Accept=accept)
            tags.add(answer.headers["ETag"])
            again = await get(proxy, path, **{"Accept": accept, "If-None-Match": answer.headers["ETag"]})
            assert (again.status, again.body) == (304, b"")
        assert len(tags) == 3


# --- what cannot be done -------------------------------------------------------------------------------------------


async def test_an_instance_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_INSTANCE", 4096)
    monkeypatch.setattr(transcode.jobs, "MAX_INSTANCE", 4096)
    stored = from_pydicom("MR_small_implicit.dcm")
    async with serving(stored) as (_, proxy):
        message = (await get(proxy, path_of(stored.sample), Accept=SINGLE)).failure(406)
    assert message == "instances of more than 0 MiB are not transcoded"


async def test_an_instance_that_would_be_too_large() -> None:
    """Known from its attributes, before anything is decoded."""

    def change(data_set: Dataset) -> None:
        data_set.NumberOfFrames = 100_000_000

    stored = from_pydicom("MR_small_RLE.dcm", change=change)
    async with serving(stored) as (_, proxy):
        message = (await get(proxy, path_of(stored.sample), Accept=SINGLE)).failure(406)
    assert message == "instances of more than 512 MiB are not transcoded"


@pytest.mark.parametrize("warm", [False, True], ids=["arriving", "cached"])
async def test_video_is_not_decoded(warm: bool) -> None:
    stored = small_study(1, 1)[0].in_syntax("1.2.840.10008.1.2.4.102")
    async with serving(stored, warm=warm) as (_, proxy):
        message = (await get(proxy, path_of(stored.sample), Accept=SINGLE)).failure(406)
    assert message == "the archive has it in transfer syntax 1.2.840.10008.1.2.4.102, which is not decoded"


@pytest.mark.parametrize("syntax", ["1.2.3.4", "1.2.840.113619.5.2"])
def test_a_private_transfer_syntax(syntax: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source.dcm", tmp_path / "target.dcm"
    source.write_bytes(file_header("1.2.3", "1.2.4", syntax, implementation_class_uid="1.2.5") + b"\0" * 100)
    target.touch()
    with source.open("rb") as opened, target.open("r+b") as made, pytest.raises(NotPossibleError, match="private"):
        instance(opened, made)


async def test_pixels_that_cannot_be_decoded_are_the_archive_s_failure() -> None:
    stored = from_pydicom("JPEG-lossy.dcm")
    async with serving(stored) as (_, proxy):
        message = (await get(proxy, path_of(stored.sample), Accept=SINGLE)).failure(502)
    assert message == "the instance cannot be decoded, as the archive has sent it"


async def test_frames_that_are_missing_are_no_whole_instance() -> None:
    def change(data_set: Dataset) -> None:
        data_set.NumberOfFrames = 3

    stored = from_pydicom("SC_rgb_rle_2frame.dcm", change=change)
    async with serving(stored) as (_, proxy):
        answer = await get(proxy, path_of(stored.sample), Accept=SINGLE)
        assert answer.status in (406, 502), answer.body


async def test_a_series_is_cut_at_what_cannot_be_decoded() -> None:
    """What failed before the first byte is an error; later, no client is to take some for all."""
    good, bad = from_pydicom("MR_small_RLE.dcm", 1), from_pydicom("JPEG-lossy.dcm", 2)
    async with serving(good, bad, warm=True) as (_, proxy):
        path = path_of(good.sample, "series")
        with pytest.raises(aiohttp.ClientPayloadError):
            await get(proxy, path, Accept=MULTIPART)
    async with serving(bad, replaced(good, 3), warm=True) as (_, proxy):
        assert (await get(proxy, path_of(bad.sample), Accept=MULTIPART)).status == 502


def replaced(stored: Stored, number: int) -> Stored:
    return Stored(replace(stored.sample, file=str(number)), stored.data)


@pytest.mark.parametrize("storage", ["/proc/nowhere", None], ids=["without a storage", "with one"])
async def test_nothing_is_left_in_the_storage(storage: str | None, tmp_path: Path) -> None:
    stored = from_pydicom("MR_small_RLE.dcm")
    folder = storage or str(tmp_path / "storage")
    async with serving(stored, storagePath=folder) as (_, proxy):
        answer = await get(proxy, path_of(stored.sample), Accept=SINGLE)
        assert answer.status == 200
        await until(lambda: list(Path(folder).rglob("*.part")) == [])
        await until(lambda: localfile._memory.used == 0)


# --- frames --------------------------------------------------------------------------------------------------------

OCTETS = f'multipart/related; type="application/octet-stream"; transfer-syntax={EXPLICIT}'


@pytest.mark.parametrize("name", COMPRESSED)
async def test_decoded_frames(name: str) -> None:
    """The same bytes as in the instance when that is transcoded."""
    file = part10_of(name)
    stored = Stored.of(file)
    whole = pixels_of(file)
    count = int(read(file).get("NumberOfFrames") or 1)
    numbers = sorted({1, count, (count + 1) // 2})
    async with serving(stored, warm=True) as (_, proxy):
        answer = await frame(proxy, stored, ",".join(map(str, numbers)), Accept=OCTETS)
        made = read((await get(proxy, path_of(stored.sample), Accept=SINGLE)).body)
    contents = [content for _, syntax, _, content in parts(answer)]
    assert contents == [(whole[number - 1] if count > 1 else whole).tobytes() for number in numbers]
    size = len(contents[0])
    assert contents[0] == made.PixelData[:size]


# --- against Orthanc -----------------------------------------------------------------------------------------------


async def test_what_orthanc_s_own_server_transcodes_to_the_same(orthanc_dicomweb: Orthanc, samples: Corpus) -> None:
    """Its plugin, asked for the same; not JPEG 2000, which this Orthanc does not decode."""
    async with aiohttp.ClientSession() as http:
        for sample in samples.of_patient("COMPRESSED"):
            if ".4.9" in sample.transfer_syntax_uid:
                continue
            stored = Stored.of(samples.path(sample).read_bytes())
            url = orthanc_dicomweb.dicomweb_url + path_of(sample)
            async with http.get(url, headers={"Accept": MULTIPART}) as response:
                assert response.status == 200
                theirs = read(part_of(await response.read()))
            async with serving(stored) as (_, proxy):
                ours = read((await get(proxy, path_of(sample), Accept=SINGLE)).body)
            assert theirs.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
            assert ours.PhotometricInterpretation == theirs.PhotometricInterpretation
            assert np.abs(as_integers(ours) - as_integers(theirs)).max() <= 1


def as_integers(data_set: Dataset) -> np.ndarray[Any, Any]:
    return data_set.pixel_array.astype(np.int64)


def part_of(body: bytes) -> bytes:
    boundary = body.split(b"\r\n", 1)[0].strip() or body.split(b"\r\n", 2)[1]
    _, _, content = body.partition(b"\r\n\r\n")
    return content[: content.rindex(b"\r\n" + boundary)]
