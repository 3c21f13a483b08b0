"""Programs from npm, fetched once and kept: the tests that need them are skipped where they cannot be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

FETCH_SECONDS = 60


def packages() -> Path:
    """The folder where they are kept between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dicomweb-proxy-tests"


def package(name: str, version: str) -> Path:
    """Return the folder of a published package, or skip the test."""
    folder = packages() / f"{name.replace('/', '+')}-{version}"
    if not folder.exists():
        _fetch(f"{name}@{version}", folder)
    return folder


def _fetch(wanted: str, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed (package npm)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        try:
            subprocess.run(
                [npm, "pack", "--silent", "--fetch-retries=0", wanted],
                cwd=name,
                check=True,
                capture_output=True,
                timeout=FETCH_SECONDS,
            )
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"npm does not give {wanted}: {error}")
        (archive,) = Path(name).glob("*.tgz")
        with tarfile.open(archive) as content:
            content.extractall(name, filter="data")
        (Path(name) / "package").rename(folder)
