"""`dul.statemachine` against two other readings of PS3.8 9.2: pynetdicom's, and one made for this test."""

from __future__ import annotations

import re

import pytest
from pynetdicom import fsm

from dul import statemachine
from dul.errors import LocalProtocolError
from dul.statemachine import ACTIONS, TABLE, Effect, Event, State, step

CELLS = [(event, state) for event in Event for state in State]

# Tables 9-6 to 9-9, read again: the state after each action.
NEXT_STATES: dict[str, int | tuple[int, int]] = {
    "AE-1": 4,
    "AE-2": 5,
    "AE-3": 6,
    "AE-4": 1,
    "AE-5": 2,
    "AE-6": (3, 13),  # acceptable by the service-provider; not
    "AE-7": 6,
    "AE-8": 13,
    "DT-1": 6,
    "DT-2": 6,
    "AR-1": 7,
    "AR-2": 8,
    "AR-3": 1,
    "AR-4": 13,
    "AR-5": 1,
    "AR-6": 7,
    "AR-7": 8,
    "AR-8": (9, 10),  # requestor; acceptor
    "AR-9": 11,
    "AR-10": 12,
    "AA-1": 13,
    "AA-2": 1,
    "AA-3": 1,
    "AA-4": 1,
    "AA-5": 1,
    "AA-6": 13,
    "AA-7": 13,
    "AA-8": 13,
}

# How the effects are worded in the action tables, of which pynetdicom keeps the text ("dul" for "provider").
WORDS: dict[Effect, str] = {
    Effect.CONNECT: r"TRANSPORT CONNECT request",
    Effect.CLOSE: r"close transport connection",
    Effect.START_ARTIM: r"start (\(or restart if already started\) )?ARTIM",
    Effect.STOP_ARTIM: r"stop ARTIM",
    Effect.SEND_ASSOCIATE_RQ: r"send A-ASSOCIATE-RQ",
    Effect.SEND_ASSOCIATE_AC: r"send A-ASSOCIATE-AC",
    Effect.SEND_ASSOCIATE_RJ: r"(send|issue) A-ASSOCIATE-RJ",
    Effect.SEND_P_DATA: r"(send|issue) P-DATA-TF",
    Effect.SEND_RELEASE_RQ: r"send A-RELEASE-RQ",
    Effect.SEND_RELEASE_RP: r"(send|issue) A-RELEASE-RP",
    Effect.ASSOCIATE_INDICATION: r"A-ASSOCIATE indication",
    Effect.ASSOCIATE_CONFIRMATION: r"A-ASSOCIATE confirmation",
    Effect.P_DATA_INDICATION: r"P-DATA indication",
    Effect.RELEASE_INDICATION: r"A-RELEASE indication",
    Effect.RELEASE_CONFIRMATION: r"A-RELEASE confirmation",
    Effect.ABORT_INDICATION: r"A-ABORT indication",
}


def variants(name: str) -> list[str]:
    """The entries of `ACTIONS` for an action of the standard; two have an alternative."""
    return [key for key in ACTIONS if key.split()[0] == name]


# --- Table 9-10 ----------------------------------------------------------------------------------------------


def test_printed_table_has_the_shape_of_the_standards() -> None:
    header, *rows = statemachine._TABLE_9_10.strip("\n").splitlines()
    assert header.split() == [f"Sta{number}" for number in range(1, 14)]
    assert [row.split()[0] for row in rows] == [f"Evt{number}" for number in range(1, 20)]
    assert {len(row.split()) for row in rows} == {1 + 13}
    assert {cell for row in rows for cell in row.split()[1:]} == {*NEXT_STATES, "-"}


def test_every_cell_is_pynetdicoms_cell() -> None:
    """247 of 247, blank ones included."""
    ours = {(f"Evt{event.value}", state.name): TABLE.get((state, event)) for event, state in CELLS}
    theirs = {(event, state): fsm.TRANSITION_TABLE.get((event, state)) for event, state in ours}
    assert len(ours) == 247
    assert ours == theirs
    assert len(TABLE) == len(fsm.TRANSITION_TABLE)


# --- Tables 9-6 to 9-9 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEXT_STATES)
def test_next_state_is_the_standards_and_pynetdicoms(name: str) -> None:
    expected = NEXT_STATES[name]
    ours = [ACTIONS[variant].next_state.value for variant in variants(name)]
    assert ours == (list(expected) if isinstance(expected, tuple) else [expected])
    theirs = fsm.ACTIONS[name][2]
    assert [f"Sta{number}" for number in ours] == ([theirs] if isinstance(theirs, str) else list(theirs))


def test_no_action_is_missing_or_invented() -> None:
    assert {key.split()[0] for key in ACTIONS} == set(NEXT_STATES) == set(fsm.ACTIONS)


@pytest.mark.parametrize("name", sorted(set(NEXT_STATES) - {"AA-1", "AA-3", "AA-4", "AA-7", "AA-8"}))
def test_effects_are_what_the_action_tables_say(name: str) -> None:
    text = fsm.ACTIONS[name][0]
    worded = {effect for effect, words in WORDS.items() if re.search(words, text, re.IGNORECASE)}
    assert {effect for variant in variants(name) for effect in ACTIONS[variant].effects} == worded


def test_effects_of_aborts() -> None:
    """Table 9-9, where the same words stand for different PDUs and primitives."""
    user, provider = Effect.SEND_ABORT_AS_USER, Effect.SEND_ABORT_AS_PROVIDER
    assert ACTIONS["AA-1"].effects == (user, Effect.START_ARTIM)
    assert ACTIONS["AA-3"].effects == (Effect.ABORT_INDICATION, Effect.CLOSE)
    assert ACTIONS["AA-4"].effects == (Effect.P_ABORT_INDICATION,)
    assert ACTIONS["AA-7"].effects == (provider,)
    assert ACTIONS["AA-8"].effects == (provider, Effect.P_ABORT_INDICATION, Effect.START_ARTIM)


# --- step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acceptable", [True, False])
@pytest.mark.parametrize("requestor", [True, False])
def test_step_walks_every_cell(requestor: bool, acceptable: bool) -> None:
    walked = 0
    for event, state in CELLS:
        name = fsm.TRANSITION_TABLE.get((f"Evt{event.value}", state.name))
        if name is None:
            with pytest.raises(LocalProtocolError, match=rf"Evt{event.value}\) is not possible in {state.name}$"):
                step(state, event, requestor=requestor, acceptable=acceptable)
        else:
            expected = NEXT_STATES[name]
            if isinstance(expected, tuple):
                expected = expected[not (acceptable if name == "AE-6" else requestor)]
            next_state, effects = step(state, event, requestor=requestor, acceptable=acceptable)
            assert next_state == expected
            assert all(isinstance(effect, Effect) for effect in effects)
        walked += 1
    assert walked == 19 * 13


def test_artim_runs_in_sta2_and_sta13_only() -> None:
    """Whatever leads into those states starts it or leaves it running; whatever leads out stops it or closes."""
    timed = (State.Sta2, State.Sta13)
    for (state, _), name in TABLE.items():
        for variant in variants(name):
            effects, after = ACTIONS[variant]
            if after in timed:
                assert Effect.START_ARTIM in effects or state in timed
            else:
                assert Effect.START_ARTIM not in effects
                assert state not in timed or Effect.STOP_ARTIM in effects
