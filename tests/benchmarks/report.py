"""What the benchmarks found: rows, the table that is printed, and the same as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HEADINGS = ("what", "measured", "reference", "ratio", "bar", "ok")


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement beside what it is held against. `ok` is None where there is no bar."""

    what: str
    measured: float
    unit: str
    reference: float | None = None
    bar: str = ""
    ok: bool | None = None

    @property
    def ratio(self) -> float | None:
        """Measured divided by the reference."""
        return self.measured / self.reference if self.reference else None

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the columns."""
        return (
            self.what,
            f"{number(self.measured)} {self.unit}".rstrip(),
            "" if self.reference is None else f"{number(self.reference)} {self.unit}",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            self.bar,
            {True: "yes", False: "NO", None: ""}[self.ok],
        )


def number(value: float) -> str:
    """Return a number with three significant digits or so; a count as it is."""
    if isinstance(value, int):
        return str(value)
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def at_most(what: str, measured: float, unit: str, limit: float) -> Row:
    """Hold a measurement against a limit of the same unit."""
    return Row(what, measured, unit, bar=f"≤ {limit:g} {unit}", ok=measured <= limit)


def at_least(what: str, measured: float, unit: str, limit: float) -> Row:
    """Hold a measurement against a minimum of the same unit."""
    return Row(what, measured, unit, bar=f"≥ {limit:g} {unit}", ok=measured >= limit)


def times(what: str, measured: float, unit: str, reference: float, limit: float) -> Row:
    """Hold a measurement against a multiple of a reference that was measured in the same run."""
    return Row(what, measured, unit, reference, f"≤ {limit:g} ×", measured <= limit * reference)


def share(what: str, measured: float, unit: str, reference: float, minimum: float) -> Row:
    """Hold a measurement against the share of a reference, measured in the same run, that it has to reach."""
    return Row(what, measured, unit, reference, f"≥ {minimum:g} ×", measured >= minimum * reference)


def exactly(what: str, counts: Sequence[int], wanted: int) -> Row:
    """Hold each of some counts against the one that is wanted; shows the one that is farthest from it."""
    worst = max(counts, key=lambda count: abs(count - wanted))
    return Row(what, worst, "", bar=f"= {wanted}", ok=worst == wanted)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table of plain text."""
    return aligned([HEADINGS, *(row.cells() for row in rows)])


def aligned(lines: Sequence[tuple[str, ...]]) -> str:
    """Return lines of cells as columns of plain text; the first line is the headings."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    texts.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text.rstrip() for text in texts)


def write_json(path: Path, rows: Sequence[Row], server: str) -> None:
    """Write the rows, and what they were measured on, to a file."""
    content = {
        "server": server,
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
