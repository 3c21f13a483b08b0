"""Matching once more what an archive returned: what is dropped, what is believed, what is noted as unchecked."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

import dul
from dul import uids
from proxy.archive.query.refilter import Refilter
from proxy.dataset.dictionary import tag_of
from proxy.dataset.reader import parse
from proxy.dataset.writer import encode_identifier
from tests.peers.process import Address
from tests.proxy.running import proxy_for


def answer(**values: str) -> bytes:
    keys = {(tag_of(keyword) or 0,): value for keyword, value in values.items()}
    return encode_identifier(keys, explicit=True)


def keys(**values: str) -> dict[tuple[int, ...], str]:
    return {(tag_of(keyword) or 0,): value for keyword, value in values.items()}


@pytest.mark.parametrize(
    ("key", "value", "passes"),
    [
        ({"PatientID": "A*"}, "ABC", True),
        ({"PatientID": "A*"}, "XABC", False),
        ({"PatientID": "abc"}, "ABC", True),  # many archives fold case, and may
        ({"PatientName": "doe^j*"}, "Doe^John", True),
        ({"PatientName": "Doe^J*"}, "Roe^Jane", False),
        ({"StudyDate": "20240101-20240131"}, "20240115", True),
        ({"StudyDate": "20240101-20240131"}, "20240201", False),
        ({"InstanceNumber": "4"}, "+4", True),
        ({"InstanceNumber": "4"}, "44", False),
        ({"ModalitiesInStudy": "CT"}, "MR\\CT", True),
        ({"ModalitiesInStudy": "CT"}, "MR", False),
        ({"SOPClassUID": "1.2.3\\1.2.4"}, "1.2.4", True),
        ({"SOPClassUID": "1.2.3\\1.2.4"}, "1.2.5", False),
        ({"PatientName": "Müller*"}, "Other", True),  # no archive's character set is to be trusted that far
        ({"PatientName": "Muller*"}, "Müller", True),
    ],
)
def test_an_answer_is_dropped_only_when_it_clearly_does_not_match(
    key: dict[str, str], value: str, passes: bool
) -> None:
    (keyword,) = key
    elements = parse(answer(**{keyword: value}), uids.EXPLICIT_VR_LITTLE_ENDIAN)
    refilter = Refilter(keys(**key), None)
    assert refilter.passes(elements) is passes
    assert refilter.unchecked == set()


def test_what_an_archive_does_not_return_is_believed_and_noted() -> None:
    elements = parse(answer(PatientID="A", ModalitiesInStudy=""), uids.EXPLICIT_VR_LITTLE_ENDIAN)
    refilter = Refilter(
        keys(PatientID="A", ModalitiesInStudy="CT", StudyDescription="x", StudyID="", StudyDate="*"), None
    )
    assert refilter.passes(elements)
    assert refilter.unchecked == {0x00080061, 0x00081030}


class IgnoresKeys(dul.Handler):
    """An archive that returns both of its studies whatever is asked, and knows no descriptions."""

    async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
        for number, patient in ((1, "ONE"), (2, "TWO")):
            yield answer(StudyInstanceUID=f"1.2.{number}", PatientID=patient, QueryRetrieveLevel="STUDY")


async def test_a_search_is_not_widened_by_an_archive_that_ignores_keys() -> None:
    async with (
        dul.serve(IgnoresKeys(), "127.0.0.1", 0, ae_title="ARCHIVE", supported=dul.accept_query_retrieve) as server,
        proxy_for(Address("ARCHIVE", server.port), use_cget=True) as proxy,
    ):
        async with proxy.http.get("/studies?PatientID=TWO") as response:
            found = await response.json(content_type=None)
            assert [study["0020000D"]["Value"] for study in found] == [["1.2.2"]]
            assert "Warning" not in response.headers
        async with proxy.http.get("/studies?StudyDescription=HEAD") as response:
            assert len(await response.json(content_type=None)) == 2
            assert "may not have matched StudyDescription" in response.headers["Warning"]
            assert "HEAD" not in response.headers["Warning"]
