"""The published OHIF viewer in a headless Chromium, against the proxy and an archive that has no DICOMweb at all.

What it shows is looked at on screenshots, and what it costs the archive is counted.
"""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from tests.clients import ohif
from tests.clients.browser import Page
from tests.clients.npm import package
from tests.clients.pages import served
from tests.clients.studies import COMPRESSED, CT, DOCUMENT, SLICES, ULTRASOUND, VIEWER_STUDY, study_uid
from tests.corpus import uid
from tests.proxy.running import Proxy

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: render)")

LOADS = 25.0
"""Seconds that the viewer may take to load and draw; it has some 30 MB of scripts."""

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


async def test_a_ct_series(page: Page, viewer: str, retrievals: Counter[tuple[str, ...]]) -> None:
    """It is shown, and all of its slices are fetched; metadata and frames cost the archive one C-MOVE."""
    await open_study(page, viewer, CT)
    await until_drawn(page)
    async with asyncio.timeout(LOADS):
        while len({url for url in page.answered() if "/frames/" in url}) < SLICES:
            await page.until(A_MOMENT, 5, "time passes")
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
