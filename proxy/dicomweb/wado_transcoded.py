"""WADO-RS where the client wants Explicit VR Little Endian of instances that are stored in something else.

What is in it already goes out among them as it is. An answer is made of instances that are transcoded one after the
other, so that its length is not known, but for a single instance.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from proxy.archive.errors import ArchiveError
from proxy.archive.retrieval.delivery import Cached, Delivery
from proxy.archive.retrieval.target import Target
from proxy.archive.spool.spool import InstanceInfo
from proxy.dicomweb import multipart
from proxy.dicomweb.accept import Choice, NotAcceptable
from proxy.dicomweb.errors import Unavailable
from proxy.dicomweb.keys import archives_of
from proxy.dicomweb.localfile import LocalFile, arrived_file
from proxy.dicomweb.streaming import cut, write
from proxy.dicomweb.transcode import chunks, description, must_transcode, transcoded
from proxy.dicomweb.urls import base_url
from proxy.dicomweb.validators import REVALIDATE, etag_of_all, is_known
from proxy.dicomweb.wado_common import instance_type, part_header, partial_headers

FORM: Final = "explicit-1"
"""Changes when the same instance comes to be transcoded in another way, and is part of the entity tags for that."""


@dataclass(frozen=True, slots=True)
class _Part:
    """An instance as it goes out; `size` and `done`, where it was transcoded, say how large it is and what was done."""

    info: InstanceInfo
    content: AsyncIterable[bytes]
    size: int | None = None
    done: str | None = None


async def send(request: web.Request, delivery: Delivery, choice: Choice, target: Target) -> web.StreamResponse:
    """Send all instances in transfer syntaxes that the client takes.

    Raises what keeps the first one from being sent; what fails later cuts the connection.
    """
    status, headers = partial_headers(delivery.missing)
    headers["X-Cache"] = "HIT" if isinstance(delivery, Cached) else "MISS"
    if isinstance(delivery, Cached):
        headers |= REVALIDATE | {"ETag": etag_of_all(delivery.instances, f"{FORM} {choice.offer}")}
        if not delivery.missing and is_known(request, headers["ETag"]):
            return web.Response(status=304, headers=headers)
    response = web.StreamResponse(status=status, headers=headers)
    async with contextlib.aclosing(_parts(request, delivery, choice)) as parts:
        if choice.multipart:
            return await _send_multipart(request, response, parts, target)
        return await _send_one(request, response, await anext(parts))


async def _send_one(request: web.Request, response: web.StreamResponse, part: _Part) -> web.StreamResponse:
    response.headers["Content-Type"] = instance_type(part.info)
    response.content_length = part.size
    if part.done is not None:
        # RFC 7234 5.5.6; RFC 9111 has no other field for it.
        response.headers["Warning"] = f'214 dicomweb-proxy "{part.done}"'
    await response.prepare(request)
    try:
        async for chunk in part.content:
            await write(request, response, chunk)
        await response.write_eof()
    except ArchiveError as error:
        cut(request, error)
    return response


async def _send_multipart(
    request: web.Request, response: web.StreamResponse, parts: AsyncIterable[_Part], target: Target
) -> web.StreamResponse:
    boundary, base = multipart.new_boundary(), base_url(request)
    response.headers["Content-Type"] = multipart.content_type(boundary)
    try:
        async for part in parts:
            first = not response.prepared
            if first:
                await response.prepare(request)
            header = part_header(boundary, part.info, target, base, first=first, description=part.done)
            await write(request, response, header)
            async for chunk in part.content:
                await write(request, response, chunk)
        await write(request, response, multipart.closing(boundary))
        await response.write_eof()
    except (ArchiveError, NotAcceptable, Unavailable, ValueError) as error:
        if not response.prepared:
            raise
        cut(request, error)
    return response


async def _parts(request: web.Request, delivery: Delivery, choice: Choice) -> AsyncGenerator[_Part, None]:
    if isinstance(delivery, Cached):
        async with contextlib.aclosing(delivery.files()) as files:
            async for instance, file in files:
                local = LocalFile(file, instance.info, instance.header_size, instance.size, instance.etag)
                async with _part_of(request, local, choice) as part:
                    yield part
        return
    async for reader in delivery.reader:
        if not must_transcode(choice, reader.instance.info):
            yield _Part(reader.instance.info, reader)
            continue
        async with arrived_file(reader, archives_of(request)) as local, _part_of(request, local, choice) as part:
            yield part


@contextlib.asynccontextmanager
async def _part_of(request: web.Request, local: LocalFile, choice: Choice) -> AsyncGenerator[_Part, None]:
    if not must_transcode(choice, local.info):
        yield _Part(local.info, chunks(local), local.size)
        return
    async with transcoded(request, local) as made:
        yield _Part(made.info, chunks(made), made.size, description(local.info.transfer_syntax))
