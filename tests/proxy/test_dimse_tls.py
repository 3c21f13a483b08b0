"""DICOM TLS in both directions between the proxy and archives, mutual, and who is refused.

PS3.15 B.12; the proxy asks over TLS, and what it asked for comes over TLS, to a port of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

import dul
from proxy.archive.retrieval.inbox import Inbox
from proxy.archive.retrieval.listeners import Listeners
from proxy.config.checking import parse_config
from tests.corpus import Corpus, ct_study
from tests.dul import certificates, wire
from tests.dul.certificates import Certificates
from tests.dul.conftest import until
from tests.dul.wire import Wire
from tests.faultpeer import ScriptedArchive, Stored, small_study
from tests.peers.dcmtk import Scu, Storescp
from tests.peers.orthanc import Orthanc
from tests.peers.process import HOST, Address, free_port, require, require_program, run_program
from tests.peers.pynetdicom_scp import Archive as PynetdicomArchive
from tests.peers.pynetdicom_scp import Settings
from tests.proxy.finding import ask
from tests.proxy.retrieved import digests, expected, get, path_of
from tests.proxy.running import PROXY_AET, Proxy, proxy_for, settings
from tests.proxy.uploading import multipart, post, received

CONTEXTS = [dul.Context(wire.VERIFICATION)]
ARCHIVE_AET = "TLSARCHIVE"


@dataclass(frozen=True, slots=True)
class Pki:
    """One authority, and certificates of it for either side."""

    proxy: Certificates
    archive: Certificates

    @property
    def towards_archives(self) -> dict[str, str]:
        """What stands in `tls` of a peer."""
        own = self.proxy
        return {"caFile": str(own.authority), "certFile": str(own.certificate), "keyFile": str(own.key)}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority that both sides know."""
    proxy = certificates.make(tmp_path_factory.mktemp("proxy-tls"))
    return Pki(proxy, certificates.sign(proxy.authority, tmp_path_factory.mktemp("archive-tls")))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate of an authority that nobody knows."""
    return certificates.make(tmp_path_factory.mktemp("stranger-tls"))


def dimse_settings(pki: Pki, port: int, *archives: Address, **more: object) -> dict[str, Any]:
    """Return `dimseProxySettings` with a TLS port, for archives with `tls`; `more` are further keys of theirs."""
    peer = {"tls": pki.towards_archives, **more}
    dimse: Any = settings(*archives, peer=peer)["dimseProxySettings"]
    dimse["proxyServer"]["tls"] = {**pki.towards_archives, "port": port}
    return dict(dimse)


@contextlib.asynccontextmanager
async def tls_proxy(pki: Pki, port: int, *archives: Address, **more: object) -> AsyncIterator[Proxy]:
    """Run the proxy in front of archives with `tls`."""
    async with proxy_for(dimseProxySettings=dimse_settings(pki, port, *archives), **more) as proxy:
        yield proxy


# --- archives that speak it ----------------------------------------------------------------------------------


async def assert_all_services(proxy: Proxy, corpus: Corpus) -> None:
    """Search and retrieve over TLS, each way."""
    assert len(await ask(proxy, "/studies")) == len(corpus.study_uids)
    wanted = corpus.of_patient("LATIN1")
    answer = await get(proxy, path_of(wanted[0], "study"))
    assert answer.status == 200
    assert digests(answer.files) == expected(wanted)
    assert proxy.dimse_port is None, "nothing listens in clear text"


@pytest.fixture(scope="module")
def orthanc_destination() -> Address:
    """Where Orthanc sends to: the TLS port of the proxies of this module, which take turns."""
    return Address(PROXY_AET, free_port())


@pytest.fixture(scope="module")
def tls_orthanc(
    pki: Pki, samples: Corpus, orthanc_destination: Address, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Orthanc]:
    """Orthanc that speaks TLS alone, as acceptor and as requestor, and wants certificates."""
    modality = {"AET": PROXY_AET, "Host": HOST, "Port": orthanc_destination.port, "UseDicomTls": True}
    tls_settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(pki.archive.certificate),
        "DicomTlsPrivateKey": str(pki.archive.key),
        "DicomTlsTrustedCertificates": str(pki.archive.authority),
        "DicomTlsRemoteCertificateRequired": True,
        "DicomModalities": {"proxy": modality},
    }
    with Orthanc(tmp_path_factory.mktemp("tls-orthanc"), aet=ARCHIVE_AET, settings=tls_settings) as archive:
        archive.upload(samples.paths())
        yield archive


async def test_orthanc_is_asked_and_sends_over_mutual_tls(
    pki: Pki, tls_orthanc: Orthanc, orthanc_destination: Address, samples: Corpus
) -> None:
    async with tls_proxy(pki, orthanc_destination.port, tls_orthanc.address) as proxy:
        await assert_all_services(proxy, samples)


async def test_orthanc_is_sent_uploads_over_mutual_tls(
    pki: Pki, tls_orthanc: Orthanc, orthanc_destination: Address
) -> None:
    files = list(ct_study(1, 2, 4, study=9))
    async with tls_proxy(pki, orthanc_destination.port, tls_orthanc.address) as proxy:
        before = await asyncio.to_thread(received, tls_orthanc)
        assert (await post(proxy, multipart(files))).status == 200
        after = await asyncio.to_thread(received, tls_orthanc)
    await asyncio.to_thread(delete_study, tls_orthanc, Stored.of(files[0]).sample.study_uid)
    assert len(after) == len(before) + 2


def delete_study(archive: Orthanc, study_uid: str) -> None:
    """Leave the archive as it was."""
    (identifier,) = archive.rest("POST", "/tools/lookup", study_uid.encode())
    archive.rest("DELETE", identifier["Path"])


class PynetdicomOverTls(PynetdicomArchive):
    """pynetdicom's archive that sends over TLS."""

    context: ssl.SSLContext

    def on_move(self, event: evt.Event) -> Iterator[Any]:
        """Send what matches to the destination, over TLS (C-MOVE)."""
        steps = super().on_move(event)
        host, port, options = next(steps)
        yield host, port, {**options, "tls_args": (self.context, HOST)}
        yield from steps


@pytest.fixture
def tls_pynetdicom(pki: Pki, samples: Corpus, tmp_path: Path, destination: Address) -> Iterator[Address]:
    """An archive made with pynetdicom that speaks TLS alone, either way."""
    address = Address(ARCHIVE_AET, free_port())
    targets = {PROXY_AET: (HOST, destination.port)}
    archive = PynetdicomOverTls(
        Settings(ARCHIVE_AET, address.port, str(tmp_path), str(samples.folder), destinations=targets)
    )
    archive.context = pki.archive.client()
    entity = AE(ARCHIVE_AET)
    services = (
        Verification,
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelMove,
    )
    for service in services:
        entity.add_supported_context(service)
    handlers: list[evt.EventHandlerType] = [(evt.EVT_C_FIND, archive.on_find), (evt.EVT_C_MOVE, archive.on_move)]
    context = pki.archive.server()
    server = entity.start_server((HOST, address.port), block=False, evt_handlers=handlers, ssl_context=context)
    assert server is not None
    yield address
    server.shutdown()


@pytest.fixture
def destination() -> Address:
    """A port for one test's proxy to take C-STOREs over TLS at."""
    return Address(PROXY_AET, free_port())


async def test_pynetdicom_is_asked_and_sends_over_mutual_tls(
    pki: Pki, tls_pynetdicom: Address, destination: Address, samples: Corpus
) -> None:
    async with tls_proxy(pki, destination.port, tls_pynetdicom) as proxy:
        await assert_all_services(proxy, samples)


def require_dcmtk_tls() -> None:
    """Skip the test when DCMTK was built without TLS."""
    usage = run_program([require_program("storescu", "dcmtk"), "--help"], timeout=10).output
    require("--enable-tls" in usage, "DCMTK was built without TLS")


async def test_dcmtk_is_sent_uploads_over_mutual_tls(
    pki: Pki, destination: Address, tmp_path: Path, samples: Corpus
) -> None:
    require_dcmtk_tls()
    files = [samples.path(each).read_bytes() for each in samples.of_patient("LATIN1")]
    with Storescp(tmp_path, aet=ARCHIVE_AET, options=pki.archive.dcmtk()) as receiver:
        async with tls_proxy(pki, destination.port, receiver.address) as proxy:
            assert (await post(proxy, multipart(files))).status == 200
    assert len(receiver.files()) == len(files)


async def test_dcmtk_calls_over_mutual_tls(pki: Pki, destination: Address, samples: Corpus) -> None:
    """Its C-STORE gets as far as the inbox, which refuses what nobody has asked for."""
    require_dcmtk_tls()
    archive = Address(ARCHIVE_AET, free_port())
    async with tls_proxy(pki, destination.port, archive) as proxy:
        scu = Scu(destination, ARCHIVE_AET, options=pki.archive.dcmtk())
        (await asyncio.to_thread(scu.echo)).succeeded()
        sample = samples.path(samples.of_patient("LATIN1")[0])
        stored = await asyncio.to_thread(scu.store, [sample])
        assert "0x124" in stored.output
        status = await (await proxy.http.get("/status")).json()
        assert status["storesRefused"] == 1


# --- who is refused, at the TLS port -------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings about connections."""
    return [record.getMessage() for record in caplog.records if record.name == "dul"]


def closed_after(port: int, context: ssl.SSLContext) -> float:
    """Call, as OpenSSL does by itself, and ask for an association; returns how long it takes to be refused."""
    begun = time.monotonic()
    with (
        socket.create_connection((HOST, port), timeout=5) as sock,
        contextlib.suppress(ssl.SSLError, ConnectionError),
        context.wrap_socket(sock, server_hostname=HOST) as tls,
    ):
        tls.sendall(wire.associate_rq((1, wire.VERIFICATION, [wire.IMPLICIT])))
        assert tls.recv(100) == b""
    return time.monotonic() - begun


@dataclass(frozen=True, slots=True)
class Caller:
    """A way to call the TLS port, and why it is refused."""

    context: ssl.SSLContext
    reason: str


@pytest.fixture
def callers(pki: Pki, stranger: Certificates, tmp_path: Path) -> dict[str, Caller]:
    """Callers that know the proxy's authority, and are not to be let in; by name."""
    made = {}
    for name, options in (
        ("expired", {"days": (-10.0, -1.0)}),
        ("not yet valid", {"days": (1.0, 10.0)}),
        ("for servers only", {"usage": ExtendedKeyUsageOID.SERVER_AUTH}),
    ):
        (tmp_path / name).mkdir()
        made[name] = certificates.sign(pki.proxy.authority, tmp_path / name, **options)  # type: ignore[arg-type]
    made["of another authority"] = stranger

    def showing(shown: Certificates | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=pki.proxy.authority)
        if shown is not None:
            context.load_cert_chain(shown.certificate, shown.key)
        return context

    old = showing(pki.archive)
    weak = showing(pki.archive)
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA")  # of the profile that PS3.15 had before, retired in 2019
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
    rejected = "its certificate is not accepted: "
    return {
        "no certificate": Caller(showing(None), "it shows no certificate"),
        "another authority": Caller(
            showing(made["of another authority"]), rejected + "no authority that is known here has signed it"
        ),
        "expired": Caller(showing(made["expired"]), rejected + "it has expired"),
        "not yet valid": Caller(showing(made["not yet valid"]), rejected + "certificate is not yet valid"),
        "for servers only": Caller(
            showing(made["for servers only"]),
            rejected + "it is not meant for those who call (extendedKeyUsage without clientAuth)",
        ),
        "TLS 1.1": Caller(old, "it offers no version of TLS that is taken here"),
        "a weak cipher suite": Caller(weak, "it offers no cipher suite that is taken here"),
        "does not trust us": Caller(
            stranger.client(),
            "the caller does not accept the certificate that it is shown: it does not know who has signed it",
        ),
    }


async def test_callers_that_are_not_trusted_are_refused_with_one_line_that_says_why(
    pki: Pki, destination: Address, callers: dict[str, Caller], caplog: pytest.LogCaptureFixture
) -> None:
    peer = dul.Peer(HOST, destination.port, PROXY_AET, ARCHIVE_AET)
    async with tls_proxy(pki, destination.port, Address(ARCHIVE_AET, free_port())):
        for name, caller in callers.items():
            caplog.clear()
            assert await asyncio.to_thread(closed_after, destination.port, caller.context) < 1
            await until(lambda: bool(lines(caplog)))
            assert lines(caplog) == [f"no TLS connection with 127.0.0.1: {caller.reason}"], name
        async with dul.connect(peer, CONTEXTS, ssl=pki.archive.client()) as association:
            await association.echo()


async def test_what_is_not_tls_is_closed_at_once_at_the_tls_port(
    pki: Pki, destination: Address, caplog: pytest.LogCaptureFixture
) -> None:
    request = wire.associate_rq((1, wire.VERIFICATION, [wire.IMPLICIT]), called=PROXY_AET, calling=ARCHIVE_AET)
    cases = {
        request: "what it sends is not TLS, maybe DICOM in clear text",
        b"GET / HTTP/1.1\r\n\r\n": "what it sends is HTTP",
    }
    async with tls_proxy(pki, destination.port, Address(ARCHIVE_AET, free_port())):
        for sent, reason in cases.items():
            caplog.clear()
            with await Wire.connect(destination.port) as peer:
                await peer.send(sent)
                assert await peer.until_closed() < 1
            assert lines(caplog) == [f"no TLS connection with 127.0.0.1: {reason}"]


async def test_trusted_caller_has_to_be_a_known_archive_all_the_same(pki: Pki, destination: Address) -> None:
    """A certificate takes the place neither of the AE titles nor of the address."""
    async with tls_proxy(pki, destination.port, Address(ARCHIVE_AET, free_port())):
        for calling, called, reason in (("SOMEBODY", PROXY_AET, 3), (ARCHIVE_AET, "OTHER", 7)):
            peer = dul.Peer(HOST, destination.port, called, calling)
            with pytest.raises(dul.AssociationRejected) as caught:
                await dul.open_association(peer, CONTEXTS, ssl=pki.archive.client())
            assert (caught.value.result, caught.value.source, caught.value.reason) == (1, 1, reason)


# --- no way back to clear text -------------------------------------------------------------------------------


async def test_archive_with_tls_may_not_send_in_clear_text_and_one_without_may_send_over_tls(
    pki: Pki, destination: Address, caplog: pytest.LogCaptureFixture
) -> None:
    """Both ports are there, since there are archives of both kinds. RJ: no reason given (PS3.8 Table 9-21)."""
    plain, secure = Address("PLAIN", free_port()), Address(ARCHIVE_AET, free_port())
    dimse = dimse_settings(pki, destination.port, secure, plain)
    dimse["peers"][1]["tls"] = None
    async with proxy_for(dimseProxySettings=dimse) as proxy:
        ways: dict[str, tuple[int, ssl.SSLContext | None]] = {
            "clear text": (proxy.address.port, None),
            "TLS": (destination.port, pki.archive.client()),
        }
        taken = {}
        for archive in (plain, secure):
            for way, (port, context) in ways.items():
                caplog.clear()
                try:
                    async with dul.connect(
                        dul.Peer(HOST, port, PROXY_AET, archive.aet), CONTEXTS, ssl=context
                    ) as association:
                        await association.echo()
                    taken[archive.aet, way] = None
                except dul.AssociationRejected as error:
                    taken[archive.aet, way] = (error.result, error.source, error.reason)
                    said = "C-STOREs in clear text from 127.0.0.1 are refused: TLSARCHIVE has to send them over TLS, "
                    said += "to the port of proxyServer.tls, since it has tls"
                    assert said in [record.getMessage() for record in caplog.records]
    assert taken == {
        ("PLAIN", "clear text"): None,
        ("PLAIN", "TLS"): None,
        (ARCHIVE_AET, "clear text"): (1, 1, 1),
        (ARCHIVE_AET, "TLS"): None,
    }


async def test_tls_on_the_port_in_clear_text_is_closed_at_once(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    async with proxy_for(Address("PLAIN", free_port())) as proxy:
        peer = dul.Peer(HOST, proxy.address.port, PROXY_AET, "PLAIN")
        begun = asyncio.get_running_loop().time()
        with pytest.raises(dul.ConnectError):
            await dul.open_association(peer, CONTEXTS, ssl=pki.archive.client())
        assert asyncio.get_running_loop().time() - begun < 1
    (line,) = lines(caplog)
    assert line.endswith("PDU type 0x16 is not defined: this is TLS, and DICOM in clear text is spoken here")


async def test_archives_of_both_kinds_send_what_they_are_asked_for(
    pki: Pki, tls_orthanc: Orthanc, orthanc_destination: Address, samples: Corpus
) -> None:
    own = small_study(study=7)
    async with ScriptedArchive(own) as plain:
        dimse = dimse_settings(pki, orthanc_destination.port, tls_orthanc.address, plain.address)
        dimse["peers"][1]["tls"] = None
        async with proxy_for(dimseProxySettings=dimse) as proxy:
            plain.destination = proxy.address
            wanted = samples.of_patient("LATIN1")
            answers = await asyncio.gather(
                get(proxy, path_of(wanted[0], "study")), get(proxy, path_of(own[0].sample, "study"))
            )
            assert digests(answers[0].files) == expected(wanted)
            assert digests(answers[1].files) == expected(stored.sample for stored in own)


def test_nothing_listens_over_tls_without_an_archive_that_needs_it(pki: Pki) -> None:
    for changes in ({"tls": None}, {"useCget": True}):
        dimse = dimse_settings(pki, free_port(), Address("ANY", 104), **changes)
        config = parse_config({"proxyMode": "dimse", "dimseProxySettings": dimse})
        assert config.dimse is not None
        listeners = Listeners(config.dimse, Inbox(config.dimse.peers, never, never))
        assert (listeners.tls_port, listeners.is_needed) == (None, changes == {"tls": None})


def never(*_: object) -> bool:
    """Allow nobody."""
    return False
