"""Searches on several archives: one list of what all have, and what happens when some of them fail."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from pydicom.dataset import Dataset

import dul
from tests.corpus import Corpus, uid
from tests.peers.dcmtk import Dcmqrscp
from tests.peers.orthanc import Orthanc
from tests.peers.process import HOST, Address, free_port
from tests.peers.pynetdicom_peer import PynetdicomScp
from tests.proxy.finding import (
    Answers,
    Script,
    Scripted,
    ask,
    failing,
    fetch,
    giving,
    made,
    many,
    scripted,
    study,
    value,
    values,
)
from tests.proxy.running import Proxy, proxy_for

TERMS = ("ISO_IR 100", "ISO_IR 126")
FAST = {"timeouts": {"connect": 1, "associate": 0.3, "response": 0.3, "release": 0.3}}


@contextlib.asynccontextmanager
async def silent() -> AsyncIterator[Address]:
    """Something that accepts connections and never says a word."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.read()

    server = await asyncio.start_server(accept, HOST, 0)
    async with server:
        yield Address("SILENT", server.sockets[0].getsockname()[1])


def nobody(aet: str = "NOBODY") -> Address:
    """Return where nothing listens."""
    return Address(aet, free_port())


def peer_at(address: Address) -> dict[str, object]:
    """Return the least that the configuration says of a peer."""
    return {"aet": address.aet, "ip": address.host, "port": address.port}


def dimse(peers: list[dict[str, object]]) -> dict[str, object]:
    """Return the section of the configuration with these peers."""
    return {"proxyServer": {"aet": "PROXY"}, "peers": peers}


def studies_of(found: list[Any]) -> list[str]:
    """Return the study UIDs in order."""
    return sorted(values(found, "StudyInstanceUID"))


@contextlib.asynccontextmanager
async def in_front_of(one: Script, two: Script, **more: Any) -> AsyncIterator[tuple[Scripted, Scripted, Proxy]]:
    """Run two scripted archives, ONE and TWO, and the proxy in front of them; `more` is as for `proxy_for`."""
    async with (
        scripted(one, aet="ONE") as first,
        scripted(two, aet="TWO") as second,
        proxy_for(first.address, second.address, use_cget=True, **more) as proxy,
    ):
        yield first, second, proxy


# --- the union -----------------------------------------------------------------------------------------------


async def test_three_real_archives_with_the_same_studies(
    samples: Corpus, orthanc: Orthanc, dcmqrscp: Dcmqrscp, pynetdicom_archive: PynetdicomScp
) -> None:
    """What several have appears once, at each level."""
    addresses = [orthanc.address, dcmqrscp.address, pynetdicom_archive.address]
    async with proxy_for(*addresses, use_cget=True) as proxy:
        assert studies_of(await ask(proxy, "/studies")) == sorted(samples.study_uids)
        series = await ask(proxy, "/series")
        assert sorted(values(series, "SeriesInstanceUID")) == sorted({each.series_uid for each in samples.samples})
        instances = await ask(proxy, "/instances")
        assert sorted(values(instances, "SOPInstanceUID")) == sorted(samples.by_uid)
        (one,) = await ask(proxy, "/studies?PatientID=LATIN1")
        assert value(one, "PatientName") == {"Alphabetic": "Müller^Jürgen"}
        below = await ask(proxy, f"/studies/{value(one, 'StudyInstanceUID')}/instances")
        assert len(below) == 6


async def test_the_union_of_what_each_has() -> None:
    async with in_front_of(giving(study(1), study(2)), giving(study(2), study(3))) as (_, _, proxy):
        assert studies_of(await ask(proxy, "/studies")) == [uid(9, 1), uid(9, 2), uid(9, 3)]
        assert len(await ask(proxy, "/studies?limit=2")) == 2
        assert len(await ask(proxy, "/studies?offset=2")) == 1
        assert len(await ask(proxy, "/studies?limit=10&offset=1")) == 2


async def test_a_study_on_both_is_one_archives_never_a_blend() -> None:
    first, second = study(1, StudyDescription="A", PatientID="A"), study(1, StudyDescription="B", PatientID="B")
    async with in_front_of(giving(first), giving(second)) as (_, _, proxy):
        (found,) = await ask(proxy, "/studies")
    assert value(found, "StudyDescription") == value(found, "PatientID")


async def test_each_archive_has_its_own_character_set() -> None:
    """The default of a peer is for its answers only."""
    scripts = {term: giving(made(n).replace(b"ISO_IR 100", b" " * 10)) for n, term in enumerate(TERMS, 1)}
    async with contextlib.AsyncExitStack() as stack:
        peers: list[dict[str, object]] = []
        for number, (term, script) in enumerate(scripts.items()):
            archive = await stack.enter_async_context(scripted(script, aet=f"NO{number}"))
            peers.append({**peer_at(archive.address), "defaultCharacterSet": term})
        proxy = await stack.enter_async_context(proxy_for(use_cget=True, dimseProxySettings=dimse(peers)))
        names = values(await ask(proxy, "/studies"), "PatientName")
    assert sorted(name["Alphabetic"] for name in names) == ["Müller^Jürgen", "Mόller^Jόrgen"]


async def test_large_lists_are_merged_and_streamed() -> None:
    async with in_front_of(many(3000), many(4000)) as (_, _, proxy):
        found = await ask(proxy, "/studies")
    assert len(found) == 4000
    assert len(set(values(found, "StudyInstanceUID"))) == 4000


async def test_enough_cancels_all_of_them() -> None:
    async with in_front_of(many(), many()) as (one, two, proxy):
        assert len(await ask(proxy, "/studies?limit=5")) == 5
        async with asyncio.timeout(1):
            await one.closed.wait()
            await two.closed.wait()
        assert len(await ask(proxy, "/studies?limit=5")) == 5
        assert (one.associations, two.associations) == (1, 1)


async def test_a_client_that_leaves_cancels_all_of_them() -> None:
    async with in_front_of(many(), many()) as (one, two, proxy):
        async with proxy.http.get("/studies") as response:
            await response.content.readany()
            response.close()
        async with asyncio.timeout(1):
            await one.closed.wait()
            await two.closed.wait()


async def test_archives_are_asked_at_the_same_time() -> None:
    barrier = asyncio.Barrier(3)

    def waiting(number: int) -> Script:
        async def script(_: Dataset) -> Answers:
            await barrier.wait()
            yield study(number)

        return script

    async with contextlib.AsyncExitStack() as stack:
        archives = [await stack.enter_async_context(scripted(waiting(n), aet=f"NO{n}")) for n in (1, 2, 3)]
        proxy = await stack.enter_async_context(proxy_for(*(each.address for each in archives), use_cget=True))
        async with asyncio.timeout(3):
            assert len(await ask(proxy, "/studies")) == 3


# --- some fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1])
async def test_one_is_down(orthanc: Orthanc, samples: Corpus, position: int) -> None:
    """What the others have, with a warning that names the one that is missing."""
    addresses = [orthanc.address]
    addresses.insert(position, nobody("DOWN"))
    async with proxy_for(*addresses, use_cget=True) as proxy:
        for target, count in (("/studies", len(samples.study_uids)), ("/studies?PatientID=NOBODY", 0)):
            reply = await fetch(proxy, target)
            assert (reply.status, len(reply.json)) == (200, count)
            assert reply.headers["Warning"].startswith("299 ")
            assert "DOWN" in reply.headers["Warning"]
            assert "ORTHANC" not in reply.headers["Warning"]


async def test_one_is_silent() -> None:
    """It is given up at its timeout, and what the other has is not lost."""
    async with (
        scripted(giving(study(1))) as archive,
        silent() as address,
        proxy_for(archive.address, address, use_cget=True, peer=FAST) as proxy,
    ):
        started = time.monotonic()
        reply = await fetch(proxy, "/studies")
        assert time.monotonic() - started < 2
        assert (reply.status, len(reply.json)) == (200, 1)
        assert "SILENT" in reply.headers["Warning"]


async def test_one_refuses() -> None:
    async with in_front_of(giving(study(1)), failing(0xA900)) as (_, _, proxy):
        reply = await fetch(proxy, "/studies?fuzzymatching=true")
        assert (reply.status, len(reply.json)) == (200, 1)
        assert "TWO" in reply.headers["Warning"]
        assert "literal matching" in reply.headers["Warning"]


async def test_a_warning_is_a_header_whatever_the_archive_is_called() -> None:
    """Names are free text: quotes and letters must not break the header (RFC 9110 5.6.4)."""
    name = 'Archiv "Süd", Haus 2 \\ 放射線'
    async with scripted(giving(study(1)), aet="TWO") as two:
        peers = [{**peer_at(nobody()), "name": name}, peer_at(two.address)]
        async with proxy_for(use_cget=True, dimseProxySettings=dimse(peers)) as proxy:
            reply = await fetch(proxy, "/studies")
    assert (reply.status, len(reply.json)) == (200, 1)
    assert reply.headers["Warning"] == r'299 dicomweb-proxy "no answer from Archiv \"S?d\", Haus 2 \\ ???"'


async def test_all_are_down() -> None:
    async with proxy_for(nobody("ONE"), nobody("TWO"), use_cget=True) as proxy:
        reply = await fetch(proxy, "/studies")
    assert reply.status == 502
    assert "refused" in reply.json["error"]


async def test_all_are_silent() -> None:
    async with silent() as one, silent() as two, proxy_for(one, two, use_cget=True, peer=FAST) as proxy:
        assert (await fetch(proxy, "/studies")).status == 504


async def test_one_fails_midway() -> None:
    """Its failure comes too late for a header, so the answer must not look whole."""

    async def script(_: Dataset) -> Answers:
        for number in range(1000):
            yield made(number)
        await asyncio.sleep(0.1)
        raise dul.StatusError("C-FIND", 0xA700)

    async with in_front_of(giving(study(1)), script) as (_, _, proxy):
        response = await proxy.http.get("/studies")
        assert response.status == 200
        with pytest.raises(aiohttp.ClientError):
            await response.read()


async def test_one_fails_after_a_match_of_a_short_answer() -> None:
    async with in_front_of(giving(study(1)), failing(0xA700, study(2))) as (_, _, proxy):
        reply = await fetch(proxy, "/studies")
    assert reply.status == 502
    assert "TWO" in reply.json["error"]


async def test_the_warning_goes_when_the_archive_is_back() -> None:
    port = free_port()
    async with (
        scripted(giving(study(1)), aet="ONE") as one,
        proxy_for(one.address, Address("TWO", port), use_cget=True) as proxy,
    ):
        assert "TWO" in (await fetch(proxy, "/studies")).headers["Warning"]
        async with scripted(giving(study(2)), aet="TWO", port=port):
            reply = await fetch(proxy, "/studies")
            assert "Warning" not in reply.headers
            assert len(reply.json) == 2
