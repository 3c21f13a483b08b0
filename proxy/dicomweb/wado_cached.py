"""WADO-RS out of the cache: the length is known, the files go out by sendfile, and an ETag saves sending them again."""

from __future__ import annotations

import contextlib

from aiohttp import web

from proxy.archive.errors import ArchiveError
from proxy.archive.retrieval.delivery import Cached
from proxy.archive.retrieval.target import Target
from proxy.dicomweb import multipart
from proxy.dicomweb.accept import Choice
from proxy.dicomweb.sendfile import FileTooShortError, send_file
from proxy.dicomweb.streaming import cut, write
from proxy.dicomweb.urls import base_url
from proxy.dicomweb.validators import REVALIDATE, etag_of_all, is_known
from proxy.dicomweb.wado_common import instance_type, part_header, partial_headers


async def send(request: web.Request, cached: Cached, choice: Choice | None, target: Target) -> web.StreamResponse:
    """Send what the cache has, as multipart or, without a choice or by it, one instance as a Part 10 file."""
    as_multipart = choice is not None and choice.multipart
    headers = {"X-Cache": "HIT", **REVALIDATE, "ETag": _etag(cached, as_multipart=as_multipart)}
    if not cached.missing and is_known(request, headers["ETag"]):
        return web.Response(status=304, headers=headers)
    if as_multipart:
        return await _send_multipart(request, cached, headers, target)
    return await _send_one(request, cached, headers)


def _etag(cached: Cached, *, as_multipart: bool) -> str:
    """A weak one for multipart, whose boundary differs each time (RFC 9110 8.8.1)."""
    return etag_of_all(cached.instances) if as_multipart else f'"{cached.instances[0].etag}"'


async def _send_one(request: web.Request, cached: Cached, headers: dict[str, str]) -> web.StreamResponse:
    (instance,) = cached.instances
    response = web.StreamResponse(headers={**headers, "Content-Type": instance_type(instance.info)})
    response.content_length = instance.size
    await response.prepare(request)
    await _send_files(request, response, cached, [b""], b"")
    return response


async def _send_multipart(
    request: web.Request, cached: Cached, headers: dict[str, str], target: Target
) -> web.StreamResponse:
    boundary = multipart.new_boundary()
    base = base_url(request)
    heads = [
        part_header(boundary, instance.info, target, base, first=not number)
        for number, instance in enumerate(cached.instances)
    ]
    end = multipart.closing(boundary)
    status, more = partial_headers(cached.missing)
    headers = {**headers, **more, "Content-Type": multipart.content_type(boundary)}
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = sum(map(len, heads)) + sum(each.size for each in cached.instances) + len(end)
    await response.prepare(request)
    await _send_files(request, response, cached, heads, end)
    return response


async def _send_files(
    request: web.Request, response: web.StreamResponse, cached: Cached, heads: list[bytes], end: bytes
) -> None:
    try:
        async with contextlib.aclosing(cached.files()) as files:
            heads_left = iter(heads)
            async for instance, file in files:
                if head := next(heads_left):
                    await write(request, response, head)
                await send_file(request, response, file, instance.size)
        if end:
            await write(request, response, end)
        await response.write_eof()
    except (ArchiveError, FileTooShortError) as error:
        cut(request, error)
