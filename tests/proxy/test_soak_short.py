"""A short soak: mixed load in front of two archives, one of which fails. `python -m tests.soak` is the long one."""

from __future__ import annotations

from tests.soak.report import checks, text
from tests.soak.run import Settings, soak

SHORT = Settings(
    requests=300,
    clients=8,
    spacing=20,
    faults=("scripted archive is killed", "scripted archive resets all", "scripted archive breaks off"),
    longest_fault=0.5,
    until_idle=False,
)


def test_no_answer_is_wrong_and_nothing_is_left_over() -> None:
    """Every answer is whole and right to the byte, or fails visibly and only while an archive has a fault."""
    result = soak(SHORT)
    assert [row.what for row in checks(result) if row.ok is False] == [], text(result)
    assert result.trouble.faults, text(result)
