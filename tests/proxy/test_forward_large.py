"""A quarter of a gigabyte each way through the proxy as a program of its own: every byte, and hardly any memory."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.proxy.command import program, write_config
from tests.proxy.forwarding import Answer, Conversation, forward_settings, ok, recorder

PIECE = bytes(range(256)) * 1024
PIECES = 1024
SIZE = PIECES * len(PIECE)
ALLOWED = 16 * 1024 * 1024
"""Bytes by which the proxy's memory may grow: a sixteenth of what goes through."""


def peak(pid: int) -> int:
    """Return the most memory that a process has had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def sending(content_type: str, before: bytes, piece: bytes, count: int, after: bytes) -> Answer:
    """Return an answer of many pieces, by its length."""
    size = len(before) + len(piece) * count + len(after)

    async def answer(conversation: Conversation) -> None:
        await conversation.send(f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {size}\r\n\r\n")
        await conversation.send(before)
        for _ in range(count):
            await conversation.send(piece)
        await conversation.send(after)

    return answer


@pytest.mark.parametrize(("uvloop", "multipart"), [(False, False), (True, True)], ids=["file", "multipart"])
async def test_a_download(uvloop: bool, multipart: bool, tmp_path: Path) -> None:
    """Of one file, and of parts in which the headers are looked at."""
    kind, before, after = "application/dicom", b"", b""
    if multipart:
        kind = 'multipart/related; type="application/dicom"; boundary=frontier'
        before, after = b"--frontier\r\nContent-Type: application/dicom\r\n\r\n", b"\r\n--frontier--\r\n"
    async with recorder(sending(kind, before, PIECE, PIECES, after)) as upstream:
        path = write_config(tmp_path, forward_settings(upstream.url))
        async with (
            program("run", "--config", str(path), folder=tmp_path, uvloop=uvloop) as proxy,
            aiohttp.ClientSession(proxy.url, read_bufsize=1 << 20) as http,
        ):
            async with http.get("/warm/up") as response:  # what the first answer needs, all others use
                assert await response.content.readexactly(len(before) + len(PIECE)) == before + PIECE
            at_first = peak(proxy.process.pid)
            received, checksum = 0, 0
            async with http.get("/studies/1") as response:
                async for piece in response.content.iter_any():
                    received += len(piece)
                    checksum = zlib.crc32(piece, checksum)
            grown = peak(proxy.process.pid) - at_first
    assert received == len(before) + SIZE + len(after)
    assert checksum == checksum_of(before, after)
    assert grown <= ALLOWED, f"{grown / 1e6:.1f} MB"


def checksum_of(before: bytes = b"", after: bytes = b"") -> int:
    """Return the checksum of all pieces."""
    checksum = zlib.crc32(before)
    for _ in range(PIECES):
        checksum = zlib.crc32(PIECE, checksum)
    return zlib.crc32(after, checksum)


async def test_an_upload(tmp_path: Path) -> None:
    """In chunks, as programs send what they do not know the length of."""

    async def answer(conversation: Conversation) -> None:
        received, checksum = 0, 0
        while size := int(await conversation.reader.readuntil(b"\r\n"), 16):
            piece = await conversation.reader.readexactly(size + 2)
            received += size
            checksum = zlib.crc32(memoryview(piece)[:size], checksum)
        await conversation.reader.readuntil(b"\r\n")
        await conversation.send(ok(json.dumps([received, checksum]).encode()))

    async def body(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield PIECE

    async with recorder(answer) as upstream:
        path = write_config(tmp_path, forward_settings(upstream.url))
        async with (
            program("run", "--config", str(path), folder=tmp_path) as proxy,
            aiohttp.ClientSession(proxy.url) as http,
        ):
            async with http.post("/studies", data=body(1)) as response:
                assert response.status == 200
            at_first = peak(proxy.process.pid)
            async with http.post("/studies", data=body(PIECES)) as response:
                assert await response.json(content_type=None) == [SIZE, checksum_of()]
            grown = peak(proxy.process.pid) - at_first
    assert grown <= ALLOWED, f"{grown / 1e6:.1f} MB"


async def test_a_text_that_is_rewritten(tmp_path: Path) -> None:
    """Metadata of 64 MiB, with an address in each hundred bytes, or none for a long while."""
    holder: list[str] = []

    async def answer(conversation: Conversation) -> None:
        await sending("application/dicom+json", b"[", holder[0].encode(), 1024, b"0]")(conversation)

    async with recorder(answer) as upstream:
        entry = f'{{"00081190":{{"vr":"UR","Value":["{upstream.url}/studies/1.2.3"]}}}},'
        holder.append(entry * 400 + '"' + "x" * (65536 - 400 * len(entry) - 3) + '",')
        path = write_config(tmp_path, forward_settings(upstream.url))
        async with (
            program("run", "--config", str(path), folder=tmp_path) as proxy,
            aiohttp.ClientSession(proxy.url, read_bufsize=1 << 20) as http,
        ):
            expected = holder[0].replace(upstream.url, proxy.url).encode()
            async with http.get("/warm/up") as response:
                assert await response.content.readexactly(len(expected) + 1) == b"[" + expected
            at_first = peak(proxy.process.pid)
            async with http.get("/studies/1/metadata") as response:
                assert await response.content.readexactly(1) == b"["
                async with asyncio.timeout(30):
                    for _ in range(1024):
                        assert await response.content.readexactly(len(expected)) == expected
                assert await response.read() == b"0]"
            grown = peak(proxy.process.pid) - at_first
    assert grown <= ALLOWED, f"{grown / 1e6:.1f} MB"
