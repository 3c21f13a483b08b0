"""From HTTP to HTTPS: redirects of plain requests, and Strict-Transport-Security (RFC 6797).

Web pages of other origins gain nothing by the redirect: browsers follow none in answer to a preflight, and send
`Origin: null` behind others. They have to be given the https address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.config.schema import Config
from proxy.config.types import is_host
from proxy.dicomweb.errors import BadRequest
from proxy.dicomweb.urls import named_host
from proxy.security.clients import client_scheme
from proxy.security.paths import PING, path_template

_ABSOLUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where plain requests are sent: to `port` of the host that they name, or to the address that clients use."""

    port: int
    public_url: str | None

    def target(self, host: str | None, path: str) -> str | None:
        """The address for a path with query; None where the request names no host, and no address is known."""
        public = self.public_url
        if host is None or (public is not None and urlsplit(public).hostname == host.strip("[]").lower()):
            return None if public is None else public + path
        return f"https://{host}{'' if self.port == 443 else f':{self.port}'}{path}"


_REDIRECT: Final = web.AppKey("redirect", Redirect)
_HSTS: Final = web.AppKey("hsts", str)


def set_up_https(app: web.Application, config: Config) -> None:
    """Prepare `redirect_to_https`, which must be in the middlewares of `app`, and Strict-Transport-Security."""
    if config.ssl.redirect_http:
        public = config.public_url if config.public_url and config.public_url.startswith("https:") else None
        app[_REDIRECT] = Redirect(config.ssl.port, public)
    if config.ssl.enabled and config.ssl.hsts_seconds:
        app[_HSTS] = f"max-age={config.ssl.hsts_seconds}"
        app.on_response_prepare.append(_add_hsts)


@web.middleware
async def redirect_to_https(request: web.Request, handler: Handler) -> web.StreamResponse:
    """308 to the same path over HTTPS (RFC 9110 15.4.9: the method stays), where `ssl.redirectHttp` asks for it.

    What a trusted proxy has taken by HTTPS is not plain. `/ping` is answered all the same: health checks seldom follow
    redirects, or know the certificate. Raises `BadRequest` when there is no host to redirect to.
    """
    redirect = request.app.get(_REDIRECT)
    if redirect is None or client_scheme(request) == "https" or path_template(request) == PING:
        return await handler(request)
    location = redirect.target(_host(request), _path(request))
    if location is None:
        raise BadRequest("this is served by https only, and Host names no host to redirect to")
    # Browsers would keep a permanent redirect for ever, also when HTTPS is gone.
    response = web.Response(status=308, headers={"Location": location, "Cache-Control": "no-store"})
    if request.body_exists:
        response.force_close()  # what is left of the body is not read
    return response


def _host(request: web.Request) -> str | None:
    match = named_host(request)
    return match["name"] if match and is_host(match["name"].strip("[]")) else None


def _path(request: web.Request) -> str:
    """The path and query as they were sent, without what stands before them in an absolute URL (RFC 9112 3.2.2)."""
    raw = request.raw_path
    if absolute := _ABSOLUTE.match(raw):
        raw = raw[absolute.end() :]
    return raw if raw.startswith("/") else f"/{raw.removeprefix('*')}"


async def _add_hsts(request: web.Request, response: web.StreamResponse) -> None:
    if request.secure:  # over plain HTTP it must not be sent (RFC 6797 7.2)
        response.headers["Strict-Transport-Security"] = request.app[_HSTS]
