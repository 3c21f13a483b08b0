"""The worker processes: a few, each with one job at a time, and a bound on how many jobs wait.

What a job takes (a bomb of a codestream, a decoder that crashes or does not end) hits one process that has limits of
its own, and is replaced. A process is started when there is a job for it and ended when there was none for a while,
so that a proxy that is never asked to render has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from proxy.render.errors import BusyError, TooSlowError, WorkerFailedError, from_name
from proxy.render.jobs import MAX_JOB, MAX_RESULT, RESULT_HEAD, Job, Result

logger = logging.getLogger(__name__)

MOST_WORKERS: Final = 4
"""However many processors there are: decoding is to leave some to the rest, and each worker may take
`worker.MEMORY`."""

MAX_WAITING: Final = 100
"""Jobs that wait. A viewer asks for 10 frames at once, and each takes 10 to 100 ms."""

WAIT_SECONDS: Final = 30.0
"""How long a job waits for a worker; then the client had better ask again."""

START_SECONDS: Final = 30.0
"""How long a worker may take to start: half a second, but for a machine that is swapping."""

IDLE_SECONDS: Final = 300.0
"""After so long without a job a worker is ended; it has some 60 MB."""

JOBS_FOR_EACH: Final = 2000
"""Jobs after which a worker is replaced: decoders in C may leak."""


class Workers:
    """The pool. Made before there is an event loop, used within one, closed by who made it."""

    def __init__(self, count: int | None = None) -> None:
        self._free = asyncio.Semaphore(count or min(MOST_WORKERS, os.cpu_count() or 1))
        self._waiting = 0
        self._idle: list[_Worker] = []
        self._tasks: set[asyncio.Task[Result]] = set()
        self._endings: set[asyncio.Task[None]] = set()

    async def run(self, job: Job, *files: int) -> Result:
        """Have a job done with open files, by their descriptors, which may be closed as soon as this returns.

        Raises `RenderError`. A job whose caller is cancelled is done all the same, within its time: to end the process
        and start another would cost more.
        """
        if self._waiting >= MAX_WAITING:
            raise BusyError("too many images are being made at the moment")
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._free.acquire()
        except TimeoutError:
            raise BusyError("too many images are being made at the moment") from None
        finally:
            self._waiting -= 1
        with contextlib.ExitStack() as stack:
            stack.callback(self._free.release)
            own = [_own(file, stack) for file in files]
            task = asyncio.get_running_loop().create_task(self._run(job, own))
            task.add_done_callback(partial(self._done, stack.pop_all()))
        self._tasks.add(task)
        return await asyncio.shield(task)

    def _done(self, stack: contextlib.ExitStack, task: asyncio.Task[Result]) -> None:
        stack.close()
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have left, and then nobody else asks

    async def _run(self, job: Job, files: Sequence[int]) -> Result:
        worker = await self._any_worker()
        try:
            return await worker.run(job, files)
        finally:
            if worker.is_ready:
                self._keep(worker)
            else:
                await worker.end()

    async def _any_worker(self) -> _Worker:
        """One that is idle, or a new one. The system may have ended an idle one, to have its memory."""
        while self._idle:
            worker = self._idle.pop()
            if not worker.has_ended:
                return worker
            await worker.end()
        return _Worker()

    def _keep(self, worker: _Worker) -> None:
        self._idle.append(worker)
        worker.when_idle(IDLE_SECONDS if worker.jobs < JOBS_FOR_EACH else 0, self._drop)

    def _drop(self, worker: _Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
            task = asyncio.get_running_loop().create_task(worker.end())
            self._endings.add(task)
            task.add_done_callback(self._endings.discard)

    async def close(self) -> None:
        """End every job and process."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        idle, self._idle = self._idle, []
        await asyncio.gather(*self._endings, *(worker.end() for worker in idle))


def _own(file: int, stack: contextlib.ExitStack) -> int:
    """A descriptor for the same open file, which is closed with `stack`."""
    own = os.dup(file)
    stack.callback(os.close, own)
    return own


class _Worker:
    """One process, started with its first job. It ends by itself when its connection is closed."""

    def __init__(self) -> None:
        self.jobs = 0
        self.is_ready = False
        """True when the last job was answered, so that there can be another."""
        self._process: asyncio.subprocess.Process | None = None
        self._connection: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def has_ended(self) -> bool:
        """True when the process has ended by itself."""
        return self._process is not None and self._process.returncode is not None

    async def run(self, job: Job, files: Sequence[int]) -> Result:
        if self._timer is not None:
            self._timer.cancel()
        self.is_ready = False
        self.jobs += 1
        try:
            if self._connection is None:
                async with asyncio.timeout(START_SECONDS):
                    await self._start()
            assert self._connection is not None
            text = job.encode()
            if socket.send_fds(self._connection, [text], list(files)) < len(text):
                raise OSError("a job that does not fit in the connection's buffer")
            async with asyncio.timeout(job.seconds):
                values, content = await self._answer()
        except TimeoutError:
            raise TooSlowError("the instance could not be decoded in time") from None
        except OSError as error:
            logger.warning("a worker ended in the middle of a job (%s)", job.name)
            raise WorkerFailedError("the instance cannot be decoded") from error
        self.is_ready = True
        if "error" in values:
            _log(job, values)
            raise from_name(str(values["error"]), str(values.get("message", "")))
        return Result(values, content)

    async def _start(self) -> None:
        self._connection, theirs = socket.socketpair()
        self._connection.setblocking(False)
        with theirs:
            # What is sent before the worker reads it has to fit: a job, and the descriptors with it.
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_JOB)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "proxy.render.worker",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,  # decoders print what they find, and that may be a patient's data
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            )

    async def _answer(self) -> tuple[dict[str, object], bytes]:
        text_length, length = RESULT_HEAD.unpack(await self._receive(RESULT_HEAD.size))
        if text_length > MAX_JOB or length > MAX_RESULT:
            raise OSError("a result that is too long")
        try:
            values = json.loads(await self._receive(text_length))
        except ValueError as error:
            raise OSError("a result that cannot be read") from error
        return values, bytes(await self._receive(length))

    async def _receive(self, size: int) -> bytearray:
        assert self._connection is not None
        loop = asyncio.get_running_loop()
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            step = await loop.sock_recv_into(self._connection, view[done:])
            if step == 0:
                raise ConnectionResetError("the worker has ended")
            done += step
        view.release()
        return data

    def when_idle(self, seconds: float, drop: Callable[[_Worker], None]) -> None:
        """Call `drop` when there was no job for so long."""
        self._timer = asyncio.get_running_loop().call_later(seconds, drop, self)

    async def end(self) -> None:
        """End it at once."""
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def _log(job: Job, values: dict[str, object]) -> None:
    """Where a worker failed, for whoever has to find out why; never what it was given."""
    if where := values.get("where"):
        logger.warning("a worker failed at a job (%s): %s", job.name, where)
