"""An instance that is being uploaded: its Part 10 header, and which study it is of, read off while it arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from proxy.archive.spool.spool import InstanceInfo
from proxy.dataset.part10 import FileMeta, IncompleteHeaderError, Part10Error, read_header
from proxy.dataset.peek import UidPeek
from proxy.dicomweb.uids import is_valid_uid

MAX_HEADER: Final = 64 * 1024
"""Bytes of a Part 10 header, which has some hundred; only private information in it can make it longer."""


class NotDicomError(ValueError):
    """The part is no DICOM instance that could be stored: no Part 10 file, or one that does not say what it is."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the first bytes of an instance tell, and those of them that belong to the data set."""

    info: InstanceInfo
    head: list[bytes]


async def read_beginning(part: AsyncIterator[bytes]) -> Beginning:
    """Read as much of a Part 10 file as tells its UIDs. Raises `NotDicomError`."""
    meta, rest = await _read_header(part)
    scanner = UidPeek(meta.transfer_syntax)
    head = [rest] if rest else []
    if not (rest and scanner.feed(rest)):
        async for chunk in part:
            head.append(chunk)
            if scanner.feed(chunk):
                break
    # What the data set says counts: archives go by it, and the command has to agree with it.
    sop_instance = scanner.sop_instance or meta.sop_instance_uid
    if not all(map(is_valid_uid, (meta.transfer_syntax, meta.sop_class_uid, sop_instance))):
        raise NotDicomError
    info = InstanceInfo(
        meta.sop_class_uid,
        sop_instance,
        meta.transfer_syntax,
        scanner.study,
        scanner.series,
        scanner.patient or "",
    )
    return Beginning(info, head)


async def _read_header(part: AsyncIterator[bytes]) -> tuple[FileMeta, bytes]:
    """The header, and what has come of the data set behind it."""
    data = b""
    async for chunk in part:
        data += chunk
        try:
            meta = read_header(data)
        except IncompleteHeaderError:
            if len(data) > MAX_HEADER:
                break
        except Part10Error:
            break
        else:
            return meta, data[meta.data_set_offset :]
    raise NotDicomError
