"""Forwarding a request and its answer: what the routes of dicomweb mode lead to."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final

from aiohttp import web
from multidict import CIMultiDict

from proxy.dicomweb.errors import error_response
from proxy.dicomweb.streaming import CONTINUE, cut, expects_continue, write
from proxy.dicomweb.urls import base_url
from proxy.forward.addresses import Addresses, addresses
from proxy.forward.bodies import Upload
from proxy.forward.client import Answer
from proxy.forward.errors import UpstreamError
from proxy.forward.headers import max_forwards, note_rewriting, sendable, towards_client, towards_upstream
from proxy.forward.rewrite import Rewriting, rewriting_for
from proxy.forward.targets import Target, origin_form
from proxy.forward.upstream import UPSTREAM, Upstream
from proxy.security.http.cors import is_preflight

logger = logging.getLogger(__name__)

REDIRECTS: Final = (301, 302, 303, 307, 308)

UNCHANGED: Final = (204, 206, 304)
"""Statuses of answers without a body, or with ranges of one, in which nothing can be replaced."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def forward(request: web.Request) -> web.StreamResponse:
    """Hand a request on, and its answer back. 502 or 504 when there is none, 508 when it comes back to the proxy."""
    upstream = request.app[UPSTREAM]
    target = upstream.bases.target(request.method, origin_form(request.raw_path))
    if any(upstream.via in value for value in request.headers.getall("Via", [])):
        logger.error("a request came back to the proxy: dicomwebProxySettings leads to the proxy itself")
        return error_response(508, "the configured DICOMweb server leads back to this proxy")
    if max_forwards(request) == 0:
        return web.Response(status=204)  # a question to the proxy alone
    try:
        return await _exchange(request, upstream, target)
    except UpstreamError as error:
        logger.warning("a request was not forwarded, or not answered: %s", error)
        return error_response(error.status, str(error))


@web.middleware
async def answer_options(request: web.Request, handler: Handler) -> web.StreamResponse:
    """`OPTIONS` that is no preflight (RFC 9110 9.3.7) goes to the upstream, unless the path is one of the proxy's own.

    `/` is both: `OPTIONS` asks there what the upstream can do (PS3.18 8.9).
    """
    resource = request.match_info.route.resource
    if request.method != "OPTIONS" or resource is None or is_preflight(request):
        return await handler(request)
    if resource.canonical == "/" or "path" in request.match_info:
        return await forward(request)
    return web.Response(status=204, headers={"Allow": ", ".join(sorted({route.method for route in resource}))})


async def _exchange(request: web.Request, upstream: Upstream, target: Target) -> web.StreamResponse:
    expects = expects_continue(request)
    upload = Upload(request, upstream.max_upload, upstream.timeouts.idle) if request.body_exists else None
    fields = towards_upstream(
        request, via=upstream.via, authorization=upstream.authorization, rewrites=upstream.rewrites
    )
    if expects and upload is not None:
        fields["Expect"] = CONTINUE
    async with upstream.answer(request.method, target, fields, upload) as answer:
        _check_status(answer, upstream)
        fields = towards_client(answer.headers, answer.version, upstream.via)
        rewriting = None
        if upstream.rewrites:
            known = addresses(upstream.bases.all, base_url(request))
            _rewrite_locations(answer, fields, known)
            rewriting = None if answer.status in UNCHANGED else rewriting_for(fields, known, answer.url)
        if rewriting is not None:
            note_rewriting(fields)
        response = web.StreamResponse(status=answer.status, reason=sendable(answer.reason or ""), headers=fields)
        await response.prepare(request)
        if request.method != "HEAD":
            await _stream(request, response, upstream, answer, rewriting)
        await response.write_eof()
        return response


def _check_status(answer: Answer, upstream: Upstream) -> None:
    """Raise `UpstreamError` for an answer that is for the proxy and not for the client."""
    if answer.status == 401 and upstream.authorization is not None:
        raise UpstreamError(f"{answer.url.host} port {answer.url.port} refuses the credentials of the proxy")
    if answer.status in (101, 407):
        raise UpstreamError(f"{answer.url.host} port {answer.url.port} answers with status {answer.status}")


def _rewrite_locations(answer: Answer, fields: CIMultiDict[str], known: Addresses) -> None:
    """Turn addresses of the upstream into the proxy's. Raises `UpstreamError` for a redirect to anywhere else."""
    for name in ("Location", "Content-Location"):
        if name in fields:
            rewritten = known.rewritten(fields[name], answer.url)
            if rewritten is not None:
                fields[name] = rewritten
            elif name == "Location" and answer.status in REDIRECTS:
                where = f"{answer.url.host} port {answer.url.port}"
                raise UpstreamError(f"{where} redirects to an address outside of what is configured")


async def _stream(
    request: web.Request,
    response: web.StreamResponse,
    upstream: Upstream,
    answer: Answer,
    rewriting: Rewriting | None,
) -> None:
    """Write the body as it comes. Cuts the connection when it does not come to its end."""
    try:
        async with aclosing(upstream.body(answer)) as body:
            async for chunk in body:
                for piece in (chunk,) if rewriting is None else filter(None, rewriting.take(chunk)):
                    await write(request, response, piece)
        for piece in () if rewriting is None else rewriting.finish():
            await write(request, response, piece)
    except (UpstreamError, ValueError) as error:
        cut(request, error)
