"""The proxy in front of an Orthanc without a DICOMweb server, and the DICOMweb server of another: the same requests.

Both have the same files. Statuses, media types, attributes and pixels are compared one by one; where the two differ,
the tests say why, and fail where they differ in any other way.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.corpus import Corpus, Sample
from tests.peers.orthanc import Orthanc
from tests.proxy.finding import tag
from tests.proxy.retrieved import Answer, path_of
from tests.proxy.running import Proxy, proxy_for
from tests.proxy.test_qido import OF_INSTANCE, OF_SERIES, OF_STUDY

Entity = dict[str, Any]
JSON = "application/dicom+json"
PIXELS = 'multipart/related; type="application/octet-stream"'
STORED = "transfer-syntax=*"

# What PS3.18 Tables 10.6.3-3 to -5 list and the reference leaves out where it has nothing, or always. The archive adds
# its own title.
ONLY_OURS = {tag(keyword) for keyword in (*OF_STUDY, *OF_SERIES, *OF_INSTANCE, "RetrieveAETitle")}

# Below one study, the reference repeats the study's attributes; by PS3.18 10.6.3.3 these come where no study is given.
REPEATED = {tag(keyword) for keyword in OF_STUDY}

# Orthanc has it in the files and not in what its C-FIND searches.
NOT_IN_C_FIND = {tag("TimezoneOffsetFromUTC")}


@dataclass(frozen=True)
class Both:
    """The proxy and the reference."""

    proxy: Proxy
    reference: str

    async def ours(self, path: str, accept: str = "*/*") -> Answer:
        """Ask the proxy."""
        return await self.at(self.proxy.url + path, accept)

    async def theirs(self, path: str, accept: str = "*/*") -> Answer:
        """Ask the reference."""
        return await self.at(self.reference + path, accept)

    async def at(self, url: str, accept: str = "*/*") -> Answer:
        """Ask for what an answer points at."""
        async with self.proxy.http.get(url, headers={"Accept": accept}) as response:
            return await Answer.read(response)

    async def entities(self, path: str) -> list[tuple[Entity, Entity]]:
        """Ask both for entities, and give the pairs that belong together; none may be in one answer only."""
        mine, yours = await self.ours(path, JSON), await self.theirs(path, JSON)
        assert mine.status == yours.status == 200, (path, mine.body, yours.body)
        assert mine.content_type == yours.content_type == JSON
        first, second = (_by_uids(json.loads(answer.body)) for answer in (mine, yours))
        assert first.keys() == second.keys(), path
        return [(first[key], second[key]) for key in first]


@pytest.fixture
async def both(orthanc: Orthanc, orthanc_dicomweb: Orthanc) -> AsyncIterator[Both]:
    """The proxy, which asks by C-GET and keeps what it gets, and the reference."""
    async with proxy_for(orthanc.address, use_cget=True, enableCache=True) as proxy:
        yield Both(proxy, orthanc_dicomweb.dicomweb_url)


def _by_uids(entities: list[Entity]) -> dict[tuple[str, ...], Entity]:
    names = [tag(name) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    return {tuple(entity.get(name, {}).get("Value", [""])[0] for name in names): entity for entity in entities}


# --- searches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    ["", "?PatientID=LATIN1", "?StudyDate=20240404-20240606", "?AccessionNumber=A30001*"],
)
@pytest.mark.parametrize("resource", ["/studies", "/series", "/instances"])
async def test_searches(both: Both, resource: str, query: str) -> None:
    """The same entities, and of each the same values."""
    for mine, yours in await both.entities(resource + query):
        assert_same_search(both, mine, yours)


async def test_filters_of_the_level_above(both: Both) -> None:
    """The reference finds no series by the modalities of its study; the proxy looks for the studies first."""
    assert await both.entities("/studies?ModalitiesInStudy=MR")
    ours, theirs = [await ask("/series?ModalitiesInStudy=MR", JSON) for ask in (both.ours, both.theirs)]
    assert len(json.loads(ours.body)) == 10
    assert json.loads(theirs.body) == []


async def test_searches_below_a_study(both: Both, samples: Corpus) -> None:
    for study in samples.study_uids:
        for path in (f"/studies/{study}/series", f"/studies/{study}/instances"):
            for mine, yours in await both.entities(path):
                repeated = {name: value for name, value in yours.items() if name in REPEATED - mine.keys()}
                assert_same_search(both, mine, {name: yours[name] for name in yours.keys() - repeated.keys()})


def assert_same_search(both: Both, mine: Entity, yours: Entity) -> None:
    """All that the reference returns is in the proxy's answer, and nothing is beside it but what is explained."""
    assert mine.keys() - yours.keys() <= ONLY_OURS
    for name in yours:
        if name == tag("RetrieveURL"):
            assert _place(both, mine[name]) == _place(both, yours[name])
        elif name in NOT_IN_C_FIND:
            assert mine[name] in (yours[name], {"vr": yours[name]["vr"]})
        else:
            assert mine[name] == yours[name], name


def _place(both: Both, attribute: Entity) -> str:
    """An address in an answer, without that of the server."""
    (url,) = attribute["Value"]
    return str(url).removeprefix(both.proxy.url).removeprefix(both.reference)


# --- metadata ------------------------------------------------------------------------------------------------


async def test_metadata(both: Both, samples: Corpus) -> None:
    """All attributes of all instances, also within sequences."""
    for study in samples.study_uids:
        for mine, yours in await both.entities(f"/studies/{study}/metadata"):
            # Not in PS3.18 Annex F; viewers look for it.
            assert mine.pop("00083002")["vr"] == "UI"
            # The proxy's text is UTF-8, and its Specific Character Set says so; the reference repeats the file's.
            assert mine.pop("00080005", None) in (None, {"vr": "CS", "Value": ["ISO_IR 192"]})
            yours.pop("00080005", None)
            # The reference has no bulk data for what is compressed.
            if "7FE00010" not in yours:
                assert "BulkDataURI" in mine.pop("7FE00010", {"BulkDataURI": ""})
            await assert_same_metadata(both, mine, yours)


async def assert_same_metadata(both: Both, mine: Entity, yours: Entity) -> None:
    """The same attributes, and bulk data of the same bytes, wherever each server puts it."""
    assert mine.keys() == yours.keys()
    for name, attribute in mine.items():
        other = yours[name]
        assert attribute["vr"] == other["vr"], name
        if attribute["vr"] == "SQ":
            pairs = zip(attribute.get("Value", []), other.get("Value", []), strict=True)
            for item, other_item in pairs:
                await assert_same_metadata(both, item, other_item)
        elif {"BulkDataURI", "InlineBinary"} & attribute.keys():
            assert await _bytes(both, attribute) == await _bytes(both, other), name
        else:
            values = zip(attribute.get("Value", []), other.get("Value", []), strict=True)
            assert all(one == another or _ascii(one) == _ascii(another) for one, another in values), name


def _ascii(value: Any) -> str:
    """A value without its letters outside ASCII, which the reference leaves out within sequences."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode("ascii", "ignore").decode()


async def _bytes(both: Both, attribute: Mapping[str, Any]) -> bytes:
    """Binary data, which is in the answer, or has to be asked for."""
    if "BulkDataURI" not in attribute:
        return b64decode(attribute.get("InlineBinary", ""))
    answer = await both.at(attribute["BulkDataURI"], PIXELS)
    assert answer.status == 200
    return parts_of(answer)[0]


def parts_of(answer: Answer) -> list[bytes]:
    """The contents of the parts of a multipart body; the reference also has a line break before the first."""
    boundary = answer.content_type.partition("boundary=")[2].strip('"').encode()
    body = b"\r\n" + answer.body.removeprefix(b"\r\n")
    _, *parts, _ = body.split(b"\r\n--" + boundary)
    return [part.partition(b"\r\n\r\n")[2] for part in parts]


# --- pixels and data sets --------------------------------------------------------------------------------------


async def test_instances(both: Both, samples: Corpus) -> None:
    """As they are stored, the same data set to the byte."""
    accept = f'multipart/related; type="application/dicom"; {STORED}'
    for sample in samples.samples:
        mine, yours = await both.ours(path_of(sample), accept), await both.theirs(path_of(sample), accept)
        assert mine.status == yours.status == 200
        (first,), (second,) = parts_of(mine), parts_of(yours)
        assert data_set(first) == data_set(second), sample.file


def data_set(part10: bytes) -> bytes:
    """What follows the File Meta Information, which names the program that wrote it."""
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


async def test_frames(both: Both, samples: Corpus) -> None:
    """As they are stored, and where no transfer syntax is named, decoded: the same pixels to the byte."""
    for sample in samples.samples:
        path = f"{path_of(sample)}/frames/1"
        for accept in (f"{PIXELS}; {STORED}", PIXELS):
            mine, yours = await both.ours(path, accept), await both.theirs(path, accept)
            if mine.status == 404:
                assert not has_pixels(sample)
                assert yours.status == 500  # where the reference has no better word for "there are none"
            elif yours.status == 500:
                # It has no decoder for JPEG 2000, and does not give Big Endian as it is stored.
                assert sample.transfer_syntax_uid in ("1.2.840.10008.1.2.2", *JPEG_2000)
                assert mine.status == 200
            else:
                assert mine.status == yours.status == 200, (sample.file, accept)
                first, second = parts_of(mine)[0], parts_of(yours)[0]
                assert first == second or (accept == PIXELS and are_near(sample, first, second)), (sample.file, accept)


JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")


def are_near(sample: Sample, first: bytes, second: bytes) -> bool:
    """Tell whether pixels that were decoded from lossy JPEG, which leaves rounding to the decoder, differ by that."""
    kinds = {"1.2.840.10008.1.2.4.50": np.uint8, "1.2.840.10008.1.2.4.51": np.uint16}
    kind = kinds.get(sample.transfer_syntax_uid)
    if kind is None or len(first) != len(second):
        return False
    arrays = [np.frombuffer(pixels, kind).astype(np.int32) for pixels in (first, second)]
    return int(np.abs(arrays[0] - arrays[1]).max()) <= 1


def has_pixels(sample: Sample) -> bool:
    """Tell whether it is an image."""
    return sample.patient_id not in ("REPORT", "RADIOTHERAPY", "ECG") and sample.modality not in ("OT", "DOC")


# --- statuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "accept", "status", "other", "reason"),
    [
        ("/studies/1.2.3", "*/*", 404, 404, ""),
        ("/studies/1.2.3/metadata", "*/*", 404, 404, ""),
        ("/studies/1.2.3/series", "*/*", 200, 200, ""),
        ("/nowhere", "*/*", 404, 404, ""),
        ("/studies?limit=x", "*/*", 400, 400, ""),
        ("/studies/abc", "*/*", 400, 404, "that is no UID, so there cannot be such a study"),
        ("/studies?Nonsense=1", "*/*", 400, 200, "to leave out a filter finds what was not asked for"),
        ("/studies", "image/png", 406, 200, "PS3.18 10.6.4"),
        ("/studies/{study}", "image/png", 406, 400, "PS3.18 Table 10.4.3-1"),
        ("/studies/{study}", "application/dicom", 406, 400, "several instances have no form without parts"),
    ],
)
async def test_statuses(
    both: Both, samples: Corpus, path: str, accept: str, status: int, other: int, reason: str
) -> None:
    """The same, or another for a reason."""
    path = path.format(study=samples.study_uids[0])
    assert (await both.ours(path, accept)).status == status
    assert (await both.theirs(path, accept)).status == other
    assert bool(reason) is (status != other)
