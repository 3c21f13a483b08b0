"""Both roles against Orthanc."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path

import pytest

import dul
from dul import uids
from tests import corpus
from tests.corpus import CT_IMAGE, Corpus, Sample
from tests.dul.archive import Archive, address_of, decode, identifier, instance_of, serving
from tests.peers.orthanc import Orthanc
from tests.peers.process import Address

pytestmark = pytest.mark.usefixtures("nothing_left")

QUERY = [
    dul.Context(uids.VERIFICATION),
    dul.Context(uids.STUDY_ROOT_FIND),
    dul.Context(uids.STUDY_ROOT_MOVE),
    dul.Context(uids.STUDY_ROOT_GET),
]


def peer(archive: Orthanc) -> dul.Peer:
    """Return how Orthanc is called."""
    return dul.Peer(archive.address.host, archive.address.port, archive.address.aet, "SCU")


def expected(samples: Corpus, wanted: list[Sample]) -> dict[str, bytes]:
    """Return the data sets of samples by SOP instance UID."""
    return {sample.sop_instance_uid: samples.data_set(sample) for sample in wanted}


def storage(wanted: list[Sample], *, scp_role: bool = False) -> list[dul.Context]:
    """Return a context for each kind of sample, in its own transfer syntax."""
    kinds = dict.fromkeys((sample.sop_class_uid, sample.transfer_syntax_uid) for sample in wanted)
    return [dul.Context(sop_class, (syntax,), scp_role) for sop_class, syntax in kinds]


# --- we call -------------------------------------------------------------------------------------------------


async def test_echo_and_find(orthanc: Orthanc, samples: Corpus) -> None:
    async with dul.connect(peer(orthanc), QUERY) as association:
        await association.echo()
        found = [match async for match in association.find(identifier(StudyInstanceUID="", PatientID=""))]
        studies = {decode(match.data, match.transfer_syntax).StudyInstanceUID for match in found}
        assert studies == set(samples.study_uids)
        assert [match async for match in association.find(identifier(PatientID="NOBODY"))] == []
        with pytest.raises(dul.StatusError):
            await anext(association.find(identifier("WRONG", StudyInstanceUID="")))
        async for _ in association.find(identifier("IMAGE", SOPInstanceUID="")):
            break
        await association.echo()


@pytest.mark.parametrize("patient_id", ["LATIN1", "COMPRESSED", "UNUSUAL", "BIGENDIAN", "IMPLICIT"])
async def test_move_to_our_own_scp(patient_id: str, orthanc: Orthanc, samples: Corpus) -> None:
    receiver = Archive()
    wanted = samples.of_patient(patient_id)
    async with serving(receiver, "OURSCP") as server, dul.connect(peer(orthanc), QUERY) as association:
        await asyncio.to_thread(orthanc.know, address_of(server, "OURSCP"))
        move = association.move(identifier(StudyInstanceUID=wanted[0].study_uid), destination="OURSCP")
        last = [step async for step in move][-1]
        assert (last.status, last.completed, last.failed) == (0, len(wanted), 0)
        with pytest.raises(dul.StatusError):
            await anext(association.move(identifier(StudyInstanceUID=wanted[0].study_uid), destination="NOWHERE"))
    assert {uid: stored.data for uid, stored in receiver.stored.items()} == expected(samples, wanted)
    for sample in wanted:
        stored = receiver.stored[sample.sop_instance_uid]
        assert (stored.sop_class_uid, stored.transfer_syntax) == (sample.sop_class_uid, sample.transfer_syntax_uid)
        assert stored.originator == ("SCU", move.message_id)


@pytest.mark.parametrize("patient_id", ["LATIN1", "COMPRESSED", "UNUSUAL", "BIGENDIAN", "IMPLICIT"])
async def test_get(patient_id: str, orthanc: Orthanc, samples: Corpus) -> None:
    wanted = samples.of_patient(patient_id)
    contexts = [*QUERY, *storage(wanted, scp_role=True)]
    async with dul.connect(peer(orthanc), contexts) as association:
        get = association.get(identifier(StudyInstanceUID=wanted[0].study_uid))
        got = {instance.sop_instance_uid: await instance.read(10**7) async for instance in get}
        assert (get.progress.status, get.progress.failed) == (0, 0)
    assert got == expected(samples, wanted)


async def test_store_of_every_kind_comes_out_as_it_went_in(samples: Corpus, tmp_path: Path) -> None:
    wanted = list(samples.samples)
    with Orthanc(tmp_path) as archive:
        async with dul.connect(peer(archive), storage(wanted)) as association:
            for sample in wanted:
                assert await association.store(instance_of(samples, sample)) == 0
        got = {}
        async with dul.connect(peer(archive), [*QUERY, *storage(wanted, scp_role=True)]) as association:
            for study_uid in samples.study_uids:
                async for instance in association.get(identifier(StudyInstanceUID=study_uid)):
                    got[instance.sop_instance_uid] = await instance.read(10**7)
        assert got == expected(samples, wanted)


async def test_archive_killed_or_silent_midway(tmp_path: Path) -> None:
    with Orthanc(tmp_path) as archive:
        archive.upload(corpus.ct_study(1, 60))
        contexts = [*QUERY, dul.Context(CT_IMAGE, scp_role=True)]
        study = identifier(StudyInstanceUID=corpus.uid(corpus.CT_STUDY, 1))

        async with dul.connect(peer(archive), contexts, timeouts=dul.Timeouts(idle=0.3, release=0.2)) as association:
            with pytest.raises(dul.PeerTimeout):
                async for instance in association.get(study):
                    archive.suspend()
                    async for _ in instance:
                        pass
        archive.resume()

        async with dul.connect(peer(archive), contexts) as association:
            start = time.monotonic()
            with pytest.raises((dul.ConnectionLost, dul.AssociationAborted)):
                async for instance in association.get(study):
                    archive.kill()
                    start = time.monotonic()
                    async for _ in instance:
                        pass
            assert time.monotonic() - start < 1


# --- Orthanc calls -------------------------------------------------------------------------------------------


async def test_orthanc_echoes_and_stores(orthanc: Orthanc, samples: Corpus) -> None:
    receiver = Archive()
    async with serving(receiver, "OURSCP") as server:
        await asyncio.to_thread(orthanc.know, address_of(server, "OURSCP"))
        await asyncio.to_thread(orthanc.rest, "POST", "/modalities/OURSCP/echo", b"{}")
        everything = await asyncio.to_thread(orthanc.rest, "GET", "/instances")
        done = await asyncio.to_thread(
            orthanc.rest, "POST", "/modalities/OURSCP/store", json.dumps({"Resources": everything}).encode()
        )
        assert done["FailedInstancesCount"] == 0
    assert receiver.echoes == ["ORTHANC"]
    assert {uid: stored.data for uid, stored in receiver.stored.items()} == expected(samples, list(samples.samples))


async def test_orthanc_finds_and_moves(samples: Corpus, tmp_path: Path) -> None:
    wanted = samples.of_patient("LATIN1")
    with Orthanc(tmp_path, aet="MOVER") as mover:
        archive = Archive(samples, {"MOVER": mover.address})
        async with serving(archive) as server:
            await asyncio.to_thread(mover.know, Address("SCP", server.port))
            query = {"Level": "Study", "Query": {"PatientID": "LATIN1", "StudyInstanceUID": ""}}
            answer = await asyncio.to_thread(mover.rest, "POST", "/modalities/SCP/query", json.dumps(query).encode())
            found = await asyncio.to_thread(mover.rest, "GET", f"/queries/{answer['ID']}/answers")
            assert len(found) == 1
            retrieve = f"/queries/{answer['ID']}/answers/0/retrieve"
            await asyncio.to_thread(mover.rest, "POST", retrieve, b'{"TargetAet": "MOVER"}')
            arrived = await asyncio.to_thread(mover.rest, "GET", "/instances")
            assert len(arrived) == len(wanted)


async def test_eight_moves_at_once_do_not_mix(orthanc: Orthanc, samples: Corpus) -> None:
    receiver = Archive()
    studies = samples.study_uids[:8]
    async with serving(receiver, "OURSCP") as server:
        await asyncio.to_thread(orthanc.know, address_of(server, "OURSCP"))

        async def move(study_uid: str) -> int:
            async with contextlib.AsyncExitStack() as stack:
                association = await stack.enter_async_context(dul.connect(peer(orthanc), QUERY))
                operation = association.move(identifier(StudyInstanceUID=study_uid), destination="OURSCP")
                async for _ in operation:
                    pass
                return operation.message_id

        message_ids = await asyncio.gather(*map(move, studies))
    of_move = dict(zip(studies, message_ids, strict=True))
    for uid, stored in receiver.stored.items():
        assert stored.originator == ("SCU", of_move[samples.by_uid[uid].study_uid])
    assert set(receiver.stored) == {each.sop_instance_uid for each in samples.samples if each.study_uid in of_move}
