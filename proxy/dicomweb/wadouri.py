"""WADO-URI (PS3.18 chapter 9): one instance by a query, as a Part 10 file or rendered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from proxy.archive.retrieval.target import Target
from proxy.archive.spool.spool import InstanceInfo
from proxy.dicomweb import wado
from proxy.dicomweb.accept import (
    ANY_TRANSFER_SYNTAX,
    SINGLE_DICOM,
    Accept,
    Choice,
    NotAcceptable,
    Offer,
    choose,
    parse_accept,
)
from proxy.dicomweb.errors import BadRequest
from proxy.dicomweb.keys import archives_of
from proxy.dicomweb.localfile import local_file
from proxy.dicomweb.picture_parameters import check_width, number_of, quality_of, size_of
from proxy.dicomweb.rendering import View, answer, forms_of, info_of
from proxy.dicomweb.retrieving import retrieved
from proxy.dicomweb.uids import is_valid_uid
from proxy.render.jobs import DEFAULT_QUALITY, Picture

NOT_SUPPORTED: Final = ("presentationUID", "presentationSeriesUID")
"""To pass over these would show something else than what is asked for."""

OF_IMAGES: Final = (
    "annotation",
    "columns",
    "frameNumber",
    "imageQuality",
    "region",
    "rows",
    "windowCenter",
    "windowWidth",
)
"""Parameters that must not come with `contentType=application/dicom` (PS3.18 9.5.1.2)."""


async def retrieve(request: web.Request) -> web.StreamResponse:
    """The handler. `Accept` counts only without `contentType`: viewers send the one for WADO-RS with it."""
    query = request.query
    target, view, transfer_syntaxes = _target(query), _view(query), _transfer_syntaxes(query)
    content_types = _content_types(query)
    archives = archives_of(request)
    async with retrieved(request, target) as delivery:
        offer = _form(content_types, request.headers.get("Accept"), await info_of(delivery))
        if offer == SINGLE_DICOM:
            return await wado.send(request, delivery, Choice(SINGLE_DICOM, transfer_syntaxes), target)
        async with local_file(delivery, archives) as local:
            return await answer(request, delivery, local, offer, view)


def _target(query: Mapping[str, str]) -> Target:
    """The instance (PS3.18 9.4.1.2)."""
    if query.get("requestType") != "WADO":
        raise BadRequest("requestType must be WADO")
    uids = []
    for name in ("studyUID", "seriesUID", "objectUID"):
        if name not in query:
            raise BadRequest(f"{name} is missing")
        if not is_valid_uid(query[name]):
            raise BadRequest(f"{name} is not a valid UID")
        uids.append(query[name])
    return Target(*uids)


def _content_types(query: Mapping[str, str]) -> Accept | None:
    """What the client wants it as, in the order that it prefers."""
    accept = parse_accept(query.get("contentType"))
    dicom = [each.media_type == SINGLE_DICOM.media_type for each in accept.header]
    if "transferSyntax" in query and not any(dicom):
        raise BadRequest("transferSyntax is for contentType=application/dicom")
    if not query.get("contentType"):
        return None
    if not dicom:
        raise BadRequest("contentType must be media types, with commas between")
    for name in OF_IMAGES:
        if name in query and all(dicom):
            raise BadRequest(f"{name} is not for contentType=application/dicom")
    return accept


def _form(content_types: Accept | None, header: str | None, info: InstanceInfo) -> Offer:
    offers = (*forms_of(info), SINGLE_DICOM)
    if content_types is not None:
        return choose(content_types, offers).offer
    try:
        return choose(parse_accept(header), offers).offer
    except NotAcceptable:
        return offers[0]


def _transfer_syntaxes(query: Mapping[str, str]) -> tuple[str, ...]:
    name = query.get("transferSyntax", ANY_TRANSFER_SYNTAX)
    if name != ANY_TRANSFER_SYNTAX and not is_valid_uid(name):
        raise BadRequest("transferSyntax must be a UID or *")
    return (name,)


def _view(query: Mapping[str, str]) -> View:
    """The image that is to be made (PS3.18 9.5.1.2)."""
    for name in NOT_SUPPORTED:
        if name in query:
            raise BadRequest(f"{name} is not supported")
    if query.get("anonymize", "no") != "no":
        raise BadRequest("anonymize is not supported")
    size = None
    if "rows" in query or "columns" in query:
        size = size_of("rows and columns", query.get("columns", ""), query.get("rows", ""))
    picture = Picture(
        quality=quality_of("imageQuality", query["imageQuality"]) if "imageQuality" in query else DEFAULT_QUALITY,
        window=_window(query),
        size=size,
        region=_region(query["region"]) if "region" in query else None,
        relative=True,
    )
    return View(picture, [_frame(query["frameNumber"])] if "frameNumber" in query else None)


def _frame(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,10}", text) is None or int(text) < 1:
        raise BadRequest("frameNumber must be a whole number from 1 on")
    return int(text)


def _window(query: Mapping[str, str]) -> tuple[float, float, str] | None:
    names = [name for name in ("windowCenter", "windowWidth") if name in query]
    if not names:
        return None
    if len(names) == 1:
        raise BadRequest("windowCenter and windowWidth need each other")
    center, width = number_of("windowCenter", query["windowCenter"]), number_of("windowWidth", query["windowWidth"])
    check_width("windowWidth", width)
    return center, width, "LINEAR"


def _region(text: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom in parts of the image, as left, top, width and height."""
    parts = [number_of("region", part.strip()) for part in text.split(",")]
    if len(parts) != 4 or not all(0 <= part <= 1 for part in parts):
        raise BadRequest("region must be four numbers from 0 to 1, with commas between")
    left, top, right, bottom = parts
    if left >= right or top >= bottom:
        raise BadRequest("the second corner of region must lie right of and below the first")
    return left, top, right - left, bottom - top
