"""Which files of instances this process has open."""

from __future__ import annotations

import contextlib
from pathlib import Path

SUFFIXES = (".dcm", ".link", ".part")


def open_below(folder: Path) -> list[Path]:
    """Return the files of the cache and the spool below `folder` that are open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = descriptor.readlink()
            if target.is_relative_to(folder) and target.suffix in SUFFIXES:
                found.append(target)
    return found
