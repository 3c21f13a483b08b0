"""A worker process: does one job after the other for the proxy that started it, until the connection to it is closed.

It reads what strangers have made with decoders written in C, and so has limits: on its memory, on the time for each
job, and a lower priority than the proxy.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from proxy.render.errors import EXTRA_NEEDED, NotPossibleError, RenderError
from proxy.render.jobs import MAX_JOB, MAX_RESULT, MEBIBYTE, RESULT_HEAD, Result

MEMORY: Final = 3 * 1024 * MEBIBYTE
"""Bytes of addresses: three times `MAX_INSTANCE`, and one gigabyte for libraries and threads."""

MAX_FILES: Final = 2
MAX_DEPTH: Final = 2000
"""Of Python's stack: pydicom reads 64 nested sequences with some 500 calls."""


def main(descriptor: int) -> None:
    """Serve the connection with that descriptor."""
    _limit()
    with socket.socket(fileno=descriptor) as connection, contextlib.suppress(ConnectionError):
        while (received := _receive(connection)) is not None:
            text, files = received
            try:
                _answer(connection, _do(text, files))
            finally:
                for file in files:
                    os.close(file)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the proxy, which ends its workers
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(MAX_DEPTH)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]] | None:
    """The next job and its files; None when there is none any more."""
    data, files, _, _ = socket.recv_fds(connection, MAX_JOB + 4, MAX_FILES)
    if not data:
        return None
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
        more = connection.recv(MAX_JOB)
        if not more:
            return None
        data += more
    return data[4:], files


def _do(text: bytes, files: Sequence[int]) -> Result:
    job = json.loads(text)
    signal.setitimer(signal.ITIMER_REAL, job["seconds"] + 1)  # ends the process, should the proxy not live to do so
    try:
        from proxy.render.work import JOBS  # noqa: PLC0415 - a library that is missing is an answer too

        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(_open(file, writing=number > 0)) for number, file in enumerate(files)]
            return JOBS[job["name"]](*opened, **job["arguments"])
    except RenderError as error:
        return Result({"error": type(error).__name__, "message": str(error)})
    except ImportError:
        return Result({"error": NotPossibleError.__name__, "message": EXTRA_NEEDED})
    except Exception as error:  # whatever decoders raise at what strangers have made
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        return Result({"error": "WorkerFailedError", "message": "the instance cannot be decoded", "where": where})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _open(file: int, *, writing: bool) -> BinaryIO:
    """The same file anew, so that its position is no other process's."""
    return Path(f"/proc/self/fd/{file}").open("r+b" if writing else "rb")


def _answer(connection: socket.socket, result: Result) -> None:
    if len(result.content) > MAX_RESULT:
        result = Result({"error": NotPossibleError.__name__, "message": "the result is too large"})
    text = json.dumps(dict(result.values)).encode()
    connection.sendall(RESULT_HEAD.pack(len(text), len(result.content)) + text)
    connection.sendall(result.content)


if __name__ == "__main__":
    main(int(sys.argv[1]))
