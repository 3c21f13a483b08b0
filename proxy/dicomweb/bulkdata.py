"""Bulk data: the values that metadata refers to (PS3.18 10.4.1.1.5), read out of the instance by offset.

A value is sent as it is stored, little endian (PS3.18 8.7.3.3.3), alone or as a part; alone, also ranges of it. An
encapsulated one (PS3.5 A.4) is sent as a part for each fragment behind the Basic Offset Table; frames are asked for as
frames.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from struct import unpack
from typing import Final

from aiohttp import web

from proxy.archive.errors import ArchiveFailedError, NotFoundError
from proxy.archive.retrieval.delivery import Cached
from proxy.dataset.reader import UNITS, DatasetError, Element, little_endian
from proxy.dataset.skim import BULK_VRS, Bulk, Path, skim_file
from proxy.dataset.values import find, first_value
from proxy.dicomweb import multipart
from proxy.dicomweb.accept import Choice, Offer, choose, parse_accept
from proxy.dicomweb.errors import BadRequest, error_response
from proxy.dicomweb.keys import archives_of
from proxy.dicomweb.localfile import LocalFile, inflated, local_file
from proxy.dicomweb.metadata import LIMITS, written_path
from proxy.dicomweb.retrieving import retrieved
from proxy.dicomweb.sendfile import FileTooShortError, send_file
from proxy.dicomweb.streaming import cut, write
from proxy.dicomweb.urls import target_of
from proxy.dicomweb.validators import REVALIDATE, is_known
from proxy.threads import in_thread

OCTET_STREAM: Final = "application/octet-stream"

READ_SIZE: Final = 256 * 1024
"""Bytes of a value that are read at once; a multiple of every unit that changes places in big endian."""

MAX_FRAGMENTS: Final = 100_000
"""Fragments of a value that are sent as parts: an hour of video frames, each in one."""

ENCAPSULATED_DOCUMENT: Final = 0x00420011
MIME_TYPE_OF_ENCAPSULATED_DOCUMENT: Final = 0x00420012
ENCAPSULATED_DOCUMENT_LENGTH: Final = 0x00420015

_LARGEST_UNIT: Final = 8

_RANGE: Final = re.compile(r"bytes=(?=.*[0-9])([0-9]{0,18})-([0-9]{0,18})")
_PATH: Final = re.compile(r"(?:[0-9A-Fa-f]{8}/[0-9]{1,6}/){0,64}[0-9A-Fa-f]{8}")
_MEDIA_TYPE: Final = re.compile(r"[a-z]+/[a-z0-9.+-]{1,100}")


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of the data set: its offset there, and how many bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Value:
    """What was asked for, in a file: one span, or several for the fragments of an encapsulated value.

    `vr` is that of a big endian value, else empty. `media_type` is what the value says of itself.
    """

    local: LocalFile
    spans: Sequence[Span]
    vr: str = ""
    media_type: str = OCTET_STREAM
    encapsulated: bool = False
    inline: bytes | None = None
    """The value where it was small enough to be read with the metadata; there is one span then."""


async def retrieve(request: web.Request) -> web.StreamResponse:
    """The handler for a value, whose path is that of `metadata.written_path`."""
    target = target_of(request)
    path = _path_of(request.match_info["path"])
    archives = archives_of(request)
    async with retrieved(request, target) as delivery, local_file(delivery, archives) as stored:
        headers = {"X-Cache": "HIT" if isinstance(delivery, Cached) else "MISS"}
        try:
            async with inflated(stored) as local:
                value = await in_thread(_find, local, path)
                return await _send(request, path, value, headers)
        except DatasetError as error:
            raise ArchiveFailedError(f"the data set that the archive sent cannot be read: {error}") from error


async def _send(request: web.Request, path: Path, value: Value, headers: dict[str, str]) -> web.StreamResponse:
    accept = parse_accept(request.headers.get("Accept"), request.query.get("accept"))
    choice = choose(accept, _offers(value))
    if value.local.etag is not None:
        etag = f'"{value.local.etag}-{zlib.crc32(f"{written_path(path)} {choice.offer}".encode()):08x}"'
        headers |= REVALIDATE | {"ETag": f"W/{etag}" if choice.multipart else etag}
        if is_known(request, headers["ETag"]):
            return web.Response(status=304, headers=headers)
    if choice.multipart:
        return await _send_parts(request, value, choice, headers)
    return await _send_alone(request, value, choice, headers)


def _path_of(text: str) -> Path:
    if _PATH.fullmatch(text) is None:
        raise BadRequest(
            "the path of bulk data is that of a BulkDataURI: a tag in eight hexadecimal digits, or a sequence's tag, "
            "an item's number from 0, and so on, with slashes between"
        )
    return tuple(int(part, 10 if index % 2 else 16) for index, part in enumerate(text.split("/")))


def _offers(value: Value) -> list[Offer]:
    """Alone before in parts, as programs that do not know DICOMweb follow the URIs too."""
    media_types = dict.fromkeys((value.media_type, OCTET_STREAM))
    alone = [Offer(media_type) for media_type in media_types] if len(value.spans) == 1 else []
    return alone + [Offer(media_type, multipart=True) for media_type in media_types]


# --- where the value is ----------------------------------------------------------------------------------------------


def _find(local: LocalFile, path: Path) -> Value:
    """Where a value is. Raises `NotFoundError` and `DatasetError`; to be called in a thread."""
    skim = skim_file(local.file.fileno(), local.header_size, local.size, local.info.transfer_syntax, limits=LIMITS)
    elements = skim.elements()
    for tag, number in zip(path[:-1:2], path[1::2], strict=True):
        sequence = find(elements, tag)
        if sequence is None or not isinstance(sequence.value, list) or number >= len(sequence.value):
            raise NotFoundError("the instance has no such sequence or item")
        elements = sequence.value[number]
    # Of duplicates the last one counts, as in metadata.
    element = find(reversed(elements), path[-1])
    if element is None or isinstance(element.value, list) or element.vr not in BULK_VRS:
        raise NotFoundError("the instance has no bulk data at this path")
    bulk = skim.bulk.get(path)
    if bulk is None or element.value:
        value = element.value if not isinstance(element.value, tuple) else b""
        return Value(local, (Span(0, len(value)),), inline=bytes(value))
    if bulk.encapsulated:
        return Value(local, _fragments(local, bulk), encapsulated=True)
    if path[-1] == ENCAPSULATED_DOCUMENT:
        media_type, length = _document(elements, bulk.length)
        return Value(local, (Span(bulk.offset, length),), media_type=media_type)
    # A value that is no whole number of units stays as it is, as the reader has it.
    unit, _ = UNITS.get(element.vr, (1, ""))
    turned = bulk.turned and bulk.length % unit == 0
    return Value(local, (Span(bulk.offset, bulk.length),), element.vr if turned else "")


def _document(elements: list[Element], length: int) -> tuple[str, int]:
    """The media type of an encapsulated document, and its length without padding (PS3.3 C.24.2)."""
    media_type = first_value(elements, MIME_TYPE_OF_ENCAPSULATED_DOCUMENT).lower()
    stated = first_value(elements, ENCAPSULATED_DOCUMENT_LENGTH)
    if stated.isdecimal() and int(stated) == length - 1:
        length -= 1
    return media_type if _MEDIA_TYPE.fullmatch(media_type) else OCTET_STREAM, length


def _fragments(local: LocalFile, bulk: Bulk) -> list[Span]:
    """The fragments of an encapsulated value, without the Basic Offset Table, which is the first item."""
    spans: list[Span] = []
    offset, end = bulk.offset, bulk.offset + bulk.length
    while offset + 8 <= end:
        (length,) = unpack("<4xI", _read(local, Span(offset, 8)))
        spans.append(Span(offset + 8, min(length, end - offset - 8)))
        offset += 8 + length
        if len(spans) > MAX_FRAGMENTS:
            raise DatasetError(f"a value has more than {MAX_FRAGMENTS} fragments", offset)
    if len(spans) < 2:
        raise NotFoundError("the value has no fragments")
    return spans[1:]


# --- its bytes -------------------------------------------------------------------------------------------------------


async def _write(request: web.Request, response: web.StreamResponse, value: Value, span: Span, wanted: range) -> None:
    """Write a range of a span, little endian. Raises `FileTooShortError`."""
    if value.inline is not None:
        await write(request, response, value.inline[wanted.start : wanted.stop])
    elif value.vr:
        await _write_turned(request, response, value, span, wanted)
    else:
        start = value.local.header_size + span.offset + wanted.start
        await send_file(request, response, value.local.file, len(wanted), start)


async def _write_turned(
    request: web.Request, response: web.StreamResponse, value: Value, span: Span, wanted: range
) -> None:
    # Units that change places have to be read whole.
    first = wanted.start - wanted.start % _LARGEST_UNIT
    last = min(span.length, wanted.stop + -wanted.stop % _LARGEST_UNIT)
    for at in range(first, last, READ_SIZE):
        piece = await in_thread(_read, value.local, Span(span.offset + at, min(READ_SIZE, last - at)))
        part = little_endian(value.vr, piece)[max(0, wanted.start - at) : wanted.stop - at]
        await write(request, response, bytes(part))


def _read(local: LocalFile, span: Span) -> bytes:
    data = os.pread(local.file.fileno(), span.length, local.header_size + span.offset)
    if len(data) < span.length:
        raise FileTooShortError
    return data


async def _send_parts(
    request: web.Request, value: Value, choice: Choice, headers: dict[str, str]
) -> web.StreamResponse:
    boundary = multipart.new_boundary()
    media_type = choice.offer.media_type
    syntax = value.local.info.transfer_syntax if value.encapsulated else None
    heads = [
        multipart.part_header(boundary, first=not number, part_type=media_type, transfer_syntax=syntax)
        for number in range(len(value.spans))
    ]
    end = multipart.closing(boundary)
    headers["Content-Type"] = multipart.content_type(boundary, media_type)
    response = web.StreamResponse(headers=headers)
    response.content_length = sum(map(len, heads)) + sum(span.length for span in value.spans) + len(end)
    await response.prepare(request)
    try:
        for head, span in zip(heads, value.spans, strict=True):
            await write(request, response, head)
            await _write(request, response, value, span, range(span.length))
        await write(request, response, end)
        await response.write_eof()
    except FileTooShortError as error:
        cut(request, error)
    return response


async def _send_alone(
    request: web.Request, value: Value, choice: Choice, headers: dict[str, str]
) -> web.StreamResponse:
    (span,) = value.spans
    wanted = _range_of(request, span.length, headers.get("ETag"))
    if wanted is not None and not wanted:
        headers = {"Accept-Ranges": "bytes", "Content-Range": f"bytes */{span.length}"}
        return error_response(416, "the value has no such bytes", headers)
    response = web.StreamResponse(headers={**headers, "Accept-Ranges": "bytes"})
    response.content_type = choice.offer.media_type
    if wanted is None:
        wanted = range(span.length)
    else:
        response.set_status(206)
        response.headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{span.length}"
    response.content_length = len(wanted)
    await response.prepare(request)
    try:
        await _write(request, response, value, span, wanted)
        await response.write_eof()
    except FileTooShortError as error:
        cut(request, error)
    return response


def _range_of(request: web.Request, length: int, etag: str | None) -> range | None:
    """The bytes that `Range` asks for (RFC 9110 14), an empty range when they are not there; None for the whole value.

    That is also for several ranges, for what cannot be read, and when `If-Range` names another state of the value.
    """
    match = _RANGE.fullmatch(request.headers.get("Range", ""))
    if match is None or request.headers.get("If-Range", etag) != etag:
        return None
    first, last = match.groups()
    if not first:
        return range(max(0, length - int(last)), length)
    if last and int(last) < int(first):
        return None  # RFC 9110 14.1.1: as if it was not there
    return range(int(first), min(int(last) + 1, length) if last else length)
