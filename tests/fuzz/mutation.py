"""Making inputs of others: damage, lies in lengths, pieces of two."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

MOST_BYTES: Final = 16 * 1024

_INTERESTING: Final = (
    0,
    1,
    2,
    3,
    4,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFE,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFE,
    0xFFFFFFFF,
)
_TOKENS: Final = (
    b"SQ\0\0", b"UN\0\0", b"OB\0\0", b"OW", b"UI", b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0",
    b"\xff\xff\xff\xff", b"\xe0\x7f\x10\x00", b"\x08\x00\x05\x00", b"\x1b$B", b"\\", b"\0", b"\r\n", b"--BOUNDARY",
    b"--BOUNDARY--", b"DICM", b"%00", b"&", b"=", b";q=", b"*/*", b"\"", b",",
)  # fmt: skip


def mutate(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    """An input made of one or two of the corpus by one to six changes."""
    data = bytearray(source.choice(corpus))
    for _ in range(source.choice((1, 1, 2, 3, 6))):
        _CHANGES[source.randrange(len(_CHANGES))](source, data, corpus)
    return bytes(data[:MOST_BYTES])


def _flip(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def _cut(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = source.randrange(len(data) + 1)
    del data[at : at + source.choice((1, 2, 4, 8, 64, 1024))]


def _end(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[source.randrange(len(data) + 1) :]


def _random_bytes(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = source.randrange(len(data) + 1)
    data[at:at] = source.randbytes(source.choice((1, 2, 4, 8, 32)))


def _token(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = source.randrange(len(data) + 1)
    token = source.choice(_TOKENS)
    data[at : at + source.choice((0, len(token)))] = token


def _number(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    size = source.choice((1, 2, 4))
    at = source.randrange(len(data) + 1)
    value = source.choice(_INTERESTING) & ((1 << 8 * size) - 1)
    data[at : at + size] = value.to_bytes(size, source.choice(("little", "big")))


def _repeat(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = source.randrange(len(data) + 1)
    piece = bytes(data[at : at + source.choice((1, 4, 8, 12, 40))])
    data[at:at] = piece * source.choice((1, 2, 16, 100))


def _splice(source: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    other = source.choice(corpus)
    start = source.randrange(len(other) + 1)
    at = source.randrange(len(data) + 1)
    data[at:] = other[start : start + 2048]


_CHANGES: Final = (_flip, _cut, _end, _random_bytes, _token, _number, _repeat, _splice)
