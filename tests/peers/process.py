"""Starting, watching and ending other programs. What any peer needs; of DICOM only the address."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

HOST = "127.0.0.1"
START_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0
POLL_INTERVAL = 0.02
LOG_TAIL = 6000

# Below Linux's range for outgoing connections: no client socket takes a port between its choice and its use.
_PORTS = range(20000, 32000)
_random = random.Random()
_given_ports: set[int] = set()
_running: list[Process] = []
_started: list[Process] = []


@dataclass(frozen=True, slots=True)
class Address:
    """Where an application entity listens: its AE title, TCP port and host."""

    aet: str
    port: int
    host: str = HOST


class PeerFailedError(RuntimeError):
    """A peer did not start, or an SCU did not end in time. The message carries its log."""


def free_port() -> int:
    """Return a loopback TCP port that nothing listens on, and that this function has not returned before."""
    for _ in range(1000):
        port = _random.choice(_PORTS)
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        _given_ports.add(port)
        return port
    raise PeerFailedError("no free port found")


def find_program(name: str) -> str | None:
    """Return the path of a program; also looks where daemons live, which users often lack in PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/local/bin")


def require(condition: object, reason: str) -> None:
    """Skip the test with a reason when the condition is false; fail instead where `REQUIRE_PEERS` is set.

    But not for a package that is named in the reason and in `MISSING_PEERS`: those could not be installed.
    """
    if condition:
        return
    missing = os.environ.get("MISSING_PEERS", "").split()
    if os.environ.get("REQUIRE_PEERS") and not any(f"(package {name})" in reason for name in missing):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def require_program(name: str, package: str) -> str:
    """Return the path of a program, or skip the test, naming the package that has it."""
    path = find_program(name)
    require(path, f"{name} is not installed (package {package})")
    assert path is not None
    return path


def answers(port: int, host: str = HOST) -> bool:
    """Tell whether something accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], timeout: float = START_TIMEOUT) -> bool:
    """Poll until the condition holds; return False when `timeout` seconds have passed without it."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL)
    return True


class Process:
    """One program in a process group of its own, with its output in a log file. A context manager.

    A group, because `dcmqrscp` forks: ending the group ends the children too.
    """

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, *, env: Mapping[str, str | None] | None = None
    ) -> None:
        """`env` is laid over this process's environment; a value of None removes the variable."""
        self.name = name
        self.command = list(command)
        self.folder = folder
        self.env = merged_environment(env)
        self.log_path = folder / f"{name}.log"
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self, ready: Callable[[], bool], timeout: float = START_TIMEOUT) -> None:
        """Start it and wait until it answers. Raises PeerFailedError, with the log, when it does not."""
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _running.append(self)
        _started.append(self)
        if not wait_until(lambda: not self.alive or ready(), timeout) or not self.alive:
            code = self._popen.poll()
            what = f"did not answer within {timeout:.0f} s" if code is None else f"ended with {code}"
            self.stop(kill=True)
            raise PeerFailedError(f"{self.name} {what}; its log:\n{self.log()}")

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group."""
        assert self._popen is not None, f"{self.name} was not started"
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group; SIGSTOP and SIGCONT make and end a silent peer."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def wait(self, timeout: float = STOP_TIMEOUT) -> int | None:
        """Return its exit code, or None when it has not ended within `timeout` seconds."""
        assert self._popen is not None
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, *, kill: bool = False) -> None:
        """End it by SIGTERM, and by SIGKILL after `STOP_TIMEOUT` or at once. Returns when it has ended."""
        if self not in _running:
            return
        _running.remove(self)
        if not kill:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            self.wait()
        # Also after a clean end: children of the group may have outlived the leader.
        self.signal(signal.SIGKILL)
        self.wait()

    def log(self, start: int = 0) -> str:
        """Return the end of what it has printed since byte `start` of its log."""
        if not self.log_path.exists():
            return ""
        return self.log_path.read_bytes()[start:][-LOG_TAIL:].decode(errors="replace")

    def log_size(self) -> int:
        """Return the number of bytes that it has printed so far."""
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended: exit code, and standard output and error in one text."""

    code: int
    output: str

    def succeeded(self) -> Self:
        """Return self; raises AssertionError with the output when the exit code is not 0."""
        assert self.code == 0, f"exit code {self.code}\n{self.output}"
        return self


def run_program(
    command: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
) -> Finished:
    """Run a program to its end. Raises PeerFailedError when it takes longer than `timeout` seconds."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=merged_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = (error.output or b"").decode(errors="replace")
        raise PeerFailedError(f"{command[0]} did not end within {timeout:.0f} s:\n{output}") from None
    return Finished(done.returncode, done.stdout.decode(errors="replace"))


def merged_environment(changes: Mapping[str, str | None] | None) -> dict[str, str]:
    """Return this process's environment with `changes` laid over it; None removes a variable."""
    env: dict[str, str | None] = {**os.environ, **(changes or {})}
    return {name: value for name, value in env.items() if value is not None}


def log_sizes() -> dict[Process, int]:
    """Return every peer started so far, also those that have ended, with the bytes that it has printed."""
    return {process: process.log_size() for process in _started}


def stop_all() -> None:
    """End every peer at once, without grace. The last resort at the end of a session."""
    for process in tuple(_running):
        process.stop(kill=True)


atexit.register(stop_all)
