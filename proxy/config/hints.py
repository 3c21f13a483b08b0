"""What a file holds without effect: keys that nobody knows, keys given twice, and keys that are still to come."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, get_origin

from pydantic import BaseModel

from proxy.config.errors import MISSING, ConfigProblem, show
from proxy.config.keys import dig, fields, model_below
from proxy.config.schema import Config


@dataclass(frozen=True, slots=True)
class NotYet:
    """A key that the file may hold and this version does not honour, so that the proxy must not start with it.

    It counts when the file gives `value`, or any value where that is None. `instead` is what the key must be.
    """

    key: str
    value: object
    instead: str


NOT_YET: Final = (
    # Not a warning, or a site whose DICOM was encrypted would go on in clear text.
    NotYet(
        "dimseProxySettings.proxyServer.securityOptions",
        None,
        "left out: DICOM TLS is set by proxyServer.tls (port, certFile, keyFile, caFile) for what archives send, and "
        "by tls of each peer (caFile, certFile, keyFile) for what they are asked",
    ),
)
"""The one place that knows what is still to come: a line goes when its key starts to work."""


def _is_given(raw: Mapping[str, object], entry: NotYet) -> bool:
    value = dig(raw, entry.key)
    return value is not MISSING and (entry.value is None or value == entry.value)


def unsupported(raw: Mapping[str, object]) -> Iterator[ConfigProblem]:
    """What a file asks for that this version does not have."""
    for entry in NOT_YET:
        if _is_given(raw, entry):
            yield ConfigProblem(entry.key, dig(raw, entry.key), entry.instead)


def ignored_keys(raw: Mapping[str, object], model: type[BaseModel], path: str) -> Iterator[str]:
    """Name the keys of `raw` and the objects below it that are unknown to the schema or given twice."""
    known = fields(model)
    for key in getattr(raw, "repeated", ()):
        yield f"{path}{_key_text(key)}: given more than once, only the last counts"
    for key, value in raw.items():
        here = path + _key_text(key)
        if key not in known:
            yield f"{here}: unknown key, ignored{_suggestion(key, model)}"
            continue
        below = model_below(known[key].annotation)
        places = {here: value}
        if isinstance(value, (list, tuple)):
            places = {f"{here}[{index}]": item for index, item in enumerate(value)}
        for place, item in places.items():
            if below is not None and isinstance(item, Mapping):
                yield from ignored_keys(item, below, f"{place}.")


def _key_text(key: str) -> str:
    # Any text can be a key in quotes; line breaks and the like must not reach a log as they are.
    return key if re.fullmatch(r"[\w$-]{1,64}", key) else show(key)


def _suggestion(key: str, model: type[BaseModel]) -> str:
    """Name the nearest key of the same object, or else a key with nearly this name elsewhere in the file."""
    here = {name.lower(): name for name in fields(model)}
    elsewhere: dict[str, str] = {}
    for path in sorted(_all_keys(Config, ""), key=lambda path: path.count(".")):
        where = path if "." in path else f"{path} at the top of the file"
        elsewhere.setdefault(path.rpartition(".")[2].lower(), where)
    for known, cutoff in ((here, 0.6), (elsewhere, 0.8)):
        for match in difflib.get_close_matches(key.lower(), known, n=1, cutoff=cutoff):
            return f"; did you mean {known[match]}?"
    return ""


def _all_keys(model: type[BaseModel], path: str) -> Iterator[str]:
    for key, field in fields(model).items():
        yield path + key
        below = model_below(field.annotation)
        if below is not None:
            many = "[]" if get_origin(field.annotation) is tuple else ""
            yield from _all_keys(below, f"{path}{key}{many}.")
