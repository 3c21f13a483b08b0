"""Several clients at once: on the same series, on different ones, and a slow one beside a fast one."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from tests.benchmarks.cache import CLIENTS, fetch_series, warm_up
from tests.benchmarks.client import BenchmarkError
from tests.benchmarks.fetch import fetch, slow_reader
from tests.benchmarks.lab import (
    MANY_INSTANCES,
    MANY_SERIES,
    MANY_STUDY_UID,
    MEGABYTE,
    Lab,
    MoveCount,
    Server,
    median,
    series_path,
    series_uid,
)
from tests.benchmarks.report import Row, at_most, exactly, share, times
from tests.benchmarks.wado import PIXEL_BYTES, ROUNDS, seconds
from tests.peers.orthanc import Orthanc

SLOW_RATE = MEGABYTE
# A multiple of the ways that are compared; more than elsewhere, since 10 % are to be told apart.
SLOW_ROUNDS = 9
SETTLED_SHARE = 0.05
SETTLED_SECONDS = 0.3
SETTLE_TIMEOUT = 20.0


def same_series(lab: Lab) -> list[Row]:
    """8 clients that ask for the same series at once, none of it in the cache, beside one client alone."""
    archive = lab.archive()
    alone, together, peaks, moves = [], [], [], []
    for number in range(ROUNDS):
        first, second = (1, 2) if number % 2 else (2, 1)
        with lab.server(archive, use_cget=False, enableCache=True) as server:
            warm_up(server)
            alone.append(fetch_series(server, first))
            count = MoveCount(archive)
            together.append(fetch_series(server, second, clients=CLIENTS))
            moves.append(count.so_far())
            peaks.append(server.peak_memory())
    return [
        times(f"{CLIENTS} clients on the same 131 MB, beside one", median(together), "s", median(alone), 1.5),
        at_most(f"peak memory, {CLIENTS} clients on the same 131 MB", max(peaks), "MB", 150),
        exactly(f"C-MOVEs for {CLIENTS} clients on the same series", moves, 1),
    ]


def different_series(lab: Lab) -> list[Row]:
    """8 clients, each on a series of its own, beside 8 getscu at once."""
    return [_different_series(lab, "C-GET", use_cget=True), _different_series(lab, "C-MOVE", use_cget=False)]


def _different_series(lab: Lab, mode: str, *, use_cget: bool) -> Row:
    archive = lab.many_series_archive()
    paths = [series_path(number, MANY_STUDY_UID) for number in range(1, MANY_SERIES + 1)]
    size = MANY_SERIES * MANY_INSTANCES * PIXEL_BYTES
    references, rates = [], []
    # With one association to spare: a proxy may keep one for searches.
    with lab.server(archive, use_cget=use_cget, maxAssociations=MANY_SERIES + 1) as server:
        for _ in range(ROUNDS + 1):
            references.append(size / seconds(lambda: _get_all(lab, archive)) / MEGABYTE)
            lab.forget_studies()
            fetched = fetch(server.target, paths, clients=MANY_SERIES)
            if sum(fetched.sizes) < size:
                raise BenchmarkError(f"only {sum(fetched.sizes)} bytes of {MANY_SERIES} series came")
            rates.append(size / fetched.seconds / MEGABYTE)
    what = f"{MANY_SERIES} clients on different series, {mode}, beside getscu"
    return share(what, median(rates[1:]), "MB/s", median(references[1:]), 0.8)


def _get_all(lab: Lab, archive: Orthanc) -> None:
    with ThreadPoolExecutor(MANY_SERIES) as threads:
        wanted = [series_uid(number, MANY_STUDY_UID) for number in range(1, MANY_SERIES + 1)]
        list(threads.map(lambda series: lab.get_study(archive, MANY_STUDY_UID, series), wanted))


def slow_beside_fast(lab: Lab) -> list[Row]:
    """A client at full speed, alone and while another takes 1 MB/s: of another series, and of the same."""
    archive = lab.archive()
    # What the slow client has, if there is one.
    ways: list[tuple[str, int | None]] = [("alone", None), ("another series", 2), ("the same series", 1)]
    taken: dict[str, list[float]] = {name: [] for name, _ in ways}
    for number in range(SLOW_ROUNDS):
        # Each way is first, second and last as often as the others.
        turn = number % len(ways)
        for name, slow in ways[turn:] + ways[:turn]:
            with lab.server(archive, use_cget=False, enableCache=True) as server:
                warm_up(server)
                taken[name].append(_fast(server, slow))
    alone = median(taken.pop("alone"))
    return [
        times(f"131 MB beside a client at 1 MB/s on {name}, and alone", median(each), "s", alone, 1.1)
        for name, each in taken.items()
    ]


def _fast(server: Server, slow: int | None) -> float:
    """Get the first series at full speed, while a slow client has the series `slow`; returns seconds.

    Without one, a fast client has had the second before: so that the process has done as much in each case.
    """
    if slow is None:
        fetch_series(server, 2)
        _wait_until_settled(server)
        return fetch_series(server, 1)
    with slow_reader(server.target, series_path(slow), SLOW_RATE):
        _wait_until_settled(server)
        return fetch_series(server, 1)


def _wait_until_settled(server: Server) -> None:
    """Wait until the proxy has done for the slow client what it can: what that costs is not what is measured."""
    deadline = time.perf_counter() + SETTLE_TIMEOUT
    while time.perf_counter() < deadline:
        before = server.processor_seconds()
        time.sleep(SETTLED_SECONDS)
        if server.processor_seconds() - before <= SETTLED_SHARE * SETTLED_SECONDS:
            return
    raise BenchmarkError(f"the proxy still works {SETTLE_TIMEOUT:.0f} s after a slow client has come")
