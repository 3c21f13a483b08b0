"""Whole instances in Explicit VR Little Endian (PS3.18 8.7.3.5.2)."""

from __future__ import annotations

import os
from typing import BinaryIO, Final

from pydicom import dcmread
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian

from proxy.dataset.part10 import FileMeta
from proxy.dataset.reader import DatasetError, parse
from proxy.render.errors import NotPossibleError
from proxy.render.jobs import MAX_INSTANCE, Result
from proxy.render.native import write_explicit
from proxy.render.sources import LIMITS, explicit_header, meta_of

TOO_LARGE: Final = f"instances of more than {MAX_INSTANCE >> 20} MiB are not transcoded"


def instance(source: BinaryIO, target: BinaryIO) -> Result:
    """Write a Part 10 file in Explicit VR Little Endian of one in another transfer syntax."""
    if os.fstat(source.fileno()).st_size > MAX_INSTANCE:
        raise NotPossibleError(TOO_LARGE)
    meta = meta_of(source)
    syntax = UID(meta.transfer_syntax)
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise NotPossibleError("a private transfer syntax cannot be transcoded")
    if syntax.is_encapsulated:
        _write_decompressed(source, target)
    else:
        _write_native(source, target, meta)
    target.flush()
    return Result({"size": os.fstat(target.fileno()).st_size})


def _write_native(source: BinaryIO, target: BinaryIO, meta: FileMeta) -> None:
    target.write(explicit_header(source.read(meta.data_set_offset)))
    try:
        elements = parse(source.read(), meta.transfer_syntax, limits=LIMITS)
    except DatasetError as error:
        raise NotPossibleError(f"the data set cannot be read: {error}") from error
    write_explicit(elements, target.write, meta.transfer_syntax)


def _write_decompressed(source: BinaryIO, target: BinaryIO) -> None:
    data_set = dcmread(source)
    if "PixelData" in data_set:
        from proxy.render.decompress import decompress  # noqa: PLC0415 - needs numpy, which the rest does not

        decompress(data_set)
    data_set.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(target, data_set, implicit_vr=False, little_endian=True, enforce_file_format=True)
