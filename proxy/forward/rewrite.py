"""Rewriting an answer's body on its way, in bounded memory: the upstream's addresses become the proxy's.

Nothing is parsed that need not be: of JSON and XML the values that begin with an address are replaced, of multipart
bodies the header of each part is read. Every other byte is handed on as it is.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from email.message import Message
from typing import Final, Protocol

from multidict import CIMultiDict
from yarl import URL

from proxy.forward.addresses import Addresses, Substitution

MAX_PART_HEADER: Final = 64 * 1024
"""Bytes of a part's header. Behind one that is longer, nothing more is rewritten."""

MAX_PADDING: Final = 64
"""Spaces and tabs between a boundary and the end of its line (RFC 2046 5.1.1)."""

MAX_BOUNDARY: Final = 200
"""Characters of a boundary. RFC 2046 allows 70, and some programs do not count."""

STEP: Final = 128 * 1024
"""Bytes that are inflated at once."""

_JSON: Final = re.compile(r"application/(?:json|[\w.+-]+\+json)")
_XML: Final = re.compile(r"(?:application|text)/(?:xml|[\w.+-]+\+xml)")
_PLAIN: Final = frozenset({"", "identity"})
_INFLATED: Final = frozenset({"gzip", "x-gzip", "deflate"})


class Rewriting(Protocol):
    """Takes a body in pieces, and gives it back in others."""

    def take(self, data: bytes) -> Iterator[bytes]:
        """What can go on, now that `data` is here. Raises `ValueError` when the body is not what it is said to be."""

    def finish(self) -> Iterator[bytes]:
        """The rest, behind the last piece. Raises `ValueError` as well."""


def rewriting_for(fields: CIMultiDict[str], addresses: Addresses, asked: URL) -> Rewriting | None:
    """How to rewrite the body that `fields` describe, the answer to a request for `asked`; None for others.

    A body in a content coding that was not asked for is inflated, where it can be; else it stays as it is.
    """
    coding = fields.get("Content-Encoding", "").strip().lower()
    if coding not in _PLAIN | _INFLATED:
        return None
    media_type = _parsed(fields.get("Content-Type", ""))
    rewriting: Rewriting | None
    if media_type.get_content_maintype() == "multipart":
        boundary = media_type.get_boundary() or ""
        usable = 0 < len(boundary) <= MAX_BOUNDARY and boundary.isascii()
        rewriting = _Multipart(boundary.encode("ascii"), media_type, addresses, asked) if usable else None
    else:
        rewriting = _replacing(media_type, addresses)
    return _Inflated(rewriting) if rewriting is not None and coding in _INFLATED else rewriting


def _replacing(media_type: Message, addresses: Addresses) -> _Replacing | None:
    name = media_type.get_content_type()
    if _JSON.fullmatch(name):
        return _Replacing(addresses.json)
    return _Replacing(addresses.xml) if _XML.fullmatch(name) else None


def _parsed(content_type: str) -> Message:
    message = Message()
    message["Content-Type"] = content_type or "application/octet-stream"
    return message


class _Replacing:
    """Replaces addresses in a text. What may be the beginning of one stays until more has come."""

    def __init__(self, substitution: Substitution) -> None:
        self._substitution = substitution
        self._data = b" "  # one byte that went on already, or none, and what stays
        self._start = 1

    def take(self, data: bytes) -> Iterator[bytes]:
        self._data += data
        yield from self._go_on(len(self._data) - self._substitution.longest)

    def finish(self) -> Iterator[bytes]:
        yield from self._go_on(len(self._data))

    def _go_on(self, end: int) -> Iterator[bytes]:
        """Hand on what begins before `end`."""
        pieces: list[bytes] = []
        position = self._start
        for match in self._substitution.pattern.finditer(self._data, position):
            if match.start() >= end:
                break
            pieces += (self._data[position : match.start()], self._substitution.replacement)
            position = match.end()
        if end > position:
            pieces.append(self._data[position:end])
            position = end
        if position > self._start:
            self._data = self._data[position - 1 :]
            self._start = 1
            yield b"".join(pieces)


class _Multipart:
    """Rewrites the parts of a multipart body (RFC 2046 5.1), and `Content-Location` in their headers."""

    def __init__(self, boundary: bytes, whole: Message, addresses: Addresses, asked: URL) -> None:
        self._delimiter = b"\r\n--" + boundary
        root = whole.get_param("type")
        self._default_type = root if isinstance(root, str) else ""
        self._addresses = addresses
        self._asked = asked
        self._data = b"\r\n"  # of the line before the first boundary, if there is one
        self._invented = 2
        self._part: _Replacing | None = None
        self._closed = False

    def take(self, data: bytes) -> Iterator[bytes]:
        self._data += data
        while not self._closed:
            found = self._data.find(self._delimiter)
            if found < 0:
                yield from self._content(max(0, len(self._data) - len(self._delimiter) + 1))
                return
            yield from self._content(found)
            if (size := self._delimiter_size()) is None:
                return
            if not size:
                yield from self._content(1)  # content that begins as a delimiter does
                continue
            header = self._data[:size]
            yield from self._end_of_part()
            self._data = self._data[size:]
            yield self._shown(self._begin_part(header))
        yield self._shown(self._data)
        self._data = b""

    def finish(self) -> Iterator[bytes]:
        yield from self._content(len(self._data))
        yield from self._end_of_part()

    def _content(self, size: int) -> Iterator[bytes]:
        """Hand on that many bytes, which are a part's."""
        if size:
            piece, self._data = self._data[:size], self._data[size:]
            if self._part is None:
                yield self._shown(piece)
            else:
                yield from self._part.take(piece)

    def _end_of_part(self) -> Iterator[bytes]:
        if self._part is not None:
            yield from self._part.finish()
            self._part = None

    def _delimiter_size(self) -> int | None:
        """The bytes of the delimiter that the data begin with and of the header behind it.

        0 when it is none, None when more must come to tell. Nothing behind the closing delimiter matters.
        """
        start = len(self._delimiter)
        line = self._data[start : start + MAX_PADDING + 2]
        if line.startswith(b"--"):
            self._closed = True
            return start + 2
        padding = len(line) - len(line.lstrip(b" \t"))
        line = line[padding:]
        if not line.startswith(b"\r\n"):
            return None if line in (b"", b"-", b"\r") and padding <= MAX_PADDING else 0
        end = self._data.find(b"\r\n\r\n", start + padding, start + MAX_PART_HEADER)
        if end >= 0:
            return end + 4
        self._closed = len(self._data) >= start + MAX_PART_HEADER
        return start if self._closed else None

    def _begin_part(self, delimiter_and_header: bytes) -> bytes:
        """Find out what a part is; returns its header as it goes on."""
        fields = delimiter_and_header[len(self._delimiter) :].split(b"\r\n")
        values = {name.strip().lower(): value.strip() for name, _, value in (field.partition(b":") for field in fields)}
        if b"content-encoding" not in values and not self._closed:
            content_type = values.get(b"content-type", b"").decode("latin-1")
            self._part = _replacing(_parsed(content_type or self._default_type), self._addresses)
        kept = [self._field(field) for field in fields if not (self._part and _name(field) == b"content-length")]
        return self._delimiter + b"\r\n".join(kept)

    def _field(self, field: bytes) -> bytes:
        if _name(field) != b"content-location":
            return field
        name, _, value = field.partition(b":")
        rewritten = self._addresses.rewritten(value.strip().decode("latin-1"), self._asked)
        return field if rewritten is None else name + b": " + rewritten.encode("latin-1")

    def _shown(self, piece: bytes) -> bytes:
        """The piece without what was put before the body's beginning."""
        hidden, self._invented = min(self._invented, len(piece)), max(0, self._invented - len(piece))
        return piece[hidden:]


def _name(field: bytes) -> bytes:
    return field.partition(b":")[0].strip().lower()


class _Inflated:
    """Inflates a body that is in the coding gzip or deflate (RFC 9110 8.4.1), and has the outcome rewritten."""

    def __init__(self, rewriting: Rewriting) -> None:
        self._rewriting = rewriting
        self._inflater = _new_inflater()

    def take(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflater.eof:
                self._inflater = _new_inflater()  # gzip may have several members
            try:
                piece = self._inflater.decompress(data, STEP)
            except zlib.error:
                raise ValueError("the body is not in the coding that its header names") from None
            data = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            yield from self._rewriting.take(piece)

    def finish(self) -> Iterator[bytes]:
        if not self._inflater.eof:
            raise ValueError("the body ends before its coding does")
        yield from self._rewriting.finish()


def _new_inflater() -> zlib._Decompress:
    return zlib.decompressobj(zlib.MAX_WBITS | 32)  # either format, by its header
