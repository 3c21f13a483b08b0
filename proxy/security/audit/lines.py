"""Appending lines to a file, or to standard error, by a thread of its own: a slow disk holds up no request.

Each line is one write in append mode. The file may be moved away at any time (logrotate): it is made anew then. What
cannot be written waits, in order, within a bound; what is over is counted, and the count is in the next line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Protocol

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 10_000
"""Lines that wait to be written: some seconds of the busiest proxy, and about 20 MB."""

RETRY_SECONDS: Final = 1.0
"""How long after a failed write the next one is tried."""

LOOK_SECONDS: Final = 0.1
"""How often the thread looks whether the file was moved away."""

GATHER_SECONDS: Final = 0.02
"""How long the thread rests when it has written all there is: to wake it for each line costs more than the line."""

STOP_SECONDS: Final = 1.0
"""How long the last lines have to be written at the end."""


class Entry(Protocol):
    """What makes a line. That is done by the thread, many at a time: it is faster there than between two requests."""

    def line(self) -> bytes:
        """The line, with its end."""


class Target(Protocol):
    """Where lines go. Used by the thread alone."""

    name: str

    def open(self) -> int:
        """Open it for appending; returns the descriptor. Raises OSError."""

    def has_moved(self, descriptor: int) -> bool:
        """Tell whether what is open is not what it should be any more."""


class FileTarget:
    """A file for its owner alone, in a folder of the same kind; where they exist, they stay as they are."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def open(self) -> int:
        """See `Target`."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _end_line(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def has_moved(self, descriptor: int) -> bool:
        """See `Target`."""
        try:
            there = self._path.stat()
        except OSError:
            return True
        return not os.path.samestat(there, os.fstat(descriptor))


def _end_line(descriptor: int) -> None:
    """End what a process that was killed has left of a line."""
    about = os.fstat(descriptor)
    if stat.S_ISREG(about.st_mode) and about.st_size and os.pread(descriptor, 1, about.st_size - 1) != b"\n":
        os.write(descriptor, b"\n")


class ErrorTarget:
    """Standard error, where the journal takes it."""

    name = "standard error"

    def open(self) -> int:
        """See `Target`."""
        return os.dup(2)

    def has_moved(self, descriptor: int) -> bool:
        """See `Target`."""
        return False


class _Order(Enum):
    REOPEN = auto()
    STOP = auto()


class LineWriter:
    """Writes lines in the order in which they are put. Everything but the thread is for the event loop's thread.

    `loss` makes an entry of how many were lost.
    """

    def __init__(self, target: Target, loss: Callable[[int], Entry]) -> None:
        self._target = target
        self._loss = loss
        self._queue: SimpleQueue[Entry | _Order] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)  # a disk that hangs ends nothing
        self._lost = 0
        self._stopping = threading.Event()
        self._given_up = threading.Event()
        self._descriptor = -1
        self._looked = 0.0
        self._failure = ""

    @property
    def fails(self) -> bool:
        """True while lines cannot be written, and when as many wait as may."""
        return bool(self._failure) or self._queue.qsize() >= MAX_WAITING

    def start(self) -> None:
        """Begin. A target that cannot be opened is tried again and again, as one that cannot be written to."""
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Have a line written. Returns at once."""
        if self._queue.qsize() >= MAX_WAITING:
            if not self._lost:
                logger.error("audit lines for %s are lost: %d wait already", self._target.name, MAX_WAITING)
            self._lost += 1
            return
        self._tell_of_loss()
        self._queue.put(entry)

    def reopen(self) -> None:
        """Open the target anew, before the next line."""
        self._queue.put(_Order.REOPEN)

    async def stop(self) -> None:
        """Write what waits, for `STOP_SECONDS` at most, and end the thread."""
        self._tell_of_loss()
        self._queue.put(_Order.STOP)
        self._stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        if self._thread.is_alive():
            self._given_up.set()
            logger.error("%d audit lines for %s were not written", self._queue.qsize(), self._target.name)

    def _tell_of_loss(self) -> None:
        if self._lost:
            logger.error("%d audit lines for %s were lost", self._lost, self._target.name)
            self._queue.put(self._loss(self._lost))
            self._lost = 0

    # --- in the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (what := self._queue.get()) is not _Order.STOP and not self._given_up.is_set():
            if isinstance(what, _Order):
                self._reopen()
            else:
                self._write(what.line())
            if self._queue.empty():
                self._stopping.wait(GATHER_SECONDS)
        self._close()

    def _reopen(self) -> None:
        self._close()
        with contextlib.suppress(OSError):  # the next line says so
            self._is_new()

    def _write(self, line: bytes) -> None:
        """Write a line, however long it takes, unless that is given up."""
        rest = line
        while rest:
            try:
                if self._is_new():
                    rest = line  # its beginning, if any, is in the file that was moved away
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                self._fail(error)
                if self._given_up.wait(RETRY_SECONDS):
                    return
        if self._failure:
            logger.warning("audit lines are written to %s again", self._target.name)
            self._failure = ""

    def _is_new(self) -> bool:
        """See to it that the target is open; True when it is now another than before."""
        now = time.monotonic()
        if self._descriptor >= 0 and now - self._looked > LOOK_SECONDS:
            self._looked = now
            if self._target.has_moved(self._descriptor):
                self._close()
        if self._descriptor >= 0:
            return False
        self._descriptor = self._target.open()
        self._looked = now
        return True

    def _fail(self, error: OSError) -> None:
        if not self._failure:
            self._failure = error.strerror or str(error)
            logger.error(
                "audit lines cannot be written to %s (%s); up to %d wait", self._target.name, self._failure, MAX_WAITING
            )

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
