"""The DICOM Part 10 file header, both ways (PS3.10 7.1): preamble, prefix, File Meta Information.

Only group 0002 is read or written here. The data set behind it is never looked at: it passes through the
proxy as the archive sent it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

PREAMBLE_LENGTH: Final = 128
PREFIX: Final = b"DICM"

_META_START: Final = PREAMBLE_LENGTH + len(PREFIX)
_GROUP: Final = 0x0002
_UNDEFINED_LENGTH: Final = 0xFFFFFFFF

# Explicit VRs with two reserved bytes and a length of four (PS3.5 7.1.2).
_LONG_VRS: Final = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)

_GROUP_LENGTH: Final = 0x0000
_MEDIA_STORAGE_SOP_CLASS_UID: Final = 0x0002
_MEDIA_STORAGE_SOP_INSTANCE_UID: Final = 0x0003
_TRANSFER_SYNTAX_UID: Final = 0x0010
_IMPLEMENTATION_CLASS_UID: Final = 0x0012
_IMPLEMENTATION_VERSION_NAME: Final = 0x0013
_SOURCE_APPLICATION_ENTITY_TITLE: Final = 0x0016


class Part10Error(ValueError):
    """What was given is no Part 10 header, or cannot be put in one."""


class IncompleteHeaderError(Part10Error):
    """The header does not end within the bytes given. A caller that can get more may try again."""


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What the File Meta Information says of the data set behind it (PS3.10 7.1).

    The two SOP UIDs are empty when the file leaves them out, which writers in the field do.
    """

    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    data_set_offset: int
    """Bytes from the beginning of the file to the data set."""


def file_header(
    sop_class_uid: str,
    sop_instance_uid: str,
    transfer_syntax: str,
    *,
    source_aet: str | None = None,
    implementation_class_uid: str,
    implementation_version: str | None = None,
) -> bytes:
    """Return the bytes that make a Part 10 file of a data set in `transfer_syntax` (PS3.10 7.1).

    UIDs are written as they came, even where their form is wrong: the proxy hands on what the archive holds.

    Args:
        source_aet: AE title of the archive that sent the instance; None or empty leaves it out.
        implementation_version: at most 16 characters; None or empty leaves it out.

    Raises:
        Part10Error: a value outside ASCII or longer than its element can be.
    """
    elements = [
        _element(0x0001, b"OB", b"\x00\x01"),
        _text(_MEDIA_STORAGE_SOP_CLASS_UID, b"UI", sop_class_uid),
        _text(_MEDIA_STORAGE_SOP_INSTANCE_UID, b"UI", sop_instance_uid),
        _text(_TRANSFER_SYNTAX_UID, b"UI", transfer_syntax),
        _text(_IMPLEMENTATION_CLASS_UID, b"UI", implementation_class_uid),
    ]
    if implementation_version:
        elements.append(_text(_IMPLEMENTATION_VERSION_NAME, b"SH", implementation_version, limit=16))
    if source_aet:
        elements.append(_text(_SOURCE_APPLICATION_ENTITY_TITLE, b"AE", source_aet, limit=16))
    body = b"".join(elements)
    group_length = _element(_GROUP_LENGTH, b"UL", struct.pack("<I", len(body)))
    return bytes(PREAMBLE_LENGTH) + PREFIX + group_length + body


def read_header(data: bytes) -> FileMeta:
    """Read the header at the beginning of a Part 10 file; the first 64 KiB of the file are enough.

    Tolerant where files in the field are wrong: a group length that is missing or false, VRs left out,
    values padded with NUL or spaces, absent SOP UIDs. Work and memory are bounded by `data`.

    Raises:
        IncompleteHeaderError: the header goes on past the end of `data`.
        Part10Error: no Part 10 file, a damaged header, or no Transfer Syntax UID in it.
    """
    if len(data) < _META_START and PREFIX.startswith(data[PREAMBLE_LENGTH:]):
        raise _incomplete(data)
    if data[PREAMBLE_LENGTH:_META_START] != PREFIX:
        raise Part10Error("no DICOM Part 10 file: 'DICM' is missing after a preamble of 128 bytes")
    values: dict[int, str] = {}
    end = _META_START
    for element, value_start, end in _meta_elements(data):
        if element in (_MEDIA_STORAGE_SOP_CLASS_UID, _MEDIA_STORAGE_SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID):
            raw = data[value_start:end].decode("ascii", errors="replace")
            values.setdefault(element, raw.strip("\0 "))
    if not values.get(_TRANSFER_SYNTAX_UID):
        raise Part10Error("the File Meta Information has no Transfer Syntax UID (0002,0010)")
    return FileMeta(
        transfer_syntax=values[_TRANSFER_SYNTAX_UID],
        sop_class_uid=values.get(_MEDIA_STORAGE_SOP_CLASS_UID, ""),
        sop_instance_uid=values.get(_MEDIA_STORAGE_SOP_INSTANCE_UID, ""),
        data_set_offset=end,
    )


def _meta_elements(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (element number, start of value, end of value) for each element of group 0002 in `data`.

    The group ends where another begins. The group length is believed only where `data` ends with an
    element of the group, to tell a file of a header alone from one of which more is to come.
    """
    position = _META_START
    announced_end: int | None = None
    while position + 2 <= len(data):
        if int.from_bytes(data[position : position + 2], "little") != _GROUP:
            return
        element, start, length = _element_header(data, position)
        if length == _UNDEFINED_LENGTH:
            raise Part10Error(f"element (0002,{element:04x}) has an undefined length")
        position = start + length
        if position > len(data):
            break
        if element == _GROUP_LENGTH and length == 4:
            announced_end = position + int.from_bytes(data[start:position], "little")
        yield element, start, position
    if position != announced_end or position > len(data):
        raise _incomplete(data)


def _element_header(data: bytes, position: int) -> tuple[int, int, int]:
    """Return (element number, start of the value, its length) of the element at `position`."""
    header = data[position : position + 12]
    if len(header) < 8 or (header[4:6] in _LONG_VRS and len(header) < 12):
        raise _incomplete(data)
    element = int.from_bytes(header[2:4], "little")
    vr = header[4:6]
    if vr in _LONG_VRS:
        return element, position + 12, int.from_bytes(header[8:12], "little")
    if vr.isalpha() and vr.isupper():
        return element, position + 8, int.from_bytes(header[6:8], "little")
    # Some writers encode the group in Implicit VR against PS3.10 7.1: the length then follows the tag.
    return element, position + 8, int.from_bytes(header[4:8], "little")


def _incomplete(data: bytes) -> IncompleteHeaderError:
    return IncompleteHeaderError(f"the DICOM Part 10 header does not end within {len(data)} bytes")


def _text(element: int, vr: bytes, value: str, *, limit: int = 0xFFFE) -> bytes:
    if not value.isascii() or len(value) > limit:
        raise Part10Error(f"the value for (0002,{element:04x}) is not ASCII, or is over {limit} characters")
    encoded = value.encode("ascii")
    if len(encoded) % 2:
        encoded += b"\0" if vr == b"UI" else b" "
    return _element(element, vr, encoded)


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    tag = struct.pack("<HH", _GROUP, element)
    if vr in _LONG_VRS:
        return tag + vr + struct.pack("<HI", 0, len(value)) + value
    return tag + vr + struct.pack("<H", len(value)) + value
