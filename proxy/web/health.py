"""How the proxy fares: `/ping`, `/health`, `/status`, and `POST /dimse/echo`."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from proxy import __version__
from proxy.archive.errors import ArchiveError
from proxy.archive.peers.archive import Archive
from proxy.archive.views import ArchivesView
from proxy.dicomweb.errors import BadRequest, now
from proxy.dicomweb.keys import archives_of
from proxy.forward.upstream import UPSTREAM, Upstream

PROXY_MODE: Final = web.AppKey("proxy_mode", str)
STARTED: Final = web.AppKey("started", float)

_PAGE_SIZE: Final = resource.getpagesize()


async def ping(request: web.Request) -> web.Response:
    """`GET /ping`: the process answers."""
    return web.Response(text="pong")


async def health(request: web.Request) -> web.Response:
    """`GET /health`: 200 while at least one archive answers, or in dicomweb mode all of the upstream; else 503, so that
    a load balancer can tell."""
    state = await status_of(request)
    return web.json_response(state, status=200 if state["status"] == "healthy" else 503)


async def status(request: web.Request) -> web.Response:
    """`GET /status`: the same, always 200."""
    return web.json_response(await status_of(request))


async def status_of(request: web.Request) -> dict[str, Any]:
    """The state of the proxy, as JSON, with the archives that the user may use, and what is cached and under way of
    these. Archives that were not used lately are asked by C-ECHO, another server by a search.
    """
    app = request.app
    up, rest = await (_upstream(app[UPSTREAM]) if UPSTREAM in app else _archives(archives_of(request)))
    return {
        "status": "healthy" if up else "unhealthy",
        "timestamp": now(),
        "version": __version__,
        "proxyMode": app[PROXY_MODE],
        "uptime": round(time.monotonic() - app[STARTED], 1),
        "memory": _memory(),
        **rest,
    }


async def _upstream(upstream: Upstream) -> tuple[bool, dict[str, Any]]:
    """Whether all of it answers, and how it fares."""
    await upstream.check()
    states = [{"url": str(each.base), "up": each.is_up, "lastError": each.last_error} for each in upstream.healths]
    return all(each.is_up for each in upstream.healths), {"requests": upstream.under_way, "upstreams": states}


async def _archives(archives: ArchivesView) -> tuple[bool, dict[str, Any]]:
    """Whether any of them answers, and how they fare."""
    await archives.check_all()
    states = [_archive(archive) for archive in archives.archives]
    return any(state["up"] for state in states), {
        "cache": _cache(archives),
        "retrievals": archives.retrieval_count,
        "archives": states,
        "storesRefused": archives.inbox.refused,
        "callersRejected": archives.inbox.rejected,
    }


def _archive(archive: Archive) -> dict[str, Any]:
    return {
        "name": archive.name,
        "aet": archive.peer.aet,
        "up": archive.health.is_up,
        "associations": archive.open_associations,
        "maxAssociations": archive.peer.max_associations,
        "lastError": archive.health.last_error,
        "breaker": archive.breaker.state.value,
        "retrySeconds": _rounded(archive.breaker.retry_seconds),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _cache(archives: ArchivesView) -> dict[str, Any]:
    """How the cache and the spool fare; `failure` is why nothing is kept, or why not all that should be."""
    cache, failure = archives.cache, archives.depot.failure
    if cache is None:
        return {"enabled": False, "failure": failure}
    usage = cache.usage()
    return {
        "enabled": True,
        "failure": failure,
        "instances": usage.instances,
        "bytes": usage.bytes,
        "maxBytes": usage.max_bytes,
        "retentionMinutes": round(usage.retention_seconds / 60, 2),
        "hits": usage.hits,
        "misses": usage.misses,
    }


def _memory() -> dict[str, int]:
    """Resident bytes now and at most (Linux gives the maximum in KiB, and a little late)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    now_used = pages * _PAGE_SIZE
    return {"rss": now_used, "maxRss": max(now_used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}


async def echo(request: web.Request) -> web.Response:
    """`POST /dimse/echo` with `{"peerIndex": 0}`: C-ECHO to that archive."""
    archives = archives_of(request).archives
    archive = archives[await _peer_index(request, len(archives))]
    peer = {"aet": archive.peer.aet, "ip": archive.peer.ip, "port": archive.peer.port}
    started = time.perf_counter()
    try:
        await archive.echo()
        outcome = {"success": True, "message": "C-ECHO succeeded"}
    except ArchiveError as error:
        outcome = {"success": False, "error": str(error)}
    elapsed = round((time.perf_counter() - started) * 1000, 1)
    return web.json_response({**outcome, "peer": peer, "responseTime": elapsed})


async def _peer_index(request: web.Request, count: int) -> int:
    try:
        body = json.loads(await request.read() or "{}")
        index = body.get("peerIndex", 0)
    except (ValueError, AttributeError, RecursionError):
        raise BadRequest('the body must be JSON such as {"peerIndex": 0}') from None
    if type(index) is not int or not 0 <= index < count:
        raise BadRequest(f"peerIndex must be a whole number from 0 to {count - 1}")
    return index
