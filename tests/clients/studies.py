"""What clients are shown: a CT series, a multi-frame ultrasound, a compressed image, a PDF, a report and a video."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from tests.corpus import ENCAPSULATED_PDF, add_pixels, encode, header, normalise, uid

VIEWER_STUDY = 7
CT, ULTRASOUND, COMPRESSED, DOCUMENT, REPORT, VIDEO = 1, 2, 3, 4, 5, 6
SLICES = 12
SIDE = 128
MPEG4 = "1.2.840.10008.1.2.4.102"
CONCLUSION = "Nothing <b>unusual</b> & größer"

_LINE = "BT /F1 24 Tf 72 700 Td (A report) Tj ET" + "\n% a comment" * 200

_OBJECTS = (
    "<< /Type /Catalog /Pages 2 0 R >>",
    "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
    "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
    " /Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
    f"<< /Length {len(_LINE)} >>\nstream\n{_LINE}\nendstream",
)


def study_uid(study: int) -> str:
    """Return the UID of one of the studies."""
    return uid(VIEWER_STUDY, study)


def files() -> Iterator[bytes]:
    """Make all of them, as Part 10 files."""
    yield from (encode(each) for each in _ct())
    yield _adapted("examples_ybr_color.dcm", ULTRASOUND)
    yield _adapted("examples_jpeg2k.dcm", COMPRESSED)
    yield encode(_pdf())
    yield encode(_report())
    yield encode(_video(), MPEG4)


def radius(number: int) -> int:
    """Return the radius of the disc in a slice of the CT, in pixels: no two slices have the same."""
    return 15 + number * 3


def _named(study: int, instance: int, sop_class: str, modality: str) -> Dataset:
    data_set = header(VIEWER_STUDY, study, 1, instance, sop_class)
    data_set.PatientName = f"Viewer^{modality}"
    data_set.PatientID = f"VIEWER{study}"
    data_set.Modality = modality
    data_set.SeriesDate, data_set.SeriesTime = data_set.StudyDate, data_set.StudyTime
    return data_set


def _ct() -> Iterator[Dataset]:
    """A ball in a box, of which each slice is another disc."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    for number in range(1, SLICES + 1):
        data_set = _named(CT, number, pydicom.uid.CTImageStorage, "CT")
        data_set.FrameOfReferenceUID = uid(VIEWER_STUDY, CT, 99)
        data_set.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data_set.ImagePositionPatient = [0, 0, number * 3]
        data_set.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data_set.PixelSpacing = [1, 1]
        data_set.SliceThickness = 3
        data_set.RescaleIntercept, data_set.RescaleSlope = -1024, 1
        data_set.WindowCenter, data_set.WindowWidth = 40, 400
        inside = (x - SIDE / 2) ** 2 + (y - SIDE / 2) ** 2 < radius(number) ** 2
        add_pixels(data_set, SIDE, np.where(inside, 1100 + x, 950).astype("<u2").tobytes())
        yield data_set


def _adapted(file: str, study: int) -> bytes:
    path = get_testdata_file(file)
    assert isinstance(path, str), f"pydicom has no test file {file}"
    data_set = pydicom.dcmread(path)
    normalise(data_set)
    transfer_syntax, frame_count = data_set.file_meta.TransferSyntaxUID, data_set.get("NumberOfFrames")
    data_set.update(_named(study, 1, data_set.SOPClassUID, "US"))
    data_set.NumberOfFrames = frame_count
    if frame_count is None:
        del data_set.NumberOfFrames
    return encode(data_set, transfer_syntax)


def _pdf() -> Dataset:
    data_set = _named(DOCUMENT, 1, ENCAPSULATED_PDF, "DOC")
    data_set.MIMETypeOfEncapsulatedDocument = "application/pdf"
    data_set.DocumentTitle = "A report"
    data_set.EncapsulatedDocument = pdf()
    return data_set


def _report() -> Dataset:
    data_set = _named(REPORT, 1, pydicom.uid.BasicTextSRStorage, "SR")
    data_set.SpecificCharacterSet = "ISO_IR 192"
    data_set.CompletionFlag, data_set.VerificationFlag = "COMPLETE", "UNVERIFIED"
    data_set.ValueType, data_set.ConceptNameCodeSequence = "CONTAINER", [_code("1", "A report")]
    data_set.ContinuityOfContent = "SEPARATE"
    conclusion = Dataset()
    conclusion.RelationshipType, conclusion.ValueType = "CONTAINS", "TEXT"
    conclusion.ConceptNameCodeSequence, conclusion.TextValue = [_code("2", "Conclusion")], CONCLUSION
    data_set.ContentSequence = [conclusion]
    return data_set


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "99SAMPLE", meaning
    return code


def _video() -> Dataset:
    data_set = _named(VIDEO, 1, pydicom.uid.VideoEndoscopicImageStorage, "ES")
    data_set.SamplesPerPixel, data_set.PhotometricInterpretation, data_set.PlanarConfiguration = 3, "YBR_PARTIAL_420", 0
    data_set.Rows, data_set.Columns, data_set.NumberOfFrames = 64, 96, 25
    data_set.BitsAllocated, data_set.BitsStored, data_set.HighBit, data_set.PixelRepresentation = 8, 8, 7, 0
    data_set.PixelData = encapsulate([video()])
    return data_set


def video() -> bytes:
    """Return what stands for the stream of the video, which nobody is to look into."""
    return b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40


def pdf() -> bytes:
    """Return a document of one page, of even length."""
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(_OBJECTS, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(_OBJECTS) + 1
    start = len(body)
    body += f"xref\n0 {size}\n0000000000 65535 f \n{table}"
    body += f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"
    return (body + "\n" * (len(body) % 2)).encode()
