"""WADO-RS retrieval of studies, series and instances (PS3.18 10.4), streamed as the C-STOREs arrive.

A data set's bytes go out as the archive sent them, behind a Part 10 header made from the C-STORE command. The answer
begins with the first instance, so that whatever fails before is a proper HTTP error; what fails later cuts the
connection. What the cache has is sent by `wado_cached`.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from proxy.archive.errors import ArchiveError
from proxy.archive.retrieval.delivery import Arriving, Cached, Delivery
from proxy.archive.retrieval.target import Target
from proxy.archive.spool.reader import InstanceReader
from proxy.archive.spool.spool import InstanceInfo
from proxy.dicomweb import multipart, wado_cached, wado_transcoded
from proxy.dicomweb.accept import Choice, NotAcceptable, choose_retrieve, parse_accept
from proxy.dicomweb.errors import BadRequest
from proxy.dicomweb.retrieving import retrieved
from proxy.dicomweb.streaming import cut, write
from proxy.dicomweb.transcode import may_transcode, must_transcode
from proxy.dicomweb.urls import base_url, target_of
from proxy.dicomweb.wado_common import instance_type, part_header, partial_headers

SMALL_CHUNK: Final = 64 * 1024
"""A chunk up to this size is joined with the headers before it: one write costs less than the copy."""


async def retrieve(request: web.Request) -> web.StreamResponse:
    """The handler for a study, a series or an instance."""
    target = target_of(request)
    single = target.instance is not None
    accept = parse_accept(request.headers.get("Accept"), request.query.get("accept"))
    raw = _wants_raw(request, single=single)
    choice = choose_retrieve(accept, single=single) if not raw else None
    async with retrieved(request, target) as delivery:
        return await send(request, delivery, choice, target)


async def send(request: web.Request, delivery: Delivery, choice: Choice | None, target: Target) -> web.StreamResponse:
    """Send what there is of a target in the form chosen, or without a choice one instance as it is."""
    if isinstance(delivery, Cached):
        # All are looked at, so that one that cannot be sent is known before the first byte.
        to_transcode = [each for each in delivery.instances if choice is not None and must_transcode(choice, each.info)]
        if choice is not None and to_transcode:
            return await wado_transcoded.send(request, delivery, choice, target)
        return await wado_cached.send(request, delivery, choice, target)
    first = await delivery.reader.first()
    if choice is not None and (must_transcode(choice, first) or (choice.multipart and may_transcode(choice))):
        return await wado_transcoded.send(request, delivery, choice, target)
    if choice is None or not choice.multipart:
        return await _send_one(request, delivery, first)
    return await _send_multipart(request, delivery, choice, target)


def _wants_raw(request: web.Request, *, single: bool) -> bool:
    """`?multipart=false`, which existing uploaders send for one instance."""
    value = request.query.get("multipart", "true").lower()
    if value not in ("true", "false"):
        raise BadRequest("multipart must be true or false")
    if value == "false" and not single:
        raise BadRequest("multipart=false is for a single instance")
    return value == "false"


async def _send_one(request: web.Request, delivery: Arriving, info: InstanceInfo) -> web.StreamResponse:
    response = web.StreamResponse(headers={"X-Cache": "MISS", "Content-Type": instance_type(info)})
    await response.prepare(request)
    try:
        async for instance in delivery.reader:
            await _send_instance(request, response, instance)
        await response.write_eof()
    except ArchiveError as error:
        cut(request, error)
    return response


async def _send_multipart(
    request: web.Request, delivery: Arriving, choice: Choice, target: Target
) -> web.StreamResponse:
    boundary = multipart.new_boundary()
    status, headers = partial_headers(delivery.missing)
    headers |= {"X-Cache": "MISS", "Content-Type": multipart.content_type(boundary)}
    response = web.StreamResponse(status=status, headers=headers)
    base = base_url(request)
    await response.prepare(request)
    first = True
    try:
        async for instance in delivery.reader:
            info = instance.instance.info
            must_transcode(choice, info)  # never true here, but raises for what the client does not take
            header = part_header(boundary, info, target, base, first=first)
            first = False
            await _send_instance(request, response, instance, header)
        await write(request, response, multipart.closing(boundary))
        await response.write_eof()
    except (ArchiveError, NotAcceptable, ValueError) as error:
        cut(request, error)
    return response


async def _send_instance(
    request: web.Request, response: web.StreamResponse, instance: InstanceReader, head: bytes = b""
) -> None:
    """Send `head` and the instance. Headers go out with the first chunk behind them."""
    async for chunk in instance:
        if instance.offset == instance.instance.header_size and not instance.has_all:
            head += chunk
            continue
        if head and len(chunk) <= SMALL_CHUNK:
            chunk = head + chunk  # noqa: PLW2901
        elif head:
            await write(request, response, head)
        head = b""
        await write(request, response, chunk)
