"""Failures as HTTP answers: JSON `{error, statusCode, timestamp}`, whatever went wrong.

Messages name no patient, study or UID: they end up in browsers' consoles and support tickets.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from proxy.archive.errors import (
    ArchiveBusyError,
    ArchiveError,
    ArchiveTimeoutError,
    NotFoundError,
    TooBroadError,
)
from proxy.dicomweb.accept import NotAcceptable
from proxy.dicomweb.parameters import BadParameter

RETRY_AFTER_SECONDS: Final = 5


class BadRequest(ValueError):  # noqa: N818 - the name of the HTTP status, 400
    """The client's request cannot be served as it is; the message says which part, without its value."""


class Unavailable(Exception):  # noqa: N818 - what it is to the client, 503
    """The proxy has no room for the request at the moment; a later try may succeed."""


class UploadError(ValueError):
    """An upload cannot be taken, or not to its end; `status` is the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Truncated(Exception):  # noqa: N818 - what the client sees
    """An answer that has begun cannot be completed; its connection has been cut."""


def now() -> str:
    """The time for a JSON answer: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """The JSON answer for a failure."""
    body = {"error": message, "statusCode": status, "timestamp": now()}
    return web.Response(status=status, text=json.dumps(body), content_type="application/json", headers=headers)


def response_for(error: Exception) -> web.Response | None:
    """The answer for what a handler raised; None for what it should not have raised."""
    match error:
        case BadParameter() | BadRequest():
            response = error_response(400, str(error))
        case RequestPayloadError():
            response = error_response(400, "the body is not in the coding that its header names")
            response.force_close()
        case UploadError():
            response = error_response(error.status, str(error))
            response.force_close()  # what is left of the body is not read
        case NotAcceptable():
            response = error_response(406, str(error))
        case TooBroadError():
            response = error_response(413, str(error))
        case NotFoundError():
            response = error_response(404, str(error))
        case ArchiveBusyError() | Unavailable():
            response = error_response(503, str(error), {"Retry-After": str(RETRY_AFTER_SECONDS)})
        case ArchiveTimeoutError():
            response = error_response(504, str(error))
        case ArchiveError():
            response = error_response(502, str(error))
        case web.HTTPMethodNotAllowed():
            allow = ", ".join(sorted(error.allowed_methods))
            response = error_response(405, f"method not allowed; allowed: {allow}", {"Allow": allow})
        case web.HTTPException():
            response = error_response(error.status, error.reason)
        case _:
            return None
    return response
