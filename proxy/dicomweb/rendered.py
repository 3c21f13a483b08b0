"""Rendered resources and thumbnails (PS3.18 10.4.1.1.3 and 10.4.1.1.4): images as JPEG, PNG or GIF, documents as PDF,
reports as HTML.

One image stands for a study, a series or a multi-frame instance, unless the client takes `multipart/related`: then all
come, one after the other.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncGenerator
from dataclasses import replace

from aiohttp import web

from proxy.archive.errors import ArchiveError
from proxy.archive.retrieval.delivery import Cached, Delivery
from proxy.archive.retrieval.target import Target
from proxy.dicomweb import multipart
from proxy.dicomweb.accept import Accept, NotAcceptable, choose, parse_accept
from proxy.dicomweb.errors import Unavailable
from proxy.dicomweb.frames import frame_numbers
from proxy.dicomweb.keys import archives_of
from proxy.dicomweb.localfile import LocalFile, arrived_file, local_file
from proxy.dicomweb.picture_parameters import picture_of, thumbnail_of
from proxy.dicomweb.rendering import GIF, HTML, IMAGES, PARTS, PDF, View, answer, choose_form, info_of, is_image
from proxy.dicomweb.representative import representative
from proxy.dicomweb.retrieving import retrieved
from proxy.dicomweb.streaming import cut, write
from proxy.dicomweb.transcode import run
from proxy.dicomweb.urls import base_url, resource_path, target_of
from proxy.dicomweb.wado_common import partial_headers
from proxy.render import jobs


async def retrieve(request: web.Request) -> web.StreamResponse:
    """The handler for a study, a series, an instance or frames, rendered."""
    target, accept = target_of(request), _accept_of(request)
    view = View(picture_of(request.query), _frames_of(request))
    several = view.frames is not None and len(view.frames) > 1
    choice = choose(accept, (*PARTS, GIF) if several else (*IMAGES, PDF, HTML, *PARTS))
    if choice.multipart:
        view = replace(view, picture=replace(view.picture, media_type=choice.offer.media_type))
        return await _send_parts(request, target, view)
    return await _send_one(request, target, accept, view)


async def thumbnail(request: web.Request) -> web.StreamResponse:
    """The handler for the thumbnail of a study, a series, an instance or a frame."""
    target, accept = target_of(request), _accept_of(request)
    frames = _frames_of(request)
    view = View(thumbnail_of(request.query), frames[:1] if frames else None)
    choice = choose(accept, IMAGES)
    archives = archives_of(request)
    target = await representative(archives, target)
    async with retrieved(request, target) as delivery:
        if not is_image(await info_of(delivery)):
            raise NotAcceptable("the instance is no image, and has no thumbnail")
        async with local_file(delivery, archives) as local:
            return await answer(request, delivery, local, choice.offer, view)


def _accept_of(request: web.Request) -> Accept:
    return parse_accept(request.headers.get("Accept"), request.query.get("accept"))


def _frames_of(request: web.Request) -> list[int] | None:
    text = request.match_info.get("frames")
    return None if text is None else frame_numbers(text)


async def _send_one(request: web.Request, target: Target, accept: Accept, view: View) -> web.StreamResponse:
    archives = archives_of(request)
    target = await representative(archives, target)
    async with retrieved(request, target) as delivery:
        choice = choose_form(accept, await info_of(delivery), view)
        async with local_file(delivery, archives) as local:
            return await answer(request, delivery, local, choice.offer, view)


# --- several images ------------------------------------------------------------------------------------------------


async def _send_parts(request: web.Request, target: Target, view: View) -> web.StreamResponse:
    """Every frame of every image, each a part. What fails before the first is still an error of its own."""
    async with retrieved(request, target) as delivery:
        status, headers = partial_headers(delivery.missing)
        headers["X-Cache"] = "HIT" if isinstance(delivery, Cached) else "MISS"
        boundary, media_type = multipart.new_boundary(), view.picture.media_type
        headers["Content-Type"] = multipart.content_type(boundary, media_type)
        response = web.StreamResponse(status=status, headers=headers)
        try:
            async with contextlib.aclosing(_parts(request, delivery, target, view)) as parts:
                async for location, content in parts:
                    first = not response.prepared
                    if first:
                        await response.prepare(request)
                    head = multipart.part_header(boundary, first=first, content_location=location, part_type=media_type)
                    await write(request, response, head + content)
            if not response.prepared:
                raise NotAcceptable("there is no image")
            await write(request, response, multipart.closing(boundary))
            await response.write_eof()
        except (ArchiveError, NotAcceptable, Unavailable) as error:
            if not response.prepared:
                raise
            cut(request, error)
        return response


async def _parts(
    request: web.Request, delivery: Delivery, target: Target, view: View
) -> AsyncGenerator[tuple[str | None, bytes], None]:
    """The address and the image of each frame. Of a study or a series, what has no pixels is left out."""
    base = base_url(request)
    async with contextlib.aclosing(_files(request, delivery)) as files:
        async for local in files:
            info = local.info
            series = info.series or target.series
            place = base + resource_path(target.study, series, info.sop_instance_uid) if series else None
            for number in view.frames or itertools.count(1):
                try:
                    result = await run(request.app, jobs.picture(view.picture, number), local.file.fileno())
                except NotAcceptable:
                    if target.instance is not None:
                        raise
                    break
                yield f"{place}/frames/{number}/rendered" if place else None, result.content
                if view.frames is None and number >= int(result.values["frames"]):
                    break


async def _files(request: web.Request, delivery: Delivery) -> AsyncGenerator[LocalFile, None]:
    """The instances, of which only images are read."""
    if isinstance(delivery, Cached):
        async with contextlib.aclosing(delivery.files()) as files:
            async for instance, file in files:
                if is_image(instance.info):
                    yield LocalFile(file, instance.info, instance.header_size, instance.size, instance.etag)
        return
    async for reader in delivery.reader:
        if is_image(reader.instance.info):
            async with arrived_file(reader, archives_of(request)) as local:
                yield local
