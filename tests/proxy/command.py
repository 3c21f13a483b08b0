"""The proxy as a program of its own: run to its end, or in the background until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import aiohttp

from tests.peers.process import HOST, Process, merged_environment

END_TIMEOUT = 30.0
LISTENS = re.compile(r"HTTP: listens on \S+ port (\d+)")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


async def command(*arguments: str, cwd: Path, module: bool = True) -> Ended:
    """Run `python -m proxy` (or else a program) to its end."""
    line = [sys.executable, "-m", "proxy", *arguments] if module else list(arguments)
    done = await asyncio.to_thread(
        subprocess.run, line, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=END_TIMEOUT
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def environment(*, uvloop: bool = True, folder: Path | None = None) -> dict[str, str]:
    """Return the environment; without `uvloop`, one in which it cannot be imported, by a module in `folder`."""
    changes: dict[str, str | None] = {"PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1"}
    if not uvloop:
        assert folder is not None
        (folder / "hidden").mkdir(exist_ok=True)
        (folder / "hidden/uvloop.py").write_text("raise ImportError('not installed')\n")
        changes["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder / "hidden"), os.environ.get("PYTHONPATH")]))
    return merged_environment(changes)


@dataclass(frozen=True, slots=True)
class Program:
    """The program in the background. `url` is where it answers."""

    process: Process
    url: str

    @property
    def port(self) -> int:
        """The HTTP port."""
        return int(self.url.rpartition(":")[2])

    def log(self) -> str:
        """Return all that it has printed."""
        return self.process.log_path.read_text()

    async def end(self, *signals: Signals, within: float) -> float:
        """Send signals, a moment apart; asserts exit code 0 in time. Returns the seconds it took."""
        started = time.monotonic()
        for number in signals:
            self.process.signal(number)
            await asyncio.sleep(0.1)
        code = await asyncio.to_thread(self.process.wait, within + 3)
        took = time.monotonic() - started
        assert code == 0, f"exit code {code}\n{self.log()}"
        assert took < within, f"took {took:.1f} s\n{self.log()}"
        return took


@contextlib.asynccontextmanager
async def program(
    *arguments: str, folder: Path, says: re.Pattern[str] = LISTENS, uvloop: bool = True
) -> AsyncIterator[Program]:
    """Run `python -m proxy` in `folder` until the block ends; `says` is what it prints with its HTTP port."""
    line = [sys.executable, "-m", "proxy", *arguments]
    process = Process("proxy", line, folder, env=environment(uvloop=uvloop, folder=folder))
    try:
        await asyncio.to_thread(process.start, lambda: says.search(process.log()) is not None)
        match = says.search(process.log())
        assert match is not None
        yield Program(process, f"http://{HOST}:{match[1]}")
    finally:
        await asyncio.to_thread(process.stop)


def write_config(folder: Path, settings: Mapping[str, object], name: str = "config.json") -> Path:
    """Write a configuration file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))
    return path


async def get(url: str) -> tuple[int, bytes]:
    """GET; returns the status and the body."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.read()
