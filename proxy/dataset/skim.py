"""A data set without its bulk data, taken off the stream of its bytes or off a file (PS3.5 chapter 7, Annex A).

What may live here: the walk over the headers of elements that leaves large binary values out, says where they were,
and keeps the rest for `reader.parse`. It looks into sequences too, where they are long. So what is held in memory is
bounded, whatever the size of an instance and of each of its values.

A sequence or item that loses a value no longer has the length that it says, so those that are looked into are kept
with undefined length and a delimiter (PS3.5 7.5.1); an element that loses its value is kept with the length 0, or
without fragments.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from enum import Enum, auto
from struct import pack
from typing import Final, NamedTuple

from proxy.dataset.dictionary import ITEM, ITEM_DELIMITATION, RAW_VR, SEQUENCE_DELIMITATION
from proxy.dataset.inflating import Inflater
from proxy.dataset.reader import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    LIMITS,
    LONG_VRS,
    SHORT_VRS,
    UNDEFINED_LENGTH,
    UNPACK,
    Bytes,
    DatasetError,
    Element,
    Limits,
    parse,
    transfer_syntax_of,
)

BULK_FROM: Final = 1024
"""Binary values that are longer are left out. In JSON, one of this length costs as much as fifty short attributes."""

KEPT_LIMIT: Final = 32 * 1024 * 1024
"""Bytes of one data set that are kept. The largest headers, of enhanced multi-frame objects, are a third of it."""

BULK_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})

PIXEL_DATA: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
"""Left out whatever their length: viewers ask for frames, and take nothing inline."""

_READ_FIRST: Final = 16 * 1024
"""Bytes to read of a file at once: most headers are shorter …"""

_READ_ON: Final = 256 * 1024
"""… those that are not are read in larger steps …"""

_READ_BEHIND: Final = 1024
"""… and behind a value that was left out, there is little: the next fragment's header, or padding."""

_ENDS: Final = sys.maxsize
_FOREIGN_PEEK: Final = 14
"""Bytes of items that show the encoding of the first: its header, its first element's tag and VR."""

Path = tuple[int, ...]
"""Where an element is: its tag, or the tag of a sequence, the number of an item from 0, a tag …"""


@dataclass(frozen=True, slots=True)
class Bulk:
    """A value that was left out: where it is in the data set, a deflated one inflated.

    An `encapsulated` one (PS3.5 A.4) is its fragments with their headers, without the delimiter. `turned` says that
    the value is big endian.
    """

    vr: str
    offset: int
    length: int
    encapsulated: bool = False
    turned: bool = False


class _Kind(Enum):
    """What is expected next."""

    ELEMENTS = auto()
    ITEMS = auto()
    FRAGMENTS = auto()


class _Level:
    """A sequence, item or encapsulated value that is being walked through, or the data set itself.

    `end` is where it has to end at the latest; `delimited` that a delimiter has to come before.
    """

    __slots__ = ("delimited", "end", "explicit", "items", "kind", "little", "path", "start")

    def __init__(
        self, kind: _Kind, path: Path, start: int, end: int, *, delimited: bool, explicit: bool, little: bool
    ) -> None:
        self.kind = kind
        self.path = path
        self.start = start
        self.end = end
        self.delimited = delimited
        self.explicit = explicit
        self.little = little
        self.items = 0


class _Header(NamedTuple):
    """The header of an element. `foreign`: its items are in another encoding, if in any."""

    tag: int
    vr: str
    size: int
    length: int
    foreign: bool = False


class Skim:
    """Takes the bytes of a data set in chunks of any size; `elements` are what is left without bulk data.

    `bulk` says what was left out; of duplicates, the last. `feed` and `elements` raise `DatasetError` for what is
    malformed or beyond the limits.
    """

    def __init__(self, transfer_syntax: str, *, limits: Limits = LIMITS, kept_limit: int = KEPT_LIMIT) -> None:
        syntax = transfer_syntax_of(transfer_syntax)
        self.bulk: dict[Path, Bulk] = {}
        self._limits = limits
        self._kept_limit = kept_limit
        self._inflater = Inflater() if syntax.deflated else None
        self._deflated = 0
        top = _Level(
            _Kind.ELEMENTS, (), 0, _ENDS, delimited=False, explicit=syntax.explicit, little=syntax.little_endian
        )
        self._levels = [top]
        self._kept: list[Bytes] = []
        self.kept_size = 0
        """Bytes that are kept, so far."""
        self._count = 0
        self._at = 0  # offset of the next byte in the data set, `_rest` included
        self._rest = b""  # the beginning of a header
        self._keep = self._skip = 0  # bytes of the current value that are still to come

    @property
    def is_deflated(self) -> bool:
        """True when there may be many more bytes in a chunk than are fed."""
        return self._inflater is not None

    @property
    def skip(self) -> int:
        """How many of the bytes that come next are of no use; `pass_over` them where that saves reading."""
        return self._skip if self._inflater is None else 0

    def pass_over(self, size: int) -> None:
        """Go on as if `size` bytes, at most `skip`, had been fed."""
        self._skip -= size
        self._at += size

    def feed(self, chunk: Bytes) -> None:
        """Take the next bytes."""
        if self._inflater is None:
            self._take(chunk)
            return
        self._deflated += len(chunk)
        for piece in self._inflater.pieces(chunk, self._limits.most_inflated(self._deflated)):
            self._take(piece)

    def elements(self) -> list[Element]:
        """All elements, when everything was fed; those of `bulk` are without their values.

        A value that was to be left out, and ends too early, is taken for what there is of it.
        """
        top = self._levels[-1]
        if top.kind is _Kind.FRAGMENTS:
            self._close_fragments(self._at)
        elif self._skip:
            path = max(self.bulk, key=lambda path: self.bulk[path].offset)
            cut = self.bulk[path]
            self.bulk[path] = Bulk(cut.vr, cut.offset, cut.length - self._skip, turned=cut.turned)
            self._skip = 0
        while len(self._levels) > 1 and self._levels[-1].end == self._at and not self._levels[-1].delimited:
            self._close()
        if self._keep or self._rest or len(self._levels) > 1:
            raise DatasetError("the data set ends within an element", self._at)
        return parse(b"".join(self._kept), self._encoding, limits=self._limits)

    @property
    def _encoding(self) -> str:
        top = self._levels[0]
        if not top.explicit:
            return IMPLICIT_VR_LITTLE_ENDIAN
        return EXPLICIT_VR_LITTLE_ENDIAN if top.little else EXPLICIT_VR_BIG_ENDIAN

    # --- the walk ------------------------------------------------------------------------------------------------

    def _take(self, data: Bytes) -> None:
        if self._rest:
            data = self._rest + bytes(data)
        size, pos, base = len(data), 0, self._at
        while True:
            if self._keep:
                stop = min(size, pos + self._keep)
                self._keep -= stop - pos
                self._add(data[pos:stop] if stop - pos < size else data)
                pos = stop
            elif self._skip:
                stop = min(size, pos + self._skip)
                self._skip -= stop - pos
                pos = stop
            self._at = base + pos
            if pos == size or not self._step(data, pos):
                break
            pos = self._at - base
        self._rest = bytes(data[pos:])

    def _step(self, data: Bytes, pos: int) -> bool:
        """Go on by a header, or several; False when more bytes are needed for it.

        It leaves `_at` behind what was looked at, or `_keep` as the number of bytes from `_at` that are to be kept.
        """
        level = self._levels[-1]
        if self._at >= level.end:
            if self._at > level.end or level.delimited:
                raise DatasetError("an item and its delimiter do not match", self._at)
            self._close()
            return True
        if len(data) - pos < 8:
            return False
        if level.kind is _Kind.ELEMENTS:
            keep = self._plain(data, pos, level) - pos
            if not keep:
                return self._element(data, pos, level)
            self._keep = keep
            return True
        group, number, length = UNPACK[level.little].tagged(data, pos)
        self._counted(1)
        if level.kind is _Kind.ITEMS:
            self._item(group << 16 | number, length, level)
        else:
            self._fragment(group << 16 | number, length)
        return True

    def _plain(self, data: Bytes, pos: int, level: _Level) -> int:
        """Where the elements end that are kept as they are: most of all elements, in a loop that has to be quick."""
        last = min(len(data), level.end - self._at + pos) - 8
        begin, count = pos, 0
        if level.explicit:
            head = UNPACK[level.little].explicit
            while pos <= last:
                _, _, letters, length = head(data, pos)
                if letters not in SHORT_VRS:
                    break
                pos += 8 + length
                count += 1
        else:
            tagged = UNPACK[level.little].tagged
            while pos <= last:
                group, _, length = tagged(data, pos)
                if length > BULK_FROM or group >= 0x7FE0:
                    break
                pos += 8 + length
                count += 1
        self._counted(count)
        if self._at + pos - begin > level.end:
            raise DatasetError("the value is longer than the data set", self._at)
        return pos

    def _element(self, data: Bytes, pos: int, level: _Level) -> bool:
        header = _read_header(data, pos, level)
        if header is None:
            return False
        tag, vr, size, length, foreign = header
        if tag >> 16 == 0xFFFE:
            if tag != ITEM_DELIMITATION or not level.delimited:
                raise DatasetError("an item or delimiter outside of a sequence", self._at, tag)
            self._keep = size
            self._levels.pop()
            return True
        start = self._at + size
        undefined = length == UNDEFINED_LENGTH
        if not undefined and start + length > level.end:
            raise DatasetError("the value is longer than the data set", self._at, tag)
        if undefined and vr in ("OB", "OW"):
            self._add(data[pos : pos + size])
            self._at = start
            self._open(_Kind.FRAGMENTS, (*level.path, tag), level, level.end, delimited=True)
        elif undefined:
            if foreign and len(data) - pos - size < _FOREIGN_PEEK:
                return False
            explicit, little = _encoding_of_items(data, pos + size, level, foreign=foreign)
            self._add(data[pos : pos + size])
            self._at = start
            self._open(_Kind.ITEMS, (*level.path, tag), level, level.end, delimited=True)
            self._levels[-1].explicit, self._levels[-1].little = explicit, little
        elif vr == "SQ" and not foreign and length > BULK_FROM:
            self._add(bytes(data[pos : pos + size - 4]) + b"\xff\xff\xff\xff")
            self._at = start
            self._open(_Kind.ITEMS, (*level.path, tag), level, start + length, delimited=False)
        elif vr in BULK_VRS and length > (0 if tag in PIXEL_DATA else BULK_FROM):
            self._add(_without_length(data, pos, size))
            self._at = start
            self._skip = length
            self.bulk[(*level.path, tag)] = Bulk(vr, start, length, turned=not level.little)
        else:
            self._keep = size + length
        self._counted(1)
        return True

    def _item(self, tag: int, length: int, level: _Level) -> None:
        """The header of an item (PS3.5 7.5), or the end of a sequence."""
        if tag == SEQUENCE_DELIMITATION and level.delimited:
            self._keep = 8
            self._levels.pop()
            return
        if tag != ITEM:
            raise DatasetError("something other than an item in a sequence", self._at, level.path[-1])
        path = (*level.path, level.items)
        level.items += 1
        start = self._at + 8
        if length == UNDEFINED_LENGTH:
            self._keep = 8
            self._open(_Kind.ELEMENTS, path, level, level.end, delimited=True)
        elif start + length > level.end:
            raise DatasetError("the item is longer than its sequence", self._at, level.path[-1])
        elif length <= BULK_FROM:
            self._keep = 8 + length
        else:
            self._add(pack("<HHI" if level.little else ">HHI", 0xFFFE, 0xE000, UNDEFINED_LENGTH))
            self._at = start
            self._open(_Kind.ELEMENTS, path, level, start + length, delimited=False)

    def _fragment(self, tag: int, length: int) -> None:
        """The header of a fragment of encapsulated pixel data (PS3.5 A.4), or the end of them."""
        if tag == SEQUENCE_DELIMITATION:
            self._close_fragments(self._at)
        elif tag != ITEM:
            raise DatasetError("a fragment is not whole", self._at, self._levels[-1].path[-1])
        else:
            self._skip = length
        self._at += 8

    def _open(self, kind: _Kind, path: Path, level: _Level, end: int, *, delimited: bool) -> None:
        if len(self._levels) > 2 * self._limits.depth:
            raise DatasetError(f"sequences are nested more than {self._limits.depth} deep", self._at)
        self._levels.append(
            _Level(kind, path, self._at, end, delimited=delimited, explicit=level.explicit, little=level.little)
        )

    def _close(self) -> None:
        """End a sequence or item that had a length."""
        level = self._levels.pop()
        self._add_delimiter(level, 0xE00D if level.kind is _Kind.ELEMENTS else 0xE0DD)

    def _add_delimiter(self, level: _Level, number: int) -> None:
        self._add(pack("<HHI" if level.little else ">HHI", 0xFFFE, number, 0))

    def _close_fragments(self, end: int) -> None:
        level = self._levels.pop()
        self._add_delimiter(level, 0xE0DD)
        self.bulk[level.path] = Bulk("OB", level.start, end - level.start, encapsulated=True)
        self._skip = 0

    def _counted(self, elements: int) -> None:
        self._count += elements
        if self._count > self._limits.elements:
            raise DatasetError("there are too many elements", self._at)

    def _add(self, piece: Bytes) -> None:
        self._kept.append(piece)
        self.kept_size += len(piece)
        if self.kept_size > self._kept_limit:
            raise DatasetError(f"the data set has more than {self._kept_limit} bytes beside bulk data", self._at)


def skim_file(descriptor: int, start: int, size: int, transfer_syntax: str, *, limits: Limits = LIMITS) -> Skim:
    """Skim the data set that begins at `start` of an open file of `size` bytes.

    Reads no more than it needs, by offset: the position of the file stays. Raises `DatasetError` and `OSError`.
    """
    skim = Skim(transfer_syntax, limits=limits)
    step = _READ_FIRST
    while start < size and (data := os.pread(descriptor, min(step, size - start), start)):
        skim.feed(data)
        passed = min(skim.skip, size - start - len(data))
        skim.pass_over(passed)
        start += len(data) + passed
        step = _READ_BEHIND if passed else _READ_ON
    return skim


def _read_header(data: Bytes, pos: int, level: _Level) -> _Header | None:
    """The header at `pos`, of which 8 bytes are there, read as the reader does; None when the rest is not."""
    group, number, length = UNPACK[level.little].tagged(data, pos)
    tag = group << 16 | number
    if not level.explicit or group == 0xFFFE:
        return _Header(tag, RAW_VR[tag], 8, length)
    _, _, letters, short_length = UNPACK[level.little].explicit(data, pos)
    if letters in SHORT_VRS:
        return _Header(tag, SHORT_VRS[letters], 8, short_length)
    vr = LONG_VRS.get(letters, "UN")
    if letters not in LONG_VRS and not (letters.isalpha() and letters.isupper()):
        return _Header(tag, RAW_VR[tag], 8, length, foreign=True)
    foreign = vr == "UN"
    if foreign and level.little:
        vr = RAW_VR[tag]
    if letters not in LONG_VRS and short_length:
        return _Header(tag, vr, 8, short_length, foreign=True)
    if len(data) - pos < 12:
        return None
    (length,) = UNPACK[level.little].long(data, pos + 8)
    return _Header(tag, vr, 12, length, foreign)


def _without_length(data: Bytes, pos: int, size: int) -> bytes:
    """The header of an element as that of an empty one."""
    if size == 12:
        return bytes(data[pos : pos + 8]) + bytes(4)
    letters = bytes(data[pos + 4 : pos + 6])
    if letters.isalpha() and letters.isupper():
        return bytes(data[pos : pos + 6]) + bytes(6)
    return bytes(data[pos : pos + 4]) + bytes(4)


def _encoding_of_items(data: Bytes, pos: int, level: _Level, *, foreign: bool) -> tuple[bool, bool]:
    """Whether the items at `pos` are explicit, and little endian: as the reader decides it (PS3.5 6.2.2)."""
    letters = bytes(data[pos + 12 : pos + 14])
    if not foreign or not level.explicit or (level.little and (letters in SHORT_VRS or letters in LONG_VRS)):
        return level.explicit, level.little
    return False, True
