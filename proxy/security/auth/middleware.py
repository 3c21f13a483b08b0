"""What stands before every handler: from where, who, and with which right; and the answers to those who may not pass.

Nothing gets past it by a failure: an exception in here is an answer of 500, made by the middleware around it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.addresses import is_in, parse_address
from proxy.config.schema import Config
from proxy.config.security import Auth
from proxy.dicomweb.errors import error_response
from proxy.security.audit.notes import notes_of
from proxy.security.auth.errors import Refusal
from proxy.security.auth.rights import check_page, check_rights
from proxy.security.auth.ways import Ways
from proxy.security.clients import client_address
from proxy.security.identity import ANYBODY, NOBODY, ONLOOKER, identify
from proxy.security.paths import PING, STATUS_PATHS, path_template

logger = logging.getLogger(__name__)

REALM: Final = "DICOMweb proxy"


class Access:
    """Decides on requests, by the keys below `auth`."""

    def __init__(self, auth: Auth) -> None:
        """Raises `AuthSettingsError` and `MissingLibraryError`."""
        self._networks = auth.allowed_networks
        self._open_status = auth.open_status
        self.ways = Ways(auth) if auth.enabled else None

    async def admit(self, request: web.Request) -> None:
        """Note who has made a request. Raises `Refusal` where it may not pass."""
        template = path_template(request)
        if template == PING:
            identify(request, NOBODY)
            return
        if self._networks and not is_in(client_address(request), self._networks):
            raise Refusal(403, "the proxy may not be used from this address")
        if self._open_status and request.method == "GET" and template in STATUS_PATHS:
            identify(request, ONLOOKER)
        elif self.ways is None:
            identify(request, ANYBODY)
            check_page(request, ANYBODY)
        else:
            identity = await self.ways.identify(request)
            identify(request, identity)
            check_rights(request, identity)
            check_page(request, identity)


ACCESS: Final = web.AppKey("access", Access)


def set_up_access(app: web.Application, config: Config) -> None:
    """Give `app` what `check_access` needs. Raises `AuthSettingsError` and `MissingLibraryError`."""
    app[ACCESS] = access = Access(config.auth)

    async def running(_: web.Application) -> AsyncIterator[None]:
        for warning in warnings_of(config):
            logger.warning("%s", warning)
        if access.ways is not None:
            access.ways.start()
        yield
        if access.ways is not None:
            await access.ways.close()

    app.cleanup_ctx.append(running)


def check_access_settings(config: Config) -> None:
    """Raise `AuthSettingsError` or `MissingLibraryError` where the proxy could not start with the keys of `auth`."""
    Access(config.auth)


@web.middleware
async def check_access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let only those requests through that may pass.

    Preflights do not come here: browsers send no credentials with them, so CORS answers them before.
    """
    try:
        await request.app[ACCESS].admit(request)
    except Refusal as refusal:
        notes_of(request).claimed = refusal.claimed
        return _answer(request, refusal)
    return await handler(request)


def _answer(request: web.Request, refusal: Refusal) -> web.Response:
    response = error_response(refusal.status, refusal.message)
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == 401 or refusal.bearer_error is not None:
        for challenge in _challenges(request, refusal):
            response.headers.add("WWW-Authenticate", challenge)
    if request.can_read_body:
        response.force_close()  # what is left of the body is not read
    return response


def _challenges(request: web.Request, refusal: Refusal) -> Iterator[str]:
    """The header WWW-Authenticate of an answer: RFC 6750 3, and RFC 7617 2 where that helps.

    Basic is left out for what a page's script asks for: the browser would open a dialog in the middle of the page, for
    each of its requests. Bearer is always there, since an answer of 401 has to have a challenge (RFC 9110 15.5.2), and
    first, since some clients look at the first only.
    """
    bearer = f'Bearer realm="{REALM}"'
    if refusal.bearer_error is not None:
        bearer += f', error="{refusal.bearer_error}", error_description="{refusal.message}"'
    yield bearer
    ways = request.app[ACCESS].ways
    if refusal.status == 401 and ways is not None and ways.takes_passwords and not _is_by_script(request):
        yield f'Basic realm="{REALM}", charset="UTF-8"'


def _is_by_script(request: web.Request) -> bool:
    """Tell what a page asks for from what its user goes to (Fetch Metadata); a page of the same origin sends no Origin
    with GET."""
    return "Origin" in request.headers or request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate"


# --- the start -----------------------------------------------------------------------------------------------


def warnings_of(config: Config) -> Iterator[str]:
    """What an administrator should know of the keys of `auth` at the start."""
    auth, host = config.auth, config.webserver_host
    address = parse_address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return
    ways = [key for key in ("users", "tokens", "jwt", "certificates") if getattr(auth, key)]
    if not auth.enabled and not auth.allowed_networks:
        unused = f" (what is set below it, {', '.join(ways)}, has no effect)" if ways else ""
        yield f"whoever can reach {host} port {config.webserver_port} can use the proxy: auth.enabled is false{unused}"
    if auth.enabled and ways != ["certificates"] and not config.ssl.redirect_http and not config.trusted_proxies:
        yield (
            "passwords and tokens may come in clear text: neither does ssl.redirectHttp send clients to HTTPS, nor is "
            "there a reverse proxy with HTTPS in trustedProxies"
        )
