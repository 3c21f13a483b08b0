"""Finding the configuration file, and reading its text: what is in it is for `checking`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from proxy.config.checking import parse_config
from proxy.config.errors import ConfigError, show
from proxy.config.schema import Config
from proxy.config.security import INSTALL_DIR

FILE_NAMES: Final = ("config.json", "config.jsonc", "config/config.json", "config/config.jsonc")

MAX_FILE_BYTES: Final = 1024 * 1024
"""A real file has a few KiB; more is another file given by mistake, and the JSON5 reader is slow."""


def find_config(explicit: Path | None, *, cwd: Path, install_dir: Path = INSTALL_DIR) -> Path:
    """Find the configuration file.

    `explicit` is the path of the command line, relative to `cwd`; where it is given no other place is tried.
    Raises ConfigError that lists the places searched.
    """
    if explicit is not None:
        places = [cwd / explicit]
    else:
        places = list(dict.fromkeys(base / name for base in (cwd, install_dir) for name in FILE_NAMES))
    searched = []
    for place in places:
        try:
            if place.exists() and not place.is_dir():
                return place
            searched.append(str(place))
        except OSError as error:
            searched.append(f"{place} ({error.strerror})")
    path = None if explicit is None else places[0]
    raise ConfigError(path, reason="\n  ".join(["no configuration file found; searched:", *searched]))


def load_config(path: Path) -> Config:
    """Read a JSON, JSONC or JSON5 file in UTF-8 and check it.

    Raises ConfigError: for what cannot be read or is not JSON with a reason (line and column in the text),
    otherwise with every problem in the file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(path, reason=f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(path, reason=f"is larger than {MAX_FILE_BYTES} bytes, so not a configuration file")
    return parse_config(_parse_text(data, path), source=path)


class _ParsedObject(dict[str, object]):
    """An object of the file, which remembers the keys that were given more than once."""

    def __init__(self, pairs: Iterable[tuple[str, object]]) -> None:
        given = list(pairs)
        super().__init__(given)
        counts = Counter(key for key, _ in given)
        self.repeated = tuple(key for key, count in counts.items() if count > 1)


def _parse_text(data: bytes, path: Path) -> _ParsedObject:
    import json5  # noqa: PLC0415 - slow to import, and most callers of this module never read a file

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = _line_and_column(error.object[: error.start].decode())
        raise ConfigError(path, reason=f"is not UTF-8 text at {where}") from error
    if not text.strip():
        raise ConfigError(path, reason="is empty")
    try:
        value, problem, position = json5.parse(text, object_pairs_hook=_ParsedObject)
    except RecursionError:
        raise ConfigError(path, reason="has objects or lists nested too deeply") from None
    if problem is not None:
        where = _line_and_column(text[:position])
        hint = "look there and just before for a missing comma, quote or bracket"
        raise ConfigError(path, reason=f"is not JSON, JSONC or JSON5 near {where}: {hint}")
    if not isinstance(value, _ParsedObject):
        raise ConfigError(path, reason=f"must hold one object in braces {{ }}, not {show(value)}")
    return value


def _line_and_column(before: str) -> str:
    lines = before.split("\n")
    return f"line {len(lines)}, column {len(lines[-1]) + 1}"
