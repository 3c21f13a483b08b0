"""What a request must be before anything else looks at it: for a path of this server, and of one length only.

Who stands between a client and this server must find the same host, path and end in a request as are found here (RFC
9112 11.2). What the parser refuses by itself is answered in `connection`.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.typedefs import Handler

from proxy.dicomweb.errors import error_response

_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


@web.middleware
async def check_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """400 for the resource of another host and for a doubtful length, 501 for codings, tunnels and traces."""
    found = _wrong_method(request) or _wrong_length(request) or _wrong_target(request)
    if found is None:
        return await handler(request)
    response = error_response(*found)
    response.force_close()  # what follows may be no request at all
    return response


def _wrong_method(request: web.Request) -> tuple[int, str] | None:
    if request.method == hdrs.METH_CONNECT:
        return 501, "this server is no tunnel"
    if request.method == hdrs.METH_TRACE and request.match_info.http_exception is None:
        return 501, "there is no TRACE here"  # it would show a page's script what the browser keeps from it
    return None


def _wrong_length(request: web.Request) -> tuple[int, str] | None:
    """RFC 9112 6.1 and 6.3."""
    codings = request.headers.getall(hdrs.TRANSFER_ENCODING, [])
    if not codings:
        return None
    if request.version < HttpVersion11:
        return 400, "there is no Transfer-Encoding before HTTP/1.1"
    if [coding.lower() for coding in codings] != ["chunked"]:
        return 501, "the only Transfer-Encoding here is chunked"
    return None


def _wrong_target(request: web.Request) -> tuple[int, str] | None:
    """RFC 9112 3.2."""
    if hdrs.HOST not in request.headers and request.version >= HttpVersion11:
        return 400, "the request has no Host header"
    target = request.raw_path
    if not target.startswith("/") and target != "*" and not _is_own(target, request.headers.get(hdrs.HOST, "")):
        return 400, "the request is for another host than its Host header names"
    return None


def _is_own(target: str, host: str) -> bool:
    """True for an absolute URL whose authority is that of the Host header, which it would take the place of."""
    try:
        parts = urlsplit(target)
    except ValueError:
        return False
    port = _DEFAULT_PORTS.get(parts.scheme)
    return port is not None and host != "" and _without(parts.netloc, port) == _without(host, port)


def _without(authority: str, port: str) -> str:
    return authority.lower().removesuffix(port)
