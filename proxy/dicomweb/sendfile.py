"""Sending a file from the kernel's cache straight into the connection (sendfile), between other parts of an answer.

By the system call and not by the event loop's method, which uvloop does not have and asyncio has for whole files only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import BinaryIO, Final

from aiohttp import web

from proxy.dicomweb.streaming import CLIENT_STALL_SECONDS, cut, write

READ_SIZE: Final = 256 * 1024
"""Bytes read at once where sendfile cannot be used (TLS)."""

_POLL_SECONDS: Final = 0.002


class FileTooShortError(Exception):
    """A file ended before its known size."""


async def send_file(
    request: web.Request, response: web.StreamResponse, file: BinaryIO, size: int, offset: int = 0
) -> None:
    """Send `size` bytes of `file` from `offset` on behind what was written to `response`, which has a Content-Length.

    Raises `FileTooShortError`; cuts the connection when the client takes nothing for `CLIENT_STALL_SECONDS`.
    """
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client has left")
    if transport.get_extra_info("sslcontext") is not None:
        await _by_reading(request, response, file.fileno(), range(offset, offset + size))
        return
    await _until_empty(request, transport)
    # The event loop does not let others wait for a descriptor that a transport has, so they wait for its twin.
    twin = os.dup(transport.get_extra_info("socket").fileno())
    try:
        await _by_system_call(request, transport, twin, file.fileno(), range(offset, offset + size))
    finally:
        os.close(twin)


async def _until_empty(request: web.Request, transport: asyncio.Transport) -> None:
    """Return when all that was written has gone to the socket; nothing tells of that but the transport itself."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)  # uvloop writes at the end of a turn
    left, since = transport.get_write_buffer_size(), loop.time()
    while left and not transport.is_closing():
        await asyncio.sleep(_POLL_SECONDS)
        now_left = transport.get_write_buffer_size()
        if now_left < left:
            left, since = now_left, loop.time()
        elif loop.time() - since > CLIENT_STALL_SECONDS:
            cut(request, TimeoutError(f"the client took nothing for {CLIENT_STALL_SECONDS:g} s"))


async def _by_system_call(
    request: web.Request, transport: asyncio.Transport, connection: int, file: int, wanted: range
) -> None:
    offset, end = wanted.start, wanted.stop
    while offset < end:
        if transport.is_closing():
            raise ConnectionResetError("the client has left")
        try:
            step = os.sendfile(connection, file, offset, end - offset)
        except BlockingIOError:
            await _writable(request, connection)
            continue
        except ConnectionError:
            transport.abort()  # it would notice by itself only with the next thing that it writes or reads
            raise
        if step == 0:
            raise FileTooShortError
        offset += step
        request.writer.output_size += step
        await asyncio.sleep(0)  # a client on the same machine may take it as fast as it comes


async def _writable(request: web.Request, connection: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(connection, _set, ready)
    try:
        async with asyncio.timeout(CLIENT_STALL_SECONDS):
            await ready
    except TimeoutError:
        cut(request, TimeoutError(f"the client took nothing for {CLIENT_STALL_SECONDS:g} s"))
    finally:
        loop.remove_writer(connection)


def _set(future: asyncio.Future[None]) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):
        future.set_result(None)


async def _by_reading(request: web.Request, response: web.StreamResponse, file: int, wanted: range) -> None:
    offset, end = wanted.start, wanted.stop
    while offset < end:
        step = min(READ_SIZE, end - offset)
        data = await asyncio.get_running_loop().run_in_executor(None, os.pread, file, step, offset)
        if not data:
            raise FileTooShortError
        offset += len(data)
        await write(request, response, data)
