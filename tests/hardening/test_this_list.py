"""The list of attacks and limits in this folder's README is true as far as the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", (HERE / "README.md").read_text())))


def test_the_list_names_tests() -> None:
    assert len(NAMED) > 40


@pytest.mark.parametrize("named", NAMED)
def test_what_it_names_is_there(named: str) -> None:
    file, _, function = named.partition("::")
    text = (ROOT / file).read_text()
    assert f"def {function}(" in text if function else "def test_" in text
