"""The sans-IO core of one association: bytes and local requests in, events and bytes out.

No sockets, no clocks, no asyncio. Whoever drives it hands in what arrived (`receive_data`), what happened to the
transport (`connected`, `disconnected`, `artim_expired`) and what its user wants (`associate`, `send`,
`send_p_data`); after each call it writes `data_to_send()` and looks at `artim_running` and `must_close`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dul import pdu
from dul.errors import (
    ABORT_REASON_NOT_SPECIFIED,
    ABORT_SOURCE_PROVIDER,
    ABORT_SOURCE_USER,
    ABORT_UNEXPECTED_PDU,
    REASON_PROTOCOL_VERSION_NOT_SUPPORTED,
    REJECTED_PERMANENT,
    SOURCE_PROVIDER_ACSE,
    LocalProtocolError,
    RemoteProtocolError,
)
from dul.framing import Fragment, Framer, Invalid, WholePDU
from dul.statemachine import Effect, Event, State, step


@dataclass(frozen=True, slots=True)
class AssociateIndication:
    """A peer asks for an association; answer with `send(AAssociateAC)` or `send(AAssociateRJ)`."""

    request: pdu.AAssociateRQ


@dataclass(frozen=True, slots=True)
class AssociateConfirmation:
    """The peer's answer to our request."""

    answer: pdu.AAssociateAC | pdu.AAssociateRJ


@dataclass(frozen=True, slots=True)
class ReleaseIndication:
    """The peer asks to release; answer with `send(AReleaseRP())` once the state allows it (`may_answer_release`)."""


@dataclass(frozen=True, slots=True)
class ReleaseConfirmation:
    """The peer agreed to our release."""


@dataclass(frozen=True, slots=True)
class AbortIndication:
    """The peer sent A-ABORT."""

    source: int
    reason: int


@dataclass(frozen=True, slots=True)
class ProviderAbortIndication:
    """A-P-ABORT: the connection broke (`error` is None), or the peer broke the protocol and was sent A-ABORT."""

    error: RemoteProtocolError | None


ConnectionEvent = (
    AssociateIndication
    | AssociateConfirmation
    | Fragment
    | ReleaseIndication
    | ReleaseConfirmation
    | AbortIndication
    | ProviderAbortIndication
)

_PDU_EVENTS: dict[type[pdu.PDU], Event] = {
    pdu.AAssociateRQ: Event.ASSOCIATE_RQ_PDU,
    pdu.AAssociateAC: Event.ASSOCIATE_AC_PDU,
    pdu.AAssociateRJ: Event.ASSOCIATE_RJ_PDU,
    pdu.AReleaseRQ: Event.RELEASE_RQ_PDU,
    pdu.AReleaseRP: Event.RELEASE_RP_PDU,
    pdu.AAbort: Event.ABORT_PDU,
}

_REQUEST_EVENTS: dict[type[pdu.PDU], Event] = {
    pdu.AAssociateAC: Event.ASSOCIATE_ACCEPT_RESPONSE,
    pdu.AAssociateRJ: Event.ASSOCIATE_REJECT_RESPONSE,
    pdu.AReleaseRQ: Event.RELEASE_REQUEST,
    pdu.AReleaseRP: Event.RELEASE_RESPONSE,
    pdu.AAbort: Event.ABORT_REQUEST,
}


class Connection:
    """One association over one transport connection, requestor or acceptor."""

    def __init__(self, *, requestor: bool) -> None:
        self._requestor = requestor
        self._state = State.Sta1
        self._framer = Framer()
        self._outgoing: list[bytes] = []
        self._request = b""  # the A-ASSOCIATE-RQ, until the transport is there
        self.artim_running = False
        self.artim_starts = 0
        """Counts each start, so that a restart of a running timer can be seen."""
        self.must_close = False
        self.peer_error: RemoteProtocolError | None = None
        """The peer's first breach of the protocol; in Sta2 the table gives no indication of it."""

    @property
    def state(self) -> State:
        """The state of PS3.8 Table 9-10."""
        return self._state

    @property
    def mid_control_pdu(self) -> bool:
        """True while a header, or a PDU other than P-DATA-TF, has begun to arrive and is not whole."""
        return self._framer.mid_control_pdu

    @property
    def may_answer_release(self) -> bool:
        """True in the states in which an A-RELEASE response is due from this side."""
        return self._state in (State.Sta8, State.Sta9, State.Sta12)

    def data_to_send(self) -> bytes:
        """The bytes that are to be written now, once."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    # --- the transport's side --------------------------------------------------------------------------------

    def connected(self) -> None:
        """The transport connection is open (Evt2 for the requestor, Evt5 for the acceptor)."""
        self._do(Event.TRANSPORT_CONFIRMATION if self._requestor else Event.TRANSPORT_INDICATION)

    def disconnected(self) -> list[ConnectionEvent]:
        """The transport connection is closed (Evt17)."""
        if self._state is State.Sta1:
            return []
        return self._do(Event.TRANSPORT_CLOSED)

    def artim_expired(self) -> list[ConnectionEvent]:
        """The ARTIM timer ran out (Evt18); nothing if it was stopped meanwhile."""
        return self._do(Event.ARTIM_EXPIRED) if self.artim_running else []

    def receive_data(self, data: memoryview) -> list[ConnectionEvent]:
        """What `data` means. Fragments in it are views of `data`; copy before it is overwritten. Never raises."""
        events: list[ConnectionEvent] = []
        for frame in self._framer.feed(data):
            if type(frame) is Fragment:
                if self._state is State.Sta6:  # DT-2, the hot path: nothing changes
                    events.append(frame)
                else:
                    events += self._pdu_received(Event.P_DATA_TF_PDU, frame)
            elif type(frame) is WholePDU:
                events += self._whole_pdu_received(frame)
            elif type(frame) is Invalid:
                events += self._pdu_received(Event.INVALID_PDU, frame.error)
        return events

    def _whole_pdu_received(self, frame: WholePDU) -> list[ConnectionEvent]:
        try:
            decoded = pdu.decode(frame.pdu_type, frame.body)
        except RemoteProtocolError as error:
            return self._pdu_received(Event.INVALID_PDU, error)
        return self._pdu_received(_PDU_EVENTS[type(decoded)], decoded)

    def _pdu_received(self, event: Event, content: pdu.PDU | Fragment | RemoteProtocolError) -> list[ConnectionEvent]:
        if self.peer_error is None:
            self.peer_error = self._breach(event, content)
        if self._state in (State.Sta1, State.Sta4):
            return []  # the transport is closing; what is still in its buffers concerns nobody
        return self._do(event, content)

    def _breach(self, event: Event, content: pdu.PDU | Fragment | RemoteProtocolError) -> RemoteProtocolError | None:
        if isinstance(content, RemoteProtocolError):
            return content
        if self._state is State.Sta2 and event not in (Event.ASSOCIATE_RQ_PDU, Event.ABORT_PDU):
            return _unexpected(event)
        return None

    # --- the user's side -------------------------------------------------------------------------------------

    def associate(self, request: pdu.AAssociateRQ) -> None:
        """Ask for an association (Evt1); the PDU goes out once `connected()` was called."""
        self._request = pdu.encode(request)
        self._do(Event.ASSOCIATE_REQUEST)

    def send(self, request: pdu.PDU) -> None:
        """Accept, reject, release, answer a release, or abort; `LocalProtocolError` if the state forbids it."""
        event = _REQUEST_EVENTS.get(type(request))
        if event is None:
            raise LocalProtocolError("an A-ASSOCIATE-RQ is sent by associate()")
        self._do(event, request)

    def abort_for(self, error: RemoteProtocolError) -> list[ConnectionEvent]:
        """The layer above found the peer's data invalid: the same as an invalid PDU (Evt19)."""
        return self._pdu_received(Event.INVALID_PDU, error)

    def send_p_data(
        self, context_id: int, data: bytes | memoryview, *, command: bool, last: bool, maximum_length: int
    ) -> list[bytes | memoryview]:
        """Buffers with the P-DATA-TF PDUs for `data` (Evt9); see `pdu.encode_p_data`."""
        self._do(Event.P_DATA_REQUEST)
        return pdu.encode_p_data(context_id, data, command=command, last=last, maximum_length=maximum_length)

    # --- carrying out the table ------------------------------------------------------------------------------

    def _do(
        self, event: Event, content: pdu.PDU | Fragment | RemoteProtocolError | None = None
    ) -> list[ConnectionEvent]:
        acceptable = not isinstance(content, pdu.AAssociateRQ) or bool(content.protocol_version & 1)
        next_state, effects = step(self._state, event, requestor=self._requestor, acceptable=acceptable)
        events: list[ConnectionEvent] = []
        for effect in effects:
            if effect in _SENDS:
                self._send(effect, event, content)
            elif effect in _INDICATIONS:
                events.append(_indication(effect, event, content))
            else:
                self._control(effect)
        self._state = next_state  # not before: a PDU that cannot be encoded changes nothing
        return events

    def _control(self, effect: Effect) -> None:
        if effect is Effect.START_ARTIM:
            self.artim_running = True
            self.artim_starts += 1
        elif effect is Effect.STOP_ARTIM:
            self.artim_running = False
        elif effect is Effect.CLOSE:
            self.must_close = True
            self.artim_running = False

    def _send(self, effect: Effect, event: Event, content: pdu.PDU | Fragment | RemoteProtocolError | None) -> None:
        if effect is Effect.SEND_P_DATA:
            return  # the caller of send_p_data writes the buffers, uncopied
        if effect is Effect.SEND_ASSOCIATE_RQ:
            self._outgoing.append(self._request)
            return
        if effect is Effect.SEND_ABORT_AS_PROVIDER:
            outgoing: pdu.PDU = pdu.AAbort(ABORT_SOURCE_PROVIDER, _abort_reason(content))
        elif effect is Effect.SEND_ABORT_AS_USER and event is not Event.ABORT_REQUEST:
            outgoing = pdu.AAbort(ABORT_SOURCE_USER, ABORT_REASON_NOT_SPECIFIED)
        elif effect is Effect.SEND_ASSOCIATE_RJ and event is Event.ASSOCIATE_RQ_PDU:
            outgoing = pdu.AAssociateRJ(REJECTED_PERMANENT, SOURCE_PROVIDER_ACSE, REASON_PROTOCOL_VERSION_NOT_SUPPORTED)
        else:
            assert content is not None
            assert not isinstance(content, Fragment | RemoteProtocolError)
            outgoing = content
        self._outgoing.append(pdu.encode(outgoing))


_SENDS = frozenset(effect for effect in Effect if effect.name.startswith("SEND_"))
_INDICATIONS = frozenset(effect for effect in Effect if effect.name.endswith(("_INDICATION", "_CONFIRMATION")))


def _abort_reason(content: pdu.PDU | Fragment | RemoteProtocolError | None) -> int:
    if isinstance(content, RemoteProtocolError):
        return content.abort_reason
    return ABORT_UNEXPECTED_PDU


def _indication(
    effect: Effect, event: Event, content: pdu.PDU | Fragment | RemoteProtocolError | None
) -> ConnectionEvent:
    match effect, content:
        case Effect.P_DATA_INDICATION, Fragment():
            indication: ConnectionEvent = content
        case Effect.ASSOCIATE_INDICATION, pdu.AAssociateRQ():
            indication = AssociateIndication(content)
        case Effect.ASSOCIATE_CONFIRMATION, pdu.AAssociateAC() | pdu.AAssociateRJ():
            indication = AssociateConfirmation(content)
        case Effect.RELEASE_INDICATION, _:
            indication = ReleaseIndication()
        case Effect.RELEASE_CONFIRMATION, _:
            indication = ReleaseConfirmation()
        case Effect.ABORT_INDICATION, pdu.AAbort():
            indication = AbortIndication(content.source, content.reason)
        case _, RemoteProtocolError():
            indication = ProviderAbortIndication(content)
        case _ if event is Event.TRANSPORT_CLOSED:
            indication = ProviderAbortIndication(None)
        case _:
            indication = ProviderAbortIndication(_unexpected(event))
    return indication


def _unexpected(event: Event) -> RemoteProtocolError:
    return RemoteProtocolError(f"an unexpected PDU (Evt{event.value})", ABORT_UNEXPECTED_PDU)
