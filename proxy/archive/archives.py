"""All archives together, and the views of some of them, which are what `dicomweb/` asks.

Owns the peers' pools, the C-STORE SCP, and the storage.
"""

from __future__ import annotations

import asyncio
import logging

from proxy.archive.cache.depot import MEGABYTE, Depot
from proxy.archive.peers.archive import Archive
from proxy.archive.peers.hosts import KnownHosts
from proxy.archive.peers.tls import TlsSettingsError, load_tls
from proxy.archive.query.known import Known
from proxy.archive.retrieval.inbox import Inbox
from proxy.archive.retrieval.listeners import Listeners
from proxy.archive.storing.storing import Storing
from proxy.archive.views import ArchivesView, Shared, view_name
from proxy.config.schema import Config, Peer
from proxy.dataset.levels import Level
from proxy.threads import in_thread

logger = logging.getLogger(__name__)


class Archives(ArchivesView):
    """The configured peers, the proxy's own application entity, and what is kept of retrievals.

    It is itself the view of all archives. `limits_users` says that users have to be told apart: then nobody may be
    taken for one who may use all.
    """

    def __init__(self, config: Config) -> None:
        assert config.dimse is not None
        settings = config.dimse
        archives = tuple(Archive(peer) for peer in settings.peers)
        depot = Depot(
            config.storage_path,
            use_cache=config.uses_cache,
            retention_seconds=config.cache_retention_minutes * 60,
            max_bytes=config.cache_max_size_mb * MEGABYTE,
        )
        self._hosts = KnownHosts(settings.peers)
        check = settings.proxy_server.check_store_host
        inbox = Inbox(
            settings.peers,
            self._hosts.allows if check else _allow_all,
            self._hosts.is_host_of if check else _from_anywhere,
        )
        known = Known()
        receiver = next(archive for archive in archives if archive.name == config.store_to)
        storing = Storing(receiver, depot, known)
        super().__init__(archives, Shared(depot, inbox, known, Level(config.use_fetch_level), receiver, storing), "")
        self.limits_users = config.auth.enabled
        self._views: dict[tuple[Archive, ...], ArchivesView] = {}
        self._settings = settings
        self._listeners = Listeners(settings, inbox)

    @property
    def port(self) -> int | None:
        """The port of the C-STORE SCP, if it listens in clear text."""
        return self._listeners.port

    @property
    def tls_port(self) -> int | None:
        """The port of the C-STORE SCP, if it listens over TLS."""
        return self._listeners.tls_port

    async def start(self) -> None:
        """Take the storage, and listen where some archive is asked by C-MOVE.

        Raises `StorageInUseError` when another proxy has the storage, `ListenError` when an address or port cannot be
        had.
        """
        await self.depot.open()
        if self._listeners.is_needed:
            await self._hosts.start()
            await self._listeners.start()

    async def reload_certificates(self) -> None:
        """Read the files of every `tls` anew, for the connections that come. Goes on with all of the old ones, and logs
        why, where one of the new cannot be used.
        """
        try:
            contexts = await in_thread(load_tls, self._settings)
        except TlsSettingsError as error:
            reasons = str(error).replace("\n", "; ")
            logger.error("DICOM TLS goes on with the certificates as they were: %s", reasons)
            return
        if contexts.server is not None:
            self._listeners.use_tls(contexts.server)
        for archive, context in zip(self.archives, contexts.peers, strict=True):
            if context is not None:
                archive.use_tls(context)
        if contexts.server is not None or any(contexts.peers):
            logger.info("DICOM TLS: the certificates were read anew")

    async def close(self, seconds: float) -> None:
        """Listen no more and end every association, by release where that takes no longer than `seconds`."""
        await asyncio.gather(*(view.retrievals.close() for view in self._all_views))
        await self._shared.storing.close()
        await self._listeners.close()
        await self._hosts.close()
        await asyncio.gather(*(archive.close(seconds) for archive in self.archives))
        await self.depot.close()

    def abort(self) -> None:
        """Abort every association to an archive: requests that use one end at once."""
        for archive in self.archives:
            archive.abort()

    def view(self, peers: frozenset[str] | None) -> ArchivesView:
        """What those see who may use the archives of these names; None stands for all archives, also later ones.

        A view stays, so the sets have to be those that the configuration names.
        """
        if peers is None:
            return self
        archives = tuple(archive for archive in self.archives if archive.name in peers)
        if archives not in self._views:
            self._views[archives] = ArchivesView(archives, self._shared, view_name(archives))
        return self._views[archives]

    @property
    def retrieval_count(self) -> int:
        """Retrievals under way, for whatever view."""
        return sum(view.retrievals.count for view in self._all_views)

    @property
    def _all_views(self) -> list[ArchivesView]:
        return [self, *self._views.values()]


def _allow_all(calling_ae_title: str, host: str) -> bool:
    return True


def _from_anywhere(peer: Peer, host: str) -> bool:
    return True
