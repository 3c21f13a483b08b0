"""What an acceptor does with connections: admission, caps, strangers, closing."""

from __future__ import annotations

import asyncio
import logging
import random
import struct
import time
import tracemalloc

import pytest

import dul
from dul import errors, pdu
from tests.dul import wire
from tests.dul.archive import Archive, Hanging, serving
from tests.dul.conftest import until
from tests.dul.wire import CT_IMAGE, STUDY_ROOT_FIND, VERIFICATION, Wire

pytestmark = pytest.mark.usefixtures("nothing_left")

ECHO: wire.Elements = {"field": wire.C_ECHO, "message_id": 1, "sop_class": VERIFICATION}


async def echoes(port: int, source: str = wire.HOST) -> None:
    """Associate, C-ECHO and release, as a peer that is not ours."""
    with await Wire.connect(port, source) as peer:
        await peer.associate(VERIFICATION)
        await peer.send(wire.message(1, **ECHO))
        assert (await peer.message()).command["status"] == 0
        await peer.send(wire.RELEASE_RQ_PDU)
        assert (await peer.pdu())[0] == wire.RELEASE_RP


# --- admission -----------------------------------------------------------------------------------------------


async def rejection(port: int, request: bytes, source: str = wire.HOST) -> tuple[int, int, int]:
    """Return result, source and reason of the A-ASSOCIATE-RJ that answers `request`."""
    with await Wire.connect(port, source) as peer:
        await peer.send(request)
        kind, body = await peer.pdu()
        assert kind == wire.RJ
        result, who, reason = body[1:4]
        return result, who, reason


PROPOSAL = (1, VERIFICATION, [wire.IMPLICIT])


async def test_wrong_titles_contexts_and_versions_are_rejected(caplog: pytest.LogCaptureFixture) -> None:
    def admit(request: pdu.AAssociateRQ, host: str) -> pdu.AAssociateRJ | None:
        if request.calling_ae_title == "FRIEND" and host == wire.HOST:
            return None
        return pdu.AAssociateRJ(
            errors.REJECTED_PERMANENT, errors.SOURCE_SERVICE_USER, errors.REASON_CALLING_AE_TITLE_NOT_RECOGNIZED
        )

    friend = wire.associate_rq(PROPOSAL, calling="FRIEND")
    async with serving(Archive(), admit=admit) as server:
        assert await rejection(server.port, wire.associate_rq(PROPOSAL, calling="FRIEND", called="OTHER")) == (1, 1, 7)
        assert await rejection(server.port, wire.associate_rq(PROPOSAL, calling="STRANGER")) == (1, 1, 3)
        assert await rejection(server.port, friend, source="127.0.0.2") == (1, 1, 3)
        other_application = friend.replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.2")
        assert await rejection(server.port, other_application) == (1, 1, 2)
        other_version = friend[:6] + struct.pack(">H", 2) + friend[8:]
        assert await rejection(server.port, other_version) == (1, 2, 2)
        with await Wire.connect(server.port) as peer:
            await peer.send(friend)
            assert (await peer.pdu())[0] == wire.AC
    assert "called AE title not recognized" in caplog.text
    assert "STRANGER" not in caplog.text


async def test_associations_beyond_the_cap_of_a_host_are_rejected_and_others_served() -> None:
    limits = dul.ServerLimits(connections=10, connections_per_host=3)
    async with serving(Archive(), server_limits=limits) as server:
        crowd = [await Wire.connect(server.port) for _ in range(6)]
        for peer in crowd:
            await peer.send(wire.associate_rq(PROPOSAL))
        answers = [await peer.pdu() for peer in crowd]
        assert [kind for kind, _ in answers].count(wire.AC) == 3
        assert [body for kind, body in answers if kind == wire.RJ] == [bytes((0, 2, 3, 2))] * 3
        peers = [peer for peer, (kind, _) in zip(crowd, answers, strict=True) if kind == wire.AC]
        for peer in set(crowd) - set(peers):
            peer.close()
        await echoes(server.port, source="127.0.0.2")
        peers.pop().close()
        await until(lambda: server.connection_count == 2)
        await echoes(server.port)
        for peer in peers:
            peer.close()
        await until(lambda: server.connection_count == 0)


async def test_silent_connections_of_one_host_do_not_keep_others_out() -> None:
    limits = dul.ServerLimits(connections=10, connections_per_host=3)
    async with serving(Archive(), server_limits=limits) as server:
        silent = [await Wire.connect(server.port) for _ in range(100)]
        await until(lambda: server.connection_count <= 6)
        assert server.connection_count == 6  # twice the cap: a request is needed to be rejected
        await echoes(server.port, source="127.0.0.2")
        for peer in silent:
            peer.close()


async def test_associations_beyond_the_cap_of_the_server_are_rejected() -> None:
    limits = dul.ServerLimits(connections=4, connections_per_host=3)
    async with serving(Archive(), server_limits=limits) as server:
        peers = [await Wire.connect(server.port, f"127.0.0.{number}") for number in range(2, 6)]
        for peer in peers:
            await peer.associate(VERIFICATION)
        for number in range(2, 6):
            assert await rejection(server.port, wire.associate_rq(PROPOSAL), f"127.0.0.{number}") == (2, 3, 2)
        for peer in peers:
            await peer.send(wire.message(1, **ECHO))
            assert (await peer.message()).command["status"] == 0
            peer.close()


# --- strangers -----------------------------------------------------------------------------------------------


STRANGERS = {
    "http": b"GET / HTTP/1.1\r\nHost: archive\r\n\r\n",
    "tls hello": bytes.fromhex("16030100c8010000c40303") + bytes(194),
    "random": random.Random(1).randbytes(4096),
    "rq of 4 GiB": struct.pack(">BxL", wire.RQ, 0xFFFFFFFF),
    "ac of 4 GiB": struct.pack(">BxL", wire.AC, 0xFFFFFFFF),
    "release of 4 GiB": struct.pack(">BxL", wire.RELEASE_RQ, 0xFFFFFFFF),
    "item beyond its pdu": wire.pdu(wire.RQ, bytes((0, 1)) + bytes(66) + struct.pack(">BxH", 0x10, 60000)),
}
UNEXPECTED = {
    "ac": wire.associate_ac((1, 0, wire.IMPLICIT)),
    "release": wire.RELEASE_RQ_PDU,
    "p-data of 4 GiB": struct.pack(">BxLLBB", wire.DATA, 0xFFFFFFFF, 0xFFFFFFFB, 1, 0) + bytes(100),
}


async def test_strangers_are_closed_within_a_second_with_one_log_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def closed_after(port: int, data: bytes) -> float:
        with await Wire.connect(port) as peer:
            await peer.send(data)
            return await peer.until_closed()

    async with serving(Archive()) as server:
        strangers = {**STRANGERS, **UNEXPECTED}
        times = await asyncio.gather(*(closed_after(server.port, data) for data in strangers.values()))
        slow = {name: seconds for name, seconds in zip(strangers, times, strict=True) if seconds > 1}
        assert slow == {}
        await echoes(server.port)
    assert len(STRANGERS) <= len(caplog.records) <= len(strangers), caplog.text


LIES = {
    "pdv beyond its pdu": struct.pack(">BxLLBB", wire.DATA, 100, 0xFFFFFFFF, 1, 0),
    "pdv without header": wire.p_data(struct.pack(">LBB", 1, 1, 3)),
    "p-data of 4 bytes": struct.pack(">BxL", wire.DATA, 4) + bytes(4),
    "rq of 4 GiB": struct.pack(">BxL", wire.RQ, 0xFFFFFFFF),
    "unknown pdu": struct.pack(">BxL", 0x99, 4),
    "data without command": wire.p_data(wire.pdv(1, 0, b"data")),
    "unknown context": wire.message(99, **ECHO),
    "command of another group": wire.p_data(wire.pdv(1, 3, struct.pack("<HHL", 8, 0, 0))),
    "element beyond its command": wire.p_data(wire.pdv(1, 3, struct.pack("<HHL", 0, 2, 0xFFFFFFFF))),
    "response to nothing": wire.message(1, field=wire.C_ECHO | wire.RSP, responding_to=1, status=0),
    "find without identifier": wire.message(3, field=wire.C_FIND, message_id=1, sop_class=STUDY_ROOT_FIND),
}


@pytest.mark.parametrize("lie", LIES)
async def test_nonsense_within_an_association_is_aborted_within_a_second(lie: str) -> None:
    async with serving(Archive()) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(VERIFICATION, STUDY_ROOT_FIND)
            start = time.monotonic()
            await peer.send(LIES[lie])
            await peer.expect_abort()
            assert time.monotonic() - start < 1
        await echoes(server.port)


async def test_length_lie_costs_no_memory() -> None:
    async with serving(Archive()) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(CT_IMAGE)
            store: wire.Elements = {
                "field": wire.C_STORE,
                "message_id": 1,
                "sop_class": CT_IMAGE,
                "sop_instance": "1.2",
                "data_set": 1,
            }
            await peer.send(wire.p_data(wire.pdv(1, 3, wire.command(**store))))
            tracemalloc.start()
            await peer.send(struct.pack(">BxLLBB", wire.DATA, 0xFFFFFFFF, 0xFFFFFFFB, 1, 0))
            await asyncio.sleep(0.05)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 2**20


async def test_silent_connection_is_closed_at_artim() -> None:
    async with serving(Archive(), artim=0.2) as server:
        with await Wire.connect(server.port) as peer:
            assert 0.15 < await peer.until_closed() < 0.7


@pytest.mark.parametrize("interval", [0.0, 0.05, 0.15])
async def test_dripped_request_is_closed_at_artim_whatever_the_drip(interval: float) -> None:
    async with serving(Archive(), artim=0.3) as server:
        with await Wire.connect(server.port) as peer:
            dripping = asyncio.create_task(peer.drip(wire.associate_rq(PROPOSAL)[:-1], interval))
            assert 0.2 < await peer.until_closed() < 0.9
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)


@pytest.mark.parametrize(
    "half",
    [wire.RELEASE_RQ_PDU[:5], wire.RELEASE_RQ_PDU[:8], wire.message(1, **ECHO)[:8], wire.message(1, **ECHO)[:30]],
    ids=["half a header", "half a release", "half a pdv header", "half a command"],
)
async def test_pdu_that_is_never_whole_ends_the_association(half: bytes) -> None:
    async with serving(Archive(), timeouts=dul.Timeouts(pdu=0.2)) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(VERIFICATION)
            await peer.send(half)
            start = time.monotonic()
            await peer.expect_abort()
            assert 0.1 < time.monotonic() - start < 0.7


async def test_many_associations_normal_and_abrupt_leave_nothing() -> None:
    async with serving(Archive()) as server:

        async def abrupt(number: int) -> None:
            with await Wire.connect(server.port, f"127.0.0.{number % 50 + 2}") as peer:
                await peer.associate(VERIFICATION)
                await peer.send(wire.message(1, **ECHO)[: number * 7 % 60])
                if number % 2:
                    peer.reset()

        for number in range(100):
            await asyncio.gather(abrupt(number), echoes(server.port))
        await until(lambda: (server.connection_count, server.association_count) == (0, 0))


# --- closing -------------------------------------------------------------------------------------------------


async def test_close_lets_associations_end_within_the_drain_and_takes_no_new_ones() -> None:
    async with serving(Archive()) as server:
        with await Wire.connect(server.port) as peer, await Wire.connect(server.port) as late:
            await peer.associate(VERIFICATION)
            closing = asyncio.create_task(server.close(drain=5))
            await asyncio.sleep(0)
            await late.send(wire.associate_rq(PROPOSAL))
            assert await late.pdu() == (wire.RJ, bytes((0, 2, 3, 2)))
            with pytest.raises(ConnectionRefusedError):
                await Wire.connect(server.port)
            await peer.send(wire.message(1, **ECHO))
            assert (await peer.message()).number("status") == 0
            assert not closing.done()
            await peer.send(wire.RELEASE_RQ_PDU)
            assert (await peer.pdu())[0] == wire.RELEASE_RP
            peer.close()
            async with asyncio.timeout(1):
                await closing


async def test_close_aborts_what_does_not_end_within_the_drain() -> None:
    handler = Hanging()
    async with serving(handler) as server:
        with await Wire.connect(server.port) as peer, await Wire.connect(server.port) as silent:
            await peer.associate(STUDY_ROOT_FIND)
            find: wire.Elements = {"field": wire.C_FIND, "message_id": 1, "sop_class": STUDY_ROOT_FIND}
            await peer.send(wire.message(1, b"any", **find))
            await handler.waiting.wait()
            start = time.monotonic()
            aborting = asyncio.create_task(peer.expect_abort())
            await server.close(drain=0.2)
            assert 0.15 < time.monotonic() - start < 1.5
            await aborting
            assert handler.cancelled.is_set()
            assert (server.association_count, server.connection_count) == (0, 0)
            await silent.until_closed(0.1)
