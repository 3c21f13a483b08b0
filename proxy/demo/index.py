"""What the demo archive has, in memory: patients, studies, series and instances, with the values of their keys.

What may live here: the index, and filling it from files. Pixel data and other long values are never kept: an
instance of the index knows where its encoded data set is, and no more than the attributes of `attributes.py`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from sys import intern
from typing import Final, TypeAlias

from proxy.dataset.charset import Encodings, encodings_of
from proxy.dataset.dictionary import SPECIFIC_CHARACTER_SET
from proxy.dataset.part10 import FileMeta, Part10Error, read_header
from proxy.dataset.reader import Bytes, DatasetError, Element, parse
from proxy.dataset.reader import Value as ReadValue
from proxy.dataset.values import SINGLE_VALUED, TEXTS, find, strings
from proxy.demo.attributes import HELD, PATIENT_ID, SOP_CLASS_UID, UNIQUE_KEYS, QueryLevel

MAX_INSTANCES: Final = 100_000
"""An instance with a study of its own costs 3 KB, so this is 300 MB; a folder of that many files is no demonstration
any more."""

MAX_VALUE: Final = 10_240
"""The longest text that can be a key is an LT of this many characters (PS3.5 Table 6.2-1); longer values are
left out."""

MAX_SEQUENCE: Final = 4_096
"""Bytes that a sequence may take, as `_size` counts them: codes and request attributes have some hundreds. Longer ones
are left out."""

CHUNK: Final = 256 * 1024
"""Bytes of one read from a file on its way to the network."""

_HEAD: Final = 64 * 1024

Value: TypeAlias = "bytes | list[list[Element]]"
"""A value field in little endian, or the items of a sequence."""

Values: TypeAlias = dict[int, Value]


class NotIndexedError(Exception):
    """An instance that the index does not take. The message says why, and nothing of the patient."""


class IndexFullError(NotIndexedError):
    """There are as many instances as the index may hold."""


@dataclass(frozen=True, slots=True, eq=False)
class CharacterSet:
    """Specific Character Set (0008,0005) of an instance: as encoded, and ready for decoding.

    There is one for each value that occurs; two that are not the same object may be taken for different.
    """

    encoded: bytes
    encodings: Encodings


@dataclass(frozen=True, slots=True)
class FileData:
    """An encoded data set in a file: all from `offset` on."""

    path: str
    offset: int

    async def chunks(self) -> AsyncIterator[bytes]:
        """The data set in pieces of `CHUNK` bytes; OSError when it cannot be read.

        Reads are done right here: one of a local file takes less time than handing it to a thread does.
        """
        with Path(self.path).open("rb", buffering=0) as file:  # noqa: ASYNC230 - see above
            file.seek(self.offset)
            while chunk := file.read(CHUNK):
                yield chunk


@dataclass(slots=True)
class StoredInstance:
    """A composite instance. `values` are those of the IMAGE level."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: str
    data: bytes | FileData
    values: Values = field(repr=False)
    character_set: CharacterSet = field(repr=False)


@dataclass(slots=True)
class Series:
    """A series; its values are those of the first of its instances that came."""

    values: Values = field(repr=False)
    character_set: CharacterSet = field(repr=False)
    instances: dict[str, StoredInstance] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class Study:
    """A study; its values, those of its patient included, are those of the first of its instances that came."""

    patient: Patient
    values: Values = field(repr=False)
    character_set: CharacterSet = field(repr=False)
    series: dict[str, Series] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class Patient:
    """Studies that have the same Patient ID."""

    key: str
    studies: dict[str, Study] = field(default_factory=dict, repr=False)


class Index:
    """Instances by study, series and SOP instance UID; never by the last alone, since archives hold the same one in
    two series.

    All its state belongs to one thread. Iterate over copies of its dictionaries where the event loop may run
    meanwhile.
    """

    def __init__(self, max_instances: int = MAX_INSTANCES) -> None:
        self.patients: dict[str, Patient] = {}
        self.studies: dict[str, Study] = {}
        self.instance_count = 0
        self._max_instances = max_instances

    def add(
        self, elements: Iterable[Element], *, transfer_syntax: str, data: bytes | FileData, sop_class_uid: str = ""
    ) -> StoredInstance | None:
        """Add an instance, or put it in the place of the one with the same three UIDs, which is returned.

        `elements` is its data set, or as much of it as shall be found; `data` is what will be sent, encoded in
        `transfer_syntax`. `sop_class_uid` is for data sets that do not have it themselves. Raises
        `NotIndexedError` when one of the UIDs is missing or too long, `IndexFullError` when there is no room.
        """
        study_values, series_values, image_values, character_set = _held(elements)
        study_uid = _checked_uid(study_values, QueryLevel.STUDY)
        series_uid = _checked_uid(series_values, QueryLevel.SERIES)
        instance = StoredInstance(
            intern(_text(image_values.get(SOP_CLASS_UID)) or sop_class_uid),
            _checked_uid(image_values, QueryLevel.IMAGE),
            intern(transfer_syntax),
            data,
            image_values,
            character_set,
        )
        if not _is_uid(instance.sop_class_uid):
            raise NotIndexedError("no SOP Class UID")
        replaced = self.remove(study_uid, series_uid, instance.sop_instance_uid)
        if self.instance_count >= self._max_instances:
            raise IndexFullError(f"the index is full: {self._max_instances} instances")
        study = self.studies.get(study_uid)
        if study is None:
            study = self._new_study(study_uid, study_values, character_set)
        series = study.series.get(series_uid)
        if series is None:
            series = study.series[series_uid] = Series(series_values, character_set)
        series.instances[instance.sop_instance_uid] = instance
        self.instance_count += 1
        return replaced

    def _new_study(self, uid: str, values: Values, character_set: CharacterSet) -> Study:
        patient_id = values.get(PATIENT_ID)
        names = strings(patient_id, "LO", character_set.encodings) if isinstance(patient_id, bytes) else []
        # Without a Patient ID nobody knows that two studies are of the same patient.
        key = "\\".join(names) or f"\0{uid}"
        patient = self.patients.setdefault(key, Patient(key))
        study = self.studies[uid] = patient.studies[uid] = Study(patient, values, character_set)
        return study

    def remove(self, study_uid: str, series_uid: str, sop_instance_uid: str) -> StoredInstance | None:
        """Take an instance out, and with the last one its series, study and patient; None when it is not there."""
        study = self.studies.get(study_uid)
        series = study.series.get(series_uid) if study else None
        instance = series.instances.pop(sop_instance_uid, None) if series else None
        if study is None or series is None or instance is None:
            return None
        self.instance_count -= 1
        if not series.instances:
            del study.series[series_uid]
        if not study.series:
            del self.studies[study_uid], study.patient.studies[study_uid]
        if not study.patient.studies:
            del self.patients[study.patient.key]
        return instance

    def add_file(self, path: Path) -> StoredInstance | None:
        """`add` the instance of a Part 10 file, which must stay where it is, and stay as it is.

        Raises `NotIndexedError` for what is no such file or no well-formed data set, and OSError.
        """
        meta, elements = read_file(path)
        data = FileData(str(path), meta.data_set_offset)
        return self.add(elements, transfer_syntax=meta.transfer_syntax, data=data, sop_class_uid=meta.sop_class_uid)


def scan(index: Index, folder: Path, *, without: Path | None = None) -> Iterator[str | None]:
    """Add all files in and below `folder`, but not those below `without`; in the order of their names, one at each
    step.

    Yields None for a file that was added, and otherwise why it was not, without its name. Files and folders with a
    leading dot and symbolic links to folders are passed over. Never raises for what is in the folder.
    """
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != "." and Path(parent, name) != without)
        for name in sorted(files):
            if name.startswith("."):
                continue
            try:
                index.add_file(Path(parent, name))
            except NotIndexedError as error:
                yield str(error)
            except OSError as error:
                yield error.strerror or type(error).__name__
            else:
                yield None


def read_file(path: Path) -> tuple[FileMeta, list[Element]]:
    """The header and the data set of a Part 10 file.

    Raises `NotIndexedError` for what is no such file or no well-formed data set, and OSError.
    """
    if not path.is_file():  # opening a FIFO would wait for a writer
        raise NotIndexedError("not a regular file")
    with path.open("rb") as file:
        head = file.read(_HEAD)
        try:
            meta = read_header(head)
        except Part10Error:
            raise NotIndexedError("no DICOM Part 10 file") from None
        data: Bytes = head
        if len(head) == _HEAD:
            # A map reads the pages that the parser looks at, which those of pixel data are not. It is unmapped when
            # the last element that is a view of it is gone, and the index keeps none.
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return meta, parse(data[meta.data_set_offset :], meta.transfer_syntax)
    except DatasetError:
        raise NotIndexedError("a malformed data set") from None


# --- from elements to values ---------------------------------------------------------------------------------


def _held(elements: Iterable[Element]) -> tuple[Values, Values, Values, CharacterSet]:
    """The values for a study, a series and an instance."""
    levels: tuple[Values, Values, Values] = ({}, {}, {})
    elements = list(elements)
    for element in elements:
        attribute = HELD.get(element.tag)
        if attribute is not None:
            value = _kept(element, attribute.vr)
            if value is not None:
                levels[max(attribute.level, QueryLevel.STUDY) - QueryLevel.STUDY][element.tag] = value
    named = find(elements, SPECIFIC_CHARACTER_SET)
    encoded = b"" if named is None or isinstance(named.value, (list, tuple)) else bytes(named.value)
    return *levels, _character_set(encoded)


@lru_cache(maxsize=256)
def _character_set(encoded: bytes) -> CharacterSet:
    return CharacterSet(encoded, encodings_of(encoded))


def _kept(element: Element, vr: str) -> Value | None:
    """A copy of the value, which would otherwise keep the whole file in memory; None when it is not to be kept."""
    value = element.value
    if isinstance(value, list):
        return _copied(value) if vr == "SQ" and _size(value) <= MAX_SEQUENCE else None
    # Another VR than the dictionary's is what the index cannot answer with, unless it is all the same text.
    fits = vr == element.vr or (vr in TEXTS and element.vr in TEXTS and vr not in SINGLE_VALUED)
    if isinstance(value, tuple) or not fits or len(value) > MAX_VALUE:
        return None
    return bytes(value)


def _size(items: list[list[Element]]) -> int:
    """What keeping these items would cost: the bytes of their values, and 16 for each element."""
    size = 0
    for element in (element for item in items for element in item):
        value = element.value
        if isinstance(value, tuple):  # an icon's pixel data
            return MAX_SEQUENCE + 1
        size += 16 + (_size(value) if isinstance(value, list) else len(value))
    return size


def _copied(items: list[list[Element]]) -> list[list[Element]]:
    return [[Element(each.tag, each.vr, _copied_value(each.value)) for each in item] for item in items]


def _copied_value(value: ReadValue) -> Value:
    return _copied(value) if isinstance(value, list) else bytes(value)  # type: ignore[arg-type]  # `_size` saw to it


def _checked_uid(values: Values, level: QueryLevel) -> str:
    uid = _text(values.get(UNIQUE_KEYS[level]))
    if not _is_uid(uid):
        raise NotIndexedError("no Study, Series or SOP Instance UID")
    return uid


def _text(value: Value | None) -> str:
    return value.decode("latin_1").strip(" \0") if isinstance(value, bytes) else ""


def _is_uid(uid: str) -> bool:
    """Whether it can go into a C-STORE-RQ; some archives hold UIDs with letters, so nothing is said of its form."""
    return 0 < len(uid) <= 64 and uid.isascii() and uid.isprintable()
