"""Instances for the tests of rendering and transcoding, and what came of them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset

from tests import corpus
from tests.faultpeer import Stored
from tests.proxy.dicomfiles import DATA, quiet
from tests.proxy.retrieved import Answer

EXPLICIT = "1.2.840.10008.1.2.1"


def from_pydicom(
    name: str, number: int = 1, change: Callable[[Dataset], None] | None = None, series: int = 5
) -> Stored:
    """Make an instance of a sample that comes with pydicom; all are in one study, and in one series by default."""
    return Stored.of(part10_of(name, number, change, series))


def part10_of(name: str, number: int = 1, change: Callable[[Dataset], None] | None = None, series: int = 5) -> bytes:
    """Make the same as a file."""
    with quiet():
        data_set = pydicom.dcmread(next(DATA.rglob(name)))
        sop_class, modality = data_set.SOPClassUID, data_set.get("Modality") or "OT"
        for element in list(data_set):
            if element.tag.element == 0:
                del data_set[element.tag]
        data_set.update(corpus.header(corpus.CT_STUDY, 1, series, number, sop_class))
        data_set.Modality = modality
        if change is not None:
            change(data_set)
        return corpus.encode(data_set, data_set.file_meta.TransferSyntaxUID)


def read(part10: bytes) -> Dataset:
    """Return an instance as pydicom reads it."""
    with quiet():
        return pydicom.dcmread(io.BytesIO(part10))


def pixels_of(part10: bytes) -> np.ndarray[Any, Any]:
    """Return the pixels of an instance as pydicom reads them."""
    with quiet():
        return read(part10).pixel_array


def image(answer: Answer, media_type: str = "image/png") -> np.ndarray[Any, Any]:
    """Return the pixels of an image."""
    assert answer.status == 200, answer.body
    assert answer.content_type == media_type
    return decoded(answer.body, media_type)


def decoded(content: bytes, media_type: str = "image/png") -> np.ndarray[Any, Any]:
    """Return the pixels of an encoded image."""
    opened = Image.open(io.BytesIO(content))
    assert opened.format == media_type.removeprefix("image/").upper()
    return np.asarray(opened)


def image_parts(answer: Answer) -> list[tuple[dict[str, str], bytes]]:
    """Take a multipart answer apart: the fields of each part, and its content."""
    assert answer.status == 200, answer.body
    match = re.fullmatch(r'multipart/related; type="[a-z/]+"; boundary=([0-9a-f]+)', answer.content_type)
    assert match, answer.content_type
    opening, ending = f"--{match[1]}\r\n".encode(), f"\r\n--{match[1]}--\r\n".encode()
    assert answer.body.startswith(opening)
    assert answer.body.endswith(ending)
    found = []
    for part in answer.body[len(opening) : -len(ending)].split(b"\r\n" + opening):
        head, _, content = part.partition(b"\r\n\r\n")
        found.append((dict(line.split(": ", 1) for line in head.decode("ascii").split("\r\n")), content))
    return found
