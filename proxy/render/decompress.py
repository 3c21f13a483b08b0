"""Compressed pixels to native ones, as Explicit VR Little Endian has them (PS3.5 8.1 and A.2)."""

from __future__ import annotations

from typing import Any, BinaryIO, Final

from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import as_pixel_options

from proxy.render.decoders import decoder_for
from proxy.render.errors import NotPossibleError
from proxy.render.instances import TOO_LARGE
from proxy.render.jobs import MAX_INSTANCE, Result
from proxy.render.pixels import Image

LOSSY: Final = {
    # Transfer syntaxes that always lose something, and the defined terms for how (PS3.3 C.7.6.1.1.5.1)
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
}


def frame(source: BinaryIO, frame: int) -> Result:
    """The decoded pixels of a frame, numbered from 1, as `decompress` has them."""
    image = Image(source)
    return Result({}, _as_allocated(image.decode(frame - 1), image.attributes))


def decompress(data_set: Dataset) -> None:
    """Decode the pixels of a data set, and bring what describes them in line (PS3.3 C.7.6.3).

    Colours come out as RGB, one pixel after the other, whatever the codestream has: no other interpretation is read
    the same way by all.
    """
    syntax = data_set.file_meta.TransferSyntaxUID
    decoder = decoder_for(syntax)
    count = max(1, int(data_set.get("NumberOfFrames") or 1))
    size = count * _frame_size(data_set)
    if size > MAX_INSTANCE:
        raise NotPossibleError(TOO_LARGE)
    frames: list[bytes] = []
    properties: dict[str, Any] = {}
    for pixels, found in decoder.iter_array(data_set, as_rgb=True, **as_pixel_options(data_set)):
        frames.append(_as_allocated(pixels, data_set))
        properties = found
        if len(frames) == count:
            break
    if sum(map(len, frames)) != size:
        raise NotPossibleError("the compressed pixel data does not hold what the attributes say")
    frames.append(b"\0" * (size % 2))
    element = data_set["PixelData"]
    element.value = b"".join(frames)
    element.VR = "OB" if data_set.BitsAllocated <= 8 else "OW"
    element.is_undefined_length = False
    _describe(data_set, properties)


def _describe(data_set: Dataset, properties: dict[str, Any]) -> None:
    data_set.PhotometricInterpretation = properties["photometric_interpretation"]
    if data_set.SamplesPerPixel > 1:
        data_set.PlanarConfiguration = 0
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in data_set:
            del data_set[keyword]
    method = LOSSY.get(data_set.file_meta.TransferSyntaxUID)
    if method is not None and data_set.get("LossyImageCompression") != "01":
        # PS3.3 C.7.6.1.1.5: once lossy, an image is to say so for ever.
        data_set.LossyImageCompression = "01"
        data_set.LossyImageCompressionMethod = method


def _as_allocated(pixels: NDArray[Any], data_set: Dataset) -> bytes:
    """A decoded frame in Bits Allocated (0028,0100), little endian: decoders take fewer where that is enough."""
    bits = data_set.BitsAllocated
    if bits % 8:
        raise NotPossibleError("compressed pixels of a single bit are not transcoded")
    if pixels.dtype.itemsize * 8 > bits:
        raise NotPossibleError("the compressed pixels have more bits than the attributes say")
    return pixels.astype(f"<{pixels.dtype.kind}{bits // 8}").tobytes()


def _frame_size(data_set: Dataset) -> int:
    try:
        samples = data_set.get("SamplesPerPixel", 1)
        return int(data_set.Rows * data_set.Columns * samples * ((data_set.BitsAllocated + 7) // 8))
    except (AttributeError, TypeError):
        raise NotPossibleError("the instance does not describe its pixels completely") from None
