"""Frames as they are shown, compared with what DCMTK's `dcmj2pnm` makes of the same files."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from PIL import ImageSequence
from pydicom.dataset import Dataset

from proxy.render import work
from proxy.render.errors import NoSuchFrameError, NotPossibleError
from proxy.render.jobs import Picture
from tests.peers.process import require_program, run_program
from tests.proxy.dicomfiles import DATA, quiet

PNG = Picture("image/png")
STORED, LEAST_TO_MOST, AS_IT_IS = ("+Wi", "1"), ("+Wm",), ()


def path_of(name: str) -> Path:
    return next(DATA.rglob(name))


def shown(path: Path, picture: Picture = PNG, frame: int | None = 1) -> np.ndarray[Any, Any]:
    """Return a frame as it is shown."""
    with quiet(), path.open("rb") as file:
        result = work.JOBS["picture"](file, frame=frame, picture=asdict(picture))
    return np.asarray(Pillow.open(io.BytesIO(result.content)))


def by_dcmtk(path: Path, folder: Path, *options: str) -> np.ndarray[Any, Any]:
    """Return the same of DCMTK, without overlays."""
    target = folder / "dcmtk.png"
    command = [require_program("dcmj2pnm", "dcmtk"), "+on", "-O", *options, str(path), str(target)]
    run_program(command, timeout=20).succeeded()
    return np.asarray(Pillow.open(target))


def difference(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> int:
    """Return the greatest difference between pixels."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("CT_small.dcm", LEAST_TO_MOST, 1),
        ("MR_small.dcm", STORED, 1),
        ("MR_small_bigendian.dcm", STORED, 1),
        ("MR_small_implicit.dcm", STORED, 1),
        ("MR_small_RLE.dcm", STORED, 1),
        ("MR_small_padded.dcm", STORED, 1),
        ("image_dfl.dcm", AS_IT_IS, 0),
        ("rtdose_1frame.dcm", LEAST_TO_MOST, 1),
        ("examples_overlay.dcm", STORED, 1),
        ("examples_palette.dcm", AS_IT_IS, 0),
        ("examples_rgb_color.dcm", AS_IT_IS, 0),
        ("ExplVR_BigEnd.dcm", AS_IT_IS, 0),
        ("SC_rgb_small_odd.dcm", AS_IT_IS, 0),
        ("SC_rgb_rle_16bit.dcm", AS_IT_IS, 0),
        ("SC_rgb_jpeg_gdcm.dcm", AS_IT_IS, 0),
        ("SC_rgb_jpeg_dcmtk.dcm", AS_IT_IS, 0),
        ("SC_rgb_dcmtk_+eb+cy+s2.dcm", AS_IT_IS, 0),
        ("SC_rgb_dcmtk_+eb+cr.dcm", AS_IT_IS, 1),
        ("SC_jpeg_no_color_transform.dcm", AS_IT_IS, 1),
        ("SC_ybr_full_422_uncompressed.dcm", AS_IT_IS, 1),
        ("SC_rgb_jpeg_lossy_gdcm.dcm", AS_IT_IS, 2),
        ("examples_ybr_color.dcm", AS_IT_IS, 3),
    ],
)
def test_what_comes_with_pydicom_is_shown_as_by_dcmtk(
    name: str, options: tuple[str, ...], tolerance: int, tmp_path: Path
) -> None:
    """Windows, palettes, RGB, YBR, and all that the files are encoded in."""
    path = path_of(name)
    assert difference(shown(path), by_dcmtk(path, tmp_path, *options)) <= tolerance


@pytest.mark.parametrize("frame", [1, 2, 17, 30])
def test_a_frame_by_its_number(frame: int, tmp_path: Path) -> None:
    path = path_of("examples_ybr_color.dcm")
    assert difference(shown(path, frame=frame), by_dcmtk(path, tmp_path, "+F", str(frame))) <= 3


def test_without_a_number_it_is_the_one_in_the_middle() -> None:
    path = path_of("examples_ybr_color.dcm")
    assert difference(shown(path, frame=None), shown(path, frame=16)) == 0
    assert difference(shown(path, frame=15), shown(path, frame=16)) > 0


@pytest.mark.parametrize("frame", [0, -1, 31])
def test_a_frame_that_is_not_there(frame: int) -> None:
    with pytest.raises(NoSuchFrameError, match="30"):
        shown(path_of("examples_ybr_color.dcm"), frame=frame)


def changed(folder: Path, change: Callable[[Dataset], None], name: str = "CT_small.dcm") -> Path:
    """Write a sample with something changed."""
    data_set = pydicom.dcmread(path_of(name))
    change(data_set)
    path = folder / "changed.dcm"
    with quiet():
        data_set.save_as(path)
    return path


@pytest.mark.parametrize(
    ("window", "options"),
    [
        ((40.0, 400.0, "LINEAR"), ("+Ww", "40", "400")),
        ((-600.0, 1500.0, "LINEAR"), ("+Ww", "-600", "1500")),
        ((40.0, 400.0, "SIGMOID"), ("+Wfs", "+Ww", "40", "400")),
        ((50.0, 1.0, "LINEAR"), ("+Ww", "50", "1")),
    ],
)
def test_a_window_is_of_rescaled_values(
    window: tuple[float, float, str], options: tuple[str, ...], tmp_path: Path
) -> None:
    path = path_of("CT_small.dcm")
    assert difference(shown(path, Picture("image/png", window=window)), by_dcmtk(path, tmp_path, *options)) <= 1


def test_linear_exact(tmp_path: Path) -> None:
    """PS3.3 C.11.2.1.3.2: the ends of the window are the ends of what is shown."""
    path = path_of("CT_small.dcm")
    values = pydicom.dcmread(path).pixel_array.astype(float) - 1024
    expected = np.rint(np.clip((values - 40) / 400 + 0.5, 0, 1) * 255)
    picture = Picture("image/png", window=(40.0, 400.0, "LINEAR_EXACT"))
    assert difference(shown(path, picture), expected) <= 1


@pytest.mark.parametrize("window", [None, (40.0, 400.0, "LINEAR")])
def test_monochrome1_is_inverted(window: tuple[float, float, str] | None, tmp_path: Path) -> None:
    def change(data_set: Dataset) -> None:
        data_set.PhotometricInterpretation = "MONOCHROME1"

    path, options = changed(tmp_path, change), ("+Ww", "40", "400") if window else LEAST_TO_MOST
    picture = Picture("image/png", window=window)
    assert difference(shown(path, picture), by_dcmtk(path, tmp_path, *options)) <= 1
    assert difference(255 - shown(path, picture), shown(path_of("CT_small.dcm"), picture)) == 0


def test_a_voi_lut_goes_before_the_window(tmp_path: Path) -> None:
    def change(data_set: Dataset) -> None:
        lut = Dataset()
        lut.LUTDescriptor = [1024, 0, 12]
        lut.LUTData = [int(4095 * (number / 1023) ** 2) for number in range(1024)]
        lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
        data_set.VOILUTSequence = [lut]
        data_set.WindowCenter, data_set.WindowWidth = 40, 400

    path = changed(tmp_path, change)
    assert difference(shown(path), by_dcmtk(path, tmp_path, "+Wl", "1")) <= 1


def test_a_modality_lut(tmp_path: Path) -> None:
    def change(data_set: Dataset) -> None:
        del data_set.RescaleSlope, data_set.RescaleIntercept
        data_set.PixelRepresentation = 0
        lut = Dataset()
        lut.LUTDescriptor = [4096, 0, 16]
        lut.LUTData = [number * 10 for number in range(4096)]
        lut.ModalityLUTType = "US"
        lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
        data_set.ModalityLUTSequence = [lut]
        data_set.PixelData = np.minimum(data_set.pixel_array, 4095).astype("<u2").tobytes()

    path = changed(tmp_path, change)
    assert difference(shown(path), by_dcmtk(path, tmp_path, *LEAST_TO_MOST)) <= 1


def test_windows_of_functional_groups(tmp_path: Path) -> None:
    """PS3.3 C.7.6.16.2.9 and C.7.6.16.2.10: shared ones, and those of the frame before them."""

    def change(data_set: Dataset) -> None:
        data_set.NumberOfFrames = 2
        data_set.PixelData = data_set.PixelData * 2
        del data_set.RescaleSlope, data_set.RescaleIntercept
        transformation, shared, own = Dataset(), Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = 1, -1024
        shared.WindowCenter, shared.WindowWidth = 40, 400
        own.WindowCenter, own.WindowWidth = -600, 1500
        group, first, second = Dataset(), Dataset(), Dataset()
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [transformation], [shared]
        second.FrameVOILUTSequence = [own]
        data_set.SharedFunctionalGroupsSequence = [group]
        data_set.PerFrameFunctionalGroupsSequence = [first, second]

    path, plain = changed(tmp_path, change), path_of("CT_small.dcm")
    for frame, options in ((1, ("+Ww", "40", "400")), (2, ("+Ww", "-600", "1500"))):
        assert difference(shown(path, frame=frame), by_dcmtk(plain, tmp_path, *options)) <= 1


def test_padding_is_no_value(tmp_path: Path) -> None:
    def change(data_set: Dataset) -> None:
        pixels = data_set.pixel_array.copy()
        pixels[:10] = -32768
        data_set.PixelPaddingValue = -32768
        data_set.PixelData = pixels.tobytes()

    picture = shown(changed(tmp_path, change))
    assert set(picture[:10].flat) == {0}
    assert (picture[10:].min(), picture[10:].max()) == (0, 255)
    assert len(np.unique(picture[10:])) > 200


def test_a_single_bit_is_black_or_white() -> None:
    path = path_of("liver_1frame.dcm")
    pixels = pydicom.dcmread(path).pixel_array
    assert difference(shown(path), pixels * 255) == 0


def test_floating_point(tmp_path: Path) -> None:
    """Parametric maps (PS3.3 C.7.6.24), with values that are none."""

    def change(data_set: Dataset) -> None:
        values = np.linspace(-1, 1, 128 * 128, dtype="<f4")
        values[5] = np.nan
        del data_set.PixelData, data_set.RescaleSlope, data_set.RescaleIntercept
        data_set.BitsAllocated = 32
        data_set.FloatPixelData = values.tobytes()

    picture = shown(changed(tmp_path, change))
    assert (picture[0, 0], picture[-1, -1]) == (0, 255)
    assert int(picture[64, 0]) in (127, 128)


@pytest.mark.parametrize("interpretation", ["HSV", "YBR_PARTIAL_422", "CMYK"])
def test_colours_that_are_not_supported(interpretation: str, tmp_path: Path) -> None:
    """Retired ones: to show them as if they were RGB would be wrong."""

    def change(data_set: Dataset) -> None:
        data_set.PhotometricInterpretation = interpretation

    with pytest.raises((NotPossibleError, ValueError)):
        shown(changed(tmp_path, change, "examples_rgb_color.dcm"))


def test_an_instance_without_pixels() -> None:
    with pytest.raises(NotPossibleError, match="no pixels"):
        shown(path_of("rtplan.dcm"))


def test_a_frame_that_is_too_large_is_not_decoded(tmp_path: Path) -> None:
    def change(data_set: Dataset) -> None:
        data_set.Rows = data_set.Columns = 65535

    with pytest.raises(NotPossibleError, match="100000000"):
        shown(changed(tmp_path, change))


# --- region and size -----------------------------------------------------------------------------------------------


def test_a_region_in_pixels_and_flipped() -> None:
    path = path_of("CT_small.dcm")
    whole = shown(path)
    part = shown(path, Picture("image/png", region=(10, 20, 30, 40)))
    assert difference(part, whole[20:60, 10:40]) == 0
    flipped = shown(path, Picture("image/png", region=(10, 20, -30, 40)))
    assert difference(flipped, whole[20:60, 10:40][:, ::-1]) == 0
    flipped = shown(path, Picture("image/png", region=(10, 20, 30, -40)))
    assert difference(flipped, whole[20:60, 10:40][::-1]) == 0
    rest = shown(path, Picture("image/png", region=(100, 90, 0, 0)))
    assert difference(rest, whole[90:, 100:]) == 0


def test_a_region_in_parts_of_the_image() -> None:
    path = path_of("CT_small.dcm")
    part = shown(path, Picture("image/png", region=(0.25, 0.5, 0.5, 0.25), relative=True))
    assert difference(part, shown(path)[64:96, 32:96]) == 0


def test_a_region_outside_the_image() -> None:
    with pytest.raises(NotPossibleError, match="outside"):
        shown(path_of("CT_small.dcm"), Picture("image/png", region=(200, 0, 10, 10)))


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 64), (28, 64)), ((400, 100), (100, 229)), ((0, 175), (175, 400)), ((77, 0), (34, 77))]
)
def test_the_image_fits_in_its_size_with_its_proportions(size: tuple[int, int], expected: tuple[int, int]) -> None:
    path = path_of("examples_palette.dcm")  # 350 rows of 800
    assert shown(path, Picture("image/png", size=size)).shape[:2] == expected


def test_what_is_made_smaller_is_averaged() -> None:
    path = path_of("CT_small.dcm")
    blocks = shown(path).reshape(32, 4, 32, 4).mean(axis=(1, 3))
    assert np.abs(shown(path, Picture("image/png", size=(32, 32))) - blocks).mean() < 8


# --- media types ---------------------------------------------------------------------------------------------------


def encoded(name: str, picture: Picture, job: str = "picture", **arguments: object) -> Pillow.Image:
    """Return an image of a sample in the form that it is asked for in."""
    with quiet(), path_of(name).open("rb") as file:
        result = work.JOBS[job](file, picture=asdict(picture), **arguments)
    return Pillow.open(io.BytesIO(result.content))


@pytest.mark.parametrize("name", ["MR_small.dcm", "examples_rgb_color.dcm"])
def test_jpeg_by_its_quality(name: str) -> None:
    exact = shown(path_of(name)).astype(int)
    errors = []
    for quality in (100, 90, 10):
        picture = encoded(name, Picture("image/jpeg", quality=quality), frame=1)
        assert picture.format == "JPEG"
        errors.append(float(np.abs(np.asarray(picture).astype(int) - exact).mean()))
    assert errors == sorted(errors)
    assert errors[0] < 3


def test_an_animation_has_every_frame() -> None:
    animation = encoded("examples_ybr_color.dcm", Picture("image/gif", size=(64, 64)), "animation", frames=None)
    assert animation.format == "GIF"
    assert animation.info["loop"] == 0
    # Frames that do not differ from the one before are shown for longer instead.
    milliseconds = sum(each.info["duration"] for each in ImageSequence.Iterator(animation))
    frame_time = float(pydicom.dcmread(path_of("examples_ybr_color.dcm")).FrameTime)
    assert milliseconds == pytest.approx(30 * frame_time, rel=0.2)


def test_an_animation_of_some_frames() -> None:
    animation = encoded("examples_ybr_color.dcm", Picture("image/gif"), "animation", frames=[3, 20])
    assert animation.n_frames == 2  # type: ignore[attr-defined]
    for index, number in enumerate((3, 20)):
        animation.seek(index)
        exact = shown(path_of("examples_ybr_color.dcm"), frame=number).astype(int)
        assert np.abs(np.asarray(animation.convert("RGB")).astype(int) - exact).mean() < 6


def test_an_animation_is_bounded(tmp_path: Path) -> None:
    def change(data_set: Dataset) -> None:
        data_set.NumberOfFrames = 501

    with changed(tmp_path, change).open("rb") as file, pytest.raises(NotPossibleError, match="500 frames"):
        work.JOBS["animation"](file, frames=None, picture=asdict(Picture("image/gif")))
