"""The proxy's own address as the client knows it, for RetrieveURL and Content-Location; and the paths of resources."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from aiohttp import web

from proxy.archive.retrieval.target import Target
from proxy.dicomweb.errors import BadRequest
from proxy.dicomweb.keys import PUBLIC_URL
from proxy.dicomweb.uids import is_valid_uid
from proxy.security.clients import client_host, client_scheme, is_trusted_proxy

_HOST: Final = re.compile(r"(?P<name>[0-9A-Za-z.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def base_url(request: web.Request) -> str:
    """The configured public address; else from the Host header, or from what a trusted proxy says of it.

    Some clients leave the port out of Host, so it is taken from the connection then, unless that is a trusted proxy's;
    and a Host that is no host name is not repeated at all.
    """
    if configured := request.app[PUBLIC_URL]:
        return configured
    scheme = client_scheme(request)
    sockname = request.transport.get_extra_info("sockname") if request.transport is not None else None
    local_host, local_port = (sockname or ("localhost", 80))[:2]
    match = named_host(request)
    name = match["name"] if match else (f"[{local_host}]" if ":" in local_host else local_host)
    if match and match["port"]:
        port = int(match["port"])
    elif match and is_trusted_proxy(request):
        port = _DEFAULT_PORTS[scheme]
    else:
        port = local_port
    suffix = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    return f"{scheme}://{name}{suffix}"


def named_host(request: web.Request) -> re.Match[str] | None:
    """The `name`, and the `port` if there is one, by which the client calls the proxy; None where that is no host."""
    match = _HOST.fullmatch(client_host(request) or "")
    possible = match is None or not match["port"] or 0 < int(match["port"]) <= 65535
    return match if possible else None


def resource_path(study: str, series: str | None = None, instance: str | None = None) -> str:
    """The path of a study, series or instance, percent-encoded: UIDs from archives may hold anything."""
    parts = [("studies", study), ("series", series), ("instances", instance)]
    return "".join(f"/{name}/{quote(uid, safe='')}" for name, uid in parts if uid is not None)


def target_of(request: web.Request) -> Target:
    """The study, series or instance of the request's path; `BadRequest` for what is no UID."""
    names = ("study", "series", "instance")
    found = {name: request.match_info[name] for name in names if name in request.match_info}
    for name, uid in found.items():
        if not is_valid_uid(uid):
            raise BadRequest(f"the {name} in the path is not a valid UID")
    return Target(**found)
