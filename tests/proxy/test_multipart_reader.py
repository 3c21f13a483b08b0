"""Uploads are taken apart as RFC 2046 has it, whatever pieces they arrive in, and never past their bounds."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dicomweb.errors import UploadError
from proxy.dicomweb.multipart_reader import MAX_PADDING, MAX_PART_HEADER, MAX_PREAMBLE, MultipartReader

HEADER = b"Content-Type: application/dicom\r\n\r\n"
BOUNDARY = "b0undary"


def body_of(parts: Iterable[bytes], *, header: bytes = HEADER, boundary: str = BOUNDARY, end: bytes = b"\r\n") -> bytes:
    """Return a body, as most clients write it."""
    dashes = b"--" + boundary.encode()
    return b"".join(dashes + end + header + part + end for part in parts) + dashes + b"--" + end


async def in_pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def read(body: bytes, *, size: int = 1 << 20, boundary: str = BOUNDARY) -> list[bytes]:
    """Return the parts of a body that arrives in pieces of `size` bytes."""
    return [
        b"".join([piece async for piece in part])
        async for part in MultipartReader(in_pieces(body, size), boundary).parts()
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1 << 20])
async def test_parts_come_out_as_they_went_in_whatever_the_pieces(size: int) -> None:
    parts = [b"one", b"", b"\r\n", b"\r\n--b0undar", b"\r\n--b0undaryX", b"\r\n--", b"\n--b0undary\n", b"\r"]
    assert await read(body_of(parts), size=size) == parts


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"ab", b"a", b" ", b"\0"])).map(b"".join)),
    st.integers(1, 40),
)
async def test_any_parts_in_any_pieces(parts: list[bytes], size: int) -> None:
    """Made of what boundaries are made of; the boundary itself ends in what is not among it."""
    boundary = "abZ"
    body = body_of(parts, boundary=boundary)
    assert await read(body, size=size, boundary=boundary) == parts


async def test_bodies_that_aiohttp_writes() -> None:
    contents = [random.Random(seed).randbytes(500) for seed in range(3)]
    writer = aiohttp.MultipartWriter("related")
    for content in contents:
        writer.append(content, {"Content-Type": "application/dicom"})
    body = await writer.as_bytes()
    for size in (1, 1000):
        assert await read(body, size=size, boundary=writer.boundary) == contents


@pytest.mark.parametrize(
    "body",
    [
        b"--b\r\n\r\nx\r\n--b--",
        b"\r\n--b\r\n\r\nx\r\n--b--\r\n",
        b"Preamble\r\nof two lines\r\n--b\r\nA: b\r\n\r\nx\r\n--b--\r\nEpilogue\r\n--b\r\n\r\ny",
        b"--b  \t\r\ncontent-TYPE:application/dicom\r\nX-Long: a\r\n b\r\n\r\nx\r\n--b-- \r\n",
        b"--b\nContent-Type: application/dicom\n\nx\n--b--\n",
    ],
    ids=["bare", "blank line first", "preamble and epilogue", "padding and folding", "LF alone"],
)
async def test_forms_that_are_allowed_or_occur(body: bytes) -> None:
    for size in (1, 1000):
        (part,) = await read(body, size=size, boundary="b")
        assert part == b"x"


async def test_what_is_not_read_of_a_part_is_dropped() -> None:
    parts = [bytes([number]) * 100_000 for number in range(3)]
    firsts = []
    async for part in MultipartReader(in_pieces(body_of(parts), 1000), BOUNDARY).parts():
        firsts.append((await anext(part))[:1])
    assert firsts == [b"\0", b"\1", b"\2"]


@pytest.mark.parametrize("cut", [1, 2, 3, 10, 14])
async def test_a_part_without_its_end_is_never_whole(cut: int) -> None:
    body = body_of([b"x" * 100])[:-cut]
    whole = cut <= 2  # only the line end behind the closing boundary is missing
    for size in (1, 1000):
        if whole:
            assert await read(body, size=size) == [b"x" * 100]
        else:
            with pytest.raises(UploadError, match="ends before its closing boundary"):
                await read(body, size=size)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "ends before"),
        (b"no boundary", "ends before"),
        (b"x" * (MAX_PREAMBLE + 10), "no boundary at the beginning"),
        (b"x\r\n" * MAX_PREAMBLE, "no boundary at the beginning"),
        (b"--b\r\n" + b"a: b\r\n" * MAX_PART_HEADER, "header of a part is too long"),
        (b"--b\r\na: " + b"b" * 2 * MAX_PART_HEADER, "header of a part is too long"),
        (b"--b\r\nno field\r\n\r\n", "no field"),
        (b"--b\r\n\r\nx\r\n--b" + b" " * MAX_PADDING + b"\r\n", "ends before"),
    ],
)
async def test_what_is_no_multipart_is_400_within_bounds(body: bytes, message: str) -> None:
    for size in (1000, 1 << 20):
        with pytest.raises(UploadError, match=message) as caught:
            await read(body, size=size, boundary="b")
        assert caught.value.status == 400


async def test_nothing_is_kept_beside_the_beginning_of_a_boundary() -> None:
    held = []
    reader = MultipartReader(in_pieces(body_of([b"\r\n-" * 200_000]), 10_000), BOUNDARY)
    async for part in reader.parts():
        async for _ in part:
            held.append(len(reader._data))
    assert max(held) < 10_100


async def test_content_full_of_near_boundaries_costs_no_more_than_its_length() -> None:
    content = b"\r\n--b0undaryX" * 20_000
    assert await read(body_of([content]), size=100_000) == [content]
