"""Peers that are slow on purpose, or gone without a word: each is found out, by the numbers that the module states."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time

import pytest

import dul
from dul import dimse, limits
from tests.dul import wire
from tests.dul.archive import Archive, peer_of, serving
from tests.dul.conftest import open_sockets
from tests.dul.deafness import make_deaf, notice_within
from tests.dul.wire import CT_IMAGE, STUDY_ROOT_FIND, STUDY_ROOT_MOVE, VERIFICATION, Wire, scripted_scp

pytestmark = pytest.mark.usefixtures("nothing_left")

ARTIM = 30.0
TOLERANCE = 1.0
NOTICED = 60.0
"""Seconds within which a half-open connection has to be noticed."""

PROPOSAL = (1, VERIFICATION, [wire.IMPLICIT])
ECHO = wire.message(1, field=wire.C_ECHO, message_id=1, sop_class=VERIFICATION)


# --- slow ----------------------------------------------------------------------------------------------------


async def closed_after(port: int, before: bytes, dripped: bytes, interval: float) -> float:
    """Send `before` at once and `dripped` byte by byte; returns the seconds until the other side closes."""
    with await Wire.connect(port) as peer:
        start = time.monotonic()
        if before:
            await peer.send(before)
            assert (await peer.pdu())[0] == wire.AC
        dripping = asyncio.create_task(peer.drip(dripped, interval))
        await peer.until_closed(60)
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        return time.monotonic() - start


RQ = wire.associate_rq(PROPOSAL)
SLOW: dict[str, tuple[bytes, bytes, float]] = {
    "idle": (b"", b"", 0),
    "a request dripped fast": (b"", RQ[:-1], 0.01),
    "a request dripped slowly": (b"", RQ[:-1], 1.5),
    "a command dripped after the AC": (RQ, ECHO[:-1], 1.5),
    "half a header after the AC": (RQ, ECHO[:3], 0.01),
    "half a release": (RQ, wire.RELEASE_RQ_PDU[:8], 0.01),
    "a release dripped slowly": (RQ, wire.RELEASE_RQ_PDU[:-1], 3.5),
}


async def slow_peers(scale: float) -> dict[str, float]:
    """Be slow in every way, in so many-th of the real times; returns how many of those it took to be closed."""
    async with serving(Archive(), artim=scale * ARTIM, timeouts=dul.Timeouts(pdu=scale * ARTIM)) as server:
        waits = (
            closed_after(server.port, before, dripped, interval * scale) for before, dripped, interval in SLOW.values()
        )
        return {name: seconds / scale for name, seconds in zip(SLOW, await asyncio.gather(*waits), strict=True)}


async def test_slow_peers_are_closed_at_artim_whatever_the_drip() -> None:
    """By ARTIM before there is an association, by the like of it after; here 0.6 s of each, and up to 0.5 s more for
    the peer to close. A test that is run on demand has the real ones."""
    assert (limits.ARTIM, limits.PDU_TIMEOUT, limits.ARTIM_CLOSE) == (ARTIM, ARTIM, 0.5)
    seconds = await slow_peers(0.02)
    assert {name: each * 0.02 for name, each in seconds.items() if not 0.58 < each * 0.02 < 1.4} == {}


async def test_data_set_that_is_dripped_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not hold an association: so many have to come in each idle timeout."""
    assert limits.MIN_RATE >= 50
    statuses = []

    class Reading(dul.Handler):
        async def on_store(self, store: dul.IncomingStore) -> int:
            with contextlib.suppress(dul.PeerTimeout):
                async for _ in store:
                    pass
            statuses.append(store.fully_read)
            return dimse.SUCCESS

    monkeypatch.setattr(limits, "MIN_RATE", 40)
    async with serving(Reading(), timeouts=dul.Timeouts(idle=0.2)) as server:
        for interval, whole in ((0.01, True), (0.1, False)):
            with await Wire.connect(server.port) as peer:
                await peer.associate(CT_IMAGE)
                data = wire.p_data(wire.pdv(1, 2, bytes(40)))
                await peer.send(wire.p_data(wire.pdv(1, 3, wire.command(**wire.STORE))) + data[:-40])
                dripping = asyncio.create_task(peer.drip(data[-40:], interval))
                if whole:
                    assert (await peer.message()).number("status") == 0
                else:
                    start = time.monotonic()
                    await peer.expect_abort()
                    assert time.monotonic() - start < 0.5
                dripping.cancel()
                await asyncio.gather(dripping, return_exceptions=True)
    assert statuses == [True, False]


# --- gone ----------------------------------------------------------------------------------------------------


def options_of(port: int) -> set[tuple[int, int, int, int, int]]:
    """Return what is set against silence on this process's sockets that are connected from or to a port."""
    found = set()
    for descriptor in open_sockets().values():
        with socket.socket(fileno=os.dup(descriptor)) as sock, contextlib.suppress(OSError):
            if port in (sock.getsockname()[1], sock.getpeername()[1]):
                tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
                idle, interval, probes, unacknowledged = (sock.getsockopt(socket.IPPROTO_TCP, each) for each in tcp)
                keepalive = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                found.add((keepalive, idle, interval, probes, unacknowledged))
    return found


async def test_silence_is_noticed_within_a_minute_by_the_kernel_in_both_roles() -> None:
    async with serving(Archive()) as server, dul.connect(peer_of(server), [dul.Context(VERIFICATION)]) as association:
        await association.echo()
        assert options_of(server.port) == {(1, 20, 10, 3, 50_000)}
    assert limits.SILENCE_TIMEOUT + limits.KEEPALIVE_INTERVAL <= NOTICED


async def goes_deaf_before_the_request(peer: Wire) -> None:
    """Accept, and get nothing of what comes then."""
    await peer.accept()
    make_deaf(peer.socket)
    await asyncio.Event().wait()


async def goes_deaf_after_the_request(peer: Wire) -> None:
    """Accept and take the request, and be gone."""
    await peer.accept()
    await peer.message()
    make_deaf(peer.socket)
    await asyncio.Event().wait()


GOES_DEAF = (goes_deaf_before_the_request, goes_deaf_after_the_request)


async def noticed_after(script: wire.Script) -> float:
    """Ask an archive that is gone then for a C-MOVE; returns the seconds until that is noticed."""
    async with scripted_scp(script) as scp:
        timeouts = dul.Timeouts(idle=300, response=300)
        association = await dul.open_association(scp, [dul.Context(STUDY_ROOT_MOVE)], timeouts=timeouts)
        await asyncio.sleep(0.05)
        start = time.monotonic()
        with pytest.raises(dul.PeerTimeout, match="no TCP acknowledgement within"):
            await anext(association.move(b"any", destination="D"))
        await association.wait_closed()
        return time.monotonic() - start


async def test_archive_that_is_gone_midway_is_noticed_where_silence_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a C-MOVE the archive may be silent for minutes: the network, not DICOM, has to tell that it is gone."""
    notice_within(monkeypatch, 2)
    assert max(await asyncio.gather(*map(noticed_after, GOES_DEAF))) < 4


async def test_caller_that_is_gone_midway_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    notice_within(monkeypatch, 2)
    async with serving(Archive()) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(CT_IMAGE)
            await peer.send(wire.p_data(wire.pdv(1, 3, wire.command(**wire.STORE)), wire.pdv(1, 0, b"some")))
            await asyncio.sleep(0.05)
            make_deaf(peer.socket)
            async with asyncio.timeout(4):
                while server.connection_count:
                    await asyncio.sleep(0.01)


async def stored_after_a_pause(size: int) -> int:
    """Store an instance in an archive that reads nothing for 1.8 s; returns the status."""
    go_on = asyncio.Event()

    async def script(peer: Wire) -> None:
        await peer.accept()
        await go_on.wait()
        flags = 0
        while flags != wire.LAST:
            _, flags, data = await peer.fragment()
            if flags & wire.COMMAND:
                store = wire.Message(1, wire.parse_command(data), None)
        await peer.send(wire.response(store, 0))
        await peer.answer_release()

    instance = dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, bytes(size))
    async with (
        scripted_scp(script, receive_buffer=4096) as scp,
        dul.connect(scp, [dul.Context(CT_IMAGE)], timeouts=dul.Timeouts(idle=10)) as association,
    ):
        storing = asyncio.create_task(association.store(instance))
        await asyncio.sleep(1.8)  # the kernel would have ended it after 1.3 s
        assert not storing.done()
        go_on.set()
        status = await storing
        assert 1000 in {options[-1] for options in options_of(scp.port)}, "it would be noticed again"
        return status


async def test_peer_that_acknowledges_but_does_not_read_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that is slow to take an upload has the idle timeout for it, which is longer; however much is left to
    be sent, or only little, all of which the kernel has taken."""
    notice_within(monkeypatch, 2)
    monkeypatch.setattr("dul.limits.SILENCE_TIMEOUT", 1)
    assert await asyncio.gather(*map(stored_after_a_pause, (2**18, 2**24))) == [0, 0]


async def test_silent_archive_that_still_acknowledges_is_bounded_by_the_response_timeout() -> None:
    """A program that hangs, or a proxy between that passes nothing on: its machine answers keepalive."""

    async def script(peer: Wire) -> None:
        await peer.accept()
        await peer.expect_abort()

    assert limits.RESPONSE_TIMEOUT < NOTICED
    async with scripted_scp(script) as scp:
        timeouts = dul.Timeouts(response=0.2)
        association = await dul.open_association(scp, [dul.Context(STUDY_ROOT_FIND)], timeouts=timeouts)
        with pytest.raises(dul.PeerTimeout, match="no C-FIND response within"):
            await anext(association.find(b"any"))
        await association.wait_closed()
