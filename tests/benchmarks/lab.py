"""What the benchmarks measure with: loaded archives, and the proxy in front of one, as processes of their own."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

from tests import corpus
from tests.benchmarks.client import Target
from tests.peers.dcmtk import Scu
from tests.peers.orthanc import RAMDISK, Orthanc
from tests.peers.process import HOST, Address, Process, free_port

ROOT = Path(__file__).resolve().parents[2]
CT_STUDY_UID = corpus.uid(corpus.CT_STUDY, 1)
BIG_STUDY_UID = corpus.uid(corpus.CT_STUDY, 2)
MANY_STUDY_UID = corpus.uid(corpus.CT_STUDY, 3)
# With the CT study, 504 studies.
TINY_COUNT = 503
TINY_STUDY_UIDS = [corpus.uid(corpus.TINY_STUDY, study) for study in range(1, TINY_COUNT + 1)]
BIG_INSTANCES = 2048
# Of 32 MB each.
MANY_SERIES = 8
MANY_INSTANCES = 61
MEGABYTE = 1e6
GIGABYTE = 1e9


@dataclass(frozen=True, slots=True)
class Server:
    """A DICOMweb server that is measured: where it is, and the process to look at."""

    target: Target
    pid: int

    def processes(self) -> list[Any]:
        """Return its process and those that it has started."""
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]

    def processor_seconds(self) -> float:
        """Return the processor time used so far, in user and kernel mode."""
        used = [process.cpu_times() for process in self.processes()]
        return float(sum(each.user + each.system for each in used))

    def peak_memory(self) -> float:
        """Return the largest resident set so far (Linux's VmHWM), in megabytes; over all its processes."""
        return sum(_high_water_mark(process.pid) for process in self.processes()) / MEGABYTE


def _high_water_mark(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no VmHWM for process {pid}")


class Lab:
    """Starts what a benchmark asks for, all of it on the ramdisk. A context manager; ends all at its end."""

    def __init__(self, *, stand_in: bool = False) -> None:
        """`stand_in` measures Orthanc's DICOMweb plugin in place of the proxy, to try the benchmarks."""
        self._stand_in = stand_in
        self.folder = Path(tempfile.mkdtemp(prefix="benchmarks-", dir=RAMDISK))
        self._stack = contextlib.ExitStack()
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._archives: dict[str, Orthanc] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def archive(self, *, nodelay: bool = True) -> Orthanc:
        """Return Orthanc with the CT study and the tiny studies; without `nodelay` it leaves Nagle on."""
        name = "NODELAY" if nodelay else "NAGLE"
        if name not in self._archives:
            archive = self._start(name, nodelay=nodelay)
            archive.upload(corpus.ct_study())
            archive.upload(corpus.tiny_studies(TINY_COUNT))
        return self._archives[name]

    def big_archive(self) -> Orthanc:
        """Return Orthanc with the CT study, and with one of 2 GB as well."""
        if "BIG" not in self._archives:
            archive = self._start("BIG", nodelay=True)
            archive.upload(corpus.ct_study())
            archive.upload(corpus.ct_study(instances=BIG_INSTANCES, study=2))
        return self._archives["BIG"]

    def many_series_archive(self) -> Orthanc:
        """Return Orthanc with a study of 8 series, and as many threads as all of them need at once."""
        if "MANY" not in self._archives:
            archive = self._start("MANY", nodelay=True, DicomThreadsCount=2 * MANY_SERIES)
            archive.upload(corpus.ct_study(MANY_SERIES, MANY_INSTANCES, study=3))
        return self._archives["MANY"]

    def _start(self, name: str, *, nodelay: bool, **settings: object) -> Orthanc:
        print(f"starting and loading an Orthanc ({name})", file=sys.stderr)
        folder = self.folder / name
        folder.mkdir()
        archive = Orthanc(folder, aet=name, nodelay=nodelay, ramdisk=True, dicomweb=self._stand_in, settings=settings)
        self._archives[name] = self._stack.enter_context(archive)
        return archive

    @contextlib.contextmanager
    def server(self, archive: Orthanc, *, use_cget: bool = True, **settings: object) -> Iterator[Server]:
        """Start a proxy in front of an archive, by default without its cache; end it afterwards.

        `settings` are further keys of its configuration. Its storage is new, empty, and on the ramdisk.
        """
        if self._stand_in:
            yield Server(Target.parse(archive.dicomweb_url), archive.process.pid)
            return
        folder = Path(tempfile.mkdtemp(prefix="proxy-", dir=self.folder))
        own, http_port = Address("PROXY", free_port()), free_port()
        archive.know(own)
        config = folder / "config.json"
        base = proxy_settings(own, archive.address, http_port, folder, use_cget)
        config.write_text(json.dumps({**base, **settings}))
        command = [sys.executable, "-m", "proxy", "run", "--config", str(config)]
        with Process("proxy", command, folder, env={"PYTHONPATH": str(ROOT)}) as process:
            process.start(lambda: _answers_ping(http_port))
            yield Server(Target(HOST, http_port, ""), process.pid)

    def get_study(self, archive: Orthanc, study_uid: str, series_uid: str | None = None) -> None:
        """Fetch a study or a series by `getscu --bit-preserving` to the ramdisk: the reference of the retrievals."""
        folder = Path(tempfile.mkdtemp(prefix="getscu-", dir=self.folder))
        keys = ["-k", f"QueryRetrieveLevel={'SERIES' if series_uid else 'STUDY'}"]
        keys += ["-k", f"StudyInstanceUID={study_uid}"]
        keys += ["-k", f"SeriesInstanceUID={series_uid}"] if series_uid else []
        scu = Scu(archive.address)
        scu.run("getscu", "-S", "--bit-preserving", "-od", folder, *keys).succeeded()

    def forget_studies(self) -> None:
        """Delete what `get_study` has written. Apart from it, so that deleting is not measured."""
        for folder in self.folder.glob("getscu-*"):
            shutil.rmtree(folder)


class MoveCount:
    """Counts the C-MOVEs that an archive is asked for, from Orthanc's log."""

    LOGGED = b"Move-SCU request received"

    def __init__(self, archive: Orthanc) -> None:
        """Count from now on."""
        archive.rest("PUT", "/tools/log-level-dicom", b"verbose")
        self._log = archive.process.log_path
        self._before = self._logged()

    def _logged(self) -> int:
        return self._log.read_bytes().count(self.LOGGED)

    def so_far(self) -> int:
        """Return their number. Orthanc logs each as it comes, before it sends anything."""
        return self._logged() - self._before


def proxy_settings(own: Address, archive: Address, http_port: int, storage: Path, use_cget: bool) -> dict[str, object]:
    """Return the proxy's configuration for one archive."""
    return {
        "proxyMode": "dimse",
        "webserverPort": http_port,
        "storagePath": str(storage / "data"),
        "enableCache": False,
        "useCget": use_cget,
        "dimseProxySettings": {
            "proxyServer": {"aet": own.aet, "ip": own.host, "port": own.port},
            "peers": [{"aet": archive.aet, "ip": archive.host, "port": archive.port}],
        },
    }


def _answers_ping(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/ping", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def series_uid(number: int, study_uid: str = CT_STUDY_UID) -> str:
    """Return the UID of a study's series, counted from 1."""
    return f"{study_uid}.{number}"


def series_path(number: int, study_uid: str = CT_STUDY_UID) -> str:
    """Return its path."""
    return f"/studies/{study_uid}/series/{series_uid(number, study_uid)}"


def instance_paths(series: int, count: int, query: str = "") -> list[str]:
    """Return the paths of a series' instances in the CT study, each with `query` behind it."""
    path = series_path(series)
    return [f"{path}/instances/{series_uid(series)}.{number}{query}" for number in range(1, count + 1)]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)
