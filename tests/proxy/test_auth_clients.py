"""Real clients sign in: the Python `dicomweb-client`, curl, aiohttp; each searches, and retrieves the same bytes."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session, create_session_from_user_pass
from requests import HTTPError

from proxy.demo.archive import DemoArchive
from tests.corpus import Corpus
from tests.peers.process import Address, require_program
from tests.proxy.running import Proxy, proxy_for
from tests.proxy.signing_in import TOKEN, token, user
from tests.proxy.test_dicomweb_client import calling

pytestmark = pytest.mark.usefixtures("nothing_left")

NAME, PASSWORD = "Zoë", "correct: hörse"


@pytest.fixture
async def proxy(samples: Corpus) -> AsyncIterator[Proxy]:
    """A proxy in front of an archive with the samples, for a user who may read and a program that may write."""
    auth = {"enabled": True, "users": [user(NAME, PASSWORD)], "tokens": [token(write=True)]}
    async with (
        DemoArchive(samples.folder) as archive,
        proxy_for(Address("DEMO", archive.port), use_cget=True, auth=auth) as running,
    ):
        yield running


@pytest.mark.parametrize("way", ["password", "token"])
async def test_dicomweb_client(proxy: Proxy, samples: Corpus, way: str) -> None:
    """With its own session for HTTP Basic, and with a header of the session."""
    if way == "password":
        session = create_session_from_user_pass(NAME, PASSWORD)
    else:
        session = create_session()
        session.headers["Authorization"] = f"Bearer {TOKEN}"
    client = DICOMwebClient(proxy.url, session=session)
    found = await calling(client.search_for_studies)
    assert {study["0020000D"]["Value"][0] for study in found} == set(samples.study_uids)
    wanted = samples.of_patient("LATIN1")
    data_sets = await calling(client.retrieve_study, wanted[0].study_uid)
    assert {str(each.SOPInstanceUID) for each in data_sets} == {each.sop_instance_uid for each in wanted}
    session.close()


async def test_dicomweb_client_without(proxy: Proxy) -> None:
    """It says 401, and nothing is retrieved; what the user may not do is a 403."""
    session = create_session()
    with pytest.raises(HTTPError, match="401"):
        await calling(DICOMwebClient(proxy.url, session=session).search_for_studies)
    session.close()
    session = create_session_from_user_pass(NAME, PASSWORD)
    with pytest.raises(HTTPError, match="403"):
        await calling(DICOMwebClient(proxy.url, session=session).store_instances, [])
    session.close()


async def curl(*arguments: str) -> str:
    """Run curl; returns what it prints."""
    line = [require_program("curl", "curl"), "--silent", "--max-time", "20", *arguments]
    done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, timeout=30)
    return done.stdout


async def test_curl(proxy: Proxy, samples: Corpus, tmp_path: Path) -> None:
    """`-u`, at once and, with `--anyauth`, after the challenge; `--oauth2-bearer`."""
    status = ("--output", "/dev/null", "--write-out", "%{http_code}", f"{proxy.url}/studies")
    assert await curl(*status) == "401"
    assert await curl("-u", f"{NAME}:{PASSWORD}", *status) == "200"
    assert await curl("-u", f"{NAME}:wrong", *status) == "401"
    assert await curl("--anyauth", "-u", f"{NAME}:{PASSWORD}", *status) == "200"
    assert await curl("--oauth2-bearer", TOKEN, *status) == "200"
    assert await curl("--oauth2-bearer", TOKEN + "x", *status) == "401"
    assert await curl("--digest", "-u", f"{NAME}:{PASSWORD}", *status) == "401"
    sample = samples.samples[0]
    path = f"/studies/{sample.study_uid}/series/{sample.series_uid}/instances/{sample.sop_instance_uid}"
    file = tmp_path / "instance.dcm"
    await curl("-u", f"{NAME}:{PASSWORD}", "-o", str(file), f"{proxy.url}{path}?multipart=false")
    assert file.read_bytes()[128:132] == b"DICM"
    uploaded = ("-X", "POST", "--data-binary", f"@{file}", "-H", "Content-Type: application/dicom")
    assert await curl("-u", f"{NAME}:{PASSWORD}", *uploaded, *status) == "403"
    assert await curl("--oauth2-bearer", TOKEN, *uploaded, *status) in ("200", "202", "409", "415")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_aiohttp(proxy: Proxy) -> None:
    """Its `BasicAuth`, with the character set that the challenge names, and what is to take its place."""
    for password, expected in ((PASSWORD, 200), ("wrong", 401)):
        auth = aiohttp.BasicAuth(NAME, password, encoding="utf-8")
        async with aiohttp.ClientSession(auth=auth) as http, http.get(f"{proxy.url}/studies") as response:
            assert response.status == expected
        header = {"Authorization": aiohttp.encode_basic_auth(NAME, password)}
        async with aiohttp.ClientSession(headers=header) as http, http.get(f"{proxy.url}/studies") as response:
            assert response.status == expected
