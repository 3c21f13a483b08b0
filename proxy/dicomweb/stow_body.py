"""The body of an upload: what its Content-Type says it is, and its bytes with a bound on their number and on stalls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from email.message import Message
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from proxy.archive.cache.depot import MEGABYTE
from proxy.dicomweb.errors import UploadError
from proxy.dicomweb.multipart import DICOM
from proxy.dicomweb.multipart_reader import MAX_BOUNDARY, MultipartReader
from proxy.dicomweb.streaming import CLIENT_STALL_SECONDS

PROGRESS: Final = 64 * 1024
"""Bytes that count as progress: a client that sends fewer in `CLIENT_STALL_SECONDS` would hold an association of the
archive's for ever."""

MAX_EPILOGUE: Final = 64 * 1024
"""Bytes behind the closing boundary that are read and dropped, so that the connection can be used again."""

TAKEN: Final = f'multipart/related; type="{DICOM}", or {DICOM} for one instance'


def boundary_of(request: web.Request) -> str | None:
    """The boundary of a multipart body; None where the body is one instance (PS3.18 10.5.1.2, RFC 2387).

    A multipart body without `type`, which RFC 2387 asks for, is taken for one of DICOM. Raises `UploadError`.
    """
    header = Message()
    header["Content-Type"] = request.headers.get("Content-Type", "")
    media_type = header.get_content_type()
    if media_type == DICOM:
        return None
    root = header.get_param("type", DICOM)
    if media_type != "multipart/related" or not isinstance(root, str) or root.lower() != DICOM:
        raise UploadError(415, f"an upload has to be {TAKEN}")
    boundary = header.get_boundary()
    if not boundary or len(boundary) > MAX_BOUNDARY:
        raise UploadError(400, "Content-Type names no boundary, or one that is too long")
    return boundary


class UploadBody:
    """The bytes of a request's body, as they arrive. Raises `UploadError` for too many, and for a client that stalls.

    Only the time counts in which the client is waited for: an archive that is slow holds it back.
    """

    def __init__(self, request: web.Request, max_bytes: int) -> None:
        """Raises `UploadError` when the request announces more than `max_bytes`."""
        self._content = request.content
        self._max_bytes = max_bytes
        self._received = 0
        self._since_progress = 0
        self._patience = CLIENT_STALL_SECONDS
        if (request.content_length or 0) > max_bytes:
            raise self._too_large()

    def __aiter__(self) -> UploadBody:
        return self

    async def __anext__(self) -> bytes:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(self._patience):
                chunk = await self._content.readany()
        except TimeoutError:
            raise UploadError(408, f"less than {PROGRESS} bytes came in {CLIENT_STALL_SECONDS:g} s") from None
        except RequestPayloadError:
            raise UploadError(400, "the body is not in the coding that its header names") from None
        if not chunk:
            raise StopAsyncIteration
        self._note(len(chunk), loop.time() - started)
        return chunk

    def _note(self, size: int, seconds: float) -> None:
        self._received += size
        if self._received > self._max_bytes:
            raise self._too_large()
        self._since_progress += size
        self._patience -= seconds
        if self._since_progress >= PROGRESS:
            self._since_progress = 0
            self._patience = CLIENT_STALL_SECONDS

    def _too_large(self) -> UploadError:
        return UploadError(413, f"an upload may have {self._max_bytes // MEGABYTE} MB (key: maxUploadMB)")

    async def drain(self) -> None:
        """Drop the rest, as far as `MAX_EPILOGUE`."""
        end = self._received + MAX_EPILOGUE
        async for _ in self:
            if self._received > end:
                return


async def parts_of(body: UploadBody, boundary: str | None) -> AsyncGenerator[AsyncIterator[bytes], None]:
    """The instances of an upload, each as an iterator over its bytes; `UploadError` for what is not well formed."""
    if boundary is None:
        yield body
        return
    async with aclosing(MultipartReader(body, boundary).parts()) as parts:
        async for part in parts:
            yield part
    await body.drain()
