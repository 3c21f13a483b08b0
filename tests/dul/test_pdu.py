"""`dul.pdu`: every PDU both ways, against pynetdicom, against bytes written by hand, and damaged."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import pdu as pynetdicom_pdu
from pynetdicom import pdu_primitives as witness

from dul import items, pdu
from dul.errors import (
    AssociationAborted,
    AssociationRejected,
    LocalProtocolError,
    RemoteProtocolError,
    describe_abort,
    describe_rejection,
)
from dul.framing import Fragment
from dul.items import PresentationContextAC, PresentationContextRQ, UserInformation
from dul.pdu import AAbort, AAssociateAC, AAssociateRJ, AAssociateRQ, AReleaseRP, AReleaseRQ
from tests.dul.strategies import (
    ACCEPT,
    REAL_PDUS,
    REQUEST,
    TABLE_9_26,
    associate_accepts,
    associate_requests,
    canonical,
    context_ids,
    decode_all,
    examples,
    mutate,
    pdus,
    witness_associate,
)


def by_hand(text: str) -> bytes:
    """Bytes from lines of hexadecimal digits; what follows `--` names the field."""
    return bytes.fromhex("".join(line.partition("--")[0] for line in text.splitlines()))


REQUEST_BY_HAND = by_hand(
    """
    01 00 00000095                     -- PS3.8 Table 9-11: type, reserved, length
    0001 0000                          -- protocol version, reserved
    4152434849564520 2020202020202020  -- called AE title, "ARCHIVE "
    50524f5859202020 2020202020202020  -- calling AE title, "PROXY"
    0000000000000000 0000000000000000  -- reserved
    0000000000000000 0000000000000000
    10 00 0015                         -- Table 9-12: application context, PS3.7 A.2.1
    312e322e3834302e31303030382e332e312e312e31
    20 00 0020                         -- Table 9-13: presentation context
    01 00 00 00
    30 00 0011 312e322e3834302e31303030382e312e31 -- Table 9-14: abstract syntax, Verification
    40 00 0003 312e32                  -- Table 9-15: transfer syntax
    50 00 0010                         -- Table 9-16: user information
    51 00 0004 00004000                -- Table D.1-1: maximum length
    52 00 0004 312e322e                -- PS3.7 Table D.3-1: implementation class UID
    """
)
REQUEST_IN_WORDS = AAssociateRQ(
    "ARCHIVE",
    "PROXY",
    (PresentationContextRQ(1, "1.2.840.10008.1.1", ("1.2",)),),
    UserInformation(16384, "1.2."),
)
ACCEPT_BY_HAND = by_hand(
    """
    02 00 00000080                     -- PS3.8 Table 9-17
    0001 0000
    4152434849564520 2020202020202020
    50524f5859202020 2020202020202020
    0000000000000000 0000000000000000
    0000000000000000 0000000000000000
    10 00 0015
    312e322e3834302e31303030382e332e312e312e31
    21 00 000b                         -- Table 9-18: presentation context
    01 00 03 00                        -- ID, reserved, result: abstract syntax not supported
    40 00 0003 312e32                  -- Table 9-19
    50 00 0010
    51 00 0004 00000000
    52 00 0004 312e322e
    """
)
ACCEPT_IN_WORDS = AAssociateAC("ARCHIVE", "PROXY", (PresentationContextAC(1, 3, "1.2"),), UserInformation(0, "1.2."))
BY_HAND: dict[str, tuple[pdu.PDU, bytes]] = {
    "A-ASSOCIATE-RQ": (REQUEST_IN_WORDS, REQUEST_BY_HAND),
    "A-ASSOCIATE-AC": (ACCEPT_IN_WORDS, ACCEPT_BY_HAND),
    "A-ASSOCIATE-RJ": (AAssociateRJ(2, 3, 2), by_hand("03 00 00000004 00 02 03 02")),  # Table 9-21
    "A-RELEASE-RQ": (AReleaseRQ(), by_hand("05 00 00000004 00000000")),  # Table 9-24
    "A-RELEASE-RP": (AReleaseRP(), by_hand("06 00 00000004 00000000")),  # Table 9-25
    "A-ABORT": (AAbort(2, 6), by_hand("07 00 00000004 00 00 02 06")),  # Table 9-26
}


# --- both ways -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_HAND)
def test_pdu_is_as_the_standard_lays_it_out(name: str) -> None:
    in_words, bytes_by_hand = BY_HAND[name]
    assert pdu.encode(in_words) == bytes_by_hand
    assert decode_all(bytes_by_hand) == [in_words]


@examples(400)
@given(pdus)
def test_pdu_survives(whole: pdu.PDU) -> None:
    """Encode, decode, encode, decode: always the same."""
    encoded = pdu.encode(whole)
    assert decode_all(encoded) == [whole]
    assert pdu.encode(decode_all(encoded)[0]) == encoded  # type: ignore[arg-type]


# --- pynetdicom as a witness ---------------------------------------------------------------------------------


def pynetdicom_reads(kind: Any, encoded: bytes) -> Any:
    read = kind()
    read.decode(encoded)
    return read


@examples(200)
@given(associate_requests)
def test_pynetdicom_writes_and_reads_the_same_request(request: AAssociateRQ) -> None:
    theirs = pynetdicom_pdu.A_ASSOCIATE_RQ(witness_associate(request))
    assert theirs.encode() == pdu.encode(request)
    assert decode_all(theirs.encode()) == [request]
    assert pynetdicom_reads(pynetdicom_pdu.A_ASSOCIATE_RQ, pdu.encode(request)) == theirs


@examples(200)
@given(associate_accepts)
def test_pynetdicom_writes_and_reads_the_same_acceptance(accept: AAssociateAC) -> None:
    theirs = pynetdicom_pdu.A_ASSOCIATE_AC(witness_associate(accept))
    assert theirs.encode() == pdu.encode(accept)
    assert decode_all(theirs.encode()) == [accept]
    assert pynetdicom_reads(pynetdicom_pdu.A_ASSOCIATE_AC, pdu.encode(accept)) == theirs


# PS3.8 Table 9-21, and who may give which reason.
REJECTIONS = [
    (result, source, reason)
    for result in (1, 2)
    for source, reasons in ((1, (1, 2, 3, 7)), (2, (1, 2)), (3, (1, 2)))
    for reason in reasons
]


@pytest.mark.parametrize(("result", "source", "reason"), REJECTIONS)
def test_pynetdicom_writes_and_reads_the_same_rejection(result: int, source: int, reason: int) -> None:
    primitive = witness.A_ASSOCIATE()
    primitive.result, primitive.result_source, primitive.diagnostic = result, source, reason
    theirs = pynetdicom_pdu.A_ASSOCIATE_RJ(primitive)
    ours = AAssociateRJ(result, source, reason)
    assert theirs.encode() == pdu.encode(ours)
    assert decode_all(theirs.encode()) == [ours]
    assert pynetdicom_reads(pynetdicom_pdu.A_ASSOCIATE_RJ, pdu.encode(ours)) == theirs
    assert AssociationRejected(result, source, reason).transient == (result == 2)


def test_pynetdicom_writes_and_reads_the_same_releases() -> None:
    for ours, theirs in (
        (AReleaseRQ(), pynetdicom_pdu.A_RELEASE_RQ()),
        (AReleaseRP(), pynetdicom_pdu.A_RELEASE_RP()),
    ):
        assert theirs.encode() == pdu.encode(ours)
        assert pynetdicom_reads(type(theirs), pdu.encode(ours)) == theirs


@pytest.mark.parametrize(("source", "reason"), [(0, 0), *((2, reason) for reason in sorted(TABLE_9_26))])
def test_pynetdicom_writes_and_reads_the_same_abort(source: int, reason: int) -> None:
    primitive: Any = witness.A_ABORT() if source == 0 else witness.A_P_ABORT()
    if source == 0:
        primitive.abort_source = source
    else:
        primitive.provider_reason = reason
    theirs = pynetdicom_pdu.A_ABORT_RQ(primitive)
    ours = AAbort(source, reason)
    assert theirs.encode() == pdu.encode(ours)
    assert decode_all(theirs.encode()) == [ours]
    assert pynetdicom_reads(pynetdicom_pdu.A_ABORT_RQ, pdu.encode(ours)) == theirs


# --- P-DATA-TF -----------------------------------------------------------------------------------------------


def test_p_data_is_as_the_standard_lays_it_out() -> None:
    """PS3.8 Tables 9-22 and 9-23, and the message control header of E.2."""
    expected = by_hand("04 00 00000008 00000004 05 01 6162" + "04 00 00000008 00000004 05 03 6364")
    assert b"".join(pdu.encode_p_data(5, b"abcd", command=True, last=True, maximum_length=8)) == expected
    expected = by_hand("04 00 00000006 00000002 05 02")
    assert b"".join(pdu.encode_p_data(5, b"", command=False, last=True, maximum_length=8)) == expected


@examples(400)
@given(context_ids, st.binary(max_size=300), st.booleans(), st.booleans(), st.integers(8, 80))
def test_p_data_comes_whole_in_pieces_that_fit(
    context_id: int, data: bytes, command: bool, last: bool, maximum_length: int
) -> None:
    """No PDU is longer than announced (PS3.8 D.1); fragments are even (E.1); only the final one may be the last."""
    encoded = b"".join(pdu.encode_p_data(context_id, data, command=command, last=last, maximum_length=maximum_length))
    fragments = decode_all(encoded)
    assert all(isinstance(fragment, Fragment) for fragment in fragments)
    pieces = [bytes(fragment.data) for fragment in fragments if isinstance(fragment, Fragment)]
    assert b"".join(pieces) == data
    assert all(len(piece) % 2 == 0 for piece in pieces[:-1])
    assert all(len(piece) + 6 <= maximum_length for piece in pieces)
    marks = [(f.context_id, f.command, f.last) for f in fragments if isinstance(f, Fragment)]
    assert marks == [(context_id, command, False)] * (len(marks) - 1) + [(context_id, command, last)]

    theirs: list[tuple[int, bytes]] = []
    while encoded:
        length = 6 + int.from_bytes(encoded[2:6], "big")
        read = pynetdicom_reads(pynetdicom_pdu.P_DATA_TF, encoded[:length])
        theirs += read.to_primitive().presentation_data_value_list
        encoded = encoded[length:]
    assert [identifier for identifier, _ in theirs] == [context_id] * len(pieces)
    assert [value[1:] for _, value in theirs] == pieces


@examples(200)
@given(st.lists(st.tuples(context_ids, st.integers(0, 3), st.binary(max_size=40)), min_size=1, max_size=5))
def test_pynetdicoms_p_data_is_read(values: list[tuple[int, int, bytes]]) -> None:
    """Several presentation data values in one PDU."""
    primitive = witness.P_DATA()
    primitive.presentation_data_value_list.extend((i, bytes((control,)) + data) for i, control, data in values)
    read = decode_all(pynetdicom_pdu.P_DATA_TF(primitive).encode())
    expected = [(i, bool(control & 1), bool(control & 2), data) for i, control, data in values]
    assert [(f.context_id, f.command, f.last, bytes(f.data)) for f in read if isinstance(f, Fragment)] == expected


def test_p_data_is_not_copied_to_be_sent() -> None:
    data = bytes(100_000)
    buffers = pdu.encode_p_data(1, data, command=False, last=True, maximum_length=16384)
    views = [buffer for buffer in buffers if isinstance(buffer, memoryview)]
    assert all(view.obj is data for view in views)
    assert sum(map(len, views)) == len(data)


@pytest.mark.parametrize("maximum_length", [0, 5, 6, 7])
def test_maximum_length_without_room_for_data_is_a_local_error(maximum_length: int) -> None:
    with pytest.raises(LocalProtocolError):
        pdu.encode_p_data(1, b"abcd", command=True, last=True, maximum_length=maximum_length)


# --- leniency ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pdu_bytes", [REQUEST_BY_HAND, ACCEPT_BY_HAND], ids=["RQ", "AC"])
def test_reserved_bytes_are_not_tested(pdu_bytes: bytes) -> None:
    """PS3.8 9.3.1."""
    damaged = bytearray(pdu_bytes)
    damaged[1] = 0xFF
    damaged[8:10] = b"\xff\xff"
    damaged[42:74] = b"\xff" * 32
    assert decode_all(bytes(damaged)) == decode_all(pdu_bytes)


def test_reserved_bytes_of_short_pdus_are_not_tested() -> None:
    assert decode_all(by_hand("05 ff 00000004 ffffffff 06 ff 00000004 ffffffff")) == [AReleaseRQ(), AReleaseRP()]
    assert decode_all(by_hand("03 ff 00000004 ff 01 01 07 07 ff 00000004 ff ff 02 01")) == [
        AAssociateRJ(1, 1, 7),
        AAbort(2, 1),
    ]


def test_unknown_items_are_skipped() -> None:
    unknown = items.encode_item(0x60, b"not of this world")
    for encoded, whole in ((REQUEST_BY_HAND, REQUEST_IN_WORDS), (ACCEPT_BY_HAND, ACCEPT_IN_WORDS)):
        body = encoded[6:74] + unknown + encoded[74:] + unknown
        assert decode_all(encoded[:2] + len(body).to_bytes(4, "big") + body) == [whole]


@pytest.mark.parametrize("padded", [b"ARCHIVE\0\0\0\0\0\0\0\0\0", b"  ARCHIVE       ", b"ARCHIVE \0\0\0\0\0\0\0\0"])
def test_ae_titles_are_freed_of_their_padding(padded: bytes) -> None:
    """PS3.8 Table 9-11: leading and trailing spaces are not significant; some archives pad with NUL."""
    (request,) = decode_all(REQUEST_BY_HAND[:10] + padded + REQUEST_BY_HAND[26:])
    assert request == REQUEST_IN_WORDS


def test_titles_in_an_acceptance_are_not_tested() -> None:
    """PS3.8 Table 9-17; there are archives that leave rubbish there. In a request they count."""
    rubbish = b"\xff" * 32
    (accept,) = decode_all(ACCEPT_BY_HAND[:10] + rubbish + ACCEPT_BY_HAND[42:])
    assert isinstance(accept, AAssociateAC)
    assert accept.presentation_contexts == ACCEPT_IN_WORDS.presentation_contexts
    assert pdu.encode(accept)
    with pytest.raises(RemoteProtocolError) as caught:
        decode_all(REQUEST_BY_HAND[:10] + rubbish + REQUEST_BY_HAND[42:])
    assert caught.value.abort_reason == 6


def test_items_may_be_missing() -> None:
    """What is missing is for the acceptor to judge, who can answer with a rejection."""
    body = REQUEST_BY_HAND[6:74]
    (request,) = decode_all(b"\x01\0" + len(body).to_bytes(4, "big") + body)
    assert request == AAssociateRQ("ARCHIVE", "PROXY", (), UserInformation(), application_context="")


# --- malformed -----------------------------------------------------------------------------------------------


def refused(data: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_all(data)
    assert caught.value.abort_reason == 6
    return str(caught.value)


@pytest.mark.parametrize("encoded", [REQUEST_BY_HAND, ACCEPT_BY_HAND], ids=["RQ", "AC"])
def test_association_pdu_cut_short_is_refused_or_lacks_items(encoded: bytes) -> None:
    """Cut at every place, with a header that tells the truth about it."""
    for length in range(len(encoded) - 6):
        cut = encoded[:2] + length.to_bytes(4, "big") + encoded[6 : 6 + length]
        at_an_item = length in (68, 93, 93 + 36 if encoded is REQUEST_BY_HAND else 93 + 15)
        if at_an_item:
            assert decode_all(cut)
        else:
            refused(cut)


def test_numbers_of_contexts_are_bounded() -> None:
    contexts = tuple(PresentationContextRQ(2 * (i % 128) + 1, "1.2", ("1.2",)) for i in range(129))
    assert decode_all(pdu.encode(replace(REQUEST, presentation_contexts=contexts[:128])))
    assert "128" in refused(pdu.encode(replace(REQUEST, presentation_contexts=contexts)))
    answers = tuple(PresentationContextAC(context.context_id, 0, "1.2") for context in contexts)
    assert decode_all(pdu.encode(replace(ACCEPT, presentation_contexts=answers[:128])))
    assert "128" in refused(pdu.encode(replace(ACCEPT, presentation_contexts=answers)))


@pytest.mark.parametrize("encoded", [REQUEST_BY_HAND, ACCEPT_BY_HAND], ids=["RQ", "AC"])
def test_second_user_information_is_refused(encoded: bytes) -> None:
    """PS3.8 9.3.2: one user information item. A PDU full of them would take long to decode."""
    body = encoded[6:] + encoded[-20:]
    assert "more than one" in refused(encoded[:2] + len(body).to_bytes(4, "big") + body)


@pytest.mark.parametrize("pdu_type", [pdu.A_ASSOCIATE_RJ, pdu.A_RELEASE_RQ, pdu.A_RELEASE_RP, pdu.A_ABORT])
@pytest.mark.parametrize("length", [0, 3, 5])
def test_short_pdu_of_another_length_is_refused(pdu_type: int, length: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        pdu.decode(pdu_type, bytes(length))
    assert caught.value.abort_reason == 6


def survive_damage(count: int, seed: int) -> tuple[int, int]:
    """Decode `count` damaged PDUs; returns how many were taken, and how many refused."""
    source = random.Random(seed)
    taken = refusals = 0
    for number in range(count):
        damaged = mutate(source, REAL_PDUS[number % len(REAL_PDUS)])
        try:
            decoded = decode_all(damaged)
        except RemoteProtocolError as error:
            refusals += 1
            assert error.abort_reason in TABLE_9_26, damaged.hex()
        except Exception as error:
            raise AssertionError(f"{error!r} from {damaged.hex()}") from error
        else:
            taken += 1
            for whole in decoded:
                if not isinstance(whole, Fragment):
                    assert decode_all(pdu.encode(whole)) == [canonical(whole)], damaged.hex()
    return taken, refusals


def test_damaged_pdus_raise_nothing_but_remote_protocol_errors() -> None:
    """200,000 mutations of real PDUs; those that still decode also survive being encoded again."""
    taken, refusals = survive_damage(200_000, seed=8)
    assert taken > 20_000
    assert refusals > 20_000


@pytest.mark.long
def test_damaged_pdus_for_a_long_time() -> None:
    """The same, 10 million times, with another seed each run."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    survive_damage(10_000_000, seed)


@examples(500)
@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_remote_protocol_errors(data: bytes) -> None:
    for pdu_type in (1, 2):
        head = bytes((pdu_type, 0)) + (len(data) + 68).to_bytes(4, "big") + REQUEST_BY_HAND[6:74]
        try:
            decode_all(head + data)
        except RemoteProtocolError as error:
            assert error.abort_reason in TABLE_9_26


# --- our own mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        replace(REQUEST, called_ae_title="SEVENTEEN_LETTERS"),
        replace(REQUEST, calling_ae_title="ÄRZTE"),
        replace(REQUEST, application_context="1.ü"),
        replace(REQUEST, protocol_version=0x10000),
        replace(REQUEST, presentation_contexts=(PresentationContextRQ(257, "1.2", ("1.2",)),)),
        replace(REQUEST, user_information=UserInformation(maximum_length=2**32)),
        replace(REQUEST, user_information=UserInformation(items=(items.AsynchronousOperationsWindow(-1, 0),))),
        replace(REQUEST, user_information=UserInformation(items=(items.UserIdentityRQ(256, b""),))),
        replace(ACCEPT, presentation_contexts=(PresentationContextAC(1, 256, "1.2"),)),
        AAssociateRJ(1, 256, 1),
        AAbort(-1, 0),
    ],
)
def test_value_that_does_not_fit_is_a_local_error(wrong: pdu.PDU) -> None:
    with pytest.raises(LocalProtocolError):
        pdu.encode(wrong)


# --- words ---------------------------------------------------------------------------------------------------


def test_rejections_and_aborts_are_told_in_the_standards_words() -> None:
    assert describe_rejection(1, 1, 7) == "called AE title not recognized (rejected-permanent)"
    assert describe_rejection(2, 3, 2) == "local limit exceeded (rejected-transient)"
    assert describe_rejection(9, 8, 7) == "source 8, reason 7 (result 9)"
    assert describe_abort(0, 0) == "by the service-user"
    assert describe_abort(2, 2) == "by the service-provider, unexpected PDU"
    assert describe_abort(2, 99) == "by the service-provider, reason 99"
    assert str(AssociationRejected(1, 1, 3)).endswith("calling AE title not recognized (rejected-permanent)")
    assert str(AssociationAborted(2, 1)).endswith("unrecognized PDU")
