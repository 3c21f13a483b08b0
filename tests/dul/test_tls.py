"""DICOM TLS in both roles, against DCMTK, pynetdicom and ourselves; and what happens when one side speaks plain."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

import dul
from dul import dimse, limits
from tests.corpus import Corpus
from tests.dul import certificates, wire
from tests.dul.archive import Archive, address_of, identifier, instance_of, peer_of, serving
from tests.dul.certificates import Certificates
from tests.dul.conftest import open_sockets, settle
from tests.dul.wire import CT_IMAGE, STUDY_ROOT_GET, STUDY_ROOT_MOVE, VERIFICATION, Wire
from tests.peers.dcmtk import Scu, Storescp
from tests.peers.process import HOST, free_port, require, require_program, run_program

pytestmark = pytest.mark.usefixtures("nothing_left")

CONTEXTS = [
    dul.Context(VERIFICATION),
    dul.Context(STUDY_ROOT_MOVE),
    dul.Context(STUDY_ROOT_GET),
    dul.Context(CT_IMAGE, scp_role=True),
]
SHORT = dul.Timeouts(connect=1, associate=1, response=1, release=1)
BLOCK = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority and a certificate of its own."""
    return certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls_storescp(tls: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storescp]:
    """DCMTK's `storescp` with TLS."""
    require_dcmtk_tls()
    with Storescp(tmp_path_factory.mktemp("storescp"), aet="TLSSCP", options=tls.dcmtk()) as receiver:
        yield receiver


def require_dcmtk_tls() -> None:
    """Skip the test when DCMTK was built without TLS."""
    usage = run_program([require_program("echoscu", "dcmtk"), "--help"], timeout=10).output
    require("--enable-tls" in usage, "DCMTK was built without TLS")


# --- ourselves -----------------------------------------------------------------------------------------------


async def test_all_services_over_tls(tls: Certificates, samples: Corpus) -> None:
    destination = Archive()
    sample = samples.of_patient("LATIN1")[0]
    async with serving(destination, "DESTINATION", ssl=tls.server()) as receiver:
        archive = Archive(samples, {"DESTINATION": address_of(receiver, "DESTINATION")}, destination_ssl=tls.client())
        async with (
            serving(archive, ssl=tls.server()) as server,
            dul.connect(peer_of(server), CONTEXTS, ssl=tls.client()) as association,
        ):
            await association.echo()
            assert await association.store(instance_of(samples, sample)) == 0
            assert archive.stored[sample.sop_instance_uid].data == samples.data_set(sample)
            keys = identifier(PatientID="LATIN1")
            got = [await instance.read(10**6) async for instance in association.get(keys)]
            assert got == [samples.data_set(each) for each in samples.of_patient("LATIN1")]
            steps = [step async for step in association.move(keys, destination="DESTINATION")]
            assert (steps[-1].completed, steps[-1].failed) == (6, 0)
    assert len(destination.stored) == 6


async def test_back_pressure_over_tls(tls: Certificates) -> None:
    go_on, taken, given = asyncio.Event(), hashlib.sha256(), 0

    class Slow(dul.Handler):
        async def on_store(self, store: dul.IncomingStore) -> int:
            async for chunk in store:
                taken.update(chunk)
                await go_on.wait()
            return dimse.SUCCESS

    async def source() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(64):
            given += 1
            yield BLOCK

    instance = dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, source)
    async with (
        serving(Slow(), ssl=tls.server()) as server,
        dul.connect(peer_of(server), CONTEXTS, ssl=tls.client()) as association,
    ):
        storing = asyncio.create_task(association.store(instance))
        before = -1
        while before != given:
            before = given
            await asyncio.sleep(0.1)
        assert 0 < given < 32
        go_on.set()
        assert await storing == 0
    assert taken.hexdigest() == hashlib.sha256(BLOCK * 64).hexdigest()


# --- DCMTK ---------------------------------------------------------------------------------------------------


async def test_dcmtk_calls_us_over_tls(tls: Certificates, samples: Corpus) -> None:
    require_dcmtk_tls()
    archive = Archive()
    async with serving(archive, ssl=tls.server()) as server:
        scu = Scu(address_of(server), options=tls.dcmtk())
        (await asyncio.to_thread(scu.echo)).succeeded()
        wanted = samples.of_patient("LATIN1")
        (await asyncio.to_thread(scu.store, [samples.path(each) for each in wanted])).succeeded()
        assert {uid: stored.data for uid, stored in archive.stored.items()} == {
            each.sop_instance_uid: samples.data_set(each) for each in wanted
        }
        plain = await asyncio.to_thread(Scu(address_of(server)).echo)
        assert plain.code != 0


async def test_we_call_dcmtk_over_tls(tls: Certificates, tls_storescp: Storescp, samples: Corpus) -> None:
    peer = dul.Peer(HOST, tls_storescp.address.port, tls_storescp.address.aet, "SCU")
    async with dul.connect(peer, CONTEXTS, ssl=tls.client()) as association:
        await association.echo()
        for sample in samples.of_patient("LATIN1"):
            assert await association.store(instance_of(samples, sample)) == 0
    assert len(tls_storescp.files()) == 6


# --- pynetdicom ----------------------------------------------------------------------------------------------


async def test_pynetdicom_calls_us_over_tls(tls: Certificates) -> None:
    def echo(port: int) -> int:
        entity = AE("PYNET")
        entity.add_requested_context(Verification)
        association = entity.associate(HOST, port, ae_title="SCP", tls_args=(tls.client(), HOST))
        assert association.is_established
        status = association.send_c_echo().Status
        association.release()
        return int(status)

    archive = Archive()
    async with serving(archive, ssl=tls.server()) as server:
        assert await asyncio.to_thread(echo, server.port) == 0
    assert archive.echoes == ["PYNET"]


async def test_we_call_pynetdicom_over_tls(tls: Certificates) -> None:
    called = []
    entity = AE("PYNET")
    entity.add_supported_context(Verification)
    port = free_port()

    def on_echo(event: evt.Event) -> int:
        called.append(event)
        return 0

    handlers: list[evt.EventHandlerType] = [(evt.EVT_C_ECHO, on_echo)]
    server = entity.start_server((HOST, port), block=False, evt_handlers=handlers, ssl_context=tls.server())
    assert server is not None
    try:
        contexts = [dul.Context(VERIFICATION)]
        async with dul.connect(dul.Peer(HOST, port, "PYNET", "SCU"), contexts, ssl=tls.client()) as association:
            await association.echo()
    finally:
        await asyncio.to_thread(server.shutdown)
    assert len(called) == 1


# --- one side speaks plain, or is not trusted ----------------------------------------------------------------


async def test_plain_request_on_a_tls_port_is_closed_at_once_with_one_log_line(
    tls: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(Archive(), ssl=tls.server()) as server:
        with await Wire.connect(server.port) as peer:
            await peer.send(wire.associate_rq((1, VERIFICATION, [wire.IMPLICIT])))
            assert await peer.until_closed() < 1
    assert [record.getMessage() for record in caplog.records] == [
        "no TLS connection with 127.0.0.1: what it sends is not TLS, maybe DICOM in clear text"
    ]


async def test_plain_requestor_of_ours_against_a_tls_acceptor(tls: Certificates, tls_storescp: Storescp) -> None:
    async with serving(Archive(), ssl=tls.server()) as server:
        dcmtk = dul.Peer(HOST, tls_storescp.address.port, tls_storescp.address.aet, "SCU")
        for peer in (peer_of(server), dcmtk):
            start = time.monotonic()
            with pytest.raises((dul.AssociationError, dul.RemoteProtocolError)):
                await dul.open_association(peer, CONTEXTS, timeouts=SHORT)
            assert time.monotonic() - start < 3


async def test_tls_requestor_of_ours_against_a_plain_acceptor(
    tls: Certificates, storescp: Storescp, caplog: pytest.LogCaptureFixture
) -> None:
    async def silent(peer: Wire) -> None:
        await peer.until_closed()

    async with serving(Archive()) as server, wire.scripted_scp(silent) as mute:
        dcmtk = dul.Peer(HOST, storescp.address.port, storescp.address.aet, "SCU")
        for peer in (peer_of(server), dcmtk, mute):
            start = time.monotonic()
            with pytest.raises((dul.ConnectError, dul.PeerTimeout)):
                await dul.open_association(peer, CONTEXTS, timeouts=SHORT, ssl=tls.client())
            assert time.monotonic() - start < 3
    assert len(caplog.records) == 1


async def test_acceptor_that_is_not_trusted_is_a_connect_error(tls: Certificates) -> None:
    async with serving(Archive(), ssl=tls.server()) as server:
        with pytest.raises(dul.ConnectError, match="certificate verify failed"):
            await dul.open_association(peer_of(server), CONTEXTS, ssl=ssl.create_default_context())


async def test_requestor_without_certificate_gets_no_association(tls: Certificates) -> None:
    bare = ssl.create_default_context(cafile=tls.authority)
    async with serving(Archive(), ssl=tls.server()) as server:
        with pytest.raises((dul.ConnectError, dul.ConnectionLost)):
            await dul.open_association(peer_of(server), CONTEXTS, ssl=bare)
        assert server.association_count == 0


# --- within the handshake ------------------------------------------------------------------------------------


async def test_silent_connection_on_a_tls_port_is_closed_at_artim(tls: Certificates) -> None:
    async with serving(Archive(), ssl=tls.server(), artim=0.2) as server:
        with await Wire.connect(server.port) as peer:
            assert 0.15 < await peer.until_closed() < 0.7


@pytest.mark.parametrize("hello", [b"", bytes.fromhex("16030100c8010000c40303") + bytes(194)], ids=["3 bytes", "whole"])
async def test_dripped_handshake_is_closed_within_5_s_whatever_the_drip(
    hello: bytes, monkeypatch: pytest.MonkeyPatch, tls: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller is in no hurry, and ARTIM would let it take 30 s."""
    assert limits.TLS_HANDSHAKE_TIMEOUT < 5
    monkeypatch.setattr(limits, "TLS_HANDSHAKE_TIMEOUT", 0.3)
    async with serving(Archive(), ssl=tls.server()) as server:
        with await Wire.connect(server.port) as peer:
            dripping = asyncio.create_task(peer.drip(hello or bytes.fromhex("160301"), 0.02))
            assert 0.2 < await peer.until_closed() < 0.9
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
    assert [record.getMessage() for record in caplog.records] == [
        "no TLS connection with 127.0.0.1: its handshake takes too long"
    ]


async def test_connections_within_the_handshake_count(tls: Certificates) -> None:
    caps = dul.ServerLimits(connections=10, connections_per_host=3)
    async with serving(Archive(), ssl=tls.server(), server_limits=caps) as server:
        silent = [await Wire.connect(server.port) for _ in range(20)]
        async with asyncio.timeout(1):
            while server.connection_count != 6:
                await asyncio.sleep(0.005)
        for peer in silent:
            peer.close()


async def test_server_that_closes_ends_handshakes(tls: Certificates) -> None:
    async with serving(Archive(), ssl=tls.server()) as server:
        peer = await Wire.connect(server.port)
        await peer.send(bytes.fromhex("160301"))
        await asyncio.sleep(0.01)
    with peer:
        assert await peer.until_closed() < 0.2
    assert server.connection_count == 0


async def test_cancelled_anywhere_over_tls_leaves_nothing(tls: Certificates) -> None:
    server_context, client_context = tls.server(), tls.client()
    async with serving(Archive(), ssl=server_context) as server:

        async def work() -> None:
            async with dul.connect(peer_of(server), CONTEXTS, ssl=client_context) as association:
                await association.echo()

        tasks, sockets = asyncio.all_tasks(), open_sockets()
        steps, over = 0, False
        while not over:
            task = asyncio.create_task(work())
            for _ in range(steps):
                await asyncio.sleep(0)
            over = task.done()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            async with asyncio.timeout(2):
                while server.connection_count or server.association_count:
                    await asyncio.sleep(0)
            await settle()
            assert open_sockets().keys() - sockets.keys() == set()
            assert asyncio.all_tasks() - tasks == set()
            steps += 1 if steps < 40 else 5
