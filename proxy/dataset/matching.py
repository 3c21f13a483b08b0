"""Matching of one value with a key (PS3.4 C.2.2.2), on decoded text.

What may live here: from the values of a key to a test of one value, for each value representation. Nothing here
knows of data sets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from unicodedata import normalize

from proxy.dataset.values import NUMBERS

Test = Callable[[str], bool]

WILDCARD_VRS: Final = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
"""PS3.4 C.2.2.2.4."""

_NUMERIC: Final = frozenset({"DS", "IS", *NUMBERS})

# The digits of a moment, its fraction and its offset from UTC; dots and colons are of ACR-NEMA 2.0 (PS3.5 Table 6.2-1).
_DATE: Final = r"(\d{4}\.?\d\d\.?\d\d)()()"
_TIME: Final = r"(\d\d(?::?\d\d(?::?\d\d)?)?)(?:\.(\d{1,6}))?()"
_DATE_TIME: Final = r"(\d{4}(?:\d\d){0,5})(?:\.(\d{1,6}))?([+-]\d{4})?"
_MOMENTS: Final = {vr: re.compile(form) for vr, form in (("DA", _DATE), ("TM", _TIME), ("DT", _DATE_TIME))}
_RANGES: Final = {vr: re.compile(rf"({form.pattern})?\s*-\s*({form.pattern})?") for vr, form in _MOMENTS.items()}
_DIGITS: Final = 20
"""Digits of YYYYMMDDHHMMSSFFFFFF, the longest moment."""


def value_test(vr: str, wanted: Sequence[str]) -> Test | None:
    """The test that a value must pass for a key with these values; None for universal matching (PS3.4 C.2.2.2.3).

    Several values are alternatives, not only for UIDs (PS3.4 C.2.2.2.2). An asterisk alone is universal matching
    whatever the VR, as it is so often meant.
    """
    if vr == "UI":
        uids = frozenset(wanted) - {""}
        return None if not uids or "*" in uids else uids.__contains__
    tests = [_single_test(vr, one) for one in wanted if one]
    if not tests or any(one.strip("*") == "" for one in wanted if one):
        return None
    return tests[0] if len(tests) == 1 else lambda value: any(test(value) for test in tests)


def is_literal(vr: str, wanted: str) -> bool:
    """True when the key matches just this value, letter by letter."""
    return wanted != "" and "*" not in wanted and not (vr in WILDCARD_VRS and "?" in wanted)


def _single_test(vr: str, wanted: str) -> Test:
    if vr in _MOMENTS:
        return _moment_test(vr, wanted)
    if vr in _NUMERIC:
        return _number_test(wanted)
    if vr == "PN":
        return _name_test(wanted)
    return _text_test(vr, wanted)


def _text_test(vr: str, wanted: str) -> Test:
    if is_literal(vr, wanted) or vr not in WILDCARD_VRS:
        return wanted.__eq__
    pattern = _wildcard_pattern(wanted)
    return lambda value: pattern.fullmatch(value) is not None


def _wildcard_pattern(wanted: str) -> re.Pattern[str]:
    """PS3.4 C.2.2.2.4. Each asterisk but the last takes as little as it can and never more, so that no key, however
    many it has, costs more than one look at each character for each of them."""
    first, *others = (re.escape(part).replace(r"\?", ".") for part in re.split(r"\*+", wanted))
    if others:
        *middle, last = others
        first += "".join(f"(?>.*?{part})" for part in middle) + f".*{last}"
    return re.compile(first, re.DOTALL)


# --- names ---------------------------------------------------------------------------------------------------


def _name_groups(name: str) -> list[str]:
    """The component groups of a name (PS3.5 6.2.1), without what does not matter: case, and empty components at the
    end (PS3.4 C.2.2.2.1)."""
    if not name.isascii():
        name = normalize("NFC", name)
    return [group.strip(" ").rstrip("^ ") for group in name.casefold().split("=")]


def _name_test(wanted: str) -> Test:
    """A key of one component group is looked for in each group; one of several, group by group."""
    tests = [_text_test("PN", group) if group else None for group in _name_groups(wanted)]

    def test(value: str) -> bool:
        groups = _name_groups(value)
        if len(tests) == 1:
            return tests[0] is None or any(map(tests[0], groups))
        padded = groups + [""] * (len(tests) - len(groups))
        return all(one is None or one(group) for one, group in zip(tests, padded, strict=False))

    return test


# --- numbers, dates and times --------------------------------------------------------------------------------


def _number_test(wanted: str) -> Test:
    number = _number(wanted)
    return wanted.__eq__ if number is None else lambda value: _number(value) == number


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _moment_test(vr: str, wanted: str) -> Test:
    """Single value matching to the precision of the key, and range matching (PS3.4 C.2.2.2.5), both ends included."""
    single = _moment(vr, wanted)
    # A hyphen before four digits may be an offset from UTC, and is, where the whole is one DT.
    if single is not None:
        return lambda value: _precise(vr, value)[: len(single)] == single
    span = _RANGES[vr].fullmatch(wanted)
    if span is None:
        return wanted.__eq__
    low = _moment(vr, span[1] or "") or ""
    high = _moment(vr, span[5] or "") or ""

    def test(value: str) -> bool:
        precise = _precise(vr, value)
        return precise != "" and precise >= low and precise[: len(high)] <= high

    return test


def _precise(vr: str, value: str) -> str:
    moment = _moment(vr, value)
    return "" if moment is None else moment.ljust(_DIGITS, "0")


def _moment(vr: str, text: str) -> str | None:
    """The digits of a moment, as many as there are; None for what is none. A DT with an offset becomes UTC."""
    form = _MOMENTS[vr].fullmatch(text)
    if form is None:
        return None
    digits = form[1].replace(".", "").replace(":", "")
    if form[3] and len(digits) >= 10:
        try:
            local = datetime.strptime(digits[:12].ljust(12, "0"), "%Y%m%d%H%M").replace(tzinfo=UTC)
            sign = -1 if form[3][0] == "-" else 1
            utc = local - sign * timedelta(hours=int(form[3][1:3]), minutes=int(form[3][3:]))
        except (ValueError, OverflowError):
            return None
        digits = f"{utc.year:04d}{utc:%m%d%H%M}{digits[12:]}"
    return digits + (form[2] or "")
