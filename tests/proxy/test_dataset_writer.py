"""C-FIND identifiers, read back by pydicom and by our own reader."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from proxy.dataset.dictionary import vr_of
from proxy.dataset.reader import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, parse
from proxy.dataset.values import encodings_in, find, text_of
from proxy.dataset.writer import TagPath, encode_identifier

EXPLICIT = pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])


def by_pydicom(data: bytes, *, explicit: bool) -> Dataset:
    return read_dataset(BytesIO(data), is_implicit_VR=not explicit, is_little_endian=True)


@EXPLICIT
def test_an_identifier(explicit: bool) -> None:
    keys: dict[TagPath, str] = {
        (0x00400275, 0x00401001): "RP1",
        (0x00400275, 0x00400008, 0x00080100): "T-1",
        (0x00400275,): "",
        (0x0020000D,): "1.2.3",
        (0x00100010,): "DOE*",
        (0x00100020,): "",
        (0x00080061,): "CT\\MR",
        (0x00280010,): "512",
        (0x00280009,): "00181063\\FrameTimeVector",
        (0x00186020,): "-70000",
        (0x00109431,): "1.5",
        (0x00081140,): "",
        (0x00080060,): "MR",
        (0x00080000,): "",
        (0x00090010,): "ACME",
        (0x00091010,): "odd",
    }
    dataset = by_pydicom(encode_identifier(keys, explicit=explicit), explicit=explicit)
    assert list(dataset.keys()) == sorted({path[0] for path in keys} - {0x00080000} | {0x00080005})
    assert dataset.SpecificCharacterSet == ""
    assert dataset.StudyInstanceUID == "1.2.3"
    assert dataset.PatientName == "DOE*"
    assert dataset.PatientID == ""
    assert dataset.ModalitiesInStudy == ["CT", "MR"]
    assert dataset.Rows == 512
    assert dataset.FrameIncrementPointer == [0x00181063, 0x00181065]
    assert dataset.ReferencePixelX0 == -70000
    assert dataset.ExaminedBodyThickness == 1.5
    assert dataset.get_item(0x00091010).value == b"odd "
    assert len(dataset.ReferencedImageSequence) == 0
    (request,) = dataset.RequestAttributesSequence
    assert request.RequestedProcedureID == "RP1"
    assert request.ScheduledProtocolCodeSequence[0].CodeValue == "T-1"


@EXPLICIT
def test_values_that_are_not_ascii_make_it_utf_8(explicit: bool) -> None:
    keys: dict[TagPath, str] = {
        (0x00100010,): "Müller^Jörg=山田",
        (0x00080005,): "ISO_IR 100",
        (0x00400275, 0x00400007): "Schädel",
    }
    dataset = by_pydicom(encode_identifier(keys, explicit=explicit), explicit=explicit)
    dataset.decode()
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert dataset.PatientName == "Müller^Jörg=山田"
    assert dataset.RequestAttributesSequence[0].ScheduledProcedureStepDescription == "Schädel"


def test_exact_bytes() -> None:
    assert encode_identifier({(0x0020000D,): "1.2", (0x00100020,): "A"}, explicit=True) == (
        b"\x08\0\x05\0CS\0\0"
        b"\x10\0\x20\0LO\2\0A "
        b"\x20\0\x0d\0UI\4\x001.2\0"
    )  # fmt: skip
    assert encode_identifier({(0x00081140, 0x00081150): ""}, explicit=False) == (
        b"\x08\0\x05\0\0\0\0\0"
        b"\x08\0\x40\x11\x10\0\0\0"
        b"\xfe\xff\0\xe0\x08\0\0\0"
        b"\x08\0\x50\x11\0\0\0\0"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((0x00280010,), "abc"),
        ((0x00280010,), "-1"),
        ((0x00280010,), "65536"),
        ((0x00280010,), "1_0"),
        ((0x00280010,), "1.5"),
        ((0x00280010,), "1\\\\2"),
        ((0x00109431,), "nan"),
        ((0x00109431,), "1e99"),
        ((0x00280009,), "Nonsense"),
        ((0x00080060,), "MÜ"),
        ((0x00100010,), "\ud800"),
        ((0x7FE00010,), "11"),
        ((0x00400275,), "x"),
        ((0x00100010, 0x00100020), ""),
        ((0x00091010, 0x00100020), ""),
        ((0x0020000D, 0x00400275, 0x00401001), ""),
        ((0x00020010,), ""),
        ((0xFFFEE00D,), ""),
    ],
)
def test_what_cannot_be_encoded_is_refused_with_its_tag(path: TagPath, value: str) -> None:
    with pytest.raises(ValueError, match=r"\([0-9A-F]{4},[0-9A-F]{4}\)") as caught:
        encode_identifier({path: value}, explicit=True)
    assert not value or value not in str(caught.value)


def test_a_value_too_long_for_explicit_vr() -> None:
    keys: dict[TagPath, str] = {(0x00100020,): "x" * 65535}
    with pytest.raises(ValueError, match="0010,0020"):
        encode_identifier(keys, explicit=True)
    assert len(encode_identifier(keys, explicit=False)) == 8 + 8 + 65536


def test_a_key_without_a_tag() -> None:
    with pytest.raises(ValueError, match="without a tag"):
        encode_identifier({(): ""}, explicit=True)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\\\0\x1b", exclude_categories=["Cc"]), max_size=20)
VALUES = {
    0x00080060: st.sampled_from(["", "MR", "C?", "CT\\MR"]),
    0x00080020: st.sampled_from(["", "20200101", "-20200101", "20200101-20201231"]),
    0x00100010: TEXT.map(str.strip),
    0x00104000: TEXT.map(str.rstrip),
    0x0020000D: st.lists(st.from_regex(r"[1-9]{1,3}(\.[1-9]{1,3}){1,5}", fullmatch=True), max_size=3).map("\\".join),
    0x00280010: st.lists(st.integers(0, 65535).map(str), max_size=3).map("\\".join),
    0x00186020: st.integers(-(2**31), 2**31 - 1).map(str),
    0x00409225: st.floats(allow_nan=False, allow_infinity=False).map(repr),
    0x00280009: st.integers(0, 0xFFFDFFFF).map(lambda tag: f"{tag:08X}"),
}
PATHS = st.sampled_from([(), (0x00400275,), (0x00400275, 0x00400008), (0x00081140,)])


@st.composite
def identifiers(draw: st.DrawFn) -> dict[TagPath, str]:
    keys = draw(st.lists(st.tuples(PATHS, st.sampled_from(sorted(VALUES))), max_size=8, unique=True))
    return {(*path, tag): draw(VALUES[tag]) for path, tag in keys}


@given(identifiers(), st.booleans())
@settings(deadline=None)
def test_round_trip(keys: dict[TagPath, str], explicit: bool) -> None:
    data = encode_identifier(keys, explicit=explicit)
    elements = parse(data, EXPLICIT_VR_LITTLE_ENDIAN if explicit else IMPLICIT_VR_LITTLE_ENDIAN)
    encodings = encodings_in(elements)
    for path, value in keys.items():
        level = elements
        for sequence in path[:-1]:
            found = find(level, sequence)
            assert found is not None
            assert isinstance(found.value, list)
            (level,) = found.value
        assert [element.tag for element in level] == sorted({element.tag for element in level})
        found = find(level, path[-1])
        assert found is not None
        assert found.vr == vr_of(path[-1])
        assert text_of(found, encodings) == value
