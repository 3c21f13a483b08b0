"""The Python `dicomweb-client` against the proxy, in front of each real archive: it searches, and gets the same bytes.

It sends `Host` without the port, and so shows that URLs in answers do not stand on that header alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session
from pydicom.dataset import Dataset

from tests.corpus import Sample
from tests.proxy.conftest import Source
from tests.proxy.retrieved import digests, expected, path_of
from tests.proxy.running import Proxy

pytestmark = pytest.mark.usefixtures("nothing_left")

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
Result = TypeVar("Result")


class Client(DICOMwebClient):
    """Keeps the parts of multipart answers, as its own decoder has found them."""

    def __init__(self, url: str, session: Any) -> None:
        super().__init__(url, session=session)
        self.parts: list[bytes] = []

    def _decode_multipart_message(self, *arguments: Any, **named: Any) -> Iterator[bytes]:
        for part in super()._decode_multipart_message(*arguments, **named):
            self.parts.append(bytes(part))
            yield part

    def new_parts(self) -> list[bytes]:
        """Return the parts since the last call."""
        parts, self.parts = self.parts, []
        return parts


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    """The client; it blocks, so its calls go through `calling`."""
    session = create_session()
    yield Client(proxy.url, session)
    session.close()


async def calling(call: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """Call something that blocks."""
    return await asyncio.to_thread(call, *arguments, **named)


def uids(data_sets: list[Dataset]) -> set[str]:
    """Return the SOP Instance UIDs."""
    return {str(data_set.SOPInstanceUID) for data_set in data_sets}


def values(entities: list[dict[str, Any]], tag: str) -> set[str]:
    """Return the first values of an attribute of DICOM JSON."""
    return {entity[tag]["Value"][0] for entity in entities}


# --- retrieving ----------------------------------------------------------------------------------------------


async def test_it_retrieves_studies_byte_for_byte(source: Source, client: Client) -> None:
    for patient_id in ("LATIN1", "UNUSUAL", "COMPRESSED", "BIGENDIAN", "REPORT"):
        samples = [sample for sample in source.held if sample.patient_id == patient_id]
        if not samples:
            continue
        for stream in (False, True):
            call = client.iter_study if stream else client.retrieve_study
            found = await calling(lambda call=call, uid=samples[0].study_uid: list(call(uid)))
            assert uids(found) == expected(samples).keys()
            kept = [sample for sample in samples if source.keeps(sample)]
            assert expected(kept).items() <= digests(client.new_parts()).items()


async def test_it_retrieves_series_and_instances_byte_for_byte(source: Source, client: Client) -> None:
    first, *_ = samples = source.samples.of_patient("LATIN1")
    series = [sample for sample in samples if sample.series_uid == first.series_uid]
    found = await calling(client.retrieve_series, first.study_uid, first.series_uid)
    assert uids(found) == expected(series).keys()
    assert digests(client.new_parts()) == expected(series)
    one = await calling(client.retrieve_instance, first.study_uid, first.series_uid, first.sop_instance_uid)
    assert one.SOPInstanceUID == first.sop_instance_uid
    assert one.PatientName == first.patient_name
    assert digests(client.new_parts()) == expected([first])


@pytest.mark.parametrize("source", ["orthanc-get"], indirect=True)
async def test_it_names_transfer_syntaxes(source: Source, client: Client) -> None:
    sample = next(each for each in source.held if each.transfer_syntax_uid == JPEG_BASELINE)
    where = (sample.study_uid, sample.series_uid, sample.sop_instance_uid)
    for syntax in (JPEG_BASELINE, "*"):
        await calling(client.retrieve_instance, *where, media_types=(("application/dicom", syntax),))
        assert digests(client.new_parts()) == expected([sample])
    with pytest.raises(OSError, match="406"):
        other = ("application/dicom", "1.2.840.10008.1.2.4.70")
        await calling(client.retrieve_instance, *where, media_types=(other,))


async def test_what_is_not_there_is_an_error(source: Source, client: Client) -> None:
    with pytest.raises(OSError, match="404"):
        await calling(client.retrieve_study, "1.2.3.4")


# --- searching -----------------------------------------------------------------------------------------------


async def test_it_searches_for_studies(source: Source, client: Client, proxy: Proxy) -> None:
    held = source.held
    found = await calling(client.search_for_studies)
    assert values(found, "0020000D") == {sample.study_uid for sample in held}
    paths = {proxy.url + path_of(sample, "study") for sample in held}
    assert values(found, "00081190") == paths, "the port is in it, which the client leaves out of Host"
    found = await calling(client.search_for_studies, limit=2, get_remaining=True)
    assert values(found, "0020000D") == {sample.study_uid for sample in held}
    sample = source.samples.of_patient("UTF8")[0]
    found = await calling(client.search_for_studies, search_filters={"PatientID": "UTF8"}, fields=["PatientSex"])
    assert values(found, "0020000D") == {sample.study_uid}
    assert found[0]["00100010"]["Value"][0]["Alphabetic"] == sample.patient_name


async def test_it_searches_for_series_and_instances(source: Source, client: Client) -> None:
    first, *_ = samples = source.samples.of_patient("LATIN1")
    found = await calling(client.search_for_series, first.study_uid)
    assert values(found, "0020000E") == {sample.series_uid for sample in samples}
    found = await calling(client.search_for_instances, first.study_uid)
    assert values(found, "00080018") == {sample.sop_instance_uid for sample in samples}
    found = await calling(client.search_for_instances, first.study_uid, first.series_uid, limit=1)
    assert len(found) == 1


async def test_it_walks_from_a_name_to_the_files(source: Source, client: Client) -> None:
    """A search, and what it finds retrieved one by one, as uploaders do."""
    samples: list[Sample] = source.samples.of_patient("LATIN1")
    (study,) = await calling(client.search_for_studies, search_filters={"PatientName": "M*"})
    study_uid = study["0020000D"]["Value"][0]
    files = []
    for series in await calling(client.search_for_series, study_uid):
        series_uid = series["0020000E"]["Value"][0]
        for instance in await calling(client.search_for_instances, study_uid, series_uid):
            await calling(client.retrieve_instance, study_uid, series_uid, instance["00080018"]["Value"][0])
            files += client.new_parts()
    assert digests(files) == expected(samples)
