"""How many wrong passwords an address may send."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from proxy.addresses import Address

BURST: Final = 10
"""Wrong passwords that an address may send at once: a person who has forgotten one, or several behind one address."""

REFILL_SECONDS: Final = 10.0
"""How long until it may send one more: about 8,000 a day, which guesses no password that is worth the name."""

MAX_ADDRESSES: Final = 10_000
"""Addresses that are remembered, some hundred bytes each; with more, the one that was quiet for longest is let off."""

_SITE_BITS: Final = 64
"""One machine may take any address of an IPv6 network of that prefix."""


class Failures:
    """For each address a bucket of `BURST` tries, which fills again by one each `REFILL_SECONDS`.

    A try is taken before the password is checked, or many at once would all get through, and given back when it
    was right.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # When the bucket will be full again; one that is full is not kept.
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """How many addresses are remembered."""
        return len(self._full_at)

    def take(self, address: Address | None) -> float:
        """Take a try; returns 0, or the seconds until there is one again."""
        key, now = _key(address), self._clock()
        full_at = max(self._full_at.get(key, now), now) + REFILL_SECONDS
        wait = full_at - now - BURST * REFILL_SECONDS
        if wait > 0:
            return wait
        self._keep(key, full_at)
        return 0.0

    def give_back(self, address: Address | None) -> None:
        """Give back a try that was taken: the password was right."""
        key = _key(address)
        if key in self._full_at:
            self._keep(key, self._full_at[key] - REFILL_SECONDS)

    def used_up(self, address: Address | None) -> bool:
        """Tell whether an address has no try left at the moment."""
        return self._full_at.get(_key(address), 0.0) - self._clock() > (BURST - 1) * REFILL_SECONDS

    def _keep(self, key: str, full_at: float) -> None:
        self._full_at.pop(key, None)
        now = self._clock()
        while self._full_at and (len(self._full_at) >= MAX_ADDRESSES or next(iter(self._full_at.values())) <= now):
            self._full_at.popitem(last=False)
        if full_at > now:
            self._full_at[key] = full_at


def _key(address: Address | None) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _SITE_BITS), strict=False))
    return str(address)
