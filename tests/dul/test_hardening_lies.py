"""Lengths that are lies, and other protocols on a DICOM port: no memory, no delay, one log line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import time
import tracemalloc
from collections.abc import Iterator

import pytest

import dul
from dul import dimse
from tests.dul import wire
from tests.dul.archive import Archive, serving
from tests.dul.test_server import ECHO, echoes
from tests.dul.wire import CT_IMAGE, STUDY_ROOT_FIND, VERIFICATION, Wire, scripted_scp

pytestmark = pytest.mark.usefixtures("nothing_left")

MOST_MEMORY = 4 * 2**20
MOST_SECONDS = 1.0
FED = 16 * 2**20
"""Bytes that follow a lie, for those who believe it."""

CONTEXTS = [dul.Context(VERIFICATION), dul.Context(STUDY_ROOT_FIND), dul.Context(CT_IMAGE)]
BLOCK = bytes(2**20)


def claim(kind: int, length: int) -> bytes:
    """Return the header of a PDU."""
    return struct.pack(">BxL", kind, length)


def pdv_claim(pdu_length: int, pdv_length: int, flags: int = 0) -> bytes:
    """Return the headers of a P-DATA-TF PDU and of the value in it."""
    return struct.pack(">BxLLBB", wire.DATA, pdu_length, pdv_length, 1, flags)


def item_claim(kind: int) -> bytes:
    """Return an associate PDU of which an item claims more bytes than there are."""
    return wire.pdu(kind, bytes((0, 1)) + bytes(66) + struct.pack(">BxH", 0x10, 0xFFFF) + b"1.2")


BEFORE_ASSOCIATION = {
    "rq of 4 GiB": claim(wire.RQ, 0xFFFFFFFF),
    "rq of 2 GiB": claim(wire.RQ, 0x80000000),
    "ac of 4 GiB": claim(wire.AC, 0xFFFFFFFF),
    "rj of 4 GiB": claim(wire.RJ, 0xFFFFFFFF),
    "p-data of 4 GiB": pdv_claim(0xFFFFFFFF, 0xFFFFFFFB),
    "item beyond its pdu": item_claim(wire.RQ),
}
WITHIN_ASSOCIATION = {
    "rq of 4 GiB": claim(wire.RQ, 0xFFFFFFFF),
    "release of 4 GiB": claim(wire.RELEASE_RQ, 0xFFFFFFFF),
    "abort of 4 GiB": claim(wire.ABORT, 0xFFFFFFFF),
    "command of 4 GiB": pdv_claim(0xFFFFFFFF, 0xFFFFFFFB, wire.COMMAND),
    "pdv beyond its pdu": pdv_claim(100, 0xFFFFFFFF),
    "pdv of 0 bytes": wire.p_data(struct.pack(">LBB", 0, 1, 3)),
    "pdv of 1 byte": wire.p_data(struct.pack(">LBB", 1, 1, 3)),
    "empty p-data": wire.p_data(b""),
    "element beyond its command": wire.p_data(wire.pdv(1, 3, struct.pack("<HHL", 0, 2, 0xFFFFFFFF))),
}


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Fail when what runs meanwhile, this test included, takes more at any time than it may."""
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before <= MOST_MEMORY
    finally:
        tracemalloc.stop()


async def feed(peer: Wire) -> None:
    """Send what the lie has announced, as far as the other side takes it."""
    with contextlib.suppress(ConnectionError):
        for _ in range(FED // len(BLOCK)):
            await peer.send(BLOCK)


async def closed_after(peer: Wire, lie: bytes) -> float:
    """Tell the lie, and go on until the other side closes; returns how long that took."""
    start = time.monotonic()
    await peer.send(lie)
    feeding = asyncio.create_task(feed(peer))
    await peer.until_closed()
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)
    return time.monotonic() - start


@pytest.mark.parametrize(("lies", "associated"), [(BEFORE_ASSOCIATION, False), (WITHIN_ASSOCIATION, True)])
async def test_lies_to_the_acceptor_cost_no_memory_and_are_answered_within_a_second(
    lies: dict[str, bytes], associated: bool
) -> None:
    """All of them at once; others are served meanwhile."""

    async def tell(port: int, lie: bytes) -> float:
        with await Wire.connect(port) as peer:
            if associated:
                await peer.associate(VERIFICATION, STUDY_ROOT_FIND)
            return await closed_after(peer, lie)

    async with serving(Archive()) as server:
        with little_memory():
            telling = (tell(server.port, lie) for lie in lies.values())
            *seconds, _ = await asyncio.gather(*telling, echoes(server.port))
    assert {lie: each for lie, each in zip(lies, seconds, strict=True) if each > MOST_SECONDS} == {}


async def test_lies_to_the_requestor_cost_no_memory_and_are_answered_within_a_second() -> None:
    lies = [*BEFORE_ASSOCIATION.values(), item_claim(wire.AC)]
    untold = list(lies)
    seconds = []

    async def script(peer: Wire) -> None:
        await peer.pdu()
        seconds.append(await closed_after(peer, untold.pop()))

    async with scripted_scp(script) as scp:
        with little_memory():
            associating = (dul.open_association(scp, CONTEXTS) for _ in lies)
            outcomes = await asyncio.gather(*associating, return_exceptions=True)
        await asyncio.sleep(0.05)
    assert {type(outcome) for outcome in outcomes} <= {dul.RemoteProtocolError, dul.AssociationAborted}
    assert len(seconds) == len(lies)
    assert max(seconds) <= MOST_SECONDS


@pytest.mark.parametrize("reads", [True, False], ids=["handed on", "dropped"])
async def test_data_of_4_gib_is_handed_on_as_it_comes_and_costs_no_memory(reads: bool) -> None:
    """It breaks no rule, and so is not refused: what comes of it is in the reader's hands, or nobody's."""
    size = 0

    class Reader(dul.Handler):
        async def on_store(self, store: dul.IncomingStore) -> int:
            nonlocal size
            if reads:
                async for chunk in store:
                    size += len(chunk)
            return dimse.SUCCESS

    store: wire.Elements = {
        "field": wire.C_STORE,
        "message_id": 1,
        "sop_class": CT_IMAGE,
        "sop_instance": "1.2",
        "data_set": 1,
    }
    async with serving(Reader()) as server:
        with await Wire.connect(server.port) as peer, little_memory():
            await peer.associate(CT_IMAGE)
            await peer.send(wire.p_data(wire.pdv(1, 3, wire.command(**store))) + pdv_claim(0xFFFFFFFF, 0xFFFFFFFB))
            await feed(peer)
            async with asyncio.timeout(5):
                while reads and size < FED:
                    await asyncio.sleep(0.01)


# --- other protocols -----------------------------------------------------------------------------------------

STRANGERS = {
    "http": (b"GET / HTTP/1.1\r\nHost: archive\r\n\r\n", "PDU type 0x47 is not defined: this is HTTP"),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PDU type 0x50 is not defined: this is HTTP"),
    "a TLS hello": (
        bytes.fromhex("16030100c8010000c40303") + bytes(194),
        "PDU type 0x16 is not defined: this is TLS, and DICOM in clear text is spoken here",
    ),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", "PDU type 0x53 is not defined"),
    "random bytes": (bytes.fromhex("9f3a7c0011ffee42") * 64, "PDU type 0x9F is not defined"),
}


async def test_other_protocols_are_closed_at_once_with_one_log_line_that_says_what_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def call(port: int, data: bytes) -> float:
        with await Wire.connect(port) as peer:
            return await closed_after(peer, data)

    async with serving(Archive()) as server:
        seconds = await asyncio.gather(*(call(server.port, data) for data, _ in STRANGERS.values()))
    assert max(seconds) <= MOST_SECONDS
    assert sorted(record.getMessage() for record in caplog.records) == sorted(
        f"connection from 127.0.0.1 broke off: {reason}" for _, reason in STRANGERS.values()
    )


async def test_requestor_says_what_it_met() -> None:
    """A web server, and a TLS port that answers with an alert (RFC 8446 6)."""
    answers = {
        b"HTTP/1.1 400 Bad Request\r\n\r\n": "this is HTTP",
        bytes.fromhex("15030300020246"): "this is TLS, and DICOM in clear text is spoken here",
    }
    for answer, reason in answers.items():

        async def script(peer: Wire, answer: bytes = answer) -> None:
            await peer.pdu()
            await peer.send(answer)
            await peer.until_closed()

        async with scripted_scp(script) as scp:
            with pytest.raises(dul.RemoteProtocolError, match=reason):
                await dul.open_association(scp, CONTEXTS)


async def test_many_strangers_cost_a_bounded_number_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Archive()) as server:
        for _ in range(100):
            with await Wire.connect(server.port) as peer:
                await peer.send(STRANGERS["http"][0])
                await peer.expect_abort()
        with await Wire.connect(server.port, "127.0.0.2") as peer:
            await peer.associate(VERIFICATION)
            await peer.send(wire.message(1, **ECHO))
            assert (await peer.message()).number("status") == 0
    assert len(caplog.records) <= 22
