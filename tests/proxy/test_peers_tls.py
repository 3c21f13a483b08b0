"""DICOM TLS towards an archive: against Orthanc and DCMTK, and what is said where the two sides do not fit."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from proxy.archive.errors import ArchiveError, ArchiveFailedError, ArchiveTimeoutError
from proxy.archive.peers.archive import Archive
from proxy.archive.peers.tls import TlsSettingsError, client_context
from proxy.config.schema import PeerTls
from tests.corpus import Corpus
from tests.dul import certificates
from tests.dul.archive import Archive as Scp
from tests.dul.archive import serving
from tests.dul.certificates import Certificates
from tests.dul.wire import Wire, scripted_scp
from tests.peers.dcmtk import Storescp
from tests.peers.orthanc import Orthanc
from tests.peers.process import require, require_program, run_program
from tests.proxy.peering import archive_at, peer, search

Keys = dict[str, object]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority and a certificate of its own."""
    return certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Another authority, and a certificate of that."""
    return certificates.make(tmp_path_factory.mktemp("others"))


@pytest.fixture
def keys(tls: Certificates) -> Keys:
    """What stands in `tls` of a peer."""
    return {"caFile": str(tls.authority), "certFile": str(tls.certificate), "keyFile": str(tls.key)}


@pytest.fixture(scope="module")
def tls_orthanc(tls: Certificates, samples: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Orthanc with DICOM TLS; it asks for a certificate that the authority has signed."""
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(tls.certificate),
        "DicomTlsPrivateKey": str(tls.key),
        "DicomTlsTrustedCertificates": str(tls.authority),
    }
    with Orthanc(tmp_path_factory.mktemp("tls-orthanc"), aet="TLSORTHANC", settings=settings) as archive:
        archive.upload(samples.paths())
        yield archive


# --- archives that speak it ----------------------------------------------------------------------------------


async def test_orthanc_is_asked_over_tls(tls_orthanc: Orthanc, keys: Keys, samples: Corpus) -> None:
    async with archive_at(tls_orthanc.address.port, aet=tls_orthanc.address.aet, tls=keys) as archive:
        await archive.echo()
        assert await search(archive) == len(samples.study_uids)
        assert await search(archive) == len(samples.study_uids)


async def test_dcmtk_is_asked_over_tls(tls: Certificates, keys: Keys, tmp_path: Path) -> None:
    usage = run_program([require_program("echoscu", "dcmtk"), "--help"], timeout=10).output
    require("--enable-tls" in usage, "DCMTK was built without TLS")
    with Storescp(tmp_path, aet="TLSSCP", options=tls.dcmtk()) as receiver:
        async with archive_at(receiver.address.port, aet="TLSSCP", tls=keys) as archive:
            await archive.echo()


async def test_host_name_counts_only_where_it_is_asked_for(tls: Certificates, keys: Keys) -> None:
    """The certificate is for 127.0.0.1, and so not for localhost."""
    async with serving(Scp(), ssl=tls.server()) as server:
        for ip, check, fits in (("127.0.0.1", True, True), ("localhost", False, True), ("localhost", True, False)):
            async with archive_at(server.port, ip=ip, tls={**keys, "checkHostname": check}) as archive:
                if fits:
                    await archive.echo()
                    continue
                with pytest.raises(ArchiveFailedError, match="certificate is not valid for 'localhost'"):
                    await archive.echo()


# --- archives that do not fit --------------------------------------------------------------------------------


async def refusal(archive: Archive) -> ArchiveError:
    """Return why C-ECHO fails, within the timeouts."""
    begun = time.perf_counter()
    with pytest.raises(ArchiveError) as caught:
        await archive.echo()
    assert time.perf_counter() - begun < 2.5
    return caught.value


async def test_archive_that_no_authority_vouches_for_is_refused(tls: Certificates, others: Certificates) -> None:
    """Neither one that is not configured, nor, without `caFile`, one that the system does not know."""
    async with serving(Scp(), ssl=tls.server()) as server:
        for settings in ({"caFile": str(others.authority)}, {}):
            async with archive_at(server.port, tls=settings) as archive:
                error = await refusal(archive)
        assert "certificate verify failed" in str(error)
        assert type(error) is ArchiveFailedError


async def test_archive_that_wants_to_know_who_calls_is_not_had_without_certificate(
    tls: Certificates, others: Certificates
) -> None:
    own = {"certFile": str(others.certificate), "keyFile": str(others.key)}
    async with serving(Scp(), ssl=tls.server()) as server:
        for settings in ({}, own):
            async with archive_at(server.port, tls={"caFile": str(tls.authority), **settings}) as archive:
                assert type(await refusal(archive)) is ArchiveFailedError


async def test_old_tls_is_refused(tls: Certificates, keys: Keys) -> None:
    old = tls.server()
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving(Scp(), ssl=old) as server, archive_at(server.port, tls=keys) as archive:
        assert "no TLS connection to" in str(await refusal(archive))


async def test_tls_to_an_archive_that_speaks_plain(tmp_path: Path, keys: Keys) -> None:
    """DCMTK closes, and one that waits for more is given up at the timeout of connecting."""
    with Storescp(tmp_path) as receiver:
        async with archive_at(receiver.address.port, aet=receiver.address.aet, tls=keys) as archive:
            assert "no TLS connection to 127.0.0.1 port" in str(await refusal(archive))
    async with scripted_scp(mute) as scp, archive_at(scp.port, timeouts={"connect": 0.2}, tls=keys) as archive:
        error = await refusal(archive)
    assert str(error) == "main archive: no TLS connection within 0.2 s"
    assert type(error) is ArchiveTimeoutError


async def mute(scp: Wire) -> None:
    """Say nothing until the other side goes."""
    await scp.until_closed()


async def test_plain_to_an_archive_that_speaks_tls(tls: Certificates) -> None:
    async with serving(Scp(), ssl=tls.server()) as server, archive_at(server.port) as archive:
        error = await refusal(archive)
    assert str(error) == "main archive: the peer closed the connection without answering the request; it may want TLS"


# --- files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tls: Certificates, others: Certificates, tmp_path: Path) -> dict[str, Path]:
    """Files of several kinds."""
    key = load_pem_private_key(tls.key.read_bytes(), None)
    password = serialization.BestAvailableEncryption(b"secret")
    encrypted = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, password)
    (tmp_path / "encrypted.pem").write_bytes(encrypted)
    (tmp_path / "empty.pem").touch()
    (tmp_path / "old").mkdir()
    old = certificates.make(tmp_path / "old", days=(-10, -1))
    return {
        "expired": old.certificate,
        "expired key": old.key,
        "authority": tls.authority,
        "certificate": tls.certificate,
        "key": tls.key,
        "other key": others.key,
        "encrypted": tmp_path / "encrypted.pem",
        "empty": tmp_path / "empty.pem",
        "missing": tmp_path / "missing.pem",
        "folder": tmp_path,
    }


@pytest.mark.parametrize(
    ("given", "key", "reason"),
    [
        ({"caFile": "missing"}, "caFile", "cannot be read: No such file or directory"),
        ({"caFile": "folder"}, "caFile", "cannot be read: Is a directory"),
        ({"caFile": "empty"}, "caFile", "is empty"),
        ({"caFile": "key"}, "caFile", "holds a private key in the place of a certificate"),
        ({"caFile": "expired"}, "caFile", "the authority's certificate has expired on "),
        ({"certFile": "missing", "keyFile": "key"}, "certFile", "cannot be read: No such file or directory"),
        ({"certFile": "certificate", "keyFile": "missing"}, "keyFile", "cannot be read: No such file or directory"),
        ({"certFile": "certificate", "keyFile": "other key"}, "keyFile", "is not the key of "),
        ({"certFile": "certificate", "keyFile": "empty"}, "keyFile", "is empty"),
        ({"certFile": "key", "keyFile": "key"}, "certFile", "holds a private key in the place of a certificate"),
        ({"certFile": "expired", "keyFile": "expired key"}, "certFile", "the certificate has expired on "),
        ({"certFile": "certificate", "keyFile": "encrypted"}, "keyFile", "is encrypted, and nobody is there"),
    ],
)
def test_file_that_cannot_be_used_is_named_with_its_key_at_the_start(
    files: dict[str, Path], given: dict[str, str], key: str, reason: str
) -> None:
    settings = {name: str(files[file]) for name, file in given.items()}
    with pytest.raises(TlsSettingsError) as caught:
        Archive(peer(104, tls=settings))
    said = str(caught.value).replace("): the", ") the")
    assert said.startswith(f"main archive: {files[given[key]]} (key: tls.{key}) {reason}")


def test_archive_is_always_verified(tls: Certificates) -> None:
    context = client_context(PeerTls(), "main archive")
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.cert_store_stats()["x509_ca"] == ssl.create_default_context().cert_store_stats()["x509_ca"]
    with_authority = client_context(PeerTls.model_validate({"caFile": str(tls.authority)}), "main archive")
    assert with_authority.cert_store_stats()["x509_ca"] == 1
