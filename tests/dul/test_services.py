"""What an acceptor's services do with requests: handlers that fail or hang, C-CANCEL, sub-operations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

import dul
from dul import dimse
from tests.dul import wire
from tests.dul.archive import Archive, Hanging, peer_of, serving
from tests.dul.conftest import until
from tests.dul.wire import CT_IMAGE, STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE, VERIFICATION, Wire

pytestmark = pytest.mark.usefixtures("nothing_left")

IDENTIFIER = b"\x08\x00\x52\x00CS\x06\x00STUDY "
ECHO: wire.Elements = {"field": wire.C_ECHO, "message_id": 1, "sop_class": VERIFICATION}


# --- handlers ------------------------------------------------------------------------------------------------


class Clumsy(dul.Handler):
    """Fails in every way."""

    async def on_echo(self, calling_ae_title: str) -> int:
        raise RuntimeError("echo")

    async def on_store(self, store: dul.IncomingStore) -> int:
        raise dul.ConnectError("an upstream that is down")

    async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
        yield b"\x08\x00\x05\x00CS\x00\x00"
        raise RuntimeError("find")

    async def on_move(self, request: dul.Request) -> dul.MovePlan:
        raise dul.StatusError("C-MOVE", dimse.MOVE_DESTINATION_UNKNOWN, "no such destination, " + "x" * 80)

    async def on_get(self, request: dul.Request) -> Sequence[dul.Instance]:
        raise RuntimeError("get")


async def final_status(peer: Wire, request: bytes) -> int:
    """Send a request, and return the status of its final response."""
    await peer.send(request)
    while (status := (await peer.message()).number("status")) in (0xFF00, 0xFF01):
        pass
    return status


async def test_handler_that_fails_is_a_processing_failure_and_the_association_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Clumsy()) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(VERIFICATION, CT_IMAGE, STUDY_ROOT_FIND, STUDY_ROOT_MOVE, STUDY_ROOT_GET)
            store: wire.Elements = {
                "field": wire.C_STORE,
                "message_id": 2,
                "sop_class": CT_IMAGE,
                "sop_instance": "1.2.3",
            }
            query: wire.Elements = {"message_id": 3, "sop_class": STUDY_ROOT_FIND}
            for _ in range(2):
                assert await final_status(peer, wire.message(1, **ECHO)) == 0x0110
                assert await final_status(peer, wire.message(3, bytes(300_000), **store)) == 0x0110
                assert await final_status(peer, wire.message(5, IDENTIFIER, field=wire.C_FIND, **query)) == 0x0110
                assert await final_status(peer, wire.message(9, IDENTIFIER, field=wire.C_GET, **query)) == 0x0110
                await peer.send(wire.message(7, IDENTIFIER, field=wire.C_MOVE, destination="X", **query))
                moved = (await peer.message()).command
                assert (moved["status"], len(str(moved["comment"]))) == (0xA801, 64)
            await peer.send(wire.RELEASE_RQ_PDU)
            assert (await peer.pdu())[0] == wire.RELEASE_RP
    assert "the handler of a C-ECHO-RQ failed" in caplog.text


async def test_services_that_are_not_offered_have_their_status() -> None:
    async with serving(dul.Handler()) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(VERIFICATION, CT_IMAGE, STUDY_ROOT_FIND)
            assert await final_status(peer, wire.message(1, **ECHO)) == 0
            store: wire.Elements = {
                "field": wire.C_STORE,
                "message_id": 2,
                "sop_class": CT_IMAGE,
                "sop_instance": "1.2.3",
            }
            assert await final_status(peer, wire.message(3, b"data", **store)) == 0x0122
            find: wire.Elements = {"field": wire.C_FIND, "message_id": 3, "sop_class": STUDY_ROOT_FIND}
            assert await final_status(peer, wire.message(5, IDENTIFIER, **find)) == 0x0122
            n_action: wire.Elements = {"field": 0x0130, "message_id": 4, "sop_class": VERIFICATION}
            assert await final_status(peer, wire.message(1, **n_action)) == 0x0211
            assert await final_status(peer, wire.message(1, bytes(100_000), **n_action)) == 0x0211
            await peer.send(wire.message(1, **n_action))
            assert (await peer.message()).number("field") == 0x8130


FIND = wire.message(1, IDENTIFIER, field=wire.C_FIND, message_id=1, sop_class=STUDY_ROOT_FIND)


@pytest.mark.parametrize("ending", ["abort", "release", "reset", "close"])
async def test_handler_is_cancelled_when_the_peer_vanishes(ending: str) -> None:
    handler = Hanging()
    async with serving(handler) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(STUDY_ROOT_FIND)
            await peer.send(FIND)
            await handler.waiting.wait()
            if ending == "reset":
                peer.reset()
            elif ending == "close":
                peer.close()
            else:
                await peer.send(wire.ABORT_PDU if ending == "abort" else wire.RELEASE_RQ_PDU)
            async with asyncio.timeout(0.5):
                await handler.cancelled.wait()
            await until(lambda: server.association_count == 0)


async def test_request_and_abort_in_one_segment_leave_no_handler_behind() -> None:
    handler = Hanging()
    async with serving(handler) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(STUDY_ROOT_FIND)
            await peer.send(FIND + wire.ABORT_PDU)
            await peer.until_closed()
        await until(lambda: server.association_count == 0)


class Reading(dul.Handler):
    """Says how reading a data set ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def on_store(self, store: dul.IncomingStore) -> int:
        try:
            async for _ in store:
                self.begun.set()
        except Exception as error:
            self.ended.set_result(error)
            raise
        return dimse.SUCCESS


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        (wire.ABORT_PDU, dul.AssociationAborted),
        (b"", dul.ConnectionLost),
        (wire.RELEASE_RQ_PDU, dul.AssociationReleased),
        (wire.message(1, **ECHO), dul.RemoteProtocolError),
    ],
    ids=["abort", "close", "release", "command within"],
)
async def test_handler_that_reads_a_data_set_is_told_why_it_ends(ending: bytes, error: type[Exception]) -> None:
    handler = Reading()
    store: wire.Elements = {
        "field": wire.C_STORE,
        "message_id": 2,
        "sop_class": CT_IMAGE,
        "sop_instance": "1.2.3",
        "data_set": 1,
    }
    async with serving(handler) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(CT_IMAGE)
            await peer.send(wire.p_data(wire.pdv(1, 3, wire.command(**store)), wire.pdv(1, 0, b"data")))
            await handler.begun.wait()
            await peer.send(ending)
            if not ending:
                peer.close()
            async with asyncio.timeout(1):
                assert isinstance(await handler.ended, error)


# --- C-CANCEL ------------------------------------------------------------------------------------------------


CANCEL_1 = wire.message(1, field=wire.C_CANCEL, responding_to=1)


class Endless(dul.Handler):
    """Has a match, and an instance, as long as one is asked for."""

    def __init__(self, destination: dul.Peer | None = None) -> None:
        self.given = 0
        self.destination = destination

    async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
        while True:
            self.given += 1
            yield b"\x08\x00\x05\x00CS\x00\x00"

    async def on_get(self, request: dul.Request) -> Sequence[dul.Instance]:
        return [dul.Instance(CT_IMAGE, f"1.2.{number}", wire.EXPLICIT, b"data") for number in range(10_000)]

    async def on_move(self, request: dul.Request) -> dul.MovePlan:
        assert self.destination is not None
        return dul.MovePlan(self.destination, await self.on_get(request))


async def test_c_cancel_ends_a_find() -> None:
    handler = Endless()
    async with serving(handler) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(STUDY_ROOT_FIND)
            await peer.send(FIND)
            for _ in range(10):
                assert (await peer.message()).number("status") == 0xFF00
            await peer.send(CANCEL_1)
            while (status := (await peer.message()).number("status")) == 0xFF00:
                pass
            assert status == 0xFE00
            # It was seen before the socket's buffers were full.
            assert handler.given < 2000


async def test_c_cancel_ends_a_get_after_the_instance_at_hand() -> None:
    async with serving(Endless()) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(STUDY_ROOT_GET, CT_IMAGE)
            await peer.send(wire.message(1, IDENTIFIER, field=wire.C_GET, message_id=1, sop_class=STUDY_ROOT_GET))
            store = await peer.message()
            assert (store.number("field"), store.data) == (wire.C_STORE, b"data")
            await peer.send(CANCEL_1 + wire.response(store, 0))
            pending = await peer.message()
            assert pending.number("status") == 0xFF00
            final = (await peer.message()).command
            assert (final["status"], final["remaining"], final["completed"]) == (0xFE00, 9999, 1)


async def test_c_cancel_ends_a_move_and_its_association() -> None:
    destination = Archive()
    async with (
        serving(destination, "DESTINATION") as receiver,
        serving(Endless(peer_of(receiver, "DESTINATION"))) as server,
    ):
        with await Wire.connect(server.port) as peer:
            await peer.associate(STUDY_ROOT_MOVE)
            move: wire.Elements = {
                "field": wire.C_MOVE,
                "message_id": 1,
                "sop_class": STUDY_ROOT_MOVE,
                "destination": "D",
            }
            await peer.send(wire.message(1, IDENTIFIER, **move))
            assert (await peer.message()).number("status") == 0xFF00
            await peer.send(CANCEL_1)
            while (final := (await peer.message()).command)["status"] == 0xFF00:
                pass
            assert final["status"] == 0xFE00
            assert int(final["completed"]) + int(final["remaining"]) == 10_000
            assert len(destination.stored) == final["completed"]
            assert receiver.association_count == 0


async def test_c_cancel_that_comes_too_late_does_not_end_the_next_find() -> None:
    class Three(dul.Handler):
        async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
            for _ in range(3):
                yield b"\x08\x00\x05\x00CS\x00\x00"

    async with serving(Three()) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(STUDY_ROOT_FIND)
            for _ in range(2):
                await peer.send(FIND)
                statuses = [(await peer.message()).number("status") for _ in range(4)]
                assert statuses == [0xFF00, 0xFF00, 0xFF00, 0]
                await peer.send(CANCEL_1)


async def test_c_cancel_with_a_data_set_is_taken_for_one_without() -> None:
    async with serving(Archive()) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(VERIFICATION)
            await peer.send(wire.message(1, bytes(100_000), field=wire.C_CANCEL, responding_to=1))
            await peer.send(wire.message(1, **ECHO))
            assert (await peer.message()).number("status") == 0


# --- retrievals ----------------------------------------------------------------------------------------------


async def test_move_counts_what_the_destination_says() -> None:
    class Destination(dul.Handler):
        async def on_store(self, store: dul.IncomingStore) -> int:
            await store.read(1000)
            return {"1.2.0": 0x0000, "1.2.1": 0xB000, "1.2.2": 0xA700}[store.sop_instance_uid]

    class Source(dul.Handler):
        async def on_move(self, request: dul.Request) -> dul.MovePlan:
            instances = [dul.Instance(CT_IMAGE, f"1.2.{number}", wire.EXPLICIT, b"data") for number in wanted]
            return dul.MovePlan(peer_of(receiver, "DESTINATION"), instances)

    async with serving(Destination(), "DESTINATION") as receiver, serving(Source()) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(STUDY_ROOT_MOVE)
            move: wire.Elements = {
                "field": wire.C_MOVE,
                "message_id": 1,
                "sop_class": STUDY_ROOT_MOVE,
                "destination": "D",
            }
            finals = []
            for wanted in ((0,), (0, 1), (0, 1, 2), (2,), ()):
                await peer.send(wire.message(1, IDENTIFIER, **move))
                while (answer := await peer.message()).number("status") == 0xFF00:
                    pass
                counters = tuple(answer.command[name] for name in ("status", "completed", "warning", "failed"))
                finals.append(counters)
                if 2 in wanted:
                    assert answer.data == b"\x08\x00\x58\x00UI\x06\x001.2.2\0"
    assert finals == [(0, 1, 0, 0), (0xB000, 1, 1, 0), (0xB000, 1, 1, 1), (0xA702, 0, 0, 1), (0, 0, 0, 0)]


@pytest.mark.parametrize("ending", ["nobody", "reset within"])
async def test_move_to_a_destination_that_fails_counts_the_rest_as_failed(ending: str) -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        if ending == "reset within":
            await peer.send(wire.response(await peer.message(), 0))
            await peer.message()
        peer.reset()

    class Source(Endless):
        async def on_get(self, request: dul.Request) -> Sequence[dul.Instance]:
            return list(await super().on_get(request))[:5]

    async with wire.scripted_scp(script) as destination, serving(Source(destination)) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(STUDY_ROOT_MOVE)
            move: wire.Elements = {
                "field": wire.C_MOVE,
                "message_id": 1,
                "sop_class": STUDY_ROOT_MOVE,
                "destination": "D",
            }
            await peer.send(wire.message(1, IDENTIFIER, **move))
            while (final := (await peer.message()).command)["status"] == 0xFF00:
                pass
            arrived = 1 if ending == "reset within" else 0
            assert (final["completed"], final["failed"]) == (arrived, 5 - arrived)
            assert final["status"] == (0xB000 if arrived else 0xA702)


async def test_mover_that_vanishes_ends_the_association_to_the_destination() -> None:
    aborted = asyncio.Event()
    begun = asyncio.Event()

    async def script(peer: Wire) -> None:
        await peer.accept()
        await peer.message()
        begun.set()
        await peer.expect_abort()
        aborted.set()

    async with wire.scripted_scp(script) as destination, serving(Endless(destination)) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(STUDY_ROOT_MOVE)
            move: wire.Elements = {
                "field": wire.C_MOVE,
                "message_id": 1,
                "sop_class": STUDY_ROOT_MOVE,
                "destination": "D",
            }
            await peer.send(wire.message(1, IDENTIFIER, **move))
            await begun.wait()
            peer.reset()
            async with asyncio.timeout(1):
                await aborted.wait()
        await until(lambda: server.association_count == 0)
