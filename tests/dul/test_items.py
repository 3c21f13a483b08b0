"""`dul.items`: every item both ways, against pynetdicom, against bytes written by hand, and damaged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from pynetdicom import pdu_items

from dul import items, limits
from dul.errors import LocalProtocolError, RemoteProtocolError
from dul.items import (
    AsynchronousOperationsWindow,
    CommonExtendedNegotiation,
    ExtendedNegotiation,
    PresentationContextAC,
    PresentationContextRQ,
    RoleSelection,
    UserIdentityAC,
    UserIdentityRQ,
    UserInformation,
    UserItem,
)
from tests.dul.strategies import (
    accepted_information,
    answered_contexts,
    examples,
    proposed_contexts,
    requested_information,
    witness_user_information,
)

INVALID_PDU_PARAMETER_VALUE = 6

# The bytes of each sub-item as the tables of PS3.7 Annex D.3.3 lay them out, header included.
BY_HAND: list[tuple[str, UserItem, str]] = [
    ("D.3.3.3", AsynchronousOperationsWindow(3, 0x0102), "53 00 0004 0003 0102"),
    ("D.3.3.4", RoleSelection("1.2.3", scu_role=False, scp_role=True), "54 00 0009 0005 312e322e33 00 01"),
    ("D.3.3.4, neither", RoleSelection("1.2", scu_role=False, scp_role=False), "54 00 0007 0003 312e32 00 00"),
    ("D.3.3.5", ExtendedNegotiation("1.2.3", b"\x01\x00"), "56 00 0009 0005 312e322e33 0100"),
    ("D.3.3.5, empty", ExtendedNegotiation("1.2", b""), "56 00 0005 0003 312e32"),
    (
        "D.3.3.6",
        CommonExtendedNegotiation("1.2.3", "1.4", ("1.5", "1.6.7")),
        "57 00 001a 0005 312e322e33 0003 312e34 000c 0003 312e35 0005 312e362e37",
    ),
    ("D.3.3.7.1", UserIdentityRQ(2, b"me", b"pw!", True), "58 00 000b 02 01 0002 6d65 0003 707721"),
    ("D.3.3.7.1, empty", UserIdentityRQ(1, b""), "58 00 0006 01 00 0000 0000"),
    ("D.3.3.7.2", UserIdentityAC(b"ok"), "59 00 0004 0002 6f6b"),
]


def body(encoded: bytes) -> bytes:
    """An item without its header."""
    return encoded[4:]


def decode_user_items(data: bytes) -> tuple[UserItem, ...]:
    return items.decode_user_information(data).items


# --- both ways -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clause", "item", "by_hand"), BY_HAND, ids=[clause for clause, _, _ in BY_HAND])
def test_sub_item_is_as_the_standard_lays_it_out(clause: str, item: UserItem, by_hand: str) -> None:
    expected = bytes.fromhex(by_hand)
    encoded = items.encode_user_information(UserInformation(items=(item,)))
    assert encoded.endswith(expected)
    assert decode_user_items(expected) == (item,)


def test_user_information_is_as_the_standard_lays_it_out() -> None:
    """PS3.8 9.3.2.3 and D.1, PS3.7 D.3.3.2: maximum length, implementation class UID, version name."""
    by_hand = bytes.fromhex("50 00 0019 51 00 0004 00004000 52 00 0003 312e32 55 00 0006 56455253494f".replace(" ", ""))
    information = UserInformation(0x4000, "1.2", "VERSIO")
    assert items.encode_user_information(information) == by_hand
    assert items.decode_user_information(body(by_hand)) == information


def test_presentation_contexts_are_as_the_standard_lays_them_out() -> None:
    """PS3.8 Tables 9-13 to 9-15, and 9-18 and 9-19."""
    proposal = bytes.fromhex("20 00 0016 05 00 00 00 30 00 0003 312e32 40 00 0001 31 40 00 0002 312e".replace(" ", ""))
    ours = PresentationContextRQ(5, "1.2", ("1", "1."))
    assert items.encode_presentation_context_rq(ours) == proposal
    assert items.decode_presentation_context_rq(body(proposal)) == ours
    answer = bytes.fromhex("21 00 000b 05 00 04 00 40 00 0003 312e32".replace(" ", ""))
    assert items.encode_presentation_context_ac(PresentationContextAC(5, 4, "1.2")) == answer
    assert items.decode_presentation_context_ac(body(answer)) == PresentationContextAC(5, 4, "1.2")


@examples(500)
@given(requested_information | accepted_information)
def test_user_information_survives_and_pynetdicom_agrees_both_ways(information: UserInformation) -> None:
    encoded = items.encode_user_information(information)
    assert items.decode_user_information(body(encoded)) == information

    primitives = witness_user_information(information)
    theirs: Any = pdu_items.UserInformationItem()
    theirs.from_primitive(primitives)
    assert theirs.encode() == encoded
    read: Any = pdu_items.UserInformationItem()
    read.decode(encoded)
    assert read == theirs
    assert read.to_primitive() == primitives


@examples(200)
@given(proposed_contexts)
def test_proposed_context_survives(context: PresentationContextRQ) -> None:
    assert items.decode_presentation_context_rq(body(items.encode_presentation_context_rq(context))) == context


@examples(200)
@given(answered_contexts)
def test_answered_context_survives(context: PresentationContextAC) -> None:
    assert items.decode_presentation_context_ac(body(items.encode_presentation_context_ac(context))) == context


# --- leniency ------------------------------------------------------------------------------------------------


def test_unknown_items_are_skipped() -> None:
    """PS3.8 9.3.1: items of an undefined type are ignored, wherever they stand."""
    unknown = items.encode_item(0x5F, b"whatever")
    for _, item, by_hand in BY_HAND:
        assert decode_user_items(unknown + bytes.fromhex(by_hand) + unknown) == (item,)
    context = PresentationContextRQ(1, "1.2", ("1.3",))
    value = body(items.encode_presentation_context_rq(context))
    assert items.decode_presentation_context_rq(value[:4] + unknown + value[4:] + unknown) == context
    answer = PresentationContextAC(1, 0, "1.3")
    value = body(items.encode_presentation_context_ac(answer))
    assert items.decode_presentation_context_ac(value[:4] + unknown + value[4:]) == answer


@pytest.mark.parametrize("padding", [b"\0", b" ", b"\0\0 "])
def test_padded_uids_are_freed_of_their_padding(padding: bytes) -> None:
    assert items.decode_uid(b"1.2.840" + padding) == "1.2.840"


def test_identity_answer_without_a_body_is_an_empty_one() -> None:
    assert decode_user_items(items.encode_item(items.USER_IDENTITY_AC_ITEM, b"")) == (UserIdentityAC(b""),)


def test_common_extended_negotiation_without_related_classes() -> None:
    """Version 0 of the sub-item ends behind the service class UID."""
    value = bytes.fromhex("0003312e32 0003312e33".replace(" ", ""))
    item = items.encode_item(items.COMMON_EXTENDED_NEGOTIATION_ITEM, value)
    assert decode_user_items(item) == (CommonExtendedNegotiation("1.2", "1.3"),)


def test_reserved_bytes_are_not_tested() -> None:
    """PS3.8 9.3.1: reserved fields are not tested when received."""
    context = PresentationContextRQ(7, "1.2", ("1.3",))
    value = bytearray(body(items.encode_presentation_context_rq(context)))
    value[1:4] = b"\xff\xff\xff"
    value[5] = 0xFF
    assert items.decode_presentation_context_rq(bytes(value)) == context


def test_identities_are_not_shown() -> None:
    """Passwords and tokens stay out of logs and tracebacks."""
    assert "secret" not in repr(UserIdentityRQ(2, b"secret user", b"secret word"))


# --- malformed -----------------------------------------------------------------------------------------------


def refused(decode: Any, value: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(value)
    assert caught.value.abort_reason == INVALID_PDU_PARAMETER_VALUE
    return str(caught.value)


@pytest.mark.parametrize(("clause", "item", "by_hand"), BY_HAND, ids=[clause for clause, _, _ in BY_HAND])
def test_sub_item_that_ends_early_is_refused(clause: str, item: UserItem, by_hand: str) -> None:
    """Cut anywhere, with a header that tells the truth, a sub-item is refused unless what is left is a whole one."""
    value = bytes.fromhex(by_hand)[4:]
    whole = {ExtendedNegotiation: (7, 8), CommonExtendedNegotiation: (12,), UserIdentityAC: (0,)}.get(type(item), ())
    for length in range(len(value)):
        cut = items.encode_item(items.ITEM_TYPES[type(item)], value[:length])
        if length in whole:
            assert type(decode_user_items(cut)[0]) is type(item)
        else:
            assert "ends within a field" in refused(items.decode_user_information, cut)


@pytest.mark.parametrize("claim", [1, 0x100, 0xFFFF])
def test_item_longer_than_its_container_is_refused(claim: int) -> None:
    item = bytes((0x51, 0)) + (4 + claim if claim < 0x100 else claim).to_bytes(2, "big") + bytes(4)
    assert "claims" in refused(items.decode_user_information, item)


@pytest.mark.parametrize("stray", [b"\x51", b"\x51\0", b"\x51\0\0"])
def test_stray_bytes_after_the_last_item_are_refused(stray: bytes) -> None:
    item = items.encode_item(items.MAXIMUM_LENGTH_ITEM, bytes(4))
    assert "stray" in refused(items.decode_user_information, item + stray)


@pytest.mark.parametrize("length", [0, 3, 5])
def test_maximum_length_of_other_than_4_bytes_is_refused(length: int) -> None:
    refused(items.decode_user_information, items.encode_item(items.MAXIMUM_LENGTH_ITEM, bytes(length)))


@pytest.mark.parametrize("decode", [items.decode_presentation_context_rq, items.decode_presentation_context_ac])
def test_context_with_a_bad_id_is_refused(decode: Any) -> None:
    """PS3.8 9.3.2.2: IDs are odd."""
    syntaxes = items.encode_item(0x30, b"1.2") + items.encode_item(0x40, b"1.3")
    for context_id in (0, 2, 254):
        assert "not odd" in refused(decode, bytes((context_id, 0, 0, 0)) + syntaxes)
    for short in range(4):
        refused(decode, bytes(short))


def test_context_without_its_syntaxes_is_refused() -> None:
    head, abstract, transfer = b"\1\0\0\0", items.encode_item(0x30, b"1.2"), items.encode_item(0x40, b"1.3")
    for value in (head, head + abstract, head + transfer, head + items.encode_item(0x30, b"\0") + transfer):
        assert "lacks" in refused(items.decode_presentation_context_rq, value)


def test_numbers_of_syntaxes_and_items_are_bounded() -> None:
    transfer = items.encode_item(0x40, b"1.3")
    head = b"\1\0\0\0" + items.encode_item(0x30, b"1.2")
    most = items.decode_presentation_context_rq(head + transfer * limits.MAX_TRANSFER_SYNTAXES)
    assert len(most.transfer_syntaxes) == limits.MAX_TRANSFER_SYNTAXES
    refused(items.decode_presentation_context_rq, head + transfer * (limits.MAX_TRANSFER_SYNTAXES + 1))
    window = items.encode_item(items.ASYNCHRONOUS_OPERATIONS_ITEM, bytes(4))
    assert len(decode_user_items(window * limits.MAX_USER_ITEMS)) == limits.MAX_USER_ITEMS
    refused(items.decode_user_information, window * (limits.MAX_USER_ITEMS + 1))


def test_uid_longer_than_64_characters_is_refused() -> None:
    """PS3.5 9.1. Otherwise an answer that echoes UIDs could outgrow its item."""
    longest = b"1." + b"2" * 62
    assert items.decode_uid(longest + b"\0") == longest.decode()
    refused(items.decode_uid, longest + b"3")


def test_text_outside_ascii_is_refused() -> None:
    refused(items.decode_text, "ärzte".encode())
    refused(items.decode_user_information, items.encode_item(items.IMPLEMENTATION_CLASS_UID_ITEM, b"1.\xff"))


# --- our own mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "item",
    [
        RoleSelection("1.ü", scu_role=True, scp_role=True),
        ExtendedNegotiation("1.2", bytes(0x10000)),
        UserIdentityRQ(1, bytes(0x10000)),
        UserIdentityAC(bytes(0xFFFF)),
        CommonExtendedNegotiation("1.2", "1.3", ("1." + "4" * 60,) * 2000),
    ],
)
def test_item_that_does_not_fit_is_a_local_error(item: UserItem) -> None:
    with pytest.raises(LocalProtocolError):
        items.encode_user_information(UserInformation(items=(item,)))
