"""What the tests of `dul` have in common: nothing may be left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

TOO_LONG = 30.0


def open_sockets() -> dict[int, int]:
    """Return this process's TCP sockets: descriptors by inode."""
    sockets = {}
    for descriptor in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            status = os.fstat(descriptor)
            if stat.S_ISSOCK(status.st_mode) and _is_tcp(descriptor):
                sockets[status.st_ino] = descriptor
    return sockets


def _is_tcp(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        return sock.family in (socket.AF_INET, socket.AF_INET6)


async def settle() -> None:
    """Let callbacks run that are already due."""
    for _ in range(4):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], seconds: float = 3) -> None:
    """Wait for a condition that nothing announces."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def nothing_left() -> AsyncIterator[None]:
    """Fail a test that leaves behind a task, a socket, or a complaint to the event loop; end one that hangs."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    watchdog = loop.call_later(TOO_LONG, lambda: [task.cancel() for task in asyncio.all_tasks()])
    sockets = open_sockets()
    tasks = asyncio.all_tasks()
    gc.freeze()  # so that only what the test has made is looked through at its end
    yield
    watchdog.cancel()
    await settle()
    gc.collect()
    gc.unfreeze()
    await settle()
    current = asyncio.current_task()
    assert [task for task in asyncio.all_tasks() - tasks if task is not current] == []
    assert open_sockets().keys() - sockets.keys() == set()
    assert complaints == []
