"""Material for the tests of the sans-IO core: hypothesis strategies, real PDUs, damage,
connections in each state, and pynetdicom as a witness.

Strategies make only what the standard allows, so that whatever they make must survive a round trip. `mutate` makes
what it does not allow.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pynetdicom import pdu_primitives as witness
from pynetdicom.presentation import PresentationContext

from dul import items, pdu
from dul.connection import Connection, ConnectionEvent
from dul.dimse import Command, CommandField, cancel_request, encode_command
from dul.framing import Fragment, Framer, Invalid, WholePDU
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
from dul.pdu import AAbort, AAssociateAC, AAssociateRJ, AAssociateRQ, AReleaseRP, AReleaseRQ
from dul.statemachine import State

TABLE_9_26 = frozenset((0, 1, 2, 4, 5, 6))
"""The reasons that an A-ABORT of the service-provider may give (PS3.8 Table 9-26; 3 is reserved)."""


def examples(count: int) -> settings:
    """Settings for a test of `count` examples that does not fail because a machine is slow."""
    return settings(max_examples=count, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


# --- values --------------------------------------------------------------------------------------------------

_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "\\")


def _text(most: int) -> st.SearchStrategy[str]:
    return st.text(_PRINTABLE, min_size=1, max_size=most).map(str.strip).filter(bool)


ae_titles = _text(16)
uids = st.one_of(
    st.sampled_from(("1.2.840.10008.1.1", "1.2.840.10008.1.2.4.90", "2.25." + "9" * 39, "1.2." + "3" * 60)),
    st.lists(st.integers(0, 10**9), min_size=1, max_size=5).map(lambda parts: "1.2." + ".".join(map(str, parts))),
)
u8, u16, u32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF)
# Not empty: pynetdicom reads an empty field as one that goes to the end. test_items has the empty ones by hand.
blobs = st.binary(min_size=1, max_size=64)

# --- items ---------------------------------------------------------------------------------------------------

windows = st.builds(AsynchronousOperationsWindow, u16, u16)
# pynetdicom refuses to be told of neither role, which an acceptor may well answer; test_items has that by hand.
roles = st.builds(
    lambda uid, taken: RoleSelection(uid, *taken), uids, st.sampled_from(((True, False), (False, True), (True, True)))
)
extended = st.builds(ExtendedNegotiation, uids, blobs)
common_extended = st.builds(CommonExtendedNegotiation, uids, uids, st.lists(uids, max_size=4).map(tuple))
identities = st.one_of(
    st.builds(UserIdentityRQ, st.sampled_from((1, 3, 4, 5)), blobs, st.just(b""), st.booleans()),
    st.builds(UserIdentityRQ, st.just(2), blobs, blobs, st.booleans()),
)
identity_answers = st.builds(UserIdentityAC, blobs)


def _in_order(user_items: list[UserItem]) -> tuple[UserItem, ...]:
    return tuple(sorted(user_items, key=lambda item: items.ITEM_TYPES[type(item)]))


def user_information(*kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[UserInformation]:
    """User information with items of these kinds, in the order in which they are sent."""
    return st.builds(
        UserInformation,
        u32,
        uids,
        st.one_of(st.just(""), _text(16)),
        st.lists(st.one_of(*kinds), max_size=6).map(_in_order),
    )


requested_information = user_information(windows, roles, extended, common_extended, identities)
accepted_information = user_information(windows, roles, extended, identity_answers)

context_ids = st.integers(0, 127).map(lambda number: 2 * number + 1)
proposed_contexts = st.builds(
    PresentationContextRQ, context_ids, uids, st.lists(uids, min_size=1, max_size=5, unique=True).map(tuple)
)
answered_contexts = st.builds(PresentationContextAC, context_ids, st.integers(0, 4), uids)

# --- PDUs ----------------------------------------------------------------------------------------------------

associate_requests = st.builds(
    AAssociateRQ,
    ae_titles,
    ae_titles,
    st.lists(proposed_contexts, min_size=1, max_size=6, unique_by=lambda c: c.context_id).map(tuple),
    requested_information,
)
associate_accepts = st.builds(
    AAssociateAC,
    ae_titles,
    ae_titles,
    st.lists(answered_contexts, min_size=1, max_size=6, unique_by=lambda c: c.context_id).map(tuple),
    accepted_information,
)
pdus: st.SearchStrategy[pdu.PDU] = st.one_of(
    associate_requests,
    associate_accepts,
    st.builds(AAssociateRJ, u8, u8, u8),
    st.just(AReleaseRQ()),
    st.just(AReleaseRP()),
    st.builds(AAbort, u8, u8),
)

# --- command sets --------------------------------------------------------------------------------------------


def _optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


commands = st.builds(
    Command,
    st.sampled_from(CommandField).map(int),
    message_id=_optional(u16),
    message_id_being_responded_to=_optional(u16),
    affected_sop_class_uid=_optional(uids),
    affected_sop_instance_uid=_optional(uids),
    requested_sop_class_uid=_optional(uids),
    requested_sop_instance_uid=_optional(uids),
    priority=_optional(u16),
    move_destination=_optional(ae_titles),
    data_set_type=u16,
    status=_optional(u16),
    error_comment=_optional(_text(64)),
    move_originator_ae_title=_optional(ae_titles),
    move_originator_message_id=_optional(u16),
    remaining=_optional(u16),
    completed=_optional(u16),
    failed=_optional(u16),
    warning=_optional(u16),
)

# --- real bytes ----------------------------------------------------------------------------------------------

REQUEST = AAssociateRQ(
    "ARCHIVE",
    "PROXY",
    (
        PresentationContextRQ(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",)),
        PresentationContextRQ(3, "1.2.840.10008.5.1.4.1.2.2.3", ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")),
    ),
    UserInformation(
        16384,
        "1.2.826.0.1",
        "VERSION_1",
        (
            AsynchronousOperationsWindow(1, 1),
            RoleSelection("1.2.840.10008.5.1.4.1.1.2", scu_role=False, scp_role=True),
            ExtendedNegotiation("1.2.840.10008.5.1.4.1.2.2.1", b"\x01\x01\x00"),
            CommonExtendedNegotiation("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.4.2", ("1.2.3", "1.2.4")),
            UserIdentityRQ(2, b"user", b"secret", positive_response_requested=True),
        ),
    ),
)
ACCEPT = AAssociateAC(
    "ARCHIVE",
    "PROXY",
    (PresentationContextAC(1, 0, "1.2.840.10008.1.2"), PresentationContextAC(3, 3, "1.2.840.10008.1.2.1")),
    UserInformation(
        32768,
        "1.2.826.0.2",
        "VERSION_2",
        (
            AsynchronousOperationsWindow(1, 1),
            RoleSelection("1.2.840.10008.5.1.4.1.1.2", scu_role=True, scp_role=True),
            ExtendedNegotiation("1.2.840.10008.5.1.4.1.2.2.1", b"\x01\x01\x00"),
            UserIdentityAC(b"token"),
        ),
    ),
)
ECHO = Command(CommandField.C_ECHO_RQ, message_id=7, affected_sop_class_uid="1.2.840.10008.1.1")
FIND = Command(
    CommandField.C_FIND_RQ,
    message_id=8,
    affected_sop_class_uid="1.2.840.10008.5.1.4.1.2.2.1",
    priority=0,
    data_set_type=1,
)


def pdv(context_id: int, data: bytes, *, command: bool, last: bool) -> bytes:
    """One presentation data value item (PS3.8 Table 9-23)."""
    return (len(data) + 2).to_bytes(4, "big") + bytes((context_id, command | last << 1)) + data


def p_data(*values: bytes) -> bytes:
    """One P-DATA-TF PDU (PS3.8 Table 9-22)."""
    body = b"".join(values)
    return b"\x04\x00" + len(body).to_bytes(4, "big") + body


ECHO_PDU = p_data(pdv(1, encode_command(ECHO), command=True, last=True))
FIND_PDUS = p_data(
    pdv(3, encode_command(FIND), command=True, last=True), pdv(3, b"\x08\x00\x52\x00", command=False, last=False)
) + p_data(pdv(3, b"\x06\x00\x00\x00STUDY ", command=False, last=True))

REAL_PDUS: tuple[bytes, ...] = (
    pdu.encode(REQUEST),
    pdu.encode(ACCEPT),
    pdu.encode(AAssociateRJ(1, 1, 7)),
    pdu.encode(AReleaseRQ()),
    pdu.encode(AReleaseRP()),
    pdu.encode(AAbort(2, 6)),
    ECHO_PDU,
    FIND_PDUS,
    p_data(pdv(1, encode_command(cancel_request(8)), command=True, last=True)),
)


def mutate(source: random.Random, data: bytes) -> bytes:
    """`data` with one to three kinds of damage: flipped bits, bytes cut out, bytes put in, or a lie in a length."""
    damaged = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        at = source.randrange(len(damaged) + 1)
        match source.randrange(5):
            case 0 if at < len(damaged):
                damaged[at] ^= 1 << source.randrange(8)
            case 1:
                del damaged[at : at + source.choice((1, 2, 4, 20))]
            case 2:
                damaged[at:at] = source.randbytes(source.choice((1, 2, 4, 20)))
            case 3:
                damaged[at : at + 2] = source.choice((b"\0\0", b"\0\1", b"\x7f\xff", b"\xff\xff", b"\0\x08"))
            case _:
                damaged[2:6] = source.choice((0, 1, 5, 6, len(data), 0x10_0001, 0xFFFF_FFFF)).to_bytes(4, "big")
    return bytes(damaged)


def decode_all(data: bytes) -> list[pdu.PDU | Fragment]:
    """What `data` holds; raises the first error in it."""
    decoded: list[pdu.PDU | Fragment] = []
    for frame in Framer().feed(memoryview(data)):
        if isinstance(frame, Invalid):
            raise frame.error
        decoded.append(pdu.decode(frame.pdu_type, frame.body) if isinstance(frame, WholePDU) else frame)
    return decoded


def canonical(decoded: pdu.PDU) -> pdu.PDU:
    """The same PDU with its user information items in the order in which they would be sent."""
    if not isinstance(decoded, AAssociateRQ | AAssociateAC):
        return decoded
    information = decoded.user_information
    return replace(decoded, user_information=replace(information, items=_in_order(list(information.items))))


# --- connections in each state -------------------------------------------------------------------------------

REJECT = AAssociateRJ(1, 1, 7)
USER_ABORT = AAbort(0, 0)


def receive(connection: Connection, *whole: pdu.PDU | bytes) -> list[ConnectionEvent]:
    data = b"".join(one if isinstance(one, bytes) else pdu.encode(one) for one in whole)
    return connection.receive_data(memoryview(data))


def sent(connection: Connection) -> list[pdu.PDU | Fragment]:
    """What the connection wants to be written, decoded."""
    return decode_all(connection.data_to_send())


def _sta1(requestor: bool) -> Connection:
    return Connection(requestor=requestor)


def _sta2(requestor: bool) -> Connection:
    connection = Connection(requestor=requestor)
    connection.connected()
    return connection


def _sta3(requestor: bool) -> Connection:
    connection = _sta2(requestor)
    receive(connection, REQUEST)
    return connection


def _sta4(requestor: bool) -> Connection:
    connection = Connection(requestor=requestor)
    connection.associate(REQUEST)
    return connection


def _sta5(requestor: bool) -> Connection:
    connection = _sta4(requestor)
    connection.connected()
    return connection


def _sta6(requestor: bool) -> Connection:
    if requestor:
        connection = _sta5(requestor)
        receive(connection, ACCEPT)
    else:
        connection = _sta3(requestor)
        connection.send(ACCEPT)
    return connection


def _sta7(requestor: bool) -> Connection:
    connection = _sta6(requestor)
    connection.send(AReleaseRQ())
    return connection


def _sta8(requestor: bool) -> Connection:
    connection = _sta6(requestor)
    receive(connection, AReleaseRQ())
    return connection


def _collision(requestor: bool) -> Connection:  # Sta9 or Sta10
    connection = _sta7(requestor)
    receive(connection, AReleaseRQ())
    return connection


def _sta11(requestor: bool) -> Connection:
    connection = _collision(requestor)
    connection.send(AReleaseRP())
    return connection


def _sta12(requestor: bool) -> Connection:
    connection = _collision(requestor)
    receive(connection, AReleaseRP())
    return connection


def _sta13(requestor: bool) -> Connection:
    connection = _sta6(requestor)
    connection.send(USER_ABORT)
    return connection


REACH: dict[State, tuple[Callable[[bool], Connection], str]] = {
    State.Sta1: (_sta1, "both"),
    State.Sta2: (_sta2, "acceptor"),
    State.Sta3: (_sta3, "acceptor"),
    State.Sta4: (_sta4, "requestor"),
    State.Sta5: (_sta5, "requestor"),
    State.Sta6: (_sta6, "both"),
    State.Sta7: (_sta7, "both"),
    State.Sta8: (_sta8, "both"),
    State.Sta9: (_collision, "requestor"),
    State.Sta10: (_collision, "acceptor"),
    State.Sta11: (_sta11, "requestor"),
    State.Sta12: (_sta12, "acceptor"),
    State.Sta13: (_sta13, "both"),
}
SITUATIONS = [
    pytest.param(state, role == "requestor", id=f"{state.name}-{role}")
    for state, (_, who) in REACH.items()
    for role in ("requestor", "acceptor")
    if who in ("both", role)
]


def reach(state: State, requestor: bool) -> Connection:
    """A connection in `state`, with nothing left to be written."""
    connection = REACH[state][0](requestor)
    connection.data_to_send()
    assert connection.state is state
    return connection


# --- pynetdicom, as a witness --------------------------------------------------------------------------------


def witness_user_information(information: UserInformation) -> list[Any]:
    """The same user information in pynetdicom's terms, ordered by item type."""
    length = witness.MaximumLengthNotification()
    length.maximum_length_received = information.maximum_length
    implementation = witness.ImplementationClassUIDNotification()
    implementation.implementation_class_uid = information.implementation_class_uid
    numbered = [(0x51, length), (0x52, implementation)]
    numbered += [(items.ITEM_TYPES[type(item)], witness_item(item)) for item in information.items]
    if information.implementation_version_name:
        version = witness.ImplementationVersionNameNotification()
        version.implementation_version_name = information.implementation_version_name
        numbered.append((0x55, version))
    return [item for _, item in sorted(numbered, key=lambda pair: pair[0])]


def witness_item(item: UserItem) -> Any:
    """The same item in pynetdicom's terms."""
    theirs: Any
    match item:
        case AsynchronousOperationsWindow(invoked, performed):
            theirs = witness.AsynchronousOperationsWindowNegotiation()
            theirs.maximum_number_operations_invoked = invoked
            theirs.maximum_number_operations_performed = performed
        case RoleSelection(uid, scu_role, scp_role):
            theirs = witness.SCP_SCU_RoleSelectionNegotiation()
            theirs.sop_class_uid, theirs.scu_role, theirs.scp_role = uid, scu_role, scp_role
        case ExtendedNegotiation(uid, information):
            theirs = witness.SOPClassExtendedNegotiation()
            theirs.sop_class_uid, theirs.service_class_application_information = uid, information
        case CommonExtendedNegotiation(uid, service_class, related):
            theirs = witness.SOPClassCommonExtendedNegotiation()
            theirs.sop_class_uid, theirs.service_class_uid = uid, service_class
            theirs.related_general_sop_class_identification = list(related)
        case UserIdentityRQ():
            theirs = witness.UserIdentityNegotiation()
            theirs.user_identity_type = item.identity_type
            theirs.positive_response_requested = item.positive_response_requested
            theirs.primary_field, theirs.secondary_field = item.primary_field, item.secondary_field
        case UserIdentityAC(response):
            theirs = witness.UserIdentityNegotiation()
            theirs.server_response = response
    return theirs


def witness_associate(ours: AAssociateRQ | AAssociateAC) -> witness.A_ASSOCIATE:
    """The same association request or acceptance as pynetdicom's A-ASSOCIATE primitive."""
    theirs = witness.A_ASSOCIATE()
    theirs.application_context_name = ours.application_context
    theirs.called_ae_title, theirs.calling_ae_title = ours.called_ae_title, ours.calling_ae_title
    theirs.user_information = witness_user_information(ours.user_information)
    if isinstance(ours, AAssociateRQ):
        theirs.presentation_context_definition_list = [_witness_proposal(c) for c in ours.presentation_contexts]
    else:
        theirs.presentation_context_definition_results_list = [_witness_answer(c) for c in ours.presentation_contexts]
    return theirs


def _witness_proposal(ours: PresentationContextRQ) -> PresentationContext:
    theirs = PresentationContext()
    theirs.context_id, theirs.abstract_syntax = ours.context_id, ours.abstract_syntax
    for syntax in ours.transfer_syntaxes:
        theirs.add_transfer_syntax(syntax)
    return theirs


def _witness_answer(ours: PresentationContextAC) -> PresentationContext:
    theirs = PresentationContext()
    theirs.context_id, theirs.result = ours.context_id, ours.result
    theirs.add_transfer_syntax(ours.transfer_syntax)
    return theirs
