"""One HTTP connection, with the bounds that aiohttp's protocol does not have: on heads, on bodies that do not come.

Also how is answered what is no HTTP: as every other failure is, and without what was sent, which may name a patient.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import StreamReader, hdrs, web
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestPayloadError

from proxy import PRODUCT
from proxy.dicomweb.errors import error_response
from proxy.dicomweb.streaming import CLIENT_STALL_SECONDS, reset
from proxy.logs import SparingLog
from proxy.security.http.places import Place

logger = logging.getLogger(__name__)

KEEPALIVE_SECONDS: Final = 75.0
"""How long a connection may be idle between two requests, as with nginx; browsers keep theirs longer."""

MAX_TARGET: Final = 8 * 1024
"""Bytes of a request's path and query, as with nginx: a search for 120 UIDs, each as long as a UID may be."""

MAX_FIELD: Final = 12 * 1024
"""Bytes of one header: tokens of identity providers with many groups have up to 8 KiB. Other than `MAX_TARGET`, since
aiohttp tells by the limit which of the two was passed."""

MAX_FIELDS: Final = 100
"""Headers of a request, as with Apache; browsers behind several proxies send 40."""

MAX_HEAD: Final = 48 * 1024
"""Bytes of a whole head, which is kept in memory until it is whole. nginx allows 32 KiB."""

BODY_SECONDS: Final = CLIENT_STALL_SECONDS + 30
"""How long a body may stand still. Longer than handlers wait that have a rule of their own, and an answer for it."""

BODY_PROGRESS: Final = 1024
"""Bytes in `BODY_SECONDS` that are no standstill: drips of a byte each second are one."""

REFUSAL_SECONDS: Final = 1.0
"""How long a client may take for the answer to a head that is late or too large, until the connection is gone."""

SERVER: Final = PRODUCT
"""The header Server of the proxy's answers, and no more: a version tells whom it is worth to attack (RFC 9110 10.2.4).
"""

TOO_MANY_FIELDS: Final = "Too many headers"
"""Begins what aiohttp says of more than `MAX_FIELDS`."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What all connections have in common: `head_seconds` for each head, whether bodies are decompressed (RFC 9110 8.4)
    before handlers get them, and where is logged what is no HTTP.
    """

    head_seconds: float
    decompress: bool
    log: SparingLog


class Connection(web.RequestHandler):
    """aiohttp's protocol, with a time for each head, and one for each body.

    A head has `head_seconds` from the connection's beginning, or from its first byte on a connection that was idle.
    Bytes that come in between do not extend it.
    """

    def __init__(self, server: web.Server, place: Place, rules: Rules) -> None:
        """`place` is freed when the connection is gone."""
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_SECONDS,
            access_log=None,  # type: ignore[arg-type] # as aiohttp itself documents it
            max_line_size=MAX_TARGET,
            max_field_size=MAX_FIELD,
            max_headers=MAX_FIELDS,
            auto_decompress=rules.decompress,
        )
        self._place = place
        self._rules = rules
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_size = 0
        self._answering = False
        self._payload: StreamReader = EMPTY_PAYLOAD
        self._body_timer: asyncio.TimerHandle | None = None
        self._body_size = 0
        self._held_back = False
        self._body_waiter: asyncio.Future[None] | None = None

    # --- what the transport tells ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._place.free()
        self._stop_head_timer()
        self._stop_body_timer()
        self._body_is_over()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._close or self._force_close:
            return  # it takes no further request: what comes is dropped, and no head
        body = self._payload
        is_head = body.is_eof()
        requests = len(self._messages)
        super().data_received(data)
        if len(self._messages) > requests:
            if not body.is_eof():  # no head comes before a body's end: it is the parser that has given up
                self._cut_body()
            self._head_is_whole()
        elif is_head and data:
            self._more_of_a_head(len(data))
        self._body_size += len(data)
        if self._payload.is_eof():
            self._body_is_over()

    def pause_reading(self) -> None:
        self._held_back = True
        super().pause_reading()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send what is left of an answer; what comes now is the head of the next request, or the rest of a body."""
        outcome = await super().finish_response(request, resp, start_time)
        self._answering = bool(self._messages)
        return outcome

    # --- heads -----------------------------------------------------------------------------------------------

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self._loop.call_later(self._rules.head_seconds, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _more_of_a_head(self, size: int) -> None:
        self._head_size += size
        if self._answering:  # the one before
            if self._head_size > MAX_HEAD:
                self.close()  # takes no more, and closes behind that answer
            return
        self._start_head_timer()
        if self._head_size > MAX_HEAD:
            self._refuse(431, f"the head of a request may have {MAX_HEAD} bytes")

    def _head_is_whole(self) -> None:
        self._stop_head_timer()
        self._head_size = 0
        self._answering = True
        self._payload = self._messages[-1][1]
        self._stop_body_timer()
        if not self._payload.is_eof():
            self._start_body_timer()

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._head_size:
            self._refuse(408, f"the head of the request did not come within {self._rules.head_seconds:g} s")
        elif self.transport is not None:
            self.transport.abort()  # browsers open connections that they may not need, and expect no answer on them

    def _refuse(self, status: int, message: str) -> None:
        """Answer a request whose head is not whole, and close."""
        if self.transport is not None:
            self._stop_head_timer()
            # With TLS, a client that does not say that it has seen the end would stay.
            self._head_timer = self._loop.call_later(REFUSAL_SECONDS, self.transport.abort)
            response = error_response(status, message)
            body = (response.text or "").encode()
            head = (
                f"HTTP/1.1 {status} {response.reason}\r\nContent-Type: {response.headers['Content-Type']}\r\n"
                f"Content-Length: {len(body)}\r\nServer: {SERVER}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.force_close()

    # --- bodies ----------------------------------------------------------------------------------------------

    def _start_body_timer(self) -> None:
        self._body_size = 0
        self._held_back = self.transport is not None and not self.transport.is_reading()
        self._body_timer = self._loop.call_later(BODY_SECONDS, self._check_body)

    def _stop_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _check_body(self) -> None:
        """Cut the connection when a body stands still that nobody has held back; that cancels the handler."""
        self._body_timer = None
        if self._payload.is_eof() or self.transport is None:
            return
        if self._held_back or self._body_size >= BODY_PROGRESS:
            self._start_body_timer()
            return
        logger.debug("%s: less than %d bytes of a body came in %g s", self._remote, BODY_PROGRESS, BODY_SECONDS)
        reset(self.transport)

    async def close_behind_body(self) -> None:
        """Take no further request; returns when the body of the one under way is here, or its connection is gone.

        `close` alone would have aiohttp drop the rest of it.
        """
        if not self._payload.is_eof() and self.transport is not None:
            self._body_waiter = self._loop.create_future()
            await self._body_waiter
        self.close()

    def _body_is_over(self) -> None:
        if self._body_waiter is not None and not self._body_waiter.done():
            self._body_waiter.set_result(None)

    def _cut_body(self) -> None:
        """Cut the connection behind what is no body (RFC 9112 7.1); that cancels the handler, which waits for more."""
        if self.transport is not None:
            self._rules.log.warning(f"{self._remote}: malformed body of a request, cut")
            reset(self.transport)

    @property
    def _remote(self) -> str:
        return str((self.peername or ["unknown"])[0])

    # --- what is no HTTP -------------------------------------------------------------------------------------

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log what nobody has caught. A body that cannot be decoded is no more than a line: it is the client's."""
        if isinstance(kw.get("exc_info"), RequestPayloadError):
            self._rules.log.warning(f"{self._remote}: malformed body of a request")
        else:
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what the parser has refused, and to what went wrong outside of every handler."""
        if isinstance(exc, HttpProcessingError):
            status, words = _complaint(exc)
            # Not what was sent, which may be a patient's name.
            self._rules.log.warning(f"{request.remote}: malformed request ({type(exc).__name__}), answered {status}")
        else:
            super().handle_error(request, status, exc, message)  # logs it
            words = "the proxy failed for a reason of its own; its log says more"
        response = error_response(status, words, {hdrs.SERVER: SERVER})
        response.force_close()
        return response


async def name_server(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: name the program in the place of aiohttp. What another server is called stays."""
    if response.headers.get(hdrs.SERVER) == SERVER_SOFTWARE:
        response.headers[hdrs.SERVER] = SERVER


def _complaint(error: HttpProcessingError) -> tuple[int, str]:
    """The status for what the parser has refused, and what to say of it."""
    if isinstance(error, LineTooLong):
        if MAX_TARGET in error.args:
            return 414, f"the path and query of a request may have {MAX_TARGET} bytes"
        return 431, f"a header may have {MAX_FIELD} bytes"
    if error.message.startswith(TOO_MANY_FIELDS):
        return 431, f"a request may have {MAX_FIELDS} headers"
    return 400, "the request is not written as HTTP has it (RFC 9112)"
