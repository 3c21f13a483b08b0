"""What the tests of the demo archive have in common: instances without files, identifiers, and calls of our own SCU."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pydicom
import pytest

import dul
from dul import Context, StatusError, uids
from proxy.dataset.dictionary import tag_of, vr_of
from proxy.dataset.reader import EXPLICIT_VR_LITTLE_ENDIAN, Element, parse
from proxy.dataset.values import encodings_in, text_of
from proxy.dataset.writer import TagPath, encode_identifier
from proxy.demo.archive import DemoArchive
from proxy.demo.index import Index, StoredInstance
from tests import corpus
from tests.corpus import Sample
from tests.peers.process import Address, Finished

CT = "1.2.840.10008.5.1.4.1.1.2"
SERVICES = [
    *map(Context, (uids.STUDY_ROOT_FIND, uids.STUDY_ROOT_MOVE, uids.STUDY_ROOT_GET)),
    *map(Context, (uids.PATIENT_ROOT_FIND, uids.PATIENT_ROOT_MOVE, uids.PATIENT_ROOT_GET, uids.VERIFICATION)),
]
DATA = bytes(range(256)) * 1000
"""What instances without a file are sent as; nothing on the way looks into it."""

Given = str | bytes | list[list[Element]]


def address(archive: DemoArchive) -> Address:
    return Address("DEMO", archive.port)


def element(keyword: str, value: Given) -> Element:
    """A data element; text is encoded in UTF-8."""
    tag = tag_of(keyword)
    assert tag is not None
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        value += b" " * (len(value) % 2)
    return Element(tag, vr_of(tag), value)


def add(index: Index, study: int, series: int, instance: int, **values: Given) -> StoredInstance | None:
    """Add an instance without a file, and with `DATA` to be sent."""
    given: dict[str, Given] = {
        "SOPClassUID": CT,
        "SOPInstanceUID": f"1.2.{study}.{series}.{instance}",
        "StudyInstanceUID": f"1.2.{study}",
        "SeriesInstanceUID": f"1.2.{study}.{series}",
        "PatientID": f"P{study}",
        **values,
    }
    elements = [element(keyword, value) for keyword, value in given.items()]
    return index.add(elements, transfer_syntax=EXPLICIT_VR_LITTLE_ENDIAN, data=DATA)


def identifier(level: str, **keys: str) -> Callable[[str], bytes]:
    """The function that encodes an identifier in the transfer syntax of its presentation context."""
    return identifier_of_paths(level, {}, **keys)


def identifier_of_paths(level: str, paths: Mapping[TagPath, str], **keys: str) -> Callable[[str], bytes]:
    """The same with keys in sequences."""
    named: dict[TagPath, str] = {(tag,): value for key, value in keys.items() if (tag := tag_of(key)) is not None}
    assert len(named) == len(keys)
    wanted = {(0x00080052,): level, **named, **paths}
    return lambda syntax: encode_identifier(wanted, explicit=syntax == EXPLICIT_VR_LITTLE_ENDIAN)


def connected(archive: DemoArchive, contexts: Sequence[Context] = ()) -> AbstractAsyncContextManager[dul.Association]:
    """An association of our own SCU."""
    return dul.connect(dul.Peer("127.0.0.1", archive.port, "DEMO", "TEST"), contexts or SERVICES)


async def find_all(
    archive: DemoArchive, wanted: Callable[[str], bytes], model: str = uids.STUDY_ROOT_FIND, syntax: str | None = None
) -> list[list[Element]]:
    """C-FIND by our own SCU, in a presentation context of one transfer syntax."""
    contexts = [Context(model, (syntax or EXPLICIT_VR_LITTLE_ENDIAN,))]
    async with connected(archive, contexts) as association:
        return [parse(match.data, match.transfer_syntax) async for match in association.find(wanted, model=model)]


def texts(answer: Iterable[Element]) -> dict[str, str]:
    """An answer's values as text by keyword."""
    elements = list(answer)
    encodings = encodings_in(elements)
    return {pydicom.datadict.keyword_for_tag(each.tag): text_of(each, encodings) for each in elements}


async def find_texts(archive: DemoArchive, level: str, **keys: str) -> list[dict[str, str]]:
    """C-FIND by our own SCU, Study Root, with its answers as text."""
    return [texts(answer) for answer in await find_all(archive, identifier(level, **keys))]


async def scu(call: Callable[..., Finished], *arguments: object, **options: object) -> Finished:
    """Run one of DCMTK's SCUs, which blocks, while the archive runs in this loop."""
    return await asyncio.to_thread(call, *arguments, **options)


def received(folder: Path) -> dict[str, str]:
    """The SHA-256 of each data set in a folder by SOP instance UID."""
    files = (corpus.describe(path.read_bytes(), path.name) for path in folder.rglob("*") if path.is_file())
    return {sample.sop_instance_uid: sample.sha256 for sample in files}


def expected(samples: Iterable[Sample]) -> dict[str, str]:
    """The same of samples."""
    return {sample.sop_instance_uid: sample.sha256 for sample in samples}


async def failure(archive: DemoArchive, model: str, wanted: Callable[[str], bytes], destination: str = "DEST") -> int:
    """The status that an operation fails with."""
    async with connected(archive) as association:
        with pytest.raises(StatusError) as error:
            if model.endswith("1"):
                _ = [match async for match in association.find(wanted, model=model)]
            elif model.endswith("2"):
                _ = [p async for p in association.move(wanted, destination=destination, model=model)]
            else:
                _ = [instance async for instance in association.get(wanted, model=model)]
    return error.value.status
