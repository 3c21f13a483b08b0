"""The DICOM JSON Model (PS3.18 Annex F): elements to JSON text.

What may live here: writing that model, from the elements of `proxy.dataset`. The text is put together
directly, as building Python objects for `json.dumps` would take several times as long. Nothing here raises
on what an archive sent: a number that is none becomes a JSON string, bytes that are no text become U+FFFD.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring as quote
from math import isfinite
from struct import pack
from typing import Final

from proxy.dataset.charset import ISO_IR_6, Encodings, encodings_of
from proxy.dataset.dictionary import SPECIFIC_CHARACTER_SET, vr_of
from proxy.dataset.reader import Bytes, Element
from proxy.dataset.values import NUMBERS, TEXTS, encodings_in, numbers, strings, tags

BulkData = Callable[[tuple[int, ...], Element], str | None]
"""Asked about each binary value: its path (tag, or tag, item number from 0, tag …) and element. Answers
with the BulkDataURI that is to stand for the value (PS3.18 F.2.6), or None to have it inline."""

UTF_8_CHARACTER_SET: Final = '{"vr":"CS","Value":["ISO_IR 192"]}'

_EXACT: Final = 2**53
"""JavaScript holds whole numbers up to here; PS3.18 Table F.2.3-1 lets SV and UV be strings."""

# The lengths are bounded, as JSON readers choke on numbers of thousands of digits. DS has 16 characters at
# most.
_INTEGER = rb"-?+(?:0|[1-9][0-9]{0,17}+)"
_DECIMAL = _INTEGER + rb"(?:\.[0-9]{1,32}+)?+(?:[eE][+-]?+[0-9]{1,3}+)?+"
_JSON_NUMBERS = {
    "IS": re.compile(rb"%b(?:\\%b)*+" % (_INTEGER, _INTEGER)),
    "DS": re.compile(rb"%b(?:\\%b)*+" % (_DECIMAL, _DECIMAL)),
}
_NUMBER = re.compile(r"([+-]?)([0-9]{0,18})(?:\.([0-9]{0,32}))?([eE][+-]?[0-9]{1,3})?")


def encode(
    elements: Sequence[Element],
    *,
    default_character_set: str = "ISO_IR 6",
    parents: Iterable[Sequence[Element]] = (),
    replace: Mapping[int, str] | None = None,
    require: Iterable[int] = (),
    leave_out: Iterable[int] = (),
    bulk_data: BulkData | None = None,
) -> str:
    """A data set as a DICOM JSON Model Object (PS3.18 F.2.2), tags in order.

    `default_character_set` is a defined term for data sets that name none. `parents` are data sets, each with a
    character set of its own, whose attributes are added where `elements` have none. `replace` gives JSON texts of
    attribute objects that are added, or stand in for what the data set has; `require` names tags that are to be there,
    empty if need be, and `leave_out` those that are not to be there. Group lengths and group 0002 are left out
    (F.2.2). Of duplicates the last one counts. JSON is UTF-8, so Specific Character Set says so, and is added when the
    text is not ASCII.
    """
    encodings = encodings_of(default_character_set)
    attributes: dict[int, str] = {}
    for parent in parents:
        attributes |= _attributes(parent, encodings, bulk_data, ())
    attributes |= _attributes(elements, encodings, bulk_data, ())
    for tag in leave_out:
        attributes.pop(tag, None)
    if replace:
        attributes.update((tag, f'"{tag:08X}":{text}') for tag, text in replace.items())
    for tag in require:
        if tag not in attributes:
            attributes[tag] = f'"{tag:08X}":{{"vr":"{vr_of(tag)}"}}'
    text = _joined(attributes)
    if SPECIFIC_CHARACTER_SET not in attributes and not text.isascii():
        attributes[SPECIFIC_CHARACTER_SET] = f'"{SPECIFIC_CHARACTER_SET:08X}":{UTF_8_CHARACTER_SET}'
        text = _joined(attributes)
    return text


def encode_element(element: Element, encodings: Encodings = ISO_IR_6) -> str:
    """The attribute object of one element (PS3.18 F.2.3), without its tag: `{"vr":"CS","Value":["MR"]}`."""
    return _attribute(element, encodings, None, ())


def _joined(attributes: Mapping[int, str]) -> str:
    return "{" + ",".join([attributes[tag] for tag in sorted(attributes)]) + "}"


def _attributes(
    elements: Sequence[Element], encodings: Encodings, bulk_data: BulkData | None, path: tuple[int, ...]
) -> dict[int, str]:
    """Tag to `"tag":{…}`, in the order of the data set."""
    encodings = encodings_in(elements, encodings)
    attributes: dict[int, str] = {}
    for element in elements:
        tag = element.tag
        if not tag & 0xFFFF or tag >> 16 == 0x0002:
            continue
        attributes[tag] = _key(tag) + _attribute(element, encodings, bulk_data, path)
    if SPECIFIC_CHARACTER_SET in attributes:
        attributes[SPECIFIC_CHARACTER_SET] = _key(SPECIFIC_CHARACTER_SET) + UTF_8_CHARACTER_SET
    return attributes


@lru_cache(maxsize=8192)
def _key(tag: int) -> str:
    return f'"{tag:08X}":'


def _attribute(element: Element, encodings: Encodings, bulk_data: BulkData | None, path: tuple[int, ...]) -> str:
    value, vr = element.value, element.vr
    if isinstance(value, list):
        items = [
            _joined(_attributes(item, encodings, bulk_data, (*path, element.tag, index)))
            for index, item in enumerate(value)
        ]
        content = ",".join(items)
    elif (encoder := _ENCODERS.get(vr)) is not None and not isinstance(value, tuple):
        content = encoder(value, vr, encodings)
    else:
        uri = bulk_data((*path, element.tag), element) if bulk_data else None
        return _binary(value, vr) if uri is None else f'{{"vr":"{vr}","BulkDataURI":{quote(uri)}}}'
    return f'{{"vr":"{vr}","Value":[{content}]}}' if content else f'{{"vr":"{vr}"}}'


def _texts(value: Bytes, vr: str, encodings: Encodings) -> str:
    values = strings(value, vr, encodings)
    if len(values) == 1:
        return quote(values[0])
    return ",".join([quote(text) if text else "null" for text in values])


def _person_names(value: Bytes, vr: str, encodings: Encodings) -> str:
    return ",".join([_person_name(text) for text in strings(value, vr, encodings)])


def _person_name(text: str) -> str:
    """The component groups of PS3.5 6.2.1.1; empty ones are left out."""
    if "=" not in text:
        return f'{{"Alphabetic":{quote(text)}}}' if text else "null"
    names = ("Alphabetic", "Ideographic", "Phonetic")
    groups = [
        f'"{name}":{quote(group)}'
        for name, part in zip(names, text.split("="), strict=False)
        if (group := part.rstrip(" \0"))
    ]
    return "{" + ",".join(groups) + "}" if groups else "null"


def _number_texts(value: Bytes, vr: str, encodings: Encodings) -> str:
    """IS and DS: the text itself where it is a JSON number."""
    text = bytes(value).rstrip(b" \0")
    if _JSON_NUMBERS[vr].fullmatch(text):
        return text.decode("ascii").replace("\\", ",")
    return ",".join([_number_text(one, vr) for one in strings(text, vr, encodings)])


def _number_text(text: str, vr: str) -> str:
    """A number with a plus sign, leading zeros or a bare point as JSON has it; what is none as a string."""
    if not text:
        return "null"
    match = _NUMBER.fullmatch(text)
    if match is None:
        return quote(text)
    sign, whole, fraction, exponent = (part or "" for part in match.groups())
    if not whole and not fraction:
        return quote(text)
    if vr == "IS":
        if exponent or fraction.strip("0"):
            return quote(text)
        fraction = ""
    number = ("-" if sign == "-" else "") + (whole.lstrip("0") or "0")
    return number + (f".{fraction}" if fraction else "") + exponent


def _integers(value: Bytes, vr: str, encodings: Encodings) -> str:
    return ",".join(map(str, numbers(value, vr)))


def _long_integers(value: Bytes, vr: str, encodings: Encodings) -> str:
    return ",".join([str(one) if -_EXACT <= one <= _EXACT else f'"{one}"' for one in numbers(value, vr)])


def _floats(value: Bytes, vr: str, encodings: Encodings) -> str:
    """JSON has no word for what is not finite, so that these become strings."""
    return ",".join([repr(one) if isfinite(one) else _not_finite(one) for one in numbers(value, vr)])


def _not_finite(value: float) -> str:
    if value > 0:
        return '"Infinity"'
    return '"-Infinity"' if value < 0 else '"NaN"'


def _tags(value: Bytes, vr: str, encodings: Encodings) -> str:
    return ",".join([f'"{tag}"' for tag in tags(value)])


def _binary(value: Bytes | tuple[Bytes, ...], vr: str) -> str:
    """InlineBinary (PS3.18 F.2.7), little endian; encapsulated pixel data with its items (PS3.5 A.4)."""
    if isinstance(value, tuple):
        value = b"".join([part for one in value for part in (pack("<HHI", 0xFFFE, 0xE000, len(one)), one)])
    if not value:
        return f'{{"vr":"{vr}"}}'
    return f'{{"vr":"{vr}","InlineBinary":"{b64encode(value).decode("ascii")}"}}'


_ENCODERS: Final[dict[str, Callable[[Bytes, str, Encodings], str]]] = {
    **dict.fromkeys(TEXTS, _texts),
    **dict.fromkeys(NUMBERS, _integers),
    "PN": _person_names,
    "IS": _number_texts,
    "DS": _number_texts,
    "SV": _long_integers,
    "UV": _long_integers,
    "FL": _floats,
    "FD": _floats,
    "AT": _tags,
}
"""By VR; the others are binary."""
