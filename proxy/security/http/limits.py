"""How many requests are served at once, of all clients and of one (keys `limits.requests`, `requestsPerClient`).

Counted as long as an answer is made and streamed. How many connections there may be is in `listening`, how long the
head of a request may take in `connection`.
"""

from __future__ import annotations

import logging
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.config.security import HttpLimits
from proxy.dicomweb.errors import RETRY_AFTER_SECONDS, error_response
from proxy.logs import SparingLog
from proxy.security.clients import counted_client
from proxy.security.http.places import Full, Places
from proxy.security.paths import PING, path_template

logger = logging.getLogger(__name__)

REQUESTS: Final = web.AppKey("requests", Places)
_LOG: Final = web.AppKey("requests_log", SparingLog)


def set_up_limits(app: web.Application, limits: HttpLimits) -> None:
    """Set the limits for `limit_requests`, which must be in the middlewares of `app`."""
    app[REQUESTS] = Places(limits.requests, limits.requests_per_client)
    app[_LOG] = SparingLog(logger)


@web.middleware
async def limit_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """429 to a client with too many requests under way, 503 where there are too many of all."""
    if path_template(request) == PING:
        return await handler(request)
    client = counted_client(request)
    place = request.app[REQUESTS].take(client)
    if isinstance(place, Full):
        return _refusal(request, place)
    try:
        return await handler(request)
    finally:
        place.free()


def _refusal(request: web.Request, full: Full) -> web.Response:
    if full is Full.FOR_CLIENT:
        status, message = 429, "there are too many requests of this client under way (key: limits.requestsPerClient)"
    else:
        status, message = 503, "there are too many requests under way (key: limits.requests)"
    request.app[_LOG].warning(f"{request.remote}: answered {status}, {message}")
    response = error_response(status, message, {"Retry-After": str(RETRY_AFTER_SECONDS)})
    if request.body_exists:
        response.force_close()  # what is left of the body is not read
    return response
