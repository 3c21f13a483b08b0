"""Counting what is under way, of all clients and of each: a place is taken before, and freed after."""

from __future__ import annotations

import enum
from collections import Counter

from proxy.addresses import Address


class Full(enum.Enum):
    """Why there is no place."""

    FOR_CLIENT = "client"
    FOR_ALL = "all"


class Place:
    """A place that is taken."""

    def __init__(self, places: Places, client: Address | None) -> None:
        self._places: Places | None = places
        self._client = client

    def free(self) -> None:
        """Give it back; a second time does nothing."""
        places, self._places = self._places, None
        if places is not None:
            places._free(self._client)


class Places:
    """So many places, and so many of them for one client."""

    def __init__(self, most: int, most_per_client: int) -> None:
        self._most = most
        self._most_per_client = most_per_client
        self._taken = 0
        self._by_client: Counter[Address] = Counter()

    @property
    def taken(self) -> int:
        """How many are taken now."""
        return self._taken

    def take(self, client: Address | None) -> Place | Full:
        """Take a place, or say why there is none; None is a client that the second limit is not for."""
        if client is not None and self._by_client[client] >= self._most_per_client:
            return Full.FOR_CLIENT
        if self._taken >= self._most:
            return Full.FOR_ALL
        self._taken += 1
        if client is not None:
            self._by_client[client] += 1
        return Place(self, client)

    def _free(self, client: Address | None) -> None:
        self._taken -= 1
        if client is not None:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]  # or there would be an entry for everybody who ever called
