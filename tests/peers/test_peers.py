"""The peers work, and work together: so a failure elsewhere is not theirs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from tests import corpus
from tests.corpus import Corpus, Sample
from tests.peers.dcmtk import Dcmqrscp, Scu, Storescp, dcmqrscp_takes
from tests.peers.orthanc import Orthanc
from tests.peers.process import Address, PeerFailedError, Process, answers, free_port, run_program
from tests.peers.pynetdicom_peer import PynetdicomScp, PynetdicomScu


def received(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each data set in a folder by SOP instance UID."""
    files = (corpus.describe(path.read_bytes(), path.name) for path in folder.iterdir())
    return {sample.sop_instance_uid: sample.sha256 for sample in files}


def expected(samples: list[Sample]) -> dict[str, str]:
    """Return the same of samples."""
    return {sample.sop_instance_uid: sample.sha256 for sample in samples}


def study_key(samples: Corpus, patient_id: str) -> str:
    """Return a findscu key for the study of a patient."""
    return f"StudyInstanceUID={samples.of_patient(patient_id)[0].study_uid}"


def study_identifier(samples: Corpus, patient_id: str) -> Dataset:
    """Return an identifier for the study of a patient."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    identifier.StudyInstanceUID = samples.of_patient(patient_id)[0].study_uid
    return identifier


def test_corpus_is_the_same_on_every_run(samples: Corpus, tmp_path: Path) -> None:
    again = corpus.write(tmp_path, corpus.mixed())
    assert again.samples == samples.samples
    assert Corpus.load(tmp_path) == again


def test_ct_study_has_distinct_instances_of_half_a_megabyte() -> None:
    files = [corpus.describe(file, "") for file in corpus.ct_study(series=2, instances=3)]
    assert len({sample.sha256 for sample in files}) == 6
    assert all(sample.size > 512 * 512 * 2 for sample in files)
    assert len({sample.study_uid for sample in files}) == 1
    assert len({sample.series_uid for sample in files}) == 2


def test_tiny_studies_are_one_instance_of_5_kb_each() -> None:
    files = [corpus.describe(file, "") for file in corpus.tiny_studies(3)]
    assert len({sample.study_uid for sample in files}) == 3
    assert all(4000 < sample.size < 6000 for sample in files)


@pytest.mark.parametrize("archive", ["orthanc", "dcmqrscp", "pynetdicom_archive"])
def test_archives_answer_echo(archive: str, request: pytest.FixtureRequest) -> None:
    peer: Address = request.getfixturevalue(archive).address
    assert "Received Echo Response (Success)" in Scu(peer).echo().succeeded().output
    assert [response.status for response in PynetdicomScu(peer).echo()] == [0]


def test_orthanc_finds_names_in_every_character_set(orthanc: Orthanc, samples: Corpus) -> None:
    matches = Scu(orthanc.address).find("PatientID", "PatientName")
    assert {match.PatientID: match.PatientName for match in matches} == {
        sample.patient_id: sample.patient_name for sample in samples.samples
    }


def test_stored_to_dcmqrscp_is_found_there(dcmqrscp: Dcmqrscp, samples: Corpus) -> None:
    matches = Scu(dcmqrscp.address).find("PatientID=LATIN1", "StudyInstanceUID")
    assert [match.StudyInstanceUID for match in matches] == [samples.of_patient("LATIN1")[0].study_uid]
    everything = Scu(dcmqrscp.address).find("StudyInstanceUID")
    assert {match.StudyInstanceUID for match in everything} == {
        sample.study_uid for sample in samples.samples if dcmqrscp_takes(sample)
    }


@pytest.mark.parametrize("archive", ["orthanc", "dcmqrscp"])
def test_c_get_gives_back_the_same_bytes(
    archive: str, samples: Corpus, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    peer: Address = request.getfixturevalue(archive).address
    Scu(peer).get(tmp_path, study_key(samples, "LATIN1")).succeeded()
    assert received(tmp_path) == expected(samples.of_patient("LATIN1"))


def test_c_move_from_orthanc_gives_back_every_sample_byte_for_byte(
    orthanc: Orthanc, storescp: Storescp, samples: Corpus
) -> None:
    orthanc.know(storescp.address)
    for study_uid in samples.study_uids:
        key = f"StudyInstanceUID={study_uid}"
        Scu(orthanc.address).move(storescp.address.aet, key).succeeded()
    assert received(storescp.received) == expected(list(samples.samples))


def test_c_move_from_dcmqrscp(dcmqrscp: Dcmqrscp, storescp: Storescp, samples: Corpus) -> None:
    dcmqrscp.know(storescp.address)
    for study_uid in {sample.study_uid for sample in samples.samples if dcmqrscp_takes(sample)}:
        key = f"StudyInstanceUID={study_uid}"
        Scu(dcmqrscp.address).move(storescp.address.aet, key).succeeded()
    stored = [sample for sample in samples.samples if dcmqrscp_takes(sample)]
    got = received(storescp.received)
    assert set(got) == {sample.sop_instance_uid for sample in stored}
    kept = [sample for sample in stored if sample.transfer_syntax_uid == ExplicitVRLittleEndian]
    assert expected(kept).items() <= got.items()


def test_orthanc_rejects_another_called_aet_when_asked_to(tmp_path: Path) -> None:
    with Orthanc(tmp_path, check_called_aet=True) as archive:
        assert Scu(archive.address).echo().code == 0
        assert "Called AE Title Not Recognized" in Scu(Address("OTHER", archive.address.port)).echo().output


def test_orthanc_dicomweb_plugin_answers(orthanc_dicomweb: Orthanc, samples: Corpus) -> None:
    studies = orthanc_dicomweb.rest("GET", "/dicom-web/studies")
    assert {study["0020000D"]["Value"][0] for study in studies} == set(samples.study_uids)


def test_pynetdicom_archive_finds(pynetdicom_archive: PynetdicomScp, samples: Corpus) -> None:
    matches = Scu(pynetdicom_archive.address).find("PatientID=JAPANESE", "PatientName")
    assert [str(match.PatientName) for match in matches] == [samples.of_patient("JAPANESE")[0].patient_name]


def test_pynetdicom_archive_moves_and_gets_every_kind(
    pynetdicom_archive: PynetdicomScp, storescp: Storescp, samples: Corpus, tmp_path: Path
) -> None:
    pynetdicom_archive.know(storescp.address)
    scu = PynetdicomScu(pynetdicom_archive.address)
    for patient_id in ("COMPRESSED", "UNUSUAL", "BIGENDIAN"):
        final = scu.move(study_identifier(samples, patient_id), storescp.address.aet)[-1]
        assert final.status == 0
    folder = tmp_path / "get"
    folder.mkdir()
    kinds = [(each.sop_class_uid, each.transfer_syntax_uid) for each in samples.of_patient("COMPRESSED")]
    final = scu.get(study_identifier(samples, "COMPRESSED"), kinds, folder)[-1]
    assert final.status == 0
    assert set(received(folder)) == set(expected(samples.of_patient("COMPRESSED")))


def test_pynetdicom_stores_to_storescp(storescp: Storescp, samples: Corpus) -> None:
    wanted = samples.of_patient("LATIN1")
    responses = PynetdicomScu(storescp.address).store(map(samples.path, wanted))
    assert [response.status for response in responses] == [0] * len(wanted)
    assert received(storescp.received) == expected(wanted)


def test_dcmtk_stores_to_pynetdicom(samples: Corpus, tmp_path: Path) -> None:
    wanted = samples.of_patient("LATIN1")
    with PynetdicomScp(tmp_path) as receiver:
        Scu(receiver.address).store(map(samples.path, wanted)).succeeded()
        assert received(receiver.received) == expected(wanted)


def test_killed_archive_is_gone_with_its_children(tmp_path: Path) -> None:
    with Dcmqrscp(tmp_path) as archive:
        archive.kill()
        assert not answers(archive.address.port)


def test_peer_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    process = Process("broken", [sys.executable, "-c", "print('no such luck')"], tmp_path)
    with pytest.raises(PeerFailedError, match="no such luck"):
        process.start(lambda: False)
    silent = Process("silent", ["sleep", "60"], tmp_path)
    with pytest.raises(PeerFailedError, match="did not answer"):
        silent.start(lambda: False, timeout=0.1)
    assert not silent.alive


def test_scu_that_hangs_is_ended() -> None:
    with pytest.raises(PeerFailedError, match="did not end within"):
        run_program(["sleep", "60"], timeout=0.1)


def test_free_ports_are_not_given_twice() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
