"""Rendered resources and thumbnails: which image, in which form, and what is said where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator
from pathlib import Path
from xml.etree import ElementTree as ET

import aiohttp
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session
from PIL import Image
from pydicom.dataset import Dataset

from proxy.archive.archives import Archives
from proxy.archive.query.search import Found, Remarks, Results, Search
from proxy.archive.retrieval.target import Target
from proxy.config.checking import parse_config
from proxy.dataset.levels import MODALITY, Level
from proxy.dataset.reader import Element
from proxy.dicomweb.representative import INSTANCE_NUMBER, SERIES_NUMBER, representative
from proxy.render import jobs, pool
from tests import corpus
from tests.corpus import Corpus
from tests.faultpeer import Stored, small_study
from tests.peers.orthanc import Orthanc
from tests.peers.process import Address
from tests.proxy.rendering import decoded, from_pydicom, image, image_parts
from tests.proxy.retrieved import get, path_of
from tests.proxy.running import settings
from tests.proxy.test_frames import serving
from tests.proxy.test_render_pixels import difference, shown
from tests.proxy.test_render_pixels import path_of as file_of
from tests.proxy.test_render_pool import blocked

pytestmark = pytest.mark.usefixtures("nothing_left")

PNG = "image/png"
LEVELS = ("study", "series", "instance")


@pytest.mark.parametrize("warm", [False, True], ids=["arriving", "cached"])
@pytest.mark.parametrize("resource", ["", "/frames/1"])
async def test_an_instance_and_its_frame(resource: str, warm: bool) -> None:
    stored = from_pydicom("MR_small_RLE.dcm")
    async with serving(stored, warm=warm) as (_, proxy):
        answer = await get(proxy, f"{path_of(stored.sample)}{resource}/rendered", Accept=PNG)
        assert answer.headers["X-Cache"] == ("HIT" if warm else "MISS")
        assert difference(image(answer), shown(file_of("MR_small_RLE.dcm"))) == 0


@pytest.mark.parametrize("accept", ["*/*", "image/*", "image/jpeg", "text/html, image/jpeg, */*; q=0.5"])
async def test_jpeg_is_the_default(accept: str) -> None:
    stored = from_pydicom("MR_small.dcm")
    async with serving(stored) as (_, proxy):
        image(await get(proxy, path_of(stored.sample) + "/rendered", Accept=accept), "image/jpeg")
        async with proxy.http.get(path_of(stored.sample) + "/rendered", skip_auto_headers={"Accept"}) as response:
            assert response.content_type == "image/jpeg"


async def test_the_query_s_accept_goes_first() -> None:
    """OHIF asks with `?accept=image/jpeg` and `Accept: */*`."""
    stored = from_pydicom("MR_small.dcm")
    async with serving(stored) as (_, proxy):
        path = path_of(stored.sample) + "/rendered?accept=image/png"
        image(await get(proxy, path, Accept="image/jpeg"), "image/png")


@pytest.mark.parametrize("accept", ["application/dicom", "video/mp4", "application/dicom+json", "application/pdf"])
async def test_what_images_are_not_rendered_to(accept: str) -> None:
    stored = from_pydicom("MR_small.dcm")
    async with serving(stored) as (_, proxy):
        assert "image/jpeg" in (await get(proxy, path_of(stored.sample) + "/rendered", Accept=accept)).failure(406)


# --- parameters ----------------------------------------------------------------------------------------------------


async def test_window_viewport_and_quality() -> None:
    stored = from_pydicom("CT_small.dcm")
    async with serving(stored, warm=True) as (_, proxy):
        path = path_of(stored.sample) + "/rendered"
        for query, picture in (
            ("window=40,400,linear", jobs.Picture(PNG, window=(40, 400, "LINEAR"))),
            ("window=40,400", jobs.Picture(PNG, window=(40, 400, "LINEAR"))),
            ("window=40,400,linear-exact", jobs.Picture(PNG, window=(40, 400, "LINEAR_EXACT"))),
            ("window=-600.5,1.5e3,sigmoid", jobs.Picture(PNG, window=(-600.5, 1500, "SIGMOID"))),
            ("viewport=64,32", jobs.Picture(PNG, size=(64, 32))),
            ("viewport=64,64,8,16,32,32", jobs.Picture(PNG, size=(64, 64), region=(8, 16, 32, 32))),
            ("viewport=64,64,,,-128,128", jobs.Picture(PNG, size=(64, 64), region=(0, 0, -128, 128))),
        ):
            answer = await get(proxy, f"{path}?{query}", Accept=PNG)
            assert difference(image(answer), shown(file_of("CT_small.dcm"), picture)) == 0, query
        small, large = [await get(proxy, f"{path}?quality={quality}") for quality in (10, 95)]
        assert len(small.body) < len(large.body)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("window=40", "window must be a center, a width and a function, with commas between"),
        ("window=40,400,round", "the function of window must be one of linear, linear-exact, sigmoid"),
        ("window=a,400", "window must be decimal numbers"),
        ("window=nan,400", "window must be decimal numbers"),
        ("window=40,0.5,linear", "the width of window must be at least 1"),
        ("window=40,0,sigmoid", "the width of window must be more than 0"),
        ("viewport=64", "viewport must be a width and a height, and at most sx, sy, sw and sh behind them, with"),
        ("viewport=1,2,3,4,5,6,7", "viewport must be a width and a height"),
        ("viewport=0,10", "viewport must be whole numbers of pixels from 1 to 10000"),
        ("viewport=99999,10", "viewport must be whole numbers of pixels from 1 to 10000"),
        ("viewport=10000,10000", "viewport must not be more than 50000000 pixels"),
        ("viewport=10,10,-1,0", "sx and sy of viewport must not be negative"),
        ("viewport=10,10,a,0", "viewport must be decimal numbers"),
        ("quality=0", "quality must be a whole number from 1 to 100"),
        ("quality=101", "quality must be a whole number from 1 to 100"),
        ("quality=best", "quality must be a whole number from 1 to 100"),
    ],
)
async def test_parameters_that_are_wrong(query: str, message: str) -> None:
    """Said by their names, before the archive is asked."""
    stored = from_pydicom("MR_small.dcm")
    async with serving(stored) as (archive, proxy):
        answer = await get(proxy, f"{path_of(stored.sample)}/rendered?{query}")
        assert answer.failure(400).startswith(message)
        assert archive.requests == []


@pytest.mark.parametrize("query", ["viewport=10,10,1,1,5,5", "viewport=a,b"])
async def test_parameters_of_thumbnails_that_are_wrong(query: str) -> None:
    stored = from_pydicom("MR_small.dcm")
    async with serving(stored) as (_, proxy):
        assert (await get(proxy, f"{path_of(stored.sample)}/thumbnail?{query}")).failure(400).startswith("viewport")


# --- frames --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accept", ["*/*", 'multipart/related; type="image/jpeg"', 'multipart/related; type="image/png"']
)
async def test_several_frames_are_parts(accept: str) -> None:
    stored = from_pydicom("examples_ybr_color.dcm")
    media_type = "image/png" if "png" in accept else "image/jpeg"
    async with serving(stored) as (_, proxy):
        answer = await get(proxy, path_of(stored.sample) + "/frames/3,1,3/rendered", Accept=accept)
    parts = image_parts(answer)
    assert [fields["Content-Type"] for fields, _ in parts] == [media_type] * 3
    places = [fields["Content-Location"].partition("/instances/")[2].partition("/")[2] for fields, _ in parts]
    assert places == ["frames/3/rendered", "frames/1/rendered", "frames/3/rendered"]
    if media_type == "image/png":
        for (_, content), number in zip(parts, (3, 1, 3), strict=True):
            assert difference(decoded(content), shown(file_of("examples_ybr_color.dcm"), frame=number)) == 0


async def test_a_multi_frame_instance_as_one_image_as_parts_and_animated() -> None:
    stored = from_pydicom("examples_ybr_color.dcm")
    async with serving(stored, warm=True) as (_, proxy):
        path = path_of(stored.sample) + "/rendered"
        middle = shown(file_of("examples_ybr_color.dcm"), frame=16)
        assert difference(image(await get(proxy, path, Accept=PNG)), middle) == 0
        parts = image_parts(await get(proxy, path + "?viewport=32,32", Accept='multipart/related; type="image/jpeg"'))
        assert len(parts) == 30
        animation = await get(proxy, path + "?viewport=64,64", Accept="image/gif")
        assert Image.open(io.BytesIO(animation.body)).n_frames > 20  # type: ignore[attr-defined]
        some = await get(proxy, path_of(stored.sample) + "/frames/1,20/rendered", Accept="image/gif")
        for accept in ("image/*", "image/jpeg, image/gif;q=0.5"):
            same = await get(proxy, path_of(stored.sample) + "/frames/1,20/rendered", Accept=accept)
            assert same.body == some.body, "no frame is left out for a form that the client likes better"
        assert Image.open(io.BytesIO(some.body)).n_frames == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(("frames", "status"), [("31", 404), ("0", 404), ("a", 400), ("1,,2", 400), ("1,31", 404)])
async def test_frames_that_are_not_there(frames: str, status: int) -> None:
    stored = from_pydicom("examples_ybr_color.dcm")
    async with serving(stored) as (_, proxy):
        if frames == "1,31":
            with pytest.raises(aiohttp.ClientPayloadError):
                await get(proxy, f"{path_of(stored.sample)}/frames/{frames}/rendered")
        else:
            (await get(proxy, f"{path_of(stored.sample)}/frames/{frames}/rendered")).failure(status)


# --- series and studies --------------------------------------------------------------------------------------------


def mixed_study() -> list[Stored]:
    """Make a study of a report, a series of five images, each of one brightness, and another series of one."""
    report = from_pydicom("test-SR.dcm", 1, lambda data_set: setattr(data_set, "SeriesNumber", 1), series=1)
    return [report, *(plain(number, 2) for number in range(1, 6)), plain(1, 3)]


def brightness(number: int) -> int:
    """Return how bright the image of that number is shown (PS3.3 C.11.2.1.2.1)."""
    return round(((number * 100 - 499.5) / 999 + 0.5) * 255)


def plain(number: int, series: int) -> Stored:
    """Make an image of one brightness."""
    data_set = corpus.header(corpus.CT_STUDY, 1, series, number)
    corpus.add_pixels(data_set, 16, np.full(256, number * 100, dtype=np.uint16).tobytes())
    data_set.WindowCenter, data_set.WindowWidth = 500, 1000
    return Stored.of(corpus.encode(data_set))


@pytest.mark.parametrize("resource", ["rendered", "thumbnail"])
@pytest.mark.parametrize("level", ["study", "series"])
async def test_one_image_stands_for_all(level: str, resource: str) -> None:
    """That in the middle of the series; of a study, of the first series with images."""
    study = mixed_study()
    async with serving(*study, useFetchLevel="IMAGE") as (archive, proxy):
        answer = await get(proxy, f"{path_of(study[1].sample, level)}/{resource}", Accept=PNG)
        assert set(image(answer).flat) == {brightness(3)}
        (retrieval,) = archive.requests
        assert "IMAGE" in str(retrieval), "no more is retrieved than that"


async def test_the_middle_is_by_numbers_whatever_the_order_of_the_answers() -> None:
    """And the first series with images, too; what has no number comes last."""
    archives = Archives(parse_config(settings(Address("NOWHERE", 1), use_cget=True)))
    asked: list[Search] = []

    def found(level: Level, uid: str, modality: str, number: str) -> Found:
        tag = SERIES_NUMBER if level is Level.SERIES else INSTANCE_NUMBER
        elements = [Element(MODALITY, "CS", modality.encode()), Element(tag, "IS", number.encode())]
        return Found(archives.archives[0], {Level.STUDY: "1", level: uid}, {level: elements})

    async def answers(wanted: Search) -> AsyncGenerator[Found, None]:
        asked.append(wanted)
        if wanted.level is Level.SERIES:
            for each in (("1.9", "SR", "1"), ("1.3", "CT", ""), ("1.2", "CT", "20"), ("1.1", "CT", "3 ")):
                yield found(Level.SERIES, *each)
        else:
            for number in (10, 9, 2, 1, 11):
                yield found(Level.IMAGE, f"1.1.{number}", "CT", str(number))

    archives.search = lambda wanted: Results(answers(wanted), [], Remarks())  # type: ignore[method-assign]
    assert await representative(archives, Target("1")) == Target("1", "1.1", "1.1.9")
    assert [wanted.fixed for wanted in asked] == [{Level.STUDY: "1"}, {Level.STUDY: "1", Level.SERIES: "1.1"}]
    assert await representative(archives, Target("1", "2", "3")) == Target("1", "2", "3")
    await archives.close(0)


async def test_the_series_is_retrieved_where_the_fetch_level_says_so() -> None:
    study = mixed_study()
    async with serving(*study, warm=False, useFetchLevel="SERIES") as (archive, proxy):
        image(await get(proxy, path_of(study[1].sample, "series") + "/thumbnail"), "image/jpeg")
        assert len(archive.requests) == 1


async def test_a_series_of_reports() -> None:
    study = mixed_study()
    async with serving(*study) as (_, proxy):
        path = path_of(study[0].sample, "series")
        assert (await get(proxy, path + "/rendered")).content_type.startswith("text/html")
        assert "no image" in (await get(proxy, path + "/thumbnail")).failure(406)


@pytest.mark.parametrize("level", LEVELS)
async def test_what_is_not_there(level: str) -> None:
    stored, other = small_study(1, 2)[0], small_study(1, 1, study=2)[0]
    async with serving(stored) as (_, proxy):
        for resource in ("rendered", "thumbnail"):
            (await get(proxy, f"{path_of(other.sample, level)}/{resource}")).failure(404)


@pytest.mark.parametrize("warm", [False, True], ids=["arriving", "cached"])
async def test_all_images_of_a_study_as_parts(warm: bool) -> None:
    study = mixed_study()
    async with serving(*study, warm=warm) as (_, proxy):
        path = path_of(study[0].sample, "study") + "/rendered"
        parts = image_parts(await get(proxy, path, Accept='multipart/related; type="image/png"'))
    levels = sorted(int(decoded(content)[0, 0]) for _, content in parts)
    assert levels == [brightness(number) for number in (1, 1, 2, 3, 4, 5)]
    places = {fields["Content-Location"].partition("/studies")[2] for fields, _ in parts}
    assert places == {(path_of(each.sample) + "/frames/1/rendered").removeprefix("/studies") for each in study[1:]}


async def test_a_study_without_images_has_no_parts() -> None:
    report = mixed_study()[0]
    async with serving(report) as (_, proxy):
        path = path_of(report.sample, "study") + "/rendered"
        answer = await get(proxy, path, Accept='multipart/related; type="image/png"')
        assert answer.failure(406) == "there is no image"


async def test_thumbnails_have_their_size() -> None:
    stored = from_pydicom("examples_palette.dcm")  # 350 rows of 800
    async with serving(stored, warm=True) as (_, proxy):
        path = path_of(stored.sample) + "/thumbnail"
        for query, shape in (("", (56, 128)), ("?viewport=256,256", (112, 256)), ("?viewport=800,35", (35, 80))):
            assert image(await get(proxy, path + query), "image/jpeg").shape == (*shape, 3)


# --- documents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["*/*", "application/pdf", "text/html, application/xhtml+xml, */*;q=0.8"])
async def test_a_pdf_as_it_is(accept: str) -> None:
    document = b"%PDF-1.4\nsome text\n%%EOF\n"
    data_set = corpus.header(corpus.CT_STUDY, 1, 4, 1, corpus.ENCAPSULATED_PDF)
    data_set.MIMETypeOfEncapsulatedDocument = "application/pdf"
    data_set.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    data_set.EncapsulatedDocumentLength = len(document)
    stored = Stored.of(corpus.encode(data_set))
    async with serving(stored) as (_, proxy):
        answer = await get(proxy, path_of(stored.sample) + "/rendered", Accept=accept)
        assert (answer.status, answer.content_type, answer.body) == (200, "application/pdf", document)
        assert "no frames" in (await get(proxy, path_of(stored.sample) + "/frames/1/rendered")).failure(406)


async def test_a_document_that_is_no_pdf() -> None:
    data_set = corpus.header(corpus.CT_STUDY, 1, 4, 1, corpus.ENCAPSULATED_PDF)
    data_set.MIMETypeOfEncapsulatedDocument = "text/html"
    data_set.EncapsulatedDocument = b"<script>alert(1)</script> "
    stored = Stored.of(corpus.encode(data_set))
    async with serving(stored) as (_, proxy):
        answer = await get(proxy, path_of(stored.sample) + "/rendered")
        assert answer.failure(406) == "the document is no PDF"


def item(kind: str, name: str, **values: object) -> Dataset:
    made, code = Dataset(), Dataset()
    code.CodeMeaning = name
    made.ValueType, made.ConceptNameCodeSequence = kind, [code]
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


async def test_a_report_as_html() -> None:
    """What is in it is text, whatever it looks like, and nothing of it is run or loaded."""
    unit, measured, finding = Dataset(), Dataset(), Dataset()
    unit.CodeMeaning = "mm"
    measured.NumericValue, measured.MeasurementUnitsCodeSequence = "12.5", [unit]
    finding.CodeMeaning = "Nodule"
    inner = [
        item("NUM", "Diameter", MeasuredValueSequence=[measured]),
        item("CODE", "Finding", ConceptCodeSequence=[finding]),
    ]
    data_set = corpus.header(corpus.CT_STUDY, 1, 4, 1, "1.2.840.10008.5.1.4.1.1.88.33")
    data_set.SpecificCharacterSet = "ISO_IR 192"
    data_set.PatientName = "Müller^<b>Jörg</b>"
    data_set.update(item("CONTAINER", "Report & more"))
    data_set.ContentSequence = [
        item("TEXT", "Conclusion", TextValue='<script>alert("x")</script>\r\nsecond line'),
        item("CONTAINER", "Findings", ContentSequence=inner),
    ]
    stored = Stored.of(corpus.encode(data_set))
    async with serving(stored) as (_, proxy):
        answer = await get(proxy, path_of(stored.sample) + "/rendered", Accept="text/html")
    assert answer.content_type == "text/html; charset=utf-8"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    text = answer.body.decode()
    assert "<title>Report &amp; more</title>" in text
    assert "Müller^&lt;b&gt;Jörg&lt;/b&gt;" in text
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;<br>second line" in text
    assert "<strong>Diameter</strong>: 12.5 mm" in text
    assert "<strong>Finding</strong>: Nodule" in text
    assert "<script" not in text
    body = text.partition("<body>")[2].partition("</body>")[0].replace("<br>", "")
    nested = ET.fromstring(f"<body>{body}</body>")
    assert len(nested.findall("./ul/li/ul/li")) == 2


async def test_what_comes_with_pydicom_is_readable_as_html() -> None:
    stored = from_pydicom("test-SR.dcm")
    async with serving(stored) as (_, proxy):
        text = (await get(proxy, path_of(stored.sample) + "/rendered")).body.decode()
    assert text.count("<li>") == text.count("</li>") > 5


@pytest.mark.parametrize("name", ["rtplan.dcm", "waveform_ecg.dcm"])
async def test_what_has_nothing_to_be_seen(name: str) -> None:
    stored = from_pydicom(name)
    async with serving(stored) as (_, proxy):
        assert "not rendered" in (await get(proxy, path_of(stored.sample) + "/rendered")).failure(406)
        assert "no thumbnail" in (await get(proxy, path_of(stored.sample) + "/thumbnail")).failure(406)


# --- what can go wrong ---------------------------------------------------------------------------------------------


async def test_an_entity_tag_saves_making_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = from_pydicom("MR_small.dcm")
    async with serving(stored, warm=True) as (_, proxy):
        path = path_of(stored.sample)
        requests = [("/rendered", "image/png"), ("/rendered", "image/jpeg"), ("/rendered?quality=50", "image/jpeg")]
        requests += [("/thumbnail", "image/jpeg")]
        tags = [(await get(proxy, path + below, Accept=accept)).headers["ETag"] for below, accept in requests]
        assert len(set(tags)) == len(tags)

        async def run(*_: object) -> None:
            raise AssertionError("it is made again")

        monkeypatch.setattr(pool.Workers, "run", run)
        for (below, accept), tag in zip(requests, tags, strict=True):
            answer = await get(proxy, path + below, **{"Accept": accept, "If-None-Match": tag})
            assert (answer.status, answer.body) == (304, b"")


async def test_pixels_that_cannot_be_decoded_are_the_archive_s_failure() -> None:
    stored = from_pydicom("JPEG-lossy.dcm")
    async with serving(stored) as (_, proxy):
        message = (await get(proxy, path_of(stored.sample) + "/rendered")).failure(502)
        assert message == "the instance cannot be decoded, as the archive has sent it"


async def test_without_the_extra_406_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = from_pydicom("MR_small.dcm")
    async with serving(stored) as (_, proxy):
        monkeypatch.syspath_prepend(blocked(tmp_path, "numpy", "PIL", "pylibjpeg", "jpeg_ls"))
        message = (await get(proxy, path_of(stored.sample) + "/rendered")).failure(406)
        assert message == "this needs the extra 'render': pip install dicomweb-proxy[render]"


async def test_too_many_at_once_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_WAITING", 0)
    stored = from_pydicom("MR_small.dcm")
    async with serving(stored) as (_, proxy):
        answer = await get(proxy, path_of(stored.sample) + "/rendered")
        answer.failure(503)
        assert int(answer.headers["Retry-After"]) > 0


async def test_what_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PICTURE_SECONDS", 0.0)
    stored = from_pydicom("MR_small.dcm")
    async with serving(stored) as (_, proxy):
        message = (await get(proxy, path_of(stored.sample) + "/rendered")).failure(504)
        assert message == "the instance could not be decoded in time"


async def test_the_proxy_answers_others_meanwhile() -> None:
    """Decoding is done elsewhere: the event loop is never held up by it."""
    stored = from_pydicom("examples_jpeg2k.dcm")
    async with serving(stored, warm=True) as (_, proxy):
        path = path_of(stored.sample) + "/rendered"
        await get(proxy, path)
        loop = asyncio.get_running_loop()
        many = asyncio.gather(*(get(proxy, f"{path}?quality={quality}") for quality in range(10, 30)))
        slowest = 0.0
        while not many.done():
            before = loop.time()
            await get(proxy, "/ping")
            slowest = max(slowest, loop.time() - before)
            await asyncio.sleep(0.005)
        assert all(answer.status == 200 for answer in await many)
        assert slowest < 0.25


# --- clients and servers of others ---------------------------------------------------------------------------------


async def test_dicomweb_client_gets_what_it_asks_for() -> None:
    """Rendered, and transcoded: the Python client through its own calls."""
    stored = from_pydicom("SC_rgb_rle_2frame.dcm")
    sample = stored.sample
    async with serving(stored) as (_, proxy):
        with contextlib.closing(create_session()) as session:
            client = DICOMwebClient(proxy.url, session=session)
            uids = (sample.study_uid, sample.series_uid, sample.sop_instance_uid)
            exact = [shown(file_of("SC_rgb_rle_2frame.dcm"), frame=number) for number in (1, 2)]
            png = {"media_types": (PNG,)}
            instance = await asyncio.to_thread(client.retrieve_instance_rendered, *uids, **png)
            assert difference(decoded(instance), exact[1]) == 0
            series = await asyncio.to_thread(client.retrieve_series_rendered, *uids[:2], **png)
            assert difference(decoded(series), exact[1]) == 0
            frame = await asyncio.to_thread(client.retrieve_instance_frames_rendered, *uids, [1], **png)
            assert difference(decoded(frame), exact[0]) == 0
            wanted = (("application/dicom", "1.2.840.10008.1.2.1"),)
            made = await asyncio.to_thread(client.retrieve_instance, *uids, media_types=wanted)
            assert made.file_meta.TransferSyntaxUID == wanted[0][1]
            assert difference(made.pixel_array[0], exact[0]) == 0


async def test_orthanc_s_own_server_shows_the_same(orthanc_dicomweb: Orthanc, samples: Corpus) -> None:
    """With a window, as it has other ideas of what to show without; not JPEG 2000, which it does not decode."""
    kinds = [samples.of_patient(patient)[0] for patient in ("LATIN1", "BIGENDIAN", "IMPLICIT")]
    kinds += [each for each in samples.of_patient("COMPRESSED") if ".4.9" not in each.transfer_syntax_uid]
    instances = [Stored.of(samples.path(sample).read_bytes()) for sample in kinds]
    async with aiohttp.ClientSession() as http, serving(*instances) as (_, proxy):
        for sample in kinds:
            path = path_of(sample) + "/rendered?window=600,1200,linear"
            async with http.get(orthanc_dicomweb.dicomweb_url + path, headers={"Accept": PNG}) as response:
                assert response.status == 200
                theirs = decoded(await response.read())
            assert difference(image(await get(proxy, path, Accept=PNG)), theirs) <= 1, sample.transfer_syntax_uid
