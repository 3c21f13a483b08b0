"""The circuit breaker: an archive that cannot be reached is asked no more, and again as soon as it answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

import dul
from proxy.archive.errors import ArchiveBusyError, ArchiveError, ArchiveFailedError, ArchiveTimeoutError
from proxy.archive.peers import breaker as breaker_module
from proxy.archive.peers.archive import Archive
from proxy.archive.peers.breaker import FAILURES, Breaker, BreakerState
from tests.dul import wire
from tests.dul.archive import serving
from tests.dul.wire import Wire, response, scripted_scp
from tests.peers.dcmtk import Storescp
from tests.peers.process import HOST, free_port
from tests.proxy.clock import Clock
from tests.proxy.peering import (
    archive_at,
    closes_at_once,
    drops_requests,
    leave_search,
    rejecting,
    search,
    silent,
    until,
)

CLOSED, OPEN, HALF_OPEN = BreakerState

# --- by itself -----------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def fail(breaker: Breaker, times: int) -> list[bool]:
    return [breaker.failed() for _ in range(times)]


def test_opens_at_the_third_failure(breaker: Breaker) -> None:
    assert (breaker.state, breaker.retry_seconds) == (CLOSED, None)
    assert fail(breaker, FAILURES) == [False, False, True]
    assert (breaker.state, breaker.retry_seconds) == (OPEN, 1.0)


def test_an_answer_in_between_starts_the_count_anew(breaker: Breaker) -> None:
    for _ in range(5):
        assert fail(breaker, 2) == [False, False]
        breaker.reached()
    assert breaker.state is CLOSED


def test_each_trial_that_fails_doubles_the_time_to_the_next(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    waits = []
    for _ in range(8):
        seconds = breaker.retry_seconds
        assert seconds is not None
        waits.append(seconds)
        clock.now += seconds / 4
        assert breaker.retry_seconds == pytest.approx(seconds * 3 / 4)
        clock.now += seconds
        assert breaker.retry_seconds == 0
        breaker.begin_trial()
        assert (breaker.state, breaker.retry_seconds) == (HALF_OPEN, 0)
        breaker.end_trial()
        assert breaker.state is OPEN
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_trial_that_succeeds_closes_it_and_the_times_begin_anew(breaker: Breaker) -> None:
    fail(breaker, 3)
    for _ in range(3):
        breaker.begin_trial()
        breaker.end_trial()
    breaker.begin_trial()
    breaker.reached()
    breaker.end_trial()
    assert (breaker.state, breaker.retry_seconds) == (CLOSED, None)
    assert fail(breaker, 3) == [False, False, True]
    assert breaker.retry_seconds == 1.0


@pytest.mark.parametrize("trial", [False, True], ids=["open", "half-open"])
def test_failures_of_what_had_begun_before_change_nothing(breaker: Breaker, trial: bool) -> None:
    fail(breaker, 3)
    if trial:
        breaker.begin_trial()
    before = (breaker.state, breaker.retry_seconds)
    assert fail(breaker, 10) == [False] * 10
    assert (breaker.state, breaker.retry_seconds) == before


def test_an_answer_to_what_had_begun_before_closes_it(breaker: Breaker) -> None:
    fail(breaker, 3)
    breaker.reached()
    assert breaker.state is CLOSED


# --- in front of archives ------------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first trial comes after a twentieth of a second."""
    monkeypatch.setattr(breaker_module, "FIRST_BACK_OFF_SECONDS", 0.05)
    monkeypatch.setattr(breaker_module, "LAST_BACK_OFF_SECONDS", 0.1)


@pytest.fixture
async def port() -> int:
    """A port that nobody listens on."""
    return free_port()


async def failures(archive: Archive, count: int = FAILURES) -> list[ArchiveError]:
    """Search in vain."""
    errors = []
    for _ in range(count):
        with pytest.raises(ArchiveError) as caught:
            await search(archive)
        errors.append(caught.value)
    return errors


async def test_archive_that_is_down_fails_fast_and_is_found_again_by_itself(tmp_path: Path, hurried: None) -> None:
    """Three requests find out that DCMTK's program is not there; then none does, until it is there again."""
    receiver = Storescp(tmp_path)
    async with archive_at(receiver.address.port, aet=receiver.address.aet) as archive:
        assert all("no connection to" in str(error) for error in await failures(archive))
        assert archive.breaker.state is OPEN
        begun = time.perf_counter()
        errors = await failures(archive, 20)
        assert (time.perf_counter() - begun) / len(errors) < 0.05
        assert all(type(error) is ArchiveFailedError for error in errors)
        assert str(errors[0]) == "main archive: does not answer; it is tried again in 1 s"
        assert archive.health.is_up is False
        assert archive.health.last_error is not None
        assert "no connection to" in archive.health.last_error
        await asyncio.to_thread(receiver.__enter__)
        try:
            await until(lambda: archive.breaker.state is CLOSED, 5)
            assert archive.health.is_up is True
            await archive.echo()
        finally:
            receiver.__exit__()


async def test_as_it_is_configured_the_first_trial_comes_after_a_second(port: int) -> None:
    async with archive_at(port) as archive:
        await failures(archive)
        await asyncio.sleep(0.1)
        assert archive.breaker.retry_seconds == pytest.approx(0.9, abs=0.09)
        async with dul.serve(dul.Handler(), HOST, port, ae_title="SCP"):
            await until(lambda: archive.breaker.state is CLOSED)


async def test_silence_is_a_timeout_also_without_asking() -> None:
    async with scripted_scp(silent) as scp, archive_at(scp.port, timeouts={"associate": 0.05}) as archive:
        errors = await failures(archive, FAILURES + 1)
        assert [type(error) for error in errors] == [ArchiveTimeoutError] * 4
        assert "does not answer; it is tried again in" in str(errors[3])


@pytest.mark.parametrize("script", [closes_at_once, drops_requests])
async def test_associations_that_are_lost_before_any_answer_count(script: wire.Script) -> None:
    async with scripted_scp(script) as scp, archive_at(scp.port) as archive:
        await failures(archive)
        assert archive.breaker.state is OPEN


async def test_waiters_fail_at_once_when_it_opens() -> None:
    """Ten ask at once, over one association: the tenth does not wait ten timeouts."""
    async with (
        scripted_scp(silent) as scp,
        archive_at(scp.port, maxAssociations=1, timeouts={"associate": 0.1}) as archive,
    ):

        async def failure() -> tuple[float, str]:
            with pytest.raises(ArchiveTimeoutError) as caught:
                await search(archive)
            return time.perf_counter(), str(caught.value)

        outcomes = sorted(await asyncio.gather(*(failure() for _ in range(10))))
        assert ["is tried again in" in text for _, text in outcomes] == [False] * FAILURES + [True] * 7
        assert outcomes[-1][0] - outcomes[FAILURES - 1][0] < 0.05


async def test_one_trial_at_a_time_and_nothing_beside(hurried: None) -> None:
    """Clients that go on asking do not reach it; nor do two trials ever run at once."""
    now, most, count = 0, 0, 0

    async def script(scp: Wire) -> None:
        nonlocal now, most, count
        now, count = now + 1, count + 1
        most = max(most, now)
        await scp.expect_abort()
        now -= 1

    async with scripted_scp(script) as scp, archive_at(scp.port, timeouts={"associate": 0.02}) as archive:
        await failures(archive)
        most = count = 0
        begun = time.perf_counter()
        while time.perf_counter() - begun < 0.5:
            await failures(archive, 20)
            await asyncio.sleep(0.01)
        assert most == 1
        assert 2 <= count <= 6


async def test_who_asks_by_hand_is_heard_at_once(port: int) -> None:
    """C-ECHO as an administrator sends it goes out though the breaker is open, and closes it."""
    async with archive_at(port) as archive:
        await failures(archive)
        with pytest.raises(ArchiveFailedError, match="no connection to"):
            await archive.echo()
        assert archive.breaker.state is OPEN
        async with dul.serve(dul.Handler(), HOST, port, ae_title="SCP"):
            await archive.echo()
            assert archive.breaker.state is CLOSED


async def test_what_goes_on_while_it_opens_closes_it_by_its_success() -> None:
    """Connections fail, a search that had begun before does not: the archive is there."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def script(scp: Wire) -> None:
        if asked.is_set():
            return
        await scp.accept()
        find = await scp.message()
        asked.set()
        await go_on.wait()
        await scp.send(response(find, 0))
        await scp.answer_release()

    async with scripted_scp(script) as scp, archive_at(scp.port) as archive:
        begun = asyncio.create_task(search(archive))
        await asked.wait()
        await failures(archive)
        assert archive.breaker.state is OPEN
        go_on.set()
        assert await begun == 0
        assert archive.breaker.state is CLOSED


# --- what does not count -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rejection", "kind"), [((1, 1, 3), ArchiveFailedError), ((2, 3, 2), ArchiveBusyError)], ids=["permanent", "busy"]
)
async def test_rejections_do_not_count(rejection: tuple[int, int, int], kind: type[ArchiveError]) -> None:
    """The archive is there, and clients are to be told its reason."""
    async with scripted_scp(rejecting(*rejection)) as scp, archive_at(scp.port) as archive:
        errors = await failures(archive, 2 * FAILURES)
        assert {type(error) for error in errors} == {kind}
        assert all("association rejected" in str(error) for error in errors)
        assert archive.breaker.state is CLOSED


class Failing(dul.Handler):
    """Ends each C-FIND with a failure."""

    async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
        raise dul.StatusError("C-FIND", 0xA700)
        yield b""


class Slow(dul.Handler):
    """Answers no C-FIND."""

    async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
        await asyncio.Event().wait()
        yield b""


@pytest.mark.parametrize(("handler", "words"), [(Failing, "0xA700"), (Slow, "no C-FIND response within")])
async def test_failures_and_silence_of_a_search_do_not_count(handler: type[dul.Handler], words: str) -> None:
    async with serving(handler()) as server, archive_at(server.port, timeouts={"response": 0.05}) as archive:
        errors = await failures(archive, 2 * FAILURES)
        assert all(words in str(error) for error in errors)
        assert archive.breaker.state is CLOSED


async def test_archive_that_takes_no_such_search_is_there() -> None:
    """An association without the context that was asked for is an answer."""
    async with dul.serve(dul.Handler(), HOST, 0, ae_title="SCP") as server, archive_at(server.port) as archive:
        errors = await failures(archive, 2 * FAILURES)
        assert all("no presentation context" in str(error) for error in errors)
        assert archive.breaker.state is CLOSED


async def test_mistakes_of_our_own_do_not_count(port: int) -> None:
    """Nobody is there, but this was not found out."""
    async with archive_at(port) as archive:
        for _ in range(FAILURES):
            with pytest.raises(ArchiveFailedError, match="128"):
                async with archive.lease([dul.Context(f"1.2.{number}") for number in range(129)]):
                    pass
        assert archive.breaker.state is CLOSED


async def test_loss_after_an_answer_does_not_count() -> None:
    async def script(scp: Wire) -> None:
        await scp.accept()
        find = await scp.message()
        await scp.send(response(find, 0xFF00, b"\x08\x00\x05\x00CS\x00\x00"))

    async with scripted_scp(script) as scp, archive_at(scp.port) as archive:
        await failures(archive, 2 * FAILURES)
        assert archive.breaker.state is CLOSED


async def test_callers_that_fail_or_leave_do_not_count(samples_server: dul.Server) -> None:
    async with archive_at(samples_server.port) as archive:
        for _ in range(FAILURES):
            with pytest.raises(ZeroDivisionError):
                async with archive.lease(archive.query_contexts):
                    raise ZeroDivisionError
            await leave_search(archive)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), archive.lease(archive.query_contexts):
                    await asyncio.sleep(1)
        assert archive.breaker.state is CLOSED


@pytest.fixture
async def samples_server() -> AsyncIterator[dul.Server]:
    """An archive with studies without end."""

    class Endless(dul.Handler):
        async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
            while True:
                yield b"\x08\x00\x05\x00CS\x00\x00"

    async with serving(Endless()) as server:
        yield server


# --- health, the log, the end --------------------------------------------------------------------------------


async def test_health_is_that_of_the_last_trial_and_not_asked_for_beside(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.archive.peers.archive.HEALTH_SECONDS", 0.0)
    async with archive_at(port) as archive:
        await failures(archive)
        last = archive.health.last_failure
        for _ in range(5):
            await archive.check()
        assert (archive.health.is_up, archive.health.last_failure) == (False, last)


async def test_trials_do_not_fill_the_log(port: int, hurried: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with archive_at(port) as archive:
        await failures(archive, 10)
        before = archive.health.last_failure
        await until(lambda: archive.health.last_failure != before)
        async with dul.serve(dul.Handler(), HOST, port, ae_title="SCP"):
            await until(lambda: archive.breaker.state is CLOSED)
    messages = [record.getMessage() for record in caplog.records if record.name == "proxy.archive.peers.archive"]
    assert len(messages) == FAILURES + 2
    assert all("no connection to" in message for message in messages[:FAILURES])
    assert messages[FAILURES:] == [
        "main archive does not answer: requests to it fail at once until it does",
        "main archive answers again",
    ]


async def test_the_end_comes_within_a_trial_too(hurried: None) -> None:
    """`archive_at` asserts that no task is left."""
    async with scripted_scp(silent) as scp:
        async with archive_at(scp.port, timeouts={"associate": 0.05}) as archive:
            await failures(archive)
            archive.peer = archive.peer.model_copy(
                update={"timeouts": archive.peer.timeouts.model_copy(update={"associate": 60.0})}
            )
            await until(lambda: archive.breaker.state is HALF_OPEN)
            assert archive.breaker.retry_seconds == 0
            with pytest.raises(ArchiveTimeoutError, match="does not answer; it is being tried again"):
                await search(archive)
            begun = time.perf_counter()
        assert time.perf_counter() - begun < 2.5
