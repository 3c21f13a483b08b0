"""The record of each request: made around all that serves it, so that refusals and failures are in it too.

The answer is written to its end in here, not behind: only then is it known whether the client has got it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.addresses import parse_address
from proxy.config.schema import Config
from proxy.dicomweb.errors import RETRY_AFTER_SECONDS, error_response
from proxy.security.audit.events import (
    NO_SIGN_IN,
    REDIRECT,
    REFUSED_ACCESS,
    REFUSED_SIGN_IN,
    UNKNOWN,
    Category,
    Event,
    Outcome,
    event_of,
    outcome_of,
)
from proxy.security.audit.notes import notes_of
from proxy.security.audit.paths import Place, place_of, searched_for
from proxy.security.audit.record import Record, uploaded
from proxy.security.audit.trail import Trail
from proxy.security.clients import client_address, is_trusted_proxy
from proxy.security.http.cors import is_preflight
from proxy.security.identity import identity_of
from proxy.security.paths import QUIET_PATHS, path_template

IDENTIFIER: Final = "X-Request-Id"
"""The header in which an answer has the identifier of its record, so that who complains of one can name it."""

CUT: Final = "cut"
GONE: Final = "client gone"

MAX_PATH: Final = 1024
"""Characters of a path that a record has."""

MAX_NAME: Final = 256
"""Characters of a user's name, or of a Patient ID."""

MAX_PATIENTS: Final = 20

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

_ANSWER: Final = web.RequestKey("audit_answer", web.StreamResponse)
_NAME: Final = web.RequestKey("request_identifier", str)


class Recorder:
    """Makes the records of requests for a trail."""

    def __init__(self, trail: Trail) -> None:
        self.trail = trail
        self._numbers = itertools.count(1)
        self._process = os.urandom(4).hex()
        self._stopping = False

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """For `cleanup_ctx`: the trail lasts as long as the application."""
        await self.trail.start()
        yield
        await self.trail.stop()

    async def note_stop(self, app: web.Application) -> None:
        """For `on_shutdown`: from now on, requests that are cancelled are cut by the proxy."""
        self._stopping = True

    async def note_answer(self, request: web.Request, response: web.StreamResponse) -> None:
        """For `on_response_prepare`: this is the answer that the client sees, whatever happens after it has begun."""
        if _NAME not in request:
            return  # it came to no middleware: it expects what there is not (RFC 9110 10.1.1)
        request[_ANSWER] = response
        given = response.headers.setdefault(IDENTIFIER, request[_NAME])
        if _IDENTIFIER.fullmatch(given):
            request[_NAME] = given  # another server's, whose answer is handed on

    async def serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Have a request served, and keep the record of it."""
        request[_NAME] = self._identifier(request)
        place = place_of(request.path, request.query)
        event = _event(request, place)
        if event is not None and self.trail.is_blocked:
            return _unavailable(request)
        visit = _Visit(request, place, time.time(), time.perf_counter())
        ended = ""
        try:
            response = await handler(request)
            if _ANSWER in request and request[_ANSWER] is not response:
                # The answer had begun; this other one is for nobody.
                ended = self._lost if isinstance(notes_of(request).failure, ConnectionError) else CUT
            else:
                await response.prepare(request)
                await response.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            # A client may leave when it has all, and before the handler is done with what it does behind that.
            ended = "" if visit.is_answered else self._lost
            raise
        finally:
            event = visit.by_answer() or event
            if event is not None:
                self.trail.put(visit.record(event, ended))
        return response

    @property
    def _lost(self) -> str:
        """What has become of a connection that is lost without a word."""
        return CUT if self._stopping else GONE

    def _identifier(self, request: web.Request) -> str:
        """That of a reverse proxy in front, or a new one."""
        given = request.headers.get(IDENTIFIER, "")
        if _IDENTIFIER.fullmatch(given) and is_trusted_proxy(request):
            return given
        return f"{self._process}-{next(self._numbers)}"


RECORDER: Final = web.AppKey("audit_recorder", Recorder)
"""Only there where a trail is kept. By it, others reach the trail: what has to be told to it, SIGHUP."""


def set_up_audit(app: web.Application, config: Config) -> None:
    """Give `app` what `record_access` needs, which does nothing where no key below `audit` says where to.

    Raises `AuditError`. What is set up after this ends before the trail does.
    """
    settings = config.audit
    if settings.file is None and not settings.journal and settings.syslog is None:
        return
    app[RECORDER] = recorder = Recorder(Trail(config))
    app.cleanup_ctx.append(recorder.run)
    app.on_shutdown.append(recorder.note_stop)
    app.on_response_prepare.append(recorder.note_answer)


@web.middleware
async def record_access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep a record of each request. The outermost middleware."""
    recorder = request.app.get(RECORDER)
    return await handler(request) if recorder is None else await recorder.serve(request, handler)


def _unavailable(request: web.Request) -> web.Response:
    again = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    response = error_response(503, "no record of the request can be kept, and one must be (key: audit.required)", again)
    if request.body_exists:
        response.force_close()  # what is left of the body is not read
    return response


def _event(request: web.Request, place: Place) -> Event | None:
    """What a request is; None where it is not worth a line unless it is refused."""
    if is_preflight(request) or (request.method == "GET" and path_template(request) in QUIET_PATHS):
        return None
    return event_of(request.method, place.template) if place.template else UNKNOWN


@dataclass(frozen=True, slots=True)
class _Visit:
    """A request that is served: when it came, in seconds since 1970 and by the clock for durations."""

    request: web.Request
    place: Place
    since: float
    started: float

    @property
    def answer(self) -> web.StreamResponse | None:
        """The answer that the client sees the beginning of."""
        return self.request.get(_ANSWER)

    @property
    def is_answered(self) -> bool:
        """True when the answer has been written to its end."""
        return self.answer is not None and self.answer.body_length > 0

    def by_answer(self) -> Event | None:
        """What an access is by its answer alone, whatever it would have been: a refusal, or the way to elsewhere."""
        match self.answer and self.answer.status:
            case 401:
                tried = "Authorization" in self.request.headers or notes_of(self.request).claimed
                return REFUSED_SIGN_IN if tried else NO_SIGN_IN
            case 403:
                return REFUSED_ACCESS
            case 301 | 302 | 303 | 307 | 308:
                return REDIRECT
        return None

    def record(self, event: Event, ended: str) -> Record:
        """The record, now that the request is over."""
        request, place, answer = self.request, self.place, self.answer
        notes, identity = notes_of(request), identity_of(request)
        remote = request.remote or ""
        client = str(client_address(request) or "")
        return Record(
            time=self.since,
            event=event[0],
            category=event[1],
            outcome=self._outcome(ended),
            status=answer.status if answer is not None else None,
            ended=ended,
            failure=type(notes.failure).__name__ if notes.failure is not None else "",
            user=identity.name[:MAX_NAME] if identity is not None else "",
            sign_in=identity.kind if identity is not None and identity.kind != "none" else "",
            claimed=notes.claimed[:MAX_NAME],
            client=client,
            connection="" if client in (remote, str(parse_address(remote))) else remote,
            method=request.method,
            resource=place.template,
            path=request.rel_url.raw_path[:MAX_PATH],
            study=place.study,
            series=place.series,
            instance=place.instance,
            query=searched_for(request.query) if event[1] is Category.SEARCH else {},
            results=notes.results,
            patients=tuple(patient[:MAX_NAME] for patient in sorted(notes.patients)[:MAX_PATIENTS]),
            stored=uploaded(notes.stored),
            failed=uploaded(notes.failed),
            cache=answer.headers.get("X-Cache", "") if answer is not None else "",
            sent=request.writer.output_size,
            received=request.content.total_bytes,
            seconds=time.perf_counter() - self.started,
            identifier=request[_NAME],
        )

    def _outcome(self, ended: str) -> Outcome:
        answer = self.answer
        if ended or answer is None:
            return Outcome.MINOR_FAILURE if ended == GONE else Outcome.SERIOUS_FAILURE
        # A range is all that was asked for; what else is partial lacks instances.
        partial = answer.status == 206 and "Content-Range" not in answer.headers
        return outcome_of(answer.status, partial=partial)
