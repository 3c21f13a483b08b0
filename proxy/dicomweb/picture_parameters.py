"""The parameters of rendered images (PS3.18 8.3.5.1) and thumbnails, as the client has written them.

What is no transformation of pixels (`annotation`, `iccprofile`, `charset`) is left as it is: a server need not support
it. What is asked for wrongly is a 400 that names the parameter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from proxy.dicomweb.errors import BadRequest
from proxy.dicomweb.rendering import MAX_AREA, MAX_SIDE
from proxy.render.jobs import DEFAULT_QUALITY, Picture

THUMBNAIL_SIDE: Final = 128
"""Columns and rows of a thumbnail, at most, unless the client asks for another size."""

FUNCTIONS: Final = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}

_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})(?:[eE][+-]?[0-9]{1,2})?")


def picture_of(query: Mapping[str, str]) -> Picture:
    """The picture that the parameters of a rendered resource describe. Raises `BadRequest`."""
    size, region = _viewport(query["viewport"], with_region=True) if "viewport" in query else (None, None)
    return Picture(
        quality=quality_of("quality", query["quality"]) if "quality" in query else DEFAULT_QUALITY,
        window=_window(query["window"]) if "window" in query else None,
        size=size,
        region=region,
    )


def thumbnail_of(query: Mapping[str, str]) -> Picture:
    """The same of a thumbnail, which has no parameter but its size."""
    size, _ = _viewport(query["viewport"], with_region=False) if "viewport" in query else (None, None)
    return Picture(size=size or (THUMBNAIL_SIDE, THUMBNAIL_SIDE))


def quality_of(name: str, text: str) -> int:
    """The quality of a lossy image (PS3.18 8.3.5.1.2)."""
    if re.fullmatch(r"[0-9]{1,3}", text) is None or not 1 <= int(text) <= 100:
        raise BadRequest(f"{name} must be a whole number from 1 to 100")
    return int(text)


def size_of(name: str, columns: str, rows: str) -> tuple[int, int]:
    """Columns and rows, which may be empty for as many as there are; `name` is the parameter's."""
    for text in (columns, rows):
        if text and (re.fullmatch(r"[0-9]{1,5}", text) is None or not 1 <= int(text) <= MAX_SIDE):
            raise BadRequest(f"{name} must be whole numbers of pixels from 1 to {MAX_SIDE}")
    size = int(columns or 0), int(rows or 0)
    if size[0] * size[1] > MAX_AREA:
        raise BadRequest(f"{name} must not be more than {MAX_AREA} pixels")
    return size


def number_of(name: str, text: str) -> float:
    """A decimal number."""
    if _NUMBER.fullmatch(text) is None or not math.isfinite(float(text)):
        raise BadRequest(f"{name} must be decimal numbers")
    return float(text)


def _window(text: str) -> tuple[float, float, str]:
    """Center, width and function (PS3.18 8.3.5.1.4)."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (2, 3):
        raise BadRequest("window must be a center, a width and a function, with commas between")
    function = FUNCTIONS.get((parts[2] if len(parts) == 3 else "linear").lower().replace("_", "-"))
    if function is None:
        raise BadRequest(f"the function of window must be one of {', '.join(FUNCTIONS)}")
    center, width = number_of("window", parts[0]), number_of("window", parts[1])
    check_width("window", width, function)
    return center, width, function


def check_width(name: str, width: float, function: str = "LINEAR") -> None:
    """Raise `BadRequest` for a width that a window cannot have (PS3.3 C.11.2.1.2.1)."""
    if function == "LINEAR" and width < 1:
        raise BadRequest(f"the width of {name} must be at least 1")
    if width <= 0:
        raise BadRequest(f"the width of {name} must be more than 0")


def _viewport(text: str, *, with_region: bool) -> tuple[tuple[int, int], tuple[float, float, float, float] | None]:
    """What the image has to fit in, and the part of it that is shown (PS3.18 8.3.5.1.3)."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) < 2 or len(parts) > (6 if with_region else 2):
        more = ", and at most sx, sy, sw and sh behind them" if with_region else ""
        raise BadRequest(f"viewport must be a width and a height{more}, with commas between")
    if not parts[0] or not parts[1]:
        raise BadRequest("viewport must begin with a width and a height")
    size = size_of("viewport", parts[0], parts[1])
    if len(parts) == 2:
        return size, None
    left, top, width, height = (number_of("viewport", part) if part else 0.0 for part in (*parts[2:], *[""] * 4)[:4])
    if left < 0 or top < 0:
        raise BadRequest("sx and sy of viewport must not be negative")
    return size, (left, top, width, height)
