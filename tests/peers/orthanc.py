"""Orthanc as an archive: DIMSE, its REST API, and when asked for its DICOMweb plugin."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from tests.peers.process import HOST, Address, Process, free_port, require, require_program

PLUGIN_PATHS = (
    "/usr/share/orthanc/plugins/libOrthancDicomWeb.so",
    "/usr/lib64/orthanc/plugins/libOrthancDicomWeb.so",
    "/usr/lib/orthanc/plugins/libOrthancDicomWeb.so",
)
RAMDISK = Path("/dev/shm")
REST_TIMEOUT = 60.0


class Orthanc:
    """An Orthanc server on loopback ports, with its storage in `folder` or on the ramdisk. A context manager.

    `nodelay` sets TCP_NODELAY=1 in its environment: without it, DCMTK leaves Nagle's algorithm on, as most
    archives do. `check_called_aet` makes it reject other AE titles. `default_encoding` is the character set
    of its answers: Utf8, Latin1 and so on. `settings` overrides any other key of its configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        aet: str = "ORTHANC",
        nodelay: bool = True,
        dicomweb: bool = False,
        check_called_aet: bool = False,
        default_encoding: str = "Utf8",
        overwrite: bool = True,
        ramdisk: bool = False,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        program = require_program("Orthanc", "orthanc")
        self.address = Address(aet, free_port())
        self.http_port = free_port()
        self._storage = Path(tempfile.mkdtemp(prefix="orthanc-", dir=RAMDISK if ramdisk else folder))
        configuration: dict[str, object] = {
            "Name": "test archive",
            "StorageDirectory": str(self._storage),
            "IndexDirectory": str(self._storage),
            "DicomAet": aet,
            "DicomPort": self.address.port,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomCheckCalledAet": check_called_aet,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "DicomAlwaysAllowStore": True,
            "UnknownSopClassAccepted": True,
            "DefaultEncoding": default_encoding,
            "OverwriteInstances": overwrite,
            "StableAge": 1,
            "SaveJobs": False,
            "Plugins": [dicomweb_plugin()] if dicomweb else [],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **(settings or {}),
        }
        path = folder / f"{aet}.json"
        path.write_text(json.dumps(configuration, indent=2))
        env = {"TCP_NODELAY": "1" if nodelay else None}
        self.process = Process(aet, [program, str(path)], folder, env=env)

    @property
    def url(self) -> str:
        """The root of its REST API, without a trailing slash."""
        return f"http://{HOST}:{self.http_port}"

    @property
    def dicomweb_url(self) -> str:
        """The root of its DICOMweb plugin, without a trailing slash."""
        return f"{self.url}/dicom-web"

    def __enter__(self) -> Self:
        try:
            self.process.start(self._answers)
        except BaseException:
            self._remove_storage()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Its database is thrown away, so it needs no second or two to close it.
        self.kill()
        self._remove_storage()

    def kill(self) -> None:
        """End it at once, as a crash of the archive would."""
        self.process.stop(kill=True)

    def start_again(self, *known: Address) -> None:
        """Start it after `kill`, with the files that it had; destinations have to be made known again."""
        self.process.start(self._answers)
        for peer in known:
            self.know(peer)

    def suspend(self) -> None:
        """Make it fall silent with its connections open, as a hung archive does, until `resume`."""
        self.process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `suspend`."""
        self.process.signal(signal.SIGCONT)

    def rest(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Send one REST request and return the parsed JSON answer. Raises AssertionError on an HTTP error."""
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=REST_TIMEOUT)
        try:
            return self._request(connection, method, path, body)
        finally:
            connection.close()

    def know(self, peer: Address) -> None:
        """Make `peer` known as a C-MOVE destination; replaces an older entry of the same AE title."""
        entry = {"AET": peer.aet, "Host": peer.host, "Port": peer.port, "AllowTranscoding": False}
        self.rest("PUT", f"/modalities/{peer.aet}", json.dumps(entry).encode())

    def upload(self, files: Iterable[bytes | Path]) -> int:
        """Store Part 10 files, given as contents or paths, over REST. Returns their number."""
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=REST_TIMEOUT)
        count = 0
        try:
            for file in files:
                content = file.read_bytes() if isinstance(file, Path) else file
                self._request(connection, "POST", "/instances", content)
                count += 1
        finally:
            connection.close()
        return count

    def delete_all(self) -> None:
        """Empty the archive."""
        for patient in self.rest("GET", "/patients"):
            self.rest("DELETE", f"/patients/{patient}")

    def _request(self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> Any:
        connection.request(method, path, body)
        response = connection.getresponse()
        content = response.read()
        assert response.status < 300, f"Orthanc: {method} {path}: {response.status} {content[:500]!r}"
        return json.loads(content) if content else None

    def _answers(self) -> bool:
        try:
            self.rest("GET", "/system")
        except (OSError, http.client.HTTPException, AssertionError):
            return False
        return True

    def _remove_storage(self) -> None:
        shutil.rmtree(self._storage, ignore_errors=True)


def dicomweb_plugin() -> str:
    """Return the path of Orthanc's DICOMweb plugin, or skip the test."""
    found = [path for path in PLUGIN_PATHS if Path(path).exists()]
    require(found, "Orthanc's DICOMweb plugin is not installed (package orthanc-dicomweb)")
    return found[0]
