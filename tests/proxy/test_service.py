"""The running proxy: how it starts, what it says, and above all how it stops, as a process and in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from proxy.config.checking import parse_config
from proxy.demo.archive import DemoArchive
from proxy.service import StartError, running
from tests.corpus import Corpus, ct_study, data_set_bytes, write
from tests.peers.orthanc import Orthanc
from tests.peers.process import HOST, Address, free_port, wait_until
from tests.proxy.command import Program, command, environment, get, program, write_config
from tests.proxy.finding import scripted
from tests.proxy.running import PROXY_AET, proxy_for, settings

SPARE = 2.0
"""Seconds that a stop may take beyond `shutdownSeconds`."""

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
LOOPS = pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A CT study of 24 MB: more than all buffers between an archive and a client hold."""
    return write(tmp_path_factory.mktemp("ct"), ct_study(series=1, instances=45))


@contextlib.asynccontextmanager
async def archive_of(corpus: Corpus, port: int = 0, *, proxy_port: int = 0) -> AsyncIterator[Address]:
    """An archive; `proxy_port` is where it sends to, unless it is asked with C-GET."""
    async with DemoArchive(corpus.folder, port=port, destinations={PROXY_AET: (HOST, proxy_port)}) as archive:
        yield Address("DEMO", archive.port)


@contextlib.asynccontextmanager
async def started(folder: Path, *archives: Address, uvloop: bool = True, **more: object) -> AsyncIterator[Program]:
    """The proxy as a process, asking archives with C-GET unless told otherwise."""
    path = write_config(folder, settings(*archives, **{"use_cget": True, **more}))  # type: ignore[arg-type]
    async with program("run", "--config", str(path), folder=folder, uvloop=uvloop) as proxy:
        yield proxy


class Client:
    """An HTTP client that reads only when it is told to."""

    def __init__(self, port: int, *, version: str = "1.1") -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        self.socket.setblocking(False)
        self._port = port
        self._version = version

    async def ask(self, target: str) -> None:
        """Send a GET request."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.socket, (HOST, self._port))
        await loop.sock_sendall(self.socket, f"GET {target} HTTP/{self._version}\r\nHost: {HOST}\r\n\r\n".encode())

    async def read(self, most: int | None = None) -> bytes:
        """Read until the end of the stream, or about `most` bytes. Raises ConnectionResetError for a reset."""
        loop = asyncio.get_running_loop()
        pieces: list[bytes] = []
        size = 0
        while most is None or size < most:
            piece = await loop.sock_recv(self.socket, 256 * 1024)
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def is_refused(port: int) -> bool:
    """Tell whether nothing listens there."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def unchunked(answer: bytes) -> bytes:
    """Return the body of an answer with Transfer-Encoding: chunked, which must be whole."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    pieces: list[bytes] = []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert rest == b"\r\n"
            return b"".join(pieces)
        pieces.append(rest[:length])
        assert rest[length : length + 2] == b"\r\n"
        rest = rest[length + 2 :]


def digests(multipart: bytes) -> list[str]:
    """Return the SHA-256 of the data set of each part of a whole multipart body."""
    boundary = multipart[: multipart.index(b"\r\n")]
    *parts, end = multipart.split(b"\r\n" + boundary)
    assert end == b"--\r\n"
    files = [part.partition(b"\r\n\r\n")[2] for part in parts]
    return [hashlib.sha256(data_set_bytes(file)).hexdigest() for file in files]


def test_without_uvloop_it_is_really_not_there(tmp_path: Path) -> None:
    """Or the tests that go without it would prove nothing."""
    for uvloop, code in ((True, 0), (False, 1)):
        line = [sys.executable, "-c", "import uvloop"]
        env = environment(uvloop=uvloop, folder=tmp_path)
        assert subprocess.run(line, env=env, capture_output=True, check=False).returncode == code


# --- stopping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("uvloop", "use_cget"), [(True, False), (False, True)], ids=["uvloop-move", "asyncio-get"])
async def test_a_retrieval_under_way_finishes_after_sigterm(
    ct: Corpus, tmp_path: Path, *, uvloop: bool, use_cget: bool
) -> None:
    """New connections are refused at once, idle ones closed; a slow client gets every byte; the exit code is 0."""
    port = free_port()
    async with (
        archive_of(ct, proxy_port=port) as archive,
        started(tmp_path, archive, uvloop=uvloop, use_cget=use_cget, dimse_port=port, shutdownSeconds=20) as proxy,
    ):
        with Client(proxy.port) as slow, Client(proxy.port) as idle:
            await idle.ask("/ping")
            assert (await idle.read(1)).endswith(b"pong")
            await slow.ask(f"/studies/{ct.study_uids[0]}")
            answer = await slow.read(1_000_000)
            proxy.process.signal(signal.SIGTERM)
            # asyncio drops what it accepts at this very moment without a word to the socket.
            assert await asyncio.to_thread(wait_until, lambda: "stopping" in proxy.log(), 1)
            assert await asyncio.to_thread(wait_until, lambda: is_refused(proxy.port), 1)
            assert await asyncio.wait_for(idle.read(), 1) == b""
            assert proxy.process.alive
            answer += await slow.read(sum(sample.size for sample in ct.samples) - 8_000_000)
            while piece := await slow.read(1):  # so slowly that the end waits in the proxy's own buffer
                answer += piece
                await asyncio.sleep(0.01)
        assert sorted(digests(unchunked(answer))) == sorted(sample.sha256 for sample in ct.samples)
        assert await asyncio.to_thread(proxy.process.wait, SPARE) == 0
    assert "stopped" in proxy.log()
    assert "Traceback" not in proxy.log()
    assert "Warning" not in proxy.log()


@LOOPS
@SIGNALS
async def test_a_client_that_never_reads_does_not_hold_up_the_end(
    ct: Corpus, tmp_path: Path, number: signal.Signals, *, uvloop: bool
) -> None:
    """It is cut off when `shutdownSeconds` are over, by a reset; further signals change nothing."""
    async with archive_of(ct) as archive, started(tmp_path, archive, uvloop=uvloop, shutdownSeconds=0.5) as proxy:
        # HTTP/1.0 has no chunks: there, only a reset tells a cut answer from a whole one.
        with Client(proxy.port, version="1.0") as client:
            await client.ask(f"/studies/{ct.study_uids[0]}")
            answer = await client.read(1)
            await proxy.end(number, number, signal.SIGTERM, within=0.5 + SPARE)
            with pytest.raises(ConnectionResetError):
                answer += await client.read()
    assert len(answer) < sum(sample.size for sample in ct.samples)
    assert "Traceback" not in proxy.log()


async def test_an_end_without_time_to_finish(ct: Corpus, tmp_path: Path) -> None:
    """`shutdownSeconds: 0` is no time, not any time."""
    async with archive_of(ct) as archive, started(tmp_path, archive, shutdownSeconds=0) as proxy:
        with Client(proxy.port) as client:
            await client.ask(f"/studies/{ct.study_uids[0]}")
            await client.read(1)
            await proxy.end(signal.SIGTERM, within=SPARE)


async def test_an_archive_that_falls_silent_does_not_hold_up_the_end(orthanc: Orthanc, tmp_path: Path) -> None:
    """Neither a search that waits for it nor an idle association to it."""
    async with started(tmp_path, orthanc.address, shutdownSeconds=0.5) as proxy:
        searches = await asyncio.gather(*(get(f"{proxy.url}/studies") for _ in range(2)))  # leave idle associations
        assert [status for status, _ in searches] == [200, 200]
        state = json.loads((await get(f"{proxy.url}/status"))[1])
        assert state["archives"][0]["associations"] == 2
        orthanc.suspend()
        try:
            with Client(proxy.port) as client:
                await client.ask("/studies?PatientID=X")
                await proxy.end(signal.SIGTERM, within=0.5 + SPARE)
        finally:
            orthanc.resume()


async def test_an_archive_that_ignores_a_cancel_gets_an_abort(tmp_path: Path) -> None:
    """Requests that are cut at the end do not wait for its final response."""

    async def never(_: Dataset) -> AsyncGenerator[Dataset, None]:
        await asyncio.Event().wait()
        yield Dataset()

    async with scripted(never) as archive, started(tmp_path, archive.address, shutdownSeconds=0.5) as proxy:
        with Client(proxy.port) as client:
            await client.ask("/studies")
            while not archive.searches:
                await asyncio.sleep(0.01)
            await proxy.end(signal.SIGTERM, within=0.5 + SPARE)
        await asyncio.wait_for(archive.closed.wait(), 2)
    assert "Traceback" not in proxy.log()


@SIGNALS
async def test_an_idle_proxy_stops_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """A connection that is only kept alive is no reason to wait."""
    async with started(tmp_path, Address("NOBODY", free_port()), shutdownSeconds=20) as proxy:
        with Client(proxy.port) as client:
            await client.ask("/ping")
            await client.read(1)
            await proxy.end(number, within=1.5)
            assert await client.read() == b""


# --- starting ------------------------------------------------------------------------------------------------


async def test_an_archive_that_is_not_there_yet(samples: Corpus, tmp_path: Path) -> None:
    """The proxy starts and says so; requests fail with 502, and work without a restart when the archive has come."""
    port = free_port()
    async with started(tmp_path, Address("DEMO", port), peer={"name": "main archive"}) as proxy:
        assert await asyncio.to_thread(wait_until, lambda: "main archive does not answer yet" in proxy.log(), 5)
        status, body = await get(f"{proxy.url}/studies")
        assert (status, b"main archive" in body) == (502, True)
        assert (await get(f"{proxy.url}/studies/{samples.study_uids[0]}"))[0] == 502
        async with archive_of(samples, port):
            assert await asyncio.to_thread(wait_until, lambda: "main archive answers again" in proxy.log(), 5)
            assert (await get(f"{proxy.url}/studies"))[0] == 200
            assert (await get(f"{proxy.url}/studies/{samples.study_uids[0]}"))[0] == 200
        assert (await get(f"{proxy.url}/studies"))[0] == 502
    assert "Traceback" not in proxy.log()


async def test_it_says_where_it_listens_and_what_answers(samples: Corpus, tmp_path: Path) -> None:
    async with archive_of(samples) as archive, started(tmp_path, archive, use_cget=False) as proxy:
        assert re.search(rf"DIMSE: AE title {PROXY_AET} listens on {HOST} port \d+", proxy.log())
        assert f"HTTP: listens on {HOST} port {proxy.port}" in proxy.log()
        assert await asyncio.to_thread(wait_until, lambda: "DEMO answers (C-ECHO in " in proxy.log(), 5)
        assert await get(f"{proxy.url}/ping") == (200, b"pong")


@pytest.mark.parametrize("what", ["HTTP", "DIMSE"])
async def test_a_port_in_use(tmp_path: Path, what: str) -> None:
    """Exit code 3, and a message that names the host, the port, the key and the reason."""
    nobody = Address("NOBODY", free_port())
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        config = settings(nobody, webserverPort=port) if what == "HTTP" else settings(nobody, dimse_port=port)
        ended = await command("run", "--config", str(write_config(tmp_path, config)), cwd=tmp_path)
    key = "webserverPort" if what == "HTTP" else "dimseProxySettings.proxyServer"
    last = ended.err.splitlines()[-1]
    assert ended.code == 3
    assert last.startswith(f"cannot listen on {HOST} port {port} ")
    assert key in last
    assert last.endswith("another program uses that port")
    assert "Traceback" not in ended.err


async def test_an_address_that_this_machine_does_not_have() -> None:
    config = parse_config(settings(Address("NOBODY", free_port()), webserverHost="203.0.113.7"))
    with pytest.raises(StartError, match=r"203\.0\.113\.7 .*webserverHost.* no such address"):
        async with running(config):
            pass


# --- in an event loop ----------------------------------------------------------------------------------------


def left_behind() -> tuple[int, int]:
    """The tasks of this loop, and the open files of this process."""
    return len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))


async def test_nothing_is_left_when_it_has_stopped(ct: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    """Not after requests that were answered, nor after one that was cut, a client that left, or a failed start."""
    caplog.set_level(logging.ERROR)
    async with archive_of(ct) as archive:
        await asyncio.sleep(0)
        before = left_behind()
        async with proxy_for(archive, use_cget=True, shutdownSeconds=0.1) as proxy:
            async with proxy.http.get(f"/studies/{ct.study_uids[0]}/series") as response:
                assert response.status == 200
            with Client(int(proxy.url.rpartition(":")[2])) as client, Client(client._port) as leaver:
                for each in client, leaver:
                    await each.ask(f"/studies/{ct.study_uids[0]}")
                    await each.read(1)
                leaver.socket.close()
                await asyncio.sleep(0.1)
                await proxy.http.close()
        with socket.create_server((HOST, 0)) as taken:
            config = parse_config(settings(archive, webserverPort=taken.getsockname()[1]))
            with pytest.raises(StartError):
                async with running(config):
                    pass
        deadline = time.monotonic() + 2
        while left_behind() != before and time.monotonic() < deadline:
            await asyncio.sleep(0.02)  # the archive's side of the connections
        assert left_behind() == before
    assert not caplog.records


async def test_the_greeting_ends_with_the_proxy() -> None:
    """An archive that accepts the connection and says nothing."""
    with socket.create_server((HOST, 0)) as silent:
        config = parse_config(settings(Address("SILENT", silent.getsockname()[1])))
        before = asyncio.all_tasks()
        async with running(config):
            await asyncio.sleep(0.05)
            assert asyncio.all_tasks() > before
        assert asyncio.all_tasks() == before
