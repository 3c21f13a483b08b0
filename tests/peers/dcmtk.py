"""DCMTK's programs: `dcmqrscp` as an archive, `storescp` as a receiver, and its SCUs run to their end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.corpus import PRIVATE_STORAGE, Sample
from tests.peers.process import Address, Finished, Process, answers, free_port, require_program, run_program

SCU_TIMEOUT = 60.0
UNCOMPRESSED = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})


def dcmqrscp_takes(sample: Sample) -> bool:
    """Tell whether DCMTK 3.6.7's `dcmqrscp` stores a sample.

    It refuses private storage classes and, as configured here, compressed transfer syntaxes.
    """
    return sample.sop_class_uid != PRIVATE_STORAGE and sample.transfer_syntax_uid in UNCOMPRESSED


class Dcmqrscp:
    """DCMTK's image archive with one storage area. A context manager.

    It converts between the uncompressed transfer syntaxes, to Explicit VR Little Endian when it has the
    choice: what was stored in that one comes out unchanged, the others do not.
    It sends C-MOVE sub-operations only to `destinations` and to what `know` adds. `options` are further
    command line options, such as `-XF` (check identifiers) or `--disable-get`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        aet: str = "DCMQRSCP",
        destinations: Iterable[Address] = (),
        options: Sequence[str] = (),
        nodelay: bool = True,
    ) -> None:
        program = require_program("dcmqrscp", "dcmtk")
        self.address = Address(aet, free_port())
        self.destinations = {peer.aet: peer for peer in destinations}
        self._storage = folder / f"{aet}-storage"
        self._storage.mkdir()
        self._config = folder / f"{aet}.cfg"
        command = [program, "-v", "-c", str(self._config), *options, str(self.address.port)]
        self.process = Process(aet, command, folder, env=_environment(nodelay))

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()

    def know(self, peer: Address) -> None:
        """Make `peer` known as a C-MOVE destination. Restarts the program, which reads its list only once."""
        self.destinations[peer.aet] = peer
        self.process.stop()
        self._start()

    def kill(self) -> None:
        """End it at once, as a crash of the archive would."""
        self.process.stop(kill=True)

    def _start(self) -> None:
        self._config.write_text(self._configuration())
        self.process.start(lambda: answers(self.address.port))

    def _configuration(self) -> str:
        hosts = "\n".join(
            f"host{number} = ({peer.aet}, {peer.host}, {peer.port})"
            for number, peer in enumerate(self.destinations.values())
        )
        return (
            f"NetworkTCPPort = {self.address.port}\n"
            "MaxPDUSize = 131072\n"
            "MaxAssociations = 64\n"
            f"HostTable BEGIN\n{hosts}\nHostTable END\n"
            "VendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\n{self.address.aet} {self._storage} RW (500, 4096mb) ANY\nAETable END\n"
        )


class Storescp:
    """DCMTK's C-STORE SCP; writes what comes, byte for byte, into `received`. A context manager.

    It takes every storage class, also private ones, in every transfer syntax that it knows. `options` are
    further command line options, such as `--abort-during` or `--sleep-after 1`.
    """

    def __init__(self, folder: Path, *, aet: str = "STORESCP", options: Sequence[str] = ()) -> None:
        program = require_program("storescp", "dcmtk")
        self.address = Address(aet, free_port())
        self.received = folder / f"{aet}-received"
        self.received.mkdir()
        command = [program, "-v", "--fork", "-aet", aet, "+xa", "-pm", "--bit-preserving"]
        command += ["-od", str(self.received), *options, str(self.address.port)]
        self.process = Process(aet, command, folder, env=_environment(nodelay=True))

    def __enter__(self) -> Self:
        self.process.start(lambda: answers(self.address.port))
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()

    def files(self) -> list[Path]:
        """Return the files received so far."""
        return sorted(self.received.iterdir())


@dataclass(frozen=True, slots=True)
class Scu:
    """The SCU programs, calling one peer. Raises PeerFailedError when one does not end within `timeout`.

    `options` are put before those of each call. `nodelay` turns Nagle's algorithm off on its side.
    """

    peer: Address
    aet: str = "TESTSCU"
    timeout: float = SCU_TIMEOUT
    options: tuple[str, ...] = ()
    nodelay: bool = True

    def run(self, program: str, *arguments: str | Path) -> Finished:
        """Run one of the programs with any arguments, after the peer's host and port."""
        path = require_program(program, "dcmtk")
        command = [path, "-aet", self.aet, "-aec", self.peer.aet, *self.options]
        command += [self.peer.host, str(self.peer.port), *map(str, arguments)]
        return run_program(command, timeout=self.timeout, env=_environment(self.nodelay))

    def echo(self, *arguments: str) -> Finished:
        """Run `echoscu`: C-ECHO."""
        return self.run("echoscu", "-v", *arguments)

    def store(self, files: Iterable[Path], *arguments: str) -> Finished:
        """Run `storescu`: C-STORE of files. Give `-xv` and the like for compressed ones."""
        return self.run("storescu", "-v", *arguments, *files)

    def find(self, *keys: str, level: str = "STUDY", arguments: Sequence[str] = ("-S",)) -> list[Dataset]:
        """Run `findscu`: C-FIND, with keys such as `PatientName=*` and, by default, the Study Root model.

        Returns the matches as data sets. Raises AssertionError when the program fails.
        """
        folder = Path(tempfile.mkdtemp(prefix="findscu-"))
        try:
            options = ["-X", "-od", str(folder), "-k", f"QueryRetrieveLevel={level}"]
            self.run("findscu", *arguments, *options, *_key_options(keys)).succeeded()
            return [pydicom.dcmread(path, force=True) for path in sorted(folder.iterdir())]
        finally:
            shutil.rmtree(folder)

    def move(self, destination: str, *keys: str, level: str = "STUDY", arguments: Sequence[str] = ("-S",)) -> Finished:
        """Run `movescu`: C-MOVE to the AE title `destination`."""
        options = ["-aem", destination, "-k", f"QueryRetrieveLevel={level}"]
        return self.run("movescu", "-v", *arguments, *options, *_key_options(keys))

    def get(self, folder: Path, *keys: str, level: str = "STUDY", arguments: Sequence[str] = ("-S",)) -> Finished:
        """Run `getscu --bit-preserving`: C-GET into a folder. Give `+xv` and the like for compressed ones."""
        options = ["--bit-preserving", "-od", str(folder), "-k", f"QueryRetrieveLevel={level}"]
        return self.run("getscu", "-v", *arguments, *options, *_key_options(keys))


def _key_options(keys: Iterable[str]) -> list[str]:
    return [argument for key in keys for argument in ("-k", key)]


def _environment(nodelay: bool) -> dict[str, str | None]:
    # DCMTK leaves Nagle's algorithm on unless this variable says otherwise.
    return {"TCP_NODELAY": "1" if nodelay else None}
