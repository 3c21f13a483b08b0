"""SIGHUP: another certificate for connections that come, none cut that is there; and a wrong one is not taken."""

from __future__ import annotations

import asyncio
import signal
import ssl
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509

from proxy.reloading import Reloads
from proxy.security.tls import https
from proxy.security.tls.certificates import CertificateError, fingerprint, names_of, read_chain
from proxy.security.tls.https import CertificateKeeper, HttpsFiles
from tests.peers.process import wait_until
from tests.proxy.chains import DAY, NAMES, NOW, Files, server
from tests.proxy.command import program, write_config
from tests.proxy.running import settings
from tests.proxy.securing import (
    BETWEEN,
    NOBODY,
    Secured,
    SlowClient,
    new_certificate,
    secured_program,
    shown_fingerprint,
    trusting,
)

LOOPS = pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])


async def reload(proxy: Secured, expected: str) -> None:
    """Send SIGHUP, and wait until the log says that once more."""
    assert proxy.process is not None
    before = proxy.log().count(expected)
    proxy.process.process.signal(signal.SIGHUP)
    assert await asyncio.to_thread(wait_until, lambda: proxy.log().count(expected) > before, 10), proxy.log()


def fingerprint_of(files: Files) -> str:
    """The SHA-256 of the certificate in the files."""
    return fingerprint(read_chain(files.certificate)[0])


# --- the program ---------------------------------------------------------------------------------------------


@LOOPS
async def test_ten_certificates_under_load(tmp_path: Path, uvloop: bool) -> None:
    """No request fails, neither on connections that were there nor on new ones; each certificate is shown in turn."""
    async with secured_program(tmp_path, uvloop=uvloop) as proxy:
        stop = asyncio.Event()
        counts = {"kept": 0, "new": 0}

        async def ask(kind: str) -> None:
            connector = aiohttp.TCPConnector(ssl=trusting(), force_close=kind == "new")
            async with aiohttp.ClientSession(connector=connector) as http:
                while not stop.is_set():
                    async with http.get(f"{proxy.url}/ping") as response:
                        assert (response.status, await response.text()) == (200, "pong")
                    counts[kind] += 1
                    await asyncio.sleep(0.002)

        asking = [asyncio.create_task(ask(kind)) for kind in ("kept", "kept", "kept", "new", "new")]
        shown = {await asyncio.to_thread(shown_fingerprint, proxy.https_port)}
        for _ in range(10):
            new_certificate(tmp_path)
            wanted = fingerprint_of(proxy.files)
            await reload(proxy, wanted)
            shown.add(await asyncio.to_thread(shown_fingerprint, proxy.https_port))
            assert wanted in shown
        stop.set()
        await asyncio.gather(*asking)
        assert len(shown) == 11
        assert min(counts.values()) > 20
        await asyncio.sleep(0.1)  # aiohttp ends its TLS connections some turns of the loop later
    assert "ERROR" not in proxy.log()
    assert "Traceback" not in proxy.log()


async def test_a_connection_that_is_there_keeps_its_certificate(tmp_path: Path) -> None:
    """And goes on."""
    async with secured_program(tmp_path) as proxy:
        before = fingerprint_of(proxy.files)
        with await SlowClient.connected(proxy.https_port) as client:
            for _ in range(2):
                await client.ask("/ping")
                assert b"pong" in await client.read(1)
                shown = client.socket.getpeercert(binary_form=True)
                assert shown is not None
                assert fingerprint(x509.load_der_x509_certificate(shown)) == before
                new_certificate(tmp_path)
                await reload(proxy, fingerprint_of(proxy.files))


async def test_what_is_wrong_is_not_taken(tmp_path: Path) -> None:
    """The old certificate stays, and the log says why; a certificate that comes later is taken."""
    async with secured_program(tmp_path) as proxy:
        before = await asyncio.to_thread(shown_fingerprint, proxy.https_port)
        right, other = server(BETWEEN), server(BETWEEN)
        expired = server(BETWEEN, end=NOW - 0.5 * DAY)
        for certificate, key, reason in (
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", right.key_pem(), "is damaged"),
            (right.pem(), other.key_pem(), "is not the key of the certificate"),
            (right.pem(), right.key_pem(b"secret"), "is encrypted"),
            (expired.pem() + BETWEEN.pem(), expired.key_pem(), "has expired"),
        ):
            proxy.files.write(certificate, key)
            await reload(proxy, "the certificate stays as it was, since")
            last = proxy.log().splitlines()[-1]
            assert " ERROR " in last
            assert reason in last
            assert await asyncio.to_thread(shown_fingerprint, proxy.https_port) == before
        new_certificate(tmp_path)
        await reload(proxy, fingerprint_of(proxy.files))
        assert await asyncio.to_thread(shown_fingerprint, proxy.https_port) == fingerprint_of(proxy.files) != before
    assert "Traceback" not in proxy.log()


async def test_without_https_there_is_nothing_to_read_anew(tmp_path: Path) -> None:
    """And the signal does not end the program, which it does by default."""
    path = write_config(tmp_path, settings(NOBODY, use_cget=True))
    async with program("run", "--config", str(path), folder=tmp_path) as proxy:
        for count in (1, 2):
            proxy.process.signal(signal.SIGHUP)
            said = "SIGHUP: there is nothing to read anew"
            assert await asyncio.to_thread(wait_until, lambda: proxy.log().count(said) == count, 5)  # noqa: B023
        await proxy.end(signal.SIGTERM, signal.SIGHUP, within=3)


# --- renewal -------------------------------------------------------------------------------------------------


class Calendar:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        """Tell the time."""
        return self.now


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


def keeper_of(
    files: Files, calendar: Calendar, *, generate: bool = True, names: tuple[str, ...] = NAMES
) -> tuple[CertificateKeeper, list[object]]:
    """A keeper, and the contexts that it has given out."""
    given: list[object] = []
    needed = HttpsFiles(files.certificate, files.key, None, None, names, generate)
    keeper = CertificateKeeper(needed, clock=calendar)
    keeper.use = given.append
    return keeper, given


async def test_a_self_signed_certificate_is_renewed_while_it_runs(
    tmp_path: Path, calendar: Calendar, caplog: pytest.LogCaptureFixture
) -> None:
    """Thirty days before its end, once; it can be the clock of a machine that has slept."""
    files = Files(tmp_path / "certs")
    keeper, given = keeper_of(files, calendar)
    await keeper.load()
    first = fingerprint_of(files)
    for days in (1, 100, 365):
        calendar.now = NOW + days * DAY
        await keeper.look()
    assert (given, fingerprint_of(files)) == ([], first)
    calendar.now = NOW + 368 * DAY
    await keeper.look()
    (context,) = given
    assert isinstance(context, ssl.SSLContext)
    assert fingerprint_of(files) != first
    assert "made a self-signed certificate, since it was valid until" in caplog.text
    calendar.now += DAY
    await keeper.look()
    assert len(given) == 1


async def test_the_certificate_is_watched_whatever_happens(
    tmp_path: Path, calendar: Calendar, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A look that fails in an unexpected way is not the last, and no reason to fail at the end of the proxy."""
    files = Files(tmp_path / "certs")
    keeper, given = keeper_of(files, calendar)
    await keeper.load()
    calendar.now = NOW + 370 * DAY
    monkeypatch.setattr(https, "POLL_SECONDS", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "reload", None)  # calling it is a TypeError
        watching = asyncio.create_task(keeper.watch())
        async with asyncio.timeout(5):
            while "the certificate was not looked at" not in caplog.text:
                await asyncio.sleep(0.01)
    calendar.now += DAY
    async with asyncio.timeout(5):
        while not given:
            await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.wait([watching])
    assert watching.cancelled()


async def test_a_renewal_that_fails_is_tried_again(
    tmp_path: Path, calendar: Calendar, caplog: pytest.LogCaptureFixture
) -> None:
    """The old certificate stays meanwhile, and each day the log says so."""
    files = Files(tmp_path / "certs")
    keeper, given = keeper_of(files, calendar)
    await keeper.load()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for day in (370, 371):
        caplog.clear()
        calendar.now = NOW + day * DAY
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("proxy.security.tls.self_signed.write_private", full)
            await keeper.look()
            await keeper.look()  # in the same hour: nothing
        assert caplog.text.count("cannot be made: No space left on device") == 1
        assert "the certificate expires on" in caplog.text
    calendar.now += DAY
    await keeper.look()
    assert len(given) == 1


async def test_the_end_of_other_certificates_is_spoken_of_each_day(
    tmp_path: Path, calendar: Calendar, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning in the last thirty days, then an error; nothing is made in its place."""
    files = new_certificate(tmp_path)
    before = fingerprint_of(files)
    keeper, given = keeper_of(files, calendar)
    await keeper.load()
    said = []
    for days in (269, 271, 271.5, 272, 299, 301, 302):
        caplog.clear()
        calendar.now = NOW + days * DAY
        await keeper.look()
        said.append([(record.levelname, record.message.rpartition(", in ")[2]) for record in caplog.records])
    assert [len(each) for each in said] == [0, 1, 0, 1, 1, 1, 1]
    assert [said[number][0][0] for number in (1, 3, 4, 5, 6)] == ["WARNING", "WARNING", "WARNING", "ERROR", "ERROR"]
    assert [said[number][0][1] for number in (1, 3, 4)] == ["29 days", "28 days", "1 day"]
    assert (given, fingerprint_of(files)) == ([], before)


async def test_names_that_are_new_are_taken_up_when_asked(tmp_path: Path, calendar: Calendar) -> None:
    files = Files(tmp_path / "certs")
    keeper, _ = keeper_of(files, calendar)
    await keeper.load()
    keeper, given = keeper_of(files, calendar, names=(*NAMES, "new.example"))
    await keeper.reload()
    assert len(given) == 1
    assert "new.example" in names_of(read_chain(files.certificate)[0])


async def test_a_start_with_what_clients_refuse(
    tmp_path: Path, calendar: Calendar, caplog: pytest.LogCaptureFixture
) -> None:
    """An expired certificate is an error in the log, and no reason to serve nobody; a broken one is."""
    files = new_certificate(tmp_path)
    calendar.now = NOW + 301 * DAY
    keeper, _ = keeper_of(files, calendar, generate=False)
    assert isinstance(await keeper.load(), ssl.SSLContext)
    assert [record.levelname for record in caplog.records if "has expired" in record.message] == ["ERROR"]
    files.key.path.write_bytes(b"")
    with pytest.raises(CertificateError, match="is empty"):
        await keeper.load()


# --- what is read anew ---------------------------------------------------------------------------------------


@pytest.fixture
async def reloads() -> AsyncIterator[Reloads]:
    """What reads anew when asked, as long as the test."""
    reloads = Reloads()
    running = asyncio.create_task(reloads.run())
    yield reloads
    running.cancel()
    await asyncio.wait([running])


async def test_one_that_fails_keeps_no_other_from_being_read(
    reloads: Reloads, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is asked for while something is read is read once more, behind it."""
    read: list[str] = []

    async def failing() -> None:
        read.append("failing")
        raise RuntimeError("wrong")

    reloads.add(failing)
    reloads.add(lambda: read.append("second"))
    started = time.monotonic()
    for _ in range(3):
        reloads.ask()
    while read.count("second") < 1 and time.monotonic() - started < 2:
        await asyncio.sleep(0)
    reloads.ask()
    while read.count("second") < 2 and time.monotonic() - started < 2:
        await asyncio.sleep(0)
    assert read == ["failing", "second"] * 2
    assert "what was to be read anew stays as it was" in caplog.text
