"""`proxy.archive.query.datespan`: ranges of study dates, and their halves (PS3.4 C.2.2.2.5)."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest

from proxy.archive.query.datespan import EARLIEST, DateSpan


def span(key: str) -> DateSpan:
    """Return the span of a key that has one."""
    found = DateSpan.of(key)
    assert found is not None
    return found


@pytest.mark.parametrize("key", ["", "20240101", "20240101-20240131", "20240101-", "-20240131"])
def test_a_key_comes_back_as_it_was(key: str) -> None:
    assert span(key).key == key


def test_an_asterisk_is_universal_matching() -> None:
    assert span("*") == span("") == DateSpan()
    assert span("*").is_universal


@pytest.mark.parametrize("key", ["20240230", "2024", "2024*", "20240101-2024", "2024-01-01", "20240101-20240102-"])
def test_what_is_no_range_of_dates_cannot_be_split(key: str) -> None:
    assert DateSpan.of(key) is None


def test_which_values_are_of_another_time() -> None:
    january = span("20240101-20240131")
    assert not any(january.leaves_out(value) for value in (b"20240101", b"20240131", b"2024.01.15", b"20240131 ", b"?"))
    assert january.leaves_out(b"20231231")
    assert january.leaves_out(b"20240201")
    assert not span("20240101-").leaves_out(b"29991231")
    assert not span("").leaves_out(b"18991231")


def test_without_known_dates_the_later_half_of_the_time_comes_last() -> None:
    assert [half.key for half in span("20240101-20240105").halves({})] == ["20240101-20240102", "20240103-20240105"]


def test_known_dates_say_where_the_middle_is_and_the_emptier_part_comes_last() -> None:
    known = Counter({b"20240102": 2, b"20240103": 1, b"20240301": 8, b"not a date": 99})
    assert [half.key for half in span("20240101-20241231").halves(known)] == ["20240301-20241231", "20240101-20240229"]


def test_open_ends_stay_open() -> None:
    """So that no study is lost because its date is a mistake, such as one of the next century."""
    assert [half.key for half in span("").halves({b"20240102": 1, b"20240103": 1})] == ["-20240102", "20240103-"]
    assert {half.key[-1] for half in span("20240101-").halves({})} >= {"-"}


@pytest.mark.parametrize("key", ["20240101", f"-{EARLIEST:%Y%m%d}"])
def test_what_has_no_halves(key: str) -> None:
    assert span(key).halves({b"20240101": 5}) == ()


@pytest.mark.parametrize("known", [{}, {b"20240101": 5}, {b"20241231": 5}, {b"19700101": 5}])
def test_halving_ends_and_leaves_no_day_out(known: dict[bytes, int]) -> None:
    """Whatever is known, the parts are the days of the range, each once."""
    pending, days = [span("20240101-20240310")], list[date]()
    while pending:
        part = pending.pop()
        halves = part.halves(known)
        pending += halves
        if not halves:
            assert part.low == part.high is not None
            days.append(part.low)
    assert sorted(days) == [date(2024, 1, 1) + timedelta(days=number) for number in range(70)]


def test_an_open_range_is_halved_up_to_tomorrow() -> None:
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    assert span(f"{tomorrow:%Y%m%d}-").halves({}) == ()
    assert len(span(f"{tomorrow - timedelta(days=1):%Y%m%d}-").halves({})) == 2
