"""One soak from start to end: load and faults together, then a look at what is left over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Final

import aiohttp

from tests.soak.client import Outcome, carry_out
from tests.soak.faults import Trouble
from tests.soak.planning import Planned, Planner
from tests.soak.site import Site, Vitals, site

SAMPLE_EVERY: Final = 25
"""Requests between two looks at the proxy's memory."""

SETTLE_TIMEOUT: Final = 20.0
"""Associations that are not used are released after 10 s."""

_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Settings:
    """How long (`requests`, or `seconds` where it is given), and with what.

    `spacing` is the number of requests from the end of one fault to the next, `faults` are the names of those that
    are given, where it is not all, `longest_fault` is in seconds. Without `until_idle`, associations that the proxy
    keeps for a while may still be there in the end.
    """

    requests: int = 10_000
    seconds: float | None = None
    seed: int = 1
    clients: int = 12
    swap: bool = False
    spacing: int = 100
    faults: Collection[str] = ()
    longest_fault: float = 3.0
    until_idle: bool = True


@dataclass(frozen=True, slots=True)
class State:
    """What the proxy holds at one moment: associations to the archives, files in the spool, and its process's."""

    associations: int
    spooled: int
    vitals: Vitals

    @classmethod
    def of(cls, running: Site) -> State:
        """Look at it."""
        associations = sum(archive["associations"] for archive in running.proxy.status()["archives"])
        return cls(associations, running.proxy.spooled(), running.proxy.vitals())

    @property
    def other_files(self) -> int:
        """Open files but for the connections of associations."""
        return self.vitals.files - self.associations


@dataclass(slots=True)
class Load:
    """The clients' work so far. `memory` are pairs: requests that were over, and bytes that the proxy used."""

    settings: Settings
    outcomes: list[Outcome] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    is_over: bool = False
    _begun: int = 0
    _under_way: set[int] = field(default_factory=set)

    @property
    def done(self) -> int:
        """Requests that are over."""
        return len(self.outcomes)

    @property
    def under_way(self) -> set[int]:
        """The numbers of the requests that are under way."""
        return set(self._under_way)

    async def run(self, running: Site, http: aiohttp.ClientSession, plan: Iterator[Planned]) -> None:
        """Let all clients work until there is nothing left to do."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.settings.clients):
                group.create_task(self._work(running, http, plan))
        self.is_over = True

    async def _work(self, running: Site, http: aiohttp.ClientSession, plan: Iterator[Planned]) -> None:
        for planned in plan:
            number = self._begun = self._begun + 1
            self._under_way.add(number)
            self.outcomes.append(await carry_out(http, planned))
            self._under_way.discard(number)
            if self.done % SAMPLE_EVERY == 0:
                self.memory.append((self.done, running.proxy.vitals().memory))


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen. `seconds` is how long the load took, `exit_code` None where the proxy did not end in time."""

    settings: Settings
    load: Load
    trouble: Trouble
    seconds: float
    before: State
    after: State
    unforeseen: list[str]
    exit_code: int | None


def soak(settings: Settings) -> Result:
    """Run it; raises PeerFailedError where something cannot be started."""
    with site(settings.seed, swap=settings.swap) as running:
        load, trouble, before = asyncio.run(_load(running, settings))
        seconds = time.monotonic() - load.began
        after = _settled(running, before, settings)
        exit_code = running.proxy.stop()
        return Result(settings, load, trouble, seconds, before, after, running.proxy.unforeseen(), exit_code)


async def _load(running: Site, settings: Settings) -> tuple[Load, Trouble, State]:
    planner = Planner(running.holdings, settings.seed)
    async with _session(running) as http:
        warm_up = [await carry_out(http, planned) for planned in planner.one_of_each()]
    before = await asyncio.to_thread(State.of, running)
    async with _session(running) as http:
        load = Load(settings, outcomes=warm_up)
        trouble = Trouble(running, http, load, settings.seed, settings.faults, settings.longest_fault)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(running, http, _limited(iter(planner), settings)))
            group.create_task(trouble.run(settings.spacing))
    return load, trouble, before


def _limited(plan: Iterator[Planned], settings: Settings) -> Iterator[Planned]:
    """Give as many requests as the settings say, to all clients together."""
    if settings.seconds is None:
        return islice(plan, settings.requests)
    end = time.monotonic() + settings.seconds
    return takewhile(lambda _: time.monotonic() < end, plan)


def _session(running: Site) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(running.proxy.url, connector=connector, timeout=aiohttp.ClientTimeout(total=None))


def _settled(running: Site, before: State, settings: Settings) -> State:
    """Return what is held once nothing is under way any more, or after `SETTLE_TIMEOUT`."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while True:
        state = State.of(running)
        idle = not state.associations or not settings.until_idle
        if (idle and not state.spooled and state.other_files <= before.other_files) or time.monotonic() > deadline:
            return state
        time.sleep(_POLL_SECONDS)
