"""Who may store what: every combination of address, AE titles, what is asked for and originator, over the network."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from dul import dimse
from tests.dul import wire
from tests.dul.wire import Wire
from tests.faultpeer import Retrieve, ScriptedArchive, Stored, small_study
from tests.faultpeer.outcomes import data_sets
from tests.peers.process import HOST
from tests.proxy.retrieved import get, path_of
from tests.proxy.running import Proxy, proxy_for, settings

pytestmark = pytest.mark.usefixtures("nothing_left")

Outcome = int | tuple[int, int, int]
"""The status of the C-STORE-RSP, or result, source and reason of the A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""

STORED: Outcome = dimse.SUCCESS
NOT_ASKED_FOR: Outcome = 0x0124
UNKNOWN_CALLER: Outcome = (1, 1, 3)
UNKNOWN_CALLED: Outcome = (1, 1, 7)

ADDRESSES = {HOST: True, "127.0.0.9": False}
CALLING = {"ONE": "ONE", "ONE_SCU": "ONE", "TWO": "TWO", "SOMEBODY": None, "one": None}
"""AE titles, and whose they are."""

CALLED = {"PROXY1": "ONE", "PROXY2": "TWO", "PROXY": None}
"""AE titles of the proxy, and who is to call it so; `PROXY` is its own, by which neither does."""

ASKED_OF = {"study of one": "ONE", "study of two": "TWO", "study of nobody": None}
ORIGINATORS = ("right", "absent", "wrong ID", "of the other's move")


@dataclass(frozen=True, slots=True)
class Site:
    """A proxy with two archives, each of which has been asked for a study, and sends nothing yet."""

    proxy: Proxy
    one: ScriptedArchive
    two: ScriptedArchive
    studies: dict[str, Stored]

    def originator(self, kind: str, calling: str) -> dict[str, int | str]:
        """Return what a C-STORE-RQ names as its originator."""
        own, other = (self.two, self.one) if CALLING[calling] == "TWO" else (self.one, self.two)
        match kind:
            case "right":
                return {"originator": own.requests[0].calling_ae_title, "originator_id": own.requests[0].message_id}
            case "of the other's move":
                return {"originator": other.requests[0].calling_ae_title, "originator_id": other.requests[0].message_id}
            case "wrong ID":
                return {"originator": "SOMEBODY", "originator_id": 0xFFF0}
        return {}


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[Site]:
    """Let both archives be asked, and at the end let them send what is asked for, which must come out unharmed."""
    go_on = asyncio.Event()

    async def script(request: Retrieve) -> None:
        await go_on.wait()
        async with request.way() as send:
            status = await send(request.instances[0])
            await request.final(completed=1, failed=0, warning=0)
            assert status == dimse.SUCCESS

    studies = {name: small_study(1, 1, study, side=4)[0] for study, name in enumerate(ASKED_OF, 1)}
    async with (
        ScriptedArchive([studies["study of one"]], script, aet="ONE") as one,
        ScriptedArchive([studies["study of two"]], script, aet="TWO") as two,
    ):
        dimse_settings: Any = settings(one.address, two.address)["dimseProxySettings"]
        dimse_settings["peers"][0] |= {"localAet": "PROXY1", "storeAets": ["ONE_SCU"]}
        dimse_settings["peers"][1] |= {"localAet": "PROXY2"}
        async with proxy_for(dimseProxySettings=dimse_settings) as proxy:
            for archive, called in ((one, "PROXY1"), (two, "PROXY2")):
                archive.destination = type(archive.address)(called, proxy.address.port)
            wanted = [studies[name] for name in ("study of one", "study of two")]
            asking = [asyncio.create_task(get(proxy, path_of(each.sample, "study"))) for each in wanted]
            async with asyncio.timeout(5):
                while not (one.requests and two.requests):
                    await asyncio.sleep(0.01)
            yield Site(proxy, one, two, studies)
            go_on.set()
            for answer, stored in zip(await asyncio.gather(*asking), wanted, strict=True):
                assert data_sets(answer) == [stored.sample.sha256]


async def store(
    port: int, stored: Stored, *, address: str, calling: str, called: str, originator: dict[str, int | str]
) -> Outcome:
    """C-STORE an instance in every detail as a test says."""
    sample = stored.sample
    with await Wire.connect(port, address) as peer:
        context = (1, sample.sop_class_uid, [sample.transfer_syntax_uid])
        await peer.send(wire.associate_rq(context, called=called, calling=calling))
        kind, body = await peer.pdu()
        if kind == wire.RJ:
            return (body[1], body[2], body[3])
        request = wire.message(
            1,
            stored.whole,
            field=wire.C_STORE,
            message_id=1,
            priority=0,
            sop_class=sample.sop_class_uid,
            sop_instance=sample.sop_instance_uid,
            **originator,
        )
        await peer.send(request)
        return (await peer.message()).number("status")


def due(address: str, calling: str, called: str, study: str) -> Outcome:
    """Return what has to come of a C-STORE; whom it names as its originator proves nothing, and changes nothing."""
    if called == "PROXY":
        return UNKNOWN_CALLED
    caller = CALLING[calling]
    if caller is None or not ADDRESSES[address]:
        return UNKNOWN_CALLER
    if CALLED[called] != caller:
        return UNKNOWN_CALLED
    return STORED if ASKED_OF[study] == caller else NOT_ASKED_FOR


async def test_only_the_full_match_is_stored() -> None:
    """360 combinations; of these 12 are stored, each of them by the archive that was asked for that very instance."""
    combinations = list(itertools.product(ADDRESSES, CALLING, CALLED, ASKED_OF, ORIGINATORS))
    outcomes: dict[tuple[str, ...], Outcome] = {}
    async with site() as here:
        for each in combinations:
            address, calling, called, study, originator = each
            outcomes[each] = await store(
                here.proxy.address.port,
                here.studies[study],
                address=address,
                calling=calling,
                called=called,
                originator=here.originator(originator, calling),
            )
        status = await (await here.proxy.http.get("/status")).json()
    wrong = {each: outcome for each, outcome in outcomes.items() if outcome != due(*each[:4])}
    assert wrong == {}
    counts = {outcome: list(outcomes.values()).count(outcome) for outcome in outcomes.values()}
    assert len(outcomes) == 360
    assert counts[STORED] == 12
    assert status["storesRefused"] == counts[NOT_ASKED_FOR] == 24
    assert sum(counts.values()) - counts[STORED] - counts[NOT_ASKED_FOR] == 324


async def test_archives_of_one_ae_title_are_told_apart_by_their_addresses() -> None:
    """What one was asked for is not taken from the other."""
    go_on = asyncio.Event()
    study = small_study(1, 1, side=4)

    async def script(request: Retrieve) -> None:
        await go_on.wait()
        async with request.way() as send:
            await send(study[0])
        await request.final(completed=1, failed=0, warning=0)

    async with ScriptedArchive(study, script, aet="SAME") as archive:
        dimse_settings: Any = settings(archive.address)["dimseProxySettings"]
        # Nobody answers there: a search does not reach it, and C-STOREs may come from it.
        dimse_settings["peers"].append({"aet": "SAME", "ip": "127.0.0.9", "port": 9})
        async with proxy_for(dimseProxySettings=dimse_settings) as proxy:
            archive.destination = proxy.address
            asking = asyncio.create_task(get(proxy, path_of(study[0].sample, "study")))
            async with asyncio.timeout(5):
                while not archive.requests:
                    await asyncio.sleep(0.01)
            named = {"originator": "PROXY", "originator_id": archive.requests[0].message_id}
            outcomes = [
                await store(
                    proxy.address.port, study[0], address=address, calling="SAME", called="PROXY", originator=named
                )
                for address in ("127.0.0.9", HOST)
            ]
            go_on.set()
            await asking
    assert outcomes == [NOT_ASKED_FOR, STORED]


async def test_what_nobody_asked_for_costs_a_bounded_number_of_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    """An archive may be set up to send all that it gets."""
    stranger = small_study(1, 1, study=3, side=4)[0]
    async with site() as here:
        for _ in range(100):
            outcome = await store(
                here.proxy.address.port, stranger, address=HOST, calling="ONE", called="PROXY1", originator={}
            )
            assert outcome == NOT_ASKED_FOR
    said = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    refused = [each for each in said if each.startswith("an instance from ONE was refused: no retrieval asked for it")]
    assert 1 <= len(refused) <= 22
