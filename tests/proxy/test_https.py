"""HTTPS: what it takes and refuses, by OpenSSL's own client; what clients get; and how it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy.config.checking import parse_config
from proxy.security.http.draining import Unsent
from proxy.service import StartError, running
from tests.corpus import Corpus, ct_study, write
from tests.faultpeer import in_front_of, small_study
from tests.peers.process import HOST, free_port, require_program
from tests.proxy.chains import Files, authority, openssl, server
from tests.proxy.command import command, write_config
from tests.proxy.retrieved import RAW, digests, expected, kept, path_of, read_parts
from tests.proxy.running import settings
from tests.proxy.securing import (
    NOBODY,
    ROOT,
    Secured,
    SlowClient,
    new_certificate,
    secured,
    secured_program,
    session,
    shown_fingerprint,
    trusting,
)
from tests.proxy.test_service import SPARE, archive_of, unchunked
from tests.proxy.test_service import digests as digests_of

uvloop_loop = pytest.importorskip("uvloop").new_event_loop
LOOPS = pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Secured]:
    """A proxy with HTTPS, and plain HTTP beside it."""
    async with secured(tmp_path, tls={"redirectHttp": False}) as proxy:
        yield proxy


async def s_client(port: int, *options: str) -> str:
    """What OpenSSL's client says of a handshake, without the rules of this system about what is too weak."""
    weak = () if "-ciphersuites" in options or "-cipher" in options else ("-cipher", "ALL:@SECLEVEL=0")
    line = ("s_client", "-connect", f"{HOST}:{port}", *weak, *options)
    done = await asyncio.to_thread(openssl, *line, given=b"Q\n")
    return (done.stdout + done.stderr).decode(errors="replace")


def agreed(said: str) -> tuple[str, str]:
    """The version and the cipher suite that were agreed upon; `("(NONE)", "(NONE)")` for a failed handshake."""
    match = re.search(r"^(?:New|Reused), (\S+), Cipher is (\S+)$", said, re.MULTILINE)
    assert match is not None, said
    return match[1].rstrip(","), match[2]


# --- what is taken -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "version"), [("-tls1", None), ("-tls1_1", None), ("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")]
)
async def test_versions(proxy: Secured, option: str, version: str | None) -> None:
    """TLS 1.2 and 1.3, and nothing older (RFC 9325 3.1.1)."""
    said = await s_client(proxy.https_port, option)
    assert agreed(said)[0] == (version or "(NONE)")
    if version is not None:
        assert "Compression: NONE" in said


@pytest.mark.parametrize(
    ("ciphers", "taken"),
    [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", True),
        ("ECDHE-ECDSA-AES256-GCM-SHA384", True),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", True),
        ("ECDHE-ECDSA-AES128-SHA256", False),  # CBC
        ("ECDHE-ECDSA-AES256-SHA", False),
        ("AES128-GCM-SHA256:AES256-GCM-SHA384", False),  # no forward secrecy
        ("AECDH-AES256-SHA:ADH-AES256-GCM-SHA384", False),  # no certificate
        ("eNULL", False),
        ("kDHE", False),
        ("kPSK", False),
    ],
)
async def test_cipher_suites(proxy: Secured, ciphers: str, taken: bool) -> None:
    """Of TLS 1.2, those with forward secrecy and authenticated encryption alone (RFC 9325 4.2)."""
    said = await s_client(proxy.https_port, "-tls1_2", "-cipher", f"{ciphers}:@SECLEVEL=0")
    assert agreed(said)[1] == (ciphers if taken else "(NONE)")


async def test_renegotiation_is_refused(proxy: Secured) -> None:
    """A client could make the server work for nothing."""
    line = ("s_client", "-connect", f"{HOST}:{proxy.https_port}", "-tls1_2")
    done = await asyncio.to_thread(openssl, *line, given=b"R\n")
    assert "no renegotiation" in done.stderr.decode()


async def test_application_protocols(proxy: Secured) -> None:
    """HTTP/1.1, also for browsers that would rather speak HTTP/2, and for clients that name none (RFC 7301)."""
    assert "ALPN protocol: http/1.1" in await s_client(proxy.https_port, "-alpn", "h2,http/1.1")
    for options in (["-alpn", "h2"], []):
        said = await s_client(proxy.https_port, *options)
        assert "No ALPN negotiated" in said
        assert agreed(said)[0] == "TLSv1.3"


async def test_the_whole_chain_is_shown(proxy: Secured, tmp_path: Path) -> None:
    """A client that knows the root alone accepts it, by every name of the certificate."""
    (tmp_path / "root.pem").write_bytes(ROOT.pem())
    for name in ("localhost", "dicom.hospital.example"):
        options = ("-CAfile", str(tmp_path / "root.pem"), "-verify_hostname", name, "-verify_return_error")
        assert "Verify return code: 0 (ok)" in await s_client(proxy.https_port, *options)


async def test_sessions_are_resumed(proxy: Secured, tmp_path: Path) -> None:
    """By a ticket, which saves a viewer's many connections the work."""
    ticket = str(tmp_path / "ticket")
    await s_client(proxy.https_port, "-tls1_2", "-sess_out", ticket)
    said = await s_client(proxy.https_port, "-tls1_2", "-sess_in", ticket)
    assert re.search("^Reused, ", said, re.MULTILINE)


# --- what clients get ----------------------------------------------------------------------------------------


async def test_curl(proxy: Secured, tmp_path: Path) -> None:
    """It accepts the certificate, and the name by which it calls."""
    curl = require_program("curl", "curl")
    (tmp_path / "root.pem").write_bytes(ROOT.pem())
    line = [curl, "-sS", "--cacert", str(tmp_path / "root.pem"), "--tlsv1.2", f"{proxy.url}/ping"]
    done = await asyncio.to_thread(subprocess.run, line, capture_output=True, timeout=20, check=False)
    assert (done.stdout, done.stderr) == (b"pong", b"")


@pytest.mark.parametrize("host", [None, "dicom.hospital.example", "dicom.hospital.example:8443", "[::1]:443"])
async def test_addresses_in_answers(proxy: Secured, host: str | None) -> None:
    """Those of HTTPS, by the name that the client has called, without the port that https has anyway."""
    headers = {} if host is None else {"Host": host}
    async with session() as http, http.get(f"{proxy.url}/conformance", headers=headers) as response:
        base = re.search(r'base="(.*?)/"', await response.text())
    names = {
        None: proxy.url,
        "dicom.hospital.example": f"https://dicom.hospital.example:{proxy.https_port}",
        "[::1]:443": "https://[::1]",
    }
    assert base is not None
    assert base[1] == names.get(host, f"https://{host}")


async def test_both_ports_serve_without_redirect(proxy: Secured) -> None:
    async with session() as http:
        for url in (proxy.url, proxy.plain_url):
            async with http.get(f"{url}/ping") as response:
                assert (response.status, await response.text()) == (200, "pong")
                assert "Strict-Transport-Security" not in response.headers


async def test_strict_transport_security(tmp_path: Path) -> None:
    """On every answer over HTTPS, errors too, and on none in clear text (RFC 6797 7.2)."""
    async with secured(tmp_path, tls={"redirectHttp": False, "hstsSeconds": 86400}) as proxy, session() as http:
        for path in ("/ping", "/nothing"):
            async with http.get(proxy.url + path) as response:
                assert response.headers["Strict-Transport-Security"] == "max-age=86400"
            async with http.get(proxy.plain_url + path) as response:
                assert "Strict-Transport-Security" not in response.headers


@LOOPS
async def test_a_slow_client_gets_a_series_of_the_cache_whole(uvloop: bool, tmp_path: Path) -> None:
    """Byte for byte, on either event loop, though files cannot go from the cache into an encrypted connection by
    themselves; the one that takes its time neither holds up the other nor is cut."""
    study = small_study(1, 12, side=512)
    path = path_of(study[0].sample, "series")
    async with in_front_of(study, use_cget=True, enableCache=False) as (archive, _):
        options: dict[str, Any] = {"enableCache": True, "storagePath": str(tmp_path / "storage")}
        async with (
            secured_program(tmp_path, archive.address, uvloop=uvloop, tls={"redirectHttp": False}, **options) as proxy,
            session() as http,
        ):
            async with http.get(proxy.url + path) as response:
                cold = await response.read()
                assert response.headers["X-Cache"] == "MISS"
            async with aiohttp.ClientSession(proxy.plain_url) as plain:
                await kept(plain)
                async with plain.get(path) as response:
                    assert response.headers["X-Cache"] == "HIT"
                    by_http = read_parts(await response.read(), response.headers["Content-Type"])
            with await SlowClient.connected(proxy.https_port) as slow:
                await slow.ask(path, "Connection: close")
                answer = await slow.read(1000)
                async with http.get(proxy.url + path) as response:
                    assert response.headers["X-Cache"] == "HIT"
                    fast = read_parts(await response.read(), response.headers["Content-Type"])
                answer += await slow.read()
            head, _, body = answer.partition(b"\r\n\r\n")
            kind = re.search(rb"Content-Type: (.*)\r\n", head)
            assert kind is not None
            parts = read_parts(body, kind[1].decode())
            wanted = [part.content for part in by_http]
            assert [part.content for part in fast] == [part.content for part in parts] == wanted
            assert digests(wanted) == expected(stored.sample for stored in study)
            assert len(cold) > 6_000_000
            async with http.get(proxy.url + path_of(study[0].sample) + RAW) as response:
                assert digests([await response.read()]) == expected([study[0].sample])
        assert "Traceback" not in proxy.log()


async def test_addresses_of_instances(tmp_path: Path) -> None:
    """`Content-Location` of what is retrieved leads to HTTPS."""
    study = small_study(1, 1)
    async with (
        in_front_of(study, use_cget=True, enableCache=False) as (archive, _),
        secured(tmp_path, archive.address) as proxy,
        session() as http,
    ):
        async with http.get(proxy.url + path_of(study[0].sample, "series")) as response:
            (part,) = read_parts(await response.read(), response.headers["Content-Type"])
        assert part.location == proxy.url + path_of(study[0].sample)


async def test_a_client_certificate_reaches_those_who_ask(tmp_path: Path) -> None:
    """None is needed to connect; one of the configured authority signs in, one of another ends the handshake."""
    (tmp_path / "ca.pem").write_bytes(ROOT.pem())
    own, foreign = Files(tmp_path / "own"), Files(tmp_path / "foreign")
    for files, issuer in ((own, ROOT), (foreign, authority("Other"))):
        files.folder.mkdir()
        signed = server(issuer, usage=None, name="dr-house")
        files.write(signed.pem(), signed.key_pem())
    auth = {"enabled": True, "certificates": [{"name": "dr-house"}]}
    async with secured(tmp_path, tls={"clientCaFile": str(tmp_path / "ca.pem")}, auth=auth) as proxy:
        house = trusting(certificate=own.certificate.path, key=own.key.path)
        for context, status in ((trusting(), 401), (house, 200)):
            async with session(context) as http, http.get(f"{proxy.url}/status") as response:
                assert response.status == status
        async with session(trusting(certificate=foreign.certificate.path, key=foreign.key.path)) as http:
            with pytest.raises(aiohttp.ClientError):
                await http.get(f"{proxy.url}/status")


# --- what is no TLS ------------------------------------------------------------------------------------------


async def closed(port: int, sent: bytes, within: float) -> bytes:
    """Send something; returns what came back until the end, which must come in time."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(sent)
    try:
        async with asyncio.timeout(within):
            with contextlib.suppress(ConnectionResetError):
                return await reader.read()
            return b""
    finally:
        writer.close()


@LOOPS
async def test_the_wrong_port(uvloop: bool, tmp_path: Path) -> None:
    """Plain HTTP, DICOM and noise on the port of HTTPS, TLS on that of HTTP: closed at once; one line each, no more."""
    plain = f"GET /ping HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    hello = trusting()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.wrap_bio(incoming, outgoing, server_hostname=HOST).do_handshake()
    async with secured_program(tmp_path, uvloop=uvloop) as proxy:
        assert b"pong" not in await closed(proxy.https_port, plain, 5)
        assert await closed(proxy.https_port, b"\x01\x00\x00\x00\x00\x80" + bytes(128), 5) is not None
        assert b"pong" not in await closed(proxy.http_port, outgoing.read(), 5)
        for _ in range(3):  # a health check that only connects
            with socket.create_connection((HOST, proxy.https_port), timeout=2):
                pass
        assert "what it sends is HTTP" in proxy.log()
        async with session() as http, http.get(f"{proxy.url}/ping") as response:
            assert response.status == 200
    log = proxy.log()
    assert log.count("no TLS connection") == 1  # those that follow at once are counted
    assert log.count("malformed request") == 1
    assert "Traceback" not in log
    assert "exception" not in log.lower()


async def test_old_tls_is_named_in_the_log(proxy: Secured, caplog: pytest.LogCaptureFixture) -> None:
    """An administrator finds out why an old device cannot connect."""
    await s_client(proxy.https_port, "-tls1_1")
    assert f"{HOST}: no TLS connection: it offers no version of TLS that is taken here" in caplog.text


async def test_a_silent_client_is_closed(proxy: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is one that stops in the middle of its handshake."""
    monkeypatch.setattr("proxy.security.http.listening.HANDSHAKE_SECONDS", 0.3)
    for sent in (b"", b"\x16\x03\x01\x02\x00\x01"):
        started = time.monotonic()
        await closed(proxy.https_port, sent, 5)
        assert 0.2 < time.monotonic() - started < 3


def test_how_long_a_handshake_may_take() -> None:
    """The test above shortens it."""
    from proxy.security.http.listening import HANDSHAKE_SECONDS

    assert HANDSHAKE_SECONDS <= 10


# --- how it starts and ends ----------------------------------------------------------------------------------


async def test_what_it_says_at_the_start(tmp_path: Path) -> None:
    async with secured_program(tmp_path, publicUrl="https://dicom.hospital.example") as proxy:
        log = proxy.log()
    assert f"HTTP: listens on {HOST} port {proxy.http_port}, and sends clients to HTTPS" in log
    assert f"HTTPS: listens on {HOST} port {proxy.https_port}, as https://dicom.hospital.example/" in log
    assert re.search(r"HTTPS: the certificate of \S+/server\.crt is for localhost, dicom\.hospital\.example, 127", log)
    assert "WARNING proxy.security" not in log


async def test_a_self_signed_certificate_over_restarts(tmp_path: Path) -> None:
    """Made at the first start, and shown by all that follow."""
    fingerprints = []
    files = Files(tmp_path / "certs")
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with secured_program(folder, files=files, tls={"generateSelfSigned": True}) as proxy:
            fingerprints.append(await asyncio.to_thread(shown_fingerprint, proxy.https_port))
            context = ssl.create_default_context(cafile=str(proxy.files.certificate.path))
            async with session(context) as http, http.get(f"https://localhost:{proxy.https_port}/ping") as response:
                assert response.status == 200
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0] in proxy.log()
    assert "made a self-signed certificate, since there was none" in (tmp_path / "0/proxy.log").read_text()
    assert "made" not in proxy.log()


async def test_a_start_without_certificate(tmp_path: Path) -> None:
    """Exit code 2, before anything listens; with every file that is wrong, its key, and the reason."""
    tls = {"enabled": True, "port": free_port(), "certPath": "/nowhere/a.crt", "keyPath": "/nowhere/a.key"}
    path = write_config(tmp_path, settings(NOBODY, use_cget=True, ssl=tls))
    ended = await command("run", "--config", str(path), cwd=tmp_path)
    assert ended.code == 2
    assert ended.err.splitlines() == [
        "/nowhere/a.crt (key: ssl.certPath) cannot be read: No such file or directory",
        "/nowhere/a.key (key: ssl.keyPath) cannot be read: No such file or directory",
    ]


async def test_the_port_of_https_in_use(tmp_path: Path) -> None:
    files = new_certificate(tmp_path)
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        config = parse_config(settings(NOBODY, use_cget=True, ssl=files.settings(port)))
        with pytest.raises(StartError) as caught:
            async with running(config):
                pass
    reason = "another program uses that port"
    assert str(caught.value) == f"cannot listen on {HOST} port {port} (keys: ssl.port, webserverHost): {reason}"


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A CT study of 13 MB: more than all buffers between an archive and a client hold."""
    return write(tmp_path_factory.mktemp("ct"), ct_study(series=1, instances=24))


@LOOPS
async def test_a_retrieval_over_tls_finishes_after_sigterm(ct: Corpus, tmp_path: Path, uvloop: bool) -> None:
    """Every byte of it goes out first; idle connections are closed at once."""
    async with (
        archive_of(ct) as archive,
        secured_program(tmp_path, archive, uvloop=uvloop, shutdownSeconds=20) as proxy,
    ):
        assert proxy.process is not None
        with await SlowClient.connected(proxy.https_port) as slow, await SlowClient.connected(proxy.https_port) as idle:
            await idle.ask("/ping")
            assert (await idle.read(1)).endswith(b"pong")
            await slow.ask(f"/studies/{ct.study_uids[0]}")
            answer = await slow.read(1_000_000)
            proxy.process.process.signal(signal.SIGTERM)
            assert await asyncio.wait_for(idle.read(), 2) == b""
            answer += await slow.read(sum(sample.size for sample in ct.samples) - 4_000_000)
            while piece := await slow.read(256 * 1024):
                answer += piece
                await asyncio.sleep(0.01)
        assert sorted(digests_of(unchunked(answer))) == sorted(sample.sha256 for sample in ct.samples)
        assert await asyncio.to_thread(proxy.process.process.wait, SPARE) == 0
    assert "are cut" not in proxy.log()
    assert "Traceback" not in proxy.log()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop_loop], ids=["asyncio", "uvloop"])
def test_what_waits_behind_the_encryption_goes_out(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """At the end of the proxy, a client that is slower than every buffer gets all of an answer that is written."""
    signed = server(ROOT)
    size = 1_500_000

    async def serve_and_end(folder: Path) -> bytes:
        files = Files(folder)
        files.write(signed.pem(), signed.key_pem())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate.path, files.key.path)
        connected = asyncio.get_running_loop().create_future()

        class Answering(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                connected.set_result(transport)

        with socket.create_server((HOST, 0)) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)  # what is accepted has it too
            accepting = await asyncio.get_running_loop().create_server(Answering, sock=listening, ssl=context)
            client = await SlowClient.connected(listening.getsockname()[1])
            transport = await connected
            transport.write(bytes(size))
            transport.close()
            unsent = Unsent([transport])
            reading = asyncio.create_task(_read_slowly(client))
            async with asyncio.timeout(20):
                while not unsent.is_empty():
                    await asyncio.sleep(0.02)
            unsent.end()
            accepting.close()
        with client:
            return await reading

    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=loop) as runner:
        assert len(runner.run(serve_and_end(Path(folder)))) == size


async def _read_slowly(client: SlowClient) -> bytes:
    answer = b""
    while len(answer) < 1_500_000 and (piece := await client.read(16 * 1024)):
        answer += piece
        await asyncio.sleep(0.002)
    return answer


@LOOPS
async def test_idle_connections_do_not_hold_up_the_end(tmp_path: Path, uvloop: bool) -> None:
    """Nor does a client that answers nothing to the end of TLS, or one that is within its handshake."""
    async with secured_program(tmp_path, uvloop=uvloop, shutdownSeconds=20) as proxy:
        assert proxy.process is not None
        with await SlowClient.connected(proxy.https_port) as idle, socket.create_connection((HOST, proxy.https_port)):
            await idle.ask("/ping")
            await idle.read(1)
            await proxy.process.end(signal.SIGTERM, within=1.5)
    assert "Traceback" not in proxy.log()


@LOOPS
async def test_a_tls_client_that_never_reads_is_cut(ct: Corpus, tmp_path: Path, uvloop: bool) -> None:
    """When `shutdownSeconds` are over; it must not take what it has got for all."""
    async with (
        archive_of(ct) as archive,
        secured_program(tmp_path, archive, uvloop=uvloop, shutdownSeconds=0.5) as proxy,
    ):
        assert proxy.process is not None
        with await SlowClient.connected(proxy.https_port) as client:
            await client.ask(f"/studies/{ct.study_uids[0]}", version="1.0")
            await client.read(1)
            await proxy.process.end(signal.SIGTERM, within=0.5 + SPARE)
            with pytest.raises((ConnectionResetError, ssl.SSLError)):
                await client.read()
    assert "Traceback" not in proxy.log()


async def test_nothing_is_left_when_it_has_stopped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No task and no file: not of connections, handshakes, or what watches the certificate."""
    caplog.set_level(logging.ERROR)
    before = len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))
    async with secured(tmp_path) as proxy:
        with await SlowClient.connected(proxy.https_port) as idle, socket.create_connection((HOST, proxy.https_port)):
            await idle.ask("/ping")
            await idle.read(1)
            await asyncio.sleep(0.05)
    for _ in range(100):
        if (len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))) == before:
            break
        await asyncio.sleep(0.02)
    assert (len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))) == before
    assert not caplog.records
