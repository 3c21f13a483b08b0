"""All archives together: what `dicomweb/` asks. Owns the peers' pools, the C-STORE SCP, and the storage."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import dul
from proxy.archive.cache.depot import MEGABYTE, Depot
from proxy.archive.peers.archive import Archive
from proxy.archive.peers.hosts import KnownHosts
from proxy.archive.query import search as query
from proxy.archive.query.known import Known
from proxy.archive.retrieval.delivery import Delivery
from proxy.archive.retrieval.inbox import Inbox
from proxy.archive.retrieval.retrievals import Retrievals
from proxy.archive.retrieval.sources import Sources
from proxy.archive.retrieval.target import Target
from proxy.archive.storing.storing import Storing
from proxy.config_schema import Config
from proxy.dataset.levels import Level


class Archives:
    """The configured peers, the proxy's own application entity, and what is kept of retrievals."""

    def __init__(self, config: Config) -> None:
        assert config.dimse is not None
        settings = config.dimse
        self.archives = tuple(Archive(peer) for peer in settings.peers)
        self.depot = Depot(
            config.storage_path,
            use_cache=config.uses_cache,
            retention_seconds=config.cache_retention_minutes * 60,
            max_bytes=config.cache_max_size_mb * MEGABYTE,
        )
        self._hosts = KnownHosts(settings.peers)
        check = settings.proxy_server.check_store_host
        self.inbox = Inbox(settings.peers, self._hosts.allows if check else _allow_all)
        self._known = Known()
        sources = Sources(self.archives, self.inbox, self._known)
        self.retrievals = Retrievals(sources, self.depot, Level(config.use_fetch_level))
        receiver = next(archive for archive in self.archives if archive.name == config.store_to)
        self.storing = Storing(receiver, self.depot, self._known)
        self._settings = settings
        self._server: dul.Server | None = None
        if config.uses_cmove:
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
        """Take the storage, and listen where some archive is asked by C-MOVE.

        Raises `StorageInUseError` when another proxy has the storage, `OSError` when the address or port cannot be
        had.
        """
        await self.depot.open()
        if self._server is not None:
            await self._hosts.start()
            await self._server.start(self._settings.proxy_server.ip, self._settings.proxy_server.port)

    async def close(self, seconds: float) -> None:
        """Listen no more and end every association, by release where that takes no longer than `seconds`."""
        await self.retrievals.close()
        await self.storing.close()
        if self._server is not None:
            await self._server.close()
            await self._hosts.close()
        await asyncio.gather(*(archive.close(seconds) for archive in self.archives))
        await self.depot.close()

    def abort(self) -> None:
        """Abort every association to an archive: requests that use one end at once."""
        for archive in self.archives:
            archive.abort()

    async def check_all(self) -> None:
        """Bring the archives' health up to date, by C-ECHO where they were not used lately."""
        await asyncio.gather(*(archive.check() for archive in self.archives))

    def search(self, wanted: query.Search) -> query.Results:
        """Ask all archives at once; see `query.search`."""
        return query.search(self.archives, wanted, known=self._known)

    def retrieve(self, target: Target) -> AbstractAsyncContextManager[Delivery]:
        """What there is of `target`, from the cache or the archives that have it; see `Retrievals.open`."""
        return self.retrievals.open(target)


def _allow_all(calling_ae_title: str, host: str) -> bool:
    return True
