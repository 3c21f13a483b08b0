"""STOW-RS (PS3.18 10.5): instances of an upload go to the archive as they arrive, part by part.

Nothing is decoded, and no instance is whole in memory. A part that does not come to its end is never taken for whole:
the association that it went on is aborted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from aiohttp import web

from proxy.archive.storing.storing import Outcome, Upload
from proxy.dicomweb.accept import choose_report, parse_accept
from proxy.dicomweb.errors import UploadError
from proxy.dicomweb.keys import archives_of
from proxy.dicomweb.stow_body import UploadBody, boundary_of, parts_of
from proxy.dicomweb.stow_instance import NotDicomError, read_beginning
from proxy.dicomweb.stow_response import CANNOT_UNDERSTAND, NO_MATCH, OTHER_STUDY, TOO_LARGE, Report
from proxy.dicomweb.streaming import let_it_come
from proxy.dicomweb.urls import base_url, target_of
from proxy.security.audit.notes import Notes, notes_of

MAX_UPLOAD: Final = web.AppKey("max_upload", int)
"""Bytes that the body of an upload may have."""


async def store(request: web.Request) -> web.Response:
    """The handler for all studies, and for one."""
    study = target_of(request).study if "study" in request.match_info else None
    storing = archives_of(request).storing
    if storing is None:
        raise UploadError(403, "uploads go to an archive that you may not use")
    accept = parse_accept(request.headers.get("Accept"), request.query.get("accept"))
    media_type = choose_report(accept).offer.media_type
    boundary = boundary_of(request)
    body = UploadBody(request, request.app[MAX_UPLOAD])
    await let_it_come(request)
    report = Report()
    try:
        async with storing.open() as upload:
            await _store_all(body, boundary, upload, study, report)
    finally:
        report.outcomes = upload.settled
        _record(notes_of(request), report)  # also what was stored before the client left
    if not report.outcomes and not report.refused:
        raise UploadError(400, "no part of the body is a DICOM instance")
    return report.response(base_url(request), study, media_type)


def _record(notes: Notes, report: Report) -> None:
    for uids, outcomes in ((notes.stored, report.stored), (notes.failed, report.failed)):
        for outcome in outcomes:
            uids.setdefault(outcome.info.study or "", []).append(outcome.info.sop_instance_uid)
            notes.patients |= {outcome.info.patient} - {""}


async def _store_all(body: UploadBody, boundary: str | None, upload: Upload, study: str | None, report: Report) -> None:
    """Store what comes. Where the body breaks off after an instance was stored, the answer is about what was."""
    failure: UploadError | None = None
    try:
        async with aclosing(parts_of(body, boundary)) as parts:
            async for part in parts:
                await _store_part(part, upload, study, report)
    except UploadError as error:
        failure = error
    report.outcomes = await upload.outcomes()
    if failure is not None and not report.stored:
        raise failure
    if failure is not None:
        report.others.append(TOO_LARGE if failure.status == 413 else CANNOT_UNDERSTAND)


async def _store_part(part: AsyncIterator[bytes], upload: Upload, study: str | None, report: Report) -> None:
    try:
        beginning = await read_beginning(part)
    except NotDicomError:
        report.others.append(CANNOT_UNDERSTAND)
        return
    info = beginning.info
    if info.study is None or info.series is None:
        report.refused.append(Outcome(info, NO_MATCH))
    elif study not in (None, info.study):
        report.refused.append(Outcome(info, OTHER_STUDY))
    else:
        await upload.store(info, beginning.head, part)
