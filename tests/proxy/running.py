"""Running the proxy in a test's own event loop, in front of one or several archives."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import aiohttp

from proxy.config.checking import parse_config
from proxy.service import running
from tests.peers.process import HOST, Address

PROXY_AET = "PROXY"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy, and a session whose relative URLs lead to it. `address` is where archives send to."""

    url: str
    http: aiohttp.ClientSession
    dimse_port: int | None

    @property
    def address(self) -> Address:
        """Where its C-STORE SCP listens; only without `use_cget`."""
        assert self.dimse_port is not None, "nothing listens: the archives are asked with C-GET"
        return Address(PROXY_AET, self.dimse_port)


def settings(
    *archives: Address,
    use_cget: bool = False,
    peer: Mapping[str, object] | None = None,
    dimse_port: int = 0,
    **more: object,
) -> dict[str, object]:
    """Return a configuration on free loopback ports; `peer` are further keys of each peer, `more` of the whole.

    `dimse_port` is for archives that cannot be told a new move destination without a restart.
    """
    peers = [{"aet": each.aet, "ip": each.host, "port": each.port, **(peer or {})} for each in archives]
    return {
        "proxyMode": "dimse",
        "webserverHost": HOST,
        "webserverPort": 0,
        "useCget": use_cget,
        "enableCache": False,
        "shutdownSeconds": 2,
        "dimseProxySettings": {"proxyServer": {"aet": PROXY_AET, "ip": HOST, "port": dimse_port}, "peers": peers},
        **more,
    }


@contextlib.asynccontextmanager
async def proxy_for(
    *archives: Address,
    use_cget: bool = False,
    peer: Mapping[str, object] | None = None,
    dimse_port: int = 0,
    **more: object,
) -> AsyncIterator[Proxy]:
    """Run the proxy in front of `archives`; the arguments are those of `settings`. Its storage goes with it."""
    with tempfile.TemporaryDirectory(prefix="storage-") as storage:
        more = {"storagePath": storage, **more}
        config = parse_config(settings(*archives, use_cget=use_cget, peer=peer, dimse_port=dimse_port, **more))
        async with running(config) as where:
            url = f"http://{HOST}:{where.http_port}"
            async with aiohttp.ClientSession(url) as http:
                yield Proxy(url, http, where.dimse_port)
