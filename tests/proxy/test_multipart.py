"""Multipart bodies: the exact bytes, that real decoders read them back, and that nothing breaks out of a header."""

import email
import io
import re
from email.message import Message

import pytest
import requests
from dicomweb_client import DICOMwebClient
from hypothesis import given
from hypothesis import strategies as st

from proxy.dicomweb.multipart import MAX_PART_HEADER, closing, content_type, new_boundary, part_header

BOUNDARY = "0123456789abcdef0123456789abcdef"
EXPLICIT = "1.2.840.10008.1.2.1"
LOCATION = "https://pacs.example.org/studies/1.2/series/1.3/instances/1.4"
PAYLOADS = (b"", b"\r\n", b"--\r\n--", bytes(range(256)) * 4, b"plain\n")


def body_of(payloads: tuple[bytes, ...], boundary: str = BOUNDARY) -> bytes:
    pieces = []
    for number, payload in enumerate(payloads):
        first = number == 0
        pieces.append(
            part_header(boundary, first=first, transfer_syntax=EXPLICIT, content_location=f"{LOCATION}{number}")
        )
        pieces.append(payload)
    return b"".join((*pieces, closing(boundary)))


def parts_by_the_standard_library(body: bytes, boundary: str = BOUNDARY) -> list[Message]:
    message = email.message_from_bytes(f"Content-Type: {content_type(boundary)}\r\n\r\n".encode() + body)
    assert not message.defects
    return [part for part in message.walk() if part is not message]


def test_boundaries_are_fresh_and_long() -> None:
    boundaries = {new_boundary() for _ in range(100)}
    assert len(boundaries) == 100
    assert all(re.fullmatch("[0-9a-f]{32,70}", boundary) for boundary in boundaries)


def test_content_type_of_the_whole() -> None:
    assert content_type(BOUNDARY) == f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    assert 'type="image/jpeg";' in content_type(BOUNDARY, "image/jpeg")


def test_the_body_begins_with_the_boundary_and_has_these_bytes() -> None:
    header = b"Content-Type: application/dicom; transfer-syntax=1.2.840.10008.1.2.1\r\nContent-Location: "
    expected = (
        b"--" + BOUNDARY.encode() + b"\r\n" + header + LOCATION.encode() + b"0\r\n\r\none"
        b"\r\n--" + BOUNDARY.encode() + b"\r\n" + header + LOCATION.encode() + b"1\r\n\r\ntwo"
        b"\r\n--" + BOUNDARY.encode() + b"--\r\n"
    )
    assert body_of((b"one", b"two")) == expected


def test_transfer_syntax_and_location_can_be_left_out() -> None:
    header = part_header(BOUNDARY, first=True, part_type="application/octet-stream")
    assert header == f"--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()


def test_the_standard_library_reads_the_parts_back() -> None:
    parts = parts_by_the_standard_library(body_of(PAYLOADS))
    assert [part.get_payload(decode=True) for part in parts] == list(PAYLOADS)
    assert [part.get_param("transfer-syntax") for part in parts] == [EXPLICIT] * len(PAYLOADS)
    assert [part["Content-Location"] for part in parts] == [f"{LOCATION}{n}" for n in range(len(PAYLOADS))]


@pytest.mark.parametrize("stream", [False, True])
def test_dicomweb_client_reads_the_parts_back(stream: bool) -> None:
    response = requests.Response()
    response.headers["content-type"] = content_type(BOUNDARY)
    response.raw = io.BytesIO(body_of(PAYLOADS))
    client = DICOMwebClient("http://127.0.0.1:1", chunk_size=64)
    parts = [bytes(part) for part in client._decode_multipart_message(response, stream=stream)]
    assert parts == list(PAYLOADS)


@given(payloads=st.lists(st.binary(max_size=300), min_size=1, max_size=5).map(tuple))
def test_any_payload_comes_back(payloads: tuple[bytes, ...]) -> None:
    boundary = new_boundary()
    body = body_of(payloads, boundary)
    delimiter = f"\r\n--{boundary}".encode()
    *parts, rest = (b"\r\n" + body).split(delimiter)[1:]
    assert rest == b"--\r\n"
    assert tuple(part.partition(b"\r\n\r\n")[2] for part in parts) == payloads


@pytest.mark.parametrize("bad", ["", "a\r\nX-Evil: 1", "a\nb", "a\rb", "a b", "a\0", "ä", "a\x7f", "a\n"])
def test_nothing_breaks_out_of_a_header(bad: str) -> None:
    for arguments in ({"transfer_syntax": bad}, {"content_location": bad}, {"part_type": bad}):
        with pytest.raises(ValueError, match="not allowed in a header"):
            part_header(BOUNDARY, first=True, **arguments)
    for function in (closing, content_type, lambda boundary: part_header(boundary, first=True)):
        with pytest.raises(ValueError, match="boundary has a character"):
            function(bad)
    with pytest.raises(ValueError, match="part type has a character"):
        content_type(BOUNDARY, bad)


def test_part_headers_stay_under_what_decoders_look_through() -> None:
    uid = "1." + "2" * 62
    location = f"https://{'h' * 253}/studies/{uid}/series/{uid}/instances/{uid}"
    header = part_header(BOUNDARY, first=False, transfer_syntax=uid, content_location=location)
    assert len(header) < MAX_PART_HEADER
    with pytest.raises(ValueError, match="limit is 1000"):
        part_header(BOUNDARY, first=False, content_location="https://" + "h" * 1000)
