"""Searches that fail: the client's mistakes, and the archive's; what is said, and that it is no patient's business."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from tests.corpus import uid
from tests.peers.orthanc import Orthanc
from tests.peers.process import HOST, Address, free_port
from tests.proxy.finding import Reply, ask, failing, fetch, giving, proxied, scripted, study
from tests.proxy.running import Proxy, proxy_for

NAME = "Secret"
STUDY = uid(3, 1)
FAST = {"timeouts": {"connect": 1, "associate": 0.3, "response": 0.3, "release": 0.3}}


def assert_error(reply: Reply, status: int, *words: str) -> None:
    """The answer is the JSON of an error, says these words, and nothing of a patient."""
    assert reply.status == status, reply.json
    assert reply.headers["Content-Type"].startswith("application/json")
    assert reply.json.keys() == {"error", "statusCode", "timestamp"}
    assert reply.json["statusCode"] == status
    assert datetime.fromisoformat(reply.json["timestamp"]).tzinfo is not None
    text: str = reply.json["error"]
    for word in words:
        assert word in text
    assert not any(secret in text for secret in (NAME, "Doe", STUDY, "1.2.3"))


@contextlib.contextmanager
def nobody() -> Iterator[Address]:
    """Where nothing listens."""
    yield Address("NOBODY", free_port())


# --- the client's mistakes -----------------------------------------------------------------------------------


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy whose archive must not be asked."""
    async with scripted(giving()) as archive, proxy_for(archive.address, use_cget=True) as running:
        yield running
        assert archive.searches == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/studies?PatientNmae=Secret", "unknown attribute 'PatientNmae'; did you mean PatientName?"),
        ("/studies?99980010=Secret", "unknown attribute"),
        ("/studies?StudyDate=Secret", "StudyDate"),
        ("/studies?StudyDate=20240230", "StudyDate"),
        ("/studies?StudyDate=2024-01-01", "StudyDate"),
        ("/studies?StudyDate=20240101-2024", "StudyDate"),
        ("/studies?StudyTime=2500", "StudyTime"),
        ("/studies?Modality=CT", "Modality is no attribute of the STUDY level"),
        ("/series?Rows=512", "Rows is no attribute of the SERIES level"),
        ("/studies?limit=-1", "limit"),
        ("/studies?limit=ten", "limit"),
        ("/studies?limit=1&limit=2", "limit"),
        ("/studies?offset=1.5", "offset"),
        ("/studies?fuzzymatching=maybe", "fuzzymatching"),
        ("/studies?includefield=StudyDat", "did you mean StudyDate?"),
        ("/studies?StudyInstanceUID=1.2.3.x", "StudyInstanceUID"),
        ("/studies?StudyInstanceUID=1.2.3,,1.2.3", "StudyInstanceUID"),
        ("/studies?PatientName=Secret&PatientName=Secret", "PatientName is given twice"),
        ("/studies?PatientName.CodeValue=Secret", "PatientName is not a sequence"),
        ("/studies?PatientName=Secret%00", "control character"),
        ("/series?SeriesNumber=Secret", "SeriesNumber"),
        ("/studies?PatientSex=%C3%9F", "(0010,0040)"),
        ("/studies?PixelData=Secret", "PixelData"),
        ("/studies/1.2.3.x/series", "study in the path"),
        ("/studies/1.2.3%2F/series", "study in the path"),
        ("/studies/1.2.3../instances", "study in the path"),
        (f"/studies/{'1.' * 40}1/series", "study in the path"),
        (f"/studies/{STUDY}/series/Secret/instances", "series in the path"),
        (f"/studies/{STUDY}/series?StudyInstanceUID=1.2.3", "contradicts"),
        (f"/studies/{STUDY}/series/1.2.3/instances?SeriesInstanceUID=1.2.4", "contradicts"),
    ],
)
async def test_bad_requests_say_what_is_wrong(proxy: Proxy, target: str, words: str) -> None:
    assert_error(await fetch(proxy, target), 400, words)


@pytest.mark.parametrize("accept", ["application/dicom+xml", "text/html", "image/jpeg", "application/json;q=0"])
async def test_media_types_that_are_not_made(proxy: Proxy, accept: str) -> None:
    assert_error(await fetch(proxy, "/studies", Accept=accept), 406)


@pytest.mark.parametrize(
    "target", ["/nothing", "/studies/1.2/nothing", "/studies/1.2/series/1.3/frames", "/study", "/.."]
)
async def test_unknown_paths(proxy: Proxy, target: str) -> None:
    assert_error(await fetch(proxy, target), 404)


@pytest.mark.parametrize("target", ["/studies", f"/studies/{STUDY}/series", "/series", "/instances"])
@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH"])
async def test_methods_that_are_not_allowed(proxy: Proxy, target: str, method: str) -> None:
    reply = await fetch(proxy, target, method=method)
    assert_error(reply, 405)
    assert "GET" in reply.headers["Allow"]


# --- the archive's failures ----------------------------------------------------------------------------------


@contextlib.contextmanager
def pynetdicom_that(*responses: tuple[int, Dataset | None]) -> Iterator[Address]:
    """An archive made with pynetdicom that answers each C-FIND with these."""
    address = Address("PYNET", free_port())
    entity = AE(address.aet)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    handlers: list[Any] = [(evt.EVT_C_FIND, lambda _: iter(responses))]
    server = entity.start_server((HOST, address.port), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield address
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0xA700, "out of resources"),
        (0xA900, "identifier"),
        (0xC001, "0xC001"),
        (0x0122, "SOP class not supported"),
        (0x0110, "0x0110"),
    ],
)
async def test_an_archive_that_refuses(status: int, words: str) -> None:
    with pynetdicom_that((status, None)) as address:
        async with proxy_for(address, use_cget=True) as proxy:
            for target in ("/studies?PatientName=Secret", "/instances", f"/studies/{STUDY}/series"):
                reply = await fetch(proxy, target)
                assert_error(reply, 502, "PYNET", f"0x{status:04X}")
                assert words.lower() in reply.json["error"].lower()


async def test_an_archive_that_refuses_after_some_answers() -> None:
    """What has come is no answer: a list that was cut short must not look whole."""
    async with proxied(failing(0xA700, study(1), study(2))) as (_, proxy):
        assert_error(await fetch(proxy, "/studies"), 502, "SCRIPTED", "0xA700")
        # More than enough has come, so that the failure after it is nobody's concern.
        assert len(await ask(proxy, "/studies?limit=2")) == 2


async def test_an_archive_that_is_down() -> None:
    with nobody() as address:
        async with proxy_for(address, use_cget=True) as proxy:
            assert_error(await fetch(proxy, "/studies?PatientName=Secret"), 502, "NOBODY", "refused")


async def test_an_archive_whose_host_is_not_known() -> None:
    address = Address("LOST", 104, "no-such-host.invalid")
    async with proxy_for(address, use_cget=True) as proxy:
        assert_error(await fetch(proxy, "/studies"), 502, "LOST")


async def test_an_archive_that_accepts_and_says_nothing() -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    server = await asyncio.start_server(silent, HOST, 0)
    async with server:
        address = Address("SILENT", server.sockets[0].getsockname()[1])
        async with proxy_for(address, use_cget=True, peer=FAST) as proxy:
            started = time.monotonic()
            assert_error(await fetch(proxy, "/studies"), 504, "SILENT", "0.3 s")
            assert time.monotonic() - started < 2


async def test_an_archive_that_never_answers_the_search() -> None:
    async def waiting(_: Dataset) -> Any:
        await asyncio.sleep(60)
        yield study()

    async with proxied(waiting, peer=FAST) as (_, proxy):
        started = time.monotonic()
        assert_error(await fetch(proxy, "/studies"), 504, "SCRIPTED", "0.3 s")
        assert time.monotonic() - started < 5


async def test_an_archive_that_hangs(tmp_path: Path) -> None:
    with Orthanc(tmp_path) as archive:
        async with proxy_for(archive.address, use_cget=True, peer=FAST) as proxy:
            assert await ask(proxy, "/studies") == []
            archive.suspend()
            try:
                assert_error(await fetch(proxy, "/studies"), 504, "ORTHANC")
            finally:
                archive.resume()
            assert await ask(proxy, "/studies") == []


async def test_an_archive_of_another_ae_title(tmp_path: Path) -> None:
    with Orthanc(tmp_path, check_called_aet=True) as archive:
        wrong = Address("WRONG", archive.address.port)
        async with proxy_for(wrong, use_cget=True) as proxy:
            reply = await fetch(proxy, "/studies")
            assert_error(reply, 502, "WRONG", "called AE title not recognized", "rejected-permanent")


async def test_an_archive_that_knows_no_search(storescp: Any) -> None:
    async with proxy_for(storescp.address, use_cget=True) as proxy:
        assert_error(await fetch(proxy, "/studies"), 502, "STORESCP", "no presentation context")


@pytest.mark.parametrize(
    "identifier",
    [
        b"\x08\x00\x20\x00DA\xff\xff20240101",  # a length beyond the end
        b"\x08\x00\x20\x00DA",  # an element cut off
        b"\x20\x00\x0d\x00UI\x04\x001.2\x00\x08\x00",
        b"HTTP/1.1 200 OK\r\n",
    ],
)
async def test_a_malformed_answer(identifier: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with proxied(giving(study(1), identifier)) as (_, proxy):
        assert_error(await fetch(proxy, "/studies"), 502, "SCRIPTED", "malformed")
        assert_error(await fetch(proxy, "/series"), 502, "SCRIPTED", "malformed")
    assert all(record.levelno < logging.ERROR for record in caplog.records)


async def test_an_archive_that_aborts_instead_of_answering() -> None:
    async def aborting(_: Dataset) -> Any:
        assert archive.server is not None
        for channel in archive.server._channels:
            channel.abort()
        yield study()

    async with proxied(aborting) as (archive, proxy):
        assert_error(await fetch(proxy, "/studies"), 502, "SCRIPTED", "abort")


async def test_logs_name_no_patient(caplog: pytest.LogCaptureFixture) -> None:
    """Neither what was asked for nor what the archive says of it, at INFO and above."""
    with caplog.at_level(logging.INFO):
        async with proxied(failing(0xA900, study(1, PatientName="Secret"))) as (_, proxy):
            await fetch(proxy, f"/studies?PatientName=Secret&StudyInstanceUID={STUDY}")
            await fetch(proxy, f"/studies/{STUDY}/series?PatientID=Secret")
            await fetch(proxy, "/studies?StudyDate=Secret")
    assert "0xA900" in caplog.text
    for secret in ("Secret", "Doe", STUDY):
        assert secret not in caplog.text
