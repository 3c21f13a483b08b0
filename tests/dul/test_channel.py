"""Messages however the peer cuts them into PDVs, PDUs and TCP segments, and how they are cut for the peer."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import AsyncIterator, Callable

import pytest

import dul
from tests.dul import wire
from tests.dul.archive import Archive, peer_of, serving
from tests.dul.wire import CT_IMAGE, STUDY_ROOT_FIND, VERIFICATION, Wire, scripted_scp

pytestmark = pytest.mark.usefixtures("nothing_left")

DATA_SET = random.Random(2).randbytes(5000)


def pieces(data: bytes, size: int) -> list[bytes]:
    """Cut data into pieces."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def pdvs(data: bytes, size: int, kind: int) -> list[bytes]:
    """Cut a command set (`kind` 1) or data set (0) into presentation data values."""
    *cut, last = pieces(data, size)
    return [*(wire.pdv(1, kind, piece) for piece in cut), wire.pdv(1, kind | wire.LAST, last)]


def packed(elements: wire.Elements) -> bytes:
    """Command and data set share one P-DATA-TF, as dcm4che sends them."""
    return wire.p_data(wire.pdv(1, 3, wire.command(**elements)), wire.pdv(1, 2, DATA_SET))


def packed_in_many(elements: wire.Elements) -> bytes:
    """The last piece of the command and the first of the data set share a PDU, amid others."""
    all_pdvs = pdvs(wire.command(**elements), 40, 1) + pdvs(DATA_SET, 700, 0)
    return b"".join(wire.p_data(*filter(None, group)) for group in itertools.zip_longest(*[iter(all_pdvs)] * 3))


def one_pdu_for_each_pdv(elements: wire.Elements) -> bytes:
    """As DCMTK sends them."""
    return b"".join(map(wire.p_data, pdvs(wire.command(**elements), 10, 1) + pdvs(DATA_SET, 1000, 0)))


def many_small_pdus(elements: wire.Elements) -> bytes:
    """One byte in each, some with none."""
    small = [*pdvs(wire.command(**elements), 1, 1), wire.pdv(1, 0, b""), *pdvs(DATA_SET, 1, 0)]
    return b"".join(map(wire.p_data, small))


def last_flag_alone(elements: wire.Elements) -> bytes:
    """Empty values carry the "last fragment" flags."""
    command, data = wire.command(**elements), DATA_SET
    return wire.p_data(wire.pdv(1, 1, command), wire.pdv(1, 3, b""), wire.pdv(1, 0, data), wire.pdv(1, 2, b""))


CUTS: list[Callable[[wire.Elements], bytes]] = [
    packed,
    packed_in_many,
    one_pdu_for_each_pdv,
    many_small_pdus,
    last_flag_alone,
]


@pytest.mark.parametrize("data_set_type", [0x0000, 0x0001, 0xFEFE])
@pytest.mark.parametrize("cut", CUTS)
async def test_message_cut_anyhow_is_stored_byte_for_byte(
    cut: Callable[[wire.Elements], bytes], data_set_type: int
) -> None:
    archive = Archive()
    async with serving(archive) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(CT_IMAGE)
            await peer.send(cut({**wire.STORE, "data_set": data_set_type}))
            answer = await peer.message()
            assert (answer.number("responding_to"), answer.number("status")) == (1, 0)
            assert answer.command["sop_instance"] == "1.2.3"
    assert archive.stored["1.2.3"].data == DATA_SET
    assert archive.stored["1.2.3"].sop_class_uid == CT_IMAGE


@pytest.mark.parametrize("cut", [packed, packed_in_many])
async def test_segments_of_one_byte(cut: Callable[[wire.Elements], bytes]) -> None:
    archive = Archive()
    async with serving(archive) as server:
        with await Wire.connect(server.port) as peer:
            for byte in wire.associate_rq((1, CT_IMAGE, [wire.EXPLICIT])):
                await peer.send(bytes((byte,)))
            assert (await peer.pdu())[0] == wire.AC
            await peer.drip(cut(wire.STORE), 0)
            assert (await peer.message()).number("status") == 0
            await peer.drip(wire.RELEASE_RQ_PDU, 0)
            assert (await peer.pdu())[0] == wire.RELEASE_RP
    assert archive.stored["1.2.3"].data == DATA_SET


async def test_empty_data_set() -> None:
    archive = Archive()
    async with serving(archive) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(CT_IMAGE)
            await peer.send(wire.message(1, b"", **wire.STORE))
            assert (await peer.message()).number("status") == 0
            await peer.send(wire.message(1, **{**wire.STORE, "data_set": wire.NO_DATA_SET, "sop_instance": "1.2.4"}))
            assert (await peer.message()).number("status") == 0
    assert [stored.data for stored in archive.stored.values()] == [b"", b""]


async def test_requests_that_do_not_wait_for_responses_are_answered_in_order() -> None:
    archive = Archive()
    async with serving(archive) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(CT_IMAGE)
            for number in range(1, 601):
                fields: wire.Elements = {**wire.STORE, "message_id": number, "sop_instance": f"1.2.{number}"}
                await peer.send(wire.message(1, DATA_SET, **fields))
            answers = [(await peer.message()).number("responding_to") for _ in range(600)]
    assert answers == list(range(1, 601))
    assert {stored.data for stored in archive.stored.values()} == {DATA_SET}


async def test_several_responses_in_one_pdu() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        find = await peer.message()
        fields: wire.Elements = {"field": wire.C_FIND | wire.RSP, "responding_to": find.number("message_id")}
        pending = wire.command(**fields, status=0xFF00, data_set=0)
        both = [wire.pdv(1, 3, pending), wire.pdv(1, 2, b"one"), wire.pdv(1, 3, pending), wire.pdv(1, 2, b"two")]
        await peer.send(wire.p_data(*both, wire.pdv(1, 3, wire.command(**fields, status=0))))
        await peer.answer_release()

    async with scripted_scp(script) as scp, dul.connect(scp, [dul.Context(STUDY_ROOT_FIND)]) as association:
        assert [match.data async for match in association.find(b"any")] == [b"one", b"two"]


# --- what we send --------------------------------------------------------------------------------------------


async def odd_chunks() -> AsyncIterator[bytes]:
    """Give the data set in chunks of odd sizes, with an empty one."""
    yield b""
    for piece in pieces(DATA_SET[:-1], 333):
        yield piece
    yield DATA_SET[-1:]


@pytest.mark.parametrize("maximum_length", [64, 1000, 16384, 0])
@pytest.mark.parametrize("data", [DATA_SET, odd_chunks], ids=["bytes", "stream"])
async def test_no_pdu_exceeds_what_the_peer_takes_and_fragments_are_even(
    data: bytes | Callable[[], AsyncIterator[bytes]], maximum_length: int
) -> None:
    lengths: list[int] = []

    async def script(peer: Wire) -> None:
        await peer.accept(maximum_length=maximum_length)
        elements, parts = b"", []
        flags = 0
        while flags != wire.LAST:
            _, flags, fragment = await peer.fragment()
            lengths.append(len(fragment) + 6)
            if flags & wire.COMMAND:
                elements += fragment
            else:
                parts.append(fragment)
        assert b"".join(parts) == DATA_SET
        fields = wire.parse_command(elements)
        await peer.send(wire.response(wire.Message(1, fields, None), 0))
        await peer.answer_release()

    contexts = [dul.Context(CT_IMAGE)]
    async with scripted_scp(script) as scp, dul.connect(scp, contexts) as association:
        assert await association.store(dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, data)) == 0
    assert max(lengths) <= (maximum_length or 2**32)
    assert all(length % 2 == 0 for length in lengths)


async def test_message_ids_are_not_used_twice_by_parallel_associations() -> None:
    seen: list[int] = []

    async def script(peer: Wire) -> None:
        await peer.accept()
        for _ in range(5):
            request = await peer.message()
            seen.append(request.number("message_id"))
            await peer.send(wire.response(request, 0))
        await peer.answer_release()

    contexts = [dul.Context(VERIFICATION)]
    async with scripted_scp(script) as scp, dul.connect(scp, contexts) as one, dul.connect(scp, contexts) as other:
        for _ in range(5):
            await one.echo()
            await other.echo()
    assert len(set(seen)) == 10


async def test_peer_that_sends_longer_pdus_than_agreed_is_served() -> None:
    archive = Archive()
    async with serving(archive) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(CT_IMAGE)
            large = bytes(2_000_000)
            await peer.send(wire.message(1, large, **wire.STORE))
            assert (await peer.message()).number("status") == 0
    assert archive.stored["1.2.3"].data == large


async def test_our_own_sides_understand_each_other() -> None:
    archive = Archive()
    contexts = [dul.Context(CT_IMAGE), dul.Context(VERIFICATION)]
    async with serving(archive) as server, dul.connect(peer_of(server), contexts) as association:
        await association.echo()
        for data in (DATA_SET, odd_chunks, b""):
            assert await association.store(dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, data)) == 0
            assert archive.stored["1.2.3"].data == (b"" if data == b"" else DATA_SET)


async def test_maximum_length_that_we_announce() -> None:
    with_lengths: list[int] = []

    async def script(peer: Wire) -> None:
        _, body = await peer.pdu()
        start = body.index(bytes((0x51, 0, 0, 4)))
        with_lengths.append(struct.unpack_from(">L", body, start + 4)[0])
        await peer.send(wire.associate_ac((1, 0, wire.IMPLICIT)))
        await peer.answer_release()

    async with scripted_scp(script) as scp, dul.connect(scp, [dul.Context(VERIFICATION)]):
        pass
    assert with_lengths == [256 * 1024]
