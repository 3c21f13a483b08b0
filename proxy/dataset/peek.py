"""The UIDs of an instance, and its Patient ID, read off its data set while it streams by.

What may live here: the scanner that tells, mostly from the first chunk of a C-STORE, which study and series
an instance belongs to. It walks over elements without keeping them, and between two chunks it holds no more
than a header and a short value.
"""

from __future__ import annotations

import zlib
from typing import Final

from proxy.dataset.charset import decode, encodings_of
from proxy.dataset.dictionary import (
    ITEM,
    SERIES_INSTANCE_UID,
    SOP_INSTANCE_UID,
    SPECIFIC_CHARACTER_SET,
    STUDY_INSTANCE_UID,
)
from proxy.dataset.levels import PATIENT_ID
from proxy.dataset.reader import (
    LONG_VRS,
    SHORT_VRS,
    UNDEFINED_LENGTH,
    UNPACK,
    Bytes,
    transfer_syntax_of,
)

GIVE_UP: Final = 1024 * 1024
"""Bytes of the (inflated) data set to look through. What comes before group 0020 is a few KB, but private
groups may hold hundreds."""

_LONGEST_UID: Final = 64
"""PS3.5 9.1. What is longer is no UID, and not worth waiting for."""

_LONGEST_TEXT: Final = 256
"""Bytes of a Patient ID (64 characters), or of a Specific Character Set. What is longer is passed over."""

_UIDS: Final = {
    SOP_INSTANCE_UID: "sop_instance",
    STUDY_INSTANCE_UID: "study",
    SERIES_INSTANCE_UID: "series",
}
_WANTED: Final = frozenset({*_UIDS, SPECIFIC_CHARACTER_SET, PATIENT_ID})
_GROUPS: Final = frozenset(tag >> 16 for tag in _WANTED)
_DELIMITERS: Final = 0xFFFE


class _MalformedError(Exception):
    """There is no sense in looking further. Does not leave this module."""


class UidPeek:
    """Finds Study, Series and SOP Instance UID at the top level of a data set that comes in chunks.

    `study`, `series` and `sop_instance` are None until found, and stay None where the data set has none, is
    malformed, or has them later than `GIVE_UP`. So does `patient`, the Patient ID (0010,0020), for which nothing is
    waited: it stands before those of study and series. Each byte is looked at once; values are skipped.
    """

    __slots__ = (
        "_character_set",
        "_depth",
        "_done",
        "_explicit",
        "_explicit_at",
        "_head",
        "_inflater",
        "_left",
        "_little",
        "_long",
        "_rest",
        "_skip",
        "_tagged",
        "patient",
        "series",
        "sop_instance",
        "study",
    )

    def __init__(self, transfer_syntax: str) -> None:
        """`transfer_syntax` is the UID of the presentation context that the data set comes in."""
        self.study: str | None = None
        self.series: str | None = None
        self.sop_instance: str | None = None
        self.patient: str | None = None
        self._character_set: bytes | None = None
        syntax = transfer_syntax_of(transfer_syntax)
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if syntax.deflated else None
        self._explicit = syntax.explicit
        self._little = syntax.little_endian
        self._head, self._tagged, self._long = UNPACK[self._little]
        self._depth = 0  # open sequences and items of undefined length
        self._explicit_at = -1  # the depth at which an implicit sequence among explicit elements ends
        self._skip = 0  # bytes of the current value that are still to come
        self._rest = b""  # a header or value whose end is still to come
        self._left = GIVE_UP
        self._done = False

    def feed(self, chunk: Bytes) -> bool:
        """Take the next bytes of the data set; True when no more are of use. Never raises."""
        if self._done:
            return True
        try:
            if self._inflater is not None:
                chunk = self._inflater.decompress(chunk, self._left)
            self._take(chunk)
        except (zlib.error, _MalformedError):
            self._done = True
        return self._done

    def _take(self, chunk: Bytes) -> None:
        size = len(chunk)
        if size > self._skip:
            data = self._rest + bytes(chunk) if self._rest else chunk
            pos = self._scan(data, self._skip)
            self._skip = max(0, pos - len(data))
            self._rest = bytes(data[pos:])
        else:
            self._skip -= size
        self._left -= size
        if self._left <= self._skip:
            self._done = True

    def _scan(self, data: Bytes, pos: int) -> int:
        """Walk on from `pos`; returns where the next element begins, in these bytes or after them."""
        size, head = len(data), self._head
        while pos + 8 <= size and not self._done:
            start = pos + 8
            if self._explicit:
                group, number, letters, length = head(data, pos)
                if group == _DELIMITERS:  # no VR, whatever the first bytes of the length look like (PS3.5 7.5)
                    (length,) = self._long(data, start - 4)
                elif letters not in SHORT_VRS:
                    # As the reader has it: long VRs, those of a later edition, and what was written as implicit.
                    letter = letters.isalpha() and letters.isupper()
                    if letters in LONG_VRS or (letter and not length):
                        start += 4
                    if start > size:
                        break
                    if start > pos + 8 or not letter:
                        (length,) = self._long(data, start - 4)
            else:
                group, number, length = self._tagged(data, pos)
                letters = b""
            if group == _DELIMITERS or length == UNDEFINED_LENGTH:
                pos = start + self._nested(group << 16 | number, letters, length)
                continue
            if self._depth == 0 and (group in _GROUPS or group > 0x0020):
                tag = group << 16 | number
                if tag > SERIES_INSTANCE_UID:
                    self._done = True
                elif tag in _WANTED and not self._note(tag, data, start, length):
                    break
            pos = start + length
        return pos

    def _nested(self, tag: int, letters: bytes, length: int) -> int:
        """Into or out of a sequence or item of undefined length; returns the length of any other item."""
        if tag >> 16 != _DELIMITERS:
            if self._explicit and letters == b"UN":  # PS3.5 6.2.2: its items are Implicit VR Little Endian
                self._explicit, self._explicit_at = False, self._depth
                self._tagged = UNPACK[True].tagged
            self._depth += 1
            return 0
        if self._depth == 0:
            raise _MalformedError
        if tag == ITEM:
            if length != UNDEFINED_LENGTH:
                return length
            self._depth += 1
            return 0
        self._depth -= 1
        if self._depth == self._explicit_at:
            self._explicit, self._explicit_at = True, -1
            self._tagged = UNPACK[self._little].tagged
        return 0

    def _note(self, tag: int, data: Bytes, start: int, length: int) -> bool:
        """Keep a value; False when its bytes are not all there yet."""
        if length > (_LONGEST_UID if tag in _UIDS else _LONGEST_TEXT):
            if tag in _UIDS:
                raise _MalformedError
            return True
        if start + length > len(data):
            return False
        value = bytes(data[start : start + length])
        if tag in _UIDS:
            setattr(self, _UIDS[tag], str(value, "ascii", "replace").strip(" \0") or None)
            self._done = self.study is not None and self.series is not None
        elif tag == PATIENT_ID:
            self.patient = decode(value, encodings_of(self._character_set), "LO").strip(" \0") or None
        else:
            self._character_set = value
        return True
