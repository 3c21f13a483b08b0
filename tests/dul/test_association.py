"""What a requestor does with peers that behave, and with peers that do not; the peers are written byte by byte."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

import dul
from dul import dimse
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


async def echo_and_release(peer: Wire) -> None:
    """Answer a C-ECHO and a release: the association still works."""
    request = await peer.message()
    assert request.command["field"] == wire.C_ECHO
    await peer.send(response(request, 0))
    await peer.answer_release()


# --- leaving an operation early ------------------------------------------------------------------------------


async def test_find_left_by_break_sends_c_cancel_and_the_association_is_reusable() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        find = await peer.message()
        assert find.data == IDENTIFIER
        await peer.send(response(find, 0xFF00, MATCH) * 3)
        cancel = await peer.message()
        assert cancel.command["field"] == wire.C_CANCEL
        assert cancel.command["responding_to"] == find.command["message_id"]
        assert cancel.context_id == find.context_id
        await peer.send(response(find, 0xFF00, MATCH) + response(find, 0xFE00))
        await echo_and_release(peer)

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        async for match in association.find(IDENTIFIER):
            assert match.data == MATCH
            break
        await association.echo()


async def test_move_left_by_break_sends_c_cancel_and_the_association_is_reusable() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        move = await peer.message()
        assert move.command["destination"] == "ELSEWHERE"
        await peer.send(response(move, 0xFF00, remaining=5, completed=1, failed=0, warning=0))
        cancel = await peer.message()
        assert cancel.command["field"] == wire.C_CANCEL
        await peer.send(response(move, 0xFE00, remaining=4, completed=2, failed=0, warning=0))
        await echo_and_release(peer)

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        async for progress in association.move(IDENTIFIER, destination="ELSEWHERE"):
            assert (progress.remaining, progress.completed) == (5, 1)
            break
        await association.echo()


async def test_get_left_within_an_instance_answers_it_and_sends_c_cancel() -> None:
    async def script(peer: Wire) -> None:
        contexts = await peer.accept()
        get = await peer.message()
        store: wire.Elements = {
            "field": wire.C_STORE,
            "sop_class": wire.CT_IMAGE,
            "sop_instance": "1.2.3",
            "data_set": 1,
        }
        storage = contexts[wire.CT_IMAGE]
        begun = wire.p_data(wire.pdv(storage, wire.COMMAND | wire.LAST, wire.command(message_id=7, **store)))
        await peer.send(begun + wire.p_data(wire.pdv(storage, 0, b"first")))
        cancel = await peer.message()
        assert cancel.command["field"] == wire.C_CANCEL
        await peer.send(wire.p_data(wire.pdv(storage, wire.LAST, b"rest")))
        answer = await peer.message()
        assert (answer.command["field"], answer.command["responding_to"]) == (wire.C_STORE | wire.RSP, 7)
        assert answer.command["status"] != 0
        # One more that was on its way is refused.
        await peer.send(wire.message(storage, b"more", message_id=8, **store))
        assert (await peer.message()).command["status"] == dimse.REFUSED_OUT_OF_RESOURCES
        await peer.send(response(get, 0xFE00))
        await echo_and_release(peer)

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        async for instance in association.get(IDENTIFIER):
            assert await anext(aiter(instance)) == b"first"
            break
        await association.echo()


async def test_echo_that_is_not_waited_for_sends_no_c_cancel() -> None:
    answer = asyncio.Event()

    async def script(peer: Wire) -> None:
        await peer.accept()
        first = await peer.message()
        await answer.wait()
        await peer.send(response(first, 0))
        await echo_and_release(peer)

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await association.echo()
        answer.set()
        await association.echo()


@pytest.mark.parametrize("flood", [False, True], ids=["silent", "goes on"])
async def test_peer_that_ignores_c_cancel_is_aborted(flood: bool) -> None:
    aborted = asyncio.Event()

    async def script(peer: Wire) -> None:
        await peer.accept()
        find = await peer.message()
        await peer.send(response(find, 0xFF00, MATCH))

        async def go_on() -> None:
            while flood:
                await peer.send(response(find, 0xFF00, MATCH))
                await asyncio.sleep(0.001)

        flooding = asyncio.create_task(go_on())
        try:
            assert (await peer.expect_abort())[2] == 0
        finally:
            flooding.cancel()
        aborted.set()

    async with scripted_scp(script) as scp:
        association = await dul.open_association(scp, CONTEXTS, timeouts=QUICK)
        async for _ in association.find(IDENTIFIER):
            break
        start = time.monotonic()
        with pytest.raises(dul.AssociationAborted):
            await association.echo()
        assert QUICK.cancel - 0.01 <= time.monotonic() - start < QUICK.cancel + 1
        assert not association.is_open
        await association.wait_closed()
        await aborted.wait()


async def test_identifier_that_cannot_be_made_leaves_the_association_usable() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        await echo_and_release(peer)

    def broken(_: str) -> bytes:
        raise ValueError("no such attribute")

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        with pytest.raises(ValueError, match="no such attribute"):
            await anext(association.find(broken))
        with pytest.raises(dul.LocalProtocolError):
            await anext(association.move(IDENTIFIER, destination="MORE THAN SIXTEEN CHARACTERS"))
        await association.echo()


# --- what responses say --------------------------------------------------------------------------------------


async def test_both_pending_statuses_are_matches_and_a_failure_carries_its_comment() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept(syntax=wire.IMPLICIT)
        find = await peer.message()
        await peer.send(response(find, 0xFF00, MATCH) + response(find, 0xFF01, MATCH))
        await peer.send(response(find, 0xA700, comment="too many"))
        await peer.answer_release()

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        statuses = []
        with pytest.raises(dul.StatusError) as raised:
            async for match in association.find(IDENTIFIER):
                statuses.append(match.status)
                assert match.transfer_syntax == wire.IMPLICIT
        assert statuses == [0xFF00, 0xFF01]
        assert (raised.value.status, raised.value.comment) == (0xA700, "too many")


async def test_data_set_type_0000_means_that_a_data_set_follows() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        find = await peer.message()
        await peer.send(response(find, 0xFF00, MATCH, data_set=0) + response(find, 0))
        await peer.answer_release()

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        assert [match.data async for match in association.find(IDENTIFIER)] == [MATCH]


async def test_move_counters_and_the_failed_identifier() -> None:
    failed = b"\x08\x00\x58\x00UI\x04\x001.2\0"

    async def script(peer: Wire) -> None:
        await peer.accept()
        move = await peer.message()
        await peer.send(response(move, 0xFF00))  # some archives send no counters
        await peer.send(response(move, 0xB000, failed, completed=3, failed=1, warning=0))
        move = await peer.message()
        await peer.send(response(move, 0xA702, failed, completed=0, failed=1, warning=0))
        await peer.answer_release()

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        pending, final = [step async for step in association.move(IDENTIFIER, destination="D")]
        assert (pending.remaining, pending.completed, pending.final) == (None, None, False)
        assert (final.status, final.completed, final.failed, final.final) == (0xB000, 3, 1, True)
        assert final.failed_identifier == failed
        move = association.move(IDENTIFIER, destination="D")
        with pytest.raises(dul.StatusError):
            await anext(move)
        assert (move.progress.status, move.progress.failed_identifier) == (0xA702, failed)


async def test_store_returns_the_status_whatever_its_class() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        for status in (0x0000, 0xB000, 0xA700):
            store = await peer.message()
            assert store.data == INSTANCE.data
            assert (store.command["originator"], store.command["originator_id"]) == ("MOVER", 77)
            await peer.send(response(store, status))
        await peer.answer_release()

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        statuses = [await association.store(INSTANCE, move_originator=("MOVER", 77)) for _ in range(3)]
        assert statuses == [0x0000, 0xB000, 0xA700]


@pytest.mark.parametrize("elements", [{"responding_to": 999}, {"field": wire.C_FIND | wire.RSP}, {"status": None}])
async def test_response_that_answers_nothing_ends_the_association(elements: dict[str, int | None]) -> None:
    async def script(peer: Wire) -> None:
        contexts = await peer.accept()
        echo = await peer.message()
        proper = {"field": wire.C_ECHO | wire.RSP, "responding_to": echo.number("message_id"), "status": 0}
        changed = {name: value for name, value in {**proper, **elements}.items() if value is not None}
        await peer.send(wire.message(contexts[VERIFICATION], **changed))
        await peer.expect_abort()

    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        with pytest.raises(dul.RemoteProtocolError):
            await association.echo()
        assert not association.is_open


# --- what cannot be sent -------------------------------------------------------------------------------------


async def test_context_that_was_not_accepted_is_an_error_of_its_own() -> None:
    async def script(peer: Wire) -> None:
        await peer.pdu()
        await peer.send(wire.associate_ac((1, 0, wire.IMPLICIT), (3, 3, wire.IMPLICIT)))
        await echo_and_release(peer)

    contexts = [dul.Context(VERIFICATION), dul.Context(STUDY_ROOT_FIND)]
    async with scripted_scp(script) as scp, dul.connect(scp, contexts, timeouts=QUICK) as association:
        with pytest.raises(dul.NoPresentationContext, match=r"1\.2\.840\.10008\.5\.1\.4\.1\.2\.2\.1"):
            association.find(IDENTIFIER)
        with pytest.raises(dul.NoPresentationContext, match="with transfer syntax"):
            await association.store(INSTANCE)
        await association.echo()


async def test_source_that_fails_within_a_data_set_aborts_and_is_closed() -> None:
    closed = False

    async def source() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            yield bytes(1000)
            yield bytes(1000)
            raise RuntimeError("the disk is gone")
        finally:
            closed = True

    async def script(peer: Wire) -> None:
        await peer.accept()
        await peer.expect_abort()

    instance = dul.Instance(wire.CT_IMAGE, "1.2.3", wire.EXPLICIT, source)
    async with scripted_scp(script) as scp, dul.connect(scp, CONTEXTS, timeouts=QUICK) as association:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            await association.store(instance)
        assert closed
        assert not association.is_open
