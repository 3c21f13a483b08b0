"""A wake-up call for everyone who waits for something to change."""

from __future__ import annotations

import asyncio


class Signal:
    """Waiters look at the state, find nothing, and wait; whoever changes the state sets the signal.

    All of the event loop's thread: between the look and the wait nothing can happen, so no call is lost.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        """Return when the signal is set next."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def set(self) -> None:
        """Wake all who wait now."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
