"""Frames of an image to what is shown: 8 bits, grey or RGB, along the grayscale and colour pipelines (PS3.4 N.2).

pydicom decodes; here is what follows: modality LUT, VOI LUT or window, polarity, palettes.
"""

from __future__ import annotations

from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from proxy.render.decoders import decoder_for
from proxy.render.errors import NoSuchFrameError, NotPossibleError
from proxy.render.sources import inflated

Pixels = NDArray[Any]
Window = tuple[float, float, str]

MAX_PIXELS: Final = 100_000_000
"""Pixels of a frame: the largest of mammography have 30 million, and the pipeline takes some 12 bytes for each."""

COLOURS: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
"""Photometric interpretations (PS3.3 C.7.6.3.1.2) that are RGB once they are decoded."""

PER_FRAME: Final = (
    # Of multi-frame functional groups: sequence, and what is wanted from it (PS3.3 C.7.6.16)
    ("PixelValueTransformationSequence", ("RescaleIntercept", "RescaleSlope")),
    ("FrameVOILUTSequence", ("WindowCenter", "WindowWidth", "VOILUTFunction")),
)


class Image:
    """An open instance with pixels: its attributes, read once, and its frames."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = inflated(source)
        self.attributes = dcmread(self._source, stop_before_pixels=True)
        if "Rows" not in self.attributes or "Columns" not in self.attributes:
            raise NotPossibleError("the instance has no pixels")
        if self.attributes.Rows * self.attributes.Columns > MAX_PIXELS:
            raise NotPossibleError(f"frames of more than {MAX_PIXELS} pixels are not decoded")
        self.frames = max(1, int(self.attributes.get("NumberOfFrames") or 1))

    def decode(self, index: int) -> Pixels:
        """The pixels of a frame, numbered from 0; YBR has become RGB."""
        if not 0 <= index < self.frames:
            raise NoSuchFrameError(f"the instance has no frame of that number, but {self.frames}")
        decoder_for(UID(self.attributes.file_meta.TransferSyntaxUID))
        return pixel_array(self._source, index=index)

    def shown(self, index: int, window: Window | None = None) -> Pixels:
        """A frame as it is shown, with the stored window or this one."""
        pixels = self.decode(index)
        interpretation = self.attributes.get("PhotometricInterpretation", "MONOCHROME2")
        if interpretation == "PALETTE COLOR":
            return _to_8_bits(apply_color_lut(pixels, self.attributes), _palette_bits(self.attributes))
        if pixels.ndim == 3:
            if interpretation not in COLOURS or pixels.shape[2] != 3:
                raise NotPossibleError("the instance's photometric interpretation is not supported")
            return _to_8_bits(pixels, self.attributes.BitsStored)
        grey = self._grey(pixels, index, window)
        inverted: Pixels = 255 - grey
        return inverted if interpretation == "MONOCHROME1" else grey

    def _grey(self, pixels: Pixels, index: int, window: Window | None) -> Pixels:
        attributes = _of_frame(self.attributes, index)
        values: Pixels = apply_modality_lut(pixels, attributes) if _has_modality(attributes) else pixels
        if window is not None:
            return apply_window(values, window)
        if attributes.get("VOILUTSequence"):
            lut = attributes.VOILUTSequence[0]
            return _to_8_bits(apply_voi(values.astype(np.int32), attributes), int(lut.LUTDescriptor[2]))
        stored = stored_window(attributes)
        if stored is not None:
            return apply_window(values, stored)
        return apply_window(values, self._whole_range(pixels, values))

    def _whole_range(self, pixels: Pixels, values: Pixels) -> Window:
        """Where nothing says what to show: all values that there can be for 8 bits, that there are for more."""
        if values is pixels and pixels.dtype.kind == "u" and self.attributes.get("BitsStored", 16) <= 8:
            low, high = 0.0, float((1 << self.attributes.BitsStored) - 1)
        else:
            low, high = _range_without_padding(pixels, values, self.attributes)
        return (low + high) / 2, max(high - low, 1e-6), "LINEAR_EXACT"


def apply_window(values: Pixels, window: Window) -> Pixels:
    """The three functions of a window, to 8 bits (PS3.3 C.11.2.1.2.1 and C.11.2.1.3)."""
    center, width, function = window
    values = values.astype(np.float32)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            shown = 255.0 / (1.0 + np.exp(-4.0 * (values - center) / width))
    elif function == "LINEAR" and width > 1:
        shown = ((values - (center - 0.5)) / (width - 1.0) + 0.5) * 255.0
    elif function == "LINEAR":
        shown = np.where(values > center - 0.5, 255.0, 0.0)
    else:
        shown = ((values - center) / width + 0.5) * 255.0
    shown = np.clip(np.rint(np.nan_to_num(shown)), 0, 255)
    result: Pixels = shown.astype(np.uint8)
    return result


def stored_window(attributes: Dataset) -> Window | None:
    """The first window of an image, unless it makes no sense."""
    try:
        center, width = _first(attributes.WindowCenter), _first(attributes.WindowWidth)
        function = str(attributes.get("VOILUTFunction") or "LINEAR")
    except (AttributeError, TypeError, ValueError):
        return None
    known = function in ("LINEAR", "LINEAR_EXACT", "SIGMOID")
    if not np.isfinite(center) or not np.isfinite(width) or width <= 0 or (function == "LINEAR" and width < 1):
        return None
    return center, width, function if known else "LINEAR"


def _first(value: Any) -> float:
    return float(value[0] if isinstance(value, MultiValue) else value)


def _has_modality(attributes: Dataset) -> bool:
    return bool(attributes.get("ModalityLUTSequence")) or (
        attributes.get("RescaleSlope") is not None and attributes.get("RescaleIntercept") is not None
    )


def _of_frame(attributes: Dataset, index: int) -> Dataset:
    """The attributes of the grayscale pipeline for a frame, out of functional groups where they are there."""
    wanted = Dataset()
    for keyword in ("ModalityLUTSequence", "VOILUTSequence", "PixelRepresentation", "BitsStored", "BitsAllocated"):
        if keyword in attributes:
            wanted[keyword] = attributes[keyword]
    shared = list(attributes.get("SharedFunctionalGroupsSequence") or [])[:1]
    per_frame = list(attributes.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    for sequence, keywords in PER_FRAME:
        items = [item for group in shared + per_frame for item in list(group.get(sequence) or [])[:1]]
        for holder in [attributes, *items]:
            for keyword in keywords:
                if keyword in holder:
                    wanted[keyword] = holder[keyword]
    return wanted


def _range_without_padding(pixels: Pixels, values: Pixels, attributes: Dataset) -> tuple[float, float]:
    """The least and the greatest value (PS3.3 C.7.5.1.1.2: padding is none)."""
    if values.dtype.kind == "f":
        pixels, values = pixels[np.isfinite(values)], values[np.isfinite(values)]
    if (padding := attributes.get("PixelPaddingValue")) is not None:
        low, high = sorted((int(padding), int(attributes.get("PixelPaddingRangeLimit", padding))))
        values = values[(pixels < low) | (pixels > high)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def _to_8_bits(values: Pixels, bits: int) -> Pixels:
    """Values of so many bits from 0 on."""
    if bits > 8:
        values = values >> (bits - 8)
    elif bits < 8:
        values = values.astype(np.uint16) * 255 // ((1 << bits) - 1)
    return np.clip(values, 0, 255).astype(np.uint8)


def _palette_bits(attributes: Dataset) -> int:
    """Bits of the entries of a palette: pydicom gives 8 or 16 (PS3.3 C.7.6.3.1.5)."""
    return 16 if attributes.RedPaletteColorLookupTableDescriptor[2] > 8 else 8
