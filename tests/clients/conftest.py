"""Fixtures of the tests with programs of browsers: an archive for them, a browser, and what the archive is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import dul
from tests.clients.browser import Page, browser, find_browser, new_page
from tests.clients.npm import package
from tests.clients.npm_client import LOADED, LOADS, PACKAGE, PAGE, VERSION, Client
from tests.clients.pages import served
from tests.clients.studies import files
from tests.dul.archive import decode
from tests.peers.orthanc import Orthanc
from tests.proxy.running import Proxy, proxy_for

IMPLICIT = "1.2.840.10008.1.2"


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Orthanc without its DICOMweb server."""
    with Orthanc(tmp_path_factory.mktemp("viewed"), aet="VIEWED") as running:
        running.upload(files())
        yield running


@pytest.fixture
async def proxy(archive: Orthanc) -> AsyncIterator[Proxy]:
    """The proxy in front of it, by C-MOVE, with its cache."""
    async with proxy_for(archive.address, enableCache=True) as running:
        await asyncio.to_thread(archive.know, running.address)
        yield running


@pytest.fixture
def retrievals(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, ...]]:
    """How often the archive has been asked by C-MOVE: by level, and the UIDs that were given."""
    asked: Counter[tuple[str, ...]] = Counter()
    move = dul.Association.move

    def counted(association: dul.Association, identifier: Any, **options: Any) -> Any:
        keys = decode(identifier(IMPLICIT), IMPLICIT)
        asked[keys.QueryRetrieveLevel, keys.StudyInstanceUID, keys.get("SeriesInstanceUID", "")] += 1
        return move(association, identifier, **options)

    monkeypatch.setattr(dul.Association, "move", counted)
    return asked


@pytest.fixture(scope="session")
def devtools() -> Iterator[str]:
    """A browser: the address of its DevTools."""
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium (package chromium)")
    with browser(program) as address:
        yield address


@pytest.fixture
async def page(devtools: str) -> AsyncIterator[Page]:
    """A tab of the browser, with a profile of its own."""
    async with new_page(devtools) as opened:
        yield opened


@pytest.fixture
async def client(page: Page, proxy: Proxy) -> AsyncIterator[Client]:
    """The library of npm, loaded."""
    async with served(package(PACKAGE, VERSION), {"index.html": PAGE}) as address:
        await page.goto(address)
        await page.until(LOADED, LOADS, "the library is loaded")
        yield Client(page, proxy.url)
