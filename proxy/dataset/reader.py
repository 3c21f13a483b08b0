"""Encoded data sets to elements (PS3.5 chapter 7 and Annex A).

What may live here: the walk over the bytes of a data set, and its limits. Values are not interpreted, only
cut out; `values.py` does the rest. No I/O.

The walk is a loop of one `unpack_from` and one slice for each element, and recursion, bounded by
`Limits.depth`, for each sequence. A value is a slice of the input: a copy when short, a view when long, so
memory is that of the input plus some 150 bytes for each element. What a peer sends can raise nothing but
`DatasetError`.

Values come out little endian whatever the transfer syntax: those of Explicit VR Big Endian are turned here,
so that nobody else needs to know of it.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from struct import Struct, pack
from struct import error as struct_error
from typing import Final, NamedTuple, TypeAlias

from proxy.dataset.dictionary import (
    ITEM,
    ITEM_DELIMITATION,
    PIXEL_REPRESENTATION,
    RAW_VR,
    SEQUENCE_DELIMITATION,
    US_OR_SS,
)

IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"

UNDEFINED_LENGTH: Final = 0xFFFFFFFF

Bytes: TypeAlias = bytes | memoryview

_VIEW_FROM: Final = 4096
"""Values of this length and more are views of the input: a copy would cost more than a view's 180 bytes."""

SHORT_VRS: Final = {
    # PS3.5 7.1.2: two bytes of length
    vr.encode(): vr
    for vr in "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()  # noqa: SIM905
}
LONG_VRS: Final = {
    # PS3.5 7.1.2: two reserved bytes, then four of length
    vr.encode(): vr
    for vr in "OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()  # noqa: SIM905
}

_PARTICULAR: Final = frozenset({"SQ", US_OR_SS})
"""VRs of the dictionary that take more than a slice of the input."""


class _Unpack(NamedTuple):
    """`unpack_from` for the headers of elements (PS3.5 7.1)."""

    explicit: Callable[[Bytes, int], tuple[int, int, bytes, int]]  # tag, VR, short length
    tagged: Callable[[Bytes, int], tuple[int, int, int]]  # tag, length: implicit elements, items, delimiters
    long: Callable[[Bytes, int], tuple[int]]  # a length of four bytes


UNPACK: Final = {
    # By whether the data set is little endian
    little: _Unpack(*(Struct(order + layout).unpack_from for layout in ("HH2sH", "HHI", "I")))
    for little, order in ((True, "<"), (False, ">"))
}

UNITS: Final = {
    # By VR: bytes of the units that change places in big endian, and the type code of `array` for them
    "AT": (2, "H"),
    "OW": (2, "H"),
    "SS": (2, "H"),
    "US": (2, "H"),
    "FL": (4, "I"),
    "OF": (4, "I"),
    "OL": (4, "I"),
    "SL": (4, "I"),
    "UL": (4, "I"),
    "FD": (8, "Q"),
    "OD": (8, "Q"),
    "OV": (8, "Q"),
    "SV": (8, "Q"),
    "UV": (8, "Q"),
}


class DatasetError(ValueError):
    """A data set that is malformed or beyond the limits; says at which byte and element, and no value."""

    def __init__(self, message: str, offset: int, tag: int | None = None) -> None:
        self.offset = offset
        self.tag = tag
        element = "" if tag is None else f", element ({tag >> 16:04X},{tag & 0xFFFF:04X})"
        super().__init__(f"{message} at byte {offset}{element}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what `parse` takes from a peer."""

    depth: int = 64
    """Sequences within sequences. Structured reports, the deepest that there are, stay below 20; Python's
    stack would bear some hundreds."""

    elements: int = 1_000_000
    """Elements, items and fragments altogether. An enhanced multi-frame object of 10,000 frames has some
    300,000. Each costs about 150 bytes, and an attacker eight."""

    inflated: int = 256 * 1024 * 1024
    """Bytes of a deflated data set (PS3.5 A.5), once inflated; they are held in memory."""

    inflate_ratio: int = 200
    """Inflated to deflated; text inflates to 20 times its size, images less …"""

    inflate_free: int = 16 * 1024 * 1024
    """… but blank images up to 1000 times, so that the ratio counts only beyond this many bytes."""

    def most_inflated(self, deflated: int) -> int:
        """The most bytes that a data set of `deflated` bytes may become."""
        return min(self.inflated, max(self.inflate_free, self.inflate_ratio * deflated))


LIMITS: Final = Limits()


class TransferSyntax(NamedTuple):
    """What a transfer syntax says of the encoding of a data set (PS3.5 chapter 10)."""

    explicit: bool = True
    little_endian: bool = True
    deflated: bool = False


_TRANSFER_SYNTAXES: Final = {
    IMPLICIT_VR_LITTLE_ENDIAN: TransferSyntax(explicit=False),
    EXPLICIT_VR_BIG_ENDIAN: TransferSyntax(little_endian=False),
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: TransferSyntax(deflated=True),
    "1.2.840.10008.1.2.4.95": TransferSyntax(deflated=True),  # JPIP Referenced Deflate
    "1.2.840.10008.1.2.4.205": TransferSyntax(deflated=True),  # JPIP HTJ2K Referenced Deflate
    "1.2.840.113619.5.2": TransferSyntax(explicit=False),  # GE private: implicit, big endian pixel data alone
}
_EXPLICIT_LITTLE: Final = TransferSyntax()
_IMPLICIT_LITTLE: Final = TransferSyntax(explicit=False)


def transfer_syntax_of(uid: str) -> TransferSyntax:
    """The encoding that a transfer syntax UID stands for; explicit, little endian where it is not known."""
    return _TRANSFER_SYNTAXES.get(uid, _EXPLICIT_LITTLE)


Value: TypeAlias = "Bytes | list[list[Element]] | tuple[Bytes, ...]"


@dataclass(slots=True)
class Element:
    """A data element (PS3.5 7.1), not to be changed.

    `value` is the value field in little endian, padding included; a list of items (each a list of elements)
    for VR SQ; a tuple of fragments, the Basic Offset Table first, for encapsulated pixel data (PS3.5 A.4).
    """

    tag: int
    vr: str
    value: Value = field(repr=False)


def parse(data: Bytes, transfer_syntax: str, *, limits: Limits = LIMITS) -> list[Element]:
    """The elements of a whole encoded data set, in the order given; without File Meta Information.

    `transfer_syntax` is its UID. Raises `DatasetError` when it is malformed, truncated, followed by other
    bytes, or beyond `limits`. Duplicates and a wrong order are not errors, as archives hold such objects.
    """
    syntax = transfer_syntax_of(transfer_syntax)
    if syntax.deflated:
        data = inflate(data, limits)
    reader = _Reader(data, syntax, limits.depth, iter(range(limits.elements)))
    return reader.dataset(0, len(data), 0)[0]


def inflate(data: Bytes, limits: Limits = LIMITS) -> bytes:
    """The inflated bytes of a deflated data set (PS3.5 A.5, RFC 1951). Raises `DatasetError`."""
    most = limits.most_inflated(len(data))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, most)
    except zlib.error as error:
        raise DatasetError("the data set cannot be inflated", 0) from error
    if inflater.unconsumed_tail or (not inflater.eof and len(inflated) >= most):
        raise DatasetError(f"the deflated data set is larger than {most} bytes", len(data))
    if not inflater.eof:
        raise DatasetError("the deflated data set is truncated", len(data))
    trailer = pack("<II", zlib.crc32(inflated), len(inflated))  # of gzip, which some writers leave on
    if inflater.unused_data.strip(b"\0") and inflater.unused_data != trailer:  # PS3.5 A.5 pads with a zero byte
        raise DatasetError("bytes follow the deflated data set", len(data) - len(inflater.unused_data))
    return inflated


class _Reader:
    """The walk over one buffer in one encoding.

    `budget` runs out after as many elements as may come; readers of the same buffer share it.
    """

    __slots__ = (
        "_budget",
        "_data",
        "_depth",
        "_explicit",
        "_head",
        "_little",
        "_long",
        "_signed",
        "_tagged",
        "_view",
    )

    def __init__(self, data: Bytes, syntax: TransferSyntax, depth: int, budget: Iterator[int]) -> None:
        self._data = data
        self._view = memoryview(data)
        self._depth = depth
        self._budget = budget
        self._explicit = syntax.explicit
        self._little = syntax.little_endian
        self._head, self._tagged, self._long = UNPACK[syntax.little_endian]
        self._signed = False  # Pixel Representation, as far as it has been read

    def dataset(self, start: int, end: int, depth: int, *, delimited: bool = False) -> tuple[list[Element], int]:
        """The data set from `start` to `end` or, `delimited`, to its item delimiter; and where it ends."""
        if depth > self._depth:
            raise DatasetError(f"sequences are nested more than {self._depth} deep", start)
        signed = self._signed  # an item inherits it, and does not pass it back
        walk = self._explicit_elements if self._explicit else self._implicit_elements
        try:
            found, stop, closed = walk(start, end, depth)
        except struct_error:
            raise DatasetError("the data set ends within an element", len(self._data)) from None
        except StopIteration:
            raise DatasetError("there are too many elements", start) from None
        finally:
            self._signed = signed
        if closed is not delimited or stop > end:
            raise DatasetError("an item and its delimiter do not match", stop)
        return found, stop

    def _explicit_elements(self, pos: int, end: int, depth: int) -> tuple[list[Element], int, bool]:
        """Elements with explicit VR (PS3.5 7.1.2), where they end, and whether an item delimiter ended them.

        The loop has what most elements need; `_other` has the rest.
        """
        data, head, short, little = self._data, self._head, SHORT_VRS.get, self._little
        count = self._budget.__next__
        found: list[Element] = []
        while pos < end:
            count()
            group, number, letters, length = head(data, pos)
            vr = short(letters)
            if vr is None:
                element, pos = self._other(pos, end, depth, letters, length)
                if element is None:
                    return found, pos, True
                found.append(element)
                continue
            tag = group << 16 | number
            stop = pos + 8 + length
            if stop > end:
                raise DatasetError("the value is longer than the data set", pos, tag)
            value = data[pos + 8 : stop] if little else little_endian(vr, data[pos + 8 : stop])
            if tag == PIXEL_REPRESENTATION:
                self._signed = value[:1] == b"\1"
            found.append(Element(tag, vr, value))
            pos = stop
        return found, pos, False

    def _implicit_elements(self, pos: int, end: int, depth: int) -> tuple[list[Element], int, bool]:
        """The same with implicit VR (PS3.5 7.1.3)."""
        data, tagged, vrs = self._data, self._tagged, RAW_VR
        count = self._budget.__next__
        found: list[Element] = []
        while pos < end:
            count()
            group, number, length = tagged(data, pos)
            tag = group << 16 | number
            vr = vrs[tag]
            pos += 8
            if length >= _VIEW_FROM or vr in _PARTICULAR or group == 0xFFFE:
                if tag == ITEM_DELIMITATION:
                    return found, pos, True
                element, pos = self._valued(tag, vr, length, pos, end, depth=depth)
                found.append(element)
                continue
            stop = pos + length
            if stop > end:
                raise DatasetError("the value is longer than the data set", pos - 8, tag)
            value = data[pos:stop]
            if tag == PIXEL_REPRESENTATION:
                self._signed = value[:1] == b"\1"
            found.append(Element(tag, vr, value))
            pos = stop
        return found, pos, False

    def _other(self, pos: int, end: int, depth: int, letters: bytes, length: int) -> tuple[Element | None, int]:
        """An element whose VR is not a short one, and where the next begins; None for an item delimiter."""
        group, number, implicit_length = self._tagged(self._data, pos)
        tag: int = group << 16 | number
        if tag == ITEM_DELIMITATION:
            return None, pos + 8
        vr = LONG_VRS.get(letters)
        if vr is None and letters.isalpha() and letters.isupper():
            vr = "UN"  # of a later edition, with four bytes of length as 7.1.2 promises; or invented, with two
            if length:
                return self._unknown(tag, length, pos + 8, end, depth)
        if vr is None:
            # Toolkits that do not know a VR write its element as if it were implicit.
            return self._valued(tag, RAW_VR[tag], implicit_length, pos + 8, end, depth=depth, foreign=True)
        (length,) = self._long(self._data, pos + 8)
        if vr != "UN":
            return self._valued(tag, vr, length, pos + 12, end, depth=depth)
        return self._unknown(tag, length, pos + 12, end, depth)

    def _unknown(self, tag: int, length: int, pos: int, end: int, depth: int) -> tuple[Element, int]:
        """VR UN (PS3.5 6.2.2), for what an archive did not know, or what outgrew two bytes of length.

        The value is that of Implicit VR Little Endian, so the dictionary tells what it is. In big endian
        nobody can say whether it was turned, and it stays UN.
        """
        known = RAW_VR[tag] if self._little else "UN"
        if known == "SQ" and length != UNDEFINED_LENGTH:
            try:
                return self._valued(tag, "SQ", length, pos, end, depth=depth, foreign=True)
            except (DatasetError, struct_error):
                known = "UN"
        return self._valued(tag, known, length, pos, end, depth=depth, foreign=True)

    def _valued(
        self, tag: int, vr: str, length: int, pos: int, end: int, *, depth: int, foreign: bool = False
    ) -> tuple[Element, int]:
        """The element whose value begins at `pos`, and where it ends.

        `foreign` says that the element's own encoding is not that of this reader.
        """
        if tag >> 16 == 0xFFFE:
            raise DatasetError("an item or delimiter outside of a sequence", pos - 8, tag)
        if vr == US_OR_SS:
            vr = "SS" if self._signed else "US"
        undefined = length == UNDEFINED_LENGTH
        stop = end if undefined else pos + length
        if stop > end:
            raise DatasetError("the value is longer than the data set", pos, tag)
        if undefined and vr in ("OB", "OW"):
            fragments, stop = self._fragments(tag, pos, end)
            return Element(tag, vr if self._explicit and not foreign else "OB", fragments), stop  # PS3.5 A.4
        if undefined or vr == "SQ":
            reader = self._reader_of_items(pos) if foreign else self
            items, stop = reader.items(tag, pos, stop, depth, delimited=undefined)
            return Element(tag, "SQ", items), stop
        value = self._data[pos:stop] if length < _VIEW_FROM else self._view[pos:stop]
        return Element(tag, vr, value if self._little else little_endian(vr, value)), stop

    def _reader_of_items(self, pos: int) -> _Reader:
        """Who reads the items of an element in explicit VR that was itself UN or implicit (PS3.5 6.2.2).

        They are implicit, little endian, by the standard. Some archives leave them explicit, which shows in
        the first.
        """
        letters = bytes(self._data[pos + 12 : pos + 14])  # past the item's header and the element's tag
        if not self._explicit or (self._little and (letters in SHORT_VRS or letters in LONG_VRS)):
            return self
        reader = _Reader(self._data, _IMPLICIT_LITTLE, self._depth, self._budget)
        reader._signed = self._signed
        return reader

    def items(self, tag: int, pos: int, end: int, depth: int, *, delimited: bool) -> tuple[list[list[Element]], int]:
        """The items of a sequence (PS3.5 7.5) to `end` or, `delimited`, to its delimiter; and where it ends."""
        items: list[list[Element]] = []
        while pos < end:
            group, number, length = self._tagged(self._data, pos)
            found = group << 16 | number
            pos += 8
            if found == SEQUENCE_DELIMITATION and delimited:
                return items, pos
            if found != ITEM:
                raise DatasetError("something other than an item in a sequence", pos - 8, tag)
            next(self._budget)
            undefined = length == UNDEFINED_LENGTH
            stop = end if undefined else pos + length
            if stop > end:
                raise DatasetError("the item is longer than its sequence", pos - 8, tag)
            item, pos = self.dataset(pos, stop, depth + 1, delimited=undefined)
            items.append(item)
        if delimited or pos != end:
            raise DatasetError("a sequence and its delimiter do not match", pos, tag)
        return items, pos

    def _fragments(self, tag: int, pos: int, end: int) -> tuple[tuple[Bytes, ...], int]:
        """The fragments of encapsulated pixel data (PS3.5 A.4), and where it ends."""
        fragments: list[Bytes] = []
        while pos < end:
            group, number, length = self._tagged(self._data, pos)
            found = group << 16 | number
            pos += 8
            if found == SEQUENCE_DELIMITATION:
                return tuple(fragments), pos
            stop = pos + length
            if found != ITEM or stop > end:
                raise DatasetError("a fragment is not whole", pos - 8, tag)
            next(self._budget)
            fragments.append(self._data[pos:stop] if length < _VIEW_FROM else self._view[pos:stop])
            pos = stop
        raise DatasetError("encapsulated pixel data has no delimiter", pos, tag)


def little_endian(vr: str, value: Bytes) -> Bytes:
    """A big endian value in little endian (PS3.5 7.3), unless it is no whole number of units."""
    unit, code = UNITS.get(vr, (0, ""))
    if not unit or len(value) % unit:
        return value
    units = array(code, bytes(value))
    units.byteswap()
    return units.tobytes()
