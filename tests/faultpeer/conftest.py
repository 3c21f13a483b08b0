"""Fixtures of the scripted archive's own tests."""

from __future__ import annotations

from tests.dul.conftest import nothing_left  # noqa: F401 - a fixture
