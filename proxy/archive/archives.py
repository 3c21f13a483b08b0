"""All archives together: what `dicomweb/` asks. Owns the peers' pools and the C-STORE SCP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import dul
from proxy.archive import query
from proxy.archive.errors import ArchiveError, NotFoundError
from proxy.archive.inbox import Inbox
from proxy.archive.peers import Archive
from proxy.archive.retrieve import Retrieval, Target, retrieve
from proxy.config_schema import DimseSettings
from proxy.dataset.levels import Level


class Archives:
    """The configured peers and the proxy's own application entity."""

    def __init__(self, settings: DimseSettings, *, listen: bool) -> None:
        """`listen` says whether a C-STORE SCP is needed: not when all peers are asked with C-GET."""
        self.archives = tuple(Archive(peer) for peer in settings.peers)
        self.inbox = Inbox(settings.peers)
        self._settings = settings
        self._server: dul.Server | None = None
        if listen:
            self._server = dul.Server(
                self.inbox,
                ae_title={settings.proxy_server.aet, *(peer.local_aet for peer in settings.peers)},
                admit=self.inbox.admit,
                server_limits=dul.ServerLimits(connections=200, connections_per_host=100),
            )

    @property
    def port(self) -> int | None:
        """The port of the C-STORE SCP, if it listens."""
        return self._server.port if self._server is not None else None

    async def start(self) -> None:
        """Listen; `OSError` when the address or port cannot be had."""
        if self._server is not None:
            await self._server.start(self._settings.proxy_server.ip, self._settings.proxy_server.port)

    async def close(self, seconds: float) -> None:
        """Listen no more and end every association, by release where that takes no longer than `seconds`."""
        if self._server is not None:
            await self._server.close()
        await asyncio.gather(*(archive.close(seconds) for archive in self.archives))

    def abort(self) -> None:
        """Abort every association to an archive: requests that use one end at once."""
        for archive in self.archives:
            archive.abort()

    async def check_all(self) -> None:
        """Bring the archives' health up to date, by C-ECHO where they were not used lately."""
        await asyncio.gather(*(archive.check() for archive in self.archives))

    def search(self, wanted: query.Search) -> query.Results:
        """Ask all archives at once; see `query.search`."""
        return query.search(self.archives, wanted)

    @contextlib.asynccontextmanager
    async def retrieve(self, target: Target) -> AsyncIterator[Retrieval]:
        """Retrieve from the archive that has the study; see `retrieve.retrieve`."""
        archive = await self._locate(target.study)
        async with retrieve(archive, target, self.inbox) as retrieval:
            yield retrieval

    async def _locate(self, study: str) -> Archive:
        """The archive that has the study; one that is alone need not be asked.

        Raises `NotFoundError` only when every archive has answered that it has not.
        """
        if len(self.archives) == 1:
            return self.archives[0]
        results = self.search(query.Search(Level.STUDY, {Level.STUDY: study}))
        async with contextlib.aclosing(results.answers) as answers:
            async for found in answers:
                return found.archive
        failures: list[ArchiveError] = results.failures
        raise failures[0] if failures else NotFoundError("nothing found")
