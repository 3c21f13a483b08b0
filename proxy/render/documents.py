"""Documents: encapsulated ones as they are, structured reports as plain HTML (PS3.18 8.7.4). Needs no numpy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from html import escape
from typing import BinaryIO, Final

from pydicom import dcmread
from pydicom.dataset import Dataset

from proxy.render.errors import NotPossibleError
from proxy.render.jobs import MAX_RESULT, Result
from proxy.render.sources import inflated

MAX_DEPTH: Final = 32
"""Content items within content items; real reports stay below 12."""

MAX_ITEMS: Final = 20_000
"""Content items of one report; those of computer-aided detection have some thousands."""

STYLE: Final = "body{font-family:sans-serif;max-width:50em;margin:2em auto}dt{font-weight:bold}ul{padding-left:1.2em}"

_HEADER: Final = (
    ("Patient", "PatientName"),
    ("Patient ID", "PatientID"),
    ("Birth date", "PatientBirthDate"),
    ("Sex", "PatientSex"),
    ("Accession number", "AccessionNumber"),
    ("Study date", "StudyDate"),
    ("Study", "StudyDescription"),
    ("Completion", "CompletionFlag"),
    ("Verification", "VerificationFlag"),
)

_VALUES: Final = {
    # Value type: the attribute that has it (PS3.3 C.17.3)
    "TEXT": "TextValue",
    "DATE": "Date",
    "TIME": "Time",
    "DATETIME": "DateTime",
    "PNAME": "PersonName",
    "UIDREF": "UID",
    "SCOORD": "GraphicType",
    "SCOORD3D": "GraphicType",
    "TCOORD": "TemporalRangeType",
}


def document(source: BinaryIO) -> Result:
    """The encapsulated document, without its padding."""
    if os.fstat(source.fileno()).st_size > MAX_RESULT:
        raise NotPossibleError("the document is too large")
    data_set = dcmread(inflated(source))
    content = data_set.get("EncapsulatedDocument")
    if not content:
        raise NotPossibleError("the instance has no document")
    if data_set.get("MIMETypeOfEncapsulatedDocument", "application/pdf").lower() != "application/pdf":
        raise NotPossibleError("the document is no PDF")
    length = data_set.get("EncapsulatedDocumentLength")
    return Result({}, bytes(content[: int(length)] if length else content))


def report(source: BinaryIO) -> Result:
    """A structured report as HTML: escaped, without scripts, and with nothing to be loaded from anywhere."""
    data_set = dcmread(inflated(source))
    if "ContentSequence" not in data_set and "ValueType" not in data_set:
        raise NotPossibleError("the instance is no structured report")
    title = escape(_meaning(data_set.get("ConceptNameCodeSequence")) or "Structured report")
    rows = [
        f"<dt>{label}</dt><dd>{escape(str(value))}</dd>"
        for label, keyword in _HEADER
        if (value := data_set.get(keyword)) not in (None, "")
    ]
    budget = iter(range(MAX_ITEMS))
    lines = [
        "<!DOCTYPE html>",
        f'<html><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>',
        f"<h1>{title}</h1><dl>{''.join(rows)}</dl>",
        *_items(data_set.get("ContentSequence") or [], budget, 0),
        "</body></html>",
    ]
    return Result({}, "\n".join(lines).encode("utf-8", "replace"))


def _items(items: list[Dataset], budget: Iterator[int], depth: int) -> Iterator[str]:
    if not items:
        return
    if depth > MAX_DEPTH:
        yield "<p>… what is nested deeper is not shown</p>"
        return
    yield "<ul>"
    for item in items:
        if next(budget, None) is None:
            yield "<li>… there are more items than are shown</li>"
            break
        name, value = _meaning(item.get("ConceptNameCodeSequence")), _value(item)
        label = f"<strong>{escape(name)}</strong>" if name else ""
        yield f"<li>{label}{': ' if name and value else ''}{escape(value).replace(chr(10), '<br>')}"
        yield from _items(item.get("ContentSequence") or [], budget, depth + 1)
        yield "</li>"
    yield "</ul>"


def _value(item: Dataset) -> str:
    """The value of a content item as text (PS3.3 C.18)."""
    kind = str(item.get("ValueType", ""))
    match kind:
        case "CODE":
            return _meaning(item.get("ConceptCodeSequence"))
        case "NUM":
            measured = list(item.get("MeasuredValueSequence") or [])[:1]
            return "".join(f"{each.get('NumericValue', '')} {_unit(each)}".strip() for each in measured)
        case "IMAGE" | "COMPOSITE" | "WAVEFORM":
            return kind.lower()
    return str(item.get(_VALUES[kind], "")).replace("\r\n", "\n").replace("\r", "\n") if kind in _VALUES else ""


def _unit(measured: Dataset) -> str:
    return _meaning(measured.get("MeasurementUnitsCodeSequence"))


def _meaning(codes: list[Dataset] | None) -> str:
    if not codes:
        return ""
    return str(codes[0].get("CodeMeaning") or codes[0].get("CodeValue") or "")
