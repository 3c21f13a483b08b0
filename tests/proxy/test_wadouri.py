"""WADO-URI: one instance by a query, as a file or as an image, and every parameter that can be wrong."""

from __future__ import annotations

from urllib.parse import quote, urlencode

import aiohttp
import pytest

from proxy.render.jobs import Picture
from tests.corpus import Corpus
from tests.faultpeer import Stored
from tests.peers.orthanc import Orthanc
from tests.proxy.rendering import EXPLICIT, decoded, from_pydicom, image, pixels_of, read
from tests.proxy.retrieved import digests, expected, get
from tests.proxy.test_frames import serving
from tests.proxy.test_render_pixels import difference, shown
from tests.proxy.test_render_pixels import path_of as file_of

pytestmark = pytest.mark.usefixtures("nothing_left")

OHIF_ACCEPT = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
RLE = "1.2.840.10008.1.2.5"


def url_of(stored: Stored, **more: object) -> str:
    """Return the request for an instance; None leaves a parameter out."""
    sample = stored.sample
    parameters = {
        "requestType": "WADO",
        "studyUID": sample.study_uid,
        "seriesUID": sample.series_uid,
        "objectUID": sample.sop_instance_uid,
        **more,
    }
    return "/wado?" + urlencode({name: value for name, value in parameters.items() if value is not None})


@pytest.mark.parametrize("warm", [False, True], ids=["arriving", "cached"])
@pytest.mark.parametrize("more", [{}, {"transferSyntax": "*"}, {"transferSyntax": RLE}])
async def test_as_a_file_as_it_is_stored(more: dict[str, str], warm: bool) -> None:
    """With the Accept that OHIF sends along, which is for WADO-RS."""
    stored = from_pydicom("MR_small_RLE.dcm")
    async with serving(stored, warm=warm) as (_, proxy):
        answer = await get(proxy, url_of(stored, contentType="application/dicom", **more), Accept=OHIF_ACCEPT)
        assert answer.content_type == f"application/dicom; transfer-syntax={RLE}"
        assert digests([answer.body]) == expected([stored.sample])


@pytest.mark.parametrize("warm", [False, True], ids=["arriving", "cached"])
async def test_as_a_file_in_another_transfer_syntax(warm: bool) -> None:
    stored = from_pydicom("MR_small_RLE.dcm")
    async with serving(stored, warm=warm) as (_, proxy):
        url = url_of(stored, contentType="application/dicom", transferSyntax=EXPLICIT)
        answer = await get(proxy, url, Accept=OHIF_ACCEPT)
        assert answer.content_type == f"application/dicom; transfer-syntax={EXPLICIT}"
        assert read(answer.body).PixelData == pixels_of(file_of("MR_small_RLE.dcm").read_bytes()).tobytes()
        url = url_of(stored, contentType="application/dicom", transferSyntax="1.2.840.10008.1.2.4.90")
        (await get(proxy, url)).failure(406)


@pytest.mark.parametrize(
    ("content_type", "accept", "media_type"),
    [
        (None, OHIF_ACCEPT, "image/jpeg"),
        (None, "*/*", "image/jpeg"),
        (None, "image/png", "image/png"),
        (None, "text/html, image/png; q=0.9, */*; q=0.8", "image/png"),
        ("image/jpeg", OHIF_ACCEPT, "image/jpeg"),
        ("image/png", "image/jpeg", "image/png"),
        ("image/gif", "*/*", "image/gif"),
        ("text/html,image/png;q=0.5", "*/*", "image/png"),
    ],
)
async def test_as_an_image(content_type: str | None, accept: str, media_type: str) -> None:
    """`contentType` decides; `Accept` only where that is not given."""
    stored = from_pydicom("MR_small.dcm")
    async with serving(stored) as (_, proxy):
        image(await get(proxy, url_of(stored, contentType=content_type), Accept=accept), media_type)


async def test_the_parameters_of_images() -> None:
    stored = from_pydicom("CT_small.dcm")
    async with serving(stored, warm=True) as (_, proxy):
        for more, picture in (
            ({"windowCenter": 40, "windowWidth": 400}, {"window": (40, 400, "LINEAR")}),
            ({"rows": 32, "columns": 64}, {"size": (64, 32)}),
            ({"rows": 32}, {"size": (0, 32)}),
            ({"columns": 50}, {"size": (50, 0)}),
            ({"region": "0.25,0.5,0.75,1"}, {"region": (0.25, 0.5, 0.5, 0.5), "relative": True}),
            ({"frameNumber": 1, "imageQuality": 5, "annotation": "patient", "charset": "UTF-8"}, {}),
        ):
            answer = await get(proxy, url_of(stored, contentType="image/png", **more))
            wanted = shown(file_of("CT_small.dcm"), Picture("image/png", **picture))  # type: ignore[arg-type]
            assert difference(image(answer), wanted) == 0, more
        sizes = [len((await get(proxy, url_of(stored, imageQuality=quality))).body) for quality in (5, 100)]
        assert sizes[0] < sizes[1]


async def test_a_frame_by_its_number() -> None:
    stored = from_pydicom("examples_ybr_color.dcm")
    async with serving(stored, warm=True) as (_, proxy):
        answer = await get(proxy, url_of(stored, contentType="image/png", frameNumber=30))
        assert difference(image(answer), shown(file_of("examples_ybr_color.dcm"), frame=30)) == 0
        (await get(proxy, url_of(stored, frameNumber=31))).failure(404)


async def test_what_is_no_image() -> None:
    """PS3.18 9.5.1.2.1: HTML is the default for reports, and the file itself for what is not rendered."""
    report, plan = from_pydicom("test-SR.dcm", 1), from_pydicom("rtplan.dcm", 2)
    async with serving(report, plan) as (_, proxy):
        assert (await get(proxy, url_of(report))).content_type == "text/html; charset=utf-8"
        answer = await get(proxy, url_of(plan))
        assert digests([answer.body]) == expected([plan.sample])
        (await get(proxy, url_of(plan, contentType="image/jpeg"))).failure(406)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"requestType": None}, "requestType must be WADO"),
        ({"requestType": "wado"}, "requestType must be WADO"),
        ({"studyUID": None}, "studyUID is missing"),
        ({"seriesUID": None}, "seriesUID is missing"),
        ({"objectUID": None}, "objectUID is missing"),
        ({"studyUID": "1.2.x"}, "studyUID is not a valid UID"),
        ({"objectUID": "../1"}, "objectUID is not a valid UID"),
        ({"contentType": "dicom"}, "contentType must be media types, with commas between"),
        ({"transferSyntax": "*"}, "transferSyntax is for contentType=application/dicom"),
        ({"contentType": "image/jpeg", "transferSyntax": "*"}, "transferSyntax is for contentType=application/dicom"),
        ({"contentType": "application/dicom", "transferSyntax": "RLE"}, "transferSyntax must be a UID or *"),
        ({"contentType": "application/dicom", "rows": "10"}, "rows is not for contentType=application/dicom"),
        ({"frameNumber": "0"}, "frameNumber must be a whole number from 1 on"),
        ({"frameNumber": "1,2"}, "frameNumber must be a whole number from 1 on"),
        ({"rows": "0"}, "rows and columns must be whole numbers of pixels from 1 to 10000"),
        ({"columns": "1e3"}, "rows and columns must be whole numbers of pixels from 1 to 10000"),
        ({"windowCenter": "1"}, "windowCenter and windowWidth need each other"),
        ({"windowWidth": "1"}, "windowCenter and windowWidth need each other"),
        ({"windowCenter": "x", "windowWidth": "1"}, "windowCenter must be decimal numbers"),
        ({"windowCenter": "1", "windowWidth": "0"}, "the width of windowWidth must be at least 1"),
        ({"imageQuality": "0"}, "imageQuality must be a whole number from 1 to 100"),
        ({"region": "0,0,1"}, "region must be four numbers from 0 to 1, with commas between"),
        ({"region": "0,0,2,1"}, "region must be four numbers from 0 to 1, with commas between"),
        ({"region": "0.5,0,0.5,1"}, "the second corner of region must lie right of and below the first"),
        ({"anonymize": "yes"}, "anonymize is not supported"),
        ({"presentationUID": "1.2"}, "presentationUID is not supported"),
        ({"presentationSeriesUID": "1.2"}, "presentationSeriesUID is not supported"),
        ({"colour": "red"}, "unknown query parameter 'colour'"),
    ],
)
async def test_parameters_that_are_wrong(more: dict[str, str | None], message: str) -> None:
    """Said by their names, before the archive is asked."""
    stored = from_pydicom("MR_small.dcm")
    async with serving(stored) as (archive, proxy):
        assert (await get(proxy, url_of(stored, **more))).failure(400).startswith(message)
        assert archive.requests == []


async def test_a_content_type_that_is_not_there() -> None:
    stored = from_pydicom("MR_small.dcm")
    async with serving(stored) as (_, proxy):
        message = (await get(proxy, url_of(stored, contentType="video/mpeg"))).failure(406)
        assert "application/dicom" in message


async def test_an_instance_that_is_not_there() -> None:
    stored, other = from_pydicom("MR_small.dcm", 1), from_pydicom("MR_small.dcm", 2)
    async with serving(stored) as (_, proxy):
        (await get(proxy, url_of(other))).failure(404)


async def test_orthanc_answers_the_same(orthanc_dicomweb: Orthanc, samples: Corpus) -> None:
    """Its own WADO-URI: the file, and the image."""
    sample = samples.of_patient("LATIN1")[0]
    stored = Stored.of(samples.path(sample).read_bytes())
    async with aiohttp.ClientSession() as http, serving(stored) as (_, proxy):
        for content_type in ("application/dicom", "image/png"):
            url = url_of(stored, contentType=quote(content_type, safe="/"))
            async with http.get(orthanc_dicomweb.url + url) as response:
                assert response.status == 200
                theirs = await response.read()
            ours = await get(proxy, url)
            if content_type == "image/png":
                assert decoded(theirs).shape == image(ours).shape
            else:
                assert read(theirs) == read(ours.body)
