"""Token buckets and the quiet log, by a clock of the test's own."""

from __future__ import annotations

import logging

import pytest

from dul import limits
from dul.flood import QuietLog, TokenBuckets


class Clock:
    """Time that goes forward when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


def taken(buckets: TokenBuckets, key: str, tries: int) -> int:
    """Try to take; returns how often that succeeded."""
    return sum(buckets.take(key) is not None for _ in range(tries))


def test_so_many_at_once_and_then_so_many_each_second(clock: Clock) -> None:
    buckets = TokenBuckets(10, 2.0, clock)
    assert taken(buckets, "a", 20) == 10
    for seconds, more in ((0.4, 0), (0.1, 1), (2.0, 4), (3600.0, 10)):
        clock.now += seconds
        assert taken(buckets, "a", 20) == more


def test_buckets_of_others_are_their_own(clock: Clock) -> None:
    buckets = TokenBuckets(3, 1.0, clock)
    assert [taken(buckets, key, 5) for key in "aab"] == [3, 0, 3]


def test_refusals_are_counted_until_the_next_success(clock: Clock) -> None:
    buckets = TokenBuckets(1, 1.0, clock)
    assert [buckets.take("a") for _ in range(4)] == [0, None, None, None]
    clock.now += 2
    assert [buckets.take("a"), buckets.take("a")] == [3, None]


def test_keys_without_number_take_bounded_memory_and_leave_those_before_alone(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """As one who has a network of addresses can call."""
    monkeypatch.setattr(limits, "MAX_BUCKETS", 100)
    buckets = TokenBuckets(2, 1.0, clock)
    assert taken(buckets, "known", 1) == 1
    allowed = sum(taken(buckets, f"address {number}", 1) for number in range(10_000))
    assert allowed == 99 + 2, "beyond 100, all others share one bucket"
    assert len(buckets._buckets) == 101
    assert taken(buckets, "known", 5) == 1
    clock.now += 10
    assert taken(buckets, "somebody new", 5) == 2
    assert len(buckets._buckets) < 101, "those that are full again are forgotten, but for those with refusals to tell"


def test_addresses_that_were_refused_do_not_keep_their_buckets_from_others(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """Or a network of addresses that called too often once would have all who come later share one bucket for good."""
    monkeypatch.setattr(limits, "MAX_BUCKETS", 100)
    buckets = TokenBuckets(2, 1.0, clock)
    for number in range(100):
        assert taken(buckets, f"address {number}", 5) == 2
    assert [taken(buckets, key, 5) for key in ("b", "c")] == [2, 0]
    for key in ("d", "e", "f"):
        clock.now += 10
        assert taken(buckets, key, 5) == 2
    assert len(buckets._buckets) <= 101
    assert buckets.take("address 99") == 3, "no more go than there is need for"


def test_log_has_a_few_lines_of_each_host_and_then_says_how_many_it_left_out(
    caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    log = QuietLog(logging.getLogger("dul"), clock)
    for number in range(1000):
        log.warn_of("10.0.0.1", "trouble %d", number)
    log.warn_of("10.0.0.2", "other trouble")
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [*(f"trouble {number}" for number in range(limits.LOG_LINES_AT_ONCE)), "other trouble"]
    assert {record.filename for record in caplog.records} == {"test_flood.py"}
    clock.now += 1 / limits.LOG_LINES_PER_SECOND
    log.warn_of("10.0.0.1", "trouble again")
    assert caplog.records[-1].getMessage() == "trouble again; 980 more about this address were not logged"


def test_lines_of_one_host_in_a_day_are_bounded(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    log = QuietLog(logging.getLogger("dul"), clock)
    for _ in range(86_400):
        clock.now += 1
        log.warn_of("10.0.0.1", "trouble")
    assert len(caplog.records) <= limits.LOG_LINES_AT_ONCE + 86_400 * limits.LOG_LINES_PER_SECOND
