"""Answers that are streamed: writing with a bound on how long a client may stall, and cutting one short visibly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from typing import Final, NoReturn

from aiohttp import HttpVersion11, web

from proxy.dicomweb.errors import Truncated

logger = logging.getLogger(__name__)

CLIENT_STALL_SECONDS: Final = 120.0
"""How long a client may take none of what is written to it; the archive is held back meanwhile, and archives give up
after some minutes themselves."""

CONTINUE: Final = "100-continue"

_BEGUN: Final = web.RequestKey("begun", bool)
_LINGER_ZERO: Final = struct.pack("ii", 1, 0)


async def note_begun(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: from now on `has_begun` is true."""
    request[_BEGUN] = True


def has_begun(request: web.Request) -> bool:
    """Tell whether an answer has begun to be sent, so that there cannot be another."""
    return _BEGUN in request


def cut(request: web.Request, error: Exception) -> NoReturn:
    """Cut the connection of an answer that has begun, so that no client takes it for complete.

    A reset, since the end of a stream without a length or chunks (HTTP/1.0) would look like its proper end.
    """
    logger.warning("an answer was cut short: %s", error)
    if request.transport is not None:
        reset(request.transport)
    raise Truncated from error


def reset(transport: asyncio.Transport) -> None:
    """Close a connection by RST, dropping what has not gone out."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        # Without this, the kernel ends what abort() closes in the orderly way, by FIN.
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    transport.abort()


async def write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Write to the client; cuts the connection when it takes nothing for `CLIENT_STALL_SECONDS`."""
    try:
        async with asyncio.timeout(CLIENT_STALL_SECONDS):
            await response.write(data)
    except TimeoutError:
        cut(request, TimeoutError(f"the client took nothing for {CLIENT_STALL_SECONDS:g} s"))


# --- uploads -------------------------------------------------------------------------------------------------


async def wait_for_handler(request: web.Request) -> None:
    """For the router: `Expect: 100-continue` is answered by the handler, when it knows that it wants the body."""


def expects_continue(request: web.Request) -> bool:
    """Tell whether the client waits for 100 (Continue) before it sends a body (RFC 9110 10.1.1).

    Raises `HTTPExpectationFailed` for any other expectation; an empty one, which some clients send, is none.
    """
    expected = request.headers.get("Expect", "").strip().lower()
    if expected not in ("", CONTINUE):
        raise web.HTTPExpectationFailed
    return expected == CONTINUE and request.version >= HttpVersion11


async def let_it_come(request: web.Request) -> None:
    """Send 100 (Continue) to a client that waits for it; not into the midst of an answer that has begun."""
    if expects_continue(request) and not has_begun(request):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # it is not part of the answer
