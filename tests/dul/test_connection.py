"""`dul.connection`: each state reached as peers reach it, each event in it, and two connections wired together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import fsm

from dul import pdu
from dul.connection import (
    AbortIndication,
    AssociateConfirmation,
    AssociateIndication,
    Connection,
    ConnectionEvent,
    ProviderAbortIndication,
    ReleaseConfirmation,
    ReleaseIndication,
)
from dul.errors import LocalProtocolError, RemoteProtocolError
from dul.framing import Fragment
from dul.pdu import AAbort, AAssociateRJ, AReleaseRP, AReleaseRQ
from dul.statemachine import Event, State
from tests.dul.strategies import (
    ACCEPT,
    ECHO_PDU,
    FIND_PDUS,
    REAL_PDUS,
    REJECT,
    REQUEST,
    SITUATIONS,
    USER_ABORT,
    examples,
    mutate,
    reach,
    receive,
    sent,
)

NOT_A_PDU = b"GET / HTTP/1.1\r\n"
UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_VALUE = 1, 2, 6


# --- each event in each state --------------------------------------------------------------------------------


def _nothing(action: Callable[[], None]) -> list[ConnectionEvent]:
    action()
    return []


RECEIVED: dict[Event, pdu.PDU | bytes] = {
    Event.ASSOCIATE_AC_PDU: ACCEPT,
    Event.ASSOCIATE_RJ_PDU: REJECT,
    Event.ASSOCIATE_RQ_PDU: REQUEST,
    Event.P_DATA_TF_PDU: ECHO_PDU,
    Event.RELEASE_RQ_PDU: AReleaseRQ(),
    Event.RELEASE_RP_PDU: AReleaseRP(),
    Event.ABORT_PDU: AAbort(2, 5),
    Event.INVALID_PDU: NOT_A_PDU,
}
SENT: dict[Event, pdu.PDU] = {
    Event.ASSOCIATE_ACCEPT_RESPONSE: ACCEPT,
    Event.ASSOCIATE_REJECT_RESPONSE: REJECT,
    Event.RELEASE_REQUEST: AReleaseRQ(),
    Event.RELEASE_RESPONSE: AReleaseRP(),
    Event.ABORT_REQUEST: USER_ABORT,
}


def fire(connection: Connection, event: Event) -> list[ConnectionEvent]:
    """Make `event` happen to the connection as its user, its peer or the network would."""
    if event in RECEIVED:
        return receive(connection, RECEIVED[event])
    if event in SENT:
        return _nothing(lambda: connection.send(SENT[event]))
    match event:
        case Event.ASSOCIATE_REQUEST:
            return _nothing(lambda: connection.associate(REQUEST))
        case Event.TRANSPORT_CONFIRMATION | Event.TRANSPORT_INDICATION:
            return _nothing(connection.connected)
        case Event.P_DATA_REQUEST:
            connection.send_p_data(1, b"ab", command=True, last=True, maximum_length=64)
            return []
        case Event.TRANSPORT_CLOSED:
            return connection.disconnected()
        case _:
            assert event is Event.ARTIM_EXPIRED
            return connection.artim_expired()


NOTHING: list[pdu.PDU] = []

# What can be seen of each action: the PDU that goes out, and the indication that comes up.
SEEN: dict[str, tuple[list[pdu.PDU], ConnectionEvent | type[ConnectionEvent] | None]] = {
    "AE-1": (NOTHING, None),
    "AE-2": ([REQUEST], None),
    "AE-3": (NOTHING, AssociateConfirmation(ACCEPT)),
    "AE-4": (NOTHING, AssociateConfirmation(REJECT)),
    "AE-5": (NOTHING, None),
    "AE-6": (NOTHING, AssociateIndication(REQUEST)),
    "AE-7": ([ACCEPT], None),
    "AE-8": ([REJECT], None),
    "DT-1": (NOTHING, None),  # send_p_data hands the buffers back instead
    "DT-2": (NOTHING, Fragment),
    "AR-1": ([AReleaseRQ()], None),
    "AR-2": (NOTHING, ReleaseIndication()),
    "AR-3": (NOTHING, ReleaseConfirmation()),
    "AR-4": ([AReleaseRP()], None),
    "AR-5": (NOTHING, None),
    "AR-6": (NOTHING, Fragment),
    "AR-7": (NOTHING, None),
    "AR-8": (NOTHING, ReleaseIndication()),
    "AR-9": ([AReleaseRP()], None),
    "AR-10": (NOTHING, ReleaseConfirmation()),
    "AA-1": ([USER_ABORT], None),
    "AA-2": (NOTHING, None),
    "AA-3": (NOTHING, AbortIndication(2, 5)),
    "AA-4": (NOTHING, ProviderAbortIndication(None)),
    "AA-5": (NOTHING, None),
    "AA-6": (NOTHING, None),
    "AA-7": ([AAbort(2, UNEXPECTED_PDU)], None),
    "AA-8": ([AAbort(2, UNEXPECTED_PDU)], ProviderAbortIndication),
}
CLOSES = {"AE-4", "AR-3", "AA-2", "AA-3"}

# What the table leaves blank because it cannot happen there, but sockets and timers do it all the same.
IGNORED_WHERE_BLANK = {*RECEIVED, Event.TRANSPORT_CLOSED, Event.ARTIM_EXPIRED}


def snapshot(connection: Connection) -> tuple[object, ...]:
    return connection.state, connection.artim_running, connection.artim_starts, connection.must_close


def next_state(action: str, requestor: bool) -> State:
    after = fsm.ACTIONS[action][2]
    if isinstance(after, str):
        return State[after]
    return State[after[0 if action == "AE-6" or requestor else 1]]


@pytest.mark.parametrize(("state", "requestor"), SITUATIONS)
def test_each_event_does_what_the_tables_say(state: State, requestor: bool) -> None:
    """PS3.8 Tables 9-6 to 9-10, in pynetdicom's transcription, at the edge of the connection."""
    not_ours = Event.TRANSPORT_INDICATION if requestor else Event.TRANSPORT_CONFIRMATION
    for event in Event:
        if event is not_ours:
            continue
        connection = reach(state, requestor)
        before = snapshot(connection)
        action = fsm.TRANSITION_TABLE.get((f"Evt{event.value}", state.name))
        if action is None:
            if event in IGNORED_WHERE_BLANK:
                assert fire(connection, event) == []
            else:
                with pytest.raises(LocalProtocolError):
                    fire(connection, event)
            assert snapshot(connection) == before
            assert connection.data_to_send() == b""
            continue
        events = fire(connection, event)
        context = f"{event!r} in {state.name}: {action}"
        goes_out, comes_up = SEEN[action]
        if event is Event.INVALID_PDU:
            goes_out = [replace(one, reason=UNRECOGNIZED_PDU) if one == AAbort(2, 2) else one for one in goes_out]
        assert connection.state is next_state(action, requestor), context
        assert sent(connection) == goes_out, context
        assert connection.must_close == (action in CLOSES), context
        assert connection.artim_running == (connection.state in (State.Sta2, State.Sta13)), context
        if comes_up is None:
            assert events == [], context
        elif isinstance(comes_up, type):
            assert [type(one) for one in events] == [comes_up], context
        else:
            assert events == [comes_up], context


@pytest.mark.parametrize(("state", "requestor"), SITUATIONS)
def test_unexpected_and_unrecognized_pdus_are_told_apart(state: State, requestor: bool) -> None:
    """The A-ABORT and the indication carry the reason of PS3.8 Table 9-26, where the table has the provider abort."""
    damaged = bytearray(pdu.encode(REQUEST))
    damaged[74:76] = b"\x10\xff"
    damaged[76:78] = b"\xff\xff"
    for data, reason in ((NOT_A_PDU, UNRECOGNIZED_PDU), (bytes(damaged), INVALID_VALUE)):
        connection = reach(state, requestor)
        events = receive(connection, data)
        abort = sent(connection)
        if fsm.TRANSITION_TABLE.get(("Evt19", state.name)) == "AA-8":
            assert abort == [AAbort(2, reason)]
            (indication,) = events
            assert isinstance(indication, ProviderAbortIndication)
            assert indication.error is not None
            assert indication.error.abort_reason == reason
            assert connection.peer_error is indication.error
        elif state is State.Sta2:
            assert abort == [USER_ABORT]
            assert connection.peer_error is not None
            assert connection.peer_error.abort_reason == reason
        elif state is State.Sta13:
            assert abort == [AAbort(2, reason)]
        else:
            assert (abort, events) == ([], [])
        assert not connection.must_close


# --- the acceptor alone --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "accepted"), [(0, False), (1, True), (2, False), (0xFFFE, False), (0xFFFF, True)])
def test_only_bit_0_of_the_protocol_version_is_tested(version: int, accepted: bool) -> None:
    """PS3.8 Table 9-11, and Table 9-21: source 2 (ACSE), reason 2 (protocol version not supported)."""
    connection = reach(State.Sta2, requestor=False)
    events = receive(connection, replace(REQUEST, protocol_version=version))
    if accepted:
        assert connection.state is State.Sta3
        assert len(events) == 1
    else:
        assert events == []
        assert sent(connection) == [AAssociateRJ(1, 2, 2)]
        assert connection.state is State.Sta13
        assert connection.artim_running


@pytest.mark.parametrize("state", [State.Sta2, State.Sta13])
def test_artim_expiry_closes(state: State) -> None:
    connection = reach(state, requestor=False)
    assert connection.artim_running
    assert connection.artim_expired() == []
    assert connection.state is State.Sta1
    assert connection.must_close
    assert not connection.artim_running
    assert connection.disconnected() == []


def test_artim_is_restarted_by_an_abort() -> None:
    """AA-1: "start (or restart if already started) ARTIM timer"."""
    connection = reach(State.Sta2, requestor=False)
    starts = connection.artim_starts
    receive(connection, AReleaseRQ())
    assert connection.state is State.Sta13
    assert connection.artim_starts == starts + 1


def test_empty_p_data_is_p_data_all_the_same() -> None:
    connection = reach(State.Sta5, requestor=True)
    receive(connection, b"\4\0\0\0\0\6\0\0\0\2\1\0")
    assert sent(connection) == [AAbort(2, UNEXPECTED_PDU)]


def test_first_error_of_the_peer_is_kept() -> None:
    connection = reach(State.Sta6, requestor=False)
    first, second = RemoteProtocolError("first", 5), RemoteProtocolError("second", 6)
    assert connection.abort_for(first) == [ProviderAbortIndication(first)]
    assert sent(connection) == [AAbort(2, 5)]
    assert connection.abort_for(second) == []
    assert connection.peer_error is first


def test_data_after_an_abort_are_ignored() -> None:
    connection = reach(State.Sta6, requestor=False)
    connection.send(USER_ABORT)
    connection.data_to_send()
    assert receive(connection, ECHO_PDU, FIND_PDUS, AReleaseRQ(), AReleaseRP(), ACCEPT, REJECT) == []
    assert connection.data_to_send() == b""
    assert connection.state is State.Sta13
    assert receive(connection, USER_ABORT, ECHO_PDU) == []
    assert connection.must_close


def test_data_in_the_same_read_as_an_abort_are_handed_on_before_it_and_not_after() -> None:
    connection = reach(State.Sta6, requestor=False)
    events = receive(connection, ECHO_PDU, AAbort(0, 0), ECHO_PDU)
    assert [type(event) for event in events] == [Fragment, AbortIndication]


# --- our own mistakes ----------------------------------------------------------------------------------------


def test_request_that_cannot_be_encoded_changes_nothing() -> None:
    connection = reach(State.Sta1, requestor=True)
    with pytest.raises(LocalProtocolError):
        connection.associate(replace(REQUEST, called_ae_title="MORE_THAN_SIXTEEN"))
    assert connection.state is State.Sta1


def test_answer_that_cannot_be_encoded_changes_nothing() -> None:
    connection = reach(State.Sta3, requestor=False)
    with pytest.raises(LocalProtocolError):
        connection.send(replace(ACCEPT, called_ae_title="MORE_THAN_SIXTEEN"))
    assert connection.state is State.Sta3
    connection.send(REJECT)
    assert sent(connection) == [REJECT]


def test_association_request_is_not_sent_as_an_answer() -> None:
    with pytest.raises(LocalProtocolError, match="associate"):
        reach(State.Sta3, requestor=False).send(REQUEST)


# --- two of them, wired together -----------------------------------------------------------------------------


@dataclass
class Pair:
    """A requestor and an acceptor, and all that each was told."""

    requestor: Connection = field(default_factory=lambda: Connection(requestor=True))
    acceptor: Connection = field(default_factory=lambda: Connection(requestor=False))
    to_requestor: list[ConnectionEvent] = field(default_factory=list)
    to_acceptor: list[ConnectionEvent] = field(default_factory=list)

    def connect(self) -> None:
        self.requestor.associate(REQUEST)
        self.requestor.connected()
        self.acceptor.connected()

    def exchange(self) -> None:
        """Carry the bytes over, both ways at once, until there are none."""
        while (there := self.requestor.data_to_send()) + (back := self.acceptor.data_to_send()):
            self.to_acceptor += self.acceptor.receive_data(memoryview(there))
            self.to_requestor += self.requestor.receive_data(memoryview(back))

    def close(self) -> None:
        """Close the transport for both, as soon as one wants it."""
        assert self.requestor.must_close or self.acceptor.must_close
        self.to_requestor += self.requestor.disconnected()
        self.to_acceptor += self.acceptor.disconnected()

    @property
    def states(self) -> tuple[int, int]:
        return self.requestor.state.value, self.acceptor.state.value


def associated() -> Pair:
    pair = Pair()
    pair.connect()
    pair.exchange()
    pair.acceptor.send(ACCEPT)
    pair.exchange()
    assert pair.states == (6, 6)
    pair.to_acceptor.clear()
    pair.to_requestor.clear()
    return pair


def test_pair_associates() -> None:
    pair = Pair()
    assert pair.states == (1, 1)
    pair.connect()
    assert pair.states == (5, 2)
    pair.exchange()
    assert pair.states == (5, 3)
    assert pair.to_acceptor == [AssociateIndication(REQUEST)]
    pair.acceptor.send(ACCEPT)
    pair.exchange()
    assert pair.states == (6, 6)
    assert pair.to_requestor == [AssociateConfirmation(ACCEPT)]


def test_pair_is_rejected() -> None:
    pair = Pair()
    pair.connect()
    pair.exchange()
    pair.acceptor.send(REJECT)
    pair.exchange()
    assert pair.states == (1, 13)
    assert pair.to_requestor == [AssociateConfirmation(REJECT)]
    assert pair.requestor.must_close
    pair.close()
    assert pair.states == (1, 1)
    assert pair.to_acceptor == [AssociateIndication(REQUEST)]
    assert not pair.acceptor.artim_running


@examples(100)
@given(st.binary(max_size=2000), st.booleans(), st.integers(64, 300), st.data())
def test_pair_transfers_data_both_ways(message: bytes, from_requestor: bool, maximum: int, data: st.DataObject) -> None:
    pair = associated()
    sender, receiver = (pair.requestor, pair.acceptor) if from_requestor else (pair.acceptor, pair.requestor)
    stream = b"".join(sender.send_p_data(3, message, command=False, last=True, maximum_length=maximum))
    received = bytearray()
    last = False
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        for event in receiver.receive_data(memoryview(stream[:size])):
            assert isinstance(event, Fragment)
            assert not last
            received += event.data
            last = event.last
        stream = stream[size:]
    assert last
    assert received == message
    assert pair.states == (6, 6)


@pytest.mark.parametrize("by_requestor", [True, False])
def test_pair_is_released(by_requestor: bool) -> None:
    """PS3.8 7.2: either side may; data may still come to the one that asked, until the other agrees."""
    pair = associated()
    asks, agrees = (pair.requestor, pair.acceptor) if by_requestor else (pair.acceptor, pair.requestor)
    told, others = (pair.to_requestor, pair.to_acceptor) if by_requestor else (pair.to_acceptor, pair.to_requestor)
    asks.send(AReleaseRQ())
    pair.exchange()
    assert (asks.state, agrees.state) == (State.Sta7, State.Sta8)
    assert others == [ReleaseIndication()]
    assert agrees.may_answer_release
    assert not asks.may_answer_release
    late = agrees.send_p_data(1, b"late", command=False, last=True, maximum_length=64)
    told += asks.receive_data(memoryview(b"".join(late)))
    with pytest.raises(LocalProtocolError):
        asks.send_p_data(1, b"no", command=True, last=True, maximum_length=64)
    agrees.send(AReleaseRP())
    pair.exchange()
    assert (asks.state, agrees.state) == (State.Sta1, State.Sta13)
    assert isinstance(told[0], Fragment)
    assert told[1:] == [ReleaseConfirmation()]
    pair.close()
    assert pair.states == (1, 1)
    assert others == [ReleaseIndication()]


def test_release_collision() -> None:
    """PS3.8 7.2: both ask at once; the requestor answers first. Sta9 and Sta11 here, Sta10 and Sta12 there."""
    pair = associated()
    pair.requestor.send(AReleaseRQ())
    pair.acceptor.send(AReleaseRQ())
    assert pair.states == (7, 7)
    pair.exchange()
    assert pair.states == (9, 10)
    assert pair.to_requestor == pair.to_acceptor == [ReleaseIndication()]
    assert pair.requestor.may_answer_release
    assert not pair.acceptor.may_answer_release
    with pytest.raises(LocalProtocolError):
        pair.acceptor.send(AReleaseRP())
    pair.requestor.send(AReleaseRP())
    pair.exchange()
    assert pair.states == (11, 12)
    assert pair.to_acceptor == [ReleaseIndication(), ReleaseConfirmation()]
    assert pair.acceptor.may_answer_release
    pair.acceptor.send(AReleaseRP())
    pair.exchange()
    assert pair.states == (1, 13)
    assert pair.to_requestor == [ReleaseIndication(), ReleaseConfirmation()]
    pair.close()
    assert pair.states == (1, 1)


@pytest.mark.parametrize("by_requestor", [True, False])
def test_pair_is_aborted(by_requestor: bool) -> None:
    pair = associated()
    aborts, other = (pair.requestor, pair.acceptor) if by_requestor else (pair.acceptor, pair.requestor)
    told = pair.to_acceptor if by_requestor else pair.to_requestor
    aborts.send(USER_ABORT)
    pair.exchange()
    assert (aborts.state, other.state) == (State.Sta13, State.Sta1)
    assert told == [AbortIndication(0, 0)]
    assert other.must_close
    pair.close()
    assert pair.states == (1, 1)


def test_pair_loses_its_transport() -> None:
    pair = associated()
    assert pair.requestor.disconnected() == [ProviderAbortIndication(None)]
    assert pair.acceptor.disconnected() == [ProviderAbortIndication(None)]
    assert pair.states == (1, 1)
    assert pair.requestor.disconnected() == []


# --- whatever a peer sends -----------------------------------------------------------------------------------


@examples(300)
@given(
    st.sampled_from([(parameter.values[0], parameter.values[1]) for parameter in SITUATIONS]),
    st.lists(st.sampled_from(REAL_PDUS), max_size=4),
    st.randoms(use_true_random=False),
)
def test_no_state_raises_whatever_arrives(situation: tuple[State, bool], stream: list[bytes], source: object) -> None:
    """And what it answers is an A-ABORT, or the A-ASSOCIATE-RJ of a request of another version."""
    connection = reach(*situation)
    for whole in stream:
        connection.receive_data(memoryview(mutate(source, whole)))  # type: ignore[arg-type]
        for answer in sent(connection):
            assert isinstance(answer, AAbort | AAssociateRJ)
        timed = connection.state in (State.Sta2, State.Sta13)
        assert connection.artim_running == timed
    connection.disconnected()
    assert connection.state is State.Sta1
    assert not connection.artim_running


@pytest.mark.parametrize("unexpected", [AReleaseRQ(), AReleaseRP(), AAssociateRJ(1, 1, 1)])
def test_what_comes_in_place_of_an_association_request_is_remembered(unexpected: pdu.PDU) -> None:
    """Table 9-10 gives no indication of it in Sta2, and an operator wants to know why a connection was closed."""
    connection = Connection(requestor=False)
    connection.connected()
    assert connection.receive_data(memoryview(pdu.encode(unexpected))) == []
    assert connection.peer_error is not None
    assert "unexpected PDU" in str(connection.peer_error)
