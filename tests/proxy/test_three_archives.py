"""Orthanc, DCMTK's archive and pynetdicom's at once, behind one proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.corpus import Corpus, Sample
from tests.peers.dcmtk import Dcmqrscp, dcmqrscp_takes
from tests.peers.orthanc import Orthanc
from tests.peers.process import Address
from tests.peers.pynetdicom_peer import PynetdicomScp
from tests.proxy.conftest import destination_of
from tests.proxy.retrieved import digests, expected, get, kept, path_of
from tests.proxy.running import Proxy, proxy_for

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(params=["move", "get"])
async def proxy(
    request: pytest.FixtureRequest,
    orthanc: Orthanc,
    dcmqrscp: Dcmqrscp,
    pynetdicom_archive: PynetdicomScp,
    tmp_path: Path,
) -> AsyncIterator[Proxy]:
    """The proxy in front of all three, each of which has the same samples."""
    addresses: list[Address] = []
    for archive in (dcmqrscp, orthanc, pynetdicom_archive):
        destination = destination_of(archive)
        addresses.append(archive.address)
    async with proxy_for(
        *addresses,
        use_cget=request.param == "get",
        dimse_port=destination.port,
        peer={"timeouts": {"response": 0.5, "associate": 0.5}},
        enableCache=True,
        storagePath=str(tmp_path / "storage"),
    ) as running:
        yield running


def of_all(samples: Corpus, patient: str) -> list[Sample]:
    """Return the samples of a patient that every archive has as they were stored."""
    return [sample for sample in samples.of_patient(patient) if dcmqrscp_takes(sample)]


async def test_the_same_study_from_three_archives(proxy: Proxy, samples: Corpus) -> None:
    """It is listed once, comes once, and whole; and is in the cache then."""
    wanted = of_all(samples, "LATIN1")
    sample = wanted[0]
    async with proxy.http.get(f"/studies?StudyInstanceUID={sample.study_uid}") as response:
        assert "Warning" not in response.headers
        assert len(await response.json()) == 1
    async with proxy.http.get(f"/studies/{sample.study_uid}/instances") as response:
        listed = [each["00080018"]["Value"][0] for each in await response.json()]
    assert sorted(listed) == sorted(each.sop_instance_uid for each in samples.of_patient("LATIN1"))
    answer = await get(proxy, path_of(sample, "study"))
    assert digests(answer.files).keys() == expected(samples.of_patient("LATIN1")).keys()
    await kept(proxy.http)
    again = await get(proxy, path_of(sample, "study"))
    assert (again.headers["X-Cache"], digests(again.files)) == ("HIT", digests(answer.files))


async def test_one_of_three_goes_silent(proxy: Proxy, samples: Corpus, orthanc: Orthanc) -> None:
    """The others serve, and searches say whose answers are missing."""
    sample = samples.of_patient("UTF8")[0]
    orthanc.suspend()
    try:
        async with proxy.http.get(f"/studies?StudyInstanceUID={sample.study_uid}") as response:
            assert orthanc.address.aet in response.headers["Warning"]
            assert len(await response.json()) == 1
        answer = await get(proxy, path_of(sample, "series"))
        series = [each for each in samples.of_patient("UTF8") if each.series_uid == sample.series_uid]
        assert digests(answer.files).keys() == expected(series).keys()
    finally:
        orthanc.resume()
