"""Data sets without their bulk data: the same as the whole, but for the large values, whose places are right."""

from __future__ import annotations

import io
import json
import tempfile
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from struct import pack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dataset.reader import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    DatasetError,
    Element,
    Limits,
    inflate,
    parse,
    transfer_syntax_of,
)
from proxy.dataset.skim import BULK_FROM, PIXEL_DATA, Bulk, Path, Skim, skim_file
from proxy.dicomweb.dicomjson import encode
from tests.proxy.dicomfiles import (
    ITEM,
    ITEM_END,
    NATIVE,
    SEQUENCE_END,
    UNDEFINED,
    deflated,
    dicom_file,
    encoded,
    implicit,
    item,
    long,
    names,
    sample_dataset,
    short,
)


def skimmed(data: bytes, syntax: str, size: int = 1 << 30) -> Skim:
    """Feed a data set in chunks of that size."""
    skim = Skim(syntax)
    for start in range(0, len(data), size):
        skim.feed(data[start : start + size])
    return skim


def by_skimming(skim: Skim) -> Any:
    """The JSON model with the paths of what was left out."""
    elements = skim.elements()
    return json.loads(encode(elements, bulk_data=lambda path, _: str(path) if path in skim.bulk else None))


def by_parsing(data: bytes, syntax: str) -> tuple[Any, dict[Path, Element]]:
    """The same from all of the data set, and the elements that were left out."""
    left_out: dict[Path, Element] = {}

    def large(path: Path, element: Element) -> str | None:
        value = element.value
        assert not isinstance(value, list)
        if isinstance(value, tuple) or len(value) > (0 if path[0] in PIXEL_DATA else BULK_FROM):
            left_out[path] = element
            return str(path)
        return None

    return json.loads(encode(parse(data, syntax), bulk_data=large)), left_out


def value_of(data: bytes, bulk: Bulk) -> bytes:
    """What is at the place that was found for a value."""
    return data[bulk.offset : bulk.offset + bulk.length]


def whole(element: Element) -> bytes:
    """The bytes of a value, fragments with their headers."""
    value = element.value
    if isinstance(value, tuple):
        return b"".join(item(bytes(one)) for one in value)
    assert not isinstance(value, list)
    return bytes(value)


@pytest.mark.parametrize("name", names())
def test_all_samples(name: str) -> None:
    """The encoder finds the same in what was skimmed as in the whole, and each value left out is where it was found."""
    sample = dicom_file(name)
    syntax = transfer_syntax_of(sample.transfer_syntax)
    model, left_out = by_parsing(sample.data, sample.transfer_syntax)
    for size in (1 << 30, 509):
        skim = skimmed(sample.data, sample.transfer_syntax, size)
        assert by_skimming(skim) == model
        assert skim.bulk.keys() == left_out.keys()
    data = inflate(sample.data) if syntax.deflated else sample.data
    for path, bulk in skim.bulk.items():
        found, expected = value_of(data, bulk), whole(left_out[path])
        assert len(found) == len(expected)
        assert bulk.turned or found == expected
        assert bulk.encapsulated is isinstance(left_out[path].value, tuple)


def test_the_samples_have_bulk_data_of_all_kinds() -> None:
    """Encapsulated and native, big endian, deflated, and in sequences."""
    kinds = set()
    for name in names():
        sample = dicom_file(name)
        syntax = transfer_syntax_of(sample.transfer_syntax)
        for path, bulk in skimmed(sample.data, sample.transfer_syntax).bulk.items():
            kinds.add((bulk.encapsulated, bulk.turned, syntax.deflated, len(path) > 1))
    assert {(False, False, False, False), (True, False, False, False), (False, True, False, False)} < kinds
    assert {(False, False, True, False), (False, False, False, True)} < kinds


@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
@pytest.mark.parametrize("encoding", NATIVE)
@given(size=st.integers(1, 3000))
@settings(deadline=None, max_examples=10)
def test_values_within_long_sequences(encoding: str, undefined: bool, size: int) -> None:
    """In every encoding, whatever the chunks: sequences that lose a value are still sequences."""
    dataset = sample_dataset()
    value = bytes(range(256)) * 9
    inner = dataset.ContentSequence[0].ConceptNameCodeSequence[1]
    inner.add_new(0x00420011, "OB", value)
    dataset.ContentSequence[2].add_new(0x54001010, "OW", value)
    for outer in dataset.ContentSequence:
        outer.is_undefined_length_sequence_item = undefined
    dataset["ContentSequence"].is_undefined_length = undefined
    data = encoded(dataset, implicit=encoding == "implicit", little=encoding != "big endian")
    sent = deflated(data) if encoding == "deflated" else data
    skim = skimmed(sent, NATIVE[encoding], size)
    model, left_out = by_parsing(sent, NATIVE[encoding])
    assert by_skimming(skim) == model
    assert {value_of(data, skim.bulk[path]) for path in left_out if path[0] not in PIXEL_DATA} == {value}
    assert (0x0040A730, 0, 0x0040A043, 1, 0x00420011) in skim.bulk
    assert (0x0040A730, 2, 0x54001010) in skim.bulk


PIXELS = long(0x7FE00010, "OW", b"\1\2" * 600)
LARGE = b"\1\2" * 600
ODD = {
    "UN sequence, implicit items": long(0x00091010, "UN", item(implicit(0x00091011, LARGE)) + SEQUENCE_END, UNDEFINED),
    "UN sequence, explicit items": long(
        0x00091010, "UN", ITEM + long(0x00091011, "OB", LARGE) + ITEM_END + SEQUENCE_END, UNDEFINED
    ),
    "UN of known sequence": long(0x0040A043, "UN", item(implicit(0x00091011, LARGE))),
    "UN of known binary": long(0x00283006, "UN", LARGE),
    "UN of known text": long(0x00204000, "UN", b"ab" * 600),
    "unknown VR, four bytes of length": b"\x09\0\x10\x10ZZ\0\0" + pack("<I", 1200) + LARGE,
    "unknown VR, two bytes of length": b"\x09\0\x10\x10ZZ" + pack("<H", 1200) + LARGE,
    "implicit among explicit": implicit(0x00091010, b"\1\2" * 0x2020),
    "an empty value": long(0x7FE00010, "OW", b""),
    "behind the pixels": PIXELS + long(0xFFFAFFFA, "SQ", item(long(0x04000120, "OB", LARGE))),
    "padding": PIXELS + long(0xFFFCFFFC, "OB", LARGE),
    "no fragments": long(0x7FE00010, "OB", SEQUENCE_END, UNDEFINED),
    "nested fragments": long(
        0x00880200, "SQ", item(long(0x7FE00010, "OB", item(b"") + item(LARGE) + SEQUENCE_END, UNDEFINED))
    ),
    "twice": long(0x00091010, "OB", LARGE) + long(0x00091010, "OB", LARGE + LARGE),
    "long text": long(0x00204000, "UT", b"ab" * 60000),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("size", [1, 1000, 1 << 30])
def test_odd_data_sets(what: str, size: int) -> None:
    data = short(0x00080060, "CS", b"MR") + ODD[what] + short(0xFFFE1001, "LO", b"after ")[:0]
    skim = skimmed(data, EXPLICIT_VR_LITTLE_ENDIAN, size)
    model, left_out = by_parsing(data, EXPLICIT_VR_LITTLE_ENDIAN)
    if what == "UN of known sequence":  # looked into by the reader alone
        assert skim.bulk == {}
        assert skim.elements()[1].vr == "SQ"
        return
    assert by_skimming(skim) == model
    assert {path: value_of(data, bulk) for path, bulk in skim.bulk.items()} == {
        path: whole(element) for path, element in left_out.items()
    }


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CT_small.dcm", "JPEG2000.dcm", "image_dfl.dcm", "MR_small_bigendian.dcm"])
def test_files_are_skimmed_by_offset(name: str) -> None:
    sample = dicom_file(name)
    with tempfile.TemporaryFile() as file:
        file.write(b"header" + sample.data)
        file.flush()
        skim = skim_file(file.fileno(), 6, 6 + len(sample.data), sample.transfer_syntax)
    assert by_skimming(skim) == by_parsing(sample.data, sample.transfer_syntax)[0]
    assert skim.bulk == skimmed(sample.data, sample.transfer_syntax).bulk


def test_of_a_large_file_little_is_read() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(short(0x00080060, "CS", b"MR") + long(0x7FE00010, "OW", b"", 1 << 31))
        file.truncate(12 + 10 + (1 << 31))
        file.seek(0, io.SEEK_END)
        file.write(long(0xFFFCFFFC, "OB", b"\0\0"))
        size = file.tell()
        file.flush()
        start = time.perf_counter()
        skim = skim_file(file.fileno(), 0, size, EXPLICIT_VR_LITTLE_ENDIAN)
        assert [element.tag for element in skim.elements()] == [0x00080060, 0x7FE00010, 0xFFFCFFFC]
        assert time.perf_counter() - start < 0.5
    assert skim.bulk[(0x7FE00010,)].length == 1 << 31


def test_values_that_are_passed_over_need_not_be_fed() -> None:
    skim = Skim(EXPLICIT_VR_LITTLE_ENDIAN)
    skim.feed(PIXELS[:100])
    assert skim.skip == len(PIXELS) - 100
    skim.pass_over(skim.skip)
    skim.feed(short(0xFFFC0010, "LO", b"after "))
    assert [element.tag for element in skim.elements()] == [0x7FE00010, 0xFFFC0010]


# --- what is malformed ------------------------------------------------------------------------------------------------


def test_a_value_left_out_may_end_too_early() -> None:
    """Truncated pixel data is no reason to have no metadata."""
    skim = skimmed(PIXELS[:-100], EXPLICIT_VR_LITTLE_ENDIAN)
    assert [element.tag for element in skim.elements()] == [0x7FE00010]
    assert skim.bulk[(0x7FE00010,)].length == 1100
    fragments = item(b"") + item(LARGE)
    skim = skimmed(long(0x7FE00010, "OB", fragments, UNDEFINED)[:-100], EXPLICIT_VR_LITTLE_ENDIAN)
    assert [element.tag for element in skim.elements()] == [0x7FE00010]
    assert skim.bulk[(0x7FE00010,)].length == len(fragments) - 100


def nested(depth: int, *, undefined: bool) -> bytes:
    data = b""
    for _ in range(depth):
        if undefined:
            data = long(0x0040A730, "SQ", ITEM + data + ITEM_END + SEQUENCE_END, UNDEFINED)
        else:
            data = long(0x0040A730, "SQ", item(data))
    return data


@pytest.mark.parametrize("undefined", [False, True])
def test_depth_is_bounded(undefined: bool) -> None:
    skimmed(nested(64, undefined=undefined), EXPLICIT_VR_LITTLE_ENDIAN).elements()
    for depth in (65, 1000):
        with pytest.raises(DatasetError, match="64 deep"):
            skimmed(nested(depth, undefined=undefined), EXPLICIT_VR_LITTLE_ENDIAN).elements()


def rows() -> Iterator[bytes]:
    row = short(0x00280010, "US", b"\1\2") * 1000
    while True:
        yield row


@pytest.mark.parametrize(
    ("syntax", "data", "message"),
    [
        (EXPLICIT_VR_LITTLE_ENDIAN, rows(), "too many elements"),
        (EXPLICIT_VR_LITTLE_ENDIAN, (long(0x00204000, "UT", b" " * 500_000) for _ in range(99)), "beside bulk data"),
        (DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, [deflated(long(0x7FE00010, "OW", bytes(100_000_000)))], "is larger than"),
    ],
    ids=["elements", "text", "bomb"],
)
def test_bombs(syntax: str, data: Iterable[bytes], message: str) -> None:
    tracemalloc.start()
    try:
        start = time.perf_counter()
        skim = Skim(syntax, limits=Limits(elements=200_000))
        with pytest.raises(DatasetError, match=message):
            for chunk in data:
                skim.feed(chunk)
        assert time.perf_counter() - start < 2
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        PIXELS[:7],
        PIXELS[:11],
        short(0x00080060, "CS", b"MR")[:-1],
        long(0x0040A730, "SQ", item(LARGE)[:-1]),
        long(0x0040A730, "SQ", item(LARGE), UNDEFINED),
        long(0x0040A730, "SQ", b"\0" * 1200),
        long(0x7FE00010, "OB", b"\0" * 1200, UNDEFINED),
        ITEM,
        ITEM_END,
        SEQUENCE_END,
    ],
)
def test_malformed_data_sets_are_refused(data: bytes) -> None:
    for size in (1, 1 << 30):
        with pytest.raises(DatasetError):
            skimmed(data, EXPLICIT_VR_LITTLE_ENDIAN, size).elements()


@pytest.mark.parametrize("name", ["CT_small.dcm", "test-SR.dcm", "JPEG2000.dcm", "image_dfl.dcm"])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_changed_samples_raise_nothing_else(name: str, data: st.DataObject) -> None:
    sample = dicom_file(name)
    changed = bytearray(sample.data[:20000])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    for syntax in (sample.transfer_syntax, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN):
        skim = Skim(syntax, limits=Limits(elements=20_000))
        try:
            for start in range(0, len(changed), 1009):
                skim.feed(bytes(changed[start : start + 1009]))
            encode(skim.elements(), bulk_data=lambda path, _, skim=skim: "" if path in skim.bulk else None)  # type: ignore[misc]
        except DatasetError:
            pass
        assert all(0 <= bulk.length <= 1 << 32 for bulk in skim.bulk.values())
