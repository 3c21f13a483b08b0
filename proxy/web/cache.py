"""Emptying the cache over HTTP: `DELETE /cache`, `DELETE /cache/studies/{study}`; from this machine only."""

from __future__ import annotations

import ipaddress

from aiohttp import web

from proxy.archive.cache.cache import Purged
from proxy.dicomweb.errors import error_response
from proxy.dicomweb.keys import ARCHIVES
from proxy.dicomweb.urls import target_of


async def purge(request: web.Request) -> web.Response:
    """Remove everything, or all of a study; answers `{"instances": …, "bytes": …}`, what was removed.

    403 for callers on other machines: nobody is known by name yet, and an archive has to send again what is removed.
    """
    if not _is_local(request.remote):
        return error_response(403, "only from the machine that the proxy runs on; there is also the command purge")
    study = target_of(request).study if "study" in request.match_info else None
    cache = request.app[ARCHIVES].depot.cache
    purged = await cache.purge(study) if cache is not None else Purged(0, 0)
    return web.json_response({"instances": purged.instances, "bytes": purged.bytes})


def _is_local(host: str | None) -> bool:
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
