"""The framing of `multipart/related` bodies (RFC 2046 5.1, RFC 2387; PS3.18 8.6.1.2).

Only the bytes between the parts live here; the parts themselves are streamed by whoever has them. A body is
`part_header(first=True)`, payload, `part_header(first=False)`, payload, …, `closing()`. Each piece carries
the line break that ends the part before it, so nothing is ever buffered to be joined.
"""

import re
import secrets
from typing import Final

DICOM: Final = "application/dicom"

MAX_PART_HEADER: Final = 1000
"""Bytes in a part's header, its boundary line included: a common JavaScript decoder looks no further."""

_BOUNDARY: Final = re.compile(r"[0-9A-Za-z]{1,70}")
_VISIBLE_ASCII: Final = re.compile(r"[\x21-\x7e]+")
_TEXT: Final = re.compile(r"[\x20-\x7e]+")


def new_boundary() -> str:
    """Return a fresh boundary: 32 hexadecimal digits, which no payload holds by chance or by intent."""
    return secrets.token_hex(16)


def content_type(boundary: str, part_type: str = DICOM) -> str:
    """Return the `Content-Type` of a whole answer whose parts are of `part_type` (RFC 2387 3.1).

    Raises:
        ValueError: a value that could break out of the header.
    """
    _check(_BOUNDARY, "boundary", boundary)
    _check(_VISIBLE_ASCII, "part type", part_type)
    return f'multipart/related; type="{part_type}"; boundary={boundary}'


def part_header(
    boundary: str,
    *,
    first: bool,
    transfer_syntax: str | None = None,
    content_location: str | None = None,
    part_type: str = DICOM,
    description: str | None = None,
) -> bytes:
    """Return all that stands between the payload before and the payload of this part.

    Args:
        boundary: as given to `content_type`.
        first: whether the body begins with this part. It then begins with the boundary at once, without the
            line break that RFC 2046 allows there, since some clients take that for a part.
        transfer_syntax: UID that the part is encoded in, sent as a parameter of its media type
            (PS3.18 8.7.3.5.2); viewers that find none take Implicit VR Little Endian.
        content_location: URL of this part alone, percent-encoded.
        part_type: media type of the part without parameters.
        description: what was done to the part, for whoever reads its header (RFC 2045 8).

    Raises:
        ValueError: a value with a line break or another character that has no place in a header, or a
            header of over `MAX_PART_HEADER` bytes.
    """
    _check(_BOUNDARY, "boundary", boundary)
    _check(_VISIBLE_ASCII, "part type", part_type)
    media_type = part_type
    if transfer_syntax is not None:
        _check(_VISIBLE_ASCII, "transfer syntax", transfer_syntax)
        media_type += f"; transfer-syntax={transfer_syntax}"
    lines = [f"--{boundary}", f"Content-Type: {media_type}"]
    if content_location is not None:
        _check(_VISIBLE_ASCII, "content location", content_location)
        lines.append(f"Content-Location: {content_location}")
    if description is not None:
        _check(_TEXT, "description", description)
        lines.append(f"Content-Description: {description}")
    header = ("" if first else "\r\n") + "\r\n".join(lines) + "\r\n\r\n"
    if len(header) > MAX_PART_HEADER:
        raise ValueError(f"part header of {len(header)} bytes; the limit is {MAX_PART_HEADER}")
    return header.encode("ascii")


def closing(boundary: str) -> bytes:
    """Return the end of a body. A body without it was cut short, and clients know it by that.

    Raises:
        ValueError: a boundary that could break out of its line.
    """
    _check(_BOUNDARY, "boundary", boundary)
    return f"\r\n--{boundary}--\r\n".encode("ascii")


def _check(form: re.Pattern[str], what: str, value: str) -> None:
    if form.fullmatch(value) is None:
        raise ValueError(f"{what} has a character that is not allowed in a header, or is empty")
