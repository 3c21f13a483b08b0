"""The rest of the Python `dicomweb-client`'s calls: metadata, frames, bulk data, pictures, iterating; deleting, which
there is not. Storing is in `test_stow`, searching and retrieving in `test_dicomweb_client`."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session
from PIL import Image
from pydicom.dataset import Dataset
from requests import HTTPError

from tests.corpus import Corpus, Sample
from tests.peers.orthanc import Orthanc
from tests.proxy.running import proxy_for
from tests.proxy.test_dicomweb_client import calling

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(params=[True, False], ids=["cache", "no cache"])
async def client(request: pytest.FixtureRequest, orthanc: Orthanc) -> AsyncIterator[DICOMwebClient]:
    """The client of a proxy in front of Orthanc."""
    async with proxy_for(orthanc.address, use_cget=True, enableCache=request.param) as proxy:
        session = create_session()
        yield DICOMwebClient(proxy.url, session=session)
        session.close()


@pytest.fixture
def image(samples: Corpus) -> Sample:
    """A native image of more than one kilobyte."""
    return samples.of_patient("LATIN1")[0]


def uids(sample: Sample) -> tuple[str, str, str]:
    """Return its study, series and SOP Instance UID."""
    return sample.study_uid, sample.series_uid, sample.sop_instance_uid


def data_set(samples: Corpus, sample: Sample) -> Dataset:
    """Return what pydicom reads from its file."""
    return pydicom.dcmread(samples.path(sample))


async def test_metadata(client: DICOMwebClient, samples: Corpus, image: Sample) -> None:
    of_study = await calling(client.retrieve_study_metadata, image.study_uid)
    of_series = await calling(client.retrieve_series_metadata, image.study_uid, image.series_uid)
    of_instance = await calling(client.retrieve_instance_metadata, *uids(image))
    wanted = samples.of_patient("LATIN1")
    assert {each["00080018"]["Value"][0] for each in of_study} == {each.sop_instance_uid for each in wanted}
    in_series = {each.sop_instance_uid for each in wanted if each.series_uid == image.series_uid}
    assert {each["00080018"]["Value"][0] for each in of_series} == in_series
    read = Dataset.from_json(of_instance, bulk_data_uri_handler=lambda *_: b"")
    original = data_set(samples, image)
    for element in original:
        if element.tag not in (0x7FE00010, 0x00080005):
            assert read[element.tag].value == element.value, element.tag


async def test_frames_and_bulk_data(client: DICOMwebClient, samples: Corpus, image: Sample) -> None:
    """Both are the pixels of the file; bulk data is found by the metadata's own URI."""
    pixels = data_set(samples, image).PixelData
    (frame,) = await calling(client.retrieve_instance_frames, *uids(image), frame_numbers=[1])
    iterated = await calling(lambda: list(client.iter_instance_frames(*uids(image), frame_numbers=[1])))
    metadata = await calling(client.retrieve_instance_metadata, *uids(image))
    uri = metadata["7FE00010"]["BulkDataURI"]
    (bulk,) = await calling(client.retrieve_bulkdata, uri)
    assert pixels[: len(frame)] == frame == iterated[0]
    assert len(pixels) - len(frame) in (0, 1), "but for a byte of padding"
    assert bulk[: len(frame)] == frame
    assert b"".join(await calling(lambda: list(client.iter_bulkdata(uri))))[: len(frame)] == frame


async def test_iterating(client: DICOMwebClient, samples: Corpus, image: Sample) -> None:
    wanted = samples.of_patient("LATIN1")
    found = await calling(lambda: list(client.iter_study(image.study_uid)))
    assert {each.SOPInstanceUID for each in found} == {each.sop_instance_uid for each in wanted}
    found = await calling(lambda: list(client.iter_series(image.study_uid, image.series_uid)))
    assert image.sop_instance_uid in {each.SOPInstanceUID for each in found}


@pytest.mark.parametrize("media_type", ["image/jpeg", "image/png"])
async def test_pictures(client: DICOMwebClient, samples: Corpus, image: Sample, media_type: str) -> None:
    original = data_set(samples, image)
    types = (media_type,)
    answers = [
        await calling(client.retrieve_instance_rendered, *uids(image), media_types=types),
        await calling(client.retrieve_instance_frames_rendered, *uids(image), frame_numbers=[1], media_types=types),
    ]
    for answer in answers:
        picture = Image.open(io.BytesIO(answer))
        assert picture.get_format_mimetype() == media_type
        assert picture.size == (original.Columns, original.Rows)
        assert np.asarray(picture).std() > 0, "not of one colour"
    assert answers[0] == answers[1]


async def test_there_is_no_deleting(client: DICOMwebClient, image: Sample) -> None:
    """The archive's images are not the proxy's to delete: 405, and they are there afterwards."""
    calls = [
        (client.delete_study, uids(image)[:1]),
        (client.delete_series, uids(image)[:2]),
        (client.delete_instance, uids(image)),
    ]
    for call, arguments in calls:
        with pytest.raises(HTTPError, match="405"):
            await calling(call, *arguments)
    assert await calling(client.retrieve_instance_metadata, *uids(image))
