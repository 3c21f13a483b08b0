"""Which hosts may send C-STOREs: addresses, networks, and host names that are looked up beforehand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.archive.peers import hosts
from proxy.archive.peers.hosts import KnownHosts
from proxy.config.schema import Peer


def peer(ip: str, aet: str = "PACS", **more: object) -> Peer:
    """Return the configuration of a peer."""
    return Peer.model_validate({"aet": aet, "ip": ip, "port": 104, "name": aet, "localAet": "PROXY", **more})


@contextlib.asynccontextmanager
async def started(*peers: Peer) -> AsyncIterator[KnownHosts]:
    """Start, and leave no task behind."""
    tasks = asyncio.all_tasks()
    known = KnownHosts(peers)
    await known.start()
    try:
        yield known
    finally:
        await known.close()
        assert asyncio.all_tasks() == tasks


class Names:
    """Takes the place of the network's name service: what it answers can be changed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **addresses: list[str]) -> None:
        self.addresses = addresses
        self.delay = 0.0
        self.asked: list[str] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.getaddrinfo)

    async def getaddrinfo(self, host: str, port: object, **_: object) -> list[Any]:
        self.asked.append(host)
        await asyncio.sleep(self.delay)
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in self.addresses[host]]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are looked up again without a pause."""
    monkeypatch.setattr(hosts, "HURRY_SECONDS", 0.01)
    monkeypatch.setattr(hosts, "REFRESH_SECONDS", 0.02)


async def until(condition: Any) -> None:
    """Wait until the condition holds; fail when it does not within 2 s."""
    async with asyncio.timeout(2):
        while not condition():
            await asyncio.sleep(0.005)


# --- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ip", "store_hosts", "host", "allowed"),
    [
        ("10.1.2.3", [], "10.1.2.3", True),
        ("10.1.2.3", [], "10.1.2.4", False),
        ("10.1.2.3", [], "::ffff:10.1.2.3", True),
        ("::ffff:10.1.2.3", [], "10.1.2.3", True),
        ("10.1.2.3", ["10.9.9.9"], "10.9.9.9", True),
        ("10.1.2.3", ["10.9.0.0/16"], "10.9.255.1", True),
        ("10.1.2.3", ["10.9.0.0/16"], "::ffff:10.9.255.1", True),
        ("10.1.2.3", ["10.9.0.0/16"], "10.10.0.1", False),
        ("10.1.2.3", ["::ffff:10.9.0.0/112"], "10.9.0.7", True),
        ("10.1.2.3", ["::/0"], "10.9.0.7", False),
        ("10.1.2.3", ["fd00::/8"], "fd12::1", True),
        ("fd00::1", [], "fd00:0:0::1", True),
        ("fe80::1%eth0", [], "fe80::1%eth1", True),
        ("127.0.0.1", [], "127.0.0.1", True),
        ("127.0.0.1", [], "::1", True),
        ("::1", [], "127.0.0.1", True),
        ("10.1.2.3", [], "127.0.0.1", False),
        ("10.1.2.3", [], "", False),
        ("10.1.2.3", [], "10.1.2.3 ", False),
    ],
)
async def test_addresses(ip: str, store_hosts: list[str], host: str, allowed: bool) -> None:
    async with started(peer(ip, storeHosts=store_hosts)) as known:
        assert known.allows("PACS", host) is allowed


async def test_an_address_counts_for_the_ae_titles_of_its_archive_alone() -> None:
    one = peer("10.0.0.1", "ONE", storeAets=["ONE_SCU"], storeHosts=["10.0.1.1"])
    two = peer("10.0.0.2", "TWO")
    same_host = peer("10.0.0.1", "THREE", storeHosts=["10.0.3.3"])
    async with started(one, two, same_host) as known:
        allowed = {
            (title, host)
            for title in ("ONE", "ONE_SCU", "TWO", "THREE", "one", "")
            for host in ("10.0.0.1", "10.0.0.2", "10.0.1.1", "10.0.3.3")
            if known.allows(title, host)
        }
    assert allowed == {
        ("ONE", "10.0.0.1"), ("ONE_SCU", "10.0.0.1"), ("ONE", "10.0.1.1"), ("ONE_SCU", "10.0.1.1"),
        ("TWO", "10.0.0.2"), ("THREE", "10.0.0.1"), ("THREE", "10.0.3.3"),
    }  # fmt: skip


# --- host names ----------------------------------------------------------------------------------------------


async def test_localhost_is_really_looked_up() -> None:
    async with started(peer("localhost")) as known:
        assert known.allows("PACS", "127.0.0.1")
        assert known.allows("PACS", "::1")
        assert not known.allows("PACS", "10.1.2.3")


async def test_every_address_of_a_name_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, pacs=["10.0.0.1", "10.0.0.2", "fd00::1"])
    async with started(peer("pacs")) as known:
        assert all(known.allows("PACS", host) for host in ("10.0.0.1", "10.0.0.2", "fd00::1"))
        assert not known.allows("PACS", "10.0.0.3")


async def test_an_archive_that_moves_is_followed(monkeypatch: pytest.MonkeyPatch, hurried: None) -> None:
    names = Names(monkeypatch, pacs=["10.0.0.1"])
    async with started(peer("pacs")) as known:
        names.addresses["pacs"] = ["10.0.0.2"]
        await until(lambda: known.allows("PACS", "10.0.0.2"))
        assert not known.allows("PACS", "10.0.0.1")


async def test_a_refusal_hurries_the_next_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that has just moved is not refused for a minute."""
    monkeypatch.setattr(hosts, "HURRY_SECONDS", 0.01)
    names = Names(monkeypatch, pacs=["10.0.0.1"])
    async with started(peer("pacs")) as known:
        await asyncio.sleep(0.05)
        assert known.allows("PACS", "10.0.0.1")
        assert len(names.asked) == 1
        names.addresses["pacs"] = ["10.0.0.2"]
        assert not known.allows("PACS", "10.0.0.2")
        await until(lambda: known.allows("PACS", "10.0.0.2"))


async def test_last_addresses_stay_when_the_name_service_fails(
    monkeypatch: pytest.MonkeyPatch, hurried: None, caplog: pytest.LogCaptureFixture
) -> None:
    names = Names(monkeypatch, pacs=["10.0.0.1"])
    async with started(peer("pacs")) as known:
        del names.addresses["pacs"]
        before = len(names.asked)
        await until(lambda: len(names.asked) > before + 3)
        assert known.allows("PACS", "10.0.0.1")
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["the addresses of pacs cannot be looked up: Name or service not known"]


async def test_a_name_service_that_is_slow_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, hurried: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Starting takes no longer than one lookup may; until there is an answer nothing is allowed, and it is told."""
    monkeypatch.setattr(hosts, "LOOKUP_SECONDS", 0.05)
    names = Names(monkeypatch, pacs=["10.0.0.1"])
    names.delay = 60
    begun = asyncio.get_running_loop().time()
    async with started(peer("pacs"), peer("10.0.0.2", "OTHER")) as known:
        assert asyncio.get_running_loop().time() - begun < 1
        assert known.allows("OTHER", "10.0.0.2")
        assert not known.allows("PACS", "10.0.0.1")
        assert "the addresses of pacs cannot be looked up: no answer within 0.05 s" in caplog.text
        assert "C-STOREs from 10.0.0.1 under the AE title 'PACS' are refused: the addresses of pacs" in caplog.text
        names.delay = 0
        await until(lambda: known.allows("PACS", "10.0.0.1"))


# --- the log -------------------------------------------------------------------------------------------------


async def test_a_refusal_says_who_and_what_would_allow_it_once(caplog: pytest.LogCaptureFixture) -> None:
    async with started(peer("10.0.0.1")) as known:
        for _ in range(5):
            known.allows("PACS", "10.0.0.9")
            known.allows("EVIL\n2024 INFO all is well", "10.0.0.9")
    first, second = (record.getMessage() for record in caplog.records)
    assert first == (
        "C-STOREs from 10.0.0.9 under the AE title 'PACS' are refused: no archive of that AE title has this address; "
        "if they are an archive's, add the address to storeHosts of that peer, or set proxyServer.checkStoreHost to "
        "false"
    )
    assert "\n" not in second


async def test_refusals_are_logged_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hosts, "LOG_SECONDS", 0.02)
    async with started(peer("10.0.0.1")) as known:
        known.allows("PACS", "10.0.0.9")
        await asyncio.sleep(0.03)
        known.allows("PACS", "10.0.0.9")
    assert len(caplog.records) == 2


async def test_very_many_callers_cost_neither_log_nor_memory(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with started(peer("10.0.0.1")) as known:
        for number in range(3 * hosts.LOGGED_CALLERS):
            known.allows(f"T{number}", "10.0.0.9")
    assert len([record for record in caplog.records if record.name == hosts.__name__]) == hosts.LOGGED_CALLERS
