"""C-MOVE, C-GET and C-STORE of the demo archive, byte for byte, with DCMTK's, pynetdicom's and our own SCU."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

import dul
from dul import Context, dimse, uids
from proxy.dataset.reader import EXPLICIT_VR_LITTLE_ENDIAN
from proxy.demo.archive import DemoArchive
from proxy.demo.index import Index
from tests.corpus import PRIVATE_STORAGE, Corpus
from tests.peers.dcmtk import Scu, Storescp
from tests.peers.pynetdicom_peer import PynetdicomScu
from tests.proxy.demo_archives import (
    CT,
    DATA,
    add,
    address,
    connected,
    expected,
    failure,
    find_all,
    find_texts,
    identifier,
    received,
    scu,
)


@pytest.fixture
async def archive(samples: Corpus) -> AsyncIterator[DemoArchive]:
    async with DemoArchive(samples.folder, destinations={}) as started:
        yield started


async def test_move_sends_every_kind_of_instance_as_it_is(
    archive: DemoArchive, samples: Corpus, storescp: Storescp
) -> None:
    archive.destinations["STORESCP"] = ("127.0.0.1", storescp.address.port)
    uids_of_studies = "\\".join(samples.study_uids)
    done = await scu(Scu(address(archive)).move, "STORESCP", f"StudyInstanceUID={uids_of_studies}")
    assert "Final Move Response (Success)" in done.succeeded().output
    assert received(storescp.received) == expected(samples.samples)


async def test_move_of_a_series_and_of_an_instance(archive: DemoArchive, samples: Corpus, storescp: Storescp) -> None:
    archive.destinations["STORESCP"] = ("127.0.0.1", storescp.address.port)
    of_patient = samples.of_patient("LATIN1")
    series = [sample for sample in of_patient if sample.series_uid == of_patient[0].series_uid]
    move = Scu(address(archive)).move
    keys = (f"StudyInstanceUID={series[0].study_uid}", f"SeriesInstanceUID={series[0].series_uid}")
    (await scu(move, "STORESCP", *keys, level="SERIES")).succeeded()
    assert received(storescp.received) == expected(series)
    [one] = samples.of_patient("ECG")
    keys = (f"StudyInstanceUID={one.study_uid}", f"SeriesInstanceUID={one.series_uid}")
    instance, patient = f"SOPInstanceUID={one.sop_instance_uid}", "PatientID=ECG"
    (await scu(move, "STORESCP", *keys, instance, patient, level="IMAGE", arguments=("-P",))).succeeded()
    assert received(storescp.received) == expected([*series, one])


async def test_move_to_a_stranger_is_refused(archive: DemoArchive) -> None:
    wanted = identifier("STUDY", StudyInstanceUID="1.2.3")
    assert await failure(archive, uids.STUDY_ROOT_MOVE, wanted, "STRANGER") == dimse.MOVE_DESTINATION_UNKNOWN


@pytest.mark.parametrize("model", [uids.STUDY_ROOT_GET, uids.STUDY_ROOT_MOVE])
async def test_nothing_to_send_is_a_success(archive: DemoArchive, model: str) -> None:
    archive.destinations["DEST"] = ("127.0.0.1", 1)
    wanted = identifier("STUDY", StudyInstanceUID="1.2.3")
    async with connected(archive) as association:
        if model == uids.STUDY_ROOT_GET:
            assert [instance async for instance in association.get(wanted)] == []
        else:
            [final] = [progress async for progress in association.move(wanted, destination="DEST")]
            assert (final.status, final.completed, final.failed) == (0, 0, 0)


async def test_get_sends_every_kind_of_instance_as_it_is(archive: DemoArchive, samples: Corpus, tmp_path: Path) -> None:
    wanted = Dataset()
    wanted.QueryRetrieveLevel, wanted.StudyInstanceUID = "STUDY", samples.study_uids
    storage = {(sample.sop_class_uid, sample.transfer_syntax_uid) for sample in samples.samples}
    *_, final = await asyncio.to_thread(PynetdicomScu(address(archive)).get, wanted, storage, tmp_path)
    assert final.status == 0
    assert received(tmp_path) == expected(samples.samples)


async def test_getscu_gets_a_patient(archive: DemoArchive, samples: Corpus, tmp_path: Path) -> None:
    get = Scu(address(archive)).get
    (await scu(get, tmp_path, "PatientID=LATIN1", level="PATIENT", arguments=("-P",))).succeeded()
    assert received(tmp_path) == expected(samples.of_patient("LATIN1"))


async def test_instances_in_memory_are_sent_too() -> None:
    index = Index()
    add(index, 1, 1, 1)
    contexts = [Context(uids.STUDY_ROOT_GET), Context(CT, scp_role=True)]
    async with DemoArchive(None, index=index) as archive, connected(archive, contexts) as association:
        wanted = identifier("STUDY", StudyInstanceUID="1.2.1")
        assert [await instance.read(len(DATA)) async for instance in association.get(wanted)] == [DATA]


# --- C-STORE -------------------------------------------------------------------------------------------------


async def test_what_is_stored_is_found_at_once_and_after_a_restart(samples: Corpus, tmp_path: Path) -> None:
    wanted = samples.of_patient("LATIN1")
    async with DemoArchive(tmp_path) as archive:
        done = await scu(Scu(address(archive)).store, map(samples.path, wanted))
        assert done.succeeded().output.count("(Success)") == len(wanted)
        assert archive.instance_count == len(wanted)
        assert len(await find_all(archive, identifier("STUDY", PatientName="müller*"))) == 1
    assert received(tmp_path) == expected(wanted)
    async with DemoArchive(tmp_path) as archive:
        assert (archive.instance_count, archive.skipped) == (len(wanted), {})
        (await scu(Scu(address(archive)).get, tmp_path, f"StudyInstanceUID={wanted[0].study_uid}")).succeeded()


@pytest.fixture
def lenient_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("lenient_umask")
async def test_files_are_their_owners_alone_and_their_names_tell_nothing(samples: Corpus, tmp_path: Path) -> None:
    [sample] = samples.of_patient("ECG")
    async with DemoArchive(tmp_path, store_folder=tmp_path / "store") as archive:
        [response] = await asyncio.to_thread(PynetdicomScu(address(archive)).store, [samples.path(sample)])
        assert response.status == 0
    [file] = (tmp_path / "store").iterdir()
    assert sample.sop_instance_uid not in file.name
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


async def store(archive: DemoArchive, data: bytes, uid: str, syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> int:
    async with connected(archive, [Context(CT, (syntax,))]) as association:
        return await association.store(dul.Instance(CT, uid, syntax, data))


async def test_a_later_version_takes_the_place_of_the_one_before(samples: Corpus, tmp_path: Path) -> None:
    """Also of one that was in the folder from the beginning, whose file stays."""
    original = samples.of_patient("LATIN1")[0]
    (tmp_path / "original.dcm").write_bytes(samples.path(original).read_bytes())
    data = samples.data_set(original)
    versions = [data.replace(b"Referrer^Rita", name) for name in (b"Another^Rita1", b"Another^Rita2")]
    async with DemoArchive(tmp_path) as archive:
        for version in versions:
            assert await store(archive, version, original.sop_instance_uid) == 0
        assert archive.instance_count == 1
    assert samples.path(original).read_bytes() == (tmp_path / "original.dcm").read_bytes()
    assert len(list((tmp_path / "received").iterdir())) == 1
    async with DemoArchive(tmp_path) as archive:
        [answer] = await find_texts(archive, "STUDY", ReferringPhysicianName="")
        assert answer["ReferringPhysicianName"] == "Another^Rita2"
        contexts = [Context(uids.STUDY_ROOT_GET), Context(CT, scp_role=True)]
        async with connected(archive, contexts) as association:
            wanted = identifier("STUDY", StudyInstanceUID=original.study_uid)
            assert [await one.read(len(data)) async for one in association.get(wanted)] == [versions[1]]


async def test_what_is_no_instance_is_refused_and_leaves_nothing_behind(samples: Corpus, tmp_path: Path) -> None:
    sample = samples.of_patient("LATIN1")[0]
    data, uid = samples.data_set(sample), sample.sop_instance_uid
    without_study = data.replace(b"\x20\x00\x0d\x00UI", b"\x20\x00\x0d\x01UI")
    async with DemoArchive(tmp_path, index=Index(max_instances=0)) as archive:
        assert await store(archive, data, uid) == dimse.REFUSED_OUT_OF_RESOURCES
    async with DemoArchive(None) as archive:
        assert await store(archive, data, uid) == dimse.REFUSED_OUT_OF_RESOURCES
    async with DemoArchive(tmp_path) as archive:
        assert await store(archive, data, "1.2.3") == dimse.IDENTIFIER_DOES_NOT_MATCH
        assert await store(archive, data[:-1], uid) == dimse.UNABLE_TO_PROCESS
        assert await store(archive, without_study, uid) == dimse.UNABLE_TO_PROCESS
        assert archive.instance_count == 0
    assert list((tmp_path / "received").iterdir()) == []


async def test_a_folder_that_cannot_be_written_to_is_out_of_resources(samples: Corpus, tmp_path: Path) -> None:
    (tmp_path / "received").write_bytes(b"a file is in the way")
    sample = samples.of_patient("LATIN1")[0]
    async with DemoArchive(tmp_path) as archive:
        status = await store(archive, samples.data_set(sample), sample.sop_instance_uid)
    assert status == dimse.REFUSED_OUT_OF_RESOURCES


async def test_a_store_that_breaks_off_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "received").mkdir()
    (tmp_path / "received" / ".killed.part").touch()  # by a process before
    begun = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield bytes(1000)
        yield bytes(1000)
        begun.set()
        await asyncio.Event().wait()

    async with DemoArchive(tmp_path) as archive, connected(archive, [Context(CT)]) as association:
        instance = dul.Instance(CT, "1.2.3", EXPLICIT_VR_LITTLE_ENDIAN, half)
        task = asyncio.create_task(association.store(instance))
        await begun.wait()
        while not list((tmp_path / "received").iterdir()):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            while list((tmp_path / "received").iterdir()):
                await asyncio.sleep(0.001)


async def test_only_its_models_and_storage_are_accepted(archive: DemoArchive) -> None:
    patient_study_only = "1.2.840.10008.5.1.4.1.2.3.1"
    contexts = [Context(patient_study_only), Context(PRIVATE_STORAGE), Context(uids.STUDY_ROOT_FIND)]
    async with connected(archive, contexts) as association:
        accepted = {context.abstract_syntax for context in association.contexts.values()}
    assert accepted == {PRIVATE_STORAGE, uids.STUDY_ROOT_FIND}
