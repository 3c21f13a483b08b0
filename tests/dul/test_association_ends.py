"""How associations end for a requestor: rejected, released, aborted, lost, at any time and by either side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

import dul
from tests.dul import wire
from tests.dul.wire import STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE, VERIFICATION, Wire, response, scripted_scp

pytestmark = pytest.mark.usefixtures("nothing_left")

CONTEXTS = [
    dul.Context(VERIFICATION),
    dul.Context(STUDY_ROOT_FIND),
    dul.Context(STUDY_ROOT_MOVE),
    dul.Context(STUDY_ROOT_GET),
    dul.Context(wire.CT_IMAGE, scp_role=True),
]
QUICK = dul.Timeouts(connect=2, associate=2, response=2, idle=2, release=2, cancel=0.3)
IDENTIFIER = b"\x08\x00\x52\x00CS\x06\x00STUDY "
MATCH = b"\x08\x00\x05\x00CS\x00\x00"
INSTANCE = dul.Instance(wire.CT_IMAGE, "1.2.3", wire.EXPLICIT, b"\x10\x00\x20\x00LO\x02\x00ID")


async def test_rejection_says_who_and_why() -> None:
    async def script(peer: Wire) -> None:
        await peer.pdu()
        await peer.send(wire.pdu(wire.RJ, bytes((0, 2, 3, 2))))
        await peer.until_closed()

    async with scripted_scp(script) as scp:
        with pytest.raises(dul.AssociationRejected, match="local limit exceeded") as raised:
            await dul.open_association(scp, CONTEXTS, timeouts=QUICK)
    assert (raised.value.result, raised.value.source, raised.value.reason) == (2, 3, 2)
    assert raised.value.transient


async def test_nobody_there_is_a_connect_error() -> None:
    async with scripted_scp(Wire.answer_release) as scp:
        pass
    with pytest.raises(dul.ConnectError, match="refused"):
        await dul.open_association(scp, CONTEXTS, timeouts=QUICK)
    with pytest.raises(dul.ConnectError):
        await dul.open_association(dul.Peer("a..b", 104, "SCP", "SCU"), CONTEXTS, timeouts=QUICK)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (wire.ABORT_PDU, dul.AssociationAborted),
        (b"", dul.ConnectionLost),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", dul.RemoteProtocolError),
        (wire.RELEASE_RP_PDU, dul.RemoteProtocolError),
        (wire.associate_ac((1, 0, wire.IMPLICIT), maximum_length=7), dul.RemoteProtocolError),
    ],
    ids=["abort", "close", "another protocol", "another PDU", "tiny maximum length"],
)
async def test_no_association_comes_about(answer: bytes, error: type[dul.DulError]) -> None:
    async def script(peer: Wire) -> None:
        await peer.pdu()
        await peer.send(answer)
        if answer:
            await peer.until_closed()

    async with scripted_scp(script) as scp:
        with pytest.raises(error):
            await dul.open_association(scp, CONTEXTS, timeouts=QUICK)


async def _end_midway(peer: Wire, how: str) -> None:
    if how == "abort":
        await peer.send(wire.ABORT_PDU)
        await peer.until_closed()
    elif how == "release":
        await peer.send(wire.RELEASE_RQ_PDU)
        assert (await peer.pdu())[0] == wire.RELEASE_RP
    elif how == "reset":
        peer.reset()


ENDS = {
    "abort": dul.AssociationAborted,
    "release": dul.AssociationReleased,
    "reset": dul.ConnectionLost,
    "close": dul.ConnectionLost,
}


@pytest.mark.parametrize("how", ENDS)
async def test_peer_ends_the_association_within_a_find(how: str) -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        find = await peer.message()
        await peer.send(response(find, 0xFF00, MATCH))
        await matched.wait()
        await _end_midway(peer, how)

    matched = asyncio.Event()
    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        start = time.monotonic()
        with pytest.raises(ENDS[how]):
            async for _ in association.find(IDENTIFIER):
                matched.set()
        assert time.monotonic() - start < 1
        with pytest.raises(ENDS[how]):
            await association.echo()


@pytest.mark.parametrize("how", ENDS)
async def test_peer_ends_the_association_within_an_instance(how: str) -> None:
    async def script(peer: Wire) -> None:
        contexts = await peer.accept()
        await peer.message()
        storage = contexts[wire.CT_IMAGE]
        store = wire.command(
            field=wire.C_STORE, message_id=1, sop_class=wire.CT_IMAGE, sop_instance="1.2.3", data_set=1
        )
        await peer.send(wire.p_data(wire.pdv(storage, wire.COMMAND | wire.LAST, store), wire.pdv(storage, 0, b"abcd")))
        await begun.wait()
        await _end_midway(peer, how)

    begun = asyncio.Event()
    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        got = b""
        with pytest.raises(ENDS[how]):
            async for instance in association.get(IDENTIFIER):
                async for chunk in instance:
                    got += chunk
                    begun.set()
        assert got == b"abcd"


@pytest.mark.parametrize("how", ENDS)
async def test_peer_ends_the_association_while_it_is_sent_an_instance(how: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)
            await asyncio.sleep(0)

    async def script(peer: Wire) -> None:
        await peer.accept()
        for _ in range(20):
            await peer.fragment()
        if how == "release":
            await peer.send(wire.RELEASE_RQ_PDU)
            while (await peer.pdu())[0] != wire.RELEASE_RP:
                pass
        else:
            await _end_midway(peer, how)

    instance = dul.Instance(wire.CT_IMAGE, "1.2.3", wire.EXPLICIT, endless)
    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        start = time.monotonic()
        with pytest.raises(ENDS[how]):
            await association.store(instance)
        assert time.monotonic() - start < 2


async def test_responses_that_came_before_the_end_are_still_given() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        find = await peer.message()
        await peer.send(response(find, 0xFF00, MATCH) * 5 + response(find, 0) + wire.ABORT_PDU)
        await peer.until_closed()

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        assert len([match async for match in association.find(IDENTIFIER)]) == 5
        assert not association.is_open


async def test_both_sides_release_at_once() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        assert (await peer.pdu())[0] == wire.RELEASE_RQ
        await peer.send(wire.RELEASE_RQ_PDU)  # Sta7 -> Sta9: the requestor answers first (PS3.8 Table 9-10)
        assert (await peer.pdu())[0] == wire.RELEASE_RP
        await peer.send(wire.RELEASE_RP_PDU)
        assert await peer.until_closed() < 0.5

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK):
        pass


async def test_peer_that_falls_silent_after_a_release_collision_is_aborted() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        assert (await peer.pdu())[0] == wire.RELEASE_RQ
        await peer.send(wire.RELEASE_RQ_PDU)
        await peer.expect_abort()

    start = time.monotonic()
    timeouts = dul.Timeouts(release=0.2)
    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=timeouts):
        pass
    assert time.monotonic() - start < 2


async def test_data_that_come_while_the_release_is_awaited_are_dropped() -> None:
    async def script(peer: Wire) -> None:
        contexts = await peer.accept()
        assert (await peer.pdu())[0] == wire.RELEASE_RQ
        late: wire.Elements = {
            "field": wire.C_STORE,
            "sop_class": wire.CT_IMAGE,
            "sop_instance": "1.2.3",
            "message_id": 5,
        }
        await peer.send(wire.message(contexts[wire.CT_IMAGE], bytes(10_000), **late) * 300)
        await peer.send(wire.RELEASE_RP_PDU)
        assert await peer.until_closed() < 0.5

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK):
        pass


async def test_exception_within_the_association_still_releases_it() -> None:
    released = asyncio.Event()

    async def script(peer: Wire) -> None:
        await peer.accept()
        await peer.answer_release()
        released.set()

    async with scripted_scp(script) as scp:
        with pytest.raises(KeyError):
            async with dul.connect(scp, CONTEXTS, timeouts=QUICK):
                raise KeyError
        await released.wait()
