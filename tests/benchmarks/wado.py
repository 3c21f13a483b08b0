"""WADO-RS of a whole study: time, first byte, processor time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.benchmarks.client import BenchmarkError, Download, download
from tests.benchmarks.lab import BIG_INSTANCES, BIG_STUDY_UID, CT_STUDY_UID, GIGABYTE, Lab, Server, median
from tests.benchmarks.report import Row, at_most, times

ROUNDS = 5
PIXEL_BYTES = 512 * 512 * 2
CT_INSTANCES = 250


def retrieve(server: Server, study_uid: str, instances: int) -> Download:
    """Fetch a study of two series. Raises BenchmarkError when less came than its images alone."""
    result = download(server.target, f"/studies/{study_uid}")
    if result.size < 2 * instances * PIXEL_BYTES:
        raise BenchmarkError(f"only {result.size} bytes of {study_uid} came")
    return result


def seconds(action: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def wado_cget(lab: Lab) -> list[Row]:
    """The CT study through C-GET, beside getscu."""
    return _beside_getscu(lab, "C-GET", use_cget=True)


def wado_cmove(lab: Lab) -> list[Row]:
    """The CT study through C-MOVE, beside getscu."""
    return _beside_getscu(lab, "C-MOVE", use_cget=False)


def _beside_getscu(lab: Lab, mode: str, *, use_cget: bool) -> list[Row]:
    archive = lab.archive()
    downloads: list[Download] = []
    references: list[float] = []
    processor = 0.0
    with lab.server(archive, use_cget=use_cget) as server:
        # In turns, so that a disturbance of the machine meets both; the first round only warms up.
        for number in range(ROUNDS + 1):
            reference = seconds(lambda: lab.get_study(archive, CT_STUDY_UID))
            lab.forget_studies()
            before = server.processor_seconds()
            result = retrieve(server, CT_STUDY_UID, CT_INSTANCES)
            if number:
                references.append(reference)
                downloads.append(result)
                processor += server.processor_seconds() - before
    total = median([each.total for each in downloads])
    first = median([100 * each.first / each.total for each in downloads])
    per_gigabyte = processor / sum(each.size for each in downloads) * GIGABYTE
    return [
        times(f"WADO-RS of 262 MB, {mode}, beside getscu", total, "s", median(references), 1.25),
        at_most(f"first 64 KiB, {mode}, of the whole time", first, "%", 5),
        at_most(f"processor time for a GB, {mode}", per_gigabyte, "s", 2.5),
    ]


def wado_nagle(lab: Lab) -> list[Row]:
    """The CT study from an archive that leaves Nagle on, and from one that does not, in turns."""
    rows = []
    for mode, use_cget in (("C-GET", True), ("C-MOVE", False)):
        with (
            lab.server(lab.archive(nodelay=False), use_cget=use_cget) as with_nagle,
            lab.server(lab.archive(nodelay=True), use_cget=use_cget) as without,
        ):
            pairs = [
                [retrieve(server, CT_STUDY_UID, CT_INSTANCES).total for server in (with_nagle, without)]
                for _ in range(ROUNDS)
            ]
        measured, reference = (median(column) for column in zip(*pairs[1:], strict=True))
        what = f"WADO-RS of 262 MB, {mode}, archive with Nagle, beside without"
        rows.append(times(what, measured, "s", reference, 1.3))
    return rows


def memory(lab: Lab) -> list[Row]:
    """Peak resident memory, for 262 MB and for 2 GB, each by a proxy started anew."""
    archive = lab.big_archive()
    rows = []
    for mode, use_cget in (("C-GET", True), ("C-MOVE", False)):
        peaks = []
        for size, study_uid, instances in (
            ("262 MB", CT_STUDY_UID, CT_INSTANCES),
            ("2 GB", BIG_STUDY_UID, BIG_INSTANCES),
        ):
            with lab.server(archive, use_cget=use_cget) as server:
                retrieve(server, study_uid, instances)
                peaks.append(server.peak_memory())
            rows.append(at_most(f"peak memory, {size}, {mode}", peaks[-1], "MB", 100))
        rows.append(at_most(f"more of it for 2 GB than for 262 MB, {mode}", peaks[1] - peaks[0], "MB", 10))
    return rows
