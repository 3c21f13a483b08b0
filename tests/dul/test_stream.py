"""Data sets as streams: back-pressure both ways, bounded memory, readers that leave, and readers that stay too long."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

import dul
from dul import dimse
from tests.dul import wire
from tests.dul.archive import peer_of, serving
from tests.dul.wire import CT_IMAGE, STUDY_ROOT_GET, VERIFICATION, Wire, scripted_scp

pytestmark = pytest.mark.usefixtures("nothing_left")

MIB = 2**20
SIZE = 64 * MIB
KERNEL = 24 * MIB
"""More than Linux holds for both ends of a loopback connection."""
OURS = 4 * MIB
"""More than we hold: high-water marks, read buffers, and what is on its way from one to the other."""

BLOCK = bytes(range(256)) * 4096
SHA = hashlib.sha256(BLOCK * (SIZE // len(BLOCK))).hexdigest()


@contextmanager
def peak_memory() -> Iterator[SimpleNamespace]:
    """Measure the peak of what Python allocates, in bytes."""
    result = SimpleNamespace(peak=0)
    tracemalloc.start()
    try:
        yield result
        result.peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def stalled(count: Callable[[], int]) -> int:
    """Return `count` once it has not changed for a while."""
    last = -1
    while last != count():
        last = count()
        await asyncio.sleep(0.1)
    return last


class Flood:
    """Sends a data set of `SIZE` bytes in PDUs of 64 KiB, and counts."""

    def __init__(self, peer: Wire, context_id: int) -> None:
        self.sent = 0
        self._peer = peer
        self._context_id = context_id

    async def run(self) -> None:
        command = wire.p_data(wire.pdv(self._context_id, 3, wire.command(**wire.STORE)))
        await self._peer.send(command)
        blocks = [memoryview(BLOCK)[start : start + 65536] for start in range(0, len(BLOCK), 65536)]
        while self.sent < SIZE:
            for block in blocks:
                self.sent += len(block)
                last = wire.LAST if self.sent >= SIZE else 0
                await self._peer.send(wire.p_data(wire.pdv(self._context_id, last, bytes(block))))


class SlowHandler(dul.Handler):
    """Takes one chunk, then waits until it may go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.sha = hashlib.sha256()

    async def on_store(self, store: dul.IncomingStore) -> int:
        async for chunk in store:
            self.sha.update(chunk)
            await self.go_on.wait()
        return dimse.SUCCESS


async def test_slow_reader_of_a_store_holds_the_peer_back_and_costs_no_memory() -> None:
    handler = SlowHandler()
    async with serving(handler) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(CT_IMAGE)
            flood = Flood(peer, 1)
            with peak_memory() as memory:
                sending = asyncio.create_task(flood.run())
                assert await stalled(lambda: flood.sent) < KERNEL
                handler.go_on.set()
                assert (await peer.message()).number("status") == 0
            await sending
    assert handler.sha.hexdigest() == SHA
    assert memory.peak < OURS


async def test_slow_reader_of_a_get_holds_the_archive_back_and_costs_no_memory() -> None:
    floods: list[Flood] = []

    async def script(peer: Wire) -> None:
        contexts = await peer.accept()
        get = await peer.message()
        floods.append(Flood(peer, contexts[CT_IMAGE]))
        await floods[0].run()
        assert (await peer.message()).number("status") == 0
        await peer.send(wire.response(get, 0))
        await peer.answer_release()

    contexts = [dul.Context(STUDY_ROOT_GET), dul.Context(CT_IMAGE, scp_role=True)]
    sha = hashlib.sha256()
    async with scripted_scp(script) as scp, dul.connect(scp, contexts) as association:
        with peak_memory() as memory:
            async for instance in association.get(b"any"):
                chunks = aiter(instance)
                sha.update(await anext(chunks))
                assert await stalled(lambda: floods[0].sent) < KERNEL
                async for chunk in chunks:
                    sha.update(chunk)
    assert sha.hexdigest() == SHA
    assert memory.peak < OURS


@pytest.mark.parametrize("source", ["stream", "large chunks", "bytes"])
async def test_slow_peer_holds_the_sender_back_and_costs_no_memory(source: str) -> None:
    go_on = asyncio.Event()
    produced = 0
    sha = hashlib.sha256()

    async def script(peer: Wire) -> None:
        await peer.accept(maximum_length=0)
        _, _, command = await peer.fragment()
        await go_on.wait()
        flags = 0
        while not flags & wire.LAST:
            _, flags, data = await peer.fragment()
            sha.update(data)
        await peer.send(wire.response(wire.Message(1, wire.parse_command(command), None), 0))
        await peer.answer_release()

    async def stream() -> AsyncIterator[bytes]:
        nonlocal produced
        size = len(BLOCK) if source == "stream" else len(large)
        while produced < SIZE:
            produced += size
            yield BLOCK if source == "stream" else large

    large = BLOCK * 16
    whole = BLOCK * 64 if source == "bytes" else b""
    instance = dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, whole or stream)
    async with scripted_scp(script) as scp, dul.connect(scp, [dul.Context(CT_IMAGE)]) as association:
        with peak_memory() as memory:
            storing = asyncio.create_task(association.store(instance))
            await asyncio.sleep(0.1)
            if source == "stream":
                assert await stalled(lambda: produced) < KERNEL
            go_on.set()
            assert await storing == 0
    assert sha.hexdigest() == SHA
    assert memory.peak < OURS + 4 * MIB  # the peer's side is in this process too


# --- readers -------------------------------------------------------------------------------------------------


async def test_what_a_handler_does_not_read_is_dropped() -> None:
    class Picky(dul.Handler):
        async def on_store(self, store: dul.IncomingStore) -> int:
            if store.sop_instance_uid == "1.2.1":
                await anext(aiter(store))
            return dimse.REFUSED_OUT_OF_RESOURCES

    async with serving(Picky()) as server:
        contexts = [dul.Context(CT_IMAGE), dul.Context(VERIFICATION)]
        async with dul.connect(peer_of(server), contexts) as association:
            for number in range(3):
                instance = dul.Instance(CT_IMAGE, f"1.2.{number}", wire.EXPLICIT, BLOCK * 3)
                assert await association.store(instance) == dimse.REFUSED_OUT_OF_RESOURCES
            await association.echo()


async def test_instances_that_are_not_read_are_answered_with_a_failure_and_skipped() -> None:
    statuses: list[int] = []

    async def script(peer: Wire) -> None:
        contexts = await peer.accept()
        get = await peer.message()
        for number in range(4):
            fields: wire.Elements = {**wire.STORE, "sop_instance": f"1.2.{number}"}
            await peer.send(wire.message(contexts[CT_IMAGE], BLOCK, **fields))
            statuses.append((await peer.message()).number("status"))
        await peer.send(wire.response(get, 0xB000, completed=2, failed=2, warning=0))
        await peer.answer_release()

    contexts = [dul.Context(STUDY_ROOT_GET), dul.Context(CT_IMAGE, scp_role=True)]
    async with scripted_scp(script) as scp, dul.connect(scp, contexts) as association:
        get = association.get(b"any")
        number = 0
        async for instance in get:
            assert instance.calling_ae_title == "SCP"
            if number == 1:
                assert await instance.read(MIB) == BLOCK
            elif number == 2:
                await anext(aiter(instance))
            elif number == 3:
                instance.discard()
                await instance.respond(dimse.SUCCESS)
                await instance.respond(dimse.PROCESSING_FAILURE)  # the second answer is none
            number += 1
        assert (get.progress.completed, get.progress.failed) == (2, 2)
    assert statuses == [dimse.PROCESSING_FAILURE, dimse.SUCCESS, dimse.PROCESSING_FAILURE, dimse.SUCCESS]


async def test_reading_whole_is_bounded() -> None:
    class Bounded(dul.Handler):
        async def on_store(self, store: dul.IncomingStore) -> int:
            with pytest.raises(dul.RemoteProtocolError, match="more than 100000 bytes"):
                await store.read(100_000)
            return dimse.REFUSED_OUT_OF_RESOURCES

    async with serving(Bounded()) as server, dul.connect(peer_of(server), [dul.Context(CT_IMAGE)]) as association:
        instance = dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, BLOCK)
        assert await association.store(instance) == dimse.REFUSED_OUT_OF_RESOURCES


async def test_identifier_without_end_is_refused() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        find = await peer.message()
        await peer.send(wire.response(find, 0xFF00, BLOCK * 5))
        await peer.message()  # C-CANCEL
        await peer.send(wire.response(find, 0xFE00))
        await peer.answer_release()

    async with scripted_scp(script) as scp, dul.connect(scp, [dul.Context(wire.STUDY_ROOT_FIND)]) as association:
        with pytest.raises(dul.RemoteProtocolError, match="an identifier of more than"):
            await anext(association.find(b"any"))


async def test_data_set_has_one_reader() -> None:
    class Two(dul.Handler):
        async def on_store(self, store: dul.IncomingStore) -> int:
            await anext(aiter(store))
            first = asyncio.create_task(anext(aiter(store)))
            await asyncio.sleep(0)
            with pytest.raises(dul.LocalProtocolError):
                await anext(aiter(store))
            await go_on()
            await first
            return dimse.SUCCESS

    async with serving(Two()) as server:
        with await Wire.connect(server.port) as peer:

            async def go_on() -> None:
                await peer.send(wire.p_data(wire.pdv(1, 2, b"rest")))

            await peer.associate(CT_IMAGE)
            await peer.send(wire.p_data(wire.pdv(1, 3, wire.command(**wire.STORE)), wire.pdv(1, 0, b"data")))
            assert (await peer.message()).number("status") == 0
