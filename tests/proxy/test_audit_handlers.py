"""What handlers, the DIMSE side and the commands tell the audit trail, or are told by it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from proxy.demo.archive import DemoArchive
from tests import corpus
from tests.corpus import Corpus, ct_study, tiny_studies, write
from tests.faultpeer import in_front_of, small_study
from tests.peers.dcmtk import Scu, Storescp
from tests.peers.process import HOST, Address, free_port
from tests.proxy.auditing import Trail, audited
from tests.proxy.command import command, program, write_config
from tests.proxy.finding import ask
from tests.proxy.rawhttp import connected, port_of
from tests.proxy.retrieved import get, kept, path_of
from tests.proxy.running import settings
from tests.proxy.uploading import CONTENT_TYPE, multipart, post

NOBODY = Address("NOBODY", 104)


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A CT study of 3 instances, 0.5 MB each."""
    return write(tmp_path_factory.mktemp("ct"), ct_study(series=1, instances=3))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Twenty studies."""
    return write(tmp_path_factory.mktemp("tiny"), tiny_studies(20))


async def test_how_many_answers_a_search_has_given(tiny: Corpus, tmp_path: Path) -> None:
    """Those that the client got: all, none, or a page of them."""
    async with (
        DemoArchive(tiny.folder) as archive,
        audited(tmp_path, Address("DEMO", archive.port), use_cget=True) as (proxy, trail),
    ):
        for query, count in (("", 20), ("?PatientID=NOBODY", 0), ("?limit=5&offset=3", 5), ("?limit=0", 0)):
            assert len(await ask(proxy, f"/studies{query}")) == count
        found = await trail.until(4)
    assert [line["results"] for line in found] == [20, 0, 5, 0]


async def test_what_an_upload_has_stored_and_what_not(storescp: Storescp, tmp_path: Path) -> None:
    """By study; an instance of another study than that of the path is refused."""
    stored = [corpus.encode(corpus.header(corpus.CT_STUDY, 7, 1, number)) for number in (1, 2)]
    other = corpus.encode(corpus.header(corpus.CT_STUDY, 8, 1, 1))
    study, other_study = corpus.uid(corpus.CT_STUDY, 7), corpus.uid(corpus.CT_STUDY, 8)
    async with audited(tmp_path, storescp.address, use_cget=True) as (proxy, trail):
        answer = await post(proxy, multipart([*stored, other]), f"/studies/{study}")
        assert answer.status == 202
        line = await trail.last(1)
        await post(proxy, b"nothing", f"/studies/{study}")
        nothing = await trail.last(2)
    assert (line["event"], line["outcome"], line["study"]) == ("Store Study Instances", 4, study)
    instances = [corpus.uid(corpus.CT_STUDY, 7, 1, number) for number in (1, 2)]
    assert line["stored"] == [{"study": study, "count": 2, "instances": instances}]
    refused = [corpus.uid(corpus.CT_STUDY, 8, 1, 1)]
    assert line["failed"] == [{"study": other_study, "count": 1, "instances": refused}]
    assert line["patients"] == [corpus.header(corpus.CT_STUDY, number, 1, 1).PatientID for number in (7, 8)]
    assert line["received"] > sum(map(len, stored))
    assert "stored" not in nothing
    assert nothing["outcome"] == 4


async def test_what_was_stored_before_the_client_left(storescp: Storescp, tmp_path: Path) -> None:
    """The archive keeps it, so the trail has to have it."""
    files = [corpus.encode(corpus.header(corpus.CT_STUDY, 7, 1, number)) for number in (1, 2)]
    body = multipart(files)
    head = f"POST /studies HTTP/1.1\r\nHost: a\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    async with audited(tmp_path, storescp.address, use_cget=True) as (proxy, trail):
        async with connected(port_of(proxy)) as client:
            await client.send(head.encode() + body[:-200])
            async with asyncio.timeout(5):
                while not storescp.files():
                    await asyncio.sleep(0.01)
        line = await trail.last(1)
    assert (line["event"], line["outcome"], line["ended"]) == ("Store Instances", 4, "client gone")
    study, instance = corpus.uid(corpus.CT_STUDY, 7), corpus.uid(corpus.CT_STUDY, 7, 1, 1)
    assert line["stored"] == [{"study": study, "count": 1, "instances": [instance]}]


async def test_bytes_that_the_kernel_sends_count_too(ct: Corpus, tmp_path: Path) -> None:
    """What is in the cache goes out by sendfile."""
    path = path_of(ct.samples[0], "study")
    async with (
        DemoArchive(ct.folder) as archive,
        audited(tmp_path, Address("DEMO", archive.port), use_cget=True, enableCache=True) as (proxy, trail),
    ):
        await get(proxy, path)
        await kept(proxy.http)
        answer = await get(proxy, path)
        _, hit = await trail.until(2)
    assert hit["cache"] == "HIT"
    assert len(answer.body) < hit["sent"] < len(answer.body) + 2000


async def test_callers_that_the_dimse_side_turns_away(ct: Corpus, tmp_path: Path) -> None:
    """DCMTK's `storescu`, as a stranger, and as the archive with what nobody has asked for."""
    file = tmp_path / "audit.log"
    async with in_front_of(small_study(), audit={"file": str(file)}) as (archive, proxy):
        for caller in ("STRANGER", archive.aet):
            await asyncio.to_thread(Scu(proxy.address, aet=caller).store, [ct.path(ct.samples[0])])
        stranger, unasked = await Trail(file).until(2)
    assert {key: stranger[key] for key in ("event", "outcome", "description", "caller", "client")} == {
        "event": "Refused Caller",
        "outcome": 8,
        "description": "an association of a caller that is not known",
        "caller": "STRANGER",
        "client": HOST,
    }
    assert (unasked["caller"], unasked["description"]) == (archive.aet, "an instance that no retrieval asked for")


async def test_sighup_makes_the_file_anew(tmp_path: Path) -> None:
    """As programs that rotate logs send it, at once and without ending the proxy."""
    path = tmp_path / "audit" / "audit.log"
    config = write_config(tmp_path, settings(NOBODY, use_cget=True, audit={"file": str(path)}))
    async with program("run", "--config", str(config), folder=tmp_path) as proxy:
        trail = Trail(path)
        async with asyncio.timeout(5):
            while not trail.all():
                await asyncio.sleep(0.01)
            path.rename(tmp_path / "moved")
            proxy.process.signal(signal.SIGHUP)
            while not path.exists():
                await asyncio.sleep(0.01)
        await proxy.end(signal.SIGTERM, within=5)
    assert [line["event"] for line in Trail(tmp_path / "moved").all()] == ["Application Start"]
    assert [line["event"] for line in trail.all()] == ["Application Stop"]


async def test_a_file_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    config = write_config(tmp_path, settings(NOBODY, use_cget=True, audit={"file": str(path)}))
    ended = await command("run", "--config", str(config), cwd=tmp_path)
    assert ended.code == 3
    assert f"audit.file: {path} cannot be written: Is a directory" in ended.err
    assert "Traceback" not in ended.err


async def test_check_config_looks_at_the_files_and_makes_none(tmp_path: Path) -> None:
    """It is often run by root, whose file the proxy could not write."""
    path = tmp_path / "audit" / "audit.log"
    syslog = {"host": HOST, "port": free_port(), "caFile": "/nonexistent"}
    audit: dict[str, object] = {"file": str(path)}
    config = write_config(tmp_path, settings(NOBODY, use_cget=True, audit=audit))
    assert (await command("check-config", "--config", str(config), cwd=tmp_path)).code == 0
    config = write_config(tmp_path, settings(NOBODY, use_cget=True, audit={**audit, "syslog": syslog}))
    ended = await command("check-config", "--config", str(config), cwd=tmp_path)
    assert ended.code == 2
    assert "audit.syslog.caFile: cannot be used: No such file or directory" in ended.err
    assert not path.parent.exists()
