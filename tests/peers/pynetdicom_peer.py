"""pynetdicom as a peer: an archive and an SCU, each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydicom.dataset import Dataset

from tests.peers.process import Address, Process, answers, free_port, require, run_program

ROOT = Path(__file__).resolve().parents[2]
SCU_TIMEOUT = 60.0
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True, slots=True)
class Response:
    """One DIMSE response: status, the sub-operation counters that came, and the identifier."""

    status: int | None
    counters: dict[str, int]
    identifier: Dataset | None


class PynetdicomScp:
    """A C-ECHO, C-STORE, C-FIND, C-MOVE and C-GET SCP (Study Root). A context manager.

    It serves the Part 10 files of `serve`, keeps what is stored, byte for byte, in `received`, and sends
    C-MOVE sub-operations to `destinations`. `settings` are further fields of `pynetdicom_scp.Settings`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        aet: str = "PYNETDICOM",
        serve: Path | None = None,
        destinations: Iterable[Address] = (),
        **settings: object,
    ) -> None:
        require_pynetdicom()
        self.address = Address(aet, free_port())
        self.received = folder / f"{aet}-received"
        self.received.mkdir()
        self.destinations = {peer.aet: peer for peer in destinations}
        self._settings = {**settings, "folder": str(serve) if serve else None}
        self._folder = folder
        self.process = self._new_process()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop(kill=True)

    def know(self, peer: Address) -> None:
        """Make `peer` known as a C-MOVE destination. Restarts the program."""
        self.destinations[peer.aet] = peer
        self.process.stop(kill=True)
        self.process = self._new_process()
        self._start()

    def kill(self) -> None:
        """End it at once, as a crash of the archive would."""
        self.process.stop(kill=True)

    def files(self) -> list[Path]:
        """Return the files received so far."""
        return sorted(self.received.iterdir())

    def _start(self) -> None:
        self.process.start(lambda: answers(self.address.port))

    def _new_process(self) -> Process:
        settings = {
            **self._settings,
            "aet": self.address.aet,
            "port": self.address.port,
            "received": str(self.received),
            "destinations": {peer.aet: (peer.host, peer.port) for peer in self.destinations.values()},
        }
        command = [sys.executable, "-m", "tests.peers.pynetdicom_scp", json.dumps(settings)]
        return Process(self.address.aet, command, self._folder, env=ENVIRONMENT)


@dataclass(frozen=True, slots=True)
class PynetdicomScu:
    """An SCU that calls one peer; one association for each call.

    Raises AssertionError when no association comes about, PeerFailedError when it takes too long.
    """

    peer: Address
    aet: str = "PYNETSCU"
    timeout: float = SCU_TIMEOUT
    max_pdu: int = 16382

    def echo(self) -> list[Response]:
        """C-ECHO."""
        return self._run("echo")

    def store(self, files: Iterable[Path]) -> list[Response]:
        """C-STORE; pynetdicom decodes and encodes each data set again."""
        return self._run("store", files=[str(file) for file in files])

    def find(self, identifier: Dataset) -> list[Response]:
        """C-FIND; returns the matches and the final response."""
        return self._run("find", identifier=identifier.to_json_dict())

    def move(self, identifier: Dataset, destination: str) -> list[Response]:
        """C-MOVE; returns the pending responses and the final one."""
        return self._run("move", identifier=identifier.to_json_dict(), destination=destination)

    def get(self, identifier: Dataset, storage: Iterable[tuple[str, str]], received: Path) -> list[Response]:
        """C-GET into a folder, byte for byte, of some pairs of SOP class and transfer syntax."""
        return self._run(
            "get", identifier=identifier.to_json_dict(), storage=sorted(set(storage)), received=str(received)
        )

    def _run(self, verb: str, **fields: object) -> list[Response]:
        require_pynetdicom()
        request = {
            **fields,
            "verb": verb,
            "host": self.peer.host,
            "port": self.peer.port,
            "called_aet": self.peer.aet,
            "calling_aet": self.aet,
            "max_pdu": self.max_pdu,
        }
        command = [sys.executable, "-m", "tests.peers.pynetdicom_scu", json.dumps(request)]
        output = run_program(command, timeout=self.timeout, env=ENVIRONMENT, cwd=ROOT).succeeded().output
        return [_response(json.loads(line)) for line in output.splitlines() if line.startswith("{")]


def _response(answer: dict[str, Any]) -> Response:
    identifier = answer.get("identifier")
    return Response(
        answer["status"],
        answer.get("counters", {}),
        Dataset.from_json(identifier) if identifier else None,
    )


def require_pynetdicom() -> None:
    """Skip the test when pynetdicom is not installed."""
    require(importlib.util.find_spec("pynetdicom"), "pynetdicom is not installed (pip install pynetdicom)")
