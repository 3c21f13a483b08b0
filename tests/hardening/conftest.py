"""Fixtures of these tests: a folder of one's own, and both ways to retrieve."""

from tests.proxy.conftest import _own_folder, use_cget  # noqa: F401 - fixtures
