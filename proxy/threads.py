"""Work with files in threads, which cannot be stopped: whoever owns the files may close them only behind it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

_T = TypeVar("_T")


async def in_thread(
    work: Callable[..., _T], *args: Any, executor: Executor | None = None, undo: Callable[[_T], object] | None = None
) -> _T:
    """Call `work` in a thread of `executor`, or of the event loop's own.

    When cancelled, this returns only when the work has ended; `undo` is then called with what came of it, since nobody
    else gets that.
    """
    working = asyncio.get_running_loop().run_in_executor(executor, functools.partial(work, *args))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        if working.exception() is None and undo is not None:
            undo(working.result())
        raise
