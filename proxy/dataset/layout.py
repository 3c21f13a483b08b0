"""Where the values of elements lie in a file (PS3.5 chapter 7), found by headers alone.

What may live here: the walk over the top level of a data set in a file, which skips values and everything that has a
length, and reads some KB of an instance of any size. No value is interpreted.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from proxy.dataset.dictionary import ITEM, RAW_VR
from proxy.dataset.inflating import Inflater
from proxy.dataset.reader import (
    LIMITS,
    LONG_VRS,
    SHORT_VRS,
    UNDEFINED_LENGTH,
    UNPACK,
    DatasetError,
    Limits,
    transfer_syntax_of,
)

SMALL_VALUE: Final = 256
"""Bytes of a value that is kept with its place: numbers and short texts."""

_READ_FIRST: Final = 8 * 1024
"""Bytes to read at once: most headers are shorter …"""

_READ_ON: Final = 64 * 1024
"""… and those that are not are read in larger steps."""

_HEADER: Final = 12
"""Bytes of the longest header of an element."""

_READ_DEFLATED: Final = 256 * 1024
"""Bytes of a deflated data set that are read at once."""

_INNER_VR: Final = 12
"""Bytes from the beginning of a sequence to the VR of its first element: an item's header, and a tag."""

_DELIMITERS: Final = 0xFFFE


@dataclass(frozen=True, slots=True)
class Place:
    """Where the value of an element lies in the file.

    `length` is `UNDEFINED_LENGTH` for encapsulated pixel data (PS3.5 A.4) and for sequences with a delimiter. `value`
    is the value as it is encoded where it is no longer than `SMALL_VALUE`, else empty.
    """

    vr: str
    offset: int
    length: int
    value: bytes = b""


class Window:
    """The bytes of a file from any offset on, read in steps as they are asked for."""

    def __init__(self, descriptor: int, end: int, step: int = _READ_FIRST) -> None:
        self.end = end
        self.data = b""
        self.base = 0
        """The offset of `data` in the file."""
        self._descriptor = descriptor
        self._step = step

    def move(self, offset: int, need: int) -> int:
        """Have `need` bytes from `offset` on in `data`, or all up to the end; returns where in `data` they begin."""
        index = offset - self.base
        if index >= 0 and index + need <= len(self.data):
            return index
        if self.data and 0 <= index <= len(self.data):
            self._step = _READ_ON
        self.data = os.pread(self._descriptor, max(0, min(max(self._step, need), self.end - offset)), offset)
        self.base = offset
        return 0


def find(
    descriptor: int,
    start: int,
    end: int,
    transfer_syntax: str,
    wanted: Collection[int],
    *,
    limits: Limits = LIMITS,
) -> dict[int, Place]:
    """The places of the wanted elements of the data set from `start` to `end`, as far as it has them.

    Ends at the last wanted one, or the first behind it. A deflated data set has to be inflated before. Reads the file
    by offset, and blocks. Raises `DatasetError` for what is malformed, and `OSError`.
    """
    walk = _Walk(Window(descriptor, end), start, transfer_syntax, limits.elements)
    places: dict[int, Place] = {}
    last = max(wanted)
    for tag, vr, value, length in walk.top_level():
        if tag in wanted:
            places[tag] = Place(vr or RAW_VR[tag], value, length, walk.small_value(tag, value, length))
        if tag >= last:
            break
    return places


class _Walk:
    """Goes from header to header. Of what has no length (PS3.5 7.5) it goes through the headers within."""

    def __init__(self, window: Window, start: int, transfer_syntax: str, most: int) -> None:
        syntax = transfer_syntax_of(transfer_syntax)
        self._window = window
        self._start = start
        self._most = most
        self._explicit = syntax.explicit
        self._little = syntax.little_endian
        self._head, self._tagged, self._long = UNPACK[self._little]
        self._depth = 0  # open sequences and items of undefined length
        self._explicit_at = -1  # the depth at which an implicit sequence among explicit elements ends

    def top_level(self) -> Iterator[tuple[int, str, int, int]]:
        """Tag, VR (empty where implicit), offset of the value, and length of each element of the top level."""
        pos, end, window = self._start, self._window.end, self._window
        for _ in range(self._most):
            if pos + 8 > end:
                return
            i = window.move(pos, _HEADER)
            group, number, length = self._tagged(window.data, i)
            tag = group << 16 | number
            if group == _DELIMITERS:
                pos += 8 + self._delimiter(tag, length, pos)
                continue
            vr, size = "", 8
            if self._explicit:
                vr, size, length = self._explicit_header(window.data, i, length)
            if not self._depth:
                yield tag, vr, pos + size, length
            pos += size
            if length != UNDEFINED_LENGTH:
                pos += length
            else:
                self._enter(vr, pos)
        raise DatasetError("there are too many elements", pos - self._start)

    def _explicit_header(self, data: bytes, i: int, implicit_length: int) -> tuple[str, int, int]:
        """VR, size of the header, and length, as the reader has it."""
        _, _, letters, length = self._head(data, i)
        if letters in SHORT_VRS:
            return SHORT_VRS[letters], 8, length
        if not (letters.isalpha() and letters.isupper()):
            return "", 8, implicit_length  # toolkits write elements so whose VR they do not know
        vr = LONG_VRS.get(letters)
        if vr is None and length:
            return "UN", 8, length
        if i + _HEADER > len(data):
            raise DatasetError("the data set ends within a header", self._window.end - self._start)
        return vr or "UN", _HEADER, self._long(data, i + 8)[0]

    def _delimiter(self, tag: int, length: int, pos: int) -> int:
        """Into or out of an item or sequence; returns the bytes to skip."""
        if not self._depth:
            raise DatasetError("an item or delimiter outside of a sequence", pos - self._start, tag)
        if tag == ITEM and length != UNDEFINED_LENGTH:
            return length
        self._depth += 1 if tag == ITEM else -1
        if self._depth == self._explicit_at:
            self._explicit, self._explicit_at = True, -1
            self._tagged = UNPACK[self._little].tagged
        return 0

    def _enter(self, vr: str, pos: int) -> None:
        """Into a sequence without a length; that of an UN is implicit (PS3.5 6.2.2), but not from all archives."""
        if self._explicit and vr == "UN":
            i = self._window.move(pos, _INNER_VR + 2)
            letters = self._window.data[i + _INNER_VR : i + _INNER_VR + 2]
            if not (self._little and (letters in SHORT_VRS or letters in LONG_VRS)):
                self._explicit, self._explicit_at = False, self._depth
                self._tagged = UNPACK[True].tagged
        self._depth += 1

    def small_value(self, tag: int, offset: int, length: int) -> bytes:
        """The value where it is small; `DatasetError` where the file ends before it does."""
        if length != UNDEFINED_LENGTH and offset + length > self._window.end:
            raise DatasetError("the value is longer than the data set", offset - self._start, tag)
        if length > SMALL_VALUE:
            return b""
        i = self._window.move(offset, length)
        return self._window.data[i : i + length]


def inflate_to(descriptor: int, start: int, end: int, target: int, *, limits: Limits = LIMITS) -> int:
    """Inflate the deflated data set from `start` to `end` (PS3.5 A.5) to the end of another file; returns its size.

    Blocks. Raises `DatasetError` for what cannot be inflated or is larger than `limits` allow, and `OSError`.
    """
    most, inflater = limits.most_inflated(end - start), Inflater()
    while start < end and not inflater.has_ended:
        chunk = os.pread(descriptor, min(_READ_DEFLATED, end - start), start)
        if not chunk:
            break
        start += len(chunk)
        for piece in inflater.pieces(chunk, most):
            view = memoryview(piece)
            while view:
                view = view[os.write(target, view) :]
    if not inflater.has_ended:
        raise DatasetError("the deflated data set is truncated", inflater.size)
    return inflater.size
