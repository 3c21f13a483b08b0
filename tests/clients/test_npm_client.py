"""The `dicomweb-client` of npm in a page of another origin: through its calls, with what comes compared byte for byte.

It is in most viewers, takes only 200, 202, 204 and 206 for success, and has a multipart decoder of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pydicom
import pytest
from pydicom.encaps import generate_frames

from tests.clients.browser import Page
from tests.clients.npm import package
from tests.clients.pages import served
from tests.clients.studies import COMPRESSED, CT, DOCUMENT, SLICES, ULTRASOUND, VIEWER_STUDY, files, pdf, study_uid
from tests.corpus import data_set_bytes, header, uid
from tests.corpus import encode as encode_file
from tests.peers.orthanc import Orthanc
from tests.proxy.running import Proxy

VERSION = "0.11.3"
LOADS = 10.0

PAGE = """<!doctype html><meta charset="utf-8"><script src="build/dicomweb-client.js"></script><script>
const hexadecimal = (bytes) => [...new Uint8Array(bytes)].map(b => b.toString(16).padStart(2, '0')).join('');
const digest = async (bytes) => hexadecimal(await crypto.subtle.digest('SHA-256', bytes));
function dataSet(file) {  // what is behind the File Meta Information
  const length = new DataView(file).getUint32(140, true);
  return file.slice(144 + length);
}
const digests = (buffers) => Promise.all([].concat(buffers).map(digest));
const dataSets = (buffers) => Promise.all([].concat(buffers).map(dataSet).map(digest));
function bytesOf(text) { return Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer; }
</script>"""

FILES = {str(pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True).SOPInstanceUID): file for file in files()}


class Client:
    """Calls of the library in the page."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url

    async def call(self, method: str, then: str = "", **options: Any) -> Any:
        """Call a method, and hand what it gives to `then`; fails with what the library says."""
        call = f"api.{method}({json.dumps(options)})"
        return await self.page.evaluate(
            f"(async () => {{ const api = new DICOMwebClient.api.DICOMwebClient({{url: {self.url!r}}});"
            f" return await ({then or 'x => x'})(await {call}); }})()"
        )


@pytest.fixture
async def client(page: Page, proxy: Proxy) -> AsyncIterator[Client]:
    """The library, loaded."""
    async with served(package("dicomweb-client", VERSION), {"index.html": PAGE}) as address:
        await page.goto(address)
        await page.until("typeof DICOMwebClient === 'object' && typeof bytesOf === 'function'", LOADS, "it is loaded")
        yield Client(page, proxy.url)


def path(study: int, instance: int = 1) -> dict[str, str]:
    """Return what names an instance for the library."""
    return {
        "studyInstanceUID": study_uid(study),
        "seriesInstanceUID": uid(VIEWER_STUDY, study, 1),
        "sopInstanceUID": uid(VIEWER_STUDY, study, 1, instance),
    }


def digest(data: bytes) -> str:
    """Return the SHA-256 of something."""
    return hashlib.sha256(data).hexdigest()


def stored(study: int) -> dict[str, str]:
    """Return the digests of the data sets of a study, by SOP Instance UID."""
    prefix = f"{study_uid(study)}."
    return {name: digest(data_set_bytes(file)) for name, file in FILES.items() if name.startswith(prefix)}


def values(entities: list[dict[str, Any]], tag: str) -> list[Any]:
    """Return the first value of an attribute of each."""
    return [entity[tag]["Value"][0] for entity in entities]


async def test_it_searches(client: Client) -> None:
    found = await client.call("searchForStudies", queryParams={"PatientID": "VIEWER*", "fuzzymatching": "true"})
    assert sorted(values(found, "0020000D")) == [study_uid(study) for study in (CT, ULTRASOUND, COMPRESSED, DOCUMENT)]
    found = await client.call("searchForSeries", studyInstanceUID=study_uid(CT))
    assert values(found, "0020000E") == [uid(VIEWER_STUDY, CT, 1)]
    found = await client.call("searchForInstances", studyInstanceUID=study_uid(CT))
    assert len(found) == SLICES


async def test_it_retrieves_byte_for_byte(client: Client) -> None:
    for study in (CT, ULTRASOUND, COMPRESSED, DOCUMENT):
        for method in ("retrieveStudy", "retrieveSeries"):
            names = {name: value for name, value in path(study).items() if name in ("studyInstanceUID",)}
            if method == "retrieveSeries":
                names["seriesInstanceUID"] = path(study)["seriesInstanceUID"]
            assert sorted(await client.call(method, "dataSets", **names)) == sorted(stored(study).values())
        one = path(study)["sopInstanceUID"]
        assert await client.call("retrieveInstance", "dataSets", **path(study)) == [stored(study)[one]]


async def test_it_reads_metadata(client: Client) -> None:
    names = path(CT)
    found = await client.call("retrieveStudyMetadata", studyInstanceUID=names["studyInstanceUID"])
    assert sorted(values(found, "00080018")) == sorted(stored(CT))
    (found,) = await client.call("retrieveInstanceMetadata", **path(ULTRASOUND))
    assert found["00280008"]["Value"] == [30]
    assert found["7FE00010"]["BulkDataURI"].startswith(client.url)


async def test_it_gets_frames(client: Client) -> None:
    """Native, and as they are stored where they are compressed."""
    image = pydicom.dcmread(io.BytesIO(FILES[path(CT)["sopInstanceUID"]]))
    found = await client.call("retrieveInstanceFrames", "digests", **path(CT), frameNumbers=[1])
    assert found == [digest(image.PixelData)]
    film = pydicom.dcmread(io.BytesIO(FILES[path(ULTRASOUND)["sopInstanceUID"]]))
    frames = list(generate_frames(film.PixelData, number_of_frames=30))
    jpeg = [{"mediaType": "image/jpeg", "transferSyntaxUID": "1.2.840.10008.1.2.4.50"}]
    found = await client.call(
        "retrieveInstanceFrames", "digests", **path(ULTRASOUND), frameNumbers=[3, 1, 30], mediaTypes=jpeg
    )
    assert found == [digest(frames[number - 1]) for number in (3, 1, 30)]


async def test_it_gets_bulk_data(client: Client) -> None:
    (found,) = await client.call("retrieveInstanceMetadata", **path(DOCUMENT))
    location = found["00420011"]["BulkDataURI"]
    assert await client.call("retrieveBulkData", "digests", BulkDataURI=location) == [digest(pdf())]


async def test_it_stores(client: Client, archive: Orthanc) -> None:
    import base64

    data_set = header(VIEWER_STUDY, 90, 1, 1)
    file = encode_file(data_set)
    text = base64.b64encode(file).decode()
    try:
        await client.page.evaluate(
            f"(async () => {{ const api = new DICOMwebClient.api.DICOMwebClient({{url: {client.url!r}}});"
            f" await api.storeInstances({{datasets: [bytesOf({text!r})]}}); }})()"
        )
        (found,) = archive.rest("POST", "/tools/lookup", data_set.SOPInstanceUID.encode())
        assert found["Type"] == "Instance"
    finally:
        for each in archive.rest("POST", "/tools/lookup", data_set.StudyInstanceUID.encode()):
            archive.rest("DELETE", f"/studies/{each['ID']}")
