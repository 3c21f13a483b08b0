"""The faults that the archives get, one after the other while the load goes on, and how the proxy recovers."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import aiohttp

from tests.soak.archive import GOOD, MOODS
from tests.soak.holdings import uids
from tests.soak.site import Site

HEAL_TIMEOUT: Final = 45.0
"""The proxy tries an archive that has failed again and again, at the longest every 30 s."""

SHORTEST: Final = 0.3
_POLL_SECONDS: Final = 0.1


@dataclass(slots=True)
class Fault:
    """A fault and its times, in seconds of the monotonic clock. Until it is healed, requests may fail.

    It is healed when, after its end, a search of all archives is answered as if nothing had been, and when every
    request of that time is over: those that come later may have joined a retrieval that the fault has hit.
    """

    name: str
    begun: float
    lifted: float | None = None
    healed: float | None = None

    def touches(self, begun: float, ended: float) -> bool:
        """Tell whether it was there at any time in between."""
        return ended >= self.begun and (self.healed is None or begun <= self.healed)


class Progress(Protocol):
    """How far the load is."""

    @property
    def done(self) -> int:
        """Requests that are over."""

    @property
    def under_way(self) -> set[int]:
        """Those that are under way, by numbers that are given once; the set is the caller's own."""

    @property
    def is_over(self) -> bool:
        """Whether there will be no more requests."""


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    begin: Callable[[], object]
    end: Callable[[], object]


def _nothing() -> None:
    """A fault that is over in a moment."""


def _kinds(site: Site) -> list[_Kind]:
    orthanc, scripted = site.orthanc, site.scripted
    stop, go_on = (partial(scripted.process.signal, number) for number in (signal.SIGSTOP, signal.SIGCONT))
    return [
        _Kind("Orthanc is killed", orthanc.kill, site.start_orthanc_again),
        _Kind("Orthanc hangs", orthanc.suspend, orthanc.resume),
        _Kind("scripted archive is killed", partial(scripted.process.stop, kill=True), scripted.start),
        _Kind("scripted archive hangs", stop, go_on),
        _Kind("scripted archive resets all", scripted.drop, _nothing),
        *(_Kind(f"scripted archive {mood}", partial(scripted.be, mood), partial(scripted.be, GOOD)) for mood in MOODS),
    ]


@dataclass(slots=True)
class Trouble:
    """Gives the archives their faults, and empties the cache between them.

    `only` are the names of the faults to be given, where it is not all; each is `longest` seconds long at most.
    `problems` are what should not have gone wrong.
    """

    site: Site
    http: aiohttp.ClientSession
    progress: Progress
    seed: int
    only: Collection[str] = ()
    longest: float = 3.0
    faults: list[Fault] = field(default_factory=list)
    purges: int = 0
    problems: list[str] = field(default_factory=list)

    async def run(self, spacing: int) -> None:
        """Do one thing after about every `spacing` requests until the load is over, each to its end."""
        chance = random.Random(self.seed)
        for kind in self._in_turns(chance):
            mark = self.progress.done + chance.randint(spacing // 2, spacing)
            while self.progress.done < mark:
                if self.progress.is_over:
                    return
                await asyncio.sleep(_POLL_SECONDS / 5)
            if kind is None:
                await self._purge(chance)
            else:
                await self._inflict(kind, chance.uniform(SHORTEST, self.longest))

    def _in_turns(self, chance: random.Random) -> Iterator[_Kind | None]:
        """Give all faults in an order by chance, and again in another; None, to empty the cache, after each."""
        kinds = [kind for kind in _kinds(self.site) if not self.only or kind.name in self.only]
        while True:
            chance.shuffle(kinds)
            for kind in kinds:
                yield kind
                yield None

    async def _inflict(self, kind: _Kind, seconds: float) -> None:
        fault = Fault(kind.name, time.monotonic())
        self.faults.append(fault)
        await asyncio.to_thread(kind.begin)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(kind.end)
        fault.lifted = time.monotonic()
        try:
            async with asyncio.timeout(HEAL_TIMEOUT):
                while not await self._finds_everything():
                    await asyncio.sleep(_POLL_SECONDS)
                hit = self.progress.under_way
                while hit & self.progress.under_way:
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            self.problems.append(f"{kind.name}: not healed after {HEAL_TIMEOUT:g} s")
        else:
            fault.healed = time.monotonic()

    async def _finds_everything(self) -> bool:
        try:
            async with self.http.get("/studies") as response:
                body = await response.read()
        except aiohttp.ClientError:
            return False
        if response.status != 200 or "Warning" in response.headers:
            return False
        return len(json.loads(body)) == len(uids(self.site.holdings.samples, "study"))

    async def _purge(self, chance: random.Random) -> None:
        study = chance.choice(uids(self.site.holdings.samples, "study")) if chance.random() < 0.5 else None
        ended = await asyncio.to_thread(self.site.proxy.purge, study)
        self.purges += 1
        if ended.code != 0:
            self.problems.append(f"purge: exit code {ended.code}: {ended.output[-300:]}")
