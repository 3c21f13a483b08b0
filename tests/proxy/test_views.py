"""Users who may use only some of the archives: what they get is what these hold, whatever others have asked for.

Orthanc and DCMTK's archive have a study in parts, with a series that both have a part of, and an instance that both
have under the same UIDs with different contents.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from dul.uids import EXPLICIT_VR_LITTLE_ENDIAN
from tests import corpus
from tests.peers.dcmtk import Dcmqrscp, Scu
from tests.peers.orthanc import Orthanc
from tests.peers.process import HOST, Address, free_port
from tests.proxy.caching import check_storage, files_below
from tests.proxy.command import command, write_config
from tests.proxy.retrieved import Answer, kept, path_of
from tests.proxy.running import PROXY_AET, Proxy, proxy_for, settings
from tests.proxy.uploading import CONTENT_TYPE, multipart
from tests.proxy.viewing import (
    ALL,
    BRIGHT,
    DARK,
    HELD,
    HERE,
    NOWHERE,
    THERE,
    USER,
    User,
    part10,
    picture,
    pictures,
    sign_users_in,
)

pytestmark = pytest.mark.usefixtures("nothing_left")

DESTINATION = Address(PROXY_AET, free_port())
CLOSED = Address(NOWHERE, free_port())
UPLOADED = 73


@pytest.fixture(scope="module")
def orthanc_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """The archive for `HERE`, with what it holds."""
    with Orthanc(tmp_path_factory.mktemp("here"), aet=HERE) as archive:
        archive.know(DESTINATION)
        archive.upload([part10(stored) for stored in HELD[HERE]])
        yield archive


@pytest.fixture(scope="module")
def archives(orthanc_here: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Address]]:
    """Both archives, by address; and a third that is not there."""
    folder = tmp_path_factory.mktemp("there")
    with Dcmqrscp(folder, aet=THERE, destinations=[DESTINATION]) as there:
        files = [folder / f"{number}.dcm" for number in range(len(HELD[THERE]))]
        for file, stored in zip(files, HELD[THERE], strict=True):
            file.write_bytes(part10(stored))
        Scu(there.address).store(files, "--required").succeeded()
        yield [orthanc_here.address, there.address, CLOSED]


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture(autouse=True)
def _users(monkeypatch: pytest.MonkeyPatch) -> None:
    sign_users_in(monkeypatch)


def started(archives: list[Address], storage: Path, **more: Any) -> AbstractAsyncContextManager[Proxy]:
    """A proxy in front of these, with a cache."""
    more = {"enableCache": True, "storagePath": str(storage), **more}
    return proxy_for(*archives, dimse_port=DESTINATION.port, peer={"timeouts": {"connect": 1}}, **more)


@pytest.fixture
async def proxy(archives: list[Address], storage: Path, use_cget: bool) -> AsyncIterator[Proxy]:
    """The proxy in front of the two archives that are there."""
    async with started(archives[:2], storage, use_cget=use_cget) as proxy:
        yield proxy


@pytest.fixture
async def simple_proxy(archives: list[Address], storage: Path) -> AsyncIterator[Proxy]:
    """The same, only by C-GET, for what does not depend on the way."""
    async with started(archives[:2], storage, use_cget=True) as proxy:
        yield proxy


async def purge(proxy: Proxy, path: str = "/cache", user: str = "everywhere") -> int:
    """Empty the cache; returns how many instances were removed."""
    async with proxy.http.delete(path, headers={USER: user}) as response:
        assert response.status == 200, await response.read()
        return int((await response.json())["instances"])


def users_of(proxy: Proxy, *names: str) -> list[User]:
    return [User(proxy, name) for name in names]


# --- what there is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "use_cget"), [(("everywhere", "here", "there"), False), (("there", "both"), True)], ids=["move", "get"]
)
async def test_what_the_permitted_archives_hold(proxy: Proxy, names: Sequence[str]) -> None:
    """By every way, once fetched from the archives and once out of the cache, which others had warmed before."""
    for other in users_of(proxy, "everywhere", "here", "there"):
        await other.check_files(ALL[0], "study")
    await kept(proxy.http)
    for user in users_of(proxy, *names):
        await user.check_all()
        await kept(proxy.http)
        await user.check_all()


async def test_in_every_order(proxy: Proxy) -> None:
    """Whoever comes first, and whatever they leave in the cache, the next gets their own, also as a hit."""
    for order in itertools.permutations(("everywhere", "here", "there")):
        await purge(proxy)
        for user in users_of(proxy, *order):
            assert await user.check_files(ALL[0], "study") == "MISS"
        await kept(proxy.http)
        for user in users_of(proxy, *order):
            assert await user.check_files(ALL[0], "study") == "HIT"
            await user.check_some()


async def test_at_the_same_time(proxy: Proxy) -> None:
    """Each has a retrieval of its own, and every instance goes to one that may have it, whoever asks for it too."""
    for _ in range(4):
        await purge(proxy)
        users = users_of(proxy, "everywhere", "here", "there", "both", "here", "there")
        wanted = [(user, stored) for stored in ALL[2:4] for user in users]
        whole = [user.check_files(ALL[0], "study") for user in users]
        await asyncio.gather(*whole, *(user.check_files(stored, "series") for user, stored in wanted))
        await kept(proxy.http)
    async with proxy.http.get("/status") as response:
        assert (await response.json())["storesRefused"] == 0


async def test_a_user_without_archives(simple_proxy: Proxy) -> None:
    """Finds nothing, and is told nothing."""
    await User(simple_proxy, "everywhere").check_files(ALL[0], "study")
    await kept(simple_proxy.http)
    await User(simple_proxy, "none").check_all()


async def test_after_a_restart(archives: list[Address], storage: Path) -> None:
    """Each finds in the cache what was kept for them, and others do not."""
    async with started(archives[:2], storage, use_cget=True) as proxy:
        for user in users_of(proxy, "everywhere", "here"):
            await user.check_files(ALL[0], "study")
        await kept(proxy.http)
    count = check_storage(storage)
    assert count == len({stored.sample.sop_instance_uid for stored in ALL[:-1]}) + len(HELD[HERE])
    async with started(archives[:2], storage, use_cget=True) as proxy:
        users = users_of(proxy, "there", "here", "everywhere", "both")
        assert [await user.check_files(ALL[0], "study") for user in users] == ["MISS", "HIT", "HIT", "MISS"]
        await kept(proxy.http)
        for user in users:
            await user.check_some()


async def test_a_name_that_stands_for_another_archive(archives: list[Address], storage: Path) -> None:
    """What was kept of the one is not shown as what the other has."""
    here, there, _ = archives
    configured = settings(here, there, use_cget=True)["dimseProxySettings"]
    assert isinstance(configured, dict)
    for change in (0, 1):
        for peer, name in zip(configured["peers"][::-1] if change else configured["peers"], (HERE, THERE), strict=True):
            peer["name"] = name
        async with started([], storage, use_cget=True, dimseProxySettings=configured) as proxy:
            for name, held in zip(("here", "there"), (HERE, THERE)[:: -1 if change else 1], strict=True):
                answer = Answer(200, {}, b"")
                async with proxy.http.get(path_of(ALL[0].sample, "study"), headers={USER: name}) as response:
                    answer = await Answer.read(response)
                own = [stored.sample for stored in HELD[held] if stored.sample.study_uid == ALL[0].sample.study_uid]
                assert answer.headers["X-Cache"] == "MISS"
                assert len(answer.files) == len(own)
            await kept(proxy.http)


async def test_without_a_cache(archives: list[Address], storage: Path) -> None:
    """The same for retrievals alone, which nobody else can join."""
    async with started(archives[:2], storage, enableCache=False) as proxy:
        users = users_of(proxy, "here", "everywhere", "there", "here")
        assert await asyncio.gather(*(user.check_files(ALL[0], "study") for user in users)) == ["MISS"] * 4
        await asyncio.gather(*(user.check_some() for user in users))


# --- entity tags -----------------------------------------------------------------------------------------------------


async def test_entity_tags(simple_proxy: Proxy) -> None:
    """Another's tag never makes a 304 of what differs, and none at all tells of what is not there."""
    everywhere, here, there = users_of(simple_proxy, "everywhere", "here", "there")
    for path in (path_of(ALL[0].sample, "study"), path_of(ALL[0].sample, "study") + "/metadata"):
        tags = {}
        for user in (everywhere, here, there):
            await user.check_files(ALL[0], "study")
            await kept(simple_proxy.http)
            tags[user] = (await user.get(path)).headers["ETag"]
        assert len(set(tags.values())) == 3
        for user, tag in itertools.product(tags, tags.values()):
            answer = await user.get(path, **{"If-None-Match": tag})
            assert (answer.status == 304) == (tags[user] == tag)
    twice = HELD[HERE][-1].sample  # by the same UIDs, and with another content there
    for path in (path_of(twice) + "?multipart=false", path_of(twice) + "/frames/1", path_of(twice) + "/rendered"):
        tag = (await here.get(path)).headers["ETag"]
        assert (await here.get(path, **{"If-None-Match": tag})).status == 304
        assert (await there.get(path, **{"If-None-Match": tag})).status == 200
    for suffix in ("", "?multipart=false", "/metadata", "/frames/1", "/rendered", "/bulkdata/7FE00010"):
        only_there = path_of(HELD[THERE][1].sample) + suffix
        tag = (await there.get(only_there)).headers["ETag"]
        for known in (tag, "*"):
            (await here.get(only_there, **{"If-None-Match": known})).failure(404)


# --- what is removed -------------------------------------------------------------------------------------------------


async def test_purging_over_http(simple_proxy: Proxy, storage: Path) -> None:
    """Who may use all archives removes all; others what is kept for them, and hear of no more."""
    users = everywhere, here, there = users_of(simple_proxy, "everywhere", "here", "there")
    both = len({stored.sample.sop_instance_uid for stored in ALL[:-1]})
    path = f"/cache/{path_of(ALL[0].sample, 'study')}".replace("//", "/")
    for wanted in (path, "/cache"):
        for user in users:
            await user.check_files(ALL[0], "study")
        await kept(simple_proxy.http)
        assert await purge(simple_proxy, wanted, "here") == len(HELD[HERE])
        assert await purge(simple_proxy, wanted, "here") == 0
        assert await everywhere.check_files(ALL[0], "study") == "HIT"
        assert await there.check_files(ALL[0], "study") == "HIT"
        assert await here.check_files(ALL[0], "study") == "MISS"
        await kept(simple_proxy.http)
        assert await purge(simple_proxy, wanted) == both + len(HELD[HERE]) + len(HELD[THERE]) - 1
        assert not files_below(storage)
    assert check_storage(storage) == 0


@pytest.mark.parametrize("of_study", [True, False])
async def test_purging_by_the_command(simple_proxy: Proxy, storage: Path, tmp_path: Path, of_study: bool) -> None:
    """Removes what is kept for whomever, while the proxy runs."""
    users = users_of(simple_proxy, "everywhere", "here", "there")
    for user in users:
        await user.check_files(ALL[0], "study")
        await user.check_files(ALL[-1], "study")
    await kept(simple_proxy.http)
    config = write_config(tmp_path, settings(CLOSED, storagePath=str(storage)))
    options = ["--study", ALL[0].sample.study_uid] if of_study else []
    ended = await command("purge", "--config", str(config), *options, cwd=tmp_path)
    assert ended.code == 0, ended.err
    of_other_study = 2  # for those who may use the archive that has it
    assert check_storage(storage) == (of_other_study if of_study else 0)
    for user in users:
        assert await user.check_files(ALL[0], "study") == "MISS"


# --- uploads ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def _as_before(orthanc_here: Orthanc) -> Iterator[None]:
    """What a test uploads is gone after it."""
    before = orthanc_here.rest("GET", "/studies")
    yield
    for study in set(orthanc_here.rest("GET", "/studies")) - {*before}:
        orthanc_here.rest("DELETE", f"/studies/{study}")


async def upload(proxy: Proxy, name: str, *files: bytes) -> Answer:
    headers = {USER: name, "Content-Type": CONTENT_TYPE}
    async with proxy.http.post("/studies", data=multipart(files), headers=headers) as response:
        return await Answer.read(response)


@pytest.mark.usefixtures("_as_before")
async def test_uploads(archives: list[Address], storage: Path) -> None:
    """Only by those who may use the archive that they go to; what is kept of the study is gone for all."""
    first, second = pictures(1, (1, 2), DARK, UPLOADED)
    path = path_of(first.sample, "study")
    async with started(archives[:2], storage, use_cget=True, storeTo=HERE) as proxy:
        everywhere, here, there = users_of(proxy, "everywhere", "here", "there")
        refused = await upload(proxy, "there", part10(first))
        assert HERE not in refused.failure(403)
        (await everywhere.get(path)).failure(404)
        assert (await upload(proxy, "here", part10(first))).status == 200
        for user in (everywhere, here):
            assert len((await user.get(path)).files) == 1
        await kept(proxy.http)
        assert [(await user.get(path)).headers["X-Cache"] for user in (everywhere, here)] == ["HIT", "HIT"]
        assert (await upload(proxy, "everywhere", part10(second))).status == 200
        for user in (everywhere, here):
            answer = await user.get(path)
            assert (answer.headers["X-Cache"], len(answer.files)) == ("MISS", 2)
        (await there.get(path)).failure(404)


async def test_an_upload_that_is_refused_is_not_waited_for(archives: list[Address], storage: Path) -> None:
    """A client that asks before it sends is answered at once (RFC 9110 10.1.1)."""
    async with started(archives[:2], storage, use_cget=True, storeTo=HERE) as proxy:
        reader, writer = await asyncio.open_connection(HOST, int(proxy.url.rsplit(":", 1)[1]))
        head = f"POST /studies HTTP/1.1\r\nHost: x\r\n{USER}: there\r\nContent-Type: {CONTENT_TYPE}\r\n"
        writer.write(f"{head}Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n".encode())
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
        writer.close()
        await writer.wait_closed()


# --- how the proxy fares ---------------------------------------------------------------------------------------------


async def test_status(archives: list[Address], storage: Path) -> None:
    """Names the user's archives, and counts what is kept and under way for them; for who may use all, everything."""
    async with started(archives, storage, use_cget=True) as proxy:
        everywhere, here, there, nowhere = users_of(proxy, "everywhere", "here", "there", "nowhere")
        await here.check_files(ALL[0], "study")
        await there.check_files(HELD[THERE][-1], "study")
        await kept(proxy.http)
        states = [json.loads((await user.get("/status")).body) for user in (everywhere, here, there, nowhere)]
        names = [[each["name"] for each in state["archives"]] for state in states]
        assert names == [[HERE, THERE, NOWHERE], [HERE], [THERE], [NOWHERE]]
        assert [state["cache"]["instances"] for state in states] == [len(HELD[HERE]) + 1, len(HELD[HERE]), 1, 0]
        assert [state["cache"]["misses"] for state in states] == [2, 1, 1, 0]
        assert [state["status"] for state in states] == ["healthy", "healthy", "healthy", "unhealthy"]
        assert [(await user.get("/health")).status for user in (everywhere, here, nowhere)] == [200, 200, 503]
        for user in (everywhere, here, there, nowhere):
            assert (await user.get("/")).status == 200


async def test_echo(archives: list[Address], storage: Path) -> None:
    """Counts the user's archives, as `/status` does."""
    async with started(archives, storage, use_cget=True) as proxy:
        for name, aets in {"everywhere": [HERE, THERE, NOWHERE], "there": [THERE], "none": []}.items():
            for index in range(4):
                sent = {"json": {"peerIndex": index}, "headers": {USER: name}}
                async with proxy.http.post("/dimse/echo", **sent) as response:
                    assert response.status == (200 if index < len(aets) else 400)
                    if response.status == 200:
                        assert (await response.json())["peer"]["aet"] == aets[index]


async def test_an_archive_that_does_not_answer(archives: list[Address], storage: Path) -> None:
    """Is named only to those who may use it; others do not wait for it, and miss nothing."""
    async with started(archives, storage, use_cget=True) as proxy:
        everywhere, here, nowhere = users_of(proxy, "everywhere", "here", "nowhere")
        assert NOWHERE in (await everywhere.get("/studies")).headers["Warning"]
        assert "Warning" not in (await here.get("/studies")).headers
        assert NOWHERE in (await nowhere.get("/studies")).failure(502)
        assert NOWHERE in (await nowhere.get(path_of(ALL[0].sample, "study"))).failure(502)
        await here.check_all()


async def test_nobody_is_limited_where_nobody_signs_in(simple_proxy: Proxy) -> None:
    """A request without an identity is one of somebody who may use all: they share what is kept."""
    await User(simple_proxy, "everywhere").check_files(ALL[0], "study")
    await kept(simple_proxy.http)
    async with simple_proxy.http.get(path_of(ALL[0].sample, "study")) as response:
        assert (response.status, response.headers["X-Cache"]) == (200, "HIT")


def test_what_the_tests_rely_on() -> None:
    """The archives have an instance by the same UIDs that differs, and a series in two parts."""
    here, there = ({stored.sample.sop_instance_uid: stored for stored in HELD[name]} for name in (HERE, THERE))
    (twice,) = here.keys() & there.keys()
    assert here[twice].whole != there[twice].whole
    assert {here[twice].sample.transfer_syntax_uid} == {EXPLICIT_VR_LITTLE_ENDIAN}
    series = [{stored.sample.series_uid for stored in HELD[name]} for name in (HERE, THERE)]
    assert len(series[0] & series[1]) == 2
    assert picture(4, 1, BRIGHT).sample == there[twice].sample
    assert corpus.data_set_bytes(part10(here[twice])) == here[twice].whole
