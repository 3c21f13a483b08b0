"""Where a request comes from: the address of the client, also behind reverse proxies that the configuration names."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from proxy.addresses import Address, Network, is_in, parse_address

TRUSTED_PROXIES: Final = web.AppKey("trusted_proxies", tuple[Network, ...])

MAX_HOPS: Final = 10
"""Entries of X-Forwarded-For that are read, from the last on; real chains have two or three."""

_WITH_PORT: Final = re.compile(r"\A(?:\[([0-9A-Fa-f:.%]+)\](?::[0-9]+)?|([0-9.]+):[0-9]+)\Z")
"""How some proxies write an address in X-Forwarded-For: IPv6 in brackets, and with the client's port."""


def is_trusted_proxy(request: web.Request) -> bool:
    """Tell whether the TCP connection comes from a reverse proxy whose X-Forwarded headers are to be believed."""
    return is_in(parse_address(request.remote), request.app[TRUSTED_PROXIES])


def client_address(request: web.Request) -> Address | None:
    """The client's address: that of the TCP connection, or the last one in X-Forwarded-For that no trusted proxy has.

    What stands before an entry that is no address, or before the first untrusted one, anybody can have written. None
    where there is no such address.
    """
    trusted = request.app[TRUSTED_PROXIES]
    address = parse_address(request.remote)
    if not is_in(address, trusted):
        return address
    entries = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
    for entry in entries[: -MAX_HOPS - 1 : -1]:
        before = parse_address(_WITH_PORT.sub(r"\1\2", entry.strip()))
        if before is None:
            return address
        address = before
        if not is_in(address, trusted):
            return address
    return address


def counted_client(request: web.Request) -> Address | None:
    """The client that limits for each client count; None where that is a trusted proxy, which stands for many."""
    address = client_address(request)
    return None if is_in(address, request.app[TRUSTED_PROXIES]) else address


def client_scheme(request: web.Request) -> str:
    """`http` or `https`, as the client has it: behind a trusted proxy, what that says in X-Forwarded-Proto."""
    said = _forwarded(request, "X-Forwarded-Proto").lower()
    return said if said in ("http", "https") else request.scheme


def client_host(request: web.Request) -> str | None:
    """The Host header as the client has sent it: behind a trusted proxy, what that says in X-Forwarded-Host.

    Not checked: it is for the caller to find out whether it is a host.
    """
    return _forwarded(request, "X-Forwarded-Host") or request.headers.get("Host")


def _forwarded(request: web.Request, name: str) -> str:
    """What a trusted proxy says in a header of its own; of several values the last, which the nearest one has set."""
    if not is_trusted_proxy(request):
        return ""
    return ",".join(request.headers.getall(name, [])).rpartition(",")[2].strip()
