"""Uploads as clients send them, and what an archive has of them afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydicom

import dul
from dul import dimse
from tests.corpus import data_set_bytes
from tests.peers.dcmtk import Storescp
from tests.peers.orthanc import Orthanc
from tests.peers.process import HOST, Address
from tests.peers.pynetdicom_peer import PynetdicomScp
from tests.proxy.retrieved import Answer
from tests.proxy.running import Proxy

BOUNDARY = "5f2b0c6d"
CONTENT_TYPE = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'
FAILED, REFERENCED, OTHERS, URL = "00081198", "00081199", "0008119A", "00081190"


def multipart(files: Iterable[bytes]) -> bytes:
    """Return a body with a part for each file."""
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(head + file + b"\r\n" for file in files) + f"--{BOUNDARY}--\r\n".encode()


async def post(
    proxy: Proxy,
    body: bytes | AsyncIterator[bytes],
    path: str = "/studies",
    *,
    content_type: str = CONTENT_TYPE,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send an upload, and read the answer."""
    sent = {"Content-Type": content_type, **(headers or {})}
    data = io.BytesIO(body) if isinstance(body, bytes) else body
    async with asyncio.timeout(25), proxy.http.post(path, data=data, headers=sent) as response:
        return await Answer.read(response)


def instances(report: Mapping[str, Any], sequence: str) -> dict[str, dict[str, Any]]:
    """Return the items of a sequence of the answer by SOP Instance UID."""
    items = report.get(sequence, {"Value": []})["Value"]
    found = {item["00081155"]["Value"][0]: item for item in items}
    assert len(found) == len(items)
    return found


def reasons(report: Mapping[str, Any]) -> dict[str, int]:
    """Return the Failure Reasons by SOP Instance UID."""
    return {uid: item["00081197"]["Value"][0] for uid, item in instances(report, FAILED).items()}


def report_of(answer: Answer, status: int) -> dict[str, Any]:
    """Return the answer of an upload, which is DICOM JSON; clients want no parameter behind that."""
    assert answer.status == status, answer.body
    assert answer.content_type == "application/dicom+json"
    report = json.loads(answer.body)
    pydicom.Dataset.from_json(report)
    assert isinstance(report, dict)
    return report


def received(archive: Storescp | PynetdicomScp | Orthanc) -> dict[str, str]:
    """Return the SHA-256 of the data sets that an archive has, by SOP Instance UID."""
    if isinstance(archive, Orthanc):
        urls = [f"{archive.url}/instances/{each}/file" for each in archive.rest("GET", "/instances")]
        files = [urllib.request.urlopen(url).read() for url in urls]
    else:
        files = [path.read_bytes() for path in archive.files()]
    return {_uid(file): _sha256(data_set_bytes(file)) for file in files}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _uid(file: bytes) -> str:
    return str(pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True).SOPInstanceUID)


Respond = Callable[[dul.IncomingStore], Awaitable[int]]


@dataclass
class Receiver(dul.Handler):
    """A C-STORE SCP that does as a test says: `respond` reads the data set, or not, and gives the status.

    `stored` are the SHA-256 of data sets that came whole, `begun` counts those that came at all.
    """

    respond: Respond | None = None
    stored: dict[str, str] = field(default_factory=dict)
    begun: int = 0
    server: dul.Server | None = None
    associations: int = 0
    most_associations: int = 0

    async def on_store(self, store: dul.IncomingStore) -> int:
        self.begun += 1
        assert self.server is not None
        self.most_associations = max(self.most_associations, self.server.association_count)
        if self.respond is not None:
            return await self.respond(store)
        return await self.take(store)

    async def take(self, store: dul.IncomingStore) -> int:
        """Take an instance."""
        digest = hashlib.sha256()
        async for chunk in store:
            digest.update(chunk)
        self.stored[store.sop_instance_uid] = digest.hexdigest()
        return dimse.SUCCESS

    def admit(self, *_: object) -> None:
        """Count an association."""
        self.associations += 1

    @property
    def address(self) -> Address:
        """Where it listens."""
        assert self.server is not None
        return Address("RECEIVER", self.server.port)


@contextlib.asynccontextmanager
async def receiving(
    respond: Respond | None = None,
    *,
    supported: Callable[[str], Sequence[str]] = dul.accept_all_storage,
    timeouts: dul.Timeouts | None = None,
) -> AsyncIterator[Receiver]:
    """Run a `Receiver`."""
    receiver = Receiver(respond)
    receiver.server = dul.Server(
        receiver, ae_title="RECEIVER", supported=supported, admit=receiver.admit, timeouts=timeouts
    )
    await receiver.server.start(HOST, 0)
    try:
        yield receiver
    finally:
        await receiver.server.close()
