"""Where values lie: the bytes at each place compared with pydicom's, and files that are made to mislead."""

from __future__ import annotations

import io
import os
import random
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from struct import pack

import pytest
from pydicom.filereader import data_element_generator

from proxy.dataset.layout import SMALL_VALUE, Place, find, inflate_to
from proxy.dataset.reader import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    UNDEFINED_LENGTH,
    DatasetError,
    Limits,
    inflate,
    transfer_syntax_of,
)
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

LAST = 0xFFFCFFFC


@contextmanager
def file_of(data: bytes, before: int = 0) -> Iterator[int]:
    """A file with these bytes, behind some others."""
    descriptor = os.memfd_create("test")
    try:
        os.write(descriptor, bytes(before) + data)
        yield descriptor
    finally:
        os.close(descriptor)


def places_in(data: bytes, transfer_syntax: str, *wanted: int, limits: Limits | None = None) -> dict[int, Place]:
    """The places in a data set that stands alone."""
    with file_of(data) as descriptor:
        return find(descriptor, 0, len(data), transfer_syntax, wanted, limits=limits or Limits())


def of_pydicom(data: bytes, transfer_syntax: str) -> dict[int, bytes]:
    """The values of the top level that pydicom reads, but sequences; the first of several with the same tag."""
    syntax = transfer_syntax_of(transfer_syntax)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[int, bytes] = {}
        for element in data_element_generator(io.BytesIO(data), not syntax.explicit, syntax.little_endian):
            if isinstance(element.value, bytes) and getattr(element, "length", 0) != UNDEFINED_LENGTH:
                found[int(element.tag)] = element.value
        return found


@pytest.mark.parametrize("name", names())
def test_values_lie_where_pydicom_reads_them(name: str) -> None:
    file = dicom_file(name)
    data = inflate(file.data) if transfer_syntax_of(file.transfer_syntax).deflated else file.data
    expected = of_pydicom(data, file.transfer_syntax)
    with file_of(data, before=1000) as descriptor:
        places = find(descriptor, 1000, 1000 + len(data), file.transfer_syntax, [*expected, LAST])
        assert places.keys() - {LAST} == expected.keys() - {LAST}
        for tag, value in expected.items():
            place = places[tag]
            assert os.pread(descriptor, place.length, place.offset) == value
            assert place.value == (value if len(value) <= SMALL_VALUE else b"")


@pytest.mark.parametrize("how", ["implicit", "explicit", "big endian"])
def test_nested_sequences_are_passed(how: str) -> None:
    data = encoded(sample_dataset(), implicit=how == "implicit", little=how != "big endian")
    places = places_in(data, NATIVE[how], 0x7FE00010, 0x00280010)
    assert data[places[0x7FE00010].offset :][:4] == bytes([0, 1, 2, 3])
    assert places[0x00280010].vr == "US"


@pytest.mark.parametrize("length", [0x4343, 0x5153, 0x4141, 0x425A])
def test_an_item_whose_length_looks_like_a_vr(length: int) -> None:
    """The length stands where the VR of an element does, and 0x5153 is "SQ" there."""
    content = long(0x00091001, "OB", bytes(length - 12))
    data = long(0x00080006, "SQ", item(content), UNDEFINED) + SEQUENCE_END + short(0x00100020, "LO", b"ID")
    assert places_in(data, EXPLICIT_VR_LITTLE_ENDIAN, 0x00100020)[0x00100020].value == b"ID"


@pytest.mark.parametrize("inner", [implicit(0x00080060, b"CT"), short(0x00080060, "CS", b"CT")])
def test_the_items_of_an_unknown_element(inner: bytes) -> None:
    """Implicit by PS3.5 6.2.2, explicit from some archives."""
    items = ITEM + inner + ITEM_END + SEQUENCE_END
    data = long(0x00091001, "UN", items, UNDEFINED) + short(0x00100020, "LO", b"ID")
    assert places_in(data, EXPLICIT_VR_LITTLE_ENDIAN, 0x00100020)[0x00100020].value == b"ID"


def test_what_is_behind_the_last_wanted_element_is_not_looked_at() -> None:
    data = short(0x00100020, "LO", b"ID") + short(0x00100040, "CS", b"O ") + b"garbage"
    assert places_in(data, EXPLICIT_VR_LITTLE_ENDIAN, 0x00100020, 0x00100021).keys() == {0x00100020}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ITEM_END, "outside of a sequence"),
        (short(0x00100020, "LO", b"ID")[:-1], "longer than the data set"),
        (long(0x00091001, "OB", b"")[:-2], "within a header"),
        (short(0x00080060, "CS", b"CT") * 20, "too many elements"),
    ],
)
def test_what_is_malformed_is_said(data: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        places_in(data, EXPLICIT_VR_LITTLE_ENDIAN, 0x00100020, limits=Limits(elements=10))


def test_random_bytes_raise_nothing_else() -> None:
    source = random.Random(1)
    data = bytearray(encoded(sample_dataset(), implicit=False))
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(3):
            changed[source.randrange(len(changed))] = source.randrange(256)
        for syntax in NATIVE.values():
            with suppress(DatasetError):
                places_in(bytes(changed), syntax, 0x7FE00010)


def test_inflating_is_the_reader_s() -> None:
    data = encoded(sample_dataset(), implicit=False) * 5000
    packed = deflated(data)
    with file_of(packed, before=10) as descriptor, file_of(b"head") as target:
        assert inflate_to(descriptor, 10, 10 + len(packed), target) == len(data)
        assert os.pread(target, len(data) + 10, 0) == b"head" + data


@pytest.mark.parametrize(
    ("packed", "message"),
    [(deflated(b"a" * 1000)[:-3], "truncated"), (b"\xff" * 100, "cannot be inflated"), (b"", "truncated")],
)
def test_what_cannot_be_inflated(packed: bytes, message: str) -> None:
    with file_of(packed) as descriptor, file_of(b"") as target, pytest.raises(DatasetError, match=message):
        inflate_to(descriptor, 0, len(packed), target)


def test_a_bomb_writes_no_more_than_its_limit() -> None:
    limits = Limits(inflate_free=1_000_000, inflate_ratio=10)
    packed = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS).compress(bytes(50_000_000)) + pack("<I", 0)
    with file_of(packed) as descriptor, file_of(b"") as target:
        with pytest.raises(DatasetError, match="larger than"):
            inflate_to(descriptor, 0, len(packed), target, limits=limits)
        assert os.fstat(target).st_size <= limits.most_inflated(len(packed))
