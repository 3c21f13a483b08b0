"""The Native DICOM Model (PS3.19 A.1): data sets as XML, made of what `dicomjson` has made of them.

What may live here: the way from the one model to the other (PS3.18 F.2). So there is one encoder to be right; XML,
which few clients ask for, costs about twice the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from xml.sax.saxutils import quoteattr

from proxy.dataset.dictionary import keyword_of

DICOM_XML: Final = "application/dicom+xml"

NAMESPACE: Final = "http://dicom.nema.org/PS3.19/models/NativeDICOM"

_HEAD: Final = f'<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xmlns="{NAMESPACE}" xml:space="preserve">'

_COMPONENTS: Final = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
"""Of a component group of a person's name (PS3.5 6.2.1), in order."""

_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")

_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to write (2.2): control characters, such as those of ISO 2022."""

_ESCAPES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"}
"""A carriage return as it stands would be read as a line feed (XML 1.0 2.11)."""

_ESCAPED: Final = re.compile("[&<>\r]")


def native_xml(model: str) -> bytes:
    """A data set as XML, encoded in UTF-8, from its DICOM JSON Model as `dicomjson.encode` gives it."""
    attributes = json.loads(model, parse_int=str, parse_float=str)  # numbers stay as they were written
    return "".join([_HEAD, *_attributes(attributes), "</NativeDicomModel>\n"]).encode("utf-8")


def _attributes(model: Mapping[str, Any]) -> Iterator[str]:
    for tag, attribute in model.items():
        if creator := _private_creator(tag, model):
            # The creator stands in for the number of the block that it reserved (PS3.19 Table A.1.5-2).
            name = f'tag="{tag[:4]}00{tag[6:]}" vr="{attribute["vr"]}" privateCreator={quoteattr(_clean(creator))}'
        elif keyword := keyword_of(int(tag, 16)):
            name = f'tag="{tag}" vr="{attribute["vr"]}" keyword="{keyword}"'
        else:
            name = f'tag="{tag}" vr="{attribute["vr"]}"'
        yield f"<DicomAttribute {name}>"
        yield from _content(attribute)
        yield "</DicomAttribute>"


def _private_creator(tag: str, model: Mapping[str, Any]) -> str:
    """The Private Creator (PS3.5 7.8.1) that reserved the block of a private attribute, or ""."""
    if not int(tag[3], 16) % 2 or tag[4:6] == "00":
        return ""
    values = model.get(f"{tag[:4]}00{tag[4:6]}", {}).get("Value") or [None]
    return values[0] if isinstance(values[0], str) else ""


def _content(attribute: Mapping[str, Any]) -> Iterator[str]:
    if "BulkDataURI" in attribute:
        yield f"<BulkData uri={quoteattr(_clean(attribute['BulkDataURI']))}/>"
    elif "InlineBinary" in attribute:
        yield f"<InlineBinary>{attribute['InlineBinary']}</InlineBinary>"
    for number, value in enumerate(attribute.get("Value", ()), 1):
        if attribute["vr"] == "SQ":
            yield f'<Item number="{number}">'
            yield from _attributes(value)
            yield "</Item>"
        elif value is None:
            # An empty one among several keeps its place by the numbers of the others, and at the end by this.
            yield f'<PersonName number="{number}"/>' if attribute["vr"] == "PN" else f'<Value number="{number}"/>'
        elif isinstance(value, dict):
            yield f'<PersonName number="{number}">{"".join(_groups(value))}</PersonName>'
        else:
            yield f'<Value number="{number}">{_text(value)}</Value>'


def _groups(name: Mapping[str, str]) -> Iterator[str]:
    """The component groups of a person's name; carets beyond the fifth component are part of that."""
    for group in _GROUPS:
        if group in name:
            components = zip(_COMPONENTS, name[group].split("^", len(_COMPONENTS) - 1), strict=False)
            content = [f"<{component}>{_text(text)}</{component}>" for component, text in components if text]
            yield f"<{group}>{''.join(content)}</{group}>"


def _text(text: str) -> str:
    return _ESCAPED.sub(lambda match: _ESCAPES[match[0]], _clean(text))


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
