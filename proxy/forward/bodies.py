"""The body of a request on its way to the upstream: taken from the client as fast as the upstream takes it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from proxy.archive.cache.depot import MEGABYTE
from proxy.dicomweb.errors import UploadError
from proxy.dicomweb.streaming import let_it_come


class Patience:
    """How long the upstream may take until its answer begins; starts anew with each sign of progress."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)

    def start(self, seconds: float | None) -> None:
        """Wait that long from now on; for ever while None, when it is not the upstream that is waited for."""
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        with contextlib.suppress(RuntimeError):  # the answer is here already, or it is too late
            self._timeout.reschedule(deadline)


class Upload:
    """What a client sends. `failure` is why it cannot be taken to its end, which ends the request to the upstream."""

    def __init__(self, request: web.Request, max_bytes: int, idle: float) -> None:
        """Raises `UploadError` when the request announces more than `max_bytes`."""
        self._request = request
        self._max_bytes = max_bytes
        self._idle = idle
        self.failure: UploadError | None = None
        if (request.content_length or 0) > max_bytes:
            raise self._too_large()

    async def chunks(self, patience: Patience, response: float) -> AsyncIterator[bytes]:
        """The body in the pieces in which it comes.

        `patience` with the upstream starts anew when a piece is here, and is `response` seconds after the last.
        """
        patience.start(None)
        await let_it_come(self._request)
        received = 0
        while chunk := await self._next():
            received += len(chunk)
            if received > self._max_bytes:
                self.failure = self._too_large()
                raise self.failure
            patience.start(self._idle)
            yield chunk
            patience.start(None)
        patience.start(response)

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(self._idle):
                return await self._request.content.readany()
        except TimeoutError:
            self.failure = UploadError(408, f"nothing of the body came for {self._idle:g} s")
        except RequestPayloadError:
            self.failure = UploadError(400, "the body is not framed as its header says")
        raise self.failure

    def _too_large(self) -> UploadError:
        return UploadError(413, f"an upload may have {self._max_bytes // MEGABYTE} MB (key: maxUploadMB)")
