"""The `dicomweb-client` of npm through its calls, with what comes compared byte for byte; pictures are beside."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncIterator, Iterable

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from tests.clients.browser import Page
from tests.clients.npm_client import LOADS, Client, digest, digests, path, series_path, stored, values
from tests.clients.studies import (
    COMPRESSED,
    CT,
    DOCUMENT,
    REPORT,
    SIDE,
    SLICES,
    ULTRASOUND,
    VIDEO,
    VIEWER_STUDY,
    pdf,
    study_uid,
    video,
)
from tests.corpus import encode as encode_file
from tests.corpus import header, uid
from tests.peers.orthanc import Orthanc
from tests.proxy.running import proxy_for

STUDIES = (CT, ULTRASOUND, COMPRESSED, DOCUMENT, REPORT, VIDEO)
EXPLICIT = "1.2.840.10008.1.2.1"
OCTET_STREAM = "application/octet-stream"

CALLS = {
    *("searchForStudies", "searchForSeries", "searchForInstances"),
    *("retrieveStudyMetadata", "retrieveSeriesMetadata", "retrieveInstanceMetadata"),
    *("retrieveStudy", "retrieveSeries", "retrieveInstance", "retrieveInstanceFrames", "retrieveBulkData"),
    *("retrieveInstanceRendered", "retrieveInstanceFramesRendered"),
    *("retrieveInstanceThumbnail", "retrieveInstanceFramesThumbnail"),
    *("buildInstanceWadoURIUrl", "storeInstances"),
    *("getDebug", "setDebug", "getVerbose", "setVerbose"),
}
"""All that the library can do; the last four are about what it writes to the console."""


def media(media_type: str, transfer_syntax: str | None = None) -> dict[str, str]:
    """Return a media type as the library is told it."""
    return {"mediaType": media_type} | ({"transferSyntaxUID": transfer_syntax} if transfer_syntax else {})


async def test_there_are_no_other_calls(client: Client) -> None:
    """A version of the library that can do more is to be tested with more."""
    names = await client.page.evaluate("Object.getOwnPropertyNames(DICOMwebClient.api.DICOMwebClient.prototype)")
    assert {name for name in names if not name.startswith("_")} - {"constructor"} == CALLS


async def test_it_searches(client: Client) -> None:
    """At every level, below something or not, and with parameters."""
    found = await client.call("searchForStudies", queryParams={"PatientID": "VIEWER*", "fuzzymatching": "true"})
    assert sorted(values(found, "0020000D")) == [study_uid(study) for study in STUDIES]
    found = await client.call("searchForStudies", queryParams={"ModalitiesInStudy": "SR", "includefield": "00081030"})
    assert values(found, "00081030") == [f"Study {REPORT}"]
    assert await client.call("searchForStudies", queryParams={"PatientName": "Ångström^*"}) == []
    found = await client.call("searchForSeries", studyInstanceUID=study_uid(CT))
    assert values(found, "0020000E") == [uid(VIEWER_STUDY, CT, 1)]
    found = await client.call("searchForSeries", queryParams={"Modality": "DOC"})
    assert values(found, "0020000D") == [study_uid(DOCUMENT)]
    for names in ({"studyInstanceUID": study_uid(CT)}, series_path(CT)):
        found = await client.call("searchForInstances", **names)
        assert sorted(values(found, "00080018")) == sorted(digests(CT))
    found = await client.call("searchForInstances", **series_path(CT), queryParams={"limit": 5, "offset": SLICES - 3})
    assert len(found) == 3
    found = await client.call("searchForInstances", queryParams={"SOPInstanceUID": path(CT, 2)["sopInstanceUID"]})
    assert values(found, "00200013") == [2]


async def test_it_retrieves_byte_for_byte(client: Client) -> None:
    for study in STUDIES:
        every = sorted(digests(study).values())
        assert sorted(await client.call("retrieveStudy", "dataSets", studyInstanceUID=study_uid(study))) == every
        assert sorted(await client.call("retrieveSeries", "dataSets", **series_path(study))) == every
        one = digests(study)[path(study)["sopInstanceUID"]]
        assert await client.call("retrieveInstance", "dataSets", **path(study)) == [one]


async def test_it_tells_the_progress(client: Client) -> None:
    """As it comes from the archive, and out of the cache, which knows how much there will be."""
    own = "instance: window.own = new XMLHttpRequest(), "
    more = f"request: {{{own} progressCallback: event => (window.seen ??= []).push([event.loaded, event.total])}}"
    then = "files => [files.map(file => file.byteLength), seen.splice(0), own.getResponseHeader('X-Cache')]"
    state = ""
    async with asyncio.timeout(LOADS):
        while state != "HIT":
            sizes, seen, state = await client.call("retrieveSeries", then, more=more, **series_path(CT))
            loaded = [each for each, _ in seen]
            assert loaded == sorted(loaded)
            assert loaded[-1] > sum(sizes) > SLICES * SIDE * SIDE * 2
            assert {total for _, total in seen} == {loaded[-1] if state == "HIT" else 0}


async def test_it_reads_metadata(client: Client) -> None:
    """Of all instances below, and of one."""
    study = await client.call("retrieveStudyMetadata", studyInstanceUID=study_uid(CT))
    series = await client.call("retrieveSeriesMetadata", **series_path(CT))
    assert sorted(values(study, "00080018")) == sorted(values(series, "00080018")) == sorted(digests(CT))
    (first,) = await client.call("retrieveInstanceMetadata", **path(CT))
    assert first in study
    assert first in series
    (found,) = await client.call("retrieveInstanceMetadata", **path(ULTRASOUND))
    assert found["00280008"]["Value"] == [30]
    assert found["7FE00010"]["BulkDataURI"].startswith(client.url)


async def test_it_gets_frames(client: Client) -> None:
    """Native, as they are stored where they are compressed, and decoded."""
    found = await client.call("retrieveInstanceFrames", "digests", **path(CT), frameNumbers=[1])
    assert found == [digest(stored(CT).PixelData)]
    frames = list(generate_frames(stored(ULTRASOUND).PixelData, number_of_frames=30))
    jpeg = [media("image/jpeg", "1.2.840.10008.1.2.4.50")]
    found = await client.call(
        "retrieveInstanceFrames", "digests", **path(ULTRASOUND), frameNumbers=[3, 1, 30], mediaTypes=jpeg
    )
    assert found == [digest(frames[number - 1]) for number in (3, 1, 30)]
    found = await client.parts(
        "retrieveInstanceFrames", **path(VIDEO), frameNumbers=[1], mediaTypes=[media("video/mp4")]
    )
    assert found == [("video/mp4", video())]


async def test_it_gets_frames_as_the_first_that_it_takes(client: Client) -> None:
    """With several kinds of media types in one `Accept`, the stored and the decoded form."""
    image = stored(COMPRESSED)
    forms = {
        "image/jp2": ("1.2.840.10008.1.2.4.90", next(generate_frames(image.PixelData, number_of_frames=1))),
        OCTET_STREAM: (EXPLICIT, image.pixel_array.tobytes()),
    }
    for names in (list(forms), list(forms)[::-1]):
        types = [media(name, forms[name][0]) for name in names]
        (found,) = await client.parts("retrieveInstanceFrames", **path(COMPRESSED), frameNumbers=[1], mediaTypes=types)
        assert found == (names[0], forms[names[0]][1])


async def test_it_gets_bulk_data(client: Client) -> None:
    """A document whole, by its own media type, alone, and a range of it; compressed frames as parts."""
    (found,) = await client.call("retrieveInstanceMetadata", **path(DOCUMENT))
    document = {"BulkDataURI": found["00420011"]["BulkDataURI"]}
    assert await client.parts("retrieveBulkData", **document) == [(OCTET_STREAM, pdf())]
    found = await client.parts("retrieveBulkData", **document, mediaTypes=[media("application/pdf")])
    assert found == [("application/pdf", pdf())]
    assert await client.parts("retrieveBulkData", "singlepart: true", **document) == [("application/pdf", pdf())]
    for wanted, piece in (("bytes=10-19", pdf()[10:20]), ("bytes=2900-", pdf()[2900:]), ("bytes=-7", pdf()[-7:])):
        found = await client.parts("retrieveBulkData", "singlepart: 'bulkdata'", **document, headers={"Range": wanted})
        assert found == [("application/pdf", piece)]
    (found,) = await client.call("retrieveInstanceMetadata", **path(ULTRASOUND))
    frames = list(generate_frames(stored(ULTRASOUND).PixelData, number_of_frames=30))
    found = await client.call("retrieveBulkData", "digests", BulkDataURI=found["7FE00010"]["BulkDataURI"])
    assert found == [digest(frame) for frame in frames]


async def test_a_range_of_parts_is_the_whole(client: Client) -> None:
    """The library asks for bytes of a multipart answer, and wants each part whole; also where the browser has it."""
    (found,) = await client.call("retrieveInstanceMetadata", **path(DOCUMENT))
    document = {"BulkDataURI": found["00420011"]["BulkDataURI"]}
    assert await client.parts("retrieveBulkData", **document) == [(OCTET_STREAM, pdf())]
    assert await client.parts("retrieveBulkData", **document, byteRange=[10, 19]) == [(OCTET_STREAM, pdf())]


async def test_wado_uri(client: Client) -> None:
    """The URLs that the library builds: as it is stored, and in another transfer syntax."""
    made = "wadoURLPrefix: 'wado'"
    load = "async url => textOf(await (await fetch(url)).arrayBuffer())"
    text = await client.call("buildInstanceWadoURIUrl", load, made, **path(COMPRESSED))
    file = base64.b64decode(text)
    assert digest(file[144 + int.from_bytes(file[140:144], "little") :]) in digests(COMPRESSED).values()
    text = await client.call("buildInstanceWadoURIUrl", load, made, **path(COMPRESSED), transferSyntax=EXPLICIT)
    decoded = pydicom.dcmread(io.BytesIO(base64.b64decode(text)))
    assert decoded.file_meta.TransferSyntaxUID == EXPLICIT
    assert np.array_equal(decoded.pixel_array, stored(COMPRESSED).pixel_array)


# --- storing -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def new(archive: Orthanc, study: int, count: int) -> AsyncIterator[list[Dataset]]:
    """Instances of a study that the archive does not have, and is not to have afterwards."""
    data_sets = [header(VIEWER_STUDY, study, 1, number + 1) for number in range(count)]
    try:
        yield data_sets
    finally:
        for each in archive.rest("POST", "/tools/lookup", study_uid(study).encode()):
            archive.rest("DELETE", f"/studies/{each['ID']}")


def datasets(data_sets: Iterable[Dataset]) -> str:
    """Return data sets as the library is given them."""
    texts = [base64.b64encode(encode_file(each)).decode() for each in data_sets]
    return f"datasets: {texts}.map(bytesOf)"


def are_there(archive: Orthanc, data_sets: Iterable[Dataset]) -> list[bool]:
    """Tell which instances the archive has."""
    return [bool(archive.rest("POST", "/tools/lookup", each.SOPInstanceUID.encode())) for each in data_sets]


@pytest.mark.parametrize("into", [{}, {"studyInstanceUID": study_uid(90)}], ids=["any", "a-study"])
async def test_it_stores(client: Client, archive: Orthanc, into: dict[str, str]) -> None:
    """Several at once, whose addresses come back."""
    async with new(archive, 90, 3) as data_sets:
        answer = await client.call("storeInstances", "JSON.parse", more=datasets(data_sets), **into)
        assert are_there(archive, data_sets) == [True, True, True]
        items = answer["00081199"]["Value"]
        assert values(items, "00081155") == [each.SOPInstanceUID for each in data_sets]
        assert all(url.startswith(f"{client.url}/studies/{study_uid(90)}/") for url in values(items, "00081190"))


async def test_it_is_told_what_is_not_stored(client: Client, archive: Orthanc) -> None:
    """An instance of another study than the one that is named: beside one of that study, and alone."""
    async with new(archive, 91, 1) as others, new(archive, 90, 1) as fitting:
        into = {"studyInstanceUID": study_uid(90)}
        answer = await client.call("storeInstances", "JSON.parse", more=datasets(fitting + others), **into)
        assert values(answer["00081199"]["Value"], "00081155") == [fitting[0].SOPInstanceUID]
        assert values(answer["00081198"]["Value"], "00081155") == [others[0].SOPInstanceUID]
        assert await client.refused("storeInstances", more=datasets(others), **into) == 409
        assert are_there(archive, fitting + others) == [True, False]


# --- options of every call -----------------------------------------------------------------------------------------


async def test_its_options(client: Client) -> None:
    """Headers, hooks and a request of the page's own: the browser allows what the proxy does."""
    hook = "(request, {headers}) => { window.sent = headers; return request; }"
    made = f"headers: {{Authorization: 'Bearer none'}}, requestHooks: [{hook}]"
    more = "request: {instance: window.own = new XMLHttpRequest()}"
    files = await client.call("retrieveInstance", "dataSets", made, more, **path(CT))
    assert files == [digests(CT)[path(CT)["sopInstanceUID"]]]
    sent = await client.page.evaluate("sent")
    assert sent == {"Accept": 'multipart/related; type="application/dicom"', "Authorization": "Bearer none"}
    assert await client.page.evaluate("own.getResponseHeader('X-Cache')") == "MISS"


async def test_it_learns_why_it_is_refused(client: Client) -> None:
    """Other pages may read errors too, or all that a viewer could show is that something failed."""
    made = "errorInterceptor: error => { window.why = error; }"
    names = {"studyInstanceUID": study_uid(80)}
    assert await client.refused("searchForSeries", made, **names, queryParams={"limit": "many"}) == 400
    assert "limit" in await client.page.evaluate("JSON.stringify(why.response)")
    assert await client.refused("retrieveStudyMetadata", made, **names) == 404
    assert await client.page.evaluate("why.status") == 404
    assert await client.refused("retrieveInstanceFrames", **path(CT), frameNumbers=[2]) == 404


async def test_credentials(client: Client, page: Page, archive: Orthanc) -> None:
    """They are taken from pages that are listed, and from no others."""
    more = "request: {withCredentials: true}"
    assert await client.refused("searchForStudies", more=more) == 0
    origin = await page.evaluate("location.origin")
    async with proxy_for(archive.address, cors={"origin": [origin]}) as listing:
        found = await Client(page, listing.url).call("searchForStudies", more=more)
    assert len(found) == len(STUDIES)


async def test_it_reads_the_addresses(client: Client) -> None:
    """The library takes UIDs out of the proxy's addresses."""
    (found,) = await client.call("searchForInstances", **series_path(DOCUMENT))
    (address,) = found["00081190"]["Value"]
    for name, value in zip(("Study", "Series"), series_path(DOCUMENT).values(), strict=True):
        assert await client.page.evaluate(f"DICOMwebClient.utils.get{name}InstanceUIDFromUri({address!r})") == value
    found = await client.page.evaluate(f"DICOMwebClient.utils.getSOPInstanceUIDFromUri({address!r})")
    assert found == path(DOCUMENT)["sopInstanceUID"]
