"""What the tests of searches share: asking the proxy, reading DICOM JSON, and archives that answer by a script."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import yarl
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

import dul
from dul import uids
from dul.pdu import AAssociateRJ, AAssociateRQ
from tests.corpus import uid
from tests.dul.archive import decode, encode
from tests.peers.process import HOST, Address
from tests.proxy.running import Proxy, proxy_for

Entity = dict[str, Any]
SCRIPTED_AET = "SCRIPTED"


# --- asking --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer that has been read to its end."""

    status: int
    headers: dict[str, str]
    json: Any


async def fetch(proxy: Proxy, target: str, *, method: str = "GET", **headers: str) -> Reply:
    """Send a request for `target`, which goes out as it stands; underscores in names of headers become hyphens."""
    url = yarl.URL(proxy.url + target, encoded=True)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with proxy.http.request(method, url, headers=named) as response:
        body = await response.json(content_type=None)
        return Reply(response.status, dict(response.headers), body)


async def ask(proxy: Proxy, target: str) -> list[Entity]:
    """Search; returns the entities of a well-formed answer."""
    reply = await fetch(proxy, target)
    assert reply.status == 200, reply.json
    assert reply.headers["Content-Type"].partition(";")[0] == "application/dicom+json"
    assert isinstance(reply.json, list)
    return reply.json


# --- reading -------------------------------------------------------------------------------------------------


def tag(keyword: str) -> str:
    """Return the key of an attribute in DICOM JSON."""
    number = tag_for_keyword(keyword)
    assert number is not None, keyword
    return f"{number:08X}"


def value(entity: Entity, keyword: str) -> Any:
    """Return the first value of an attribute that must be there, None where it is empty."""
    values = entity[tag(keyword)].get("Value", [None])
    return values[0]


def values(entities: Iterable[Entity], keyword: str) -> list[Any]:
    """Return the first value of an attribute in each entity."""
    return [value(entity, keyword) for entity in entities]


# --- scripted archives ---------------------------------------------------------------------------------------

Answers = AsyncGenerator[Dataset | bytes, None]
Script = Callable[[Dataset], Answers]
"""Gives the answers to an identifier, as data sets or already encoded."""


@dataclass
class Scripted(dul.Handler):
    """An archive whose C-FIND does what `script` says, and which remembers what it was asked.

    `searches` are the identifiers that came, `associations` counts those for C-FIND, `most` is the largest number of
    associations at one time, `given` counts the answers. `closed` is set when a search has ended, whichever way.
    """

    script: Script
    aet: str = SCRIPTED_AET
    searches: list[Dataset] = field(default_factory=list)
    associations: int = 0
    most: int = 0
    given: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    server: dul.Server | None = None

    @property
    def address(self) -> Address:
        """Where it listens."""
        assert self.server is not None
        return Address(self.aet, self.server.port)

    def admit(self, request: AAssociateRQ, host: str) -> AAssociateRJ | None:
        """Count associations."""
        assert self.server is not None
        self.most = max(self.most, self.server.association_count + 1)
        syntaxes = {context.abstract_syntax for context in request.presentation_contexts}
        self.associations += uids.STUDY_ROOT_FIND in syntaxes
        return None

    async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
        keys = decode(request.identifier, request.transfer_syntax)
        self.searches.append(keys)
        answers = self.script(keys)
        try:
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    self.given += 1
                    yield answer if isinstance(answer, bytes) else encode(answer, request.transfer_syntax)
        finally:
            self.closed.set()


@contextlib.asynccontextmanager
async def scripted(script: Script, *, aet: str = SCRIPTED_AET, port: int = 0) -> AsyncIterator[Scripted]:
    """Run an archive that answers by `script`."""
    archive = Scripted(script, aet)
    archive.server = dul.Server(archive, ae_title=aet, supported=dul.accept_query_retrieve, admit=archive.admit)
    await archive.server.start(HOST, port)
    try:
        yield archive
    finally:
        await archive.server.close()


@contextlib.asynccontextmanager
async def proxied(script: Script, **more: Any) -> AsyncIterator[tuple[Scripted, Proxy]]:
    """Run such an archive, and the proxy in front of it; `more` is as for `proxy_for`."""
    async with scripted(script) as archive, proxy_for(archive.address, use_cget=True, **more) as proxy:
        yield archive, proxy


def study(number: int = 1, **attributes: object) -> Dataset:
    """Return an answer of the STUDY level."""
    answer = Dataset()
    answer.QueryRetrieveLevel = "STUDY"
    answer.StudyInstanceUID = uid(9, number)
    for keyword, content in attributes.items():
        setattr(answer, keyword, content)
    return answer


def giving(*answers: Dataset | bytes) -> Script:
    """Return a script that gives the same answers to each search."""

    async def script(_: Dataset) -> Answers:
        for answer in answers:
            yield answer

    return script


def failing(status: int, *answers: Dataset) -> Script:
    """Return a script that gives some answers and then ends with a failure status."""

    async def script(_: Dataset) -> Answers:
        for answer in answers:
            yield answer
        raise dul.StatusError("C-FIND", status, "Patient Doe^John is nobody's business")

    return script


# --- very many studies -----------------------------------------------------------------------------------------


def made(number: int) -> bytes:
    """Return the encoded answer for one of very many studies."""
    return TEMPLATE.replace(b"9.100000", b"9.%d" % (100_000 + number))


TEMPLATE = encode(
    study(
        100_000,
        SpecificCharacterSet="ISO_IR 100",
        StudyDate="20240101",
        StudyTime="101112",
        AccessionNumber="A12345",
        ModalitiesInStudy=["CT", "SR"],
        ReferringPhysicianName="Referrer^Rita",
        StudyDescription="Schädel nativ und mit Kontrastmittel",
        PatientName="Müller^Jürgen",
        PatientID="P12345",
        PatientBirthDate="19700101",
        PatientSex="O",
        StudyID="1",
        NumberOfStudyRelatedSeries=2,
        NumberOfStudyRelatedInstances=500,
    ),
    ExplicitVRLittleEndian,
)


def many(count: int | None = None) -> Script:
    """Return a script that gives that many studies, without end for None, as fast as they are taken."""

    async def script(_: Dataset) -> Answers:
        for number in itertools.count() if count is None else range(count):
            yield made(number)

    return script
