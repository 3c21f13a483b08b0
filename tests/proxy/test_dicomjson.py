"""The DICOM JSON Model: against pydicom over all its samples, and what only the standard says."""

from __future__ import annotations

import json
import timeit
from array import array
from base64 import b64decode, b64encode
from io import BytesIO
from struct import pack
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from proxy.dataset.charset import UTF_8
from proxy.dataset.reader import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    Element,
    parse,
)
from proxy.dataset.values import NUMBERS, TEXTS
from proxy.dicomweb.dicomjson import encode, encode_element
from tests.proxy.dicomfiles import NATIVE, dicom_file, encoded, names, quiet, sample_dataset

BINARY = ["OB", "OD", "OF", "OL", "OV", "OW", "UN"]
VRS = sorted({*TEXTS, *NUMBERS, "AT", *BINARY})
UTF_8_ATTRIBUTE = {"vr": "CS", "Value": ["ISO_IR 192"]}


def json_of(dataset: Dataset, *, turned: bool = False) -> dict[str, Any]:
    """pydicom's JSON model, made into what the standard says where pydicom differs."""
    with quiet():
        return normalised(dataset.to_json_dict(bulk_data_threshold=1 << 40), turned=turned)


def normalised(model: dict[str, Any], *, turned: bool) -> dict[str, Any]:
    """`turned` says that the words of OW are still big endian, as pydicom leaves them (PS3.18 F.2.7: little endian)."""
    result = {}
    for tag, attribute in model.items():
        if tag.endswith("0000") or tag.startswith("0002"):
            continue  # PS3.18 F.2.2: no group lengths, no File Meta Information
        if tag == "00080005":
            result[tag] = UTF_8_ATTRIBUTE  # F.2: JSON is UTF-8, whatever the data set was
            continue
        vr, values = attribute["vr"], attribute.get("Value", [])
        if vr == "SQ":
            values = [normalised(item, turned=turned) for item in values]
        else:
            # F.2.5: empty values are null, in PN empty groups are left out. Trailing spaces are padding (PS3.5 6.2).
            values = [stripped(value) for value in values]
        result[tag] = {"vr": str(vr)}
        if values and values != [None]:
            result[tag]["Value"] = values
        if "InlineBinary" in attribute:
            binary = attribute["InlineBinary"]
            result[tag]["InlineBinary"] = swapped(binary) if turned and vr == "OW" else binary
    return result


def stripped(value: Any) -> Any:
    if isinstance(value, str):
        return value.rstrip(" ") or None
    if isinstance(value, dict):
        return {name: group for name, group in value.items() if group} or None
    return value


def swapped(binary: str) -> str:
    words = array("H", b64decode(binary))
    words.byteswap()
    return b64encode(words.tobytes()).decode()


@pytest.fixture
def _no_private_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydicom knows some vendors' elements; here they are UN (PS3.5 6.2.2)."""
    monkeypatch.setattr("pydicom.datadict.private_dictionaries", {})


@pytest.mark.parametrize("name", names())
@pytest.mark.usefixtures("_no_private_dictionary")
def test_all_samples_are_as_pydicom_has_them(name: str) -> None:
    sample = dicom_file(name)
    ours = json.loads(encode(parse(sample.data, sample.transfer_syntax)))
    assert list(ours) == sorted(ours)
    expected = json_of(sample.dataset(), turned=sample.transfer_syntax == EXPLICIT_VR_BIG_ENDIAN)
    if any(not json.dumps(attribute, ensure_ascii=False).isascii() for attribute in expected.values()):
        expected.setdefault("00080005", UTF_8_ATTRIBUTE)
    assert ours == expected


def test_the_samples_cover_all_encodings() -> None:
    samples = [dicom_file(name) for name in names()]
    assert len(samples) > 150
    assert {sample.transfer_syntax for sample in samples} > set(NATIVE.values())


@pytest.mark.parametrize("encoding", NATIVE)
def test_every_value_of_every_unit(encoding: str) -> None:
    dataset = sample_dataset(turned=encoding == "big endian")
    data = encoded(dataset, implicit=encoding == "implicit", little=encoding != "big endian")
    syntax = EXPLICIT_VR_LITTLE_ENDIAN if encoding == "deflated" else NATIVE[encoding]
    ours = json.loads(encode(parse(data, syntax)))
    expected = json_of(sample_dataset())
    expected["00720083"]["Value"][1] = str(2**64 - 1)  # beyond the whole numbers of JavaScript
    assert ours == expected


def attribute(vr: str, value: bytes) -> Any:
    return json.loads(encode_element(Element(0x00091001, vr, value), UTF_8))


@pytest.mark.parametrize(
    ("vr", "value", "expected"),
    [
        ("IS", b"4 ", "4"),
        ("IS", b" 4 ", "4"),
        ("IS", b"+4", "4"),
        ("IS", b"-004", "-4"),
        ("IS", b"000 ", "0"),
        ("IS", b"1\\2\\3 ", "1,2,3"),
        ("IS", b"1\\\\+3", "1,null,3"),
        ("IS", b"4.0 ", "4"),
        ("IS", b"4.5 ", '"4.5"'),
        ("IS", b"1A", '"1A"'),
        ("IS", b"9" * 5000, '"' + "9" * 5000 + '"'),
        ("IS", "٤".encode(), '"Ù¤"'),
        ("DS", b"0.50", "0.50"),
        ("DS", b"1.5E+03 ", "1.5E+03"),
        ("DS", b"+1.50 ", "1.50"),
        ("DS", b"-.5 ", "-0.5"),
        ("DS", b"5. ", "5"),
        ("DS", b"007.10", "7.10"),
        ("DS", b"-0", "-0"),
        ("DS", b"0.1\\ +2 \\x", '0.1,2,"x"'),
        ("DS", b"NaN ", '"NaN"'),
        ("DS", b".", '"."'),
        ("DS", b"1,5 ", '"1,5"'),
        ("DS", b"0x10", '"0x10"'),
        ("DS", b"1e99999 ", '"1e99999"'),
    ],
)
def test_numbers_that_are_text(vr: str, value: bytes, expected: str) -> None:
    text = encode_element(Element(0x00091001, vr, value))
    assert text == f'{{"vr":"{vr}","Value":[{expected}]}}'
    json.loads(text)


@pytest.mark.parametrize(
    ("vr", "value", "expected"),
    [
        ("US", pack("<2H", 1, 65535), [1, 65535]),
        ("SS", pack("<h", -1), [-1]),
        ("UL", pack("<I", 2**32 - 1), [2**32 - 1]),
        ("SL", pack("<i", -(2**31)), [-(2**31)]),
        ("SV", pack("<3q", -(2**53), 2**53, 2**53 + 1), [-(2**53), 2**53, str(2**53 + 1)]),
        ("UV", pack("<Q", 2**64 - 1), [str(2**64 - 1)]),
        ("FL", pack("<2f", 1.5, -0.0), [1.5, -0.0]),
        ("FD", pack("<2d", 0.1, 1e300), [0.1, 1e300]),
        ("FD", pack("<3d", float("nan"), float("inf"), float("-inf")), ["NaN", "Infinity", "-Infinity"]),
        ("AT", pack("<4H", 0x10, 0x20, 0x7FE0, 0xAB), ["00100020", "7FE000AB"]),
        ("US", b"\1\0\2", [1]),
        ("AT", b"\x10\0\x20\0\1\0", ["00100020"]),
    ],
)
def test_binary_numbers(vr: str, value: bytes, expected: list[object]) -> None:
    assert attribute(vr, value) == {"vr": vr, "Value": expected}


@pytest.mark.parametrize(
    ("vr", "value", "expected"),
    [
        ("UI", b"1.2.3\0", ["1.2.3"]),
        ("UI", b"1.2\\1.3\0", ["1.2", "1.3"]),
        ("CS", b"CT \\ MR", ["CT", "MR"]),
        ("CS", b"CT\\\\MR\\", ["CT", None, "MR", None]),
        ("LO", b" a  ", ["a"]),
        ("UC", b" a \\ b ", [" a", " b"]),
        ("LT", b"  a\\b\r\n  ", ["  a\\b\r\n"]),
        ("ST", b" a ", [" a"]),
        ("UT", b" a\\", [" a\\"]),
        ("UR", b"http://a/b\\c ", ["http://a/b\\c"]),
        ("DA", b"20200101", ["20200101"]),
        ("LO", bytes(range(1, 27)) + b'"\x7f', [bytes(range(1, 27)).decode() + '"\x7f']),
        ("LO", "Schädel\u2028".encode(), ["Schädel\u2028"]),
    ],
)
def test_text(vr: str, value: bytes, expected: list[object]) -> None:
    assert attribute(vr, value) == {"vr": vr, "Value": expected}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Doe^John^^^ ", [{"Alphabetic": "Doe^John^^^"}]),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", [
            {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}
        ]),
        ("=山田^太郎", [{"Ideographic": "山田^太郎"}]),
        ("Doe==", [{"Alphabetic": "Doe"}]),
        ("Doe=a=b=c", [{"Alphabetic": "Doe", "Ideographic": "a", "Phonetic": "b"}]),
        ("A^B\\\\==\\C", [{"Alphabetic": "A^B"}, None, None, {"Alphabetic": "C"}]),
    ],
)  # fmt: skip
def test_person_names(value: str, expected: list[object]) -> None:
    assert attribute("PN", value.encode()) == {"vr": "PN", "Value": expected}


@pytest.mark.parametrize("vr", VRS)
def test_an_empty_value_is_no_value(vr: str) -> None:
    assert encode_element(Element(0x00091001, vr, b"")) == f'{{"vr":"{vr}"}}'


@pytest.mark.parametrize("vr", sorted(TEXTS))
def test_padding_is_no_value(vr: str) -> None:
    assert encode_element(Element(0x00091001, vr, b" \0")) == f'{{"vr":"{vr}"}}'


@pytest.mark.parametrize("vr", BINARY)
def test_bulk_data_is_inline(vr: str) -> None:
    assert attribute(vr, b"\0\1\2\xff") == {"vr": vr, "InlineBinary": "AAEC/w=="}
    assert json.loads(encode_element(Element(0x7FE00010, vr, memoryview(b"\0\1\2\xff"))))["InlineBinary"] == "AAEC/w=="


def test_bulk_data_by_reference() -> None:
    inner = Element(0x00091001, "OB", b"\1\2")
    elements = [
        Element(0x00081140, "SQ", [[], [inner]]),
        Element(0x00280010, "US", b"\0\2"),
        Element(0x7FE00010, "OB", (b"", b"\xff\xd8")),
    ]
    asked = []

    def bulk_data(path: tuple[int, ...], element: Element) -> str | None:
        asked.append(path)
        return f'http://host/"{len(path)}"' if element.tag == 0x7FE00010 else None

    model = json.loads(encode(elements, bulk_data=bulk_data))
    assert asked == [(0x00081140, 1, 0x00091001), (0x7FE00010,)]
    assert model["7FE00010"] == {"vr": "OB", "BulkDataURI": 'http://host/"1"'}
    assert model["00081140"]["Value"] == [{}, {"00091001": {"vr": "OB", "InlineBinary": "AQI="}}]


def test_items_have_their_own_character_sets() -> None:
    name = Element(0x00100010, "PN", b"\xfc")
    greek = [Element(0x00080005, "CS", b"ISO_IR 126"), Element(0x00100010, "PN", b"\xcc")]
    elements = [
        Element(0x00080005, "CS", b"ISO_IR 100"),
        Element(0x00081140, "SQ", [[name], greek, [name]]),
        Element(0x00100010, "PN", b"\xe4"),
    ]
    model = json.loads(encode(elements))
    first, second, third = model["00081140"]["Value"]
    assert first == third == {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "ü"}]}}
    assert second["00100010"]["Value"] == [{"Alphabetic": "Μ"}]
    assert second["00080005"] == model["00080005"] == UTF_8_ATTRIBUTE
    assert model["00100010"]["Value"] == [{"Alphabetic": "ä"}]


def test_the_character_set_is_added_where_it_is_needed_only() -> None:
    date = Element(0x00080001, "UL", b"\0\0\0\0")
    ascii_name, name = Element(0x00100010, "PN", b"Doe"), Element(0x00100010, "PN", b"\xc4\xe9\xef\xed")
    assert list(json.loads(encode([date, ascii_name]))) == ["00080001", "00100010"]
    model = json.loads(encode([date, name], default_character_set="ISO_IR 126"))
    assert list(model) == ["00080001", "00080005", "00100010"]
    assert model["00080005"] == UTF_8_ATTRIBUTE
    assert model["00100010"]["Value"] == [{"Alphabetic": "Διον"}]
    assert json.loads(encode([Element(0x00080005, "CS", b""), ascii_name]))["00080005"] == UTF_8_ATTRIBUTE


def test_the_default_character_set_holds_for_unknown_terms() -> None:
    elements = [Element(0x00080005, "CS", b"ISO_IR 999 "), Element(0x00100010, "PN", b"\xc4\xe9\xef\xed")]
    assert "Διον" in encode(elements, default_character_set="ISO_IR 126")


def test_order_replacement_and_requirement() -> None:
    elements = [
        Element(0x00100020, "LO", b"1 "),
        Element(0x00020010, "UI", b"1.2"),
        Element(0x00080000, "UL", b"\1\0\0\0"),
        Element(0x00080060, "CS", b"MR"),
        Element(0x00100020, "LO", b"2 "),
    ]
    text = encode(
        elements,
        replace={0x00081190: '{"vr":"UR","Value":["http://host/ä"]}', 0x00080060: '{"vr":"CS"}'},
        require=[0x00080061, 0x00100020, 0x00280106, 0x00400275],
    )
    assert text == (
        '{"00080005":{"vr":"CS","Value":["ISO_IR 192"]},"00080060":{"vr":"CS"},"00080061":{"vr":"CS"},'
        '"00081190":{"vr":"UR","Value":["http://host/ä"]},"00100020":{"vr":"LO","Value":["2"]},'
        '"00280106":{"vr":"US"},"00400275":{"vr":"SQ"}}'
    )
    assert encode([]) == "{}"


def test_parents_add_what_the_data_set_lacks() -> None:
    study = [
        Element(0x00080005, "CS", b"ISO_IR 126"),
        Element(0x00100010, "PN", b"\xcc"),
        Element(0x00080060, "CS", b"CT"),
    ]
    series = [Element(0x00080060, "CS", b"MR"), Element(0x0008103E, "LO", b"\xe4 "), Element(0x00200011, "IS", b"1 ")]
    model = json.loads(encode(series, parents=[study], leave_out=[0x00200011, 0x00200013]))
    assert model == {
        "00080005": UTF_8_ATTRIBUTE,
        "00080060": {"vr": "CS", "Value": ["MR"]},
        "0008103E": {"vr": "LO", "Value": ["ä"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Μ"}]},
    }


@given(st.sampled_from(VRS), st.binary(max_size=40) | st.text("0123456789+-.eE \\", max_size=20).map(str.encode))
@settings(deadline=None, max_examples=500)
def test_any_value_of_any_vr_is_valid_json(vr: str, value: bytes) -> None:
    text = encode_element(Element(0x00091001, vr, value), UTF_8)
    text.encode("utf-8")
    model = json.loads(text, parse_constant=pytest.fail)
    assert set(model) <= {"vr", "Value", "InlineBinary"}
    assert model["vr"] == vr


@pytest.mark.parametrize("name", ["CT_small.dcm", "test-SR.dcm"])
def test_it_is_at_least_five_times_as_fast_as_pydicom(name: str) -> None:
    """About ten times on the machine it was written on; header only, from bytes to JSON text."""
    dataset = dicom_file(name).dataset()
    if "PixelData" in dataset:
        del dataset.PixelData
    part10 = BytesIO()
    dataset.save_as(part10)
    data = encoded(dataset, implicit=False)

    def pydicom_way() -> None:
        part10.seek(0)
        pydicom.dcmread(part10).to_json()

    theirs = min(timeit.repeat(pydicom_way, number=2, repeat=5))
    ours = min(timeit.repeat(lambda: encode(parse(data, EXPLICIT_VR_LITTLE_ENDIAN)), number=2, repeat=5))
    assert theirs > 5 * ours
