"""`python -m proxy demo`: what a newcomer does first, with no network and no other program."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import time
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import aiohttp
import pydicom
import pytest

from proxy.demo.samples import sample_folder
from tests.corpus import Corpus, data_set_bytes
from tests.peers.dcmtk import Scu
from tests.peers.process import Address
from tests.proxy.command import command, get, program

SAYS = re.compile(r"http://127\.0\.0\.1:(\d+)/ +status page")
STARTS_WITHIN = 10.0
DICOM_JSON = "application/dicom+json"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of the programs that a test starts."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def parts(content_type: str, body: bytes) -> list[bytes]:
    """Take a multipart answer apart with the parser of the standard library."""
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    payloads = message.get_payload()
    assert isinstance(payloads, list)
    contents = []
    for part in payloads:
        assert isinstance(part, Message)
        assert part.get_content_type() == "application/dicom"
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        contents.append(content)
    return contents


@pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
async def test_the_demo(tmp_path: Path, scratch: Path, number: signal.Signals, *, uvloop: bool) -> None:
    """It starts fast, every URL that it prints works, and its end leaves nothing behind."""
    before = {path: path.stat().st_mtime for path in sample_folder().rglob("*")}
    started = time.monotonic()
    async with program("demo", "--port", "0", folder=tmp_path, says=SAYS, uvloop=uvloop) as demo:
        assert time.monotonic() - started < STARTS_WITHIN
        assert list(scratch.iterdir())
        urls = set(re.findall(r"http://\S+", demo.log()))
        assert {f"{demo.url}/", f"{demo.url}/studies"} <= urls
        outcomes = await asyncio.gather(*map(get, sorted(urls)))
        assert [status for status, _ in outcomes] == [200] * len(urls)
        status, body = await get(f"{demo.url}/studies")
        count = re.search(r"an archive with (\d+) studies \((\d+) instances\)", demo.log())
        assert status == 200
        assert count is not None
        assert len(json.loads(body)) == int(count[1]) >= 10
        await demo.end(number, number, within=3)
    assert not list(scratch.iterdir())
    assert "Traceback" not in demo.log()
    assert {path: path.stat().st_mtime for path in sample_folder().rglob("*")} == before


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of its own test files
async def test_every_study_can_be_retrieved(tmp_path: Path, scratch: Path) -> None:
    """Each instance that a search finds comes back: pydicom can read it, and its data set is that of a file."""
    originals = [path.read_bytes() for path in sample_folder().rglob("*") if path.is_file()]
    retrieved = 0
    async with (
        program("demo", "--port", "0", folder=tmp_path, says=SAYS) as demo,
        aiohttp.ClientSession(demo.url) as http,
    ):
        async with http.get("/studies", headers={"Accept": DICOM_JSON}) as response:
            studies = await response.json(content_type=DICOM_JSON)
        for study in studies:
            uid = study["0020000D"]["Value"][0]
            (expected,) = study["00201208"]["Value"]
            async with http.get(f"/studies/{uid}") as response:
                assert response.status == 200
                contents = parts(response.headers["Content-Type"], await response.read())
            assert len(contents) == expected
            for content in contents:
                data_set = pydicom.dcmread(io.BytesIO(content))
                assert data_set.StudyInstanceUID == uid
                encoded = data_set_bytes(content)
                assert any(original.endswith(encoded) for original in originals)
                retrieved += 1
    assert retrieved >= 50


async def test_a_folder_of_ones_own(samples: Corpus, tmp_path: Path, scratch: Path) -> None:
    """Its files are served as they are; what another program stores in the archive is not written among them."""
    before = sorted(samples.folder.iterdir())
    sample = samples.samples[0]
    arguments = ("demo", "--port", "0", "--folder", str(samples.folder))
    async with program(*arguments, folder=tmp_path, says=SAYS) as demo:
        path = f"/studies/{sample.study_uid}/series/{sample.series_uid}/instances/{sample.sop_instance_uid}"
        status, body = await get(f"{demo.url}{path}?multipart=false")
        assert status == 200
        assert body.endswith(samples.data_set(sample))
        _, state = await get(f"{demo.url}/status")
        assert json.loads(state)["status"] == "healthy"
        async with aiohttp.ClientSession() as http, http.post(f"{demo.url}/dimse/echo", data=b"{}") as response:
            peer = (await response.json())["peer"]
        archive = Address(peer["aet"], peer["port"])
        await asyncio.to_thread(lambda: Scu(archive).store([samples.path(sample)], "--required").succeeded())
        assert len(list(scratch.glob("*/received/*.dcm"))) == 1
        await demo.end(signal.SIGINT, within=3)
    assert sorted(samples.folder.iterdir()) == before
    assert not list(scratch.iterdir())


async def test_what_cannot_be_shown(tmp_path: Path, scratch: Path) -> None:
    """No such folder, nothing in it, a port in use: exit code 3, one line, nothing left behind."""
    (tmp_path / "empty").mkdir()
    async with program("demo", "--port", "0", folder=tmp_path, says=SAYS) as demo:
        ended = await asyncio.gather(
            command("demo", "--port", "0", "--folder", str(tmp_path / "nowhere"), cwd=tmp_path),
            command("demo", "--port", "0", "--folder", str(tmp_path / "empty"), cwd=tmp_path),
            command("demo", "--port", str(demo.port), cwd=tmp_path),
        )
    assert [each.code for each in ended] == [3, 3, 3]
    assert ended[0].err == f"{tmp_path / 'nowhere'} is not a folder\n"
    assert ended[1].err == f"there are no DICOM files in {tmp_path / 'empty'}\n"
    assert f"cannot listen on 127.0.0.1 port {demo.port} (keys: webserverPort" in ended[2].err
    assert "Traceback" not in ended[2].err
    assert not list(scratch.iterdir())
