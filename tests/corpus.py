"""Sample studies, made the same on every run: a large CT, many tiny studies, and a small mixed set.

All names are invented. Every element is encoded with explicit lengths and without padding or group lengths,
so that an archive which parses and re-encodes what it stores (DCMTK does) still gives back the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

UID_ROOT = "1.2.826.0.1.3680043.8.498"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
MULTI_FRAME_WORD = "1.2.840.10008.5.1.4.1.1.7.3"
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
RETIRED_ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6"
PRIVATE_STORAGE = f"{UID_ROOT}.9.1"

MANIFEST = "manifest.json"
CT_STUDY, TINY_STUDY, MIXED_STUDY = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Sample:
    """What a test needs to know of one instance. `sha256` and `size` are of the bytes after group 0002."""

    file: str
    patient_id: str
    patient_name: str
    character_set: str
    modality: str
    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """A folder of Part 10 files and the list of them."""

    folder: Path
    samples: tuple[Sample, ...]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the manifest of a folder that `write` has made."""
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return cls(folder, tuple(Sample(**entry) for entry in entries))

    @cached_property
    def by_uid(self) -> dict[str, Sample]:
        """The samples by SOP instance UID."""
        return {sample.sop_instance_uid: sample for sample in self.samples}

    @property
    def study_uids(self) -> list[str]:
        """The studies, in the order in which they were made."""
        return list(dict.fromkeys(sample.study_uid for sample in self.samples))

    def of_study(self, study_uid: str) -> list[Sample]:
        """Return the samples of one study."""
        return [sample for sample in self.samples if sample.study_uid == study_uid]

    def of_patient(self, patient_id: str) -> list[Sample]:
        """Return the samples of one patient; each patient of the mixed set has one study."""
        return [sample for sample in self.samples if sample.patient_id == patient_id]

    def path(self, sample: Sample) -> Path:
        """Return the file of a sample."""
        return self.folder / sample.file

    def paths(self) -> list[Path]:
        """Return all files."""
        return [self.path(sample) for sample in self.samples]

    def data_set(self, sample: Sample) -> bytes:
        """Return the encoded data set of a sample, as it should come out of an archive."""
        return data_set_bytes(self.path(sample).read_bytes())


def data_set_bytes(part10: bytes) -> bytes:
    """Return what follows the File Meta Information (PS3.10 7.1) of a Part 10 file."""
    if part10[128:132] != b"DICM" or part10[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise ValueError("no Part 10 file with a group length")
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


def write(folder: Path, files: Iterable[bytes]) -> Corpus:
    """Write Part 10 files and their manifest into an empty or new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number, part10 in enumerate(files):
        sample = describe(part10, f"{number:05d}.dcm")
        (folder / sample.file).write_bytes(part10)
        samples.append(sample)
    manifest = json.dumps([asdict(sample) for sample in samples], indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    return Corpus(folder, tuple(samples))


def describe(part10: bytes, file: str) -> Sample:
    """Return the manifest entry of one Part 10 file."""
    data_set = pydicom.dcmread(io.BytesIO(part10), stop_before_pixels=True)
    encoded = data_set_bytes(part10)
    character_set = data_set.get("SpecificCharacterSet", "")
    return Sample(
        file=file,
        patient_id=data_set.PatientID,
        patient_name=str(data_set.PatientName),
        character_set=character_set if isinstance(character_set, str) else "\\".join(character_set),
        modality=data_set.Modality,
        study_uid=data_set.StudyInstanceUID,
        series_uid=data_set.SeriesInstanceUID,
        sop_instance_uid=data_set.SOPInstanceUID,
        sop_class_uid=data_set.SOPClassUID,
        transfer_syntax_uid=data_set.file_meta.TransferSyntaxUID,
        size=len(encoded),
        sha256=hashlib.sha256(encoded).hexdigest(),
    )


def uid(*parts: int) -> str:
    """Return a fixed UID made of small numbers, such as kind, study, series and instance."""
    return ".".join([UID_ROOT, *map(str, parts)])


def encode(data_set: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> bytes:
    """Return a data set as a Part 10 file."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.UID(transfer_syntax)
    meta.MediaStorageSOPClassUID = data_set.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
    meta.ImplementationClassUID = pydicom.uid.UID(f"{UID_ROOT}.0")
    meta.ImplementationVersionName = "SAMPLES"
    data_set.file_meta = meta
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data_set, enforce_file_format=True)
    return buffer.getvalue()


def header(kind: int, study: int, series: int, instance: int, sop_class: str = CT_IMAGE) -> Dataset:
    """Return the attributes that every sample has."""
    data_set = Dataset()
    data_set.SOPClassUID = sop_class
    data_set.SOPInstanceUID = uid(kind, study, series, instance)
    data_set.StudyInstanceUID = uid(kind, study)
    data_set.SeriesInstanceUID = uid(kind, study, series)
    data_set.StudyDate = f"2024{study % 12 + 1:02d}{study % 28 + 1:02d}"
    data_set.StudyTime = "101112"
    data_set.AccessionNumber = f"A{kind}{study:05d}"
    data_set.StudyID = f"{kind}-{study}"
    data_set.Modality = "CT"
    data_set.ReferringPhysicianName = "Referrer^Rita"
    data_set.StudyDescription = f"Study {study}"
    data_set.SeriesDescription = f"Series {series}"
    data_set.PatientName = f"Sample^Number {study}"
    data_set.PatientID = f"P{kind}-{study:05d}"
    data_set.PatientBirthDate = "19700101"
    data_set.PatientSex = "O"
    data_set.SeriesNumber = series
    data_set.InstanceNumber = instance
    return data_set


def add_pixels(data_set: Dataset, side: int, pixels: bytes) -> None:
    """Add a square monochrome image of 16 bits."""
    data_set.SamplesPerPixel = 1
    data_set.PhotometricInterpretation = "MONOCHROME2"
    data_set.Rows = data_set.Columns = side
    data_set.BitsAllocated = 16
    data_set.BitsStored = 12
    data_set.HighBit = 11
    data_set.PixelRepresentation = 0
    data_set.PixelData = pixels


def ct_study(series: int = 2, instances: int = 250, side: int = 512, study: int = 1) -> Iterator[bytes]:
    """Make a CT study of noise, one Part 10 file after the other; by default 500 files, 262 MB."""
    size = side * side * 2
    noise = np.random.default_rng(study).integers(0, 4096, side * side * 2, dtype=np.uint16).tobytes()
    for series_number in range(1, series + 1):
        for number in range(1, instances + 1):
            data_set = header(CT_STUDY, study, series_number, number)
            data_set.ImagePositionPatient = [0, 0, number]
            data_set.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            data_set.PixelSpacing = [0.5, 0.5]
            data_set.SliceThickness = 1
            data_set.RescaleIntercept = -1024
            data_set.RescaleSlope = 1
            # Another window of the same noise for each image: cheaper than new noise, and no two are equal.
            start = (number * 2 + series_number * 1000) % size & ~1
            add_pixels(data_set, side, noise[start : start + size])
            yield encode(data_set)


def tiny_studies(count: int = 500) -> Iterator[bytes]:
    """Make studies of one instance of about 5 KB each."""
    pixels = np.arange(48 * 48, dtype=np.uint16).tobytes()
    for study in range(1, count + 1):
        data_set = header(TINY_STUDY, study, 1, 1)
        add_pixels(data_set, 48, pixels)
        yield encode(data_set)


# Patient ID, specific character set (PS3.3 C.12.1.1.2), name.
NAMES = (
    ("LATIN1", "ISO_IR 100", "Müller^Jürgen"),
    ("UTF8", "ISO_IR 192", "Łukasiewicz^Żaneta"),
    ("JAPANESE", "\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ("GREEK", "ISO_IR 126", "Διονυσίου^Άννα"),
    ("CYRILLIC", "ISO_IR 144", "Иванова^Ольга"),
    ("KOREAN", "\\ISO 2022 IR 149", "Hong^Gildong=洪^吉洞=홍^길동"),
    ("GB18030", "GB18030", "Wang^XiaoDong=王^小东"),
)

# Patient ID, file that comes with pydicom. Each becomes one series of one instance; a patient has one study.
FILES = (
    ("COMPRESSED", "SC_rgb_jpeg_dcmtk.dcm"),  # JPEG baseline
    ("COMPRESSED", "JPGExtended.dcm"),  # JPEG extended, 12 bit
    ("COMPRESSED", "SC_rgb_jpeg_gdcm.dcm"),  # JPEG lossless
    ("COMPRESSED", "MR_small_jpeg_ls_lossless.dcm"),
    ("COMPRESSED", "JPEGLSNearLossless_16.dcm"),
    ("COMPRESSED", "MR_small_jp2klossless.dcm"),
    ("COMPRESSED", "JPEG2000.dcm"),
    ("COMPRESSED", "MR_small_RLE.dcm"),
    ("BIGENDIAN", "MR_small_bigendian.dcm"),
    ("IMPLICIT", "MR_small_implicit.dcm"),
    ("REPORT", "test-SR.dcm"),
    ("RADIOTHERAPY", "rtplan.dcm"),
    ("SEGMENTATION", "liver_1frame.dcm"),  # 1 bit
    ("ECG", "waveform_ecg.dcm"),
)


def mixed() -> Iterator[bytes]:
    """Make the set for functional tests: few instances, many kinds. Each patient has one study."""
    yield from _named_studies()
    yield from _unusual_objects()
    yield from _adapted_files()


def _named_studies() -> Iterator[bytes]:
    pixels = np.arange(32 * 32, dtype=np.uint16).tobytes()
    for study, (patient_id, character_set, name) in enumerate(NAMES, 1):
        # The first study has two series of three instances; the others show only their character set.
        series_count, instance_count = (2, 3) if study == 1 else (1, 1)
        for series in range(1, series_count + 1):
            for instance in range(1, instance_count + 1):
                data_set = header(MIXED_STUDY, study, series, instance)
                data_set.SpecificCharacterSet = character_set.split("\\")
                data_set.PatientName = name
                data_set.PatientID = patient_id
                add_pixels(data_set, 32, pixels)
                yield encode(data_set)


def _unusual_objects() -> Iterator[bytes]:
    study = len(NAMES) + 1
    frames = np.arange(16 * 16 * 5, dtype=np.uint16).tobytes()
    multi_frame = header(MIXED_STUDY, study, 1, 1, MULTI_FRAME_WORD)
    add_pixels(multi_frame, 16, frames)
    multi_frame.NumberOfFrames = 5
    retired = header(MIXED_STUDY, study, 2, 1, RETIRED_ULTRASOUND)
    add_pixels(retired, 16, frames[:512])
    private = header(MIXED_STUDY, study, 3, 1, PRIVATE_STORAGE)
    block = private.private_block(0x0099, "SAMPLE DATA", create=True)
    block.add_new(0x01, "OB", bytes(range(256)))
    block.add_new(0x02, "SQ", [_code("1", "one"), _code("2", "two")])
    pdf = header(MIXED_STUDY, study, 4, 1, ENCAPSULATED_PDF)
    pdf.MIMETypeOfEncapsulatedDocument = "application/pdf"
    pdf.EncapsulatedDocument = b"%PDF-1.4\n%%EOF\n\0"
    for data_set, modality in ((multi_frame, "XA"), (retired, "US"), (private, "OT"), (pdf, "DOC")):
        data_set.PatientID = "UNUSUAL"
        data_set.Modality = modality
        yield encode(data_set)


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "99SAMPLE"
    item.CodeMeaning = meaning
    return item


def _adapted_files() -> Iterator[bytes]:
    studies: dict[str, int] = {}
    for number, (patient_id, file) in enumerate(FILES, 1):
        path = get_testdata_file(file)
        assert isinstance(path, str), f"pydicom has no test file {file}"
        data_set = pydicom.dcmread(path)
        study = studies.setdefault(patient_id, len(NAMES) + 2 + len(studies))
        normalise(data_set)
        sop_class, modality = data_set.SOPClassUID, data_set.get("Modality") or "OT"
        data_set.update(header(MIXED_STUDY, study, number, 1, sop_class))
        data_set.PatientID = patient_id
        data_set.PatientName = f"{patient_id.capitalize()}^Sample"
        data_set.Modality = modality
        yield encode(data_set, data_set.file_meta.TransferSyntaxUID)


def normalise(data_set: Dataset) -> None:
    """Take out what a re-encoding may change: group lengths, padding, undefined lengths, wrong VRs."""
    for element in list(data_set):
        if element.tag.element == 0 or element.tag in (0xFFFCFFFC, 0x00080005):
            del data_set[element.tag]
        elif element.keyword == "PixelData" and element.is_undefined_length:
            element.VR = "OB"
        elif element.VR == "SQ":
            element.is_undefined_length = False
            for item in element.value:
                item.is_undefined_length_sequence_item = False
                normalise(item)
