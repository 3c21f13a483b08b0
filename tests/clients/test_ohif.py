"""The published OHIF viewer in a headless Chromium, against the proxy and an archive that has no DICOMweb at all.

What it shows is looked at on screenshots, and what it costs the archive is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from tests.clients import ohif
from tests.clients.browser import POLL_SECONDS, Page
from tests.clients.npm import package
from tests.clients.pages import served
from tests.clients.studies import COMPRESSED, CT, DOCUMENT, SIDE, SLICES, ULTRASOUND, VIEWER_STUDY, radius, study_uid
from tests.corpus import uid
from tests.proxy.running import Proxy

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: render)")

LOADS = 25.0
"""Seconds that the viewer may take to load and draw; it has some 30 MB of scripts."""

REACTS = 5.0
"""Seconds that the viewer may take to draw another slice, of which it has the pixels."""

BRIGHT = 105
"""Grey values above are the ball, below the box around it."""

A_MOMENT = "new Promise(done => setTimeout(() => done(true), 250))"
VIEWPORT = "document.querySelector('.cornerstone-viewport-element canvas, canvas.cornerstone-canvas')"
PLACE = f"(() => {{ const v = {VIEWPORT}; if (!v) return null; const r = v.getBoundingClientRect();"
PLACE += " return {x: r.x, y: r.y, width: r.width, height: r.height}; })()"
"""Null at moments: the viewer makes its viewports anew while it loads."""


@pytest.fixture(scope="session")
def package_folder() -> Path:
    """The published viewer."""
    return package(ohif.PACKAGE, ohif.VERSION)


@pytest.fixture
async def viewer(package_folder: Path, proxy: Proxy) -> AsyncIterator[str]:
    """The address of the viewer, which asks the proxy."""
    config = {"app-config.js": ohif.configuration(proxy.url)}
    async with served(package_folder / "dist", config) as address:
        yield address


async def shown(page: Page) -> np.ndarray:
    """What the first viewport shows, as grey values of its middle, where no text is."""
    place = await page.evaluate(PLACE)
    if place is None:
        return np.zeros((1, 1), dtype=np.int16)
    middle = {
        "x": place["x"] + place["width"] / 4,
        "y": place["y"] + place["height"] / 4,
        "width": place["width"] / 2,
        "height": place["height"] / 2,
    }
    with Image.open(io.BytesIO(await page.screenshot(middle))) as image:
        return np.asarray(image.convert("L"), dtype=np.int16)


async def until_drawn(page: Page) -> np.ndarray:
    """Wait until the viewport shows an image."""
    await page.until(f"!!{VIEWPORT}", LOADS, "there is a viewport")
    seen = np.zeros((1, 1), dtype=np.int16)
    for _ in range(int(LOADS / 0.25)):
        seen = await shown(page)
        if len(np.unique(seen)) > 20:
            return seen
        await page.until(A_MOMENT, 5, "time passes")
    raise AssertionError(f"no image: {len(np.unique(seen))} grey values; {page.problems()}")


async def slice_shown(page: Page, place: dict[str, float]) -> int:
    """Return which slice of the ball the viewport shows, by how wide its disc is on the screen; 0 for none.

    The image is square and as high as the viewport.
    """
    side = place["height"]
    line = {"x": place["x"] + (place["width"] - side) / 2, "y": place["y"] + side / 2, "width": side, "height": 1}
    with Image.open(io.BytesIO(await page.screenshot(line))) as image:
        row = np.asarray(image.convert("L"))[0]
    seen = np.count_nonzero(row > BRIGHT) * SIDE / len(row) / 2
    return next((number for number in range(1, SLICES + 1) if abs(radius(number) - seen) < 1), 0)


async def until_slice(page: Page, place: dict[str, float], number: int) -> None:
    """Wait until the viewport shows a slice."""
    seen = -1
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REACTS):
            while (seen := await slice_shown(page, place)) != number:
                await asyncio.sleep(POLL_SECONDS)
    assert seen == number, f"slice {seen} is shown; {page.problems()}"


async def open_study(page: Page, viewer: str, study: int) -> None:
    """Open a study as a link to the viewer does."""
    await page.goto(f"{viewer}/viewer?StudyInstanceUIDs={study_uid(study)}")


async def test_the_list_of_studies(page: Page, viewer: str, retrievals: Counter[tuple[str, ...]]) -> None:
    """It lists them all, and retrieves nothing for that."""
    await page.goto(f"{viewer}/")
    for name in ("Viewer, CT", "Viewer, US", "Viewer, DOC"):
        await page.until(f"document.body?.innerText.includes({name!r})", LOADS, f"{name} is listed")
    assert not retrievals
    assert not page.problems()


async def test_a_ct_series_is_scrolled(page: Page, viewer: str, retrievals: Counter[tuple[str, ...]]) -> None:
    """Each turn of the wheel draws the next slice, to the end and back; all of it costs the archive one C-MOVE.

    The viewer puts the slices in the order of their positions, the highest first.
    """
    await open_study(page, viewer, CT)
    await until_drawn(page)
    async with asyncio.timeout(LOADS):
        while len({url for url in page.answered() if "/frames/" in url}) < SLICES:
            await page.until(A_MOMENT, 5, "time passes")
    place = await page.until(PLACE, REACTS, "there is a viewport")
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    await page.until(f"document.elementFromPoint({x}, {y}) === {VIEWPORT}", REACTS, "nothing lies over the viewport")
    await page.point(x, y)
    await until_slice(page, place, SLICES)
    for number in range(SLICES - 1, 0, -1):
        await page.wheel(x, y, 100)
        await until_slice(page, place, number)
    for number in range(2, SLICES + 1):
        await page.wheel(x, y, -100)
        await until_slice(page, place, number)
    assert retrievals == {("SERIES", study_uid(CT), uid(VIEWER_STUDY, CT, 1)): 1}
    assert not page.problems()


@pytest.mark.parametrize("study", [ULTRASOUND, COMPRESSED], ids=["multi-frame", "compressed"])
async def test_compressed_images(page: Page, viewer: str, retrievals: Counter[tuple[str, ...]], study: int) -> None:
    """JPEG with many frames and JPEG 2000 go to the viewer's own decoders as they are stored."""
    await open_study(page, viewer, study)
    await until_drawn(page)
    assert sum(retrievals.values()) == 1
    assert not page.problems()


async def test_the_other_profile(
    page: Page, package_folder: Path, proxy: Proxy, retrievals: Counter[tuple[str, ...]]
) -> None:
    """Whole instances by WADO-URI, and thumbnails that the server makes."""
    config = ohif.configuration(proxy.url, imageRendering="wadouri", thumbnailRendering="thumbnail")
    async with served(package_folder / "dist", {"app-config.js": config}) as viewer:
        await open_study(page, viewer, CT)
        await until_drawn(page)
        answered = page.answered()
    assert [url for url in answered if "/wado?requestType=WADO" in url]
    assert not [url for url in answered if "/frames/" in url]
    assert sum(retrievals.values()) == 1
    assert not page.problems()


async def test_a_document(page: Page, viewer: str, retrievals: Counter[tuple[str, ...]]) -> None:
    """A PDF is fetched from where the metadata says that it is, and handed to the browser."""
    await open_study(page, viewer, DOCUMENT)
    await page.until("!!document.querySelector('object[type=\"application/pdf\"]')?.data", LOADS, "there is a PDF")
    assert sum(retrievals.values()) == 1
    assert not page.problems()
