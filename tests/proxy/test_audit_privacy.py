"""Two records, and what must not get from one into the other: patients are in the audit trail, and nowhere else.

The ordinary log at INFO, error bodies and /status are read by people who maintain the machine, and copied into support
tickets.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from proxy.logs import FILE_NAME
from proxy.security.auth.hashing import token_hash
from tests import corpus
from tests.faultpeer import Script, ScriptedArchive, in_front_of, small_study
from tests.faultpeer.retrieves import abort, breaking_off, claim_success, failing, reset
from tests.peers.dcmtk import Scu
from tests.peers.orthanc import Orthanc
from tests.peers.process import HOST, Address
from tests.proxy.auditing import Trail
from tests.proxy.command import Program, command, program, write_config
from tests.proxy.retrieved import path_of
from tests.proxy.running import settings
from tests.proxy.signing_in import TOKEN, basic, bearer, cheap_hash, token
from tests.proxy.uploading import CONTENT_TYPE, multipart

NAME, PATIENT, ACCESSION = "Geheimrat^Xaver", "HUSH-4711-Q", "ACC77XY"
STUDY = f"{corpus.UID_ROOT}.77.4711"
SERIES, INSTANCE = f"{STUDY}.1", f"{STUDY}.1.1"
PRIVATE = ("Geheimrat", "Xaver", PATIENT, ACCESSION, f"{corpus.UID_ROOT}.77")
"""Parts of the names of the patient and of all that belongs to them, none of which anything else has."""

PASSWORD = "correct horse battery"
PASSWORD_HASH = cheap_hash(PASSWORD)
WRONG_PASSWORD = "Tr0ub4dor-and-3"
SECRETS = (
    PASSWORD,
    PASSWORD_HASH,
    PASSWORD_HASH.rpartition("$")[2],
    WRONG_PASSWORD,
    TOKEN,
    token_hash(TOKEN),
    *(
        base64.b64encode(f"{name}:{word}".encode()).decode()
        for name in ("jane", "eve")
        for word in (PASSWORD, WRONG_PASSWORD)
    ),
)


def instance(number: int = 1) -> bytes:
    """An instance of the patient's."""
    data_set = corpus.header(corpus.CT_STUDY, 1, 1, number)
    data_set.PatientName, data_set.PatientID, data_set.AccessionNumber = NAME, PATIENT, ACCESSION
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = STUDY, SERIES
    data_set.SOPInstanceUID = f"{SERIES}.{number}"
    corpus.add_pixels(data_set, 16, bytes(512))
    return corpus.encode(data_set)


@dataclass(frozen=True, slots=True)
class Running:
    """The proxy as a process, its trail, and where its ordinary log is."""

    program: Program
    trail: Trail
    folder: Path

    def ordinary(self) -> str:
        """What it has logged, to its file and to standard error, without the lines of the trail there."""
        printed = [line for line in self.program.process.log_path.read_text().splitlines() if not line.startswith("{")]
        return "\n".join([*printed, (self.folder / FILE_NAME).read_text()])

    def in_journal(self) -> list[dict[str, Any]]:
        """The lines of the trail on standard error."""
        printed = self.program.process.log_path.read_text().split("\n")[:-1]
        return [json.loads(line) for line in printed if line.startswith("{")]


@pytest.fixture
def patient_archive(tmp_path: Path) -> Iterator[Orthanc]:
    """Orthanc with two instances of the patient's."""
    with Orthanc(tmp_path) as archive:
        archive.upload([instance(1), instance(2)])
        yield archive


@asynccontextmanager
async def running(folder: Path, archive: Address, **more: Any) -> AsyncIterator[Running]:
    audit = folder / "trail" / "audit.log"
    given = {
        "logDir": str(folder / "log"),
        "logLevel": "INFO",
        "audit": {"file": str(audit), "journal": True},
        "storagePath": str(folder / "storage"),
        **more,
    }
    path = write_config(folder, settings(archive, use_cget=True, **given))
    async with program("run", "--config", str(path), folder=folder) as process:
        yield Running(process, Trail(audit), folder / "log")


async def ask(base: str, path: str, method: str = "GET", **more: Any) -> tuple[int, bytes]:
    url = URL(base + path, encoded=True)
    async with aiohttp.ClientSession() as http, http.request(method, url, **more) as response:
        return response.status, await response.read()


def assert_none(text: str, private: tuple[str, ...] = PRIVATE) -> None:
    found = {each for each in private if each in text}
    assert not found, "\n".join(line for line in text.splitlines() if any(each in line for each in found))


# --- a real proxy in front of a real archive -----------------------------------------------------------------


GOOD = (
    "/studies?PatientName=Geheim*",
    f"/studies?PatientID={PATIENT}",
    f"/studies?StudyInstanceUID={STUDY}&AccessionNumber={ACCESSION}",
    f"/studies/{STUDY}/series",
    f"/studies/{STUDY}/instances?SOPInstanceUID={INSTANCE}",
    f"/studies/{STUDY}",
    f"/studies/{STUDY}/series/{SERIES}",
    f"/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}",
    f"/studies/{STUDY}/metadata",
    f"/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}/frames/1",
    f"/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}/rendered",
    f"/wado?requestType=WADO&studyUID={STUDY}&seriesUID={SERIES}&objectUID={INSTANCE}",
)
BAD = (
    f"/studies/{STUDY}.999",
    f"/studies/{STUDY}x",
    f"/studies?PatientID={PATIENT}&NoSuchKey={PATIENT}",
    f"/studies?PatientID={PATIENT}&limit={PATIENT}",
    f"/studies?StudyDate={PATIENT}",
    f"/patients/{PATIENT}",
    f"/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}/frames/99",
    f"/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}/frames/{PATIENT}",
    f"/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}/bulkdata/{PATIENT}",
    f"/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}.9/rendered",
    f"/wado?requestType=WADO&studyUID={STUDY}&seriesUID={SERIES}&objectUID={PATIENT}",
)


async def test_patients_are_in_the_trail_and_nowhere_else(patient_archive: Orthanc, tmp_path: Path) -> None:
    """Searches, retrievals, uploads and failures of all kinds at INFO, through Orthanc and back."""
    errors: list[str] = []
    async with running(tmp_path, patient_archive.address, enableCache=True) as proxy:
        url = proxy.program.url
        for path in GOOD:
            assert (await ask(url, path))[0] == 200, path
        for path in BAD:
            status, body = await ask(url, path)
            assert status >= 400, path
            errors.append(body.decode())
        errors += await bad_uploads(url)
        status, _ = await ask(
            url, f"/studies/{STUDY}", "POST", data=multipart([instance(3)]), headers={"Content-Type": CONTENT_TYPE}
        )
        assert status == 200
        await asyncio.to_thread(no_http, proxy.program.port)
        await ask(url, f"/cache/studies/{STUDY}", "DELETE")
        _, state = await ask(url, "/status")
        assert (await ask(url, "/"))[1]
        recorded = await proxy.trail.until(len(GOOD) + len(BAD) + 4 + 1 + 1)
    assert_none("\n".join(errors))
    assert_none(state.decode())
    assert_none(proxy.ordinary())
    assert "HTTP: listens on" in proxy.ordinary(), "the log was not looked at"
    assert_trail(recorded)
    assert proxy.in_journal() == proxy.trail.all()


async def bad_uploads(url: str) -> list[str]:
    """Uploads that are refused; returns what is said of them, where no UID of theirs belongs into the answer."""
    whole = instance(4)
    wrong = [
        (CONTENT_TYPE, multipart([whole])[:-200]),
        (CONTENT_TYPE, PATIENT.encode()),
        (f"text/plain; name={PATIENT}", whole),
        ("application/dicom", whole[:300]),
    ]
    answers = []
    for content_type, body in wrong:
        status, text = await ask(url, "/studies", "POST", data=body, headers={"Content-Type": content_type})
        assert status >= 400
        answers.append(text.decode() if content_type != CONTENT_TYPE else "")
    return answers


def no_http(port: int) -> None:
    """Send what is no HTTP, and holds a name."""
    for text in (
        f"GET /studies?PatientName={NAME} HTTP/9.9.9\r\n\r\n",
        f"GET /studies HTTP/1.1\r\nHost: x\r\n{NAME}\r\n\r\n",
        f"GET /studies HTTP/1.1\r\nHost: x\r\nX: {'x' * 20_000}{NAME}\r\n\r\n",
        f"{NAME}\r\n\r\n",
    ):
        with socket.create_connection((HOST, port), timeout=5) as connection:
            connection.sendall(text.encode())
            assert connection.recv(65536).startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), text[:60]


def assert_trail(recorded: list[dict[str, Any]]) -> None:
    """Each line says whose data it was about, as far as that was known."""
    good = recorded[: len(GOOD)]
    assert {line["outcome"] for line in good} == {0}
    assert good[0]["query"] == {"PatientName": "Geheim*"}
    assert good[1]["query"] == {"PatientID": PATIENT}
    assert good[2]["query"] == {"StudyInstanceUID": STUDY, "AccessionNumber": ACCESSION}
    assert {line["study"] for line in good[3:]} == {STUDY}
    assert good[-1]["instance"] == INSTANCE
    bad = recorded[len(GOOD) : len(GOOD) + len(BAD)]
    assert {line["outcome"] for line in bad} == {4}
    (stored,) = (line for line in recorded if line["event"] == "Store Study Instances")
    assert (stored["study"], stored["outcome"]) == (STUDY, 0)
    assert recorded[-1]["event"] == "Purge Cache"


async def test_secrets_are_nowhere(tmp_path: Path) -> None:
    """Not in the logs, the trail, /status, what check-config prints, or the answers to those who may not pass."""
    auth = {
        "enabled": True,
        "users": [{"name": "jane", "passwordHash": PASSWORD_HASH, "admin": True}],
        "tokens": [token("uploader")],
    }
    seen: list[str] = []
    async with ScriptedArchive(small_study()) as archive:
        async with running(tmp_path, archive.address, auth=auth) as proxy:
            url = proxy.program.url
            for headers in (
                basic("jane", PASSWORD),
                bearer(),
                basic("jane", WRONG_PASSWORD),
                basic("eve", PASSWORD),
                bearer(TOKEN[::-1]),
                {"Authorization": TOKEN},
                {"Authorization": f"Digest {TOKEN}"},
            ):
                for path in ("/studies", "/status", "/health", f"/nothing/{TOKEN[:8]}"):
                    seen.append((await ask(url, path, headers=headers))[1].decode())
            recorded = await proxy.trail.until(len(seen) - 4)
        checked = await command("check-config", "--config", str(tmp_path / "config.json"), cwd=tmp_path)
    assert {line["event"] for line in recorded} >= {"Refused Sign-In", "Search for Studies"}
    assert {line.get("user") for line in recorded} == {None, "jane", "uploader"}
    assert checked.code == 0
    for text in (*seen, proxy.ordinary(), proxy.trail.path.read_text(), checked.out, checked.err):
        assert_none(text, SECRETS)


# --- archives that fail --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [breaking_off(1, reset), breaking_off(0, abort), claim_success, failing(small_study()[:1])],
    ids=["reset", "abort", "liar", "failing"],
)
async def test_failures_of_archives_name_nobody(
    script: Script, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    study = small_study()
    sample = study[0].sample
    private = (sample.study_uid, sample.patient_id, "Sample^", "Number 1")
    file = tmp_path / "audit.log"
    async with in_front_of(study, script, use_cget=True, audit={"file": str(file)}) as (_, proxy):
        for path in (path_of(sample, "study"), path_of(sample, "study") + "/metadata", path_of(sample) + "/rendered"):
            try:
                async with proxy.http.get(path) as response:
                    body = (await response.read()).decode("latin-1")
                    if response.status >= 400:
                        assert_none(body, private)
            except aiohttp.ClientError:
                pass
        recorded = await Trail(file).until(3)
    assert caplog.records, "the log was not looked at"
    assert_none("\n".join(record.getMessage() for record in caplog.records), private)
    assert {line["study"] for line in recorded} == {sample.study_uid}


async def test_what_nobody_has_asked_for_is_refused_without_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """DCMTK's `storescu` sends the patient to the proxy's C-STORE port, as the archive and as a stranger."""
    caplog.set_level(logging.INFO)
    (tmp_path / "patient.dcm").write_bytes(instance())
    study = small_study()
    async with in_front_of(study, audit={"file": str(tmp_path / "audit.log")}) as (archive, proxy):
        for caller in (archive.aet, "STRANGER"):
            done = await asyncio.to_thread(Scu(proxy.address, aet=caller).store, [tmp_path / "patient.dcm"])
            assert done.code != 0, done.output
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "refused" in text
    assert_none(text)
