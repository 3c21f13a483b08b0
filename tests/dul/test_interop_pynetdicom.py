"""Both roles against pynetdicom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

import dul
from dul import dimse, uids
from tests import corpus
from tests.corpus import CT_IMAGE, Corpus, Sample
from tests.dul import wire
from tests.dul.archive import Archive, address_of, decode, identifier, instance_of, serving
from tests.peers.process import Address
from tests.peers.pynetdicom_peer import PynetdicomScp, PynetdicomScu

pytestmark = pytest.mark.usefixtures("nothing_left")

QUERY = [
    dul.Context(uids.VERIFICATION),
    dul.Context(uids.STUDY_ROOT_FIND),
    dul.Context(uids.STUDY_ROOT_MOVE),
    dul.Context(uids.STUDY_ROOT_GET),
]


def peer(address: Address) -> dul.Peer:
    """Return how a program is called."""
    return dul.Peer(address.host, address.port, address.aet, "SCU")


def data_sets(folder: Path) -> dict[str, bytes]:
    """Return the data sets in a folder by SOP instance UID."""
    return {path.name.removesuffix(".dcm"): _data_set(path.read_bytes()) for path in folder.iterdir()}


def _data_set(content: bytes) -> bytes:
    return corpus.data_set_bytes(content) if content[128:132] == b"DICM" else content


def expected(samples: Corpus, wanted: list[Sample]) -> dict[str, bytes]:
    """Return the data sets of samples by SOP instance UID."""
    return {sample.sop_instance_uid: samples.data_set(sample) for sample in wanted}


def storage(wanted: list[Sample], *, scp_role: bool = False) -> list[dul.Context]:
    """Return a context for each kind of sample, in its own transfer syntax."""
    kinds = dict.fromkeys((sample.sop_class_uid, sample.transfer_syntax_uid) for sample in wanted)
    return [dul.Context(sop_class, (syntax,), scp_role) for sop_class, syntax in kinds]


# --- we call -------------------------------------------------------------------------------------------------


async def test_echo_and_find(pynetdicom_archive: PynetdicomScp, samples: Corpus) -> None:
    async with dul.connect(peer(pynetdicom_archive.address), QUERY) as association:
        await association.echo()
        found = [match async for match in association.find(identifier(StudyInstanceUID=""))]
        studies = {decode(match.data, match.transfer_syntax).StudyInstanceUID for match in found}
        assert studies == set(samples.study_uids)
        assert [match async for match in association.find(identifier(PatientID="NOBODY"))] == []
        with pytest.raises(dul.StatusError) as raised:
            await anext(association.find(identifier("WRONG")))
        assert raised.value.status == 0xC311  # pynetdicom's own for a handler that fails
        await association.echo()


async def test_find_left_early_is_cancelled_and_the_association_goes_on(pynetdicom_archive: PynetdicomScp) -> None:
    async with dul.connect(peer(pynetdicom_archive.address), QUERY) as association:
        for _ in range(3):
            async for _ in association.find(identifier("IMAGE", SOPInstanceUID="")):
                break
            await association.echo()


async def test_pending_with_warning_and_refused_stores(samples: Corpus, tmp_path: Path) -> None:
    sample = samples.of_patient("LATIN1")[0]
    with PynetdicomScp(tmp_path, serve=samples.folder, pending=0xFF01, store_status=0xA700) as archive:
        contexts = [*QUERY, *storage([sample])]
        async with dul.connect(peer(archive.address), contexts) as association:
            found = [match async for match in association.find(identifier(StudyInstanceUID=""))]
            assert len(found) == len(samples.study_uids)
            assert {match.status for match in found} == {dimse.PENDING_WITH_WARNING}
            assert await association.store(instance_of(samples, sample)) == 0xA700


async def test_get_of_every_kind(pynetdicom_archive: PynetdicomScp, samples: Corpus) -> None:
    for patient_id in ("LATIN1", "COMPRESSED", "UNUSUAL", "IMPLICIT"):
        wanted = samples.of_patient(patient_id)
        contexts = [*QUERY, *storage(wanted, scp_role=True)]
        async with dul.connect(peer(pynetdicom_archive.address), contexts) as association:
            get = association.get(identifier(StudyInstanceUID=wanted[0].study_uid))
            got = {}
            async for instance in get:
                # It sends each class in its first context: the answers say in which transfer syntax.
                got[instance.sop_instance_uid] = await instance.read(10**7)
            assert get.progress.status == 0
            assert set(got) == {sample.sop_instance_uid for sample in wanted}
            if patient_id == "LATIN1":
                assert got == expected(samples, wanted)


async def test_move_to_our_own_scp(samples: Corpus, tmp_path: Path) -> None:
    receiver = Archive()
    wanted = samples.of_patient("LATIN1")
    async with serving(receiver, "OURSCP") as server:
        with PynetdicomScp(tmp_path, serve=samples.folder, destinations=[address_of(server, "OURSCP")]) as archive:
            async with dul.connect(peer(archive.address), QUERY) as association:
                move = association.move(identifier(StudyInstanceUID=wanted[0].study_uid), destination="OURSCP")
                last = [step async for step in move][-1]
                assert (last.status, last.completed, last.failed) == (0, 6, 0)
                with pytest.raises(dul.StatusError) as raised:
                    await anext(association.move(identifier(), destination="NOWHERE"))
                assert raised.value.status == dimse.MOVE_DESTINATION_UNKNOWN
    assert {uid: stored.data for uid, stored in receiver.stored.items()} == expected(samples, wanted)
    # It names itself as the originator, not the requestor of the C-MOVE (PS3.7 9.1.1.1.6); the Message ID is right.
    assert {stored.originator for stored in receiver.stored.values()} == {("PYNETDICOM", move.message_id)}


async def test_store_of_every_kind(samples: Corpus, tmp_path: Path) -> None:
    wanted = list(samples.samples)
    with PynetdicomScp(tmp_path, serve=samples.folder) as archive:
        async with dul.connect(peer(archive.address), storage(wanted)) as association:
            for sample in wanted:
                assert await association.store(instance_of(samples, sample)) == 0
        assert data_sets(archive.received) == expected(samples, wanted)


@pytest.mark.parametrize("service", ["find", "get", "store"])
async def test_archive_killed_midway(service: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    many = corpus.write(source, corpus.ct_study(1, 40, 256))

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)
            await asyncio.sleep(0)

    contexts = [*QUERY, dul.Context(CT_IMAGE, scp_role=True)]
    with PynetdicomScp(tmp_path, serve=many.folder) as archive:
        async with dul.connect(peer(archive.address), contexts) as association:
            start = time.monotonic()
            with pytest.raises((dul.ConnectionLost, dul.AssociationAborted)):
                if service == "find":
                    async for _ in association.find(identifier("IMAGE", SOPInstanceUID="")):
                        archive.kill()
                        start = time.monotonic()
                elif service == "get":
                    async for instance in association.get(identifier()):
                        async for _ in instance:
                            archive.kill()
                            start = time.monotonic()
                else:
                    asyncio.get_running_loop().call_later(0.1, archive.kill)
                    await association.store(dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, endless))
            assert time.monotonic() - start < 1
            assert not association.is_open


# --- pynetdicom calls ----------------------------------------------------------------------------------------


def study(samples: Corpus, patient_id: str) -> Dataset:
    """Return an identifier for the study of a patient."""
    keys = Dataset()
    keys.QueryRetrieveLevel = "STUDY"
    keys.StudyInstanceUID = samples.of_patient(patient_id)[0].study_uid
    return keys


async def test_pynetdicom_uses_every_service(samples: Corpus, tmp_path: Path) -> None:
    archive = Archive(samples)
    destination = Archive()
    wanted = samples.of_patient("LATIN1") + samples.of_patient("COMPRESSED")
    async with serving(archive) as server, serving(destination, "DESTINATION") as receiver:
        archive.destinations = {"DESTINATION": address_of(receiver, "DESTINATION")}
        scu = PynetdicomScu(address_of(server))
        echoes = await asyncio.to_thread(scu.echo)
        assert [each.status for each in echoes] == [0]

        stored = await asyncio.to_thread(scu.store, [samples.path(sample) for sample in wanted])
        assert [each.status for each in stored] == [0] * len(wanted)
        latin = expected(samples, samples.of_patient("LATIN1"))
        assert latin.items() <= {uid: each.data for uid, each in archive.stored.items()}.items()

        keys = study(samples, "LATIN1")
        keys.PatientName = ""
        found = await asyncio.to_thread(scu.find, keys)
        assert [each.status for each in found] == [0xFF00, 0]
        assert found[0].identifier is not None
        assert str(found[0].identifier.PatientName) == samples.of_patient("LATIN1")[0].patient_name

        kinds = [(sample.sop_class_uid, sample.transfer_syntax_uid) for sample in wanted]
        for patient_id in ("LATIN1", "COMPRESSED"):
            got = await asyncio.to_thread(scu.get, study(samples, patient_id), kinds, tmp_path)
            assert got[-1].status == 0
            moved = await asyncio.to_thread(scu.move, study(samples, patient_id), "DESTINATION")
            assert moved[-1].status == 0
        assert data_sets(tmp_path) == expected(samples, wanted)
        assert {uid: each.data for uid, each in destination.stored.items()} == expected(samples, wanted)


async def test_pynetdicom_with_small_pdus(samples: Corpus, tmp_path: Path) -> None:
    async with serving(Archive(samples)) as server:
        scu = PynetdicomScu(address_of(server), max_pdu=1000)
        got = await asyncio.to_thread(scu.get, study(samples, "LATIN1"), [(CT_IMAGE, wire.EXPLICIT)], tmp_path)
    assert got[-1].status == 0
    assert data_sets(tmp_path) == expected(samples, samples.of_patient("LATIN1"))
