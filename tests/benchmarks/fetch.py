"""Clients for images: many at once, each on a connection that it keeps open.

The bytes of a body are discarded in the kernel (Linux's MSG_TRUNC, see tcp(7)) and not copied, so that eight clients
leave the processors to the server. The framing is followed to its end all the same: what is cut short is noticed.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from tests.benchmarks.client import BUFFER, DICOM, BenchmarkError, Target

HEAD_BUFFER = 4096
SLOW_RECEIVE_BUFFER = 64 * 1024
JOIN_TIMEOUT = 10.0
# What is discarded is never written into it, so that all threads can share it.
_discarded = bytearray(BUFFER)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What several clients got together: seconds from the first request to the last byte, and bytes of each body."""

    seconds: float
    sizes: list[int]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.sizes) / self.seconds


class Fetcher:
    """A client with one connection that it keeps open. A context manager."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._socket = target.connect()
        self._unread = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def get(self, path: str, accept: str = DICOM) -> int:
        """Return the size of the body. Raises BenchmarkError unless it is a whole 200."""
        self._socket.sendall(self._target.request(path, accept))
        head = self._until(b"\r\n\r\n").lower()
        if not head.startswith(b"http/1.1 200"):
            raise BenchmarkError(f"{path}: {head.splitlines()[0].decode(errors='replace')}")
        if b"transfer-encoding: chunked" in head:
            return self._skip_chunks()
        if b"content-length:" not in head:
            return self._skip_to_end()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        self._skip(length)
        return length

    def _skip_chunks(self) -> int:
        size = 0
        while count := int(self._until(b"\r\n").split(b";")[0], 16):
            self._skip(count)
            if self._until(b"\r\n"):
                raise BenchmarkError("a chunk is longer than it says")
            size += count
        self._until(b"\r\n")
        return size

    def _skip_to_end(self) -> int:
        """Take a body that ends with its connection, as Orthanc's plugin sends it; the next request has a new one."""
        size = len(self._unread)
        while discarded := self._socket.recv_into(_discarded, BUFFER, socket.MSG_TRUNC):
            size += discarded
        self._unread.clear()
        self._socket.close()
        self._socket = self._target.connect()
        return size

    def _until(self, end: bytes) -> bytes:
        """Return the bytes before `end`, and take both."""
        while (position := self._unread.find(end)) < 0:
            received = self._socket.recv(HEAD_BUFFER)
            if not received:
                raise BenchmarkError("the server closed the connection")
            self._unread += received
        taken = bytes(self._unread[:position])
        del self._unread[: position + len(end)]
        return taken

    def _skip(self, count: int) -> None:
        """Take bytes that nobody looks at."""
        count -= (known := min(count, len(self._unread)))
        del self._unread[:known]
        while count:
            discarded = self._socket.recv_into(_discarded, min(count, BUFFER), socket.MSG_TRUNC)
            if not discarded:
                raise BenchmarkError("the answer was cut short")
            count -= discarded


def fetch(target: Target, paths: Sequence[str], *, clients: int = 1, accept: str = DICOM) -> Fetched:
    """Get each path once: every client takes the next as soon as it is free. The connections are opened before."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for path in paths:
        waiting.put(path)

    def work(client: Fetcher) -> list[int]:
        sizes = []
        with contextlib.suppress(queue.Empty):
            while True:
                sizes.append(client.get(waiting.get_nowait(), accept))
        return sizes

    with contextlib.ExitStack() as stack:
        fetchers = [stack.enter_context(Fetcher(target)) for _ in range(clients)]
        threads = stack.enter_context(ThreadPoolExecutor(clients))
        start = time.perf_counter()
        sizes = [size for each in threads.map(work, fetchers) for size in each]
        return Fetched(time.perf_counter() - start, sizes)


@dataclass(slots=True)
class SlowReader:
    """What a slow client has got so far: bytes of the answer, and why it ended before it was told to."""

    received: int = 0
    failure: str = ""


@contextlib.contextmanager
def slow_reader(target: Target, path: str, rate: float) -> Iterator[SlowReader]:
    """Let a client take an answer at `rate` bytes a second, from its first bytes until the block ends.

    Raises BenchmarkError when it was ended by anything else.
    """
    reader = SlowReader()
    stop = threading.Event()
    with target.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_RECEIVE_BUFFER)
        connection.sendall(target.request(path, DICOM))
        begin = connection.recv(HEAD_BUFFER)
        if not begin.startswith(b"HTTP/1.1 200"):
            raise BenchmarkError(f"{path}: {begin[:300]!r}")
        reader.received = len(begin)
        thread = threading.Thread(target=_read_slowly, args=(connection, reader, rate, stop))
        thread.start()
        try:
            yield reader
        finally:
            stop.set()
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for bytes
            thread.join(JOIN_TIMEOUT)
    if reader.failure:
        raise BenchmarkError(f"the slow client ended early: {reader.failure}")


def _read_slowly(connection: socket.socket, reader: SlowReader, rate: float, stop: threading.Event) -> None:
    start = time.perf_counter()
    buffer = bytearray(SLOW_RECEIVE_BUFFER)
    while not stop.is_set():
        try:
            count = connection.recv_into(buffer)
        except OSError as error:
            reader.failure = str(error)
            return
        if not count:
            reader.failure = "" if stop.is_set() else f"the answer ended after {reader.received} bytes"
            return
        reader.received += count
        stop.wait(start + reader.received / rate - time.perf_counter())
