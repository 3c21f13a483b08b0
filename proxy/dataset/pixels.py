"""Where the frames of an image lie in its file (PS3.5 8 and A.4), and their bytes.

What may live here: native frames by the arithmetic of their attributes, encapsulated ones by an offset table or by
their fragments. Nothing is decoded; of native frames the bytes are brought into order, little endian and from a whole
byte on.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from struct import unpack, unpack_from
from typing import Final, NamedTuple

from proxy.dataset.dictionary import ITEM, SEQUENCE_DELIMITATION
from proxy.dataset.layout import Place, Window, find
from proxy.dataset.reader import UNDEFINED_LENGTH, DatasetError, transfer_syntax_of

NATIVE: Final = frozenset(
    {
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.2",
        "1.2.840.113619.5.2",
    }
)
"""Transfer syntaxes whose pixel data is not encapsulated (PS3.5 A.1 to A.3, A.5, and a private one of GE)."""

VIDEO: Final = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in range(100, 109)) | frozenset(
    f"1.2.840.10008.1.2.4.{number}.1" for number in range(100, 107)
)
"""Transfer syntaxes of which all frames are one stream (PS3.5 8.2.5 to 8.2.8)."""

SAMPLES_PER_PIXEL: Final = 0x00280002
PHOTOMETRIC_INTERPRETATION: Final = 0x00280004
NUMBER_OF_FRAMES: Final = 0x00280008
ROWS: Final = 0x00280010
COLUMNS: Final = 0x00280011
BITS_ALLOCATED: Final = 0x00280100
EXTENDED_OFFSET_TABLE: Final = 0x7FE00001
EXTENDED_OFFSET_TABLE_LENGTHS: Final = 0x7FE00002
FLOAT_PIXEL_DATA: Final = 0x7FE00008
DOUBLE_FLOAT_PIXEL_DATA: Final = 0x7FE00009
PIXEL_DATA: Final = 0x7FE00010

MAX_FRAGMENTS: Final = 250_000
"""Fragments of one instance, and entries of its offset table. Whole slides have some 100,000; each takes about 100
bytes while it is sent."""

_GE_BIG_ENDIAN_PIXELS: Final = "1.2.840.113619.5.2"

_WANTED: Final = frozenset(
    {
        SAMPLES_PER_PIXEL,
        PHOTOMETRIC_INTERPRETATION,
        NUMBER_OF_FRAMES,
        ROWS,
        COLUMNS,
        BITS_ALLOCATED,
        EXTENDED_OFFSET_TABLE,
        EXTENDED_OFFSET_TABLE_LENGTHS,
        FLOAT_PIXEL_DATA,
        DOUBLE_FLOAT_PIXEL_DATA,
        PIXEL_DATA,
    }
)

_STARTS: Final = (
    b"\xff\xd8\xff",  # JPEG and JPEG-LS: start of image, and of the next marker
    b"\xff\x4f\xff\x51",  # JPEG 2000 and HTJ2K: start of codestream, image and tile size
    b"\x00\x00\x00\x0cjP  ",  # JP2
    b"\xff\x0a",  # JPEG XL
)
"""How the codestream of a frame begins, so that a fragment that begins so is the first of its frame."""

_FRAGMENT_STEP: Final = 1024
"""Bytes to read where a fragment's header is expected: small fragments behind it are read with it."""

_UNIT_CODES: Final = {2: "H", 4: "I", 8: "Q"}


class Span(NamedTuple):
    """A piece of the file."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: `size` bytes, which are those of `spans` as they are where it `is_stored_so`, else to be `read`."""

    spans: tuple[Span, ...]
    size: int
    bits: int = 0
    """Of a native frame."""
    shift: int = 0
    """Bits of the first byte that belong to the frame before."""
    unit: int = 1
    """Bytes that change places, counted from `origin`."""
    origin: int = 0

    @property
    def is_stored_so(self) -> bool:
        """True when its bytes can be sent from the file as they are."""
        return self.unit == 1 and not self.shift and not self.bits % 8

    def read(self, descriptor: int, start: int, length: int) -> bytes:
        """Bytes `start` to `start + length` of a native frame, in order. Blocks; `DatasetError` when they are gone."""
        ((offset, stored),) = self.spans
        length = min(length, self.size - start)
        first, last = offset + start, offset + min(stored, start + length + bool(self.shift))
        before = (first - self.origin) % self.unit
        behind = -(last - self.origin) % self.unit
        data = os.pread(descriptor, last + behind - first + before, first - before)
        if len(data) < last - first + before:
            raise DatasetError("the file ends within a frame", first)
        if self.unit > 1:
            data = _swapped(data, self.unit)
        data = data[before : before + last - first]
        if self.shift:
            number = int.from_bytes(data, "little") >> self.shift
            data = number.to_bytes(len(data), "little")[:length]
        if start + length == self.size and self.bits % 8:
            data = data[:-1] + bytes([data[-1] & (1 << self.bits % 8) - 1])
        return data


def _swapped(data: bytes, unit: int) -> bytes:
    whole = len(data) - len(data) % unit
    units = array(_UNIT_CODES[unit], data[:whole])
    units.byteswap()
    return units.tobytes() + data[whole:]


@dataclass(frozen=True, slots=True)
class NativeFrames:
    """Frames one behind the other, `bits` each, which may begin within a byte (PS3.5 8.1.1 and 8.2)."""

    place: Span
    bits: int
    count: int
    unit: int

    @property
    def weight(self) -> int:
        """What remembering it costs, in entries of a table."""
        return 1

    def frame(self, number: int) -> Frame:
        """The frame of that number from 1; `DatasetError` where the pixel data is shorter than it should be."""
        begin = (number - 1) * self.bits
        end = begin + self.bits
        if (end + 7) // 8 > self.place.length:
            raise DatasetError("the pixel data is shorter than its attributes say", self.place.offset, PIXEL_DATA)
        first = begin // 8
        span = Span(self.place.offset + first, (end + 7) // 8 - first)
        size = (self.bits + 7) // 8
        return Frame((span,), size, self.bits, begin % 8, self.unit, self.place.offset)


@dataclass(frozen=True, slots=True)
class EncapsulatedFrames:
    """Frames of one or several fragments each: those from `firsts[n - 1]` up to `firsts[n]`."""

    offsets: Sequence[int]
    lengths: Sequence[int]
    firsts: Sequence[int]

    @property
    def count(self) -> int:
        """How many frames there are."""
        return len(self.firsts) - 1

    @property
    def weight(self) -> int:
        """What remembering it costs, in entries of a table."""
        return len(self.offsets) + len(self.firsts)

    def frame(self, number: int) -> Frame:
        """The frame of that number from 1."""
        fragments = range(self.firsts[number - 1], self.firsts[number])
        spans = tuple(Span(self.offsets[index], self.lengths[index]) for index in fragments)
        return Frame(spans, sum(span.length for span in spans))


Frames = NativeFrames | EncapsulatedFrames


def find_frames(descriptor: int, start: int, end: int, transfer_syntax: str) -> Frames | None:
    """Where the frames are in the data set from `start` to `end` of a file; None when there is no pixel data.

    A deflated data set has to be inflated before. Blocks. Raises `DatasetError` where that cannot be told, and
    `OSError`.
    """
    places = find(descriptor, start, end, transfer_syntax, _WANTED)
    tag = next((tag for tag in (PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA) if tag in places), None)
    if tag is None or not places[tag].length:
        return None
    count = _number_of_frames(places)
    if transfer_syntax in NATIVE or tag != PIXEL_DATA:
        return _native(places, tag, count, transfer_syntax)
    return _encapsulated(descriptor, places, end, count, transfer_syntax)


# --- native ----------------------------------------------------------------------------------------------------------


def _native(places: dict[int, Place], tag: int, count: int, transfer_syntax: str) -> NativeFrames:
    place = places[tag]
    if place.length == UNDEFINED_LENGTH:
        raise DatasetError("pixel data is encapsulated in a transfer syntax that does not have it", place.offset, tag)
    little = transfer_syntax_of(transfer_syntax).little_endian
    pixels = _number(places, ROWS, little) * _number(places, COLUMNS, little)
    samples = _number(places, SAMPLES_PER_PIXEL, little, 1)
    allocated = {FLOAT_PIXEL_DATA: 32, DOUBLE_FLOAT_PIXEL_DATA: 64}.get(tag) or _number(places, BITS_ALLOCATED, little)
    bits = pixels * samples * allocated
    if not bits:
        raise DatasetError("the attributes of the image give frames of no size", place.offset, tag)
    if _is_subsampled(places) and samples == 3 and place.length * 8 < bits * count:
        bits = bits // 3 * 2
    return NativeFrames(Span(place.offset, place.length), bits, count, _unit(place.vr, allocated, transfer_syntax))


def _is_subsampled(places: dict[int, Place]) -> bool:
    """Two pixels share their colour (PS3.3 C.7.6.3.1.2), unless the length says that they do not after all."""
    place = places.get(PHOTOMETRIC_INTERPRETATION)
    return place is not None and place.value.strip(b" \0") == b"YBR_FULL_422"


def _unit(vr: str, allocated: int, transfer_syntax: str) -> int:
    """Bytes that change places on the way to little endian (PS3.5 7.3 and 8.2): a whole pixel of 32 or 64 bits."""
    if transfer_syntax == _GE_BIG_ENDIAN_PIXELS:
        return 2 if allocated == 16 else 1
    if vr == "OB" or transfer_syntax_of(transfer_syntax).little_endian:
        return 1
    return {32: 4, 64: 8}.get(allocated, 2)


def _number(places: dict[int, Place], tag: int, little: bool, default: int | None = None) -> int:
    place = places.get(tag)
    if place is None or len(place.value) < 2:
        if default is None:
            raise DatasetError("an attribute that an image must have is missing", 0, tag)
        return default
    return int.from_bytes(place.value[:2], "little" if little else "big")


def _number_of_frames(places: dict[int, Place]) -> int:
    """1 where it is not there, empty, or no number that makes sense."""
    place = places.get(NUMBER_OF_FRAMES)
    text = place.value.strip(b" \0").removeprefix(b"+") if place is not None else b""
    return max(1, int(text)) if text.isdigit() and len(text) < 12 else 1


# --- encapsulated ----------------------------------------------------------------------------------------------------


def _encapsulated(
    descriptor: int, places: dict[int, Place], end: int, count: int, transfer_syntax: str
) -> EncapsulatedFrames:
    place = places[PIXEL_DATA]
    if place.length != UNDEFINED_LENGTH:
        end = place.offset + place.length  # against PS3.5 A.4, but it may be encapsulated all the same
    table, offsets, lengths = _fragments(descriptor, place.offset, end)
    if not offsets:
        raise DatasetError("encapsulated pixel data has no fragment", place.offset, PIXEL_DATA)
    if transfer_syntax in VIDEO:
        count = 1
    fragments = len(offsets)
    extended = _by_extended_table(descriptor, places, offsets, lengths, count)
    if extended is not None:
        return extended
    firsts: Sequence[int] | None = _by_basic_table(table, offsets, count)
    if firsts is None and count == 1:
        firsts = (0, fragments)
    elif firsts is None and fragments <= count:
        firsts = range(fragments + 1)  # where there are fewer, the last frames are not there
    return EncapsulatedFrames(offsets, lengths, firsts or _by_codestreams(descriptor, offsets, lengths, count))


def _fragments(descriptor: int, start: int, end: int) -> tuple[bytes, array[int], array[int]]:
    """The Basic Offset Table, and where the fragments behind it begin and how long they are (PS3.5 A.4)."""
    window = Window(descriptor, end, _FRAGMENT_STEP)
    offsets, lengths = array("Q"), array("Q")
    pos = start
    while pos + 8 <= end:
        i = window.move(pos, 8)
        group, number, length = unpack_from("<HHI", window.data, i)
        tag = group << 16 | number
        pos += 8
        if tag == SEQUENCE_DELIMITATION:
            break
        if tag != ITEM or pos + length > end:
            raise DatasetError("a fragment is not whole", pos - 8, PIXEL_DATA)
        if len(offsets) > MAX_FRAGMENTS:
            raise DatasetError("there are too many fragments", pos, PIXEL_DATA)
        offsets.append(pos)
        lengths.append(length)
        pos += length
    if not offsets:
        return b"", offsets, lengths
    table = _read(descriptor, offsets.pop(0), lengths.pop(0))
    return table, offsets, lengths


def _by_extended_table(
    descriptor: int, places: dict[int, Place], offsets: Sequence[int], lengths: Sequence[int], count: int
) -> EncapsulatedFrames | None:
    """By the Extended Offset Table (PS3.3 C.7.6.3.1.8), each frame being one fragment; None where it does not fit."""
    if EXTENDED_OFFSET_TABLE not in places or EXTENDED_OFFSET_TABLE_LENGTHS not in places:
        return None
    starts = _table_64(descriptor, places[EXTENDED_OFFSET_TABLE])
    stated = _table_64(descriptor, places[EXTENDED_OFFSET_TABLE_LENGTHS])
    if not len(starts) == len(stated) == count:
        return None
    found = array("Q")
    for start, length in zip(starts, stated, strict=True):
        index = bisect_left(offsets, offsets[0] + start)
        if index == len(offsets) or offsets[index] != offsets[0] + start or length > lengths[index]:
            return None
        found.append(offsets[index])
    return EncapsulatedFrames(found, array("Q", stated), range(count + 1))


def _table_64(descriptor: int, place: Place) -> Sequence[int]:
    entries = place.length // 8
    return unpack(f"<{entries}Q", _read(descriptor, place.offset, entries * 8))


def _by_basic_table(table: bytes, offsets: Sequence[int], count: int) -> array[int] | None:
    """The first fragments of the frames by the Basic Offset Table; None where it is empty or does not fit."""
    if len(table) != 4 * count:
        return None
    base = offsets[0]
    firsts = array("Q")
    for start in unpack(f"<{count}I", table):
        index = bisect_left(offsets, base + start)
        fits = index < len(offsets) and offsets[index] == base + start
        if not fits or (firsts and index <= firsts[-1]) or (not firsts and index):
            return None
        firsts.append(index)
    firsts.append(len(offsets))
    return firsts


def _by_codestreams(descriptor: int, offsets: Sequence[int], lengths: Sequence[int], count: int) -> array[int]:
    """The first fragments of the frames by what they begin with."""
    firsts = array("Q")
    for index, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        if os.pread(descriptor, min(length, 8), offset).startswith(_STARTS):
            firsts.append(index)
    if len(firsts) != count or firsts[0]:
        raise DatasetError("nothing tells which fragments belong to which frame", offsets[0], PIXEL_DATA)
    firsts.append(len(offsets))
    return firsts


def _read(descriptor: int, offset: int, length: int) -> bytes:
    if length > 8 * MAX_FRAGMENTS:
        raise DatasetError("an offset table is too long", offset, PIXEL_DATA)
    data = os.pread(descriptor, length, offset)
    if len(data) < length:
        raise DatasetError("the file ends within an offset table", offset, PIXEL_DATA)
    return data
