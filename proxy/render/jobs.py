"""What a worker can be asked to do, and how that is written between the processes.

JSON, and bytes behind it: a worker handles what strangers have made, and what it answers is not to be able to do more
than be wrong. Files go along as descriptors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

MEBIBYTE: Final = 1024 * 1024

MAX_RESULT: Final = 256 * MEBIBYTE
"""Bytes of one result in memory. Decoded frames are the largest: one of a mammography has 50 MB, and PDF documents
stay below."""

MAX_INSTANCE: Final = 512 * MEBIBYTE
"""Bytes of a data set that is brought into another transfer syntax, before and after: it is in a worker's memory about
three times meanwhile. A multi-frame ultrasound of 250 frames in colour has 230 MB."""

MAX_JOB: Final = 64 * 1024
"""Bytes of a job as it is written; the longest is an animation of a list of frames."""

DEFAULT_QUALITY: Final = 90
"""Of JPEG: nothing is to be seen of the loss, and a CT image has 40 KB."""

RESULT_HEAD: Final = struct.Struct("<IQ")
"""Lengths of the JSON and of the bytes that follow."""


@dataclass(frozen=True, slots=True)
class Picture:
    """How an image is to look (PS3.18 8.3.5.1).

    `window` is a center, a width and a VOI LUT function as in (0028,1056); the stored one without it. `region` is the
    part of the image that is shown: left, top, width and height in pixels, or in parts of the image where `relative`;
    a negative width or height flips it. `size` is what it has to fit in: columns and rows, 0 for any.
    """

    media_type: str = "image/jpeg"
    quality: int = DEFAULT_QUALITY
    window: tuple[float, float, str] | None = None
    region: tuple[float, float, float, float] | None = None
    relative: bool = False
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A function of `work`, and its arguments but the files."""

    name: str
    arguments: Mapping[str, Any]
    seconds: float

    def encode(self) -> bytes:
        """As it goes to a worker."""
        text = json.dumps({"name": self.name, "arguments": self.arguments, "seconds": self.seconds}).encode()
        if len(text) > MAX_JOB:
            raise ValueError("the job is too long")
        return len(text).to_bytes(4, "little") + text


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job: a few values, and bytes."""

    values: Mapping[str, Any]
    content: bytes = b""


PICTURE_SECONDS: Final = 60.0
"""How long an image may take; a large JPEG 2000 frame takes some seconds."""

INSTANCE_SECONDS: Final = 300.0
"""How long a whole instance may take: 250 frames of JPEG 2000 take a minute on a slow machine."""


def picture(picture: Picture, frame: int | None = None) -> Job:
    """An image of a frame, numbered from 1; of the one in the middle without. Its value `frames` is their number."""
    return Job("picture", {"frame": frame, "picture": asdict(picture)}, PICTURE_SECONDS)


def animation(picture: Picture, frames: list[int] | None = None) -> Job:
    """An animated GIF of these frames, or all."""
    return Job("animation", {"frames": frames, "picture": asdict(picture)}, INSTANCE_SECONDS)


def frame(number: int) -> Job:
    """The decoded pixels of a frame, numbered from 1, as Explicit VR Little Endian has them."""
    return Job("frame", {"frame": number}, PICTURE_SECONDS)


def instance() -> Job:
    """The instance in Explicit VR Little Endian, written to the second file. Its value `size` is that of the file."""
    return Job("instance", {}, INSTANCE_SECONDS)


def document() -> Job:
    """The encapsulated document."""
    return Job("document", {}, PICTURE_SECONDS)


def report() -> Job:
    """A structured report as HTML."""
    return Job("report", {}, PICTURE_SECONDS)
