"""Where frames lie: the bytes of each compared with pydicom's, over all its samples and encodings made for the test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from struct import pack

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate_extended, generate_frames
from pydicom.uid import UID

from proxy.dataset.layout import inflate_to
from proxy.dataset.pixels import NATIVE, PIXEL_DATA, VIDEO, Frames, find_frames
from proxy.dataset.reader import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    DatasetError,
    transfer_syntax_of,
)
from tests.proxy.dicomfiles import SEQUENCE_END, UNDEFINED, dicom_file, encoded, item, long, names, quiet, short

JPEG = "1.2.840.10008.1.2.4.50"
RLE = "1.2.840.10008.1.2.5"
VIDEO_SYNTAX = "1.2.840.10008.1.2.4.102"


@contextmanager
def as_file(data: bytes, transfer_syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> Iterator[tuple[int, int]]:
    """A file with a data set, inflated where it is deflated: its descriptor and size."""
    descriptor = os.memfd_create("test")
    try:
        os.write(descriptor, data)
        size = len(data)
        if transfer_syntax_of(transfer_syntax).deflated:
            target = os.memfd_create("inflated")
            size = inflate_to(descriptor, 0, size, target)
            os.dup2(target, descriptor)
            os.close(target)
        yield descriptor, size
    finally:
        os.close(descriptor)


def frames_of(data: bytes, transfer_syntax: str) -> list[bytes]:
    """The bytes of all frames."""
    with as_file(data, transfer_syntax) as (descriptor, size):
        frames = find_frames(descriptor, 0, size, transfer_syntax)
        return [] if frames is None else [content(frames, number, descriptor) for number in range(1, frames.count + 1)]


def content(frames: Frames, number: int, descriptor: int, step: int = 1000) -> bytes:
    """The bytes of a frame, read as they are, or in steps of an odd size."""
    frame = frames.frame(number)
    if frame.is_stored_so:
        found = b"".join(os.pread(descriptor, length, offset) for offset, length in frame.spans)
    else:
        found = b"".join(frame.read(descriptor, start, step) for start in range(0, frame.size, step))
    assert len(found) == frame.size
    return found


def with_pixels() -> list[str]:
    """The samples that have pixel data."""
    found = []
    for name in names():
        dataset = dicom_file(name).dataset()
        if any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            found.append(name)
    return found


def of_pydicom(dataset: Dataset, transfer_syntax: str, count: int) -> list[bytes]:
    """The frames as pydicom sees them: encapsulated ones by its generator, native ones as little endian arrays."""
    if transfer_syntax not in NATIVE:
        return list(generate_frames(dataset.PixelData, number_of_frames=count))
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    with quiet():
        pixels = dataset.pixel_array
    if count == 1:
        pixels = pixels[np.newaxis]
    if dataset.get("BitsAllocated") == 1:
        return [np.packbits(frame, bitorder="little").tobytes() for frame in pixels]
    if dataset.get("PlanarConfiguration") and dataset.SamplesPerPixel > 1:
        pixels = np.moveaxis(pixels, -1, 1)
    return [frame.astype(frame.dtype.newbyteorder("<")).tobytes() for frame in pixels]


@pytest.mark.parametrize("name", with_pixels())
def test_the_frames_of_a_sample_are_those_that_pydicom_sees(name: str) -> None:
    file = dicom_file(name)
    with quiet():
        dataset = file.dataset()
        count = int(dataset.get("NumberOfFrames") or 1)
        try:
            expected = of_pydicom(dataset, file.transfer_syntax, count)
        except (ValueError, AttributeError):
            expected = None
    if expected is None:  # pydicom finds that attributes are missing, or that the pixel data is too short
        with pytest.raises(DatasetError):
            frames_of(file.data, file.transfer_syntax)
        return
    found = frames_of(file.data, file.transfer_syntax)
    if dataset.get("PhotometricInterpretation") == "YBR_FULL_422" and file.transfer_syntax in NATIVE:
        assert [len(frame) for frame in found] == [len(frame) * 2 // 3 for frame in expected]  # pydicom upsamples
        assert b"".join(found) == dataset.PixelData[: sum(map(len, found))]
        return
    assert found == expected


# --- encapsulated ----------------------------------------------------------------------------------------------------


def image(pixel_data: bytes, count: int = 1, *more: bytes) -> bytes:
    """An encoded image of `count` frames; `more` are elements before the pixel data."""
    numbers = [(0x00280002, 1), (0x00280010, 2), (0x00280011, 2), (0x00280100, 8)]
    attributes = [short(tag, "US", pack("<H", value)) for tag, value in numbers]
    attributes.insert(1, short(0x00280008, "IS", str(count).encode().ljust(4)))
    return b"".join([*attributes, *more, pixel_data])


def encapsulated(*items: bytes) -> bytes:
    """Encapsulated pixel data; the first item is the offset table."""
    return long(PIXEL_DATA, "OB", b"".join(map(item, items)) + SEQUENCE_END, UNDEFINED)


SOI = b"\xff\xd8\xff\xe0"


@pytest.mark.parametrize(
    ("count", "items", "expected"),
    [
        (1, [b"", b"ab", b"cd"], [b"abcd"]),
        (2, [b"", b"ab", b"cd"], [b"ab", b"cd"]),
        (2, [pack("<2I", 0, 20), b"ab", b"cd", b"ef"], [b"abcd", b"ef"]),
        (2, [pack("<2I", 0, 10), b"ab", b"cd", b"ef"], [b"ab", b"cdef"]),
        (1, [pack("<I", 0), b"ab", b"cd"], [b"abcd"]),
        (3, [b"", b"ab", b"cd"], [b"ab", b"cd"]),
        (2, [b"", SOI + b"ab", b"cd", SOI + b"ef"], [SOI + b"abcd", SOI + b"ef"]),
        # Offset tables that do not fit are passed over:
        (2, [pack("<2I", 0, 18), SOI, b"cd", SOI], [SOI + b"cd", SOI]),
        (2, [pack("<2I", 22, 0), SOI, b"cd", SOI], [SOI + b"cd", SOI]),
        (2, [pack("<2I", 12, 22), SOI, b"cd", SOI], [SOI + b"cd", SOI]),
        (2, [pack("<I", 0), SOI, b"cd", SOI], [SOI + b"cd", SOI]),
    ],
)
def test_fragments_go_to_their_frames(count: int, items: list[bytes], expected: list[bytes]) -> None:
    assert frames_of(image(encapsulated(*items), count), JPEG) == expected


def test_a_frame_of_many_fragments_is_found_wherever_the_steps_of_reading_end() -> None:
    contents = [bytes([number]) * (number * 37 % 600 + 2 & ~1) for number in range(256)]
    assert frames_of(image(encapsulated(b"", *contents), 256), JPEG) == contents


def test_the_extended_offset_table() -> None:
    """It says the lengths too: padding is no part of a frame."""
    contents = [b"abc", b"defg", b"h"]
    pixels, offsets, _ = encapsulate_extended(contents)  # whose lengths are those of the fragments
    lengths = pack("<3Q", *map(len, contents))
    tables = long(0x7FE00001, "OV", offsets), long(0x7FE00002, "OV", lengths)
    pixel_data = long(PIXEL_DATA, "OB", pixels + SEQUENCE_END, UNDEFINED)
    assert frames_of(image(pixel_data, 3, *tables), JPEG) == contents
    for wrong in (
        [tables[0], long(0x7FE00002, "OV", pack("<3Q", 3, 4, 1000))],
        [long(0x7FE00001, "OV", pack("<3Q", 0, 12, 25)), tables[1]],
        [long(0x7FE00001, "OV", pack("<3Q", 0, 12, 2**63)), tables[1]],
        [long(0x7FE00001, "OV", pack("<2Q", 0, 12)), tables[1]],
    ):
        assert frames_of(image(pixel_data, 3, *wrong), JPEG) == [b"abc\0", b"defg", b"h\0"]


def test_a_video_is_one_stream_whatever_the_number_of_frames() -> None:
    assert VIDEO_SYNTAX in VIDEO
    assert frames_of(image(encapsulated(b"", b"ab", b"cd", b"ef"), 250), VIDEO_SYNTAX) == [b"abcdef"]


@pytest.mark.parametrize(
    ("data", "syntax", "message"),
    [
        (image(encapsulated(b"", b"ab", b"cd", b"ef"), 2), JPEG, "nothing tells which fragments"),
        (image(encapsulated(b"")), JPEG, "has no fragment"),
        (image(encapsulated(b"", b"ab"))[:-9], JPEG, "not whole"),
        (image(long(PIXEL_DATA, "OB", b"\1\2\3\4")), JPEG, "has no fragment"),
        (image(long(PIXEL_DATA, "OB", b"\1\2\3\4\5\6\7\x08")), JPEG, "not whole"),
        (image(encapsulated(b"", b"ab")), EXPLICIT_VR_LITTLE_ENDIAN, "does not have it"),
        (image(long(PIXEL_DATA, "OB", b"abcd")), EXPLICIT_VR_LITTLE_ENDIAN, ""),
        (image(long(PIXEL_DATA, "OB", b"abcd"), 2), EXPLICIT_VR_LITTLE_ENDIAN, "shorter than its attributes"),
        (image(long(PIXEL_DATA, "OB", b"abcd", 400)), EXPLICIT_VR_LITTLE_ENDIAN, "longer than the data set"),
        (long(PIXEL_DATA, "OB", b"abcd"), EXPLICIT_VR_LITTLE_ENDIAN, "is missing"),
    ],
)
def test_what_cannot_be_told_apart_is_said(data: bytes, syntax: str, message: str) -> None:
    if not message:
        assert frames_of(data, syntax) == [b"abcd"]
        return
    with pytest.raises(DatasetError, match=message):
        frames_of(data, syntax)


# --- native ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("size", [(3, 5), (8, 8), (1, 1), (64, 63)])
def test_frames_of_single_bits_begin_at_a_byte(size: tuple[int, int], big_endian: bool) -> None:
    """As packed by numpy: frames of a segmentation may begin within a byte (PS3.5 8.1.1)."""
    rows, columns = size
    pixels = np.random.default_rng(rows).integers(0, 2, (7, rows, columns), dtype=np.uint8)
    packed = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    packed += bytes(len(packed) % 2)
    dataset = native(rows, columns, 1, 7)
    dataset.add_new(PIXEL_DATA, "OW", np.frombuffer(packed, "<u2").byteswap().tobytes() if big_endian else packed)
    syntax = EXPLICIT_VR_BIG_ENDIAN if big_endian else EXPLICIT_VR_LITTLE_ENDIAN
    expected = [np.packbits(frame.ravel(), bitorder="little").tobytes() for frame in pixels]
    assert frames_of(encoded(dataset, implicit=False, little=not big_endian), syntax) == expected


@pytest.mark.parametrize("allocated", [8, 16, 32, 64])
@pytest.mark.parametrize("vr", ["OW", "OB"])
def test_big_endian_pixels_are_turned(allocated: int, vr: str) -> None:
    """Words of 8-bit pixels that two frames share too; not what is a string of bytes (PS3.5 7.3)."""
    pixels = np.random.default_rng(allocated).integers(0, 200, (3, 5, 7)).astype(f"<u{allocated // 8}")
    little = pixels.tobytes() + bytes(pixels.nbytes % 2)
    big = little if vr == "OB" else np.frombuffer(little, f"<u{max(2, allocated // 8)}").byteswap().tobytes()
    dataset = native(5, 7, allocated, 3)
    dataset.add_new(PIXEL_DATA, vr, big)
    found = frames_of(encoded(dataset, implicit=False, little=False), EXPLICIT_VR_BIG_ENDIAN)
    assert found == [frame.tobytes() for frame in pixels]


@pytest.mark.parametrize(("keyword", "form"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
@pytest.mark.parametrize("little", [True, False])
def test_float_pixels(keyword: str, form: str, little: bool) -> None:
    pixels = np.arange(24).reshape(2, 3, 4) / 7
    dataset = native(3, 4, int(form[1]) * 8, 2)
    setattr(dataset, keyword, pixels.astype(("<" if little else ">") + form).tobytes())
    syntax = EXPLICIT_VR_LITTLE_ENDIAN if little else EXPLICIT_VR_BIG_ENDIAN
    found = frames_of(encoded(dataset, implicit=False, little=little), syntax)
    assert found == [frame.astype("<" + form).tobytes() for frame in pixels]


def native(rows: int, columns: int, allocated: int, count: int) -> Dataset:
    """The attributes of an image."""
    dataset = Dataset()
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.NumberOfFrames = count
    dataset.Rows, dataset.Columns, dataset.BitsAllocated = rows, columns, allocated
    return dataset


def test_a_subsampled_native_image_unless_its_length_says_otherwise() -> None:
    """YBR_FULL_422 has two samples for each pixel (PS3.3 C.7.6.3.1.2); some write three all the same."""
    dataset = native(4, 4, 8, 2)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "YBR_FULL_422"
    dataset.add_new(PIXEL_DATA, "OB", bytes(range(64)))
    assert frames_of(encoded(dataset, implicit=False), EXPLICIT_VR_LITTLE_ENDIAN) == [
        bytes(range(32)),
        bytes(range(32, 64)),
    ]
    dataset.add_new(PIXEL_DATA, "OB", bytes(range(96)))
    assert [len(frame) for frame in frames_of(encoded(dataset, implicit=False), EXPLICIT_VR_LITTLE_ENDIAN)] == [48, 48]


def test_an_instance_without_pixel_data_has_no_frames() -> None:
    assert frames_of(encoded(native(2, 2, 8, 1), implicit=True), IMPLICIT_VR_LITTLE_ENDIAN) == []


def test_pixel_data_within_a_sequence_is_not_the_image_s() -> None:
    """An icon, encapsulated and of undefined length."""
    icon = long(0x00880200, "SQ", item(image(encapsulated(b"", b"icon"))), UNDEFINED) + SEQUENCE_END
    assert frames_of(image(encapsulated(b"", b"ab"), 1, icon), JPEG) == [b"ab"]
