"""A short run of the fuzzing, the same inputs each time; and that it finds what is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dul.errors import RemoteProtocolError
from tests.dul.strategies import examples
from tests.fuzz import running
from tests.fuzz.running import check, fuzz
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS

INPUTS = {"pdus": 20_000, "connections": 10_000, "commands": 20_000, "user-information": 20_000}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_are_refused_and_nothing_else(name: str) -> None:
    """Only the documented errors, no hang, no more memory than the bound."""
    findings = list(fuzz(name, INPUTS.get(name, 2_000), seed=0))
    assert not findings, "\n".join(map(str, findings[:5]))


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=200))
@examples(200)
def test_any_bytes_are_refused_and_nothing_else(name: str, data: bytes) -> None:
    finding = check(name, data)
    assert finding is None, str(finding)


@pytest.mark.parametrize("name", TARGETS)
def test_there_are_seeds_and_no_target_stumbles_over_them(name: str) -> None:
    made = seeds(name)
    assert len(made) >= 3
    assert len(set(made)) > 1
    assert all(check(name, seed) is None for seed in made)


def test_what_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is not documented, a hang, and memory."""
    kept: list[bytes] = []

    def wrong(data: bytes) -> None:
        match data[:1]:
            case b"e":
                json.loads("{")
            case b"h":
                sum(range(1_000_000))
            case b"m":
                kept.append(bytes(running.FREE_MEMORY + 100))
            case _:
                return

    monkeypatch.setitem(TARGETS, "pdus", wrong)
    monkeypatch.setattr(running, "HANG_SECONDS", 0.01)
    found = [check("pdus", data, traced=True) for data in (b"e", b"h", b"m", b"")]
    words = ["JSONDecodeError", " s;", "bytes of memory"]
    assert all(word in str(each) for word, each in zip(words, found[:3], strict=True))
    assert found[3] is None


def test_a_documented_error_that_escapes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser's own error is a finding where its target does not expect it."""

    def raising(_: bytes) -> None:
        raise RemoteProtocolError("out of place", 0)

    monkeypatch.setitem(TARGETS, "commands", raising)
    assert "RemoteProtocolError" in str(check("commands", b""))
