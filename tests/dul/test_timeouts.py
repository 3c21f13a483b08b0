"""Each wait has its limit, says what did not come, and leaves no socket behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import pytest

import dul
from dul import dimse, limits
from tests.dul import wire
from tests.dul.archive import peer_of, serving
from tests.dul.wire import CT_IMAGE, STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE, VERIFICATION, Wire, scripted_scp

pytestmark = pytest.mark.usefixtures("nothing_left")

CONTEXTS = [
    dul.Context(VERIFICATION),
    dul.Context(STUDY_ROOT_FIND),
    dul.Context(STUDY_ROOT_MOVE),
    dul.Context(STUDY_ROOT_GET),
    dul.Context(CT_IMAGE, scp_role=True),
]
LIMIT = 0.15
CLOCK = 0.01
"""Event loops may be early by this, since their clocks are coarse."""


@contextlib.contextmanager
def times_out(what: str, seconds: float = LIMIT) -> Iterator[None]:
    """Expect a `PeerTimeout` that names `what`, about on time."""
    start = time.monotonic()
    with pytest.raises(dul.PeerTimeout) as raised:
        yield
    assert (raised.value.what, raised.value.seconds) == (what, seconds)
    assert str(raised.value) == f"no {what} within {seconds:g} s"
    assert seconds - CLOCK <= time.monotonic() - start < seconds + 1.2


async def until_abort(peer: Wire) -> None:
    """Read until the peer gives up."""
    await peer.expect_abort()


# --- before there is an association --------------------------------------------------------------------------


async def test_tcp_connection() -> None:
    # A listener with a full backlog: Linux drops further SYNs, as a host that is not there would.
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((wire.HOST, 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        await asyncio.sleep(0.01)
        peer = dul.Peer(wire.HOST, listener.getsockname()[1], "SCP", "SCU")
        with times_out("TCP connection"):
            await dul.open_association(peer, CONTEXTS, timeouts=dul.Timeouts(connect=LIMIT))


async def test_answer_to_the_association_request() -> None:
    async with scripted_scp(until_abort) as scp:
        with times_out("answer to the association request"):
            await dul.open_association(scp, CONTEXTS, timeouts=dul.Timeouts(associate=LIMIT))


async def test_answer_to_the_association_request_that_is_dripped() -> None:
    async def script(peer: Wire) -> None:
        await peer.pdu()
        dripping = asyncio.create_task(peer.drip(wire.associate_ac((1, 0, wire.IMPLICIT)), 0.02))
        try:
            await peer.until_closed()
        finally:
            dripping.cancel()

    async with scripted_scp(script) as scp:
        with times_out("answer to the association request"):
            await dul.open_association(scp, CONTEXTS, timeouts=dul.Timeouts(associate=LIMIT))


# --- within it -----------------------------------------------------------------------------------------------


async def silent(peer: Wire) -> None:
    """Accept, and say no more."""
    await peer.accept()
    await peer.expect_abort()


async def dripping_pending(peer: Wire) -> None:
    """Begin a response, and never end it."""
    await peer.accept()
    find = await peer.message()
    await peer.send(wire.response(find, 0xFF00, b"match")[:-5])
    await peer.expect_abort()


@pytest.mark.parametrize("service", ["echo", "find", "store", "move", "get"])
async def test_response(service: str) -> None:
    timeouts = dul.Timeouts(response=LIMIT, idle=2 * LIMIT)
    async with scripted_scp(silent) as scp:
        association = await dul.open_association(scp, CONTEXTS, timeouts=timeouts)
        name = f"C-{service.upper()} response"
        with times_out(name, 2 * LIMIT if service in ("move", "get") else LIMIT):
            if service == "echo":
                await association.echo()
            elif service == "store":
                await association.store(dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, b"data"))
            elif service == "find":
                await anext(association.find(b"any"))
            elif service == "move":
                await anext(association.move(b"any", destination="D"))
            else:
                await anext(association.get(b"any"))
        assert not association.is_open
        await association.wait_closed()


async def test_further_matches() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        find = await peer.message()
        await peer.send(wire.response(find, 0xFF00, b"match"))
        await peer.expect_abort()

    async with (
        scripted_scp(script) as scp,
        dul.connect(scp, CONTEXTS, timeouts=dul.Timeouts(response=LIMIT)) as association,
    ):
        find = association.find(b"any")
        assert (await anext(find)).data == b"match"
        with times_out("C-FIND response"):
            await anext(find)


async def test_rest_of_an_identifier() -> None:
    async with (
        scripted_scp(dripping_pending) as scp,
        dul.connect(scp, CONTEXTS, timeouts=dul.Timeouts(idle=LIMIT)) as association,
    ):
        with times_out("further bytes of a data set"):
            await anext(association.find(b"any"))


async def test_rest_of_an_instance() -> None:
    async def script(peer: Wire) -> None:
        contexts = await peer.accept()
        await peer.message()
        storage = contexts[CT_IMAGE]
        await peer.send(wire.p_data(wire.pdv(storage, 3, wire.command(**wire.STORE)), wire.pdv(storage, 0, b"some")))
        await peer.expect_abort()

    async with (
        scripted_scp(script) as scp,
        dul.connect(scp, CONTEXTS, timeouts=dul.Timeouts(idle=LIMIT)) as association,
    ):
        instance = await anext(association.get(b"any"))
        chunks = aiter(instance)
        assert await anext(chunks) == b"some"
        with times_out("further bytes of a data set"):
            await anext(chunks)


async def test_data_set_that_is_slow_but_goes_on_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MIN_RATE", 4 / LIMIT)

    async def script(peer: Wire) -> None:
        contexts = await peer.accept()
        get = await peer.message()
        storage = contexts[CT_IMAGE]
        data = wire.p_data(wire.pdv(storage, 2, bytes(20)))
        await peer.send(wire.p_data(wire.pdv(storage, 3, wire.command(**wire.STORE))) + data[:-20])
        await peer.drip(data[-20:], LIMIT / 10)
        await peer.message()
        await peer.send(wire.response(get, 0))
        await peer.answer_release()

    async with scripted_scp(script) as scp:
        timeouts = dul.Timeouts(idle=LIMIT, response=LIMIT)
        async with dul.connect(scp, CONTEXTS, timeouts=timeouts) as association:
            assert [await instance.read(100) async for instance in association.get(b"any")] == [bytes(20)]


async def test_release_that_is_not_answered() -> None:
    async with scripted_scp(silent) as scp:
        start = time.monotonic()
        async with dul.connect(scp, CONTEXTS, timeouts=dul.Timeouts(release=LIMIT)):
            pass
        assert LIMIT - CLOCK <= time.monotonic() - start < LIMIT + 1.2


@pytest.mark.parametrize("source", ["bytes", "stream"])
async def test_peer_that_never_reads(source: str) -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        await asyncio.Event().wait()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(2**20)

    data = bytes(32 * 2**20) if source == "bytes" else endless
    async with scripted_scp(script, receive_buffer=4096) as scp:
        association = await dul.open_association(scp, CONTEXTS, timeouts=dul.Timeouts(idle=LIMIT))
        with times_out("progress in sending"):
            await association.store(dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, data))
        await association.wait_closed()


async def test_peer_that_reads_slowly_is_waited_for() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept(maximum_length=0)
        flags = 0
        while flags != wire.LAST:
            _, flags, data = await peer.fragment()
            if flags & wire.COMMAND:
                store = wire.Message(1, wire.parse_command(data), None)
            else:
                await asyncio.sleep(LIMIT / 20)
        await peer.send(wire.response(store, 0))
        await peer.answer_release()

    # About 1 s in all, in which no wait for progress is longer than the limit.
    instance = dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, bytes(32 * 2**20))
    async with (
        scripted_scp(script, receive_buffer=65536) as scp,
        dul.connect(scp, CONTEXTS, timeouts=dul.Timeouts(idle=2 * LIMIT)) as association,
    ):
        assert await association.store(instance) == 0


async def test_slow_reader_of_ours_is_not_held_against_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    # Reading stops within a header, most of the time: the PDU timer must not run while the delay is ours.
    monkeypatch.setattr(limits, "RECEIVE_HIGH_WATER", 1024)
    monkeypatch.setattr(limits, "RECEIVE_LOW_WATER", 256)
    count = 100_000
    go_on = asyncio.Event()

    class Slow(dul.Handler):
        async def on_store(self, store: dul.IncomingStore) -> int:
            await go_on.wait()
            return dimse.SUCCESS if len(await store.read(2**20)) == 2 * count else dimse.PROCESSING_FAILURE

    async with serving(Slow(), timeouts=dul.Timeouts(pdu=LIMIT)) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(CT_IMAGE)
            await peer.send(wire.p_data(wire.pdv(1, 3, wire.command(**wire.STORE))))
            data = wire.p_data(wire.pdv(1, 0, b"ab")) * (count - 1) + wire.p_data(wire.pdv(1, 2, b"ab"))
            sending = asyncio.create_task(peer.send(data))
            await asyncio.sleep(2 * LIMIT)
            go_on.set()
            assert (await peer.message()).number("status") == 0
            await sending


# --- the acceptor --------------------------------------------------------------------------------------------


async def test_association_without_requests_is_aborted() -> None:
    async with serving(dul.Handler(), timeouts=dul.Timeouts(idle=LIMIT)) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(VERIFICATION)
            start = time.monotonic()
            await peer.expect_abort()
            assert LIMIT / 2 < time.monotonic() - start < LIMIT + 0.5


async def test_requestor_that_never_reads_is_aborted() -> None:
    ended = asyncio.Event()

    class Endless(dul.Handler):
        async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
            try:
                while True:
                    yield bytes(100_000)
            finally:
                ended.set()

    async with serving(Endless(), timeouts=dul.Timeouts(idle=LIMIT)) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(STUDY_ROOT_FIND)
            fields: wire.Elements = {"field": wire.C_FIND, "message_id": 1, "sop_class": STUDY_ROOT_FIND}
            await peer.send(wire.message(1, b"any", **fields))
            async with asyncio.timeout(LIMIT + 1):
                await ended.wait()


async def test_sub_operation_that_is_not_answered() -> None:
    class Source(dul.Handler):
        async def on_move(self, request: dul.Request) -> dul.MovePlan:
            return dul.MovePlan(destination, [dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, b"data")] * 3)

    timeouts = dul.Timeouts(response=LIMIT)
    async with (
        scripted_scp(silent) as destination,
        serving(Source(), timeouts=timeouts) as server,
        dul.connect(peer_of(server), CONTEXTS) as association,
    ):
        move = association.move(b"any", destination="D")
        start = time.monotonic()
        with pytest.raises(dul.StatusError):
            await anext(move)
        assert move.progress.failed == 3
        assert LIMIT - CLOCK <= time.monotonic() - start < LIMIT + 1.2
