"""Encoded data sets for tests: the samples that come with pydicom, one of all kinds of values, and pieces of any kind.

With the samples goes pydicom's own reading, to compare with.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from struct import pack

import pydicom
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import data_element_generator, read_preamble
from pydicom.filewriter import write_dataset

from proxy.dataset.reader import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)

DATA = Path(pydicom.__file__).parent / "data"

TRUNCATED = {"MR_truncated.dcm", "rtplan_truncated.dcm", "DICOMDIR-nooffset"}
"""Files that end within an element; pydicom reads what there is."""

UNREADABLE = {"badVR.dcm", "no_meta.dcm"}
"""pydicom refuses a value of the first, and guesses the wrong encoding for the second."""

NATIVE = {
    "implicit": IMPLICIT_VR_LITTLE_ENDIAN,
    "explicit": EXPLICIT_VR_LITTLE_ENDIAN,
    "big endian": EXPLICIT_VR_BIG_ENDIAN,
    "deflated": DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
}


@dataclass(frozen=True)
class DicomFile:
    """`data` is what follows group 0002."""

    path: Path
    transfer_syntax: str
    data: bytes

    def dataset(self) -> Dataset:
        """pydicom's reading."""
        with quiet():
            return pydicom.dcmread(self.path, force=True)


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom warns of whatever is odd in its own samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def dicom_file(name: str) -> DicomFile:
    """One sample by its file name."""
    (path, *_) = DATA.rglob(name)
    raw = path.read_bytes()
    stream = io.BytesIO(raw)
    with quiet():
        read_preamble(stream, force=True)
        for _ in data_element_generator(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2):
            pass
        dataset = pydicom.dcmread(path, force=True)
    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
    if syntax is None:
        implicit, little = dataset.original_encoding
        syntax = NATIVE["implicit" if implicit else "explicit" if little else "big endian"]
    return DicomFile(path, str(syntax), raw[stream.tell() :])


@cache
def names() -> tuple[str, ...]:
    """The names of all samples that pydicom reads whole."""
    folder = DATA / "test_files" / "dicomdirtests"
    paths = [*DATA.rglob("*.dcm"), *(path for path in folder.rglob("*") if path.is_file())]
    found = {path.name for path in paths if not path.name.startswith("README")}
    return tuple(sorted(found - TRUNCATED - UNREADABLE))


def encoded(dataset: Dataset, *, implicit: bool, little: bool = True) -> bytes:
    """A data set as pydicom writes it."""
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = implicit, little
    with quiet():
        write_dataset(stream, dataset)
    return stream.getvalue()


def sample_dataset(*, turned: bool = False) -> Dataset:
    """Text, every size of unit, and sequences two deep. `turned` is for big endian, as pydicom turns no bulk data."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientName = "Müller^Jörg"
    dataset.FrameIncrementPointer = [0x00181063, 0x00181065]
    dataset.PixelRepresentation = 1
    dataset.Rows = 513
    dataset.add_new(0x00280106, "SS", -2)
    dataset.ReferencePixelX0 = -70000
    dataset.RegionFlags = 70000
    dataset.ExaminedBodyThickness = 1.5
    dataset.RealWorldValueSlope = 0.1
    dataset.SelectorUVValue = [1, 2**64 - 1]
    inner, outer = Dataset(), Dataset()
    inner.CodeValue = "T-1"
    outer.ConceptNameCodeSequence = [inner, inner]
    dataset.ContentSequence = [outer, Dataset(), outer]
    dataset.ExtendedOffsetTable = b"\x08\7\6\5\4\3\2\1" if turned else b"\1\2\3\4\5\6\7\x08"
    dataset.add_new(0x7FE00010, "OW", b"\1\0\3\2" if turned else b"\0\1\2\3")
    return dataset


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


# --- pieces, little endian ------------------------------------------------------------------------------------------

ITEM = pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
ITEM_END = pack("<HHI", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = pack("<HHI", 0xFFFE, 0xE0DD, 0)
UNDEFINED = 0xFFFFFFFF


def short(tag: int, vr: str, value: bytes) -> bytes:
    return pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def long(tag: int, vr: str, value: bytes, length: int | None = None) -> bytes:
    head = pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr.encode(), 0, len(value) if length is None else length)
    return head + value


def implicit(tag: int, value: bytes, length: int | None = None) -> bytes:
    return pack("<HHI", tag >> 16, tag & 0xFFFF, len(value) if length is None else length) + value


def item(content: bytes) -> bytes:
    return pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
