"""What the soak runs: Orthanc, the scripted archive and the proxy in front of both, each a process of its own."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.peers.orthanc import RAMDISK, Orthanc
from tests.peers.process import HOST, Address, Finished, Process, answers, free_port, run_program
from tests.soak.archive import Moody
from tests.soak.holdings import Holdings

ROOT: Final = Path(__file__).resolve().parents[2]
ARCHIVES: Final = ("Orthanc", "scripted")
"""The archives in the order of the configuration."""

CACHE_MEGABYTES: Final = 2
"""Less than the archives hold, so that series are thrown out of the cache all the time; one study is larger."""

CACHE_MINUTES: Final = 0.1
"""So short that instances also leave the cache by their age."""

TIMEOUTS: Final = {"connect": 2, "associate": 2, "release": 2, "response": 3, "idle": 8, "retrieve": 8}
"""In seconds; the proxy waits 5 s for late C-STOREs, whatever these are, and the last two must be longer."""

MAX_ASSOCIATIONS: Final = 4
PURGE_TIMEOUT: Final = 20.0
STOP_TIMEOUT: Final = 30.0
REST_TIMEOUT: Final = 5.0

# What Python and the proxy print when something went wrong that nobody foresaw.
_UNFORESEEN: Final = ("Traceback", "Exception ignored", "never retrieved", "never awaited", " ERROR ")


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the proxy's process uses at one moment; the resident memory is in bytes."""

    memory: int
    files: int
    threads: int


class ProxyProcess:
    """The proxy, and what can be seen of it from outside."""

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        self.storage = folder / "storage"
        self._config = folder / "config.json"
        self._config.write_text(json.dumps({**settings, "storagePath": str(self.storage)}))
        self.port = int(str(settings["webserverPort"]))
        command = [sys.executable, "-m", "proxy", "run", "--config", str(self._config)]
        environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error"}
        self.process = Process("proxy", command, folder, env=environment)

    @property
    def url(self) -> str:
        """The root of its HTTP server, without a trailing slash."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        """Start it."""
        self.process.start(lambda: answers(self.port))

    def status(self) -> dict[str, Any]:
        """Return what it says of itself."""
        with urllib.request.urlopen(f"{self.url}/status", timeout=REST_TIMEOUT) as response:
            content: dict[str, Any] = json.load(response)
        return content

    def vitals(self) -> Vitals:
        """Look at its process."""
        folder = Path(f"/proc/{self.process.pid}")
        lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        files = sum(1 for _ in (folder / "fd").iterdir())
        return Vitals(int(lines["VmRSS"].split()[0]) * 1024, files, int(lines["Threads"]))

    def spooled(self) -> int:
        """Return the number of files in its spool."""
        spool = self.storage / "spool"
        return sum(1 for path in spool.rglob("*") if path.is_file()) if spool.exists() else 0

    def purge(self, study_uid: str | None = None) -> Finished:
        """Empty its cache, of one study or altogether, as an administrator does while it runs."""
        command = [sys.executable, "-m", "proxy", "purge", "--config", str(self._config)]
        command += ["--study", study_uid] if study_uid else []
        return run_program(command, timeout=PURGE_TIMEOUT, env={"PYTHONPATH": str(ROOT)}, cwd=self.storage.parent)

    def unforeseen(self) -> list[str]:
        """Return the entries of its log on what it did not foresee, tracebacks included."""
        entries: list[str] = []
        for line in self.process.log_path.read_text(errors="replace").splitlines():
            # An entry begins with the date, or is Python's own.
            if not entries or line[:1].isdigit() or line.startswith("Exception ignored"):
                entries.append(line)
            else:
                entries[-1] += f"\n  {line}"
        return [entry for entry in entries if any(mark in entry for mark in _UNFORESEEN)]

    def stop(self) -> int | None:
        """Stop it as a service is stopped; returns the exit code, None when it has not ended in time."""
        self.process.signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT)


@dataclass(frozen=True, slots=True)
class Site:
    """All of it, running."""

    holdings: Holdings
    orthanc: Orthanc
    scripted: Moody
    proxy: ProxyProcess
    store_address: Address

    def start_orthanc_again(self) -> None:
        """Start it after it was killed; it then knows the proxy again as a move destination."""
        self.orthanc.process.start(lambda: answers(self.orthanc.http_port) and answers(self.orthanc.address.port))
        self.orthanc.know(self.store_address)


@contextlib.contextmanager
def site(seed: int, *, swap: bool = False) -> Iterator[Site]:
    """Start everything, on the ramdisk; end it afterwards. `swap` exchanges C-MOVE and C-GET, see `peers`."""
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="soak-", dir=RAMDISK if RAMDISK.is_dir() else None))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        holdings = Holdings.make(folder)
        store_address = Address("PROXY", free_port())
        scripted = Moody(folder, holdings.scripted, store_address, seed)
        stack.callback(scripted.process.stop, kill=True)
        scripted.start()
        orthanc = stack.enter_context(Orthanc(folder, ramdisk=RAMDISK.is_dir()))
        orthanc.upload(holdings.orthanc.paths())
        orthanc.know(store_address)
        peers = _peers(orthanc.address, scripted.address, swap=swap)
        proxy = ProxyProcess(folder, _settings(store_address, peers))
        stack.callback(proxy.process.stop)
        proxy.start()
        yield Site(holdings, orthanc, scripted, proxy, store_address)


def _peers(orthanc: Address, scripted: Address, *, swap: bool) -> list[dict[str, object]]:
    """Orthanc is asked with C-MOVE, and the scripted archive with C-GET; or the other way round."""
    uses_cget = {orthanc: swap, scripted: not swap}
    return [
        {"name": name, "aet": address.aet, "ip": address.host, "port": address.port, "useCget": uses_cget[address]}
        for name, address in zip(ARCHIVES, uses_cget, strict=True)
    ]


def _settings(store_address: Address, peers: list[dict[str, object]]) -> dict[str, object]:
    return {
        "proxyMode": "dimse",
        "webserverHost": HOST,
        "webserverPort": free_port(),
        "enableCache": True,
        "cacheMaxSizeMB": CACHE_MEGABYTES,
        "cacheRetentionMinutes": CACHE_MINUTES,
        "useFetchLevel": "SERIES",
        "maxAssociations": MAX_ASSOCIATIONS,
        "shutdownSeconds": 5,
        "dimseProxySettings": {
            "proxyServer": {"aet": store_address.aet, "ip": store_address.host, "port": store_address.port},
            "peers": peers,
            "timeouts": TIMEOUTS,
        },
    }
