"""PS3.8 Table 9-10, the DICOM Upper Layer state machine, as data.

Rule 1: everything that decides a transition is in this file. Rule 2: nothing here does anything: `step` maps
(state, event) to (state, effects), and effects are words for what `connection` and `transport` then do.

The table below is laid out as the standard prints it: a row for each event, a column for each state, the action in
the cell, `-` where the standard leaves the cell blank. The actions are those of Tables 9-6 to 9-9.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final, NamedTuple

from dul.errors import LocalProtocolError


class State(IntEnum):
    """PS3.8 Tables 9-1 to 9-5."""

    Sta1 = 1
    """Idle"""
    Sta2 = 2
    """Transport connection open, awaiting A-ASSOCIATE-RQ PDU"""
    Sta3 = 3
    """Awaiting local A-ASSOCIATE response primitive"""
    Sta4 = 4
    """Awaiting transport connection opening to complete"""
    Sta5 = 5
    """Awaiting A-ASSOCIATE-AC or A-ASSOCIATE-RJ PDU"""
    Sta6 = 6
    """Association established and ready for data transfer"""
    Sta7 = 7
    """Awaiting A-RELEASE-RP PDU"""
    Sta8 = 8
    """Awaiting local A-RELEASE response primitive"""
    Sta9 = 9
    """Release collision, requestor: awaiting A-RELEASE response primitive"""
    Sta10 = 10
    """Release collision, acceptor: awaiting A-RELEASE-RP PDU"""
    Sta11 = 11
    """Release collision, requestor: awaiting A-RELEASE-RP PDU"""
    Sta12 = 12
    """Release collision, acceptor: awaiting A-RELEASE response primitive"""
    Sta13 = 13
    """Awaiting transport connection close (association no longer exists)"""


class Event(IntEnum):
    """The events of Table 9-10, top to bottom."""

    ASSOCIATE_REQUEST = 1
    TRANSPORT_CONFIRMATION = 2
    ASSOCIATE_AC_PDU = 3
    ASSOCIATE_RJ_PDU = 4
    TRANSPORT_INDICATION = 5
    ASSOCIATE_RQ_PDU = 6
    ASSOCIATE_ACCEPT_RESPONSE = 7
    ASSOCIATE_REJECT_RESPONSE = 8
    P_DATA_REQUEST = 9
    P_DATA_TF_PDU = 10
    RELEASE_REQUEST = 11
    RELEASE_RQ_PDU = 12
    RELEASE_RP_PDU = 13
    RELEASE_RESPONSE = 14
    ABORT_REQUEST = 15
    ABORT_PDU = 16
    TRANSPORT_CLOSED = 17
    ARTIM_EXPIRED = 18
    INVALID_PDU = 19


class Effect(Enum):
    """What an action does, for the layers above to carry out in this order."""

    CONNECT = "issue TRANSPORT CONNECT request primitive"
    CLOSE = "close transport connection"
    START_ARTIM = "start (or restart) ARTIM timer"
    STOP_ARTIM = "stop ARTIM timer"
    SEND_ASSOCIATE_RQ = "send A-ASSOCIATE-RQ PDU"
    SEND_ASSOCIATE_AC = "send A-ASSOCIATE-AC PDU"
    SEND_ASSOCIATE_RJ = "send A-ASSOCIATE-RJ PDU"
    SEND_P_DATA = "send P-DATA-TF PDU"
    SEND_RELEASE_RQ = "send A-RELEASE-RQ PDU"
    SEND_RELEASE_RP = "send A-RELEASE-RP PDU"
    SEND_ABORT_AS_USER = "send A-ABORT PDU (service-user source)"
    SEND_ABORT_AS_PROVIDER = "send A-ABORT PDU (service-provider source)"
    ASSOCIATE_INDICATION = "issue A-ASSOCIATE indication primitive"
    ASSOCIATE_CONFIRMATION = "issue A-ASSOCIATE confirmation primitive (accept or reject)"
    P_DATA_INDICATION = "issue P-DATA indication primitive"
    RELEASE_INDICATION = "issue A-RELEASE indication primitive"
    RELEASE_CONFIRMATION = "issue A-RELEASE confirmation primitive"
    ABORT_INDICATION = "issue A-ABORT (or, of a provider's abort, A-P-ABORT) indication primitive"
    P_ABORT_INDICATION = "issue A-P-ABORT indication primitive"


_TABLE_9_10: Final = """
        Sta1  Sta2  Sta3  Sta4  Sta5  Sta6  Sta7  Sta8  Sta9  Sta10 Sta11 Sta12 Sta13
Evt1    AE-1  -     -     -     -     -     -     -     -     -     -     -     -
Evt2    -     -     -     AE-2  -     -     -     -     -     -     -     -     -
Evt3    -     AA-1  AA-8  -     AE-3  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt4    -     AA-1  AA-8  -     AE-4  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt5    AE-5  -     -     -     -     -     -     -     -     -     -     -     -
Evt6    -     AE-6  AA-8  -     AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-7
Evt7    -     -     AE-7  -     -     -     -     -     -     -     -     -     -
Evt8    -     -     AE-8  -     -     -     -     -     -     -     -     -     -
Evt9    -     -     -     -     -     DT-1  -     AR-7  -     -     -     -     -
Evt10   -     AA-1  AA-8  -     AA-8  DT-2  AR-6  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt11   -     -     -     -     -     AR-1  -     -     -     -     -     -     -
Evt12   -     AA-1  AA-8  -     AA-8  AR-2  AR-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt13   -     AA-1  AA-8  -     AA-8  AA-8  AR-3  AA-8  AA-8  AR-10 AR-3  AA-8  AA-6
Evt14   -     -     -     -     -     -     -     AR-4  AR-9  -     -     AR-4  -
Evt15   -     -     AA-1  AA-2  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1  -
Evt16   -     AA-2  AA-3  -     AA-3  AA-3  AA-3  AA-3  AA-3  AA-3  AA-3  AA-3  AA-2
Evt17   -     AA-5  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AR-5
Evt18   -     AA-2  -     -     -     -     -     -     -     -     -     -     AA-2
Evt19   -     AA-1  AA-8  -     AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-7
"""


class Action(NamedTuple):
    """The effects of one action, and the state after it."""

    effects: tuple[Effect, ...]
    next_state: State


_S, _E = State, Effect

ACTIONS: Final[dict[str, Action]] = {
    # Table 9-6: association establishment
    "AE-1": Action((_E.CONNECT,), _S.Sta4),
    "AE-2": Action((_E.SEND_ASSOCIATE_RQ,), _S.Sta5),
    "AE-3": Action((_E.ASSOCIATE_CONFIRMATION,), _S.Sta6),
    "AE-4": Action((_E.ASSOCIATE_CONFIRMATION, _E.CLOSE), _S.Sta1),
    "AE-5": Action((_E.START_ARTIM,), _S.Sta2),
    "AE-6": Action((_E.STOP_ARTIM, _E.ASSOCIATE_INDICATION), _S.Sta3),
    "AE-6 not acceptable": Action((_E.STOP_ARTIM, _E.SEND_ASSOCIATE_RJ, _E.START_ARTIM), _S.Sta13),
    "AE-7": Action((_E.SEND_ASSOCIATE_AC,), _S.Sta6),
    "AE-8": Action((_E.SEND_ASSOCIATE_RJ, _E.START_ARTIM), _S.Sta13),
    # Table 9-7: data transfer
    "DT-1": Action((_E.SEND_P_DATA,), _S.Sta6),
    "DT-2": Action((_E.P_DATA_INDICATION,), _S.Sta6),
    # Table 9-8: association release
    "AR-1": Action((_E.SEND_RELEASE_RQ,), _S.Sta7),
    "AR-2": Action((_E.RELEASE_INDICATION,), _S.Sta8),
    "AR-3": Action((_E.RELEASE_CONFIRMATION, _E.CLOSE), _S.Sta1),
    "AR-4": Action((_E.SEND_RELEASE_RP, _E.START_ARTIM), _S.Sta13),
    "AR-5": Action((_E.STOP_ARTIM,), _S.Sta1),
    "AR-6": Action((_E.P_DATA_INDICATION,), _S.Sta7),
    "AR-7": Action((_E.SEND_P_DATA,), _S.Sta8),
    "AR-8": Action((_E.RELEASE_INDICATION,), _S.Sta9),
    "AR-8 acceptor": Action((_E.RELEASE_INDICATION,), _S.Sta10),
    "AR-9": Action((_E.SEND_RELEASE_RP,), _S.Sta11),
    "AR-10": Action((_E.RELEASE_CONFIRMATION,), _S.Sta12),
    # Table 9-9: association abort
    "AA-1": Action((_E.SEND_ABORT_AS_USER, _E.START_ARTIM), _S.Sta13),
    "AA-2": Action((_E.STOP_ARTIM, _E.CLOSE), _S.Sta1),
    "AA-3": Action((_E.ABORT_INDICATION, _E.CLOSE), _S.Sta1),
    "AA-4": Action((_E.P_ABORT_INDICATION,), _S.Sta1),
    "AA-5": Action((_E.STOP_ARTIM,), _S.Sta1),
    "AA-6": Action((), _S.Sta13),
    "AA-7": Action((_E.SEND_ABORT_AS_PROVIDER,), _S.Sta13),
    "AA-8": Action((_E.SEND_ABORT_AS_PROVIDER, _E.P_ABORT_INDICATION, _E.START_ARTIM), _S.Sta13),
}


def _read_table(text: str) -> dict[tuple[State, Event], str]:
    header, *rows = text.strip("\n").splitlines()
    states = [State[name] for name in header.split()]
    table: dict[tuple[State, Event], str] = {}
    for number, row in enumerate(rows, start=1):
        _, *cells = row.split()
        table.update({(state, Event(number)): cell for state, cell in zip(states, cells, strict=True) if cell != "-"})
    return table


TABLE: Final[dict[tuple[State, Event], str]] = _read_table(_TABLE_9_10)
"""Action names by (state, event); a blank cell of the standard has no entry."""


def step(state: State, event: Event, *, requestor: bool, acceptable: bool = True) -> tuple[State, tuple[Effect, ...]]:
    """The state after `event`, and what is to be done.

    `requestor` decides the release collision (AR-8), `acceptable` whether an A-ASSOCIATE-RQ can be taken by the
    service-provider at all (AE-6). Raises `LocalProtocolError` for a blank cell of the table.
    """
    name = TABLE.get((state, event))
    if name is None:
        words = event.name.lower().replace("_", " ")
        raise LocalProtocolError(f"{words} (Evt{event.value}) is not possible in {state.name}")
    if name == "AE-6" and not acceptable:
        name = "AE-6 not acceptable"
    elif name == "AR-8" and not requestor:
        name = "AR-8 acceptor"
    effects, next_state = ACTIONS[name]
    return next_state, effects
