"""Identifiers of C-FIND responses: a row of the index to an encoded data set (PS3.4 C.4.1.1.3.2).

What may live here: encoding. Values are copied as they were in the file, in the file's own character set. Only an
answer whose parts have different ones is turned into UTF-8, since a data set has one (PS3.3 C.12.1.1.2).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import pack
from typing import Final

from proxy.dataset.charset import AFFECTED_VRS, Encodings, decode
from proxy.dataset.dictionary import SPECIFIC_CHARACTER_SET, vr_of
from proxy.dataset.reader import IMPLICIT_VR_LITTLE_ENDIAN, LONG_VRS, Element
from proxy.dataset.reader import Value as ReadValue
from proxy.dataset.values import TEXTS, encodings_in
from proxy.demo.attributes import QUERY_RETRIEVE_LEVEL, RETRIEVE_AE_TITLE, UNIQUE_KEYS
from proxy.demo.query import Key, Query, attribute_level
from proxy.demo.rows import Row, getter

_LONG: Final = frozenset(LONG_VRS.values())
_UTF_8: Final = b"ISO_IR 192"


def answer_encoder(query: Query, ae_title: str, transfer_syntax: str) -> Callable[[Row], bytes]:
    """A function that encodes the answer for a row in Explicit or Implicit VR Little Endian.

    It has the keys of the query, the unique key of its level, Query/Retrieve Level, Retrieve AE Title and, where the
    instance has one, Specific Character Set. A key for which the archive has no value is empty.
    """
    explicit = transfer_syntax != IMPLICIT_VR_LITTLE_ENDIAN
    keys = {key.tag: key for key in query.keys}
    for tag in (UNIQUE_KEYS[query.level], RETRIEVE_AE_TITLE):
        keys.setdefault(tag, Key(tag, vr_of(tag)))
    plan = [(key, attribute_level(key.tag), getter(key.tag, ae_title)) for key in keys.values()]
    level_element = encode_element(QUERY_RETRIEVE_LEVEL, "CS", query.level.name.encode(), explicit=explicit)

    def answer(row: Row) -> bytes:
        character_sets = row.character_sets()
        mixed = len(character_sets) > 1
        parts = {QUERY_RETRIEVE_LEVEL: level_element}
        if encoded := _UTF_8 if mixed else character_sets.pop().encoded:
            parts[SPECIFIC_CHARACTER_SET] = encode_element(SPECIFIC_CHARACTER_SET, "CS", encoded, explicit=explicit)
        for key, level, value_of in plan:
            value: ReadValue = value_of(row) or b""
            if mixed:
                value = _in_utf_8(value, key.vr, row.holder(level).character_set.encodings)
            if key.items and isinstance(value, list):
                value = [_requested(item, key.items) for item in value]
            parts[key.tag] = encode_element(key.tag, key.vr, value, explicit=explicit)
        return b"".join([parts[tag] for tag in sorted(parts)])

    return answer


def encode_element(tag: int, vr: str, value: ReadValue, *, explicit: bool) -> bytes:
    """An element in little endian (PS3.5 7.1); sequences with explicit lengths, odd values padded."""
    if isinstance(value, list):
        items = [b"".join([encode_element(e.tag, e.vr, e.value, explicit=explicit) for e in item]) for item in value]
        body = b"".join([pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items])
    else:
        body = b"" if isinstance(value, tuple) else bytes(value)
        if len(body) % 2:
            body += b" " if vr in TEXTS and vr != "UI" else b"\0"
    group, number = tag >> 16, tag & 0xFFFF
    if not explicit:
        return pack("<HHI", group, number, len(body)) + body
    if vr in _LONG:
        return pack("<HH2sHI", group, number, vr.encode(), 0, len(body)) + body
    return pack("<HH2sH", group, number, vr.encode(), len(body)) + body


def _requested(item: list[Element], keys: tuple[Key, ...]) -> list[Element]:
    """An item with the keys that were asked for, empty where it does not have them, and its character set."""
    found = {element.tag: element for element in item}
    answer = [found[SPECIFIC_CHARACTER_SET]] if SPECIFIC_CHARACTER_SET in found else []
    for key in sorted(keys, key=lambda key: key.tag):
        element = found.get(key.tag, Element(key.tag, key.vr, b""))
        if key.items and isinstance(element.value, list):
            element = Element(key.tag, key.vr, [_requested(below, key.items) for below in element.value])
        answer.append(element)
    return answer


def _in_utf_8(value: ReadValue, vr: str, encodings: Encodings) -> ReadValue:
    if isinstance(value, list):
        return [_item_in_utf_8(item, encodings_in(item, encodings)) for item in value]
    if vr not in AFFECTED_VRS or isinstance(value, tuple):
        return value
    return decode(bytes(value), encodings, vr).encode()


def _item_in_utf_8(item: list[Element], encodings: Encodings) -> list[Element]:
    return [
        Element(each.tag, each.vr, _in_utf_8(each.value, each.vr, encodings))
        for each in item
        if each.tag != SPECIFIC_CHARACTER_SET
    ]
