"""Handlers for `dul`'s own SCP, among them an archive over a folder of sample files, for peers to call."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import io
import ssl as ssl_module
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import pydicom
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.uid import ImplicitVRLittleEndian

import dul
from dul import dimse
from tests.corpus import Corpus, Sample
from tests.peers.process import HOST, Address

UNIQUE_KEYS = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}


def encode(data_set: Dataset, transfer_syntax: str) -> bytes:
    """Return a data set in an uncompressed little endian transfer syntax."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = transfer_syntax == ImplicitVRLittleEndian
    write_dataset(buffer, data_set)
    return buffer.getvalue()


def decode(data: bytes, transfer_syntax: str) -> Dataset:
    """Undo `encode`."""
    return read_dataset(io.BytesIO(data), transfer_syntax == ImplicitVRLittleEndian, True)


def identifier(level: str = "STUDY", **keys: str) -> dul.Identifier:
    """Return an identifier, encoded once the transfer syntax is known."""
    data_set = Dataset()
    data_set.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(data_set, keyword, value)
    return lambda transfer_syntax: encode(data_set, transfer_syntax)


@dataclass(frozen=True, slots=True)
class Stored:
    """What came with a C-STORE."""

    sop_class_uid: str
    transfer_syntax: str
    data: bytes
    calling_ae_title: str
    originator: tuple[str | None, int | None]


@dataclass
class Archive(dul.Handler):
    """Serves `corpus`, keeps what is stored in `stored`, sends C-MOVE sub-operations to `destinations`.

    `repeat` gives each match that many times.
    """

    corpus: Corpus | None = None
    destinations: Mapping[str, Address] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)
    repeat: int = 1
    destination_ssl: ssl_module.SSLContext | None = None
    echoes: list[str] = field(default_factory=list)
    matches_given: int = 0
    sent: int = 0

    async def on_echo(self, calling_ae_title: str) -> int:
        self.echoes.append(calling_ae_title)
        return dimse.SUCCESS

    async def on_store(self, store: dul.IncomingStore) -> int:
        data = b"".join([chunk async for chunk in store])
        self.stored[store.sop_instance_uid] = Stored(
            store.sop_class_uid,
            store.transfer_syntax,
            data,
            store.calling_ae_title,
            (store.move_originator_ae_title, store.move_originator_message_id),
        )
        return dimse.SUCCESS

    async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
        keys = decode(request.identifier, request.transfer_syntax)
        level = keys.get("QueryRetrieveLevel")
        if level not in UNIQUE_KEYS:
            raise dul.StatusError("C-FIND", dimse.IDENTIFIER_DOES_NOT_MATCH, "no such level")
        found = {}
        for sample in self._matching(keys):
            assert self.corpus is not None
            instance = pydicom.dcmread(self.corpus.path(sample), stop_before_pixels=True)
            found[str(instance[UNIQUE_KEYS[level]].value)] = instance
        for instance in found.values():
            answer = Dataset()
            for element in keys:
                answer[element.tag] = instance.get(element.tag, element)
            encoded = encode(answer, request.transfer_syntax)
            for _ in range(self.repeat):
                self.matches_given += 1
                yield encoded

    async def on_move(self, request: dul.Request) -> dul.MovePlan:
        destination = self.destinations.get(request.move_destination or "")
        if destination is None:
            raise dul.StatusError("C-MOVE", dimse.MOVE_DESTINATION_UNKNOWN)
        peer = dul.Peer(destination.host, destination.port, destination.aet, "ARCHIVE")
        return dul.MovePlan(peer, await self.on_get(request), self.destination_ssl)

    async def on_get(self, request: dul.Request) -> Sequence[dul.Instance]:
        assert self.corpus is not None
        keys = decode(request.identifier, request.transfer_syntax)
        return [self._instance(sample) for sample in self._matching(keys)]

    def _matching(self, keys: Dataset) -> list[Sample]:
        wanted = {
            name: str(keys.get(keyword) or "*")
            for name, keyword in (
                ("patient_id", "PatientID"),
                ("study_uid", "StudyInstanceUID"),
                ("series_uid", "SeriesInstanceUID"),
                ("sop_instance_uid", "SOPInstanceUID"),
            )
        }
        assert self.corpus is not None
        return [
            sample
            for sample in self.corpus.samples
            if all(fnmatch.fnmatchcase(getattr(sample, name), pattern) for name, pattern in wanted.items())
        ]

    def _instance(self, sample: Sample) -> dul.Instance:
        async def read() -> AsyncGenerator[bytes, None]:
            assert self.corpus is not None
            data = self.corpus.data_set(sample)
            self.sent += 1
            for start in range(0, len(data), 1001):
                yield data[start : start + 1001]
                await asyncio.sleep(0)

        return dul.Instance(sample.sop_class_uid, sample.sop_instance_uid, sample.transfer_syntax_uid, read)


class Hanging(dul.Handler):
    """Waits in `on_find` for what never comes."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        yield b""


def instance_of(corpus: Corpus, sample: Sample) -> dul.Instance:
    """Return a sample as bytes, ready to be stored."""
    return dul.Instance(
        sample.sop_class_uid, sample.sop_instance_uid, sample.transfer_syntax_uid, corpus.data_set(sample)
    )


@contextlib.asynccontextmanager
async def serving(handler: dul.Handler, ae_title: str = "SCP", **options: object) -> AsyncIterator[dul.Server]:
    """Run `dul.serve` on a free loopback port, taking the query and retrieve services too."""
    options.setdefault("supported", dul.accept_query_retrieve)
    async with dul.serve(handler, HOST, 0, ae_title=ae_title, **options) as server:  # type: ignore[arg-type]
        yield server


def peer_of(server: dul.Server, ae_title: str = "SCP") -> dul.Peer:
    """Return how `server` is called."""
    return dul.Peer(HOST, server.port, ae_title, "SCU")


def address_of(server: dul.Server, ae_title: str = "SCP") -> Address:
    """Return the same for the programs of `tests.peers`."""
    return Address(ae_title, server.port)
