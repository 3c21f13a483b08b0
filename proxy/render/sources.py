"""Part 10 files as the jobs read them: their headers, and deflated ones inflated, with limits that pydicom lacks."""

from __future__ import annotations

import io
from struct import pack
from typing import BinaryIO, Final

from proxy.dataset.part10 import PREAMBLE_LENGTH, PREFIX, FileMeta, Part10Error, read_header
from proxy.dataset.reader import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    DatasetError,
    Element,
    Limits,
    inflate,
    parse,
)
from proxy.render.errors import NotPossibleError
from proxy.render.jobs import MAX_INSTANCE
from proxy.render.native import write_explicit

HEADER_READ: Final = 64 * 1024
"""Bytes at the beginning of a file that hold its header, which the proxy has made or checked itself."""

LIMITS: Final = Limits(elements=500_000, inflated=MAX_INSTANCE)
"""Of a data set that is read whole: 200 MB beside its bytes."""

TRANSFER_SYNTAX_UID: Final = 0x00020010


def meta_of(source: BinaryIO) -> FileMeta:
    """The header of a file that is at its beginning, also afterwards."""
    try:
        meta = read_header(source.read(HEADER_READ))
    except Part10Error as error:
        raise NotPossibleError("the instance is no DICOM file") from error
    source.seek(0)
    return meta


def explicit_header(header: bytes) -> bytes:
    """The same header, for a data set in Explicit VR Little Endian."""
    uid = EXPLICIT_VR_LITTLE_ENDIAN.encode()
    elements = [
        Element(each.tag, "UI", uid) if each.tag == TRANSFER_SYNTAX_UID else each
        for each in parse(header[PREAMBLE_LENGTH + len(PREFIX) :], EXPLICIT_VR_LITTLE_ENDIAN)
    ]
    body = io.BytesIO()
    write_explicit(elements, body.write, EXPLICIT_VR_LITTLE_ENDIAN)
    length = pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, body.tell())
    return bytes(PREAMBLE_LENGTH) + PREFIX + length + body.getvalue()


def inflated(source: BinaryIO) -> BinaryIO:
    """The file itself, or the same in Explicit VR Little Endian where its data set is deflated (PS3.5 A.5)."""
    meta = meta_of(source)
    if meta.transfer_syntax != DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        return source
    header, data = source.read(meta.data_set_offset), source.read()
    try:
        return io.BytesIO(explicit_header(header) + inflate(data, LIMITS))
    except DatasetError as error:
        raise NotPossibleError(f"the data set cannot be read: {error}") from error
