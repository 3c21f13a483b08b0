"""Which form of frames a client gets for what it accepts."""

from __future__ import annotations

import pytest

from proxy.dicomweb.accept import NotAcceptable, parse_accept
from proxy.dicomweb.frame_forms import frame_forms

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
JPEG, JPEG_2000, RLE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"
MPEG4, MPEG2 = "1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.100"
UNKNOWN = "1.2.840.10008.1.2.8.1"

OCTETS = "multipart application/octet-stream"


def multipart(media_type: str, syntax: str = "") -> str:
    parameter = f"; transfer-syntax={syntax}" if syntax else ""
    return f'multipart/related; type="{media_type}"{parameter}'


@pytest.mark.parametrize(
    ("accept", "stored", "form"),
    [
        # As stored is the default, and what anything means.
        (None, EXPLICIT, f"{OCTETS} {EXPLICIT}"),
        (None, JPEG, f"multipart image/jpeg {JPEG}"),
        ("*/*", JPEG_2000, f"multipart image/jp2 {JPEG_2000}"),
        (multipart("*/*"), RLE, f"multipart image/dicom-rle {RLE}"),
        ("multipart/related", MPEG4, f"multipart video/mp4 {MPEG4}"),
        (multipart("video/mpeg2"), MPEG2, f"multipart video/mpeg2 {MPEG2}"),
        ("image/*", JPEG, f"single image/jpeg {JPEG}"),
        # Native frames are little endian, however they are stored.
        (None, BIG_ENDIAN, f"{OCTETS} {EXPLICIT}"),
        (multipart("application/octet-stream", IMPLICIT), BIG_ENDIAN, f"{OCTETS} {EXPLICIT}"),
        (multipart("application/octet-stream"), IMPLICIT, f"{OCTETS} {EXPLICIT}"),
        # Transfer syntaxes that are named count, in their order.
        (multipart("application/octet-stream", "*"), JPEG, f"{OCTETS} {JPEG}"),
        (multipart("application/octet-stream", JPEG), JPEG, f"{OCTETS} {JPEG}"),
        (multipart("application/octet-stream"), JPEG, f"{OCTETS} {EXPLICIT} decoded"),
        (multipart("application/octet-stream", EXPLICIT), JPEG, f"{OCTETS} {EXPLICIT} decoded"),
        (multipart("image/jpeg", JPEG), JPEG, f"multipart image/jpeg {JPEG}"),
        # What cannot be had is passed over for what can.
        (
            f"{multipart('image/jpeg', EXPLICIT)}, {multipart('image/jpeg', JPEG)};q=0.5",
            JPEG,
            f"multipart image/jpeg {JPEG}",
        ),
        (f"{multipart('image/jls')}, {multipart('image/jp2')}", JPEG_2000, f"multipart image/jp2 {JPEG_2000}"),
        (
            f"{multipart('image/jp2')};q=0.5, {multipart('application/octet-stream')}",
            JPEG_2000,
            f"{OCTETS} {EXPLICIT} decoded",
        ),
        # What has no media type of its own is tried both ways.
        (None, UNKNOWN, f"{OCTETS} {EXPLICIT} decoded"),
    ],
)
def test_the_first_form_to_try(accept: str | None, stored: str, form: str) -> None:
    found = frame_forms(parse_accept(accept), stored, single=True)[0]
    assert str(found) + (" decoded" if found.is_decoded else "") == form


def test_what_is_tried_when_it_cannot_be_decoded() -> None:
    both = f"{multipart('application/octet-stream')}, {multipart('image/jp2')};q=0.5"
    found = frame_forms(parse_accept(both), JPEG_2000, single=False)
    assert list(map(str, found)) == [f"{OCTETS} {EXPLICIT}", f"multipart image/jp2 {JPEG_2000}"]
    unknown = frame_forms(parse_accept(None), UNKNOWN, single=False)
    assert list(map(str, unknown)) == [f"{OCTETS} {EXPLICIT}", f"{OCTETS} {UNKNOWN}"]


@pytest.mark.parametrize(
    ("accept", "stored", "single"),
    [
        ("application/dicom", EXPLICIT, True),
        ("image/jpeg", EXPLICIT, True),
        ("image/jpeg", JPEG, False),
        (multipart("image/jpeg", JPEG_2000), JPEG, True),
        (multipart("application/octet-stream", JPEG), JPEG_2000, True),
        (multipart("application/octet-stream"), MPEG4, True),
        (f"{multipart('application/octet-stream', EXPLICIT)};q=0", EXPLICIT, True),
    ],
)
def test_what_cannot_be_sent(accept: str, stored: str, single: bool) -> None:
    with pytest.raises(NotAcceptable):
        frame_forms(parse_accept(accept), stored, single=single)
