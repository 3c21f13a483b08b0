"""Archives that fail, lie or stall in a retrieval: an HTTP error before the first byte, a visible cut after it.

What must never come out is a well-formed answer that is not everything. Odd archives that do deliver are in
`test_wado_oddities`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

import dul
from dul import dimse, pdu
from dul.errors import REASON_TEMPORARY_CONGESTION, REJECTED_TRANSIENT, SOURCE_PROVIDER_PRESENTATION
from tests.corpus import Corpus
from tests.faultpeer import Retrieve, Script, ScriptedArchive, Stored, honest, in_front_of, small_study
from tests.peers.orthanc import Orthanc
from tests.peers.process import HOST, Address, free_port
from tests.proxy.command import program, write_config
from tests.proxy.conftest import ARCHIVES, Source
from tests.proxy.retrieved import Answer, digests, expected, get, path_of, read_parts
from tests.proxy.running import Proxy, proxy_for, settings

pytestmark = pytest.mark.usefixtures("nothing_left")

SHORT = {"timeouts": {"retrieve": 0.5, "associate": 0.5, "response": 0.5}}


def assert_names_nobody(message: str, stored: Stored) -> None:
    """Fail when a message for the client names the patient or a UID."""
    sample = stored.sample
    for secret in (sample.study_uid, sample.series_uid, sample.sop_instance_uid, sample.patient_id, "Sample"):
        assert secret not in message


# --- before the first byte -----------------------------------------------------------------------------------


async def test_502_when_the_archive_is_down(use_cget: bool) -> None:
    async with proxy_for(Address("NOBODY", free_port()), use_cget=use_cget) as proxy:
        message = (await get(proxy, "/studies/1.2.3")).failure(502)
    assert message.startswith("NOBODY: no connection to 127.0.0.1 port ")
    assert message.endswith(": Connection refused")


async def test_504_when_nothing_answers_on_its_port(use_cget: bool) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.read()

    async with await asyncio.start_server(silent, HOST, 0) as server:
        address = Address("SILENT", server.sockets[0].getsockname()[1])
        async with proxy_for(address, use_cget=use_cget, peer={"timeouts": {"associate": 0.5}}) as proxy:
            start = time.monotonic()
            message = (await get(proxy, "/studies/1.2.3")).failure(504)
            assert 0.4 < time.monotonic() - start < 1.5
    assert message == "SILENT: no answer to the association request within 0.5 s"


async def silence(request: Retrieve) -> None:
    """Do nothing until C-CANCEL comes."""
    await asyncio.wait_for(request.cancelled(), 10)
    await request.final(dimse.CANCEL)


async def pending_for_ever(request: Retrieve) -> None:
    """Say Pending, and do nothing."""
    while not request.archive.cancelled_at:
        await request.pending(remaining=4, completed=0, failed=0, warning=0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(request.cancelled(), 0.05)
    await request.final(dimse.CANCEL)


@pytest.mark.parametrize(
    ("script", "timeout"),
    [(silence, "retrieve"), (silence, "idle"), (pending_for_ever, "retrieve")],
)
async def test_504_when_the_archive_never_begins(script: Script, timeout: str, use_cget: bool) -> None:
    study = small_study()
    peer = {"timeouts": {timeout: 0.5}}
    async with in_front_of(study, script, use_cget=use_cget, peer=peer) as (archive, proxy):
        start = time.monotonic()
        message = (await get(proxy, path_of(study[0].sample, "study"))).failure(504)
        assert 0.4 < time.monotonic() - start < 1.5
        assert_names_nobody(message, study[0])
        archive.script = honest
        answer = await get(proxy, path_of(study[0].sample, "study"))
        assert digests(answer.files) == expected(stored.sample for stored in study)


@pytest.mark.parametrize("source", [f"{archive}-move" for archive in ARCHIVES], indirect=True)
async def test_a_destination_that_the_archive_does_not_know(source: Source) -> None:
    sample = source.samples.of_patient("LATIN1")[0]
    async with proxy_for(source.address, peer={"localAet": "STRANGER"}) as proxy:
        message = (await get(proxy, path_of(sample, "study"))).failure(502)
    if isinstance(source.archive, Orthanc):
        assert message == "ORTHANC: C-MOVE ended with 0xC000 (unable to process)"
    else:
        assert message == f"{source.address.aet}: C-MOVE ended with 0xA801 (refused: move destination unknown)"


class Unwilling:
    """Rejects associations."""

    def __init__(self, *rejection: int) -> None:
        self.rejection = pdu.AAssociateRJ(*rejection)

    def admit(self, request: pdu.AAssociateRQ, host: str) -> pdu.AAssociateRJ | None:
        """Reject it."""
        return self.rejection


@contextlib.asynccontextmanager
async def rejecting(*rejection: int, use_cget: bool) -> AsyncIterator[Proxy]:
    """Run the proxy in front of an archive that rejects associations."""
    admit = Unwilling(*rejection).admit
    async with (
        dul.serve(dul.Handler(), HOST, 0, ae_title="BUSY", admit=admit) as server,
        proxy_for(Address("BUSY", server.port), use_cget=use_cget) as proxy,
    ):
        yield proxy


async def test_502_when_the_association_is_rejected(use_cget: bool) -> None:
    async with rejecting(1, 1, 3, use_cget=use_cget) as proxy:
        message = (await get(proxy, "/studies/1.2.3")).failure(502)
    assert message == "BUSY: association rejected: calling AE title not recognized (rejected-permanent)"


async def test_503_when_it_is_rejected_for_now(use_cget: bool) -> None:
    congestion = (REJECTED_TRANSIENT, SOURCE_PROVIDER_PRESENTATION, REASON_TEMPORARY_CONGESTION)
    async with rejecting(*congestion, use_cget=use_cget) as proxy:
        answer = await get(proxy, "/studies/1.2.3")
    assert "temporary congestion" in answer.failure(503)
    assert answer.headers["Retry-After"] == "5"


def ending(status: int = dimse.SUCCESS, *, first: int = 0, **counters: int) -> Script:
    """Return a script that sends the `first` instances, and then a final response; of single instances, none."""

    async def script(request: Retrieve) -> None:
        sent = request.instances[:first] if len(request.instances) > 1 else []
        if sent:
            async with request.way() as send:
                for stored in sent:
                    await send(stored)
        await request.final(status, **counters)

    return script


@pytest.mark.parametrize("counters", [{}, {"completed": 0, "failed": 0, "warning": 0}])
async def test_503_when_it_has_the_study_and_sends_nothing(
    counters: dict[str, int], use_cget: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.archive.retrieval.fetch.BUSY_BACK_OFF", (0.01, 0.01))
    study = small_study()
    peer = {"timeouts": {"retrieve": 30.0}}
    async with in_front_of(study, ending(**counters), use_cget=use_cget, peer=peer) as (_, proxy):
        answer = await get(proxy, path_of(study[0].sample, "study"))
    assert answer.failure(503) == "SCRIPTED: the archive has it but sent nothing"
    assert answer.headers["Retry-After"] == "5"


async def test_502_when_all_sub_operations_failed_though_it_says_success(use_cget: bool) -> None:
    study = small_study()
    async with in_front_of(study, ending(completed=0, failed=4), use_cget=use_cget) as (_, proxy):
        message = (await get(proxy, path_of(study[0].sample, "study"))).failure(502)
    assert message == "SCRIPTED: 4 of the instances could not be sent by the archive, status 0x0000 (success)"


@pytest.mark.parametrize("status", [0xA701, 0xA702, 0xA900, 0xC001, 0x0122])
async def test_502_with_the_status_when_it_refuses(status: int, use_cget: bool) -> None:
    study = small_study()
    async with in_front_of(study, ending(status), use_cget=use_cget) as (_, proxy):
        message = (await get(proxy, path_of(study[0].sample, "study"))).failure(502)
        service = "C-GET" if use_cget else "C-MOVE"
        assert message.startswith("SCRIPTED: ")
        assert message.endswith(f"{service} ended with {dul.describe_status(status)}")
        (await get(proxy, "/studies/1.2.3")).failure(404)


async def test_502_when_the_connection_is_reset_before_anything_came(use_cget: bool) -> None:
    async def script(request: Retrieve) -> None:
        request.reset()

    study = small_study()
    async with in_front_of(study, script, use_cget=use_cget) as (archive, proxy):
        message = (await get(proxy, path_of(study[0].sample, "study"))).failure(502)
        assert_names_nobody(message, study[0])
        archive.script = honest
        assert (await get(proxy, path_of(study[0].sample, "study"))).parts


# --- after it ------------------------------------------------------------------------------------------------


def in_halves(stored: Stored) -> Stored:
    """Return an instance whose second half never comes."""
    whole = stored.data
    assert isinstance(whole, bytes)

    async def pieces() -> AsyncIterator[bytes]:
        yield whole[: len(whole) // 2 & ~1]
        yield b"\0\0"
        await asyncio.sleep(60)

    return Stored(stored.sample, pieces)


async def wait_for_first_byte(request: Retrieve) -> None:
    """Wait until the client has got the beginning of what was sent."""
    await asyncio.wait_for(request.archive.first_byte.wait(), 5)


def breaking(how: Callable[[Retrieve], Awaitable[None]]) -> Script:
    """Return a script that sends one instance and half of another, and does `how` while the rest is due."""

    async def script(request: Retrieve) -> None:
        async with request.way() as send:
            await send(request.instances[0])
            rest = asyncio.ensure_future(send(in_halves(request.instances[1])))
            await wait_for_first_byte(request)
            await how(request)
            rest.cancel()
            with contextlib.suppress(asyncio.CancelledError, dul.DulError):
                await rest

    return script


async def reset(request: Retrieve) -> None:
    """End all connections by a TCP reset."""
    request.reset()


async def abort(request: Retrieve) -> None:
    """Abort the association that the request came on."""
    request.channel.abort()


async def abort_sending(request: Retrieve) -> None:
    """Abort the association that the instances go over, and then claim that all went well."""
    for association in request.archive.sending:
        association.abort()
    if request.is_move:
        await request.final(completed=4, failed=0, warning=0)
    else:
        request.channel.abort()


async def stall(request: Retrieve) -> None:
    """Do nothing more until C-CANCEL comes; a C-GET could not end in the middle of a data set."""
    await asyncio.wait_for(request.cancelled(), 10)
    if request.is_move:
        await request.final(dimse.CANCEL)


FAULTS: dict[str, Script] = {
    "failed sub-operations and Success": ending(first=2, completed=2, failed=2, warning=0),
    "fewer than it says": ending(first=3, completed=4, failed=0, warning=0),
    "warning B000": ending(dimse.SUB_OPERATIONS_WITH_FAILURES, first=3, completed=3, failed=1, warning=0),
    "warning B000 and a counter of failures left out": ending(dimse.SUB_OPERATIONS_WITH_FAILURES, first=3, completed=3),
    "warning B000 without counters": ending(dimse.SUB_OPERATIONS_WITH_FAILURES, first=3),
    "failure A702": ending(dimse.REFUSED_SUB_OPERATIONS, first=3, completed=3, failed=1, warning=0),
    "failure A702 without counters": ending(dimse.REFUSED_SUB_OPERATIONS, first=3),
    "cancelled": ending(dimse.CANCEL, first=3, completed=3, failed=0, warning=0, remaining=1),
    "no counters and an instance too few": ending(first=3),
    "a counter that never counts": ending(first=3, completed=0, failed=0, warning=0),
    "reset": breaking(reset),
    "abort": breaking(abort),
    "abort where it sends": breaking(abort_sending),
    "stall": breaking(stall),
}


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for instances that are to come after the final response."""
    monkeypatch.setattr("proxy.archive.retrieval.fetch.ARRIVAL_GRACE_SECONDS", 0.3)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_short_answer_is_cut(fault: str, use_cget: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Over HTTP/1.1 the last chunk never comes."""
    study = small_study()
    sample = study[0].sample
    async with in_front_of(study, FAULTS[fault], use_cget=use_cget, peer=SHORT) as (archive, proxy):
        with pytest.raises(aiohttp.ClientPayloadError):
            async with proxy.http.get(path_of(sample, "study")) as response:
                assert response.status == 200
                await response.content.readany()
                archive.first_byte.set()
                await response.read()
        archive.script = honest
        answer = await get(proxy, path_of(sample, "study"))
        files = [part.content for part in read_parts(answer.body, answer.content_type)]
        assert digests(files) == expected(stored.sample for stored in study)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    for record in caplog.records:
        if record.levelno >= logging.INFO:
            assert_names_nobody(record.getMessage(), study[0])


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_short_answer_is_reset_over_http_1_0(fault: str, use_cget: bool) -> None:
    """There the end of the connection is the end of the answer, and an orderly one would look like the proper one."""
    study = small_study()
    async with in_front_of(study, FAULTS[fault], use_cget=use_cget, peer=SHORT) as (archive, proxy):
        with pytest.raises(ConnectionResetError):
            await get_http_1_0(proxy.url, path_of(study[0].sample, "study"), archive.first_byte)


async def get_http_1_0(url: str, path: str, first_byte: asyncio.Event) -> bytes:
    """Send an HTTP/1.0 request, as nginx does by default, and read to the end of the connection."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            body = await reader.readuntil(b"\r\n\r\n")
            assert body.startswith(b"HTTP/1.0 200 OK\r\n")
            assert b"transfer-encoding" not in body.lower()
            first_byte.set()
            return body + await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_single_file_cut_short_is_reset_over_http_1_0(use_cget: bool) -> None:
    """It has no closing boundary that could be missing."""
    study = small_study(1, 1)

    async def script(request: Retrieve) -> None:
        async with request.way() as send:
            rest = asyncio.ensure_future(send(in_halves(request.instances[0])))
            await wait_for_first_byte(request)
            request.reset()
            with contextlib.suppress(dul.DulError):
                await rest

    async with in_front_of(study, script, use_cget=use_cget) as (archive, proxy):
        path = path_of(study[0].sample) + "?multipart=false"
        with pytest.raises(ConnectionResetError):
            await get_http_1_0(proxy.url, path, archive.first_byte)


@pytest.mark.parametrize("uvloop", [True, False])
async def test_a_cut_is_a_reset_on_either_event_loop(uvloop: bool, tmp_path: Path) -> None:
    study = small_study()
    script = FAULTS["failed sub-operations and Success"]
    async with ScriptedArchive(study, script) as archive:
        config = write_config(tmp_path, settings(archive.address, use_cget=True))
        async with program("run", "--config", str(config), folder=tmp_path, uvloop=uvloop) as running:
            with pytest.raises(ConnectionResetError):
                await get_http_1_0(running.url, path_of(study[0].sample, "study"), archive.first_byte)


async def test_whole_answers_over_http_1_0(orthanc: Orthanc, samples: Corpus) -> None:
    sample = samples.of_patient("LATIN1")[0]
    async with proxy_for(orthanc.address, use_cget=True) as proxy:
        raw = await get_http_1_0(proxy.url, path_of(sample, "series"), asyncio.Event())
        header, _, body = raw.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in header.decode().split("\r\n")[1:])
        files = Answer(200, fields, body).files
        series = [each for each in samples.samples if each.series_uid == sample.series_uid]
        assert digests(files) == expected(series)
        raw = await get_http_1_0(proxy.url, path_of(sample) + "?multipart=false", asyncio.Event())
        assert digests([raw.partition(b"\r\n\r\n")[2]]) == expected([sample])


async def test_a_study_of_several_transfer_syntaxes_is_cut_where_one_is_not_accepted(use_cget: bool) -> None:
    first, second = small_study(1, 2)
    second = Stored(replace(second.sample, transfer_syntax_uid="1.2.840.10008.1.2.4.50"), second.data)
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1'
    async with in_front_of([first, second], use_cget=use_cget) as (_, proxy):
        with pytest.raises(aiohttp.ClientPayloadError):
            await get(proxy, path_of(first.sample, "study"), Accept=accept)
