"""Part 10 headers, against pydicom's writer, reader and collection of odd files."""

import io
import warnings
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from proxy.dataset.part10 import FileMeta, IncompleteHeaderError, Part10Error, file_header, read_header

HEAD = 64 * 1024
FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
FILES = sorted(FOLDER.rglob("*.dcm"))
IMPLEMENTATION = "1.2.826.0.1.3680043.8.498.1"
CT_IMAGE, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"


def with_prefix(path: Path) -> bool:
    return path.read_bytes()[128:132] == b"DICM"


def read(data: bytes) -> pydicom.FileDataset:
    with warnings.catch_warnings():
        # pydicom warns of values in its own test files; what matters is that both readings are the same.
        warnings.simplefilter("ignore")
        data_set = pydicom.dcmread(io.BytesIO(data), force=True)
        data_set.walk(lambda _, element: element.value)
    return data_set


@pytest.fixture(autouse=True)
def _quiet() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


GOOD_FILES = [path for path in FILES if with_prefix(path) and path.name != "meta_missing_tsyntax.dcm"]


def test_there_are_files_to_test_with() -> None:
    assert len(GOOD_FILES) > 60


@pytest.mark.parametrize("path", GOOD_FILES, ids=lambda path: path.name)
def test_read_header_agrees_with_pydicom(path: Path) -> None:
    data = path.read_bytes()
    expected = read(data).file_meta
    meta = read_header(data[:HEAD])
    assert meta.transfer_syntax == expected.TransferSyntaxUID
    assert meta.sop_class_uid == expected.get("MediaStorageSOPClassUID", "")
    assert meta.sop_instance_uid == expected.get("MediaStorageSOPInstanceUID", "")
    with path.open("rb") as file:
        pydicom.filereader.read_preamble(file, False)
        pydicom.filereader._read_file_meta_info(file)
        assert meta.data_set_offset == file.tell()


@pytest.mark.parametrize("path", GOOD_FILES, ids=lambda path: path.name)
def test_header_and_data_set_make_the_same_file(path: Path) -> None:
    data = path.read_bytes()
    meta = read_header(data)
    header = file_header(
        meta.sop_class_uid,
        meta.sop_instance_uid,
        meta.transfer_syntax,
        source_aet="ARCHIVE",
        implementation_class_uid=IMPLEMENTATION,
        implementation_version="PROXY_1",
    )
    made, original = read(header + data[meta.data_set_offset :]), read(data)
    assert Dataset(made) == Dataset(original)
    assert made.is_implicit_VR is original.is_implicit_VR
    assert made.is_little_endian is original.is_little_endian
    assert read_header(header) == FileMeta(meta.transfer_syntax, meta.sop_class_uid, meta.sop_instance_uid, len(header))


@pytest.mark.parametrize("aet", [None, "", "ODD", "EVEN", "A" * 16])
@pytest.mark.parametrize("version", [None, "", "V1", "V1_", "V" * 16])
@pytest.mark.parametrize("instance", ["1.2.3", "1.2.34", "1." + "2" * 62])
def test_header_is_byte_for_byte_what_pydicom_writes(aet: str, version: str, instance: str) -> None:
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(CT_IMAGE)
    meta.MediaStorageSOPInstanceUID = UID(instance)
    meta.TransferSyntaxUID = UID(EXPLICIT)
    meta.ImplementationClassUID = UID(IMPLEMENTATION)
    if version:
        meta.ImplementationVersionName = version
    if aet:
        meta.SourceApplicationEntityTitle = aet
    expected = DicomBytesIO()
    write_file_meta_info(expected, meta, enforce_standard=False)
    header = file_header(
        CT_IMAGE,
        instance,
        EXPLICIT,
        source_aet=aet,
        implementation_class_uid=IMPLEMENTATION,
        implementation_version=version,
    )
    assert header == bytes(128) + b"DICM" + expected.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        {"sop_instance_uid": "1.2.3\u0660"},
        {"sop_instance_uid": "1" * 0xFFFF},
        {"source_aet": "A" * 17},
        {"implementation_version": "V" * 17},
    ],
)
def test_values_that_do_not_fit_are_refused(change: dict[str, str]) -> None:
    arguments = {
        "sop_class_uid": CT_IMAGE,
        "sop_instance_uid": "1.2.3",
        "transfer_syntax": EXPLICIT,
        "implementation_class_uid": IMPLEMENTATION,
    }
    with pytest.raises(Part10Error, match=r"value for \(0002,00"):
        file_header(**(arguments | change))


def test_the_value_is_not_in_the_message() -> None:
    with pytest.raises(Part10Error) as refusal:
        file_header(CT_IMAGE, "1.2.999é", EXPLICIT, implementation_class_uid=IMPLEMENTATION)
    assert "999" not in str(refusal.value)


@pytest.mark.parametrize("path", [path for path in FILES if not with_prefix(path)], ids=lambda path: path.name)
def test_a_file_without_preamble_is_refused_as_by_pydicom(path: Path) -> None:
    with pytest.raises(InvalidDicomError):
        pydicom.dcmread(path)
    with pytest.raises(Part10Error, match="'DICM' is missing"):
        read_header(path.read_bytes())


def test_a_header_without_transfer_syntax_is_refused() -> None:
    with pytest.raises(Part10Error, match=r"no Transfer Syntax UID \(0002,0010\)"):
        read_header((FOLDER / "meta_missing_tsyntax.dcm").read_bytes())


def header_with(elements: bytes, *, group_length: int | None = None) -> bytes:
    if group_length is not None:
        elements = b"\x02\x00\x00\x00UL\x04\x00" + group_length.to_bytes(4, "little") + elements
    return bytes(128) + b"DICM" + elements


TRANSFER_SYNTAX = b"\x02\x00\x10\x00UI\x14\x00" + EXPLICIT.encode() + b"\0"
DATA_SET = b"\x08\x00\x16\x00UI\x02\x001\0"


@pytest.mark.parametrize("group_length", [None, 0, 5, 28, 29, 2**32 - 1])
def test_a_wrong_group_length_does_no_harm(group_length: int | None) -> None:
    header = header_with(TRANSFER_SYNTAX, group_length=group_length)
    assert read_header(header + DATA_SET) == FileMeta(EXPLICIT, "", "", len(header))


def test_implicit_vr_and_spaces_are_tolerated() -> None:
    implicit = b"\x02\x00\x10\x00\x14\x00\x00\x00" + EXPLICIT.encode() + b" "
    assert read_header(header_with(implicit) + DATA_SET).transfer_syntax == EXPLICIT


def test_a_header_is_complete_at_its_announced_end_or_where_the_data_set_begins() -> None:
    """Reading piece by piece, as a body arrives, must never take half a header for a whole one."""
    header = file_header(CT_IMAGE, "1.2.3", EXPLICIT, source_aet="A", implementation_class_uid=IMPLEMENTATION)
    for cut in range(len(header)):
        with pytest.raises(IncompleteHeaderError):
            read_header(header[:cut])
    assert read_header(header) == read_header(header + DATA_SET)

    unannounced = header_with(TRANSFER_SYNTAX)
    for cut in range(len(unannounced) + 2):
        with pytest.raises(IncompleteHeaderError):
            read_header((unannounced + DATA_SET)[:cut])
    assert read_header(unannounced + DATA_SET[:2]).data_set_offset == len(unannounced)


def test_a_value_longer_than_the_head_is_incomplete() -> None:
    lie = header_with(b"\x02\x00\x02\x01OB\x00\x00\xfe\xff\xff\xff" + bytes(100))
    with pytest.raises(IncompleteHeaderError, match=f"within {len(lie)} bytes"):
        read_header(lie)


def test_an_undefined_length_is_refused() -> None:
    with pytest.raises(Part10Error, match=r"\(0002,0102\) has an undefined length"):
        read_header(header_with(b"\x02\x00\x02\x01OB\x00\x00\xff\xff\xff\xff" + bytes(100)))


@given(noise=st.binary(max_size=200), at=st.integers(0, 400))
def test_damage_raises_nothing_but_part10_error(noise: bytes, at: int) -> None:
    whole = file_header(CT_IMAGE, "1.2.3", EXPLICIT, source_aet="A", implementation_class_uid=IMPLEMENTATION)
    damaged = whole[:at] + noise + whole[at + len(noise) :]
    try:
        meta = read_header(damaged)
    except Part10Error:
        return
    assert 132 <= meta.data_set_offset <= len(damaged)
