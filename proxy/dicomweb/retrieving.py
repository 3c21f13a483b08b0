"""Getting hold of instances for a request, as every handler of a retrieval does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from proxy.archive.retrieval.delivery import Delivery
from proxy.archive.retrieval.target import Target
from proxy.dicomweb.keys import archives_of
from proxy.security.audit.notes import notes_of


@contextlib.asynccontextmanager
async def retrieved(request: web.Request, target: Target) -> AsyncIterator[Delivery]:
    """What there is of `target` in the archives that the user may use; see `ArchivesView.retrieve`.

    The record of the request learns whose it was.
    """
    async with archives_of(request).retrieve(target) as delivery:
        try:
            yield delivery
        finally:
            notes_of(request).patients |= delivery.patients - {""}
