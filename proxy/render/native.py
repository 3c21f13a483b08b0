"""Data sets without compressed pixels to Explicit VR Little Endian (PS3.5 A.2): elements are written anew around the
same values, and no value is interpreted. Needs nothing but Python.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from struct import pack
from typing import Final

from proxy.dataset.reader import EXPLICIT_VR_BIG_ENDIAN, LONG_VRS, Bytes, Element

BITS_ALLOCATED: Final = 0x00280100
PIXEL_DATA: Final = 0x7FE00010

Write = Callable[[Bytes], object]

_LONG: Final = frozenset(LONG_VRS.values())
_MOST_SHORT: Final = 0xFFFE
_CELLS: Final = {32: "I", 64: "Q"}
_ITEM: Final = pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
_ITEM_END: Final = pack("<HHI", 0xFFFE, 0xE00D, 0)
_SEQUENCE_END: Final = pack("<HHI", 0xFFFE, 0xE0DD, 0)


def write_explicit(elements: Iterable[Element], write: Write, transfer_syntax: str) -> None:
    """Write elements, read from a data set in `transfer_syntax`, in Explicit VR Little Endian.

    Sequences get undefined lengths (PS3.5 7.5.1), so that none has to be written before its length is known. Group
    lengths are left out, since they would be wrong (PS3.5 7.2).
    """
    big_endian = transfer_syntax == EXPLICIT_VR_BIG_ENDIAN
    bits = 0
    for element in elements:
        if element.tag & 0xFFFF == 0:
            continue
        if isinstance(element.value, list):
            _write_sequence(element, element.value, write, transfer_syntax)
            continue
        if isinstance(element.value, tuple):
            raise ValueError("encapsulated pixel data in a native transfer syntax")
        value = element.value
        if element.tag == BITS_ALLOCATED:
            bits = int.from_bytes(value[:2], "little")
        if element.tag == PIXEL_DATA and big_endian and element.vr == "OW":
            value = _whole_cells(value, bits)
        _write_element(element.tag, element.vr, value, write)


def _whole_cells(value: Bytes, bits: int) -> Bytes:
    """Pixels of more than 16 bits, of which the reader has turned each half of 16 as it does with all of OW.

    PS3.5 8.1.1 has cells, and it is cells that writers of big endian turn.
    """
    if bits not in _CELLS or len(value) % (bits // 8):
        return value
    halves = array("H", bytes(value))
    halves.byteswap()
    cells = array(_CELLS[bits], halves.tobytes())
    cells.byteswap()
    return cells.tobytes()


def _write_sequence(element: Element, items: list[list[Element]], write: Write, transfer_syntax: str) -> None:
    write(_head(element.tag, "SQ", 0xFFFFFFFF))
    for item in items:
        write(_ITEM)
        write_explicit(item, write, transfer_syntax)
        write(_ITEM_END)
    write(_SEQUENCE_END)


def _write_element(tag: int, vr: str, value: Bytes, write: Write) -> None:
    if vr not in _LONG and len(value) > _MOST_SHORT:
        vr = "UN"  # PS3.5 6.2.2, note 1: implicit VR can hold more than a short length can say
    odd = len(value) % 2
    write(_head(tag, vr, len(value) + odd))
    write(value)
    if odd:
        write(b"\0")


def _head(tag: int, vr: str, length: int) -> bytes:
    group, number = tag >> 16, tag & 0xFFFF
    if vr in _LONG:
        return pack("<HH2sHI", group, number, vr.encode(), 0, length)
    return pack("<HH2sH", group, number, vr.encode(), length)
