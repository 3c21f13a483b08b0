"""Frames of an instance (PS3.18 10.4.1.1.6), read by offset out of the file that it is or becomes.

They go out as they are stored, native ones little endian; nothing of the instance but the frames is read, beside the
headers of its elements. Where the client wants compressed ones in Explicit VR Little Endian, `transcode` decodes them.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

from aiohttp import web

from proxy.archive.errors import ArchiveError, ArchiveFailedError, IncompleteError, NotFoundError
from proxy.archive.retrieval.delivery import Cached
from proxy.archive.retrieval.target import Target
from proxy.dataset.pixels import Frame, Frames, Span, find_frames
from proxy.dataset.reader import DatasetError
from proxy.dicomweb import multipart
from proxy.dicomweb.accept import NotAcceptable, parse_accept
from proxy.dicomweb.errors import BadRequest, Unavailable
from proxy.dicomweb.frame_forms import Form, frame_forms
from proxy.dicomweb.keys import archives_of
from proxy.dicomweb.localfile import LocalFile, inflated, local_file
from proxy.dicomweb.retrieving import retrieved
from proxy.dicomweb.sendfile import FileTooShortError, send_file
from proxy.dicomweb.streaming import cut, write
from proxy.dicomweb.transcode import decoded_frame
from proxy.dicomweb.urls import base_url, resource_path, target_of
from proxy.dicomweb.validators import REVALIDATE, is_known
from proxy.threads import in_thread

MAX_FRAMES: Final = 4096
"""Frames in one request; more hardly fit in a request line, which aiohttp bounds at 8,190 bytes."""

READ_SIZE: Final = 256 * 1024
"""Bytes of a frame that are put in order at once."""

SMALL_SPAN: Final = 64 * 1024
"""A piece of a file up to this size is joined with what stands before it: one write costs less than sendfile."""

KNOWN_FILES: Final = 512
"""Files of the cache whose frames are remembered: whoever scrolls through a multi-frame image asks for one at a
time."""

KNOWN_ENTRIES: Final = 2_000_000
"""Entries in the tables of all of these, of about 16 bytes."""

_NUMBERS: Final = re.compile(r"[0-9]{1,10}(?:,[0-9]{1,10})*")

FileKey = tuple[int, int, int]


class KnownFrames:
    """Where the frames are in files that were asked for lately, by inode, time of change and size."""

    def __init__(self) -> None:
        self._known: OrderedDict[FileKey, Frames] = OrderedDict()
        self._entries = 0

    def get(self, key: FileKey) -> Frames | None:
        """What is remembered of a file."""
        frames = self._known.get(key)
        if frames is not None:
            self._known.move_to_end(key)
        return frames

    def add(self, key: FileKey, frames: Frames) -> None:
        """Remember it, and forget what was asked for longest ago where that is too much."""
        if key in self._known:
            return
        self._known[key] = frames
        self._entries += frames.weight
        while len(self._known) > KNOWN_FILES or self._entries > KNOWN_ENTRIES:
            _, forgotten = self._known.popitem(last=False)
            self._entries -= forgotten.weight


_known: Final = KnownFrames()


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked for, and where it is. `stored` is the instance as it came, `local` with its data set inflated."""

    request: web.Request
    target: Target
    numbers: Sequence[int]
    stored: LocalFile
    local: LocalFile
    frames: Sequence[Frame]


async def retrieve(request: web.Request) -> web.StreamResponse:
    """The handler for a list of frames."""
    target = target_of(request)
    numbers = frame_numbers(request.match_info["frames"])
    accept = parse_accept(request.headers.get("Accept"), request.query.get("accept"))
    archives = archives_of(request)
    async with retrieved(request, target) as delivery, local_file(delivery, archives) as stored:
        forms = frame_forms(accept, stored.info.transfer_syntax, single=len(numbers) == 1)
        headers = {"X-Cache": "HIT" if isinstance(delivery, Cached) else "MISS"}
        try:
            async with inflated(stored) as local:
                frames = await _located(stored, local, numbers)
                return await _send(_Asked(request, target, numbers, stored, local, frames), forms, headers)
        except DatasetError as error:
            raise ArchiveFailedError(f"the data set that the archive sent cannot be read: {error}") from error


def frame_numbers(text: str) -> list[int]:
    """The numbers of a frame list, as the client has it: in its order, and repeated where it repeats them."""
    if _NUMBERS.fullmatch(text) is None:
        raise BadRequest("frames are given by their numbers, from 1 on, with commas between")
    numbers = [int(number) for number in text.split(",")]
    if len(numbers) > MAX_FRAMES:
        raise BadRequest(f"more than {MAX_FRAMES} frames in one request")
    return numbers


async def _located(stored: LocalFile, local: LocalFile, numbers: Sequence[int]) -> list[Frame]:
    """The frames of these numbers. Raises `NotFoundError` for one that the instance does not have, `DatasetError`."""
    frames = await _frames_of(stored, local)
    if frames is None:
        raise NotFoundError("the instance has no pixel data")
    if not all(1 <= number <= frames.count for number in numbers):
        have = "1 frame" if frames.count == 1 else f"{frames.count} frames"
        raise NotFoundError(f"the instance has {have}, counted from 1, and not all that were asked for")
    found = {number: frames.frame(number) for number in set(numbers)}
    return [found[number] for number in numbers]


async def _frames_of(stored: LocalFile, local: LocalFile) -> Frames | None:
    """Where the frames are in `local`, as it is remembered of the file of the cache that `stored` is."""
    status = os.fstat(stored.file.fileno())
    key = (status.st_ino, status.st_mtime_ns, status.st_size)
    frames = _known.get(key) if stored.etag is not None else None
    if frames is None:
        syntax = local.info.transfer_syntax
        try:
            frames = await in_thread(find_frames, local.file.fileno(), local.header_size, local.size, syntax)
        except OSError as error:
            raise IncompleteError(f"the instance cannot be read: {error.strerror}") from error
        if frames is not None and stored.etag is not None:
            _known.add(key, frames)
    return frames


# --- the answer ------------------------------------------------------------------------------------------------------


async def _send(asked: _Asked, forms: Sequence[Form], headers: dict[str, str]) -> web.StreamResponse:
    """Send the frames in the first form that is possible. Raises `NotAcceptable` where none is."""
    refusal: NotAcceptable | None = None
    for form in forms:
        headers |= _validators(asked.stored, form)
        if "ETag" in headers and is_known(asked.request, headers["ETag"]):
            return web.Response(status=304, headers=headers)
        if not form.is_decoded:
            return await _answer(asked, form, headers, _StoredFrames(asked))
        try:
            first = await decoded_frame(asked.request.app, asked.stored, asked.numbers[0])
        except NotAcceptable as error:
            refusal = refusal or error
        else:
            return await _answer(asked, form, headers, _DecodedFrames(asked, first))
    assert refusal is not None
    raise refusal


def _validators(stored: LocalFile, form: Form) -> dict[str, str]:
    if stored.etag is None:
        return {}
    etag = f'"{stored.etag}-{zlib.crc32(str(form).encode()):08x}"'
    return REVALIDATE | {"ETag": f"W/{etag}" if form.multipart else etag}


class _StoredFrames:
    """Frames as they are in the file, in order."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self.size: int | None = sum(frame.size for frame in asked.frames)
        """Bytes of all of them."""

    async def write(self, body: _Body, index: int) -> None:
        """Write the frame that was asked for at that place."""
        frame, file = self._asked.frames[index], self._asked.local.file
        if not frame.is_stored_so:
            for start in range(0, frame.size, READ_SIZE):
                await body.write(await in_thread(frame.read, file.fileno(), start, READ_SIZE))
            return
        for span in frame.spans:
            await body.write_span(file, span)


class _DecodedFrames:
    """Frames that are decoded one after the other, the first having been decoded already."""

    def __init__(self, asked: _Asked, first: bytes) -> None:
        self._asked = asked
        self._first: bytes | None = first
        self.size: int | None = len(first) if len(asked.numbers) == 1 else None
        """Bytes of all of them, where that is known."""

    async def write(self, body: _Body, index: int) -> None:
        """Write the frame that was asked for at that place."""
        frame, self._first = self._first, None
        if frame is None:
            frame = await decoded_frame(self._asked.request.app, self._asked.stored, self._asked.numbers[index])
        await body.write(frame)


class _Body:
    """What goes out. Small pieces are joined up to `SMALL_SPAN`, large ones go from the file to the connection."""

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self._request = request
        self._response = response
        self._pending: list[bytes] = []
        self._size = 0

    async def write(self, data: bytes) -> None:
        """Write some bytes, sooner or later."""
        self._pending.append(data)
        self._size += len(data)
        if self._size > SMALL_SPAN:
            await self.flush()

    async def write_span(self, file: BinaryIO, span: Span) -> None:
        """Write a piece of a file."""
        if span.length > SMALL_SPAN:
            await self.flush()
            await send_file(self._request, self._response, file, span.length, span.offset)
            return
        data = os.pread(file.fileno(), span.length, span.offset)
        if len(data) < span.length:
            raise FileTooShortError
        await self.write(data)

    async def flush(self) -> None:
        """Write what has not been written yet."""
        if self._pending:
            data, self._pending, self._size = b"".join(self._pending), [], 0
            await write(self._request, self._response, data)


async def _answer(
    asked: _Asked, form: Form, headers: dict[str, str], frames: _StoredFrames | _DecodedFrames
) -> web.StreamResponse:
    heads, end, headers["Content-Type"] = _framing(asked, form)
    response = web.StreamResponse(headers=headers)
    if frames.size is not None:
        response.content_length = sum(map(len, heads)) + frames.size + len(end)
    await response.prepare(asked.request)
    body = _Body(asked.request, response)
    try:
        for index, head in enumerate(heads):
            await body.write(head)
            await frames.write(body, index)
        await body.write(end)
        await body.flush()
        await response.write_eof()
    except ConnectionError:
        raise  # the client has left
    except (ArchiveError, DatasetError, FileTooShortError, NotAcceptable, Unavailable, OSError) as error:
        cut(asked.request, error)
    return response


def _framing(asked: _Asked, form: Form) -> tuple[list[bytes], bytes, str]:
    """What stands before each frame, what at the end, and the media type of the whole (PS3.18 8.7.1)."""
    if not form.multipart:
        return [b""], b"", f"{form.media_type}; transfer-syntax={form.transfer_syntax}"
    boundary = multipart.new_boundary()
    target = asked.target
    place = base_url(asked.request) + resource_path(target.study, target.series, target.instance)
    heads = [
        multipart.part_header(
            boundary,
            first=not index,
            transfer_syntax=form.transfer_syntax,
            content_location=f"{place}/frames/{number}",
            part_type=form.media_type,
        )
        for index, number in enumerate(asked.numbers)
    ]
    return heads, multipart.closing(boundary), multipart.content_type(boundary, form.media_type)
