"""DICOM audit messages by syslog: what real receivers get, over TLS and UDP, and what happens while there is none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from proxy.config.security import Syslog
from proxy.demo.archive import DemoArchive
from proxy.security.audit import syslog
from proxy.security.audit.dicom_message import PRODUCT, Message, Reporter, messages_of
from proxy.security.audit.events import Category, Outcome
from proxy.security.audit.record import Record
from proxy.security.audit.syslog import Sender, SyslogSettingsError, syslog_message
from tests.corpus import ct_study, write
from tests.dul import certificates
from tests.dul.certificates import Certificates
from tests.peers.process import HOST, Address, Process, free_port, require_program, wait_until
from tests.peers.rsyslog import Rsyslog
from tests.proxy.retrieved import get
from tests.proxy.running import proxy_for
from tests.proxy.test_audit_messages import validate

OUTCOMES = list(Outcome)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority, and a certificate for 127.0.0.1."""
    return certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Another authority, and a certificate of that."""
    return certificates.make(tmp_path_factory.mktemp("others"))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syslog, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(syslog, "REFUSAL_SECONDS", 0.1)
    monkeypatch.setattr(syslog, "STOP_SECONDS", 0.3)


def message(number: int) -> Message:
    """The message of a retrieval; the number is in the study's UID, and decides on the outcome."""
    record = Record(
        time=1_700_000_000.5,
        event="Retrieve Study",
        category=Category.TRANSFER,
        outcome=OUTCOMES[number % 4],
        user="Jürgen <jm>",
        client="10.1.2.3",
        study=f"1.2.{number}",
    )
    (made,) = messages_of(record, Reporter("proxy", "1", "PROXY"))
    return made


def framed(number: int) -> bytes:
    return syslog_message(message(number), "proxy.example.org", 1_700_000_000.5)


def keys(tls: Certificates, port: int, **more: Any) -> Syslog:
    """Settings for a receiver that the authority vouches for, with the proxy's own certificate."""
    given = {"host": HOST, "port": port, "caFile": str(tls.authority), **more}
    if "certFile" not in given:
        given |= {"certFile": str(tls.certificate), "keyFile": str(tls.key)}
    return Syslog.model_validate(given)


@contextlib.asynccontextmanager
async def sending(settings: Syslog) -> AsyncIterator[Sender]:
    sender = Sender(settings)
    sender.start()
    try:
        yield sender
    finally:
        await sender.stop()


async def until(condition: Any, timeout: float = 5.0) -> None:
    assert await asyncio.to_thread(wait_until, condition, timeout)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


# --- real receivers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["tls", "udp"])
async def test_rsyslogd_takes_them(protocol: str, tls: Certificates, tmp_path: Path) -> None:
    """Each with the header of RFC 5424, the severity of its outcome, and the XML as it was made."""
    with Rsyslog(tmp_path, tls) as receiver:
        port = receiver.tcp_port if protocol == "tls" else receiver.udp_port
        async with sending(keys(tls, port, protocol=protocol)) as sender:
            for number in range(40):
                sender.put(framed(number))
            await until(lambda: len(receiver.received()) == 40)
        received = receiver.received()
    assert [each.message.encode() for each in received] == [message(number).xml for number in range(40)]
    assert [each.pri for each in received] == ["85", "84", "83", "82"] * 10
    assert {(each.version, each.host, each.app, each.process, each.msgid, each.data) for each in received} == {
        ("1", "proxy.example.org", PRODUCT, str(os.getpid()), "DICOM+RFC3881", "-")
    }
    assert {each.time for each in received} == {"2023-11-14T22:13:20.500Z"}


async def test_what_goes_over_tls_is_counted_in_octets(tls: Certificates, tmp_path: Path) -> None:
    """RFC 5425 4.3, as `openssl s_server` prints it, which asks for a certificate too."""
    with s_server(tmp_path, tls) as (server, port):
        async with sending(keys(tls, port)) as sender:
            sender.put(framed(0))
            sender.put(framed(1))
            await until(lambda: server.log_path.read_bytes().count(b"</AuditMessage>") == 2)
        found = server.log_path.read_bytes()
    expected = b"%d %b%d %b" % (len(framed(0)), framed(0), len(framed(1)), framed(1))
    assert expected in found
    assert b"depth=0 CN = 127.0.0.1" in found, "the proxy's own certificate was not shown"


@contextlib.contextmanager
def s_server(folder: Path, tls: Certificates, *options: str, port: int = 0) -> Any:
    """`openssl s_server`: a TLS server that prints what comes. It must be given a certificate."""
    program = require_program("openssl", "openssl")
    port = port or free_port()
    command = [program, "s_server", "-accept", str(port), "-cert", str(tls.certificate), "-key", str(tls.key)]
    command += ["-CAfile", str(tls.authority), "-Verify", "1", "-verify_return_error", *options]
    # It would take the end of its standard input for the wish to end.
    with Process("s_server", ["sh", "-c", 'tail -f /dev/null | "$@"', "sh", *command], folder) as server:
        server.start(lambda: "ACCEPT" in server.log())
        yield server, port


async def test_what_goes_over_udp_is_a_datagram_each(tls: Certificates, tmp_path: Path) -> None:
    """RFC 5426 3.1, as `nc` prints it: nothing before, nothing behind."""
    program = require_program("nc", "netcat-openbsd")
    port = free_port()
    with Process("nc", [program, "-u", "-l", HOST, str(port)], tmp_path) as receiver:
        receiver.start(lambda: f":{port:04X} " in Path("/proc/net/udp").read_text())
        async with sending(keys(tls, port, protocol="udp")) as sender:
            sender.put(framed(0))
            await until(lambda: receiver.log_path.read_bytes() == framed(0))


async def test_a_running_proxy_reports_its_accesses(tls: Certificates, tmp_path: Path) -> None:
    """From its start to its stop; each message is one that the schema takes."""
    corpus = write(tmp_path / "ct", ct_study(series=1, instances=1))
    study = corpus.samples[0].study_uid
    with Rsyslog(tmp_path, tls) as receiver:
        keys = {"host": HOST, "port": receiver.tcp_port, "caFile": str(tls.authority)}
        keys |= {"certFile": str(tls.certificate), "keyFile": str(tls.key)}
        async with DemoArchive(corpus.folder) as archive:
            address = Address("DEMO", archive.port)
            async with proxy_for(address, use_cget=True, audit={"syslog": keys, "sourceId": "here"}) as proxy:
                for path in ("/studies?PatientID=x", f"/studies/{study}", f"/studies/{study}/metadata", "/ping"):
                    await get(proxy, path)
        await until(lambda: len(receiver.received()) == 5)
        messages = [each.message.encode() for each in receiver.received()]
    validate(tmp_path, *messages)
    roots = [ElementTree.fromstring(each) for each in messages]
    events = [root.find("EventIdentification/EventID") for root in roots]
    assert [event.attrib["originalText"] for event in events if event is not None] == [
        "Application Activity",
        "Query",
        "DICOM Instances Transferred",
        "DICOM Instances Accessed",
        "Application Activity",
    ]
    sources = [root.find("AuditSourceIdentification") for root in roots]
    assert {source.attrib["AuditSourceID"] for source in sources if source is not None} == {"here"}


# --- certificates --------------------------------------------------------------------------------------------


async def test_nothing_is_sent_to_a_receiver_that_nobody_vouches_for(
    tls: Certificates, others: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with s_server(tmp_path, others) as (server, port):
        async with sending(keys(tls, port)) as sender:
            sender.put(framed(0))
            await until(lambda: errors(caplog))
            await asyncio.sleep(0.2)
        assert b"AuditMessage" not in server.log_path.read_bytes()
    first, *_ = errors(caplog)
    assert "certificate verify failed" in first
    assert sum("certificate verify failed" in each for each in errors(caplog)) == 1, "said once, not at each try"


async def test_the_name_in_the_certificate_is_checked_unless_told_otherwise(
    tls: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The certificate is for 127.0.0.1, and the receiver is called localhost."""
    with s_server(tmp_path, tls) as (server, port):
        async with sending(keys(tls, port, host="localhost")) as sender:
            sender.put(framed(0))
            await until(lambda: errors(caplog))
        assert b"AuditMessage" not in server.log_path.read_bytes()
        assert "Hostname mismatch" in errors(caplog)[0]
        async with sending(keys(tls, port, host="localhost", checkHostname=False)) as sender:
            sender.put(framed(0))
            await until(lambda: b"</AuditMessage>" in server.log_path.read_bytes())


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_a_receiver_that_wants_another_certificate_is_not_taken_for_one_that_listens(
    version: str, tls: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With TLS 1.3 the proxy's handshake is over before the receiver says no."""
    with s_server(tmp_path, tls, version) as (_, port):
        async with sending(keys(tls, port, certFile=None)) as sender:
            sender.put(framed(0))
            await until(lambda: errors(caplog))
            assert len(sender._waiting) == 1, "the message was lost"
    assert re.search("certificate.required|handshake.failure|closes the connection", errors(caplog)[0], re.IGNORECASE)


def test_files_that_cannot_be_used_are_named_by_their_key(tls: Certificates, others: Certificates) -> None:
    for key, more in (
        ("caFile", {"caFile": "/nonexistent"}),
        ("certFile, keyFile", {"certFile": "/nonexistent", "keyFile": str(tls.key)}),
        ("certFile, keyFile", {"certFile": str(tls.certificate), "keyFile": str(others.key)}),
    ):
        with pytest.raises(SyslogSettingsError, match=rf"^audit\.syslog\.{key}: cannot be used: "):
            Sender(keys(tls, 6514, **more))


# --- while there is no receiver ------------------------------------------------------------------------------


async def test_messages_wait_for_a_receiver_that_comes_later(
    tls: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    async with sending(keys(tls, port)) as sender:
        for number in range(10):
            sender.put(framed(number))
        await until(lambda: errors(caplog))
        with Rsyslog(tmp_path, tls, tcp_port=port) as receiver:
            await until(lambda: len(receiver.received()) == 10)
            assert [each.message.encode() for each in receiver.received()] == [message(n).xml for n in range(10)]
    said = [record.getMessage() for record in caplog.records if record.name == syslog.logger.name]
    assert said[0].startswith(f"audit messages do not reach {HOST} port {port}: ")
    assert "Connect call failed" in said[0] or "Connection refused" in said[0]
    assert said[1:] == [f"audit messages reach {HOST} port {port} again"]


async def test_a_receiver_that_was_restarted_gets_what_comes_then(
    tls: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that ends a connection in good order is no failure, and not said to be one."""
    port = free_port()
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    async with sending(keys(tls, port)) as sender:
        with Rsyslog(tmp_path / "first", tls, tcp_port=port) as receiver:
            sender.put(framed(0))
            await until(lambda: len(receiver.received()) == 1)
        with Rsyslog(tmp_path / "second", tls, tcp_port=port) as receiver:
            await asyncio.sleep(0.05)  # the end of the first connection has to come in
            sender.put(framed(1))
            await until(lambda: len(receiver.received()) == 1)
            assert receiver.received()[0].message.encode() == message(1).xml


async def test_a_receiver_that_takes_nothing_holds_up_nobody(
    tls: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is given up after a while. What is more than may wait is lost, and counted."""
    monkeypatch.setattr(syslog, "SEND_SECONDS", 0.3)
    monkeypatch.setattr(syslog, "MAX_WAITING", 500)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        with contextlib.closing(writer):
            await asyncio.sleep(3)

    server = await asyncio.start_server(hold, HOST, 0, ssl=tls.server())
    async with server, sending(keys(tls, server.sockets[0].getsockname()[1])) as sender:
        longest = 0.0
        large = framed(0) + b" " * 30_000
        for _ in range(2000):
            before = time.perf_counter()
            sender.put(large)
            longest = max(longest, time.perf_counter() - before)
            await asyncio.sleep(0)
        await until(lambda: any("no answer within 0.3 s" in each for each in errors(caplog)))
    assert longest < 0.1
    assert any("are lost: 500 wait already" in each for each in errors(caplog))
    assert any(re.search(r"\d+ audit messages for .* were not sent", each) for each in errors(caplog))


async def test_over_udp_it_is_known_at_most_that_nobody_listens(
    tls: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; and it goes on when somebody does."""
    port = free_port()
    async with sending(keys(tls, port, protocol="udp")) as sender:
        for number in range(20):
            sender.put(framed(number))
            await asyncio.sleep(0.01)
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("an audit message was lost: ")
        assert "Connection refused" in said
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind((HOST, port))
            receiver.settimeout(5)
            for number in (20, 21):
                sender.put(framed(number))
                await asyncio.sleep(0.02)
            assert await asyncio.to_thread(receiver.recv, 65536) in (framed(20), framed(21))


def test_a_host_name_that_no_header_can_hold() -> None:
    assert syslog_message(message(0), "ä b\n", 0.0).split(b" ")[2] == b"b"
    assert syslog_message(message(0), "ä", 0.0).split(b" ")[2] == b"-"
