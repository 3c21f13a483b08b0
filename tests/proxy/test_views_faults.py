"""Users who may use only some of the archives, where archives misbehave: nothing goes to whom it must not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import pytest

from proxy.archive.archives import Archives
from proxy.archive.retrieval.inbox import LimitedInbox
from proxy.archive.retrieval.retrieval import Retrieval
from proxy.archive.retrieval.target import Target
from proxy.archive.spool.spool import InstanceInfo, Spool
from proxy.config.checking import parse_config
from tests.faultpeer import Retrieve, Script, ScriptedArchive, Stored
from tests.faultpeer.outcomes import data_sets
from tests.faultpeer.retrieves import Originator, failing, honest, sending
from tests.peers.process import HOST, Address
from tests.proxy.retrieved import Answer, get, kept, path_of, read_parts
from tests.proxy.running import Proxy, proxy_for, settings
from tests.proxy.viewing import BRIGHT, DARK, HERE, THERE, USER, pictures, sign_users_in

pytestmark = pytest.mark.usefixtures("nothing_left")

SHARED = "SHARED"
"""An AE title that two archives have."""


@pytest.fixture(autouse=True)
def _users(monkeypatch: pytest.MonkeyPatch) -> None:
    sign_users_in(monkeypatch)


async def ask(proxy: Proxy, name: str, stored: Stored, level: str = "series") -> Answer:
    return await get(proxy, path_of(stored.sample, level), **{USER: name})


def in_front_of_both(here: ScriptedArchive, there: ScriptedArchive, *, use_cget: bool, **more: Any) -> Any:
    """A proxy in front of two archives on this machine, called `HERE` and `THERE`."""
    peers = [
        {"aet": archive.aet, "ip": HOST, "port": archive.port, "name": name, **more.pop(name, {})}
        for archive, name in ((here, HERE), (there, THERE))
    ]
    configured = settings(Address("X", 1), use_cget=use_cget)["dimseProxySettings"]
    assert isinstance(configured, dict)
    return proxy_for(use_cget=use_cget, **{"dimseProxySettings": {**configured, "peers": peers}, **more})


def same_series(count: int = 4) -> tuple[list[Stored], list[Stored]]:
    """What two archives have by the same UIDs, with other contents each."""
    return pictures(1, range(1, count + 1), DARK), pictures(1, range(1, count + 1), BRIGHT)


def whole(held: Sequence[Stored]) -> list[str]:
    return sorted(stored.sample.sha256 for stored in held)


# --- who sends what --------------------------------------------------------------------------------------------------


def id_of_the_other(others: ScriptedArchive) -> Any:
    """The Message ID of the C-MOVE that another archive was asked by."""

    def originator(_: Retrieve) -> Originator:
        return ("PROXY", others.requests[0].message_id) if others.requests else None

    return originator


@pytest.mark.parametrize("originator", ["absent", "wrong"])
async def test_two_archives_that_cannot_be_told_apart(
    originator: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one AE title at one address, with the same series, asked for at the same time.

    What they send might be of either, also where it names a C-MOVE: nobody gets it who may not use both.
    """
    monkeypatch.setattr("proxy.archive.retrieval.fetch.ARRIVAL_GRACE_SECONDS", 0.1)
    here, there = same_series()
    async with ScriptedArchive(here, aet=SHARED) as one, ScriptedArchive(there, aet=SHARED) as two:
        for archive, others in ((one, two), (two, one)):
            named = None if originator == "absent" else id_of_the_other(others)
            archive.script = sending(originator=named, pause=0.01)
        async with in_front_of_both(one, two, use_cget=False, enableCache=True) as proxy:
            one.destination = two.destination = proxy.address
            for _ in range(2):
                wanted = [ask(proxy, "here", here[0]), ask(proxy, "there", there[0]), ask(proxy, "both", here[0])]
                first, second, both = await asyncio.gather(*wanted)
                assert "could not be sent" in first.failure(502)
                assert "could not be sent" in second.failure(502)
                assert len(both.files) == len(here)
            assert len((await ask(proxy, "everywhere", here[0])).files) == len(here)
            await kept(proxy.http)
    told = [record for record in caplog.records if "give the archives different AE titles" in record.getMessage()]
    assert len(told) == 1
    assert told[0].levelno == logging.WARNING


async def test_the_same_by_c_get() -> None:
    """Each gets what their archive has: it comes on the association that was opened to it."""
    here, there = same_series()
    async with (
        ScriptedArchive(here, aet=SHARED) as one,
        ScriptedArchive(there, aet=SHARED) as two,
        in_front_of_both(one, two, use_cget=True, enableCache=True) as proxy,
    ):
        for _ in range(2):
            first, second = await asyncio.gather(ask(proxy, "here", here[0]), ask(proxy, "there", there[0]))
            assert (data_sets(first), data_sets(second)) == (whole(here), whole(there))
            await kept(proxy.http)


@pytest.mark.parametrize("originator", ["absent", "wrong"])
async def test_archives_that_do_not_say_for_whom(originator: str) -> None:
    """By their AE titles it is told whose an instance is, and each user gets what their archive has."""
    here, there = same_series()
    async with ScriptedArchive(here, aet=HERE) as one, ScriptedArchive(there, aet=THERE) as two:
        for archive, others in ((one, two), (two, one)):
            named = None if originator == "absent" else id_of_the_other(others)
            archive.script = sending(originator=named, pause=0.01)
        async with in_front_of_both(one, two, use_cget=False) as proxy:
            one.destination = two.destination = proxy.address
            for _ in range(3):
                names = ("everywhere", "here", "there", "both")
                answers = await asyncio.gather(*(ask(proxy, name, here[0]) for name in names))
                assert data_sets(answers[1]) == whole(here)
                assert data_sets(answers[2]) == whole(there)
                for answer in (answers[0], answers[3]):
                    assert {*data_sets(answer)} <= {*whole(here), *whole(there)}
                    assert len(answer.files) == len(here)


async def test_who_sends_for_two_archives(caplog: pytest.LogCaptureFixture) -> None:
    """An AE title that sends for both is of either, and is not heard for those who may use one of them."""
    here, there = same_series()
    script = sending(calling="SENDER")
    peer = {"storeAets": ["SENDER"]}
    async with (
        ScriptedArchive(here, script, aet=HERE) as one,
        ScriptedArchive(there, script, aet=THERE) as two,
        in_front_of_both(one, two, use_cget=False, **{HERE: peer, THERE: peer}) as proxy,
    ):
        one.destination = two.destination = proxy.address
        assert len((await ask(proxy, "both", here[0])).files) == len(here)
        (await ask(proxy, "here", here[0])).failure(502)
    assert "SENDER may be of any of several archives" in caplog.text


class _Store:
    """A C-STORE that has come in, as far as an inbox looks at it."""

    def __init__(self, calling_ae_title: str, peer_host: str, originator: int | None = None) -> None:
        self.calling_ae_title = calling_ae_title
        self.peer_host = peer_host
        self.move_originator_message_id = originator


@pytest.mark.parametrize("checked", [True, False])
async def test_addresses_tell_archives_apart(checked: bool) -> None:
    """Of archives with one AE title at different addresses, each is heard for its users, and no other is.

    But only where it is checked that archives send from their own addresses: else these prove nothing.
    """
    configured = settings(Address(SHARED, 104), Address(SHARED, 105))
    dimse = configured["dimseProxySettings"]
    assert isinstance(dimse, dict)
    dimse["proxyServer"]["checkStoreHost"] = checked
    dimse["peers"][0] |= {"ip": "10.0.0.1", "storeHosts": ["10.0.1.0/24"], "name": HERE}
    dimse["peers"][1] |= {"ip": "10.0.0.2", "name": THERE}
    archives = Archives(parse_config(configured))
    here, there = retrievals = [Retrieval(Target("1.2"), Spool(None, eager=False)) for _ in archives.archives]
    for number, (archive, retrieval) in enumerate(zip(archives.archives, retrievals, strict=True), 1):
        LimitedInbox(archives.inbox, frozenset({archive.name})).expect(number, retrieval, archive)
    info = InstanceInfo("1.2.3", "1.2.3.4", "1.2.840.10008.1.2", "1.2", "1.2.3")

    def taker(host: str, named: int | None) -> Retrieval | None:
        expected = archives.inbox._find(_Store(SHARED, host, named), info)  # type: ignore[arg-type]
        return None if expected is None else expected.retrieval

    for named in (None, 1, 2, 3):
        assert taker("10.0.0.1", named) is (here if checked else None)
        assert taker("10.0.1.7", named) is (here if checked else None)
        assert taker("10.0.0.2", named) is (there if checked else None)
        assert taker("10.0.0.3", named) is None
    await archives.close(0)


# --- what is known to be missing -------------------------------------------------------------------------------------


async def test_what_could_not_be_sent(use_cget: bool) -> None:
    """Is remembered for those who may use the archive that could not send it, and for nobody else."""
    here, there = pictures(1, range(1, 4), DARK), pictures(2, range(1, 3), BRIGHT)
    scripts: Mapping[str, Script] = {HERE: failing(here[2:]), THERE: honest}
    async with (
        ScriptedArchive(here, scripts[HERE], aet=HERE) as one,
        ScriptedArchive(there, scripts[THERE], aet=THERE) as two,
        in_front_of_both(one, two, use_cget=use_cget, enableCache=True) as proxy,
    ):
        if not use_cget:
            one.destination = two.destination = proxy.address
        for name in ("everywhere", "here", "there"):
            with contextlib.nullcontext() if name == "there" else pytest.raises(aiohttp.ClientPayloadError):
                assert (await ask(proxy, name, here[0], "study")).status == 200
            await kept(proxy.http)
        for name, count in {"everywhere": 4, "here": 2, "there": 2}.items():
            answer = await ask(proxy, name, here[0], "study")
            assert answer.status == (200 if name == "there" else 206)
            assert len(read_parts(answer.body, answer.content_type)) == count
            assert ("Warning" in answer.headers) == (name != "there")


async def test_an_archive_that_goes_silent_midway() -> None:
    """Whoever may not use it gets theirs meanwhile, and neither joins nor waits for the retrieval of others."""
    here, there = pictures(1, range(1, 3), DARK), pictures(2, range(1, 3), BRIGHT)
    go_on = asyncio.Event()

    async def waiting(request: Retrieve) -> None:
        await go_on.wait()
        await honest(request)

    async with (
        ScriptedArchive(here, waiting, aet=HERE) as one,
        ScriptedArchive(there, aet=THERE) as two,
        in_front_of_both(one, two, use_cget=True, enableCache=True) as proxy,
    ):
        others = asyncio.create_task(ask(proxy, "everywhere", here[0], "study"))
        async with asyncio.timeout(5):
            while not one.requests:
                await asyncio.sleep(0.01)
            assert data_sets(await ask(proxy, "there", there[0], "study")) == whole(there)
        assert not others.done()
        go_on.set()
        assert data_sets(await others) == whole([*here, *there])
