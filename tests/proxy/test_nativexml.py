"""The Native DICOM Model: against DCMTK's, and back to the JSON that it was made of."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dataset.charset import UTF_8
from proxy.dataset.reader import Element, parse
from proxy.dataset.values import NUMBERS, TEXTS
from proxy.dicomweb.dicomjson import encode
from proxy.dicomweb.nativexml import NAMESPACE, native_xml
from tests.faultpeer import in_front_of, small_study
from tests.peers.process import require_program
from tests.proxy.dicomfiles import dicom_file, names
from tests.proxy.retrieved import get, path_of

COMPONENTS = ["FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix"]
CONTROL = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF], 0xFFFD)
NUMERIC = {*NUMBERS, "IS", "DS"}


def back(xml: bytes) -> dict[str, Any]:
    """The JSON model of a document (PS3.18 F.2), all values as text."""
    root = ET.fromstring(xml)
    assert root.tag == f"{{{NAMESPACE}}}NativeDicomModel"
    assert root.attrib == {"{http://www.w3.org/XML/1998/namespace}space": "preserve"}
    return model_of(root)


def model_of(element: ET.Element) -> dict[str, Any]:
    model: dict[str, Any] = {}
    blocks: dict[tuple[str, str | None], str] = {}
    for attribute in element:
        assert name_of(attribute) == "DicomAttribute"
        result: dict[str, Any] = {"vr": attribute.attrib["vr"]}
        values: list[Any] = []
        for value in attribute:
            match name_of(value):
                case "BulkData":
                    result["BulkDataURI"] = value.attrib["uri"]
                case "InlineBinary":
                    result["InlineBinary"] = value.text
                case "Item":
                    values.append(model_of(value))
                case "PersonName":
                    values.append({name_of(group): components(group) for group in value} or None)
                case "Value":
                    values.append(value.text)
                case other:
                    pytest.fail(other)
            if "number" in value.attrib:
                assert int(value.attrib["number"]) == len(values)
        if values:
            result["Value"] = values
        tag = attribute.attrib["tag"]
        if creator := attribute.attrib.get("privateCreator"):
            tag = tag[:4] + blocks[tag[:4], creator] + tag[6:]
        elif int(tag[:4], 16) % 2 and tag[4:6] == "00" and values and isinstance(values[0], str):
            blocks[tag[:4], values[0]] = tag[6:]
        model[tag] = result
    return model


def name_of(element: ET.Element) -> str:
    return element.tag.removeprefix(f"{{{NAMESPACE}}}")


def components(group: ET.Element) -> str:
    found = {name_of(component): component.text or "" for component in group}
    assert list(found) == [name for name in COMPONENTS if name in found]
    return "^".join(found.get(name, "") for name in COMPONENTS).rstrip("^")


def as_text(model: dict[str, Any]) -> dict[str, Any]:
    """A JSON model with all values as XML can have them."""
    result = {}
    for tag, attribute in model.items():
        result[tag] = dict(attribute)
        if attribute["vr"] == "SQ" and "Value" in attribute:
            result[tag]["Value"] = [as_text(item) for item in attribute["Value"]]
        elif "Value" in attribute:
            result[tag]["Value"] = [text_of(value) for value in attribute["Value"]]
    return result


def text_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: group.translate(CONTROL).rstrip("^") for name, group in value.items()}
    return value.translate(CONTROL) if isinstance(value, str) else value


def loads(model: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(model, parse_int=str, parse_float=str)
    return result


@pytest.mark.parametrize("name", names())
def test_all_samples_come_back(name: str) -> None:
    sample = dicom_file(name)
    model = encode(parse(sample.data, sample.transfer_syntax), bulk_data=lambda _, __: 'http://h/?a="&b')
    assert back(native_xml(model)) == as_text(loads(model))


DCMTK_SAMPLES = ["CT_small.dcm", "test-SR.dcm", "rtplan.dcm", "waveform_ecg.dcm", "MR_small_implicit.dcm"]


@pytest.mark.parametrize("name", DCMTK_SAMPLES)
def test_as_dcmtk_writes_it(name: str) -> None:
    """Tags, VRs, keywords, private creators, numbers and values; DCMTK does without binary values here."""
    program = require_program("dcm2xml", "dcmtk")
    path = dicom_file(name).path
    written = subprocess.run([program, "-nat", "+Xn", path], capture_output=True, check=True)
    theirs = flat(ET.fromstring(written.stdout))
    sample = dicom_file(name)
    ours = flat(ET.fromstring(native_xml(encode(parse(sample.data, sample.transfer_syntax)))))
    assert len(ours) > 30
    for one, other in zip(ours, theirs, strict=True):
        if "keyword" not in other[1]:
            one[1].pop("keyword", None)  # DCMTK has none for what is retired
        if "privateCreator" not in one[1] and one[1].get("tag", "0000")[3] in "13579BDF":
            one[1]["tag"] = one[1]["tag"][:4] + "00" + one[1]["tag"][6:]  # nor the block that nobody has reserved
        assert one == other


def flat(root: ET.Element) -> list[tuple[str, dict[str, str], str]]:
    """All elements in order with what is comparable: no character set, no binary values, numbers as numbers."""
    found = []
    for attribute in root.iter(f"{{{NAMESPACE}}}DicomAttribute"):
        tag, vr = attribute.attrib["tag"], attribute.attrib["vr"]
        if tag.endswith("0000") or tag.startswith("0002") or tag == "00080005":
            continue
        found.append((name_of(attribute), dict(attribute.attrib), ""))
        for element in attribute:
            if name_of(element) in ("Value", "PersonName"):
                texts = [text.strip() for text in element.itertext() if text.strip()]
                text = "|".join(texts)
                if vr in ("FL", "FD", "DS", "IS") and text:
                    text = f"{float(text):.6g}"
                found.append((name_of(element), dict(element.attrib), text))
    return found


def test_private_creators_and_keywords() -> None:
    elements = [
        Element(0x00090010, "LO", b'A & "B"'),
        Element(0x00091001, "LO", b"x "),
        Element(0x00091101, "LO", b"no creator"),
        Element(0x00100010, "PN", b"A^B"),
    ]
    root = ET.fromstring(native_xml(encode(elements)))
    assert [attribute.attrib for attribute in root] == [
        {"tag": "00090010", "vr": "LO"},
        {"tag": "00090001", "vr": "LO", "privateCreator": 'A & "B"'},
        {"tag": "00091101", "vr": "LO"},
        {"tag": "00100010", "vr": "PN", "keyword": "PatientName"},
    ]


@given(st.sampled_from(sorted(TEXTS - {"PN"})), st.text(max_size=30))
@settings(deadline=None, max_examples=300)
def test_any_text_comes_back(vr: str, text: str) -> None:
    """But for characters that XML does not have."""
    elements = [Element(0x00091001, vr, text.encode("utf-8", "replace"))]
    model = encode(elements, default_character_set="ISO_IR 192")
    assert UTF_8.initial == "utf_8"
    assert back(native_xml(model)) == as_text(loads(model))


@pytest.mark.usefixtures("nothing_left")
async def test_over_http_a_part_for_each_instance() -> None:
    study = small_study()
    async with in_front_of(study, use_cget=True) as (_, proxy):
        path = path_of(study[0].sample, "series") + "/metadata"
        answer = await get(proxy, path, Accept='multipart/related; type="application/dicom+xml"')
        as_json = await get(proxy, path)
    kind, _, boundary = answer.content_type.partition("; boundary=")
    assert kind == 'multipart/related; type="application/dicom+xml"'
    head, *parts, end = answer.body.split(f"--{boundary}".encode())
    assert (head, end) == (b"", b"--\r\n")
    texts = []
    for part in parts:
        header, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        assert header == b"Content-Type: application/dicom+xml"
        texts.append(content.removesuffix(b"\r\n"))
    expected = json.loads(as_json.body, parse_int=str, parse_float=str)
    assert [back(text) for text in texts] == [as_text(model) for model in expected]
