"""Which hosts may send C-STOREs, and under which AE title: the archives' addresses, and what stands in `storeHosts`.

An AE title is a name that any program can give itself; an address on a hospital's network is harder to come by. Host
names are looked up beforehand and again every minute, so that the question itself is answered at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from proxy.addresses import Address, Network, is_in, parse_address
from proxy.config.schema import Peer

logger = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 60.0
"""How long the addresses of a host name are taken to hold."""

HURRY_SECONDS: Final = 5.0
"""After a refusal host names are looked up again, since an archive may have moved; but no more often than this."""

LOOKUP_SECONDS: Final = 5.0
"""How long a lookup may take."""

LOG_SECONDS: Final = 60.0
"""How long the refusal of one host under one AE title is not logged again."""

LOGGED_CALLERS: Final = 100
"""Callers whose refusal is remembered; beyond, refusals are not logged, since somebody tries many."""

_LOCALHOST: Final[frozenset[Address]] = frozenset({ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1")})


@dataclass(frozen=True, slots=True)
class _Sender:
    """An archive as a caller: its AE titles, the host that it is called at, and the networks beside."""

    ae_titles: frozenset[str]
    host: str
    networks: tuple[Network, ...]

    @classmethod
    def of(cls, peer: Peer) -> _Sender:
        titles = frozenset({peer.aet, *peer.store_aets})
        return cls(titles, peer.ip, peer.store_hosts)


class KnownHosts:
    """The hosts of the configured archives. Its state belongs to the event loop's thread."""

    def __init__(self, peers: Iterable[Peer]) -> None:
        self._senders = tuple(map(_Sender.of, peers))
        self._addresses: dict[str, frozenset[Address]] = {}  # by host, as far as they are known
        self._names: set[str] = set()
        for sender in self._senders:
            address = parse_address(sender.host)
            if address is None:
                self._names.add(sender.host)
            else:
                self._addresses[sender.host] = frozenset({address})
        self._failing: set[str] = set()
        self._hurry = asyncio.Event()
        self._refreshing: asyncio.Task[None] | None = None
        self._logged: dict[tuple[str, str], float] = {}

    async def start(self) -> None:
        """Look host names up, for `LOOKUP_SECONDS` at most, and keep them fresh from then on."""
        if self._names:
            await self._look_all_up()
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())

    async def close(self) -> None:
        """Look nothing up any more."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refreshing

    def allows(self, caller_ae_title: str, host: str) -> bool:
        """Tell whether an archive that calls itself so may send C-STOREs from the address `host`.

        A refusal is logged, and names the keys that would allow it. A host name that could not be looked up yet
        allows nothing.
        """
        address = parse_address(host)
        senders = [sender for sender in self._senders if caller_ae_title in sender.ae_titles]
        if address is not None and any(self._is_host_of(sender, address) for sender in senders):
            return True
        self._hurry.set()
        self._log_refusal(caller_ae_title, host, [each.host for each in senders if each.host not in self._addresses])
        return False

    def is_host_of(self, peer: Peer, host: str) -> bool:
        """Tell whether an archive may send C-STOREs from the address `host`."""
        address = parse_address(host)
        return address is not None and self._is_host_of(_Sender.of(peer), address)

    def _is_host_of(self, sender: _Sender, address: Address) -> bool:
        addresses = self._addresses.get(sender.host, frozenset())
        if address in addresses:
            return True
        # This machine has an address of either family, and which of them a connection comes from is up to its archive.
        if address in _LOCALHOST and not _LOCALHOST.isdisjoint(addresses):
            return True
        return is_in(address, sender.networks)

    def _log_refusal(self, caller_ae_title: str, host: str, unresolved: list[str]) -> None:
        now = time.monotonic()
        self._logged = {caller: until for caller, until in self._logged.items() if until > now}
        caller = (caller_ae_title, host)
        if caller in self._logged or len(self._logged) >= LOGGED_CALLERS:
            return
        self._logged[caller] = now + LOG_SECONDS
        reason = "no archive of that AE title has this address"
        if unresolved:
            reason = f"the addresses of {', '.join(unresolved)} are not known yet"
        logger.warning(
            "C-STOREs from %s under the AE title %s are refused: %s; if they are an archive's, add the address to "
            "storeHosts of that peer, or set proxyServer.checkStoreHost to false",
            host,
            ascii(caller_ae_title),
            reason,
        )

    # --- looking up ------------------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        while True:
            self._hurry.clear()
            await asyncio.sleep(HURRY_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_SECONDS - HURRY_SECONDS):
                    await self._hurry.wait()
            await self._look_all_up()

    async def _look_all_up(self) -> None:
        await asyncio.gather(*map(self._look_up, self._names))

    async def _look_up(self, name: str) -> None:
        """Find the addresses of a host name; where that fails, the last ones stay."""
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # TimeoutError is one of the former
            if name not in self._failing:
                self._failing.add(name)
                reason = getattr(error, "strerror", None) or str(error) or f"no answer within {LOOKUP_SECONDS:g} s"
                logger.warning("the addresses of %s cannot be looked up: %s", name, reason)
            return
        self._failing.discard(name)
        addresses = (parse_address(str(socket_address[0])) for *_, socket_address in found)
        self._addresses[name] = frozenset(address for address in addresses if address is not None)
