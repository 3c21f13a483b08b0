"""What is wrong with a configuration, in words that an administrator can act on.

Here live the problem of one key and the exception that carries them all; no rule about any key.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_SHOWN: Final = 80
"""Characters of a value that a message repeats: enough to find it in the file, and never a flood."""

_PASSWORD = re.compile(r":.*@", re.DOTALL)


class Missing(enum.Enum):
    """In the place of a value that there is not, or that nobody may see; None is taken, since `null` is a value."""

    MISSING = enum.auto()
    HIDDEN = enum.auto()


MISSING: Final = Missing.MISSING

HIDDEN: Final = Missing.HIDDEN
"""In the place of a value that may be a secret, such as a password where its hash should be."""


def show(value: object) -> str:
    """Write a value as the file has it, short and harmless for a terminal and a journal.

    Objects and lists are only named: they may be long, and hold what nobody asked to see.
    """
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, str):
        # A refused URL may hold a user and a password, which must not reach the journal.
        text = _PASSWORD.sub(":…@", value)
        short = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
        return json.dumps(short, ensure_ascii=not short.isprintable())
    if isinstance(value, int) and value.bit_length() > 64:
        return "a very large number"
    if value is None or isinstance(value, (int, float)):
        return json.dumps(value)
    return f"a value of type {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One key that cannot be used as it stands.

    `key` is its dotted path ("dimseProxySettings.peers[0].port"), `value` what the file holds (`MISSING` where it
    holds nothing), and `allowed` what it must be, in words that follow "must be".
    """

    key: str
    value: object
    allowed: str

    def __str__(self) -> str:
        if self.value is MISSING:
            return f"{self.key}: required key is missing; must be {self.allowed}"
        shown = "this value" if self.value is HIDDEN else show(self.value)
        return f"{self.key}: {shown} is not allowed; must be {self.allowed}"


class ConfigError(Exception):
    """No usable configuration.

    `reason` is set when there is no configuration to speak of (no file, unreadable, not JSON); otherwise
    `problems` holds every problem of the file. `warnings` are those that the file would also have given: a
    misspelt key explains a missing one. `path` is None when the configuration did not come from a file.
    """

    def __init__(
        self,
        path: Path | None,
        problems: Iterable[ConfigProblem] = (),
        *,
        reason: str = "",
        warnings: Iterable[str] = (),
    ) -> None:
        self.path = path
        self.problems = tuple(problems)
        self.reason = reason
        self.warnings = tuple(warnings)
        super().__init__(path, self.problems, reason, self.warnings)

    def __str__(self) -> str:
        """The reason or every problem, one a line, then the warnings."""
        where = "configuration" if self.path is None else str(self.path)
        if self.reason:
            return f"{where}: {self.reason}"
        count = len(self.problems)
        lines = [f"{where}: {count} problem{'' if count == 1 else 's'}"]
        lines += [f"  {problem}" for problem in self.problems]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)
