"""C-FIND identifiers: keys as text to an encoded data set (PS3.4 C.2.2, PS3.5 chapter 7).

What may live here: writing small data sets, little endian, from text. No group lengths, no bulk data:
instances go through this program as they came.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from struct import error as struct_error
from struct import pack
from typing import Final

from proxy.dataset.charset import AFFECTED_VRS
from proxy.dataset.dictionary import SPECIFIC_CHARACTER_SET, tag_of, vr_of
from proxy.dataset.reader import LONG_VRS
from proxy.dataset.values import NUMBERS, TEXTS

TagPath = tuple[int, ...]
"""A tag, or the tags of sequences and the tag within: (0x00400275, 0x00401001)."""

_LONG: Final = frozenset(LONG_VRS.values())
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_FLOAT: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")

_Keys = dict[int, "str | _Keys"]


def encode_identifier(keys: Mapping[TagPath, str], *, explicit: bool, character_set: bool = True) -> bytes:
    """The identifier that asks for `keys`, in Explicit or Implicit VR Little Endian.

    Values are text, several joined by backslashes; "" is universal matching, and for a sequence no item
    (PS3.4 C.2.2.2). Binary VRs are written from decimal numbers, AT from keywords or hexadecimal tags.
    Specific Character Set is asked for, unless `character_set` is False (C-MOVE and C-GET take none), and is
    ISO_IR 192 with UTF-8 values where one is not ASCII; group lengths are dropped.

    Raises ValueError, with the tag, for a value that its VR cannot hold, and for paths that lead through
    something other than a sequence.
    """
    tree: _Keys = {}
    for path, value in keys.items():
        if not path or path[-1] & 0xFFFF:
            _plant(tree, path, value)
    if character_set:
        tree[SPECIFIC_CHARACTER_SET] = "" if all(value.isascii() for value in keys.values()) else "ISO_IR 192"
    return _dataset(tree, explicit=explicit)


def _plant(tree: _Keys, path: TagPath, value: str) -> None:
    """Put a key into the tree; a sequence is a dictionary as soon as something is asked for within it."""
    if not path:
        raise ValueError("a key without a tag")
    for sequence in path[:-1]:
        if vr_of(sequence) != "SQ":
            raise _error(sequence, "is not a sequence")
        branch = tree.get(sequence)
        if not isinstance(branch, dict):
            branch = tree[sequence] = {}
        tree = branch
    tag = path[-1]
    if vr_of(tag) == "SQ" and value:
        raise _error(tag, "is a sequence and has no value of its own")
    if not isinstance(tree.get(tag), dict):
        tree[tag] = value


def _dataset(tree: _Keys, *, explicit: bool) -> bytes:
    return b"".join([_element(tag, tree[tag], explicit=explicit) for tag in sorted(tree)])


def _element(tag: int, key: str | _Keys, *, explicit: bool) -> bytes:
    group, number = tag >> 16, tag & 0xFFFF
    if group in (0x0000, 0x0002, 0xFFFE):
        raise _error(tag, "cannot be a key")
    vr = vr_of(tag)
    if isinstance(key, dict):
        item = _dataset(key, explicit=explicit)
        value = pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
    else:
        value = _value(tag, vr, key)
    if not explicit:
        return pack("<HHI", group, number, len(value)) + value
    if vr in _LONG:
        return pack("<HH2sHI", group, number, vr.encode(), 0, len(value)) + value
    if len(value) > 0xFFFE:
        raise _error(tag, "has a value longer than 65534 bytes")
    return pack("<HH2sH", group, number, vr.encode(), len(value)) + value


def _value(tag: int, vr: str, text: str) -> bytes:
    """The value field, padded to an even length (PS3.5 6.2)."""
    if not text:
        return b""
    if vr in TEXTS or vr == "UN":  # UN is a private key, whose text the archive knows how to read
        try:
            value = text.encode("utf_8" if vr in AFFECTED_VRS else "ascii")
        except UnicodeEncodeError:
            raise _error(tag, f"has a character that VR {vr} cannot hold") from None
        return value + (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    try:
        if vr == "AT":
            return b"".join([_tag_value(one) for one in text.split("\\")])
        one = NUMBERS[vr]
        number = _float if vr in ("FL", "FD") else _integer
        return b"".join([one.pack(number(part)) for part in text.split("\\")])
    except KeyError:
        raise _error(tag, f"of VR {vr} cannot be matched by value") from None
    except (ValueError, OverflowError, struct_error):
        raise _error(tag, f"has a value that is none of VR {vr}") from None


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):  # int() also takes underscores and the digits of all scripts
        raise ValueError
    return int(text)


def _float(text: str) -> float:
    if not _FLOAT.fullmatch(text):
        raise ValueError
    return float(text)


def _tag_value(text: str) -> bytes:
    tag = tag_of(text)
    if tag is None:
        raise ValueError
    return pack("<HH", tag >> 16, tag & 0xFFFF)


def _error(tag: int, what: str) -> ValueError:
    return ValueError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {what}")
