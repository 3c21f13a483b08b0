"""Both roles against DCMTK: `dcmqrscp` and `storescp` are called, and its SCUs call us."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

import dul
from dul import dimse, uids
from tests import corpus
from tests.corpus import CT_IMAGE, PRIVATE_STORAGE, Corpus, Sample
from tests.dul import wire
from tests.dul.archive import Archive, address_of, decode, identifier, instance_of, serving
from tests.peers.dcmtk import Dcmqrscp, Scu, Storescp, dcmqrscp_takes
from tests.peers.process import Address

pytestmark = pytest.mark.usefixtures("nothing_left")

QUERY = [
    dul.Context(uids.VERIFICATION),
    dul.Context(uids.STUDY_ROOT_FIND),
    dul.Context(uids.STUDY_ROOT_MOVE),
    dul.Context(uids.STUDY_ROOT_GET),
    dul.Context(uids.PATIENT_ROOT_FIND),
]
STORAGE = [dul.Context(CT_IMAGE, scp_role=True)]


def peer(address: Address) -> dul.Peer:
    """Return how a program is called."""
    return dul.Peer(address.host, address.port, address.aet, "SCU")


def data_sets(files: list[Path]) -> dict[str, bytes]:
    """Return the data sets of files by SOP instance UID."""
    contents = [path.read_bytes() for path in files]
    return {corpus.describe(each, "").sop_instance_uid: corpus.data_set_bytes(each) for each in contents}


def expected(samples: Corpus, wanted: list[Sample]) -> dict[str, bytes]:
    """Return the data sets of samples by SOP instance UID."""
    return {sample.sop_instance_uid: samples.data_set(sample) for sample in wanted}


def contexts_for(wanted: list[Sample]) -> list[dul.Context]:
    """Return a context for each kind of sample, in its own transfer syntax."""
    kinds = dict.fromkeys((sample.sop_class_uid, sample.transfer_syntax_uid) for sample in wanted)
    return [dul.Context(sop_class, (syntax,)) for sop_class, syntax in kinds]


# --- we call -------------------------------------------------------------------------------------------------


async def test_echo_and_find(dcmqrscp: Dcmqrscp, samples: Corpus) -> None:
    async with dul.connect(peer(dcmqrscp.address), QUERY) as association:
        await association.echo()
        keys = identifier(StudyInstanceUID="", PatientID="")
        found = [match async for match in association.find(keys)]
        assert {match.status for match in found} == {0xFF00}
        assert {decode(match.data, match.transfer_syntax).StudyInstanceUID for match in found} == {
            sample.study_uid for sample in samples.samples if dcmqrscp_takes(sample)
        }
        assert [match async for match in association.find(identifier(PatientID="NOBODY"))] == []
        by_patient = association.find(identifier("PATIENT", PatientID="LATIN1"), model=uids.PATIENT_ROOT_FIND)
        assert [decode(match.data, match.transfer_syntax).PatientID async for match in by_patient] == ["LATIN1"]
        with pytest.raises(dul.StatusError) as raised:
            await anext(association.find(identifier("NO SUCH LEVEL", StudyInstanceUID="")))
        assert dul.status_class(raised.value.status) is dul.StatusClass.FAILURE
        await association.echo()


async def test_find_left_early_and_the_association_goes_on(dcmqrscp: Dcmqrscp) -> None:
    async with dul.connect(peer(dcmqrscp.address), QUERY) as association:
        for _ in range(5):
            async for _ in association.find(identifier(StudyInstanceUID="")):
                break
            await association.echo()


async def test_move_to_our_own_scp(samples: Corpus, tmp_path: Path) -> None:
    receiver = Archive()
    wanted = samples.of_patient("LATIN1")
    async with serving(receiver, "OURSCP") as server:
        with Dcmqrscp(tmp_path, destinations=[address_of(server, "OURSCP")]) as archive:
            files = [samples.path(sample) for sample in wanted]
            (await asyncio.to_thread(Scu(archive.address).store, files)).succeeded()
            async with dul.connect(peer(archive.address), QUERY) as association:
                move = association.move(identifier(StudyInstanceUID=wanted[0].study_uid), destination="OURSCP")
                steps = [step async for step in move]
                assert [step.final for step in steps] == [False] * (len(steps) - 1) + [True]
                assert (steps[-1].status, steps[-1].completed, steps[-1].failed) == (0, 6, 0)
                with pytest.raises(dul.StatusError) as raised:
                    nowhere = association.move(identifier(StudyInstanceUID=wanted[0].study_uid), destination="NOWHERE")
                    await anext(nowhere)
                assert raised.value.status == dimse.MOVE_DESTINATION_UNKNOWN
    assert {uid: stored.data for uid, stored in receiver.stored.items()} == expected(samples, wanted)
    assert {stored.originator for stored in receiver.stored.values()} == {("SCU", move.message_id)}


async def test_get(dcmqrscp: Dcmqrscp, samples: Corpus) -> None:
    wanted = samples.of_patient("LATIN1")
    async with dul.connect(peer(dcmqrscp.address), QUERY + STORAGE) as association:
        get = association.get(identifier(StudyInstanceUID=wanted[0].study_uid))
        got = {instance.sop_instance_uid: await instance.read(10**6) async for instance in get}
        assert got == expected(samples, wanted)
        assert (get.progress.status, get.progress.completed, get.progress.failed) == (0, 6, 0)
        # Left within the second instance, it is cancelled, and the association lives.
        number = 0
        async for instance in association.get(identifier(StudyInstanceUID=wanted[0].study_uid)):
            number += 1
            if number == 2:
                await anext(aiter(instance))
                break
        await association.echo()


async def test_store_of_every_kind(storescp: Storescp, samples: Corpus) -> None:
    wanted = list(samples.samples)
    async with dul.connect(peer(storescp.address), contexts_for(wanted)) as association:
        for sample in wanted:
            assert await association.store(instance_of(samples, sample)) == 0
    assert data_sets(storescp.files()) == expected(samples, wanted)


async def test_store_of_a_stream_in_odd_chunks(storescp: Storescp, samples: Corpus) -> None:
    sample = samples.of_patient("LATIN1")[0]
    data = samples.data_set(sample)

    async def source() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 333):
            yield data[start : start + 333]

    instance = dul.Instance(sample.sop_class_uid, sample.sop_instance_uid, sample.transfer_syntax_uid, source)
    async with dul.connect(peer(storescp.address), STORAGE) as association:
        assert await association.store(instance) == 0
    assert data_sets(storescp.files()) == {sample.sop_instance_uid: data}


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("--abort-after", dul.AssociationAborted),
        ("--abort-during", dul.AssociationAborted),
        ("--refuse", dul.AssociationRejected),
    ],
)
async def test_storescp_that_will_not(
    option: str, error: type[dul.AssociationError], samples: Corpus, tmp_path: Path
) -> None:
    sample = samples.of_patient("LATIN1")[0]
    with Storescp(tmp_path, options=[option]) as receiver:
        start = time.monotonic()
        with pytest.raises(error):
            async with dul.connect(peer(receiver.address), STORAGE) as association:
                await association.store(instance_of(samples, sample))
                await association.store(instance_of(samples, sample))
        assert time.monotonic() - start < 3


async def test_storescp_killed_within_a_data_set(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"\x08\x00\x18\x00UI\x04\x001.2\0" + b"\xe0\x7f\x10\x00OB\0\0" + (2**31).to_bytes(4, "little")
        while True:
            yield bytes(65536)
            begun.set()
            await asyncio.sleep(0)

    with Storescp(tmp_path) as receiver:
        async with dul.connect(peer(receiver.address), STORAGE) as association:
            storing = asyncio.create_task(association.store(dul.Instance(CT_IMAGE, "1.2", wire.EXPLICIT, endless)))
            await begun.wait()
            receiver.process.stop(kill=True)
            start = time.monotonic()
            with pytest.raises((dul.ConnectionLost, dul.AssociationAborted)):
                await storing
            assert time.monotonic() - start < 1


async def test_storescp_that_hangs_is_given_up(tmp_path: Path, samples: Corpus) -> None:
    timeouts = dul.Timeouts(response=0.2)
    instance = instance_of(samples, samples.of_patient("LATIN1")[0])
    with Storescp(tmp_path, options=["--sleep-during", "2"]) as receiver:
        async with dul.connect(peer(receiver.address), STORAGE, timeouts=timeouts) as association:
            with pytest.raises(dul.PeerTimeout, match="no C-STORE response within"):
                await association.store(instance)


# --- DCMTK calls ---------------------------------------------------------------------------------------------


async def test_echoscu() -> None:
    archive = Archive()
    async with serving(archive) as server:
        done = await asyncio.to_thread(Scu(address_of(server)).echo, "--repeat", "3")
        assert done.succeeded().output.count("Received Echo Response (Success)") == 3
        other = await asyncio.to_thread(Scu(Address("OTHER", server.port)).echo)
        assert "Called AE Title Not Recognized" in other.output
        aborting = await asyncio.to_thread(Scu(address_of(server)).echo, "--abort")
        aborting.succeeded()
        async with asyncio.timeout(1):
            while server.association_count:
                await asyncio.sleep(0.005)
    assert archive.echoes == ["TESTSCU"] * 4


async def test_storescu_of_every_kind(samples: Corpus) -> None:
    wanted = [
        sample
        for sample in samples.samples
        # storescu itself knows no private class.
        if sample.transfer_syntax_uid in _STORESCU_OPTIONS and sample.sop_class_uid != PRIVATE_STORAGE
    ]
    assert len(wanted) > 20
    archive = Archive()
    async with serving(archive) as server:
        scu = Scu(address_of(server))
        for syntax, option in _STORESCU_OPTIONS.items():
            files = [samples.path(sample) for sample in wanted if sample.transfer_syntax_uid == syntax]
            (await asyncio.to_thread(scu.store, files, option, "--required")).succeeded()
    got = {uid: (stored.transfer_syntax, stored.data) for uid, stored in archive.stored.items()}
    assert got == {each.sop_instance_uid: (each.transfer_syntax_uid, samples.data_set(each)) for each in wanted}


_STORESCU_OPTIONS = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}


async def test_findscu(samples: Corpus) -> None:
    async with serving(Archive(samples)) as server:
        scu = Scu(address_of(server))
        found = await asyncio.to_thread(scu.find, "PatientID", "StudyInstanceUID")
        assert {match.StudyInstanceUID for match in found} == set(samples.study_uids)
        assert await asyncio.to_thread(scu.find, "PatientID=NOBODY") == []
        wrong = ["-S", "-k", "QueryRetrieveLevel=WRONG", "-k", "StudyInstanceUID"]
        failed = await asyncio.to_thread(scu.run, "findscu", "-v", *wrong)
        assert "Error: DataSetDoesNotMatchSOPClass" in failed.output


async def test_findscu_that_cancels(samples: Corpus) -> None:
    archive = Archive(samples, repeat=5000)
    async with serving(archive) as server:
        keys = ["-S", "-v", "--cancel", "3", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID"]
        done = await asyncio.to_thread(Scu(address_of(server)).run, "findscu", *keys)
    assert "Cancel" in done.succeeded().output
    assert archive.matches_given < 5000 * len(samples.study_uids)


async def test_movescu(samples: Corpus, storescp: Storescp) -> None:
    archive = Archive(samples, {storescp.address.aet: storescp.address})
    async with serving(archive) as server:
        scu = Scu(address_of(server))
        for study_uid in samples.study_uids:
            key = f"StudyInstanceUID={study_uid}"
            (await asyncio.to_thread(scu.move, storescp.address.aet, key)).succeeded()
        nowhere = await asyncio.to_thread(scu.move, "NOWHERE", f"StudyInstanceUID={samples.study_uids[0]}")
        assert "MoveDestinationUnknown" in nowhere.output
    assert data_sets(storescp.files()) == expected(samples, list(samples.samples))


class ManySmall(dul.Handler):
    """Has a thousand instances for any C-GET and C-MOVE."""

    def __init__(self, samples: Corpus, destination: Address | None = None) -> None:
        self._data = samples.data_set(samples.of_patient("LATIN1")[0])
        self._destination = destination
        self.sent = 0

    async def on_get(self, request: dul.Request) -> list[dul.Instance]:
        async def source() -> AsyncGenerator[bytes, None]:
            self.sent += 1
            yield self._data

        return [dul.Instance(CT_IMAGE, f"1.2.{number}", wire.EXPLICIT, source) for number in range(1000)]

    async def on_move(self, request: dul.Request) -> dul.MovePlan:
        assert self._destination is not None
        return dul.MovePlan(peer(self._destination), await self.on_get(request))


async def test_movescu_that_cancels(samples: Corpus, tmp_path: Path) -> None:
    with Storescp(tmp_path, options=["--ignore"]) as receiver:
        handler = ManySmall(samples, receiver.address)
        async with serving(handler) as server:
            keys = ["-S", "-v", "-aem", "ANY", "--cancel", "3"]
            keys += ["-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2"]
            done = await asyncio.to_thread(Scu(address_of(server)).run, "movescu", *keys)
    assert "Cancel" in done.output
    assert 3 <= handler.sent < 1000


async def test_getscu_of_every_uncompressed_kind(samples: Corpus) -> None:
    folder = Path(tempfile.mkdtemp(prefix="getscu-"))
    wanted = samples.of_patient("LATIN1") + samples.of_patient("REPORT")
    try:
        async with serving(Archive(samples)) as server:
            for patient_id in ("LATIN1", "REPORT"):
                study_uid = samples.of_patient(patient_id)[0].study_uid
                done = await asyncio.to_thread(Scu(address_of(server)).get, folder, f"StudyInstanceUID={study_uid}")
                done.succeeded()
        assert data_sets(sorted(folder.iterdir())) == expected(samples, wanted)
    finally:
        shutil.rmtree(folder)


async def test_from_our_archive_to_dcmqrscp_and_back(samples: Corpus, tmp_path: Path) -> None:
    wanted = samples.of_patient("LATIN1")
    with Dcmqrscp(tmp_path) as destination:
        async with serving(Archive(samples, {destination.address.aet: destination.address})) as server:
            key = f"StudyInstanceUID={wanted[0].study_uid}"
            done = await asyncio.to_thread(Scu(address_of(server)).move, destination.address.aet, key)
            done.succeeded()
        async with dul.connect(peer(destination.address), QUERY + STORAGE) as association:
            get = association.get(identifier(StudyInstanceUID=wanted[0].study_uid))
            assert {each.sop_instance_uid: await each.read(10**6) async for each in get} == expected(samples, wanted)
