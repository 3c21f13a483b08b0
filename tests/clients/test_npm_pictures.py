"""The pictures that the `dicomweb-client` of npm asks for, decoded, and compared with the pixels that are stored.

What they are compared with is worked out here, by the standard's formulas, and decoded by Pillow itself.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageSequence
from pydicom.encaps import generate_frames

from tests.clients.npm_client import Client, path, stored
from tests.clients.studies import COMPRESSED, CONCLUSION, CT, DOCUMENT, REPORT, ULTRASOUND, pdf

Pixels = np.ndarray[Any, Any]

JPEG, PNG, GIF = "image/jpeg", "image/png", "image/gif"
FRAMES = 30
MIDDLE = 16

CLOSE = 2.0
"""What a picture may differ from another on average, of 255: what JPEG loses, and what decoders do otherwise."""


def opened(part: tuple[str, bytes]) -> ImageFile.ImageFile:
    """Decode a picture, which is to be of the media type that its answer says."""
    media_type, content = part
    picture = Image.open(io.BytesIO(content))
    assert picture.get_format_mimetype() == media_type
    return picture


async def pictures(client: Client, method: str, media_type: str = "", **options: Any) -> list[ImageFile.ImageFile]:
    """Call a method for pictures; `media_type` is that to ask for, none for what the proxy likes best."""
    types: dict[str, Any] = {"mediaTypes": [{"mediaType": media_type}]} if media_type else {}
    return [opened(part) for part in await client.parts(method, **types, **options)]


async def rendered(client: Client, study: int, media_type: str = PNG, **query: Any) -> Pixels:
    """Return an instance as it is rendered, by parameters of the query."""
    (picture,) = await pictures(client, "retrieveInstanceRendered", media_type, **path(study), queryParams=query)
    return np.asarray(picture)


def difference(one: Pixels, other: Pixels) -> float:
    """Return the difference of two pictures of one size, on average, of 255."""
    assert one.shape == other.shape
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def hounsfield(instance: int = 1) -> Pixels:
    """Return the values of a slice of the CT."""
    image = stored(CT, instance)
    values = np.frombuffer(image.PixelData, "<u2").reshape(image.Rows, image.Columns)
    return values * float(image.RescaleSlope) + float(image.RescaleIntercept)


def linear(values: Pixels, center: float, width: float) -> Pixels:
    """Return values in a window (PS3.3 C.11.2.1.2.1)."""
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255


def linear_exact(values: Pixels, center: float, width: float) -> Pixels:
    """Return values in a window (PS3.3 C.11.2.1.3.2)."""
    return np.clip((values - center) / width + 0.5, 0, 1) * 255


def sigmoid(values: Pixels, center: float, width: float) -> Pixels:
    """Return values in a window (PS3.3 C.11.2.1.3.1)."""
    return 255 / (1 + np.exp(-4 * (values - center) / width))


@functools.cache
def decoded_frames(study: int) -> list[Image.Image]:
    """Return compressed frames as Pillow decodes them."""
    image = stored(study)
    frames = generate_frames(image.PixelData, number_of_frames=int(image.get("NumberOfFrames") or 1))
    return [Image.open(io.BytesIO(each)).convert("RGB") for each in frames]


def frame_shown(picture: Image.Image, side: int = 320) -> int:
    """Return which frame of the ultrasound a picture shows, fitted into a square; it has to come close to it."""
    shown, losses = np.asarray(picture.convert("RGB")), []
    for each in decoded_frames(ULTRASOUND):
        fitted = each.copy()
        fitted.thumbnail((side, side), Image.Resampling.BILINEAR)
        losses.append(difference(shown, np.asarray(fitted)))
    assert min(losses) < CLOSE
    return losses.index(min(losses)) + 1


@pytest.fixture
def slice_shown() -> Pixels:
    """The first slice of the CT in the window that is stored with it."""
    return linear(hounsfield(), 40, 400)


async def test_an_instance_is_shown_in_a_window(client: Client, slice_shown: Pixels) -> None:
    """That which is stored, and those that are asked for."""
    assert np.abs(await rendered(client, CT) - slice_shown).max() <= 1
    windows: dict[str, tuple[Callable[[Pixels, float, float], Pixels], float, float]] = {
        "100,300,linear": (linear, 100, 300),
        "-1000.5,4e3,linear": (linear, -1000.5, 4000),
        "120.5,12,linear-exact": (linear_exact, 120.5, 12),
        "120,90,sigmoid": (sigmoid, 120, 90),
    }
    for window, (function, center, width) in windows.items():
        expected = function(hounsfield(), center, width)
        assert np.abs(await rendered(client, CT, window=window) - expected).max() <= 1, window


async def test_an_instance_in_each_form(client: Client, slice_shown: Pixels) -> None:
    """By media types, and by `accept` in the query, which goes before (PS3.18 8.3.3.1)."""
    forms = {"": JPEG, JPEG: JPEG, PNG: PNG, GIF: GIF, "image/*": JPEG, "image/": JPEG}
    for asked, given in forms.items():
        (picture,) = await pictures(client, "retrieveInstanceRendered", asked, **path(CT))
        assert picture.get_format_mimetype() == given
        assert difference(np.asarray(picture.convert("L")), slice_shown) < CLOSE
    (picture,) = await pictures(client, "retrieveInstanceRendered", **path(CT), queryParams={"accept": PNG})
    assert picture.get_format_mimetype() == PNG
    assert difference(np.asarray(picture), slice_shown) < 1


async def test_a_part_of_an_instance(client: Client, slice_shown: Pixels) -> None:
    """Fitted into what it is to fit in, without other proportions; a region of it; and turned round."""
    small = np.asarray(Image.fromarray(slice_shown.astype(np.uint8)).resize((48, 48), Image.Resampling.BILINEAR))
    assert difference(await rendered(client, CT, viewport="64,48"), small) < CLOSE
    region = slice_shown[32:96, 40:104]
    assert difference(await rendered(client, CT, viewport="64,64,40,32,64,64"), region) < 1
    turned = await rendered(client, CT, viewport="64,64,40,32,-64,64")
    assert difference(turned, region[:, ::-1]) < 1
    assert difference(turned, region) > 5
    window = linear(hounsfield(), 100, 300)[32:96, 40:104]
    assert difference(await rendered(client, CT, viewport="64,64,40,32,64,64", window="100,300,linear"), window) < 1


async def test_the_quality(client: Client) -> None:
    """Less of it takes fewer bytes, and comes less close to what is stored."""
    sizes, losses = [], []
    (original,) = decoded_frames(COMPRESSED)
    for quality in (5, 60, 100):
        options: dict[str, Any] = {**path(COMPRESSED), "queryParams": {"quality": quality}}
        (part,) = await client.parts("retrieveInstanceRendered", mediaTypes=[{"mediaType": JPEG}], **options)
        sizes.append(len(part[1]))
        losses.append(difference(np.asarray(opened(part)), np.asarray(original)))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 4
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < CLOSE


async def test_frames(client: Client) -> None:
    """One, several as parts and as an animation, and the one that stands for the instance."""
    (middle,) = await pictures(client, "retrieveInstanceRendered", PNG, **path(ULTRASOUND))
    assert frame_shown(middle) == MIDDLE
    call = "retrieveInstanceFramesRendered"
    for media_type in (JPEG, PNG):
        (one,) = await pictures(client, call, media_type, **path(ULTRASOUND), frameNumbers=[3])
        assert frame_shown(one) == 3
    options: dict[str, Any] = {**path(ULTRASOUND), "queryParams": {"viewport": "160,160", "quality": 95}}
    several = await pictures(client, call, **options, frameNumbers=[30, 1, 9])
    assert [picture.get_format_mimetype() for picture in several] == [JPEG] * 3
    assert [frame_shown(picture, 160) for picture in several] == [30, 1, 9]
    (film,) = await pictures(client, call, GIF, **path(ULTRASOUND), frameNumbers=[1, 9, 30, 2])
    assert [frame_shown(each) for each in ImageSequence.Iterator(film)] == [1, 9, 30, 2]


async def test_thumbnails(client: Client) -> None:
    """Of an instance and of a frame, in their own size and in others."""
    for call, number in (("retrieveInstanceThumbnail", MIDDLE), ("retrieveInstanceFramesThumbnail", 5)):
        for media_type, side in (("", 128), (PNG, 128), (JPEG, 64), ("", 200)):
            query = {} if side == 128 else {"viewport": f"{side},{side}"}
            options: dict[str, Any] = {**path(ULTRASOUND), "frameNumbers": [5], "queryParams": query}
            (picture,) = await pictures(client, call, media_type, **options)
            assert picture.get_format_mimetype() == (media_type or JPEG)
            assert frame_shown(picture, side) == number, (call, media_type, side)


async def test_documents(client: Client) -> None:
    """A PDF as it is, and a report as text, of which nothing is markup."""
    assert await client.parts("retrieveInstanceRendered", **path(DOCUMENT)) == [("application/pdf", pdf())]
    text = [{"mediaType": "text/html"}]
    ((media_type, page),) = await client.parts("retrieveInstanceRendered", **path(REPORT), mediaTypes=text)
    assert media_type == "text/html"
    assert CONCLUSION.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in page.decode()


async def test_what_there_is_no_picture_of(client: Client) -> None:
    """The status says why: no such form, no such parameter, no such frame."""
    for call, study, media_type, query, status in (
        ("retrieveInstanceRendered", CT, "image/jp2", {}, 406),
        ("retrieveInstanceRendered", ULTRASOUND, "video/mp4", {}, 406),
        ("retrieveInstanceRendered", CT, JPEG, {"quality": "101"}, 400),
        ("retrieveInstanceRendered", CT, JPEG, {"window": "40,0,linear"}, 400),
        ("retrieveInstanceThumbnail", DOCUMENT, JPEG, {}, 406),
        ("retrieveInstanceFramesRendered", ULTRASOUND, JPEG, {}, 404),
        ("retrieveInstanceFramesThumbnail", ULTRASOUND, JPEG, {}, 404),
    ):
        types = [{"mediaType": media_type}]
        options: dict[str, Any] = {
            **path(study),
            "frameNumbers": [FRAMES + 1],
            "mediaTypes": types,
            "queryParams": query,
        }
        assert await client.refused(call, **options) == status, (call, media_type, query)
