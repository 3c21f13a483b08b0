"""What is shown to JPEG, PNG and GIF: the region, the size, and the encoding (PS3.18 8.3.5.1 and 8.7.4)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

from PIL import Image as Pillow

from proxy.render.errors import NotPossibleError
from proxy.render.jobs import Picture, Result
from proxy.render.pixels import Image

MAX_ANIMATED_FRAMES: Final = 500
"""Frames of an animation; longer loops are videos, and take that long to make."""

MAX_ANIMATED_PIXELS: Final = 250_000_000
"""Pixels of all frames of an animation, which are held at one byte each: 240 frames of 1024 by 1024."""

DEFAULT_FRAME_MILLISECONDS: Final = 100.0
FASTEST_MILLISECONDS: Final = 20.0
"""Browsers slow down what claims to be faster."""


def picture(source: BinaryIO, frame: int | None, picture: Mapping[str, Any]) -> Result:
    """An image of a frame, numbered from 1, or of the one in the middle."""
    image, wanted = Image(source), Picture(**picture)
    number = frame if frame is not None else image.frames // 2 + 1
    shown = _shown(image, number, wanted)
    out = io.BytesIO()
    if wanted.media_type == "image/jpeg":
        shown.save(out, "JPEG", quality=wanted.quality)
    elif wanted.media_type == "image/png":
        shown.save(out, "PNG")
    else:
        shown.save(out, "GIF")
    return Result({"frames": image.frames}, out.getvalue())


def animation(source: BinaryIO, frames: list[int] | None, picture: Mapping[str, Any]) -> Result:
    """An animated GIF of frames."""
    image, wanted = Image(source), Picture(**picture)
    numbers = frames if frames is not None else list(range(1, image.frames + 1))
    if len(numbers) > MAX_ANIMATED_FRAMES:
        raise NotPossibleError(f"animations of more than {MAX_ANIMATED_FRAMES} frames are not made")
    first = _shown(image, numbers[0], wanted)
    if len(numbers) * first.width * first.height > MAX_ANIMATED_PIXELS:
        raise NotPossibleError("the animation would be too large; a viewport makes it smaller")
    pictures = [_in_256_colors(first)]
    pictures += [_in_256_colors(_shown(image, number, wanted)) for number in numbers[1:]]
    out = io.BytesIO()
    more: dict[str, Any] = {"save_all": True, "append_images": pictures[1:]} if len(pictures) > 1 else {}
    pictures[0].save(out, "GIF", duration=_duration(image), loop=0, optimize=False, **more)
    return Result({"frames": image.frames}, out.getvalue())


def _in_256_colors(picture: Pillow.Image) -> Pillow.Image:
    return picture if picture.mode == "L" else picture.quantize(256)


def _duration(image: Image) -> float:
    """Milliseconds for each frame (PS3.3 C.7.6.5)."""
    attributes = image.attributes
    try:
        if time := float(attributes.get("FrameTime") or 0):
            return max(time, FASTEST_MILLISECONDS)
        if rate := float(attributes.get("RecommendedDisplayFrameRate") or attributes.get("CineRate") or 0):
            return max(1000.0 / rate, FASTEST_MILLISECONDS)
    except (TypeError, ValueError):
        pass
    return DEFAULT_FRAME_MILLISECONDS


def _shown(image: Image, number: int, wanted: Picture) -> Pillow.Image:
    shown = Pillow.fromarray(image.shown(number - 1, wanted.window))
    if wanted.region is not None:
        shown = _region(shown, wanted.region, relative=wanted.relative)
    if wanted.size is not None:
        shown = _fit(shown, *wanted.size)
    return shown


def _region(shown: Pillow.Image, region: tuple[float, float, float, float], *, relative: bool) -> Pillow.Image:
    """The part of an image that lies within it; flipped where a width or height is negative."""
    left, top, width, height = region
    if relative:
        left, width = left * shown.width, width * shown.width
        top, height = top * shown.height, height * shown.height
    width = width or shown.width - left
    height = height or shown.height - top
    box = (
        max(0, round(left)),
        max(0, round(top)),
        min(shown.width, round(left + abs(width))),
        min(shown.height, round(top + abs(height))),
    )
    if box[0] >= box[2] or box[1] >= box[3]:
        raise NotPossibleError("the region lies outside the image")
    part = shown.crop(box)
    if width < 0:
        part = part.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT)
    if height < 0:
        part = part.transpose(Pillow.Transpose.FLIP_TOP_BOTTOM)
    return part


def _fit(shown: Pillow.Image, columns: int, rows: int) -> Pillow.Image:
    """The image as large as it fits in so many columns and rows, 0 for any; its proportions stay."""
    factors = [limit / side for limit, side in ((columns, shown.width), (rows, shown.height)) if limit]
    factor = min(factors, default=1.0)
    size = (max(1, round(shown.width * factor)), max(1, round(shown.height * factor)))
    return shown if size == shown.size else shown.resize(size, Pillow.Resampling.BILINEAR, reducing_gap=3.0)
