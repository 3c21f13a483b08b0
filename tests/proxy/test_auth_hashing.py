"""Hashes of passwords and tokens, and the commands that make them."""

from __future__ import annotations

import base64
import io
import unicodedata

import argon2
import pytest

from proxy.cli import main
from proxy.config.security import User
from proxy.security.auth import hashing
from proxy.security.auth.basic import Passwords
from proxy.security.auth.errors import AuthSettingsError
from proxy.security.auth.hashing import check_password_hash, hash_password, verify_password
from tests.proxy.signing_in import cheap_hash


def test_a_hash_is_of_the_composed_form() -> None:
    """So it is no matter on which system it was made."""
    decomposed = unicodedata.normalize("NFD", "pässwörd")
    assert verify_password(hash_password(decomposed), unicodedata.normalize("NFC", decomposed))


@pytest.mark.parametrize("kind", list(argon2.Type))
def test_every_kind_of_argon2(kind: argon2.Type) -> None:
    made = argon2.PasswordHasher(1, 8, 1, type=kind).hash("x")
    assert verify_password(made, "x")
    assert not verify_password(made, "y")
    check_password_hash(made, "key")


@pytest.mark.parametrize(
    "damaged",
    ["$argon2id$v=19$m=65536,t=3$c2FsdHNhbHQ$aGFzaA", "$argon2id$v=19$x=1,y=2,z=3$c2FsdA$aGFzaA"],
)
def test_a_damaged_hash_is_named_at_the_start(damaged: str) -> None:
    with pytest.raises(AuthSettingsError, match=r"^auth\.users\[0\]\.passwordHash: is no whole hash"):
        Passwords([User.model_validate({"name": "jane", "passwordHash": damaged})])


def test_a_hash_that_asks_for_too_much_memory() -> None:
    """4 GiB for each guess would end the proxy."""
    huge = "$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA"
    with pytest.raises(AuthSettingsError, match="more than 1024 MiB"):
        check_password_hash(huge, "key")


# --- commands ------------------------------------------------------------------------------------------------


class _Stdin(io.StringIO):
    def __init__(self, text: str, *, terminal: bool = False) -> None:
        super().__init__(text)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def test_hash_password(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From standard input; what it prints is what the configuration takes, and another each time."""
    hashes = set()
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", _Stdin("correct horse\r\n"))
        assert main(["hash-password"]) == 0
        shown = capsys.readouterr()
        made = shown.out.removesuffix("\n")
        assert User.model_validate({"name": "jane", "passwordHash": made}).password_hash == made
        assert not shown.err
        hashes.add(made)
    assert len(hashes) == 2
    assert verify_password(made, "correct horse")


def test_hash_password_at_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is asked for twice and not shown."""
    monkeypatch.setattr("sys.stdin", _Stdin("", terminal=True))
    for typed, code in ((["correct horse", "correct horse"], 0), (["correct horse", "correct hose"], 2)):
        answers = iter(typed)
        monkeypatch.setattr("getpass.getpass", lambda _, answers=answers: next(answers))
        assert main(["hash-password"]) == code
        shown = capsys.readouterr()
        assert bool(shown.out) is (code == 0)
        assert ("two different passwords" in shown.err) is (code == 2)


@pytest.mark.parametrize("wrong", ["", "short", "with\ttab inside", "with\udcffbyte inside"], ids=ascii)
def test_passwords_that_are_not_taken(
    wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and why, without the password."""
    monkeypatch.setattr("sys.stdin", _Stdin(wrong + "\n"))
    assert main(["hash-password"]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("a password ")
    assert not wrong or wrong not in shown.err


def test_make_token(capsys: pytest.CaptureFixture[str]) -> None:
    """256 random bits, and the hash that the configuration takes."""
    assert main(["make-token"]) == 0
    secret, hashed = (line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines())
    assert len(base64.urlsafe_b64decode(secret + "=")) == 32
    assert hashing.token_hash(secret) == hashed
    assert main(["make-token"]) == 0
    assert secret not in capsys.readouterr().out


def test_the_hash_of_the_tests_is_a_hash() -> None:
    """Cheap ones are for tests: what the command makes asks for as much as RFC 9106 4 does."""
    parameters = argon2.extract_parameters(hash_password("correct horse"))
    assert (parameters.memory_cost, parameters.time_cost) == (65536, 3)
    assert argon2.extract_parameters(cheap_hash("x")).memory_cost == 8
