"""QIDO-RS: latency of one study, many clients at once, and a page of a long list."""

from __future__ import annotations

import json
import time

from tests.benchmarks.client import BenchmarkError, KeptOpen, requests_per_second
from tests.benchmarks.lab import CT_STUDY_UID, TINY_COUNT, TINY_STUDY_UIDS, Lab, median, percentile
from tests.benchmarks.report import Row, at_least, at_most
from tests.peers.dcmtk import Scu
from tests.peers.orthanc import Orthanc

REQUESTS = 300
CLIENTS = 8
LOAD_SECONDS = 5.0
PAGE = 100
PAGE_REQUESTS = 20
PATHS = [f"/studies?StudyInstanceUID={study_uid}" for study_uid in TINY_STUDY_UIDS]

# What a search for studies always returns (PS3.18 Table 10.6.3-3), so that C-FIND asks for no less than QIDO-RS.
STUDY_KEYS = (
    "SpecificCharacterSet",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "InstanceAvailability",
    "ModalitiesInStudy",
    "ReferringPhysicianName",
    "TimezoneOffsetFromUTC",
    "StudyDescription",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
)


def find_milliseconds(archive: Orthanc, repeat: int = REQUESTS, rounds: int = 3) -> float:
    """Return the time of one C-FIND of one study on an association that is open, by DCMTK's findscu.

    The difference between many queries and one takes out the start of the program and the association.
    """
    keys = [argument for key in STUDY_KEYS for argument in ("-k", key)]
    keys += ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={TINY_STUDY_UIDS[0]}"]
    scu = Scu(archive.address)

    def run(count: int) -> float:
        start = time.perf_counter()
        scu.run("findscu", "-S", "--repeat", str(count), *keys).succeeded()
        return time.perf_counter() - start

    return median([(run(repeat + 1) - run(1)) / repeat for _ in range(rounds)]) * 1000


def _latencies(lab: Lab, archive: Orthanc) -> list[float]:
    """Return the milliseconds of each of many queries for one study, each for another one."""
    latencies = []
    with lab.server(archive) as server, KeptOpen(server.target) as client:
        # The first ones open the association.
        for path in PATHS[: REQUESTS + 20]:
            body, taken = client.get(path)
            if len(json.loads(body)) != 1:
                raise BenchmarkError(f"{path}: not one match: {body[:200]!r}")
            latencies.append(taken * 1000)
    return latencies[20:]


def qido_latency(lab: Lab) -> list[Row]:
    """One study, one client."""
    archive = lab.archive()
    find = find_milliseconds(archive)
    latencies = _latencies(lab, archive)
    middle = median(latencies)
    within = middle <= 2.5 or middle <= 2 * find
    return [
        Row("QIDO-RS of one study, median, beside C-FIND", middle, "ms", find, "≤ 2.5 ms or ≤ 2 ×", within),
        Row("QIDO-RS of one study, 99th percentile", percentile(latencies, 99), "ms"),
    ]


def qido_nagle(lab: Lab) -> list[Row]:
    """One study, one client, from an archive that leaves Nagle on."""
    latencies = _latencies(lab, lab.archive(nodelay=False))
    return [at_most("QIDO-RS of one study, archive with Nagle", median(latencies), "ms", 10)]


def qido_rate(lab: Lab) -> list[Row]:
    """One study for each request, 8 clients without a pause."""
    with lab.server(lab.archive()) as server:
        requests_per_second(server.target, PATHS, CLIENTS, 1)
        rate = requests_per_second(server.target, PATHS, CLIENTS, LOAD_SECONDS)
    return [at_least(f"QIDO-RS of one study, {CLIENTS} clients", rate, "requests/s", 750)]


def qido_page(lab: Lab) -> list[Row]:
    """A page of 100 of all 504 studies."""
    with lab.server(lab.archive()) as server, KeptOpen(server.target) as client:
        taken = []
        for _ in range(PAGE_REQUESTS):
            body, once = client.get(f"/studies?limit={PAGE}")
            studies = {study["0020000D"]["Value"][0] for study in json.loads(body)}
            if len(studies) != PAGE or not studies <= {CT_STUDY_UID, *TINY_STUDY_UIDS}:
                raise BenchmarkError(f"{len(studies)} studies in place of {PAGE}")
            taken.append(once * 1000)
    return [at_most(f"QIDO-RS limit={PAGE} of {TINY_COUNT + 1} studies", median(taken), "ms", 60)]
