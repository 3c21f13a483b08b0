"""What a request is for, read off its path: the resource as a template, and whose data it is.

By the path and not by the route, so that it is the same in both modes, and for what is refused before any route.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from multidict import MultiMapping

from proxy.dataset.dictionary import keyword_of, tag_of
from proxy.dicomweb.uids import is_valid_uid

MAX_KEYS: Final = 32
"""Attributes of a search that a record names."""

MAX_VALUE: Final = 256
"""Characters of one of their values."""

MAX_VALUES: Final = 1024
"""Characters of all of their values together; a record, also as a DICOM message, has to stay small."""

MAX_DEPTH: Final = 8
"""Sequences above an attribute that are looked at."""

_FOLLOWED_BY: Final[Mapping[str, str]] = MappingProxyType(
    {"studies": "study", "series": "series", "instances": "instance", "frames": "frames"}
)
_ALONE: Final = frozenset({"metadata", "rendered", "thumbnail"})
_OWN: Final = frozenset({"/", "/ping", "/health", "/status", "/metrics", "/conformance", "/wado", "/dimse/echo"})
_WADO_UIDS: Final = (("studyUID", "study"), ("seriesUID", "series"), ("objectUID", "instance"))
_UIDS: Final = ("study", "series", "instance")


@dataclass(frozen=True, slots=True)
class Place:
    """A resource: `template` is empty where the path is none that is known. UIDs are empty where there are none."""

    template: str
    study: str = ""
    series: str = ""
    instance: str = ""


def place_of(path: str, query: MultiMapping[str]) -> Place:
    """Read a path, decoded, with the query of WADO-URI."""
    segments = [segment for segment in path.split("/") if segment]
    if f"/{'/'.join(segments)}" in _OWN:
        uids = {name: query.get(parameter, "") for parameter, name in _WADO_UIDS} if segments == ["wado"] else {}
        return _place(f"/{'/'.join(segments)}", uids)
    template: list[str] = []
    found: dict[str, str] = {}
    rest = iter(segments[1:] if segments[0] == "cache" else segments)
    for segment in rest:
        template.append(segment)
        if segment == "bulkdata":
            template.append("{path}")
            break
        if segment in _FOLLOWED_BY:
            value = next(rest, None)
            if value is None:
                break
            name = _FOLLOWED_BY[segment]
            template.append(f"{{{name}}}")
            found[name] = value
        elif segment not in _ALONE:
            return Place("")
    if segments[0] == "cache":
        template.insert(0, "cache")
    return _place(f"/{'/'.join(template)}", found)


def _place(template: str, found: Mapping[str, str]) -> Place:
    uids = {name: found[name] for name in _UIDS if name in found and is_valid_uid(found[name])}
    return Place(template, **uids)


def searched_for(query: MultiMapping[str]) -> dict[str, str]:
    """The attributes that a search asks for, by keyword where they have one; what else a query holds is left out."""
    searched: dict[str, str] = {}
    left = MAX_VALUES
    for key, value in query.items():
        if len(searched) == MAX_KEYS or left <= 0:
            break
        if name := _attribute(key):
            searched[name] = value[: min(MAX_VALUE, left)]
            left -= len(value)
    return searched


def _attribute(key: str) -> str:
    """The name of an attribute, such as `PatientID` for `00100020`, or a path of several; else nothing."""
    tags = [tag_of(part) for part in key.split(".")[:MAX_DEPTH]]
    return "" if None in tags else ".".join(keyword_of(tag) or f"{tag:08X}" for tag in tags if tag is not None)
