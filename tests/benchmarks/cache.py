"""The instances of a series, one by one: while they are fetched, out of the cache, and what writing the cache costs."""

from __future__ import annotations

from collections.abc import Iterator

from tests import corpus
from tests.benchmarks import nginx
from tests.benchmarks.client import DICOM, BenchmarkError, Target
from tests.benchmarks.fetch import Fetched, fetch
from tests.benchmarks.lab import (
    CT_STUDY_UID,
    TINY_STUDY_UIDS,
    Lab,
    MoveCount,
    Server,
    instance_paths,
    median,
    series_path,
)
from tests.benchmarks.report import Row, exactly, times
from tests.benchmarks.wado import CT_INSTANCES, PIXEL_BYTES, ROUNDS, retrieve, seconds
from tests.peers.orthanc import Orthanc

CLIENTS = 8
# Each image is asked for as often in one round of the warm measurement.
REPEATS = 8
# By name: the query of the URL, and Accept. The first is what existing uploaders send.
FORMS = {"multipart=false": ("?multipart=false", "*/*"), "multipart": ("", DICOM)}
WARM_RATE = 800


def warm_up(server: Server) -> None:
    """Retrieve a small study, so that what the first retrieval of a process costs is not measured."""
    fetch(server.target, [f"/studies/{TINY_STUDY_UIDS[0]}"])


def fetch_images(target: Target, paths: list[str], accept: str) -> Fetched:
    """Get single images, `CLIENTS` at a time. Raises BenchmarkError when less came than their pixels."""
    fetched = fetch(target, paths, clients=CLIENTS, accept=accept)
    if len(fetched.sizes) != len(paths) or min(fetched.sizes) < PIXEL_BYTES:
        raise BenchmarkError(f"{len(fetched.sizes)} images, the smallest of {min(fetched.sizes)} bytes")
    return fetched


def fetch_series(server: Server, series: int, *, clients: int = 1) -> float:
    """Let some clients get the same series of the CT study at once; returns seconds. BenchmarkError as above."""
    fetched = fetch(server.target, [series_path(series)] * clients, clients=clients)
    if min(fetched.sizes) < CT_INSTANCES * PIXEL_BYTES:
        raise BenchmarkError(f"only {min(fetched.sizes)} bytes of a series came")
    return fetched.seconds


def instances_cold(lab: Lab) -> list[Row]:
    """The 250 instances of a series that is not in the cache, one by one, beside the series in one answer."""
    return [row for form in FORMS for row in _instances_cold(lab, form)]


def _instances_cold(lab: Lab, form: str) -> Iterator[Row]:
    archive = lab.archive()
    query, accept = FORMS[form]
    one_by_one, whole, moves = [], [], []
    for number in range(ROUNDS):
        # Two series, and a new proxy in each round: both ways find the cache without what they ask for.
        first, second = (1, 2) if number % 2 else (2, 1)
        with lab.server(archive, use_cget=False, enableCache=True, useFetchLevel="SERIES") as server:
            warm_up(server)
            if number % 2:
                whole.append(fetch_series(server, second))
            count = MoveCount(archive)
            paths = instance_paths(first, CT_INSTANCES, query)
            one_by_one.append(fetch_images(server.target, paths, accept).seconds)
            moves.append(count.so_far())
            if not number % 2:
                whole.append(fetch_series(server, second))
    what = f"{CT_INSTANCES} instances, {form}, cold, beside their series"
    yield times(what, median(one_by_one), "s", median(whole), 1.5)
    yield exactly(f"C-MOVEs for {CT_INSTANCES} instances, {form}", moves, 1)


def instances_warm(lab: Lab) -> list[Row]:
    """The same instances out of the cache, beside nginx with the same files where it is installed."""
    archive = lab.archive()
    with lab.server(archive, use_cget=False, enableCache=True, useFetchLevel="SERIES") as server:
        fetch_series(server, 1)
        count = MoveCount(archive)
        query, accept = FORMS["multipart=false"]
        paths = instance_paths(1, CT_INSTANCES, query) * REPEATS
        if nginx.is_installed():
            with nginx.nginx(lab.folder / "nginx", corpus.ct_study(series=1)) as (reference, files):
                row = _beside_nginx(server, paths, reference, files * REPEATS, accept)
        else:
            rates = [fetch_images(server.target, paths, accept).rate for _ in range(ROUNDS)]
            row = _rate_row("nginx is not installed", median(rates), None)
        query, accept = FORMS["multipart"]
        multipart = [fetch_images(server.target, instance_paths(1, CT_INSTANCES, query), accept).rate for _ in range(3)]
        return [
            row,
            Row("instances out of the cache, multipart", median(multipart), "requests/s"),
            exactly("C-MOVEs for instances that are in the cache", [count.so_far()], 0),
        ]


def _beside_nginx(server: Server, paths: list[str], reference: Target, files: list[str], accept: str) -> Row:
    rates = [
        (fetch_images(server.target, paths, accept).rate, fetch_images(reference, files, accept).rate)
        for _ in range(ROUNDS + 1)
    ]
    measured, of_nginx = (median(column) for column in zip(*rates[1:], strict=True))
    return _rate_row("beside nginx", measured, of_nginx)


def _rate_row(beside: str, measured: float, of_nginx: float | None) -> Row:
    what = f"instances out of the cache, {CLIENTS} clients, {beside}"
    within = measured >= WARM_RATE or (of_nginx is not None and measured >= of_nginx / 2)
    return Row(what, measured, "requests/s", of_nginx, f"≥ {WARM_RATE} requests/s or ≥ 0.5 ×", within)


def wado_cached_write(lab: Lab) -> list[Row]:
    """The CT study while it is written to the cache, beside getscu, which also writes it."""
    return [_beside_getscu(lab, "C-GET", use_cget=True), _beside_getscu(lab, "C-MOVE", use_cget=False)]


def _beside_getscu(lab: Lab, mode: str, *, use_cget: bool) -> Row:
    archive: Orthanc = lab.archive()
    references, totals = [], []
    for _ in range(ROUNDS):
        references.append(seconds(lambda: lab.get_study(archive, CT_STUDY_UID)))
        lab.forget_studies()
        with lab.server(archive, use_cget=use_cget, enableCache=True) as server:
            warm_up(server)
            totals.append(retrieve(server, CT_STUDY_UID, CT_INSTANCES).total)
    what = f"WADO-RS of 262 MB into the cache, {mode}, beside getscu"
    return times(what, median(totals), "s", median(references), 1.5)
