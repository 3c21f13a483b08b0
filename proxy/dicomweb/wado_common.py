"""What answers to a retrieval have in common, wherever the instances come from."""

from __future__ import annotations

from proxy.archive.retrieval.target import Target
from proxy.archive.spool.spool import InstanceInfo
from proxy.dicomweb import multipart
from proxy.dicomweb.urls import resource_path


def instance_type(info: InstanceInfo) -> str:
    """The media type of an instance as a Part 10 file (PS3.18 8.7.3.3)."""
    return f"application/dicom; transfer-syntax={info.transfer_syntax}"


def part_header(
    boundary: str, info: InstanceInfo, target: Target, base: str, *, first: bool, description: str | None = None
) -> bytes:
    """What stands before an instance in a multipart answer; `base` is the proxy's own address, `description` says what
    was done to the instance.

    Raises ValueError for UIDs that have no place in a header.
    """
    series = info.series or target.series
    location = base + resource_path(target.study, series, info.sop_instance_uid) if series else None
    return multipart.part_header(
        boundary,
        first=first,
        transfer_syntax=info.transfer_syntax,
        content_location=location,
        description=description,
    )


def partial_headers(missing: int) -> tuple[int, dict[str, str]]:
    """The status, and the headers that go with it: 206 when instances are known to be missing (PS3.18 10.4.3)."""
    if not missing:
        return 200, {}
    text = f"{missing} of the instances could not be sent by the archive and are missing"
    return 206, {"Warning": f'299 dicomweb-proxy "{text}"'}
