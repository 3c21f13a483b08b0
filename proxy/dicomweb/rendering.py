"""What rendered answers have in common, by WADO-RS and WADO-URI: which forms an instance has (PS3.18 8.7.4), and the
answer with one of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from aiohttp import web

from proxy.archive.retrieval.delivery import Cached, Delivery
from proxy.archive.spool.spool import InstanceInfo
from proxy.dicomweb.accept import Accept, Choice, NotAcceptable, Offer, choose
from proxy.dicomweb.localfile import LocalFile
from proxy.dicomweb.transcode import run
from proxy.dicomweb.validators import REVALIDATE, is_known
from proxy.render import jobs
from proxy.render.jobs import Picture

JPEG: Final = Offer("image/jpeg")
PNG: Final = Offer("image/png")
GIF: Final = Offer("image/gif")
PDF: Final = Offer("application/pdf")
HTML: Final = Offer("text/html")
MULTIPART_JPEG: Final = Offer("image/jpeg", multipart=True)
MULTIPART_PNG: Final = Offer("image/png", multipart=True)

IMAGES: Final = (JPEG, PNG, GIF)
PARTS: Final = (MULTIPART_JPEG, MULTIPART_PNG)

ENCAPSULATED_PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
STRUCTURED_REPORTS: Final = "1.2.840.10008.5.1.4.1.1.88."
"""How the UIDs of their classes begin (PS3.4 B.5), those of Key Object Selection among them."""

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
WITHOUT_FORM: Final = tuple(
    _STORAGE + end
    for end in (
        *("9.", "11."),  # waveforms, presentation states
        *("66.1", "66.2", "66.3", "66.5", "66.6", "67"),  # registrations, surfaces, tractography, world values
        *("104.2", "104.3", "104.4", "104.5"),  # documents that are no PDF
        *("481.3", "481.4", "481.5", "481.6", "481.7", "481.8", "481.9"),  # radiotherapy
    )
)
"""Beginnings of the UIDs of classes that have nothing to be seen (PS3.4 B.5)."""

FORM: Final = "1"
"""Changes when images come to look different, and is part of their entity tags for that."""

MAX_SIDE: Final = 10_000
"""Columns or rows of a picture; no screen has so many."""

MAX_AREA: Final = 50_000_000
"""Pixels of a picture that a client can ask for, larger than the image though it may be: 150 MB in colour."""


def forms_of(info: InstanceInfo) -> tuple[Offer, ...]:
    """The forms that instances of a class have as a single answer, the default first; none for some classes."""
    if info.sop_class_uid == ENCAPSULATED_PDF:
        return (PDF,)
    if info.sop_class_uid.startswith(STRUCTURED_REPORTS):
        return (HTML,)
    return () if info.sop_class_uid.startswith(WITHOUT_FORM) else IMAGES


def is_image(info: InstanceInfo) -> bool:
    """Whether an instance may have pixels; other classes without them are found out by looking for them."""
    return forms_of(info) == IMAGES


@dataclass(frozen=True, slots=True)
class View:
    """What is to be seen: frames by their numbers, from 1; without any, all in an animation and one in an image."""

    picture: Picture
    frames: Sequence[int] | None = None


async def info_of(delivery: Delivery) -> InstanceInfo:
    """What is known of the first instance before its data set is read."""
    return delivery.instances[0].info if isinstance(delivery, Cached) else await delivery.reader.first()


async def answer(
    request: web.Request, delivery: Delivery, local: LocalFile, offer: Offer, view: View
) -> web.StreamResponse:
    """One instance in one form. Raises as `run` does."""
    headers = {"X-Cache": "HIT" if isinstance(delivery, Cached) else "MISS", "Content-Type": offer.media_type}
    if local.etag is not None:
        checksum = zlib.crc32(f"{FORM} {offer} {view}".encode())
        headers |= REVALIDATE | {"ETag": f'"{local.etag}-{checksum:08x}"'}
        if is_known(request, headers["ETag"]):
            return web.Response(status=304, headers=headers)
    result = await run(request.app, _job(offer, view), local.file.fileno())
    if offer == HTML:
        headers["Content-Type"] = "text/html; charset=utf-8"
    return web.Response(body=result.content, headers=headers)


def _job(offer: Offer, view: View) -> jobs.Job:
    if offer == PDF:
        return jobs.document()
    if offer == HTML:
        return jobs.report()
    picture = replace(view.picture, media_type=offer.media_type)
    if offer == GIF and (view.frames is None or len(view.frames) > 1):
        return jobs.animation(picture, list(view.frames) if view.frames is not None else None)
    return jobs.picture(picture, view.frames[0] if view.frames else None)


def choose_form(accept: Accept, info: InstanceInfo, view: View) -> Choice:
    """The form of a single answer that the client likes best. Raises `NotAcceptable`."""
    offers = forms_of(info)
    if not offers:
        raise NotAcceptable("instances of this class are not rendered")
    if view.frames is not None and offers != IMAGES:
        raise NotAcceptable("the instance has no frames")
    if view.frames is not None and len(view.frames) > 1:
        offers = (GIF,)  # of the single forms, only this one has room for them
    return choose(accept, offers)
