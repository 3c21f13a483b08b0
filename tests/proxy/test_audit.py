"""The audit trail of a running proxy: what is in it of each access, and how that ended."""

from __future__ import annotations

import asyncio
import re
import stat
import time
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from proxy.demo.archive import DemoArchive
from proxy.security.audit import lines
from proxy.security.audit.middleware import IDENTIFIER
from tests.corpus import Corpus, ct_study, write
from tests.faultpeer import ScriptedArchive, in_front_of, small_study
from tests.faultpeer.retrieves import breaking_off, keep_still, reset
from tests.peers.process import Address, free_port
from tests.proxy.auditing import Line, Trail, audited
from tests.proxy.forwarding import forward_to, recorder
from tests.proxy.retrieved import get, kept, path_of
from tests.proxy.signing_in import TOKEN, basic, bearer, token, user

pytestmark = pytest.mark.usefixtures("nothing_left")

NOBODY = Address("NOBODY", 104)


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A CT study of 3 instances, 0.5 MB each."""
    return write(tmp_path_factory.mktemp("ct"), ct_study(series=1, instances=3))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A CT study of 24 MB: more than all buffers between an archive and a client hold."""
    return write(tmp_path_factory.mktemp("large"), ct_study(series=1, instances=45))


def without_chance(line: Line) -> Line:
    """A line without what differs from run to run."""
    return {key: value for key, value in line.items() if key not in ("time", "ms", "id", "sent")}


# --- what is in a line ---------------------------------------------------------------------------------------


async def test_one_line_for_each_access(ct: Corpus, tmp_path: Path) -> None:
    """What it was, whose data, from where, and how it ended; and in the end that the proxy was stopped."""
    sample = ct.samples[0]
    uids = {"study": sample.study_uid, "series": sample.series_uid, "instance": sample.sop_instance_uid}
    asked = [
        ("/studies?PatientID=P1*&00080050=A1&limit=5", "Search for Studies", "/studies", ()),
        (path_of(sample, "study"), "Retrieve Study", "/studies/{study}", ("study",)),
        (path_of(sample, "series"), "Retrieve Series", "/studies/{study}/series/{series}", ("study", "series")),
        (path_of(sample), "Retrieve Instance", "/studies/{study}/series/{series}/instances/{instance}", uids),
        (
            path_of(sample) + "/frames/1",
            "Retrieve Frames",
            "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}",
            uids,
        ),
        (path_of(sample, "study") + "/metadata", "Retrieve Study Metadata", "/studies/{study}/metadata", ("study",)),
        (
            f"/wado?requestType=WADO&studyUID={sample.study_uid}&seriesUID={sample.series_uid}"
            f"&objectUID={sample.sop_instance_uid}&contentType=application/dicom",
            "Retrieve Instance by URI",
            "/wado",
            uids,
        ),
    ]
    async with DemoArchive(ct.folder) as archive, audited(tmp_path, at(archive), use_cget=True) as (proxy, trail):
        for path, *_ in asked:
            assert (await get(proxy, path)).status == 200
        found = await trail.until(len(asked))
    for line, (_, event, resource, named) in zip(found, asked, strict=True):
        assert line["event"] == event
        assert line["resource"] == resource
        assert {key: line[key] for key in uids if key in line} == {key: uids[key] for key in named}
        assert (line["outcome"], line["result"], line["status"]) == (0, "success", 200)
        assert (line["client"], line["method"]) == ("127.0.0.1", "GET")
        assert line["ms"] > 0
    assert [line.get("patients") for line in found] == [None, *[["P1-00001"]] * (len(asked) - 1)]
    assert found[0]["query"] == {"PatientID": "P1*", "AccessionNumber": "A1"}
    assert not any("query" in line for line in found[1:])
    every = trail.all()
    assert [every[0]["event"], every[-1]["event"]] == ["Application Start", "Application Stop"]
    assert stat.S_IMODE(trail.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(trail.path.parent.stat().st_mode) == 0o700


def at(archive: DemoArchive) -> Address:
    return Address("DEMO", archive.port)


async def test_the_time_is_that_of_the_request_in_utc(tmp_path: Path) -> None:
    async with audited(tmp_path, NOBODY, use_cget=True) as (proxy, trail):
        before = time.time()
        await get(proxy, "/nothing")
        line = await trail.last(1)
        after = time.time()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    when = datetime.strptime(line["time"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()
    assert before - 0.001 <= when <= after


async def test_bytes_of_the_answer_and_of_the_request(ct: Corpus, tmp_path: Path) -> None:
    async with DemoArchive(ct.folder) as archive, audited(tmp_path, at(archive), use_cget=True) as (proxy, trail):
        answer = await get(proxy, path_of(ct.samples[0]))
        async with proxy.http.post("/dimse/echo", data=b'{"peerIndex": 0}      ') as response:
            await response.read()
        retrieved, echoed = await trail.until(2)
    assert len(answer.body) < retrieved["sent"] < len(answer.body) + 2000
    assert (echoed["event"], echoed["received"]) == ("Echo", 22)


async def test_whether_the_cache_had_it(ct: Corpus, tmp_path: Path) -> None:
    path = path_of(ct.samples[0], "study")
    async with (
        DemoArchive(ct.folder) as archive,
        audited(tmp_path, at(archive), use_cget=True, enableCache=True) as (proxy, trail),
    ):
        await get(proxy, path)
        await kept(proxy.http)
        await get(proxy, path)
        async with proxy.http.delete(f"/cache{path}") as response:
            assert (await response.json())["instances"] == 3
        first, second, purge = await trail.until(3)
    assert (first["cache"], second["cache"]) == ("MISS", "HIT")
    assert first["patients"] == second["patients"] == ["P1-00001"]
    assert without_chance(purge) == {
        "event": "Purge Cache",
        "outcome": 0,
        "result": "success",
        "status": 200,
        "client": "127.0.0.1",
        "method": "DELETE",
        "resource": "/cache/studies/{study}",
        "study": ct.samples[0].study_uid,
        "received": 0,
    }


async def test_an_answer_names_its_record(tmp_path: Path) -> None:
    """So that who complains of one can say which. Only a trusted proxy may choose the name."""
    async with audited(tmp_path, NOBODY, use_cget=True) as (proxy, trail):
        answers = [await get(proxy, "/nothing", **{IDENTIFIER: "mine"}) for _ in range(2)]
        named = [line["id"] for line in await trail.until(2)]
    assert [answer.headers[IDENTIFIER] for answer in answers] == named
    assert len({*named, "mine"}) == 3
    async with audited(tmp_path / "2", NOBODY, use_cget=True, trustedProxies=["127.0.0.1"]) as (proxy, trail):
        assert (await get(proxy, "/nothing", **{IDENTIFIER: "theirs-1"})).headers[IDENTIFIER] == "theirs-1"
        await get(proxy, "/nothing", **{IDENTIFIER: 'no "name"'})
        first, second = await trail.until(2)
    assert first["id"] == "theirs-1"
    assert second["id"] != 'no "name"'


async def test_the_client_behind_a_reverse_proxy(tmp_path: Path) -> None:
    """Its own address, and that of the connection; where the proxy is not trusted, that alone."""
    async with audited(tmp_path, NOBODY, use_cget=True, trustedProxies=["127.0.0.1"]) as (proxy, trail):
        await get(proxy, "/nothing", **{"X-Forwarded-For": "10.1.2.3"})
        line = await trail.last(1)
        assert (line["client"], line["connection"]) == ("10.1.2.3", "127.0.0.1")
    async with audited(tmp_path / "2", NOBODY, use_cget=True) as (proxy, trail):
        await get(proxy, "/nothing", **{"X-Forwarded-For": "10.1.2.3"})
        line = await trail.last(1)
        assert line["client"] == "127.0.0.1"
        assert "connection" not in line


async def test_what_says_nothing_of_anybody_has_no_line(tmp_path: Path) -> None:
    """Health checks each second would be most of the trail."""
    async with audited(tmp_path, NOBODY, use_cget=True) as (proxy, trail):
        for path in ("/", "/ping", "/health", "/status", "/conformance"):
            await get(proxy, path)
        asks = {"Origin": "https://pacsbin.com", "Access-Control-Request-Method": "GET"}
        async with proxy.http.options("/studies", headers=asks) as response:
            assert response.status == 200
        await get(proxy, "/studies/x")
        assert (await trail.last(1))["resource"] == "/studies/{study}"


async def test_what_only_looks_like_a_health_check_has_a_line(tmp_path: Path) -> None:
    """In dicomweb mode these go to the other server, which may take them for anything."""
    async with recorder() as upstream:
        file = str(tmp_path / "audit.log")
        async with forward_to(upstream.url, audit={"file": file}) as proxy:
            paths = ("/ping/", "/conformance", "/metrics", "/health;x")
            for path in paths:
                await get(proxy, path)
            async with proxy.http.options("/studies") as response:
                await response.read()
            await get(proxy, "/ping")
            lines = await Trail(Path(file)).until(len(paths) + 1)
    assert [each.target for each in upstream.requests if each.method == "GET"] == [f"/base{path}" for path in paths]
    assert lines[-1]["event"] == "OPTIONS /studies"


async def test_a_request_that_no_middleware_sees_is_answered_all_the_same(tmp_path: Path) -> None:
    async with audited(tmp_path, NOBODY, use_cget=True) as (proxy, _):
        assert (await get(proxy, "/studies", Expect="nonsense")).status == 417


async def test_the_trail_is_the_same_in_front_of_another_server(ct: Corpus, tmp_path: Path) -> None:
    """In dicomweb mode nothing but the path tells what a request is for."""
    path = path_of(ct.samples[0], "study")
    async with DemoArchive(ct.folder) as archive, audited(tmp_path / "1", at(archive), use_cget=True) as (proxy, first):
        file = str(tmp_path / "2" / "audit.log")
        async with forward_to(proxy.url, audit={"file": file}) as before:
            for each in ("/studies?PatientID=P1*", path, path + "/metadata", "/nothing?x=1"):
                await get(before, each)
            seen = await Trail(Path(file)).until(4)
        _, *directly = await first.until(5)  # one is the other proxy's, which asks whether the server answers
    ignored = ("received", "failure", "cache", "results", "patients")
    shown = [{key: value for key, value in without_chance(each).items() if key not in ignored} for each in seen]
    assert shown == [
        {key: value for key, value in without_chance(each).items() if key not in ignored} for each in directly
    ]
    assert [each["event"] for each in seen] == [
        "Search for Studies",
        "Retrieve Study",
        "Retrieve Study Metadata",
        "Unknown Resource",
    ]
    assert [each["id"] for each in seen] == [each["id"] for each in directly], "one identifier for the whole way"


# --- who -----------------------------------------------------------------------------------------------------


async def test_who_has_signed_in_and_who_was_refused(ct: Corpus, tmp_path: Path) -> None:
    auth = {
        "enabled": True,
        "users": [user("jane", "correct horse")],
        "tokens": [token("uploader")],
    }
    async with (
        DemoArchive(ct.folder) as archive,
        audited(tmp_path, at(archive), use_cget=True, auth=auth) as (proxy, trail),
    ):
        for headers in (basic("jane", "correct horse"), bearer(), basic("jane", "wrong battery"), {}):
            await get(proxy, path_of(ct.samples[0], "study"), **headers)
        async with proxy.http.delete("/cache", headers=bearer()) as response:
            assert response.status == 403
        await get(proxy, "/status")
        found = await trail.until(6)
    jane, uploader, refused, nobody, admin, status = found
    assert (jane["user"], jane["signIn"], jane["event"]) == ("jane", "basic", "Retrieve Study")
    assert (uploader["user"], uploader["signIn"]) == ("uploader", "token")
    assert (refused["event"], refused["status"], refused["outcome"]) == ("Refused Sign-In", 401, 4)
    assert "user" not in refused
    assert (nobody["event"], nobody["status"]) == ("No Sign-In", 401)
    assert (admin["event"], admin["status"], admin["outcome"]) == ("Refused Access", 403, 8)
    assert admin["user"] == "uploader"
    assert (status["event"], status["resource"]) == ("No Sign-In", "/status"), "refusals are told of for any resource"
    text = trail.path.read_text()
    assert not any(secret in text for secret in ("correct horse", "wrong battery", TOKEN, "Basic", "Bearer"))


# --- how it ended --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "outcome", "failure"),
    [
        ("/studies/1.2.3", 404, 4, "NotFoundError"),
        ("/studies/x", 400, 4, "BadRequest"),
        ("/studies?limit=x", 400, 4, "BadParameter"),
        ("/nothing", 404, 4, "HTTPNotFound"),
    ],
)
async def test_requests_that_cannot_be_served(
    path: str, status: int, outcome: int, failure: str, ct: Corpus, tmp_path: Path
) -> None:
    async with DemoArchive(ct.folder) as archive, audited(tmp_path, at(archive), use_cget=True) as (proxy, trail):
        assert (await get(proxy, path)).status == status
        line = await trail.last(1)
    assert (line["status"], line["outcome"], line["failure"]) == (status, outcome, failure)
    assert "ended" not in line


async def test_an_archive_that_does_not_answer(tmp_path: Path) -> None:
    async with audited(tmp_path, Address("NOBODY", free_port()), use_cget=True) as (proxy, trail):
        assert (await get(proxy, "/studies/1.2.3")).status == 502
        line = await trail.last(1)
    assert (line["status"], line["outcome"], line["result"]) == (502, 8, "serious failure")
    assert line["study"] == "1.2.3"


async def test_an_answer_that_was_cut(tmp_path: Path) -> None:
    """The client has seen status 200, and not all that was to come."""
    study = small_study()
    script = breaking_off(2, reset)
    file = tmp_path / "audit.log"
    async with in_front_of(study, script, use_cget=True, audit={"file": str(file)}) as (_, proxy):
        with pytest.raises(aiohttp.ClientError):
            await get(proxy, path_of(study[0].sample, "study"))
        line = await Trail(file).last(1)
    assert (line["status"], line["outcome"], line["ended"]) == (200, 8, "cut")
    assert line["failure"] == "Truncated"
    assert line["sent"] > 0


@pytest.mark.parametrize("cached", [False, True], ids=["arriving", "cached"])
async def test_a_client_that_leaves(cached: bool, large: Corpus, tmp_path: Path) -> None:
    path = path_of(large.samples[0], "study")
    async with (
        DemoArchive(large.folder) as archive,
        audited(tmp_path, at(archive), use_cget=True, enableCache=cached) as (proxy, trail),
    ):
        if cached:
            await get(proxy, path)
            await kept(proxy.http)
        async with proxy.http.get(path) as response:
            await response.content.readexactly(100_000)
            response.close()
        line = await trail.last(1 + cached)
    assert (line["status"], line["outcome"], line["ended"]) == (200, 4, "client gone")
    assert line["cache"] == ("HIT" if cached else "MISS")


async def test_a_client_that_does_not_wait_for_the_answer(tmp_path: Path) -> None:
    async with (
        ScriptedArchive(study := small_study(), keep_still) as archive,
        audited(tmp_path, archive.address, use_cget=True) as (proxy, trail),
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), proxy.http.get(path_of(study[0].sample, "study")) as response:
                await response.read()
        line = await trail.last(1)
    assert (line["outcome"], line["ended"]) == (4, "client gone")
    assert "status" not in line


async def test_requests_that_the_end_of_the_proxy_cuts(tmp_path: Path) -> None:
    """They are not taken for clients that have left, and stand before the line of the stop."""
    async with ScriptedArchive(study := small_study(), keep_still) as archive, aiohttp.ClientSession() as http:
        async with audited(tmp_path, archive.address, use_cget=True, shutdownSeconds=0.1) as (proxy, trail):
            asking = asyncio.create_task(http.get(proxy.url + path_of(study[0].sample, "study")))
            async with asyncio.timeout(5):
                while not archive.requests:
                    await asyncio.sleep(0.01)
        with pytest.raises(aiohttp.ClientError):
            await asking
    cut, stop = trail.all()[-2:]
    assert (cut["event"], cut["ended"], cut["outcome"]) == ("Retrieve Study", "cut", 8)
    assert stop["event"] == "Application Stop"


# --- when nothing can be written -----------------------------------------------------------------------------


@pytest.mark.parametrize("required", [False, True])
async def test_nobody_has_access_without_a_record_where_one_is_required(
    required: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the disk is full: 503 with `audit.required`. Without it, care goes on, and the lines come later."""
    monkeypatch.setattr(lines, "RETRY_SECONDS", 0.02)
    (tmp_path / "audit").mkdir()
    path = tmp_path / "audit" / "audit.log"
    path.symlink_to("/dev/full")
    async with audited(tmp_path, NOBODY, use_cget=True, audit={"required": required}) as (proxy, trail):
        async with asyncio.timeout(5):
            while "No space left on device" not in caplog.text:
                await asyncio.sleep(0.01)
        answer = await get(proxy, "/studies/x")
        assert answer.status == (503 if required else 400)
        if required:
            assert answer.failure(503) == "no record of the request can be kept, and one must be (key: audit.required)"
            assert answer.headers["Retry-After"] == "5"
        assert (await get(proxy, "/ping")).status == 200
        path.unlink()
        async with asyncio.timeout(5):
            while (await get(proxy, "/studies/y")).status != 400:
                await asyncio.sleep(0.02)
        found = await trail.until(1 if required else 2)
    assert [line["status"] for line in found] == [400] * len(found)
    assert trail.all()[0]["event"] == "Application Start", "what waited is not lost"
