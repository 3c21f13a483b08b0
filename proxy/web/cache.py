"""Emptying the cache over HTTP: `DELETE /cache`, `DELETE /cache/studies/{study}`."""

from __future__ import annotations

from aiohttp import web

from proxy.archive.cache.cache import Purged
from proxy.dicomweb.errors import error_response
from proxy.dicomweb.keys import archives_of
from proxy.dicomweb.urls import target_of
from proxy.security.clients import client_address
from proxy.security.identity import identity_of


async def purge(request: web.Request) -> web.Response:
    """Remove everything, or all of a study; answers `{"instances": …, "bytes": …}`, what was removed.

    Whoever has signed in needs the right `admin`, which is checked before. Where nobody signs in, 403 for callers on
    other machines, since an archive has to send again what is removed.
    """
    identity, address = identity_of(request), client_address(request)
    signed_in = identity is not None and identity.admin
    if not signed_in and (address is None or not address.is_loopback):
        return error_response(403, "only from the machine that the proxy runs on; there is also the command purge")
    study = target_of(request).study if "study" in request.match_info else None
    cache = archives_of(request).cache
    purged = await cache.purge(study) if cache is not None else Purged(0, 0)
    return web.json_response({"instances": purged.instances, "bytes": purged.bytes})
