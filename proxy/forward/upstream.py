"""The DICOMweb server behind the proxy: sending requests there, and what is known of it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from proxy.archive.cache.depot import MEGABYTE
from proxy.config.schema import Config
from proxy.forward.bodies import Patience, Upload
from proxy.forward.client import Answer, Connector, Request
from proxy.forward.errors import failure_of
from proxy.forward.health import PROBE_SECONDS, Health
from proxy.forward.settings import authorization, tls_context
from proxy.forward.targets import Bases, Target

REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""Methods of requests (RFC 9110 9.2.2) that, without a body, may go over a connection that was used before: when the
upstream closes it at that moment, they are sent once more. Of others nobody would know whether they are carried out."""

KEEPALIVE_SECONDS: Final = 15.0
"""How long a connection without requests is kept. Few servers keep it for a shorter time."""

MAX_FIELD: Final = 16 * 1024
"""Bytes of a status line and of each header field of an answer. nginx takes 4 or 8 KiB for all of them."""

ADDED_BY_THE_LIBRARY: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""Fields that aiohttp adds to requests without them; what the client did not say is not said for it."""


class Upstream:
    """The server, or the two, that `dicomwebProxySettings` names.

    `via` is what the proxy calls itself in `Via`: another name in each process, so that a request that comes back can
    be told. `under_way` counts the requests there.
    """

    def __init__(self, config: Config) -> None:
        """Raises `UpstreamSettingsError` when a file or variable of the settings cannot be used."""
        assert config.dicomweb is not None
        settings = config.dicomweb
        self.bases = Bases(settings.qido_forwarding_url, settings.wado_forwarding_url)
        self.authorization = authorization(settings.credentials)
        signs_in = self.authorization is not None
        self.healths = tuple(Health(base, signs_in=signs_in) for base in self.bases.all)
        self.rewrites = settings.rewrite_urls
        self.timeouts = settings.timeouts
        self.max_upload = config.max_upload_mb * MEGABYTE
        self.via = f"dicomweb-proxy-{secrets.token_hex(4)}"
        self.under_way = 0
        self._tls = tls_context(settings)
        self._limit = config.limits.requests + len(self.healths)
        self._kept: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None

    @property
    def port(self) -> None:
        """The port on which anything but HTTP listens: there is none."""
        return

    async def start(self) -> None:
        """Make ready to send; nothing is connected yet."""
        self._kept = self._session(keepalive_timeout=KEEPALIVE_SECONDS)
        self._fresh = self._session(force_close=True)

    async def close(self, seconds: float = 0.0) -> None:
        """Close all connections, which needs none of the `seconds` that it may take."""
        for session in (self._kept, self._fresh):
            if session is not None:
                await session.close()

    def abort(self) -> None:
        """Nothing: a request ends with the handler that waits for it."""

    @contextlib.asynccontextmanager
    async def answer(
        self, method: str, target: Target, fields: CIMultiDict[str], upload: Upload | None = None
    ) -> AsyncIterator[Answer]:
        """Send a request; gives the answer when its head is here. At the end the answer is dropped, read or not.

        Raises `UpstreamError`, and `UploadError` when the client fails to send its body.
        """
        self.under_way += 1
        answer = None
        try:
            answer = await self._head(method, target, fields, upload)
            yield answer
        finally:
            self.under_way -= 1
            if answer is not None:
                answer.end()

    async def body(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """The body of an answer, as it arrives. Raises `UpstreamError` when it does not come to its end."""
        try:
            async with contextlib.aclosing(answer.pieces(self.timeouts.idle)) as pieces:
                async for piece in pieces:
                    yield piece
        except (aiohttp.ClientError, OSError) as error:
            raise failure_of(error, answer.url) from error

    async def check(self) -> None:
        """Bring up to date what is known of the server, by a small search when it was not asked lately."""
        await asyncio.gather(*(health.check(self._ask) for health in self.healths))

    # --- one request -----------------------------------------------------------------------------------------

    def _session(self, **connections: float | bool) -> aiohttp.ClientSession:
        connector = Connector(ssl=self._tls or True, limit=self._limit, **connections)  # type: ignore[arg-type]
        return aiohttp.ClientSession(
            connector=connector,
            request_class=Request,
            response_class=Answer,
            cookie_jar=aiohttp.DummyCookieJar(),  # cookies are the client's
            auto_decompress=False,
            max_line_size=MAX_FIELD,
            max_field_size=MAX_FIELD,
            skip_auto_headers=ADDED_BY_THE_LIBRARY,
            timeout=aiohttp.ClientTimeout(connect=self.timeouts.connect),
        )

    async def _head(self, method: str, target: Target, fields: CIMultiDict[str], upload: Upload | None) -> Answer:
        session = self._kept if method in REPEATABLE and upload is None else self._fresh
        assert session is not None, "not started"
        health = next(each for each in self.healths if each.base == target.base)
        response = self.timeouts.response
        try:
            async with Patience(self.timeouts.connect + response) as patience:
                data = None if upload is None else upload.chunks(patience, response)
                answer = await session.request(method, target.url, headers=fields, data=data, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as error:
            if upload is not None and upload.failure is not None:
                raise upload.failure from error
            if upload is None:  # a server that does not want a body may end the connection
                health.note_failure()
            raise failure_of(error, target.url) from error
        assert isinstance(answer, Answer)
        health.note_answer(answer.status)
        return answer

    async def _ask(self, target: Target) -> int:
        fields = CIMultiDict({"Accept": "application/dicom+json", "Via": f"1.1 {self.via}"})
        if self.authorization is not None:
            fields["Authorization"] = self.authorization
        try:
            async with asyncio.timeout(PROBE_SECONDS), self.answer("GET", target, fields) as answer:
                return answer.status
        except TimeoutError as error:
            raise failure_of(error, target.url) from error


UPSTREAM: Final = web.AppKey("upstream", Upstream)
