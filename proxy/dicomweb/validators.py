"""Entity tags, which save sending again what a client has (RFC 9110 8.8.3 and 13.1)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final

from aiohttp import web

from proxy.archive.cache.index import CachedInstance

REVALIDATE: Final = {"Cache-Control": "private, no-cache", "Vary": "Accept"}
"""Headers for an answer with an entity tag: patients' data for one client, asked for anew each time."""


def etag_of_all(instances: Iterable[CachedInstance], form: str = "") -> str:
    """A weak tag for an answer of several instances in some form, whatever their order; made of the contents alone."""
    checksum, size, count = zlib.crc32(form.encode()), 0, 0
    for instance in sorted(instances, key=lambda instance: instance.etag):
        checksum = zlib.crc32(instance.etag.encode(), checksum)
        size += instance.size
        count += 1
    return f'W/"{checksum:08x}-{size:x}-{count}"'


def is_known(request: web.Request, etag: str) -> bool:
    """True when the client has it already (RFC 9110 13.1.2: compared weakly).

    Never for a range of what has a weak tag, which is never sent in ranges: browsers would cut the range out of what
    they have, boundaries and all (RFC 9111 3.4 asks for a strong tag).
    """
    if "Range" in request.headers and etag.startswith("W/"):
        return False
    value = etag.removeprefix("W/").strip('"')
    return any(known.value in ("*", value) for known in request.if_none_match or ())
