"""Value fields to text and numbers (PS3.5 6.2, 6.4), and looking elements up.

What may live here: what the query code and the DICOM JSON encoder both need to know of a value. Nothing
here raises on what a peer sent: a binary value that is no whole number of units loses its last bytes, text
is decoded as `charset.py` does it.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct, unpack_from
from typing import Final

from proxy.dataset.charset import ISO_IR_6, Encodings, decode, encodings_of
from proxy.dataset.dictionary import SPECIFIC_CHARACTER_SET
from proxy.dataset.reader import Bytes, Element

NUMBERS: Final = {
    # VR: one of its values
    "US": Struct("<H"),
    "SS": Struct("<h"),
    "UL": Struct("<I"),
    "SL": Struct("<i"),
    "UV": Struct("<Q"),
    "SV": Struct("<q"),
    "FL": Struct("<f"),
    "FD": Struct("<d"),
}
TEXTS: Final = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
)
SINGLE_VALUED: Final = frozenset({"LT", "ST", "UR", "UT"})
"""VRs in which a backslash is a character like others (PS3.5 6.4)."""

_PADDING: Final = " \0"
"""NUL is right for UI only, but common after all others."""


def find(elements: Iterable[Element], tag: int) -> Element | None:
    """The first element with that tag, at the top level."""
    for element in elements:
        if element.tag == tag:
            return element
    return None


def encodings_in(elements: Iterable[Element], inherited: Encodings = ISO_IR_6) -> Encodings:
    """The character sets of a data set (PS3.3 C.12.1.1.2); `inherited` holds where it names none (PS3.5
    7.5.3)."""
    element = find(elements, SPECIFIC_CHARACTER_SET)
    if element is None or isinstance(element.value, (list, tuple)):
        return inherited
    return encodings_of(bytes(element.value), inherited)


def strings(value: Bytes, vr: str, encodings: Encodings) -> list[str]:
    """The values of a text VR, without padding; an empty list for none, and "" for an empty one among
    several.

    Leading spaces are kept in LT, ST, UC and UT, where they count (PS3.5 Table 6.2-1).
    """
    text = decode(value if isinstance(value, bytes) else bytes(value), encodings, vr)
    if vr in SINGLE_VALUED:
        text = text.rstrip(_PADDING)
        return [text] if text else []
    strip = str.rstrip if vr == "UC" else str.strip
    if "\\" not in text:
        text = strip(text, _PADDING)
        return [text] if text else []
    return [strip(one, _PADDING) for one in text.split("\\")]


def numbers(value: Bytes, vr: str) -> tuple[int | float, ...]:
    """The values of a VR of `NUMBERS`."""
    one = NUMBERS[vr]
    if len(value) == one.size:
        return one.unpack(value)
    return unpack_from(f"<{len(value) // one.size}{one.format[1:]}", value)


def tags(value: Bytes) -> list[str]:
    """The values of VR AT, each as eight hexadecimal digits."""
    halves = unpack_from(f"<{len(value) // 4 * 2}H", value)
    return [f"{group:04X}{number:04X}" for group, number in zip(halves[::2], halves[1::2], strict=True)]


def text_of(element: Element, encodings: Encodings = ISO_IR_6) -> str:
    """The value of an element as text, several joined by backslashes; "" for sequences and bulk data."""
    value, vr = element.value, element.vr
    if isinstance(value, (list, tuple)):
        return ""
    if vr in TEXTS:
        return "\\".join(strings(value, vr, encodings))
    if vr in NUMBERS:
        return "\\".join(map(str, numbers(value, vr)))
    return "\\".join(tags(value)) if vr == "AT" else ""


def first_value(elements: Iterable[Element], tag: int, encodings: Encodings = ISO_IR_6) -> str:
    """The first value of the element with that tag as text; "" where there is none."""
    element = find(elements, tag)
    if element is None:
        return ""
    text = text_of(element, encodings)
    return text if element.vr in SINGLE_VALUED else text.partition("\\")[0]
