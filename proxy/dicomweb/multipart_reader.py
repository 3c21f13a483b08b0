"""Reading a `multipart/related` body while it arrives (RFC 2046 5.1, RFC 2387; PS3.18 8.6.1.2).

A part is handed on in the pieces that the network delivers; nothing is kept but what may be the beginning of a
boundary. The fields of a part's header are passed over: whether it is DICOM is told by its content.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from proxy.dicomweb.errors import UploadError

MAX_PREAMBLE: Final = 64 * 1024
"""Bytes before the first boundary (RFC 2046 5.1.1). Real ones hold a line of text, or nothing."""

MAX_PART_HEADER: Final = 16 * 1024
"""Bytes of one part's header. Real ones have some hundred; twice what aiohttp allows a field of the request."""

MAX_BOUNDARY: Final = 200
"""Characters of a boundary. RFC 2046 allows 70, and some clients do not count."""

MAX_PADDING: Final = 64
"""Spaces and tabs between a boundary and the end of its line, which gateways may add (RFC 2046 5.1.1)."""


def malformed(what: str) -> UploadError:
    """The error of a body that is not what its Content-Type says, or ends too early; without its content."""
    return UploadError(400, f"the body is not well-formed multipart: {what}")


class MultipartReader:
    """Takes a body apart; `chunks` are its bytes as they arrive.

    Lines end in CR LF or, in bodies written by hand, in LF alone: as the first boundary's does, all others do.
    """

    def __init__(self, chunks: AsyncIterator[bytes], boundary: str) -> None:
        self._chunks = chunks
        self._dashes = b"--" + boundary.encode("utf-8")
        self._delimiter = b""  # with the line end before it, which belongs to it and not to the part
        self._data = b""
        self._pos = 0  # what is before it has been taken
        self._in_part = False
        self._closed = False

    async def parts(self) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """Each part as an iterator over its bytes, to be read before the next is asked for; the rest is dropped.

        Raises `UploadError`, as do the parts: one whose end does not come is never taken for whole.
        """
        await self._skip_preamble()
        while not self._closed:
            await self._skip_header()
            self._in_part = True
            async with aclosing(self._content()) as content:
                yield content
            if self._in_part:
                async with aclosing(self._content()) as rest:
                    async for _ in rest:
                        pass

    # --- between the parts -----------------------------------------------------------------------------------

    async def _skip_preamble(self) -> None:
        left = MAX_PREAMBLE
        while True:
            line = await self._line(left, "no boundary at the beginning of the body")
            left -= len(line) + 1
            text = line.rstrip(b" \t\r")
            if text in (self._dashes, self._dashes + b"--"):
                self._closed = text != self._dashes
                self._delimiter = (b"\r\n" if line.endswith(b"\r") else b"\n") + self._dashes
                return

    async def _skip_header(self) -> None:
        left = MAX_PART_HEADER
        while line := (await self._line(left, "the header of a part is too long")).rstrip(b"\r"):
            left -= len(line) + 1
            if b":" not in line and line[:1] not in (b" ", b"\t"):  # those go on with the field before
                raise malformed("the header of a part has a line that is no field")

    async def _line(self, limit: int, too_long: str) -> bytes:
        """The next line without its LF."""
        while (end := self._data.find(b"\n", self._pos)) < 0:
            if len(self._data) - self._pos > limit:
                raise malformed(too_long)
            await self._receive()
        line = self._data[self._pos : end]
        if len(line) > limit:
            raise malformed(too_long)
        self._pos = end + 1
        return line

    # --- within a part ---------------------------------------------------------------------------------------

    async def _content(self) -> AsyncGenerator[bytes, None]:
        """The bytes up to the next delimiter, which is taken too."""
        while self._in_part:
            found = self._data.find(self._delimiter, self._pos)
            # What may be the beginning of a delimiter stays until more has come.
            end = found if found >= 0 else max(self._pos, len(self._data) - len(self._delimiter) + 1)
            if end > self._pos:
                piece = self._data[self._pos : end]
                self._pos = end
                yield piece
            elif found < 0:
                await self._receive()
            elif await self._take_delimiter():
                self._in_part = False
            else:
                yield self._take(1)

    async def _take_delimiter(self) -> bool:
        """Take the delimiter that is next; False when it is not one, but content that begins as one does."""
        while True:
            start = self._pos + len(self._delimiter)
            tail = self._data[start : start + MAX_PADDING]
            padded = tail.lstrip(b" \t")
            if tail.startswith(b"--"):
                self._closed = True
                self._pos = start + 2
                return True
            for line_end in (b"\r\n", b"\n"):
                if padded.startswith(line_end):
                    self._pos = start + len(tail) - len(padded) + len(line_end)
                    return True
            if (tail != b"-" and padded not in (b"", b"\r")) or len(tail) == MAX_PADDING:
                return False
            await self._receive()

    # --- bytes -----------------------------------------------------------------------------------------------

    def _take(self, size: int) -> bytes:
        taken = self._data[self._pos : self._pos + size]
        self._pos += size
        return taken

    async def _receive(self) -> None:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            raise malformed("the body ends before its closing boundary") from None
        rest = self._data[self._pos :]
        self._data = rest + chunk if rest else chunk
        self._pos = 0
