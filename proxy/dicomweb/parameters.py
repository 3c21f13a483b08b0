"""The query parameters of a search, read and checked (PS3.18 8.3.4 and 10.6.1.2).

What a client asks for becomes a `Query` here, and nothing that it asks for is dropped: an attribute that is
not known, or a value that its VR does not allow, is an error, since leaving it out would widen the search.
How an archive is asked lives elsewhere.

Values can be patient data. No message holds one; messages name the attribute.
"""

import datetime
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from proxy.dataset.dictionary import keyword_of, tag_of, vr_of
from proxy.dataset.levels import SERIES_KEYS, STUDY_KEYS
from proxy.dicomweb.attributes import RETURNED
from proxy.dicomweb.uids import is_valid_uid

MAX_PARAMETERS: Final = 200
"""Parameters in one search; viewers send about ten."""

MAX_NAME_LENGTH: Final = 512
"""Characters in a parameter's name: a path of eight of the longest keywords."""

MAX_PATH_DEPTH: Final = 8
"""Attributes in one path; no search goes deeper than two or three sequences."""

MAX_VALUE_LENGTH: Final = 4096
"""Characters in one parameter's value, half of what the HTTP server allows for a whole request line."""

MAX_LIST_LENGTH: Final = 0xFFFE
"""Characters of a list merged from several parameters: what one element of VR UI can hold (PS3.5 7.1.2)."""

MAX_MODALITIES: Final = 100
"""Values in a list of modalities, each a C-FIND of its own; PS3.3 C.7.3.1.1.1 defines about 80."""

MAX_INCLUDE_FIELDS: Final = 500
"""Attributes asked for with `includefield`; viewers ask for less than twenty."""

MAX_NUMBER: Final = 2**31 - 1
"""The greatest `limit` or `offset`."""

Path = tuple[int, ...]
"""Tags from the outermost sequence to the attribute itself; one tag for an attribute at the top."""

_PATIENT_NAME: Final = 0x00100010
_PATIENT_ID: Final = 0x00100020

# CS values cannot hold a comma or a backslash, so both split a list, as OHIF sends it.
_MODALITIES: Final = frozenset({0x00080060, 0x00080061})  # Modality, ModalitiesInStudy

# The proxy sets these itself, for the level and the encoding of the request that it makes of the query.
_SPECIFIC_CHARACTER_SET: Final = 0x00080005
_QUERY_RETRIEVE_LEVEL: Final = 0x00080052
_FIRST_DATA_SET_GROUP: Final = 0x0008

# Parameters for other parts of the proxy: media types (PS3.18 8.3.3) and the old program's `multipart=false`.
_ELSEWHERE: Final = frozenset({"accept", "charset", "multipart"})
CONTROLS: Final = (
    "emptyvaluematching",
    "fuzzymatching",
    "includefield",
    "limit",
    "multiplevaluematching",
    "offset",
)
"""The parameters of a search that are no attributes (PS3.18 8.3.4)."""

_EXTENDED_MATCHING: Final = ("fuzzymatching", "emptyvaluematching", "multiplevaluematching")

_UNSENDABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, broken UTF-8
_SPEAKABLE: Final = re.compile(r"[0-9A-Za-z._-]{1,128}")
_LIST_SEPARATOR: Final = re.compile(r"[,\\]")

# Text VRs: any value can be matched, with wildcards (PS3.4 C.2.2.2.4).
_TEXT_VRS: Final = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})

_TM: Final = r"(?:[01][0-9]|2[0-3])(?:[0-5][0-9](?:(?:[0-5][0-9]|60)(?:\.[0-9]{1,6})?)?)?"
_DAY: Final = r"(?:0[1-9]|[12][0-9]|3[01])"
_OFFSET: Final = r"[+-](?:0[0-9]|1[0-4])[0-5][0-9]"
_DATE: Final = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})")
_TIME: Final = re.compile(_TM)
_DATE_TIME: Final = re.compile(rf"[0-9]{{4}}(?:(?:0[1-9]|1[0-2])(?:{_DAY}(?:{_TM})?)?)?(?:{_OFFSET})?")
_MAX_RANGE_LENGTH: Final = 64  # two DT of 26 characters and the hyphen, rounded up
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_AGE: Final = re.compile(r"[0-9]{3}[DWMY]")
_TAG: Final = re.compile(r"[0-9A-Fa-f]{8}")


class BadParameter(ValueError):  # noqa: N818  # what the client gets to read as a 400
    """A query parameter that cannot be served. The message is fit for the client and holds no value.

    `name` is the parameter's name, or empty where it could not be repeated safely.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name if _SPEAKABLE.fullmatch(name) else ""


@dataclass(frozen=True, slots=True)
class Query:
    """What a search asks for (PS3.18 10.6.1.2).

    `matches` maps an attribute's path to the value to match, in the form of PS3.4 C.2.2.2: empty is universal
    matching, the items of a list are joined by a backslash. `include` are the further attributes to return,
    `include_all` asks for every one. `limit` is None for no limit. `extended` are the names of the parameters that ask
    for matching beyond that: of names that are alike, or as in PS3.4 C.2.2.2.7 and C.2.2.2.8.
    """

    matches: dict[Path, str] = field(default_factory=dict)
    include: tuple[Path, ...] = ()
    include_all: bool = False
    limit: int | None = None
    offset: int = 0
    extended: tuple[str, ...] = ()


def parse_query(parameters: Iterable[tuple[str, str]]) -> Query:
    """Read the parameters of a search, given as percent-decoded pairs in the order of the URL.

    A list of UIDs or modalities may be split by commas or backslashes, or given as several parameters; any
    other attribute given twice is an error.

    Raises:
        BadParameter: a name or a value that cannot be served, or more of them than the bounds allow.
    """
    pairs = list(parameters)
    if len(pairs) > MAX_PARAMETERS:
        raise BadParameter("", f"more than {MAX_PARAMETERS} query parameters")
    matches: dict[Path, str] = {}
    controls: dict[str, str] = {}
    include: list[str] = []
    for name, value in pairs:
        if name in _ELSEWHERE:
            continue
        _check_text(name, value)
        if name == "includefield":
            include += value.split(",")
        elif name in CONTROLS:
            if name in controls:
                raise BadParameter(name, f"{name} is given twice")
            controls[name] = value
        else:
            path = attribute_path(name)
            matches[path] = _match(name, path, value, matches.get(path))
    fields = [item for item in map(str.strip, include) if item]
    return Query(
        matches=matches,
        include=_include_paths(item for item in fields if item != "all"),
        include_all="all" in fields,
        limit=_number(controls, "limit"),
        offset=_number(controls, "offset") or 0,
        extended=tuple(name for name in _EXTENDED_MATCHING if _boolean(controls, name)),
    )


def append_wildcards(query: Query, *, enabled: bool, min_chars: int) -> Query:
    """Return `query` with `*` behind a PatientName and PatientID that have no wildcard.

    Args:
        enabled: the configuration's `qidoAppendWildcard`; False returns the query as it is.
        min_chars: the configuration's `qidoMinChars`; a shorter value is matched as it stands. An empty one
            always stays empty, for universal matching.
    """
    if not enabled:
        return query
    matches = dict(query.matches)
    for path in ((_PATIENT_NAME,), (_PATIENT_ID,)):
        value = matches.get(path, "")
        if value and len(value) >= min_chars and "*" not in value and "?" not in value:
            matches[path] = value + "*"
    return replace(query, matches=matches)


def attribute_path(name: str) -> Path:
    """Return the path that `name` stands for: keywords or tags of eight hexadecimal digits, joined by dots.

    Raises:
        BadParameter: an attribute that is not in the dictionary, or a path through what is no sequence.
    """
    parts = name.split(".") if len(name) <= MAX_NAME_LENGTH else []
    if not 1 <= len(parts) <= MAX_PATH_DEPTH:
        raise BadParameter(name, "the name of a query parameter is too long")
    path: list[int] = []
    for part in parts:
        if path and vr_of(path[-1]) != "SQ":
            raise BadParameter(name, f"{_spoken(path[-1])} is not a sequence, so nothing is in it")
        tag = tag_of(part) if part else None
        if tag is None or not _can_be_asked_for(tag):
            raise _unknown(name, part)
        path.append(tag)
    return tuple(path)


def _can_be_asked_for(tag: int) -> bool:
    """Say whether a data set can hold the attribute: a private one, or one of the dictionary.

    Command and file groups, group lengths and the Query/Retrieve Level are no attributes of an instance.
    """
    group, element = tag >> 16, tag & 0xFFFF
    if group < _FIRST_DATA_SET_GROUP or element == 0 or tag == _QUERY_RETRIEVE_LEVEL:
        return False
    return group % 2 == 1 or vr_of(tag) != "UN"


def _unknown(name: str, part: str) -> BadParameter:
    if _SPEAKABLE.fullmatch(part) is None:
        return BadParameter(name, "a query parameter's name is no keyword and no tag")
    names = _likely_names()
    near = difflib.get_close_matches(part.lower(), names, n=1, cutoff=0.75)
    hint = f"; did you mean {names[near[0]]}?" if near else ""
    return BadParameter(name, f"unknown attribute '{part}'{hint}")


@lru_cache(maxsize=1)
def _likely_names() -> Mapping[str, str]:
    """The names that clients search with, by the name in lower case; few, to keep the comparison cheap."""
    tags = STUDY_KEYS | SERIES_KEYS | {tag for table in RETURNED.values() for tag in table}
    names = [*map(_spoken, sorted(tags)), *CONTROLS]
    return {name.lower(): name for name in names}


def _spoken(tag: int) -> str:
    return keyword_of(tag) or f"{tag:08X}"


def _check_text(name: str, value: str) -> None:
    if len(value) > MAX_VALUE_LENGTH:
        raise BadParameter(name, f"a value of over {MAX_VALUE_LENGTH} characters")
    if _UNSENDABLE.search(value):
        raise BadParameter(name, "a value with a control character, or that is no UTF-8")


def _include_paths(names: Iterable[str]) -> tuple[Path, ...]:
    paths: dict[Path, None] = {}
    for name in names:
        paths.setdefault(attribute_path(name))
        if len(paths) > MAX_INCLUDE_FIELDS:
            raise BadParameter("includefield", f"includefield names over {MAX_INCLUDE_FIELDS} attributes")
    return tuple(paths)


def _number(controls: Mapping[str, str], name: str) -> int | None:
    text = controls.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_NUMBER):
        raise BadParameter(name, f"{name} is not a number from 0 to {MAX_NUMBER}")
    return int(text)


def _boolean(controls: Mapping[str, str], name: str) -> bool:
    # Programs in Python tend to send "True".
    text = controls.get(name, "false").lower()
    if text not in ("true", "false"):
        raise BadParameter(name, f"{name} is neither true nor false")
    return text == "true"


def _match(name: str, path: Path, value: str, before: str | None) -> str:
    """Return the value to match for the attribute at `path`, `before` being its value so far."""
    tag = path[-1]
    spoken = ".".join(map(_spoken, path))
    if vr_of(tag) == "UI" or tag in _MODALITIES:
        return _merged_list(name, spoken, tag, value, before or "")
    if before is not None:
        raise BadParameter(name, f"{spoken} is given twice")
    if not value:
        return ""
    if tag == _SPECIFIC_CHARACTER_SET:
        raise BadParameter(name, f"{spoken} cannot be matched, only returned")
    if "\\" in value:
        raise BadParameter(name, f"{spoken} takes one value, without a backslash")
    vr = vr_of(tag)
    if vr in _TEXT_VRS:
        return value
    if vr not in _CHECKS:
        raise BadParameter(name, f"{spoken} cannot be matched: its VR is {vr}")
    check, expected = _CHECKS[vr]
    if not check(value):
        raise BadParameter(name, f"{spoken} is not {expected}")
    return value


def _merged_list(name: str, spoken: str, tag: int, value: str, before: str) -> str:
    added = [item.strip(" ") for item in _LIST_SEPARATOR.split(value)] if value else []
    if tag in _MODALITIES:
        if not all(added):
            raise BadParameter(name, f"{spoken} has an empty item in its list")
    elif not all(map(is_valid_uid, added)):
        raise BadParameter(name, f"{spoken} is not a UID or a list of UIDs")
    items = dict.fromkeys([*(before.split("\\") if before else ()), *added])
    merged = "\\".join(items)
    if len(merged) > MAX_LIST_LENGTH or (tag in _MODALITIES and len(items) > MAX_MODALITIES):
        raise BadParameter(name, f"{spoken} has too many values")
    return merged


def _is_date(text: str) -> bool:
    form = _DATE.fullmatch(text)
    if form is None:
        return False
    try:
        datetime.date(int(form[1]), int(form[2]), int(form[3]))
    except ValueError:
        return False
    return True


def _is_time(text: str) -> bool:
    return _TIME.fullmatch(text) is not None


def _is_date_time(text: str) -> bool:
    return _DATE_TIME.fullmatch(text) is not None


def _range_of(check: Callable[[str], bool]) -> Callable[[str], bool]:
    """Return a check for one value or a range `a-b`, `a-`, `-b` (PS3.4 C.2.2.2.5).

    Each hyphen is tried, since the offset from UTC in a DT can hold another.
    """

    def is_value_or_range(text: str) -> bool:
        if len(text) > _MAX_RANGE_LENGTH:
            return False
        halves = [(text[:at], text[at + 1 :]) for at, character in enumerate(text) if character == "-"]
        return check(text) or any(
            (start or end) and (not start or check(start)) and (not end or check(end)) for start, end in halves
        )

    return is_value_or_range


def _integer_within(least: int, greatest: int) -> Callable[[str], bool]:
    return lambda text: _INTEGER.fullmatch(text) is not None and least <= int(text) <= greatest


def _decimal_within(characters: int) -> Callable[[str], bool]:
    return lambda text: len(text) <= characters and _DECIMAL.fullmatch(text) is not None


# How a value of each other VR is checked, and what to call what is expected (PS3.5 6.2, PS3.4 C.2.2.2).
_CHECKS: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "AS": (lambda text: _AGE.fullmatch(text) is not None, "an age such as 042Y"),
    "AT": (lambda text: _TAG.fullmatch(text) is not None, "a tag of eight hexadecimal digits"),
    "DA": (_range_of(_is_date), "a date YYYYMMDD, or a range of dates"),
    "DS": (_decimal_within(16), "a number of at most 16 characters"),
    "DT": (_range_of(_is_date_time), "a time YYYYMMDDHHMMSS.FFFFFF&ZZXX, or a range of such"),
    "FD": (_decimal_within(32), "a number"),
    "FL": (_decimal_within(32), "a number"),
    "IS": (_integer_within(-(2**31), 2**31 - 1), "a whole number"),
    "SL": (_integer_within(-(2**31), 2**31 - 1), "a whole number"),
    "SS": (_integer_within(-(2**15), 2**15 - 1), "a whole number of 16 bits"),
    "SV": (_integer_within(-(2**63), 2**63 - 1), "a whole number"),
    "TM": (_range_of(_is_time), "a time HHMMSS.FFFFFF, or a range of times"),
    "UL": (_integer_within(0, 2**32 - 1), "a whole number from 0"),
    "US": (_integer_within(0, 2**16 - 1), "a whole number from 0 to 65535"),
    "UV": (_integer_within(0, 2**64 - 1), "a whole number from 0"),
}
