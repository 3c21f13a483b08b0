"""QIDO-RS (PS3.18 10.6): searches become C-FINDs, their answers a list that is streamed as matches come."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from proxy.archive.errors import ArchiveError, ArchiveFailedError
from proxy.archive.peers.habits import RARE
from proxy.archive.query import search as archive_query
from proxy.archive.query.search import Found, Path
from proxy.dataset.dictionary import keyword_of
from proxy.dataset.levels import UNIQUE_KEY, Level
from proxy.dicomweb import dicomjson, multipart
from proxy.dicomweb.accept import choose_model, parse_accept
from proxy.dicomweb.attributes import ALL, RETURNED, Resource
from proxy.dicomweb.errors import BadRequest
from proxy.dicomweb.keys import archives_of
from proxy.dicomweb.nativexml import DICOM_XML, native_xml
from proxy.dicomweb.parameters import Query, append_wildcards, parse_query
from proxy.dicomweb.streaming import cut, write
from proxy.dicomweb.urls import base_url, resource_path, target_of
from proxy.security.audit.notes import Notes, notes_of

logger = logging.getLogger(__name__)

WHOLE_ANSWER: Final = 64 * 1024
"""Bytes up to which an answer is held back, so that most go out in one write with their length."""

RETRIEVE_URL: Final = 0x00081190
_NOT_SHOWN: Final = frozenset({0x00080052})  # Query/Retrieve Level is part of the C-FIND, not of the answer

# Asked for neither: RetrieveURL is the proxy's own, Specific Character Set comes with every C-FIND.
_NOT_ASKED: Final = frozenset({RETRIEVE_URL, 0x00080005})


# What a client is told of matching that few archives offer (PS3.18 8.3.4.2, 8.3.4.5, 8.3.4.6).
_DONE_INSTEAD: Final = {
    "fuzzymatching": "Only literal matching has been performed.",
    "emptyvaluematching": "Empty Value Matching has not been performed.",
    "multiplevaluematching": "Multiple Value Matching has not been performed.",
}


@dataclass(frozen=True, slots=True)
class QidoSettings:
    """`qidoAppendWildcard` and `qidoMinChars`."""

    append_wildcard: bool
    min_chars: int


SETTINGS: Final = web.AppKey("qido_settings", QidoSettings)


async def search(request: web.Request, resource: Resource) -> web.StreamResponse:
    """The handler of one search resource."""
    choice = choose_model(parse_accept(request.headers.get("Accept"), request.query.get("accept")))
    form = xml_form() if choice.multipart else JSON_FORM
    settings = request.app[SETTINGS]
    query = append_wildcards(
        parse_query(request.query.items()), enabled=settings.append_wildcard, min_chars=settings.min_chars
    )
    wanted = _search_for(request, resource, query)
    results = archives_of(request).search(wanted)
    async with contextlib.aclosing(results.answers) as answers:
        texts = _texts(answers, resource, query, base_url(request), notes_of(request))
        async with contextlib.aclosing(texts):
            return await _Answer(request, query, results, form).send(texts)


def _search_for(request: web.Request, resource: Resource, query: Query) -> archive_query.Search:
    fixed = target_of(request).uids if "study" in request.match_info else {}
    returned: dict[Path, None] = {(tag,): None for tag in RETURNED[resource] if tag not in _NOT_ASKED | RARE}
    returned.update(dict.fromkeys(path for path in query.include if path[0] not in _NOT_ASKED))
    if query.include_all:
        returned.update({(tag,): None for tag in sorted(ALL[resource])})
    welcome = [tag for tag in RETURNED[resource] if tag in RARE]
    matches = dict(query.matches)
    for level, uid in fixed.items():
        if matches.pop((UNIQUE_KEY[level],), uid) != uid:
            raise BadRequest("a UID in the query contradicts the one in the path")
    # A client that pages through the list counts on finding it in the same order (PS3.18 8.3.4.4).
    in_order = query.limit is not None or query.offset > 0
    wanted = archive_query.Search(resource.level, fixed, matches, tuple(returned), welcome, in_order)
    try:
        archive_query.check(wanted)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    return wanted


# --- answers -------------------------------------------------------------------------------------------------


async def _texts(
    answers: AsyncIterator[Found], resource: Resource, query: Query, base: str, notes: Notes
) -> AsyncGenerator[str, None]:
    """The JSON text of each answer from `offset`, up to `limit` of them; the C-FINDs are cancelled after that."""
    notes.results = 0
    last = None if query.limit is None else query.offset + query.limit
    if last == query.offset:
        return
    number = 0
    async for found in answers:
        number += 1
        if number > query.offset:
            notes.results += 1
            yield _text(found, resource, base)
        if number == last:
            return


def _text(found: Found, resource: Resource, base: str) -> str:
    found_uids = found.found_uids
    path = resource_path(found_uids[Level.STUDY], found_uids.get(Level.SERIES), found_uids.get(Level.IMAGE))
    replace = {RETRIEVE_URL: f'{{"vr":"UR","Value":[{json.dumps(base + path)}]}}'}
    character_set = found.archive.peer.default_character_set or "ISO_IR 6"
    for level, uid in found_uids.items():
        replace[UNIQUE_KEY[level]] = f'{{"vr":"UI","Value":[{json.dumps(uid)}]}}'
    return dicomjson.encode(
        found.elements[resource.level],
        default_character_set=character_set,
        parents=[found.patient, *(above for level, above in found.elements.items() if level is not resource.level)],
        leave_out=_NOT_SHOWN,
        replace=replace,
        require=RETURNED[resource],
    )


@dataclass(frozen=True, slots=True)
class _Form:
    """How the models of what was found are put together. `encoded` makes bytes of one in DICOM JSON."""

    content_type: str
    opening: bytes
    separator: bytes
    closing: bytes
    encoded: Callable[[str], bytes]


JSON_FORM: Final = _Form("application/dicom+json", b"[", b",", b"]", str.encode)


def xml_form() -> _Form:
    """The Native DICOM Model, a part for each match (PS3.18 10.6.4)."""
    boundary = multipart.new_boundary()
    return _Form(
        multipart.content_type(boundary, DICOM_XML),
        multipart.part_header(boundary, first=True, part_type=DICOM_XML),
        multipart.part_header(boundary, first=False, part_type=DICOM_XML),
        multipart.closing(boundary),
        native_xml,
    )


async def _batches(texts: AsyncIterator[str], form: _Form) -> AsyncGenerator[tuple[bytes, bool], None]:
    """The texts joined, `WHOLE_ANSWER` bytes or some more at a time, and whether another batch follows.

    The last one holds what is left, which may be nothing.
    """
    pieces: list[bytes] = []
    size = 0
    async for text in texts:
        pieces.append(form.encoded(text))
        size += len(pieces[-1])
        if size >= WHOLE_ANSWER:
            yield form.separator.join(pieces), True
            pieces, size = [], 0
    yield form.separator.join(pieces), False


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer on its way: what it is for, and what it is known to be."""

    request: web.Request
    query: Query
    results: archive_query.Results
    form: _Form

    async def send(self, texts: AsyncIterator[str]) -> web.StreamResponse:
        """Send the texts, at once where they are few."""
        async with contextlib.aclosing(_batches(texts, self.form)) as batches:
            first, more = await anext(batches)
            if more:
                return await self._stream(first, batches)
        headers = _headers(_warnings(self.query, self.results))
        if first or self.form is JSON_FORM:
            headers["Content-Type"] = self.form.content_type
            response = web.Response(body=self.form.opening + first + self.form.closing, headers=headers)
        else:
            response = web.Response(status=204, headers=headers)  # there is no multipart without a part
        # Sent before the C-FINDs are ended: an archive that ignores C-CANCEL would hold the answer back for seconds.
        await response.prepare(self.request)
        await response.write_eof()
        return response

    async def _stream(self, first: bytes, batches: AsyncIterator[tuple[bytes, bool]]) -> web.StreamResponse:
        """Send an answer whose end is not known yet.

        A list that then is found to be short, of an archive that was not known for that, is cut like one that fails.
        """
        form, remarks, warned = self.form, self.results.remarks, _warnings(self.query, self.results)
        excused = remarks.short | remarks.limited.keys()
        headers = _headers(warned + _conditions(remarks)) | {"Content-Type": form.content_type}
        response = web.StreamResponse(headers=headers)
        await response.prepare(self.request)
        try:
            await write(self.request, response, form.opening + first)
            async for batch, more in batches:
                if not more and (short := remarks.short - excused):
                    raise ArchiveFailedError("the archive cut its list", min(short))
                separator, end = form.separator if batch else b"", b"" if more else form.closing
                await write(self.request, response, separator + batch + end)
            await response.write_eof()
        except ArchiveError as error:
            cut(self.request, error)
        for warning in _warnings(self.query, self.results):
            if warning not in warned:
                logger.warning("too late for the header of an answer: %s", warning)
        return response


def _warnings(query: Query, results: archive_query.Results) -> list[str]:
    """What the client has to know of the answer beside its matches, as far as it is known by now."""
    remarks = results.remarks
    warnings = [f"no answer from {failure.archive}" for failure in results.failures]
    warnings += [
        f"{archive} may not have matched {keyword_of(tag) or f'{tag:08X}'}: its answers do not show it"
        for archive, tag in sorted(remarks.unchecked)
    ]
    warnings += [
        f"the list of {archive} {'is' if archive in remarks.short else 'may be'} cut" for archive in sorted(remarks.cut)
    ]
    warnings += [
        f"the list of {archive} was completed by study dates: studies without a date may be missing"
        for archive in sorted(remarks.undated)
    ]
    warnings += [f"The {name} parameter is not supported. {_DONE_INSTEAD[name]}" for name in query.extended]
    return warnings


def _conditions(remarks: archive_query.Remarks) -> list[str]:
    """What may turn out at the end of an answer that has begun to be sent."""
    return [
        f"{archive} gives at most {number} answers to a search: where it has more, some may be missing"
        for archive, number in sorted(remarks.limited.items())
    ]


def _headers(warnings: list[str]) -> dict[str, str]:
    return {"Warning": ", ".join(f"299 dicomweb-proxy {_quoted(text)}" for text in warnings)} if warnings else {}


def _quoted(text: str) -> str:
    """A quoted-string of RFC 9110 5.6.4; headers are ASCII, and an archive may be called anything."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped.encode("ascii", "replace").decode()}"'
