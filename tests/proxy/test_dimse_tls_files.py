"""The files of DICOM TLS: what is said of those that cannot be used, and how new ones take the place of old ones."""

from __future__ import annotations

import contextlib
import logging
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import dul
from proxy.archive.archives import Archives
from proxy.archive.errors import ArchiveFailedError
from proxy.archive.peers.tls import TlsSettingsError, check_tls, load_tls, server_context
from proxy.cli import main
from proxy.config.checking import parse_config
from proxy.config.schema import Config, DimseSettings, ServerTls
from tests.dul import certificates, wire
from tests.dul.archive import Archive as Scp
from tests.dul.archive import serving
from tests.dul.certificates import Certificates
from tests.peers.process import HOST, Address, free_port
from tests.proxy.command import write_config
from tests.proxy.running import PROXY_AET, settings

KEY = "dimseProxySettings.proxyServer.tls"


@pytest.fixture
def tls(tmp_path: Path) -> Certificates:
    """Files that a test may replace."""
    return made(tmp_path / "tls")


def made(folder: Path, days: tuple[float, float] = certificates.VALID) -> Certificates:
    """Make an authority and a certificate in a new folder."""
    folder.mkdir()
    return certificates.make(folder, days=days)


def raw_settings(own: Certificates, *archives: Address, **server: object) -> dict[str, Any]:
    """Return a configuration with a TLS port and archives with `tls`; `server` are keys of `proxyServer.tls`."""
    files = {"caFile": str(own.authority), "certFile": str(own.certificate), "keyFile": str(own.key)}
    raw: dict[str, Any] = settings(*(archives or (Address("ARCHIVE", 104),)), peer={"tls": files})
    raw["dimseProxySettings"]["proxyServer"]["tls"] = {"port": 0, **files, **server}
    return raw


def dimse_of(raw: dict[str, Any]) -> DimseSettings:
    """Check it as the proxy does."""
    dimse = parse_config(raw).dimse
    assert dimse is not None
    return dimse


# --- files that cannot be used -------------------------------------------------------------------------------


WRONG: dict[str, tuple[str, Callable[[Path, Certificates], Path], str]] = {
    "missing certificate": ("certFile", lambda folder, tls: folder / "none.pem", "cannot be read: No such file"),
    "a folder for a key": ("keyFile", lambda folder, tls: folder, "cannot be read: Is a directory"),
    "empty authority": ("caFile", lambda folder, tls: written(folder, b""), "is empty"),
    "a key for a certificate": ("certFile", lambda folder, tls: tls.key, "holds a private key in the place of a "),
    "a certificate for a key": ("keyFile", lambda folder, tls: tls.certificate, "holds a certificate in the place of "),
    "another key": ("keyFile", lambda folder, tls: made(folder / "other").key, "is not the key of "),
    "expired authority": (
        "caFile",
        lambda folder, tls: made(folder / "old", (-9, -1)).authority,
        "the authority's certificate has expired on ",
    ),
}


def written(folder: Path, content: bytes) -> Path:
    """Write a file."""
    (folder / "written.pem").write_bytes(content)
    return folder / "written.pem"


@pytest.mark.parametrize("wrong", WRONG)
def test_file_of_the_listener_that_cannot_be_used_is_named_with_its_key(
    wrong: str, tls: Certificates, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start and by `check-config`, both with exit code 2."""
    name, make, reason = WRONG[wrong]
    path = make(tmp_path, tls)
    config = write_config(tmp_path, raw_settings(tls, **{name: str(path)}))
    for command in ("check-config", "run"):
        assert main([command, "--config", str(config)]) == 2
        said = capsys.readouterr().err.replace("): the", ") the")
        assert f"{path} (key: {KEY}.{name}) {reason}" in said


def test_expired_certificate_of_the_listener(tls: Certificates, tmp_path: Path) -> None:
    old = made(tmp_path / "old", (-9, -1))
    raw = raw_settings(tls, certFile=str(old.certificate), keyFile=str(old.key))
    with pytest.raises(TlsSettingsError, match=r"certificate\.pem .*certFile\): the certificate has expired on "):
        check_tls(dimse_of(raw))


def test_all_that_is_wrong_is_said_at_once(tls: Certificates, tmp_path: Path) -> None:
    raw = raw_settings(tls, keyFile=str(tmp_path / "none"))
    raw["dimseProxySettings"]["peers"][0]["tls"]["caFile"] = str(tmp_path / "nothing")
    with pytest.raises(TlsSettingsError) as caught:
        check_tls(dimse_of(raw))
    own, peer = str(caught.value).split("\n")
    assert own == f"{tmp_path / 'none'} (key: {KEY}.keyFile) cannot be read: No such file or directory"
    assert peer == f"ARCHIVE: {tmp_path / 'nothing'} (key: tls.caFile) cannot be read: No such file or directory"


def test_certificate_that_expires_soon_is_spoken_of_in_time(
    tls: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soon = made(tmp_path / "soon", (-1, 12.5))
    check_tls(dimse_of(raw_settings(tls)))
    assert caplog.records == []
    check_tls(dimse_of(raw_settings(tls, certFile=str(soon.certificate), keyFile=str(soon.key))))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{soon.certificate} (key: {KEY}.certFile): the certificate expires on ")
    assert record.getMessage().endswith(", in 12 days")


def test_context_of_the_listener_is_what_bcp_195_wants(tls: Certificates) -> None:
    """RFC 9325 3.1.1, 3.2, 3.4, 3.5, 4.2: versions, compression, tickets, renegotiation, cipher suites."""
    files = ServerTls.model_validate({"certFile": str(tls.certificate), "keyFile": str(tls.key)})
    context = server_context(files)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    for option in (ssl.OP_NO_COMPRESSION, ssl.OP_NO_TICKET, ssl.OP_NO_RENEGOTIATION, ssl.OP_CIPHER_SERVER_PREFERENCE):
        assert context.options & option
    assert context.num_tickets == 0
    names = {str(cipher["name"]) for cipher in context.get_ciphers()}
    mandatory = {
        f"ECDHE-{kind}-AES{suite}" for kind in ("ECDSA", "RSA") for suite in ("128-GCM-SHA256", "256-GCM-SHA384")
    }
    assert mandatory <= names
    assert {name for name in names if not name.startswith(("TLS_", "ECDHE-"))} == set()
    assert context.verify_mode == ssl.CERT_NONE, "without caFile nobody is asked for a certificate"
    with_authority = server_context(files.model_copy(update={"ca_file": tls.authority}))
    assert with_authority.verify_mode == ssl.CERT_REQUIRED


# --- new files -----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running(config: Config) -> AsyncIterator[Archives]:
    """The DIMSE side of the proxy alone."""
    archives = Archives(config)
    try:
        await archives.start()
        yield archives
    finally:
        await archives.close(1.0)


async def echo(port: int, client: ssl.SSLContext) -> None:
    """C-ECHO over TLS, as the archive."""
    peer = dul.Peer(HOST, port, PROXY_AET, "ARCHIVE")
    async with dul.connect(peer, [dul.Context(wire.VERIFICATION)], ssl=client) as association:
        await association.echo()


async def test_certificates_are_read_anew_for_those_who_call_and_those_who_are_called(
    tls: Certificates, tmp_path: Path
) -> None:
    """A new authority, with new certificates of it: the old ones are no good any more, and open associations stay."""
    new = made(tmp_path / "new")
    old_client = tls.client()
    async with serving(Scp(), "ARCHIVE", ssl=new.server()) as server:
        raw = raw_settings(tls, Address("ARCHIVE", server.port), port=free_port())
        async with running(parse_config(raw)) as archives:
            port = archives.tls_port
            assert port is not None
            with pytest.raises(ArchiveFailedError):
                await archives.archives[0].echo()
            peer = dul.Peer(HOST, port, PROXY_AET, "ARCHIVE")
            async with dul.connect(peer, [dul.Context(wire.VERIFICATION)], ssl=old_client) as open_before:
                for name in ("authority.pem", "certificate.pem", "key.pem"):
                    shutil.copy(tmp_path / "new" / name, tmp_path / "tls" / name)
                await archives.reload_certificates()
                await archives.archives[0].echo()
                await echo(port, new.client())
                with pytest.raises(dul.ConnectError):
                    await echo(port, old_client)
                await open_before.echo()


async def test_certificates_stay_as_they_were_when_a_new_one_cannot_be_used(
    tls: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a change, as while files are copied, breaks nothing."""
    new = made(tmp_path / "new")
    async with running(parse_config(raw_settings(tls))) as archives:
        assert archives.tls_port is not None
        shutil.copy(new.certificate, tls.certificate)
        await archives.reload_certificates()
        await echo(archives.tls_port, ssl_client(tmp_path, tls))
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.getMessage().startswith("DICOM TLS goes on with the certificates as they were: ")
    assert f"{tls.key} (key: {KEY}.keyFile) is not the key of {tls.certificate}" in record.getMessage()


def ssl_client(folder: Path, tls: Certificates) -> ssl.SSLContext:
    """Return a context of an archive that has a certificate of its own."""
    (folder / "archive").mkdir()
    return certificates.sign(tls.authority, folder / "archive").client()


async def test_reading_anew_without_tls_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with running(parse_config(settings(Address("ARCHIVE", 104)))) as archives:
        await archives.reload_certificates()
        assert archives.tls_port is None
    assert caplog.records == []


async def test_port_that_is_taken_is_named(tls: Certificates) -> None:
    async with serving(Scp()) as server:
        archives = Archives(parse_config(raw_settings(tls, port=server.port)))
        try:
            with pytest.raises(OSError) as caught:
                await archives.start()
        finally:
            await archives.close(1.0)
    assert (caught.value.host, caught.value.port, caught.value.key) == (HOST, server.port, KEY)  # type: ignore[attr-defined]


def test_contexts_come_in_the_order_of_the_peers(tls: Certificates) -> None:
    raw = raw_settings(tls, Address("ONE", 104), Address("TWO", 105))
    raw["dimseProxySettings"]["peers"][0]["tls"] = None
    contexts = load_tls(dimse_of(raw))
    assert contexts.server is not None
    assert [context is not None for context in contexts.peers] == [False, True]
