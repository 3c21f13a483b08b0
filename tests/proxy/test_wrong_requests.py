"""Requests that are wrong, each in one way: the answer says what, as JSON, and repeats no value.

None of them reaches an archive.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import yarl

from tests.proxy.finding import Scripted, fetch, giving, proxied, study
from tests.proxy.running import Proxy
from tests.proxy.test_app import raw

SECRET = "Doe"
STUDY, SERIES, INSTANCE = "/studies/1.2", "/studies/1.2/series/1.3", "/studies/1.2/series/1.3/instances/1.4"
RETRIEVALS = (
    STUDY,
    SERIES,
    INSTANCE,
    f"{STUDY}/metadata",
    f"{SERIES}/metadata",
    f"{INSTANCE}/metadata",
    f"{INSTANCE}/frames/1",
    f"{INSTANCE}/bulkdata/00420011",
    f"{STUDY}/rendered",
    f"{INSTANCE}/rendered",
    f"{INSTANCE}/frames/1/rendered",
    f"{SERIES}/thumbnail",
)


@pytest.fixture
async def asked() -> AsyncIterator[tuple[Scripted, Proxy]]:
    """An archive that has one study, and the proxy."""
    async with proxied(giving(study(PatientName=SECRET))) as (archive, proxy):
        yield archive, proxy


async def refused(asked: tuple[Scripted, Proxy], method: str, target: str, **headers: str) -> tuple[int, str]:
    """Send a request that must be refused, and return the status and the message."""
    archive, proxy = asked
    before = archive.associations
    reply = await fetch(proxy, target, method=method, **headers)
    assert set(reply.json) == {"error", "statusCode", "timestamp"}
    assert reply.json["statusCode"] == reply.status
    assert reply.headers["Content-Type"].startswith("application/json")
    assert SECRET not in reply.json["error"]
    assert archive.associations == before, "the archive was asked"
    return reply.status, reply.json["error"]


# --- paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["//ping", "/ping/", "///ping//", "/ping//"])
async def test_surplus_slashes_do_not_matter(asked: tuple[Scripted, Proxy], path: str) -> None:
    """Clients put addresses together with a slash too many."""
    _, proxy = asked
    async with proxy.http.get(yarl.URL(proxy.url + path, encoded=True), allow_redirects=False) as response:
        assert (response.status, await response.text()) == (200, "pong")


async def test_surplus_slashes_in_searches(asked: tuple[Scripted, Proxy]) -> None:
    _, proxy = asked
    (entity,) = (await fetch(proxy, "/studies")).json
    for path in ("//studies", "/studies/", "//studies//?PatientName=D*"):
        assert (await fetch(proxy, path)).json == [entity]


async def test_a_path_with_surplus_slashes_has_the_same_methods(asked: tuple[Scripted, Proxy]) -> None:
    _, proxy = asked
    for path in ("/studies", "//studies/"):
        reply = await fetch(proxy, path, method="DELETE")
        assert (reply.status, reply.headers["Allow"]) == (405, "GET, OPTIONS, POST")
        cors = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
        async with proxy.http.options(yarl.URL(proxy.url + path, encoded=True), headers=cors) as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"


@pytest.mark.parametrize(
    "path", ["/nowhere", "//nowhere//", "/studies/1.2/nowhere", "/studies/1.2/frames/1", "/wado/x"]
)
async def test_a_path_that_leads_nowhere(asked: tuple[Scripted, Proxy], path: str) -> None:
    assert (await refused(asked, "GET", path))[0] == 404


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "HEAD", "TRACE", "PROPFIND"])
async def test_a_method_that_there_is_not(asked: tuple[Scripted, Proxy], method: str) -> None:
    _, proxy = asked
    for path in ("/studies", *RETRIEVALS):
        async with proxy.http.request(method, path) as response:
            assert response.status == 405
            assert "GET" in response.headers["Allow"].split(", ")
            assert method not in response.headers["Allow"]


# --- identifiers -----------------------------------------------------------------------------------------------

NO_UIDS = ("Doe", "1.2.Doe", "1..2", ".1", "1.", "1" * 65, "1.2%20", "%2e%2e", "1.2%00", "%C3%A9", "1.2,1.3")


@pytest.mark.parametrize("uid", NO_UIDS)
async def test_what_is_no_uid_in_a_path(asked: tuple[Scripted, Proxy], uid: str) -> None:
    for path, place in (
        (f"/studies/{uid}/metadata", "study"),
        (f"/studies/{uid}/series", "study"),
        (f"/studies/1.2/series/{uid}/metadata", "series"),
        (f"/studies/1.2/series/1.3/instances/{uid}", "instance"),
        (f"/studies/1.2/series/1.3/instances/{uid}/frames/1", "instance"),
        (f"/studies/1.2/series/1.3/instances/{uid}/bulkdata/00420011", "instance"),
    ):
        assert await refused(asked, "GET", path) == (400, f"the {place} in the path is not a valid UID")


@pytest.mark.parametrize("frames", ["Doe", "1,", ",1", "1-3", "1.5", "-1", "%20"])
async def test_what_is_no_list_of_frames(asked: tuple[Scripted, Proxy], frames: str) -> None:
    status, message = await refused(asked, "GET", f"{INSTANCE}/frames/{frames}")
    assert status == 400
    assert "frame" in message


# --- parameters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RETRIEVALS)
async def test_a_parameter_that_there_is_not(asked: tuple[Scripted, Proxy], path: str) -> None:
    """The message names it, and what there is."""
    for name in ("limit", "includefield", "PatientName", "Accept", "transfer-syntax"):
        status, message = await refused(asked, "GET", f"{path}?{name}={SECRET}")
        assert status == 400
        assert "unknown query parameter" in message
        assert "accept" in message


async def test_a_name_that_is_not_repeated(asked: tuple[Scripted, Proxy]) -> None:
    """What cannot be a parameter's name at all could be anything, such as a name of a patient."""
    for name in ("Doe^John", "%3Cscript%3E", "x" * 65, "%0d%0aDoe"):
        assert (await refused(asked, "GET", f"{STUDY}?{name}=1"))[1].startswith("unknown query parameter; known here")


async def test_a_parameter_given_twice(asked: tuple[Scripted, Proxy]) -> None:
    for name in ("accept", "charset"):
        message = f"the query parameter {name} is given twice"
        assert await refused(asked, "GET", f"{STUDY}?{name}=a&{name}=b") == (400, message)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("Patientname=Doe", "did you mean PatientName?"),
        ("limits=1", "did you mean limit?"),
        ("limit=-1", "limit is not a number"),
        ("limit=1&limit=2", "limit is given twice"),
        ("offset=Doe", "offset is not a number"),
        ("fuzzymatching=maybe", "neither true nor false"),
        ("emptyvaluematching=1", "neither true nor false"),
        ("includefield=Nonsense", "unknown attribute 'Nonsense'"),
        ("StudyDate=Doe", "StudyDate is not a date"),
        ("StudyDate=20240230", "StudyDate is not a date"),
        ("StudyInstanceUID=Doe", "StudyInstanceUID is not a UID"),
        ("PatientName.Doe=1", "PatientName is not a sequence"),
        ("Rows=16", "Rows is no attribute of the STUDY level"),
        ("PixelData=1", "cannot be matched"),
    ],
)
async def test_searches(asked: tuple[Scripted, Proxy], query: str, words: str) -> None:
    status, message = await refused(asked, "GET", f"/studies?{query}")
    assert status == 400
    assert words in message


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("requestType=WADO", "studyUID"),
        ("requestType=Doe&studyUID=1.2&seriesUID=1.3&objectUID=1.4", "requestType"),
        ("requestType=WADO&studyUID=Doe&seriesUID=1.3&objectUID=1.4", "studyUID"),
        ("requestType=WADO&studyUID=1.2&seriesUID=1.3&objectUID=1.4&frameNumber=Doe", "frameNumber"),
        ("requestType=WADO&studyUID=1.2&seriesUID=1.3&objectUID=1.4&frame=1", "'frame'"),
        ("requestType=WADO&studyUID=1.2&seriesUID=1.3&objectUID=1.4&rows=1&rows=2", "rows"),
    ],
)
async def test_wado_uri(asked: tuple[Scripted, Proxy], query: str, name: str) -> None:
    status, message = await refused(asked, "GET", f"/wado?{query}")
    assert status == 400
    assert name in message


# --- media types -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["image/tiff", "text/csv, application/x-doe", 'multipart/related; type="text/css"'])
async def test_a_media_type_that_there_is_not(asked: tuple[Scripted, Proxy], accept: str) -> None:
    """The message says which there are; a search asks no archive for that."""
    for path in ("/studies", "/instances", STUDY, f"{STUDY}/metadata", "/conformance"):
        status, message = await refused(asked, "GET", path, Accept=accept)
        assert status == 406
        assert "offered here" in message


async def test_an_upload_of_something_else(asked: tuple[Scripted, Proxy]) -> None:
    for content_type in ("text/plain", "application/json", 'multipart/related; type="image/jpeg"; boundary=x'):
        assert (await refused(asked, "POST", "/studies", Content_Type=content_type))[0] in (400, 415)


# --- requests that are no HTTP -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "GET /studies HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "POST /studies HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /studies HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        f"GET /studies?{'a' * 9000} HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
async def test_no_http(asked: tuple[Scripted, Proxy], text: str) -> None:
    """One answer, an error of the client's, and the connection ends; the next client is served."""
    _, proxy = asked
    answer = await raw(proxy, text)
    assert answer.count(b"HTTP/1.") == 1
    assert 400 <= int(answer.split(b" ")[1]) < 500
    assert SECRET.encode() not in answer
    async with proxy.http.get("/ping") as response:
        assert response.status == 200


@pytest.mark.parametrize("line", ["GET /studies", "GET /studies HTTP/0.9", "GET /studies HTTP/1.2"])
async def test_another_version_of_http(asked: tuple[Scripted, Proxy], line: str) -> None:
    """What there is of it was never agreed on, so that a program in between may read it in another way."""
    archive, proxy = asked
    before = archive.associations
    answer = await raw(proxy, f"{line}\r\nConnection: close\r\n\r\n")
    assert answer.split(b" ")[1] in (b"400", b"505")
    assert archive.associations == before


async def test_options_of_the_whole_server(asked: tuple[Scripted, Proxy]) -> None:
    """`OPTIONS *` (RFC 9110 9.3.7) names no resource of this server; it is answered and not an error of the proxy."""
    _, proxy = asked
    answer = await raw(proxy, "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert 200 <= int(answer.split(b" ")[1]) < 500
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["statusCode"] == 404
