"""WADO-RS retrieval of studies, series and instances (PS3.18 10.4), streamed as the C-STOREs arrive.

A data set's bytes go out as the archive sent them, behind a Part 10 header made from the C-STORE command. The answer
begins with the first instance, so that whatever fails before is a proper HTTP error; what fails later cuts the
connection.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from dul.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from proxy.archive.errors import ArchiveError
from proxy.archive.retrieve import Retrieval, Target
from proxy.archive.spool import ArrivingInstance, InstanceInfo
from proxy.dicomweb import multipart, part10
from proxy.dicomweb.accept import Choice, NotAcceptable, choose_retrieve, parse_accept
from proxy.dicomweb.errors import BadRequest
from proxy.dicomweb.keys import ARCHIVES
from proxy.dicomweb.streaming import cut, write
from proxy.dicomweb.urls import base_url, resource_path, target_of

SMALL_CHUNK: Final = 64 * 1024
"""A first chunk up to this size is joined with the headers before it: one write costs less than the copy."""


async def retrieve(request: web.Request) -> web.StreamResponse:
    """The handler for a study, a series or an instance."""
    target = target_of(request)
    single = target.instance is not None
    accept = parse_accept(request.headers.get("Accept"), request.query.get("accept"))
    raw = _wants_raw(request, single=single)
    choice = choose_retrieve(accept, single=single) if not raw else None
    async with request.app[ARCHIVES].retrieve(target) as retrieval:
        first = await retrieval.first()
        if choice is not None:
            _check_transfer_syntax(choice, first)
        if choice is None or not choice.multipart:
            return await _send_one(request, retrieval, first)
        return await _send_multipart(request, retrieval, choice, target)


def _wants_raw(request: web.Request, *, single: bool) -> bool:
    """`?multipart=false`, which existing uploaders send for one instance."""
    value = request.query.get("multipart", "true").lower()
    if value not in ("true", "false"):
        raise BadRequest("multipart must be true or false")
    if value == "false" and not single:
        raise BadRequest("multipart=false is for a single instance")
    return value == "false"


def _check_transfer_syntax(choice: Choice, info: InstanceInfo) -> None:
    """`NotAcceptable` when the client named transfer syntaxes and the instance is in none of them.

    Where it named none, what is stored is sent as it is.
    """
    named = choice.transfer_syntaxes
    if info.transfer_syntax in choice.excluded or (named and "*" not in named and info.transfer_syntax not in named):
        raise NotAcceptable(
            f"the archive has it in transfer syntax {info.transfer_syntax}, and transcoding is not available"
        )


def _file_header(info: InstanceInfo, source_aet: str) -> bytes:
    return part10.file_header(
        info.sop_class_uid,
        info.sop_instance_uid,
        info.transfer_syntax,
        source_aet=source_aet,
        implementation_class_uid=IMPLEMENTATION_CLASS_UID,
        implementation_version=IMPLEMENTATION_VERSION_NAME,
    )


async def _send_one(request: web.Request, retrieval: Retrieval, info: InstanceInfo) -> web.StreamResponse:
    media_type = f"application/dicom; transfer-syntax={info.transfer_syntax}"
    response = web.StreamResponse(headers={"X-Cache": "MISS", "Content-Type": media_type})
    await response.prepare(request)
    sent = 0
    try:
        async for instance in retrieval:
            if sent:
                break  # an archive that sends more than was asked for
            await _send_instance(request, response, instance, _file_header(info, retrieval.archive.peer.aet))
            sent += 1
        await response.write_eof()
    except ArchiveError as error:
        cut(request, error)
    return response


async def _send_multipart(
    request: web.Request, retrieval: Retrieval, choice: Choice, target: Target
) -> web.StreamResponse:
    boundary = multipart.new_boundary()
    response = web.StreamResponse(headers={"X-Cache": "MISS", "Content-Type": multipart.content_type(boundary)})
    base = base_url(request)
    await response.prepare(request)
    first = True
    try:
        async for instance in retrieval:
            info = instance.info
            _check_transfer_syntax(choice, info)
            series = info.series or target.series
            header = multipart.part_header(
                boundary,
                first=first,
                transfer_syntax=info.transfer_syntax,
                content_location=base + resource_path(target.study, series, info.sop_instance_uid) if series else None,
            )
            first = False
            head = header + _file_header(info, retrieval.archive.peer.aet)
            await _send_instance(request, response, instance, head)
        await write(request, response, multipart.closing(boundary))
        await response.write_eof()
    except (ArchiveError, NotAcceptable, ValueError) as error:
        cut(request, error)
    return response


async def _send_instance(
    request: web.Request, response: web.StreamResponse, instance: ArrivingInstance, head: bytes
) -> None:
    async for chunk in instance:
        if head:
            if len(chunk) <= SMALL_CHUNK:
                chunk = head + chunk  # noqa: PLW2901
            else:
                await write(request, response, head)
            head = b""
        await write(request, response, chunk)
    if head:
        await write(request, response, head)
