"""Signing in by name and password: what is taken, what it costs, and how guessing is slowed down."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import logging
import re
import threading
import time
import unicodedata
from collections.abc import AsyncIterator

import argon2
import pytest

from proxy.config.security import User
from proxy.security.auth import basic as module
from proxy.security.auth import failures
from proxy.security.auth.basic import Passwords
from proxy.security.auth.errors import Refusal
from proxy.security.auth.failures import BURST, MAX_ADDRESSES, REFILL_SECONDS, Failures
from proxy.security.auth.hashing import verify_password
from proxy.security.auth.remembered import Remembered
from tests.proxy.clock import Clock
from tests.proxy.signing_in import PROTECTED, asked, basic, challenges, guarded, status, user

pytestmark = pytest.mark.usefixtures("nothing_left")

HERE = ipaddress.ip_address("192.0.2.1")
ELSEWHERE = ipaddress.ip_address("192.0.2.2")


class Checks:
    """Counts how often a password was checked, against which hash, and in which thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hashes: list[str] = []
        self.threads: set[str] = set()
        self.at_once = self.most_at_once = 0
        self.seconds = 0.0
        self.hold = threading.Event()
        self.hold.set()
        monkeypatch.setattr(module, "verify_password", self._verify)

    def _verify(self, password_hash: str, password: str) -> bool:
        self.hashes.append(password_hash)
        self.threads.add(threading.current_thread().name)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.seconds)
        assert self.hold.wait(10)
        try:
            return verify_password(password_hash, password)
        finally:
            self.at_once -= 1


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    """Watch the checks of passwords."""
    return Checks(monkeypatch)


@pytest.fixture
def clock() -> Clock:
    """A clock that the test sets."""
    return Clock()


@pytest.fixture
async def passwords(clock: Clock) -> AsyncIterator[Passwords]:
    """Jane and Bob."""
    users = [User.model_validate(user("jane", "correct horse", write=True)), User.model_validate(user("bob", "staple"))]
    made = Passwords(users, clock)
    yield made
    await made.close()


def sent(name: str, password: str) -> str:
    """Return what follows `Basic` in the header."""
    return basic(name, password)["Authorization"].removeprefix("Basic ")


async def refused(passwords: Passwords, name: str, password: str, address: object = HERE) -> Refusal:
    """Sign in with what is wrong."""
    with pytest.raises(Refusal) as caught:
        await passwords.identify(sent(name, password), address)  # type: ignore[arg-type]
    return caught.value


# --- right and wrong -----------------------------------------------------------------------------------------


async def test_right_and_wrong() -> None:
    """Names and passwords as they are, with colons, spaces and case; what is wrong gets one answer, whatever it is."""
    people = [user("jane", "a:b: c "), user("Bob Smith", "")]
    async with guarded({"users": people}) as proxy:
        assert await status(proxy, basic("jane", "a:b: c ")) == 200
        assert await status(proxy, basic("Bob Smith", "")) == 200
        answers = set()
        for name, password in (("jane", "a:b: c"), ("jane", "A:b: c "), ("Jane", "a:b: c "), ("eve", "a:b: c ")):
            code, headers, body = await asked(proxy, basic(name, password))
            assert code == 401
            assert "Basic" in challenges(headers)
            answers.add(re.sub(rb'"timestamp": "[^"]*"', b"", body))
        assert len(answers) == 1


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
async def test_the_scheme_is_in_any_case(scheme: str) -> None:
    """RFC 9110 11.1."""
    async with guarded({"users": [user("jane", "correct horse")]}) as proxy:
        assert await status(proxy, {"Authorization": f"{scheme}   {sent('jane', 'correct horse')}"}) == 200


@pytest.mark.parametrize(
    "credentials",
    [
        "",
        "=",
        "!!!!",
        "amFuZQ",
        "amFuZTpj b3JyZWN0",
        base64.b64encode(b"jane").decode(),
        base64.b64encode(b"").decode() + "====",
        base64.b64encode(b"jane:correct horse\0").decode(),
        base64.b64encode(b"jane\0:correct horse").decode(),
        base64.b64encode(b"jane:correct\nhorse").decode(),
        base64.b64encode(b"jane:correct\x7fhorse").decode(),
        base64.b64encode(b"\xff\xfe\xfd").decode(),
        "é",
        "A" * 7000,
    ],
    ids=range(14),
)
async def test_what_is_no_name_and_password(credentials: str, checks: Checks) -> None:
    """401, and nothing is checked, so nothing counts as a guess."""
    async with guarded({"users": [user("jane", "correct horse")]}) as proxy:
        for _ in range(BURST + 2):
            assert await status(proxy, {"Authorization": f"Basic {credentials}"}) == 401
        assert not checks.hashes


async def test_a_huge_header() -> None:
    """Refused before anything looks at it."""
    async with guarded({"users": [user("jane", "correct horse")]}) as proxy:
        assert await status(proxy, {"Authorization": "Basic " + "A" * 100_000}) == 431


async def test_letters_beyond_ascii() -> None:
    """UTF-8 (RFC 7617 2.1), and the same letters in whichever way they are composed; else Latin-1."""
    people = [user("Zoë Müller", "pässwörd ✓")]
    async with guarded({"users": people}) as proxy:
        for form in ("NFC", "NFD"):
            name, password = (unicodedata.normalize(form, each) for each in ("Zoë Müller", "pässwörd ✓"))
            assert await status(proxy, basic(name, password)) == 200
        assert await status(proxy, basic("Zoë Müller", "pässwörd ", "latin-1")) == 401
    async with guarded({"users": [user("Zoë", "pässwörd")]}) as proxy:
        assert await status(proxy, basic("Zoë", "pässwörd", "latin-1")) == 200
        assert await status(proxy, basic("Zoë", "pässwörd", "utf-16")) == 401


async def test_what_cannot_be_checked_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2 has no memory: 500, no guess, and nothing of it is remembered."""

    def failing(*_: object) -> bool:
        raise argon2.exceptions.VerificationError("Memory allocation error")

    async with guarded({"users": [user("jane", "correct horse")]}) as proxy:
        with monkeypatch.context() as patched:
            patched.setattr(module, "verify_password", failing)
            assert await status(proxy, basic("jane", "correct horse")) == 500
        assert await status(proxy, basic("jane", "correct horse")) == 200


# --- what it costs -------------------------------------------------------------------------------------------


async def test_a_thousand_requests_cost_one_check(checks: Checks) -> None:
    """Many at once, and one after the other; in a thread of its own."""
    checks.seconds = 0.05
    async with guarded({"users": [user("jane", "correct horse")]}) as proxy:
        headers = basic("jane", "correct horse")
        assert set(await asyncio.gather(*(status(proxy, headers, "/nowhere") for _ in range(100)))) == {404}
        for _ in range(900):
            async with proxy.http.get(PROTECTED, headers=headers) as response:
                assert response.status == 200
    assert len(checks.hashes) == 1
    assert all(name.startswith("passwords") for name in checks.threads)


async def test_who_leaves_does_not_take_the_check_along(passwords: Passwords, checks: Checks) -> None:
    """The others wait for it on."""
    checks.seconds = 0.05
    waiting = [asyncio.create_task(passwords.identify(sent("jane", "correct horse"), HERE)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    identities = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(identities[0], asyncio.CancelledError)
    assert {identity.name for identity in identities[1:] if not isinstance(identity, BaseException)} == {"jane"}
    assert len(checks.hashes) == 1


async def test_a_check_is_not_remembered_for_long(passwords: Passwords, checks: Checks, clock: Clock) -> None:
    """Neither that it was right nor that it was wrong; and only for exactly what was sent."""
    for expected in (1, 2):
        for _ in range(3):
            await passwords.identify(sent("jane", "correct horse"), HERE)
        assert len(checks.hashes) == expected
        clock.now += module.REMEMBERED_SECONDS
    for name, password in (("jane", "correct hors"), ("janec", "orrect horse"), ("bob", "correct horse")):
        assert (await refused(passwords, name, password)).status == 401


async def test_nothing_is_remembered_as_it_is(passwords: Passwords) -> None:
    """Keyed hashes, with another key in each process."""
    await passwords.identify(sent("jane", "correct horse"), HERE)
    await refused(passwords, "eve", "wrong battery")
    kept = f"{vars(passwords)} {vars(passwords._right)} {vars(passwords._wrong)}"
    assert "correct horse" not in kept
    assert "wrong battery" not in kept
    other = Passwords([User.model_validate(user("jane", "correct horse"))])
    assert other._digest("x") != passwords._digest("x")
    await other.close()


def test_what_is_remembered_is_bounded(clock: Clock) -> None:
    """The oldest goes; what is too old is not given."""
    remembered = Remembered[int](10, 3, clock)
    for number in range(5):
        remembered.note(bytes([number]), number)
        clock.now += 1
    assert [remembered.get(bytes([number])) for number in range(5)] == [None, None, 2, 3, 4]
    remembered.note(b"\2", 20)
    remembered.note(b"\5", 5)
    assert (remembered.get(b"\2"), remembered.get(b"\3"), len(remembered)) == (20, None, 3)
    clock.now += 10
    assert remembered.get(b"\2") is None


async def test_few_checks_at_once_and_few_that_wait(
    passwords: Passwords, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others get 503 and may come again: they keep neither memory nor the processor."""
    checks.seconds = 0.02
    addresses = [ipaddress.ip_address(f"198.51.100.{number}") for number in range(50)]
    outcomes = await asyncio.gather(
        *(refused(passwords, "jane", str(address), address) for address in addresses), return_exceptions=True
    )
    statuses = [outcome.status for outcome in outcomes if isinstance(outcome, Refusal)]
    assert statuses.count(401) == module.MAX_WAITING
    assert statuses.count(503) == len(addresses) - module.MAX_WAITING
    assert all(outcome.retry_after for outcome in outcomes if isinstance(outcome, Refusal) and outcome.status == 503)
    assert checks.most_at_once <= module.THREADS


async def test_the_event_loop_goes_on_meanwhile(passwords: Passwords, checks: Checks) -> None:
    checks.hold.clear()
    checking = asyncio.create_task(passwords.identify(sent("jane", "correct horse"), HERE))
    async with asyncio.timeout(5):
        while not checks.hashes:
            await asyncio.sleep(0.005)
    assert not checking.done()
    checks.hold.set()
    assert (await checking).name == "jane"


# --- guessing ------------------------------------------------------------------------------------------------


async def test_an_unknown_user_costs_what_a_wrong_password_costs(passwords: Passwords, checks: Checks) -> None:
    """The same check, against the hash of some user; and always of the same, as it is with a user's own."""
    for name in ("jane", "eve", "eve2", "eve"):
        await refused(passwords, name, f"wrong {len(checks.hashes)}")
    assert len(checks.hashes) == 4
    assert set(checks.hashes) <= set(passwords._hashes)
    assert checks.hashes[1] == checks.hashes[3]


async def test_an_unknown_user_is_not_let_in_with_the_password_of_another() -> None:
    """Though it is the hash of that other that was looked at."""
    async with guarded({"users": [user("jane", "correct horse")]}) as proxy:
        for name in ("eve", "", "jane2"):
            assert await status(proxy, basic(name, "correct horse")) == 401


async def test_guesses_are_slowed_down(passwords: Passwords, checks: Checks, clock: Clock) -> None:
    """429 with the time to wait, for that address alone, and without a check."""
    for number in range(BURST):
        assert (await refused(passwords, f"user{number}", "x")).status == 401
    refusal = await refused(passwords, "jane", "another")
    assert (refusal.status, refusal.retry_after) == (429, REFILL_SECONDS)
    assert len(checks.hashes) == BURST
    assert (await refused(passwords, "jane", "another", ELSEWHERE)).status == 401
    clock.now += REFILL_SECONDS
    assert (await refused(passwords, "jane", "yet another")).status == 401
    assert (await refused(passwords, "jane", "and another")).status == 429
    clock.now += REFILL_SECONDS * BURST
    assert (await passwords.identify(sent("jane", "correct horse"), HERE)).name == "jane"


async def test_many_guesses_at_once_are_slowed_down_too(passwords: Passwords, checks: Checks) -> None:
    """They do not all get through while the first is being checked."""
    outcomes = await asyncio.gather(*(refused(passwords, "jane", str(number)) for number in range(30)))
    assert [outcome.status for outcome in outcomes].count(401) == BURST == len(checks.hashes)


async def test_right_passwords_cost_no_tries(passwords: Passwords, checks: Checks, clock: Clock) -> None:
    for _ in range(3 * BURST):
        await passwords.identify(sent("jane", "correct horse"), HERE)
        clock.now += module.REMEMBERED_SECONDS
    assert len(checks.hashes) == 3 * BURST


async def test_who_has_signed_in_goes_on_beside_a_guesser(passwords: Passwords, checks: Checks) -> None:
    """Several people may share one address."""
    await passwords.identify(sent("jane", "correct horse"), HERE)
    for number in range(2 * BURST):
        await refused(passwords, "jane", str(number))
    assert (await passwords.identify(sent("jane", "correct horse"), HERE)).name == "jane"


async def test_the_same_wrong_password_again_is_one_guess(passwords: Passwords, checks: Checks) -> None:
    """A page that goes on with an old password does not lock out its neighbours, nor keep the processor busy."""
    for _ in range(5 * BURST):
        assert (await refused(passwords, "jane", "the old one")).status == 401
    assert len(checks.hashes) == 1
    assert (await passwords.identify(sent("bob", "staple"), HERE)).name == "bob"


async def test_what_is_told_to_the_audit(passwords: Passwords) -> None:
    """The name of a user, as it is or under which too many guesses came; not what else stood in the field for it."""
    assert (await refused(passwords, "jane", "x")).claimed == "jane"
    assert (await refused(passwords, "jane", "x")).claimed == "jane"
    assert (await refused(passwords, "my password", "x")).claimed == ""
    for number in range(BURST):
        last = await refused(passwords, "jane", str(number))
    assert (last.status, last.claimed) == (429, "jane")


async def test_it_is_logged_without_names(passwords: Passwords, caplog: pytest.LogCaptureFixture) -> None:
    """The address, once: people type their passwords into the field for the name."""
    with caplog.at_level(logging.DEBUG):
        for number in range(BURST + 5):
            await refused(passwords, f"my password {number}", "x")
    said = [record.getMessage() for record in caplog.records if record.name.startswith("proxy")]
    assert said == [f"{HERE} has sent too many wrong passwords, and can try another only now and then"]


async def test_429_over_http() -> None:
    """With Retry-After in seconds, and no challenge: there is nothing to sign in with just now."""
    async with guarded({"users": [user("jane", "correct horse")]}) as proxy:
        codes = [await status(proxy, basic("jane", str(number))) for number in range(BURST + 1)]
        assert codes == [401] * BURST + [429]
        code, headers, body = await asked(proxy, basic("jane", "last"))
        assert code == 429
        assert 1 <= int(headers["Retry-After"]) <= REFILL_SECONDS
        assert "WWW-Authenticate" not in headers
        assert b"too many wrong passwords" in body


def test_failures_of_ipv6_count_for_the_network(clock: Clock) -> None:
    """One machine has 2**64 addresses."""
    counted = Failures(clock)
    for number in range(BURST):
        assert counted.take(ipaddress.ip_address(f"2001:db8::{number}")) == 0
    assert counted.take(ipaddress.ip_address("2001:db8::ffff")) > 0
    assert counted.take(ipaddress.ip_address("2001:db8:0:1::1")) == 0


def test_failures_of_an_unknown_address_count_too(clock: Clock) -> None:
    counted = Failures(clock)
    assert [counted.take(None) > 0 for _ in range(BURST + 1)] == [False] * BURST + [True]


def test_memory_of_failures_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old ones go by themselves, and there are never more than so many."""
    monkeypatch.setattr(failures, "MAX_ADDRESSES", 100)
    counted = Failures(clock)
    for number in range(1000):
        counted.take(ipaddress.ip_address(number))
        assert len(counted) <= 100
    clock.now += REFILL_SECONDS
    counted.take(HERE)
    assert len(counted) == 1
    counted.give_back(HERE)
    assert len(counted) == 0
    assert MAX_ADDRESSES == 10_000
