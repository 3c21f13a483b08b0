"""Matching of values with keys (PS3.4 C.2.2.2), VR by VR, and that no key makes it slow."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dataset.matching import is_literal, value_test


def matches(vr: str, key: str, value: str) -> bool:
    test = value_test(vr, key.split("\\"))
    return test is None or test(value)


@pytest.mark.parametrize("vr", ["LO", "PN", "DA", "TM", "DT", "UI", "IS", "US", "AS", "CS"])
@pytest.mark.parametrize("key", ["", "*", "\\"])
def test_empty_keys_and_an_asterisk_match_everything(vr: str, key: str) -> None:
    assert value_test(vr, key.split("\\")) is None


@pytest.mark.parametrize(
    ("vr", "key", "value", "expected"),
    [
        ("LO", "Thorax", "Thorax", True),
        ("LO", "thorax", "Thorax", False),  # only names are matched without regard to case
        ("LO", "Tho", "Thorax", False),
        ("LO", "Tho*", "Thorax", True),
        ("LO", "*rax", "Thorax", True),
        ("LO", "*ho*a*", "Thorax", True),
        ("LO", "T?orax", "Thorax", True),
        ("LO", "T?rax", "Thorax", False),
        ("LO", "Tho*", "", False),
        ("LO", "**", "", True),
        ("LO", "?", "", False),
        ("LO", "a.c", "abc", False),
        ("LO", "[abc]*", "abc", False),
        ("LO", "a*\n", "ab\n", True),
        ("LO", "ab*ba", "aba", False),
        ("CS", "CT\\MR", "MR", True),
        ("CS", "CT\\MR", "US", False),
        ("CS", "C?\\M?", "MR", True),
        ("AS", "04?Y", "040Y", False),  # wildcards are not for this VR
        ("UI", "1.2.3", "1.2.3", True),
        ("UI", "1.2", "1.2.3", False),
        ("UI", "1.2.*", "1.2.3", False),
        ("UI", "1.2.4\\1.2.3", "1.2.3", True),
        ("IS", "4", "+4", True),
        ("IS", "4", "04", True),
        ("IS", "4", "40", False),
        ("IS", "four", "4", False),
        ("DS", "1.50", "1.5", True),
        ("US", "512", "512", True),
    ],
)
def test_texts_uids_and_numbers(vr: str, key: str, value: str, expected: bool) -> None:
    assert matches(vr, key, value) is expected


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("doe^john", "DOE^John", True),
        ("Doe^John^^^", "Doe^John", True),
        ("Doe^John", "Doe^John^^^", True),
        ("Doe", "Doe^John", False),
        ("Doe*", "Doe^John", True),
        ("do?^j*n", "Doe^John", True),
        ("müller^*", "MÜLLER^Jürgen", True),
        ("mu\u0308ller^*", "Müller^Jürgen", True),  # decomposed
        ("山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("yamada^tarou", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("yamada*=山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("=山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("=Yamada*", "Yamada^Tarou=山田^太郎", False),
        ("==*", "Yamada^Tarou", True),
        ("=山*", "Yamada^Tarou", False),
    ],
)
def test_names_by_component_group_and_without_case(key: str, value: str, expected: bool) -> None:
    assert matches("PN", key, value) is expected


@pytest.mark.parametrize(
    ("vr", "key", "value", "expected"),
    [
        ("DA", "20240229", "20240229", True),
        ("DA", "20240229", "2024.02.29", True),  # ACR-NEMA
        ("DA", "20240101-20240131", "20240101", True),
        ("DA", "20240101-20240131", "20240131", True),
        ("DA", "20240101 - 20240131", "20240201", False),
        ("DA", "20240101-", "20231231", False),
        ("DA", "20240101-", "20991231", True),
        ("DA", "-20240101", "20240101", True),
        ("DA", "-20240101", "20240102", False),
        ("DA", "-20240101", "", False),
        ("DA", "20240101-", "unknown", False),
        ("DA", "2024*", "20240101", False),
        ("TM", "1011", "101159.5", True),  # to the precision of the key
        ("TM", "101159", "1011", False),
        ("TM", "10:11", "1011", True),
        ("TM", "101112.000000", "101112", True),
        ("TM", "10-11", "115959.999999", True),
        ("TM", "10-11", "12", False),
        ("TM", "1030-", "1029", False),
        ("TM", "-101112.5", "101112.6", False),
        ("DT", "2024", "20240229101112.5", True),
        ("DT", "20240229-20240301", "20240301235959", True),
        ("DT", "20240229-", "20240228", False),
        ("DT", "202402291200+0200", "20240229100030", True),  # the same moment, said in UTC
        ("DT", "20240229-0500", "20240229-0500", True),  # not a range up to the year 500
        ("DT", "2024022912-0500-2024022913-0500", "2024022917", True),
        ("DT", "202413291200+0200", "20240229", False),
    ],
)
def test_dates_and_times(vr: str, key: str, value: str, expected: bool) -> None:
    assert matches(vr, key, value) is expected


def reference(pattern: str, text: str) -> bool:
    """PS3.4 C.2.2.2.4 word for word."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(reference(pattern[1:], text[start:]) for start in range(len(text) + 1))
    return text != "" and pattern[0] in ("?", text[0]) and reference(pattern[1:], text[1:])


@given(key=st.text("ab*?.", min_size=1, max_size=8), value=st.text("ab.", max_size=8))
def test_wildcards_are_what_the_standard_says(key: str, value: str) -> None:
    assert matches("LO", key, value) is reference(key, value)


@given(vr=st.sampled_from(["LO", "PN", "DA", "TM", "DT", "IS", "DS", "UI", "AT"]), key=st.text(), value=st.text())
def test_no_key_and_no_value_raises(vr: str, key: str, value: str) -> None:
    assert matches(vr, key, value) in (True, False)


def test_a_key_of_many_asterisks_is_not_slow() -> None:
    began = time.monotonic()
    assert not matches("LT", "*a" * 2000 + "b", "a" * 10_000)
    assert time.monotonic() - began < 1


def test_a_literal_has_no_wildcards() -> None:
    assert is_literal("LO", "a")
    assert not is_literal("LO", "a*")
    assert not is_literal("LO", "a?")
    assert is_literal("DA", "a?")
    assert not is_literal("UI", "*")
    assert not is_literal("UI", "")
