"""Where archives send what C-MOVE asks for: the ports of the C-STORE SCP, in clear text and over TLS.

Who may call and what becomes of an instance is the inbox's to say; here are the sockets, their number and their life.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import dul
from proxy.archive.peers.tls import SERVER_KEY, server_context
from proxy.archive.retrieval.inbox import Inbox
from proxy.config.schema import DimseSettings, Peer

logger = logging.getLogger(__name__)

CONNECTIONS_PER_HOST: Final = 100
"""Associations from one address. An archive needs one for each C-MOVE; some open several, or one for each instance and
are slow to close it …"""

CONNECTIONS_PER_MOVE: Final = 4
"""… so that it may be more where `maxAssociations` allows more C-MOVEs."""

HOSTS: Final = 2
"""All addresses together may have as many as so many alone: whoever takes all that one may have leaves room."""


class ListenError(OSError):
    """An address or port cannot be had; `host`, `port` and the configuration's `key` say which."""

    def __init__(self, error: OSError, host: str, port: int, key: str) -> None:
        super().__init__(error.errno, error.strerror)
        self.host = host
        self.port = port
        self.key = key


@dataclass(frozen=True, slots=True)
class _Port:
    server: dul.Server
    number: int
    key: str
    ssl: ssl.SSLContext | None = None


class Listeners:
    """The ports that the peers need: none for those that are asked by C-GET, one over TLS for those with `tls`."""

    def __init__(self, settings: DimseSettings, inbox: Inbox) -> None:
        """Raises `TlsSettingsError` when a file of `proxyServer.tls` cannot be used."""
        own = settings.proxy_server
        senders = [peer for peer in settings.peers if not peer.use_cget]
        self._host = own.ip
        self._ports: list[_Port] = []
        self._plain = self._tls = None
        if any(peer.tls is None for peer in senders):
            self._plain = _server(senders, inbox, over_tls=False)
            self._ports.append(_Port(self._plain, own.port, "dimseProxySettings.proxyServer"))
        if own.tls is not None and any(peer.tls is not None for peer in senders):
            self._tls = _server(senders, inbox, over_tls=True)
            self._ports.append(_Port(self._tls, own.tls.port, SERVER_KEY, server_context(own.tls)))

    @property
    def port(self) -> int | None:
        """The port in clear text, if there is one."""
        return self._plain.port if self._plain is not None else None

    @property
    def tls_port(self) -> int | None:
        """The port over TLS, if there is one."""
        return self._tls.port if self._tls is not None else None

    @property
    def is_needed(self) -> bool:
        """False where nothing listens."""
        return bool(self._ports)

    async def start(self) -> None:
        """Listen; `ListenError` when an address or port cannot be had."""
        for port in self._ports:
            try:
                await port.server.start(self._host, port.number, port.ssl)
            except OSError as error:
                raise ListenError(error, self._host, port.number, port.key) from error
        if self._tls is not None:
            logger.info("DIMSE over TLS: listens on %s port %d", self._host, self._tls.port)

    async def close(self) -> None:
        """Listen no more, and end every association."""
        for port in self._ports:
            await port.server.close()

    def use_tls(self, context: ssl.SSLContext) -> None:
        """Speak TLS by another context with those who call from now on."""
        if self._tls is not None:
            self._tls.use_tls(context)


def _server(senders: Sequence[Peer], inbox: Inbox, *, over_tls: bool) -> dul.Server:
    per_host = max(CONNECTIONS_PER_HOST, CONNECTIONS_PER_MOVE * sum(peer.max_associations for peer in senders))
    return dul.Server(
        inbox,
        ae_title={peer.local_aet for peer in senders},
        admit=partial(inbox.admit, over_tls=over_tls),
        server_limits=dul.ServerLimits(connections=HOSTS * per_host, connections_per_host=per_host),
    )
