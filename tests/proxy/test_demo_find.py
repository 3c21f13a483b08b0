"""C-ECHO and C-FIND of the demo archive, asked by DCMTK's, pynetdicom's and our own SCU."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import pydicom
import pytest
from pydicom.dataset import Dataset

from dul import dimse, uids
from proxy.dataset.reader import Element, parse
from proxy.dataset.values import find
from proxy.dataset.writer import TagPath
from proxy.demo.archive import DemoArchive
from proxy.demo.index import Index
from tests import corpus
from tests.corpus import Corpus
from tests.peers.dcmtk import Scu
from tests.peers.pynetdicom_peer import PynetdicomScu
from tests.proxy.demo_archives import (
    add,
    address,
    connected,
    failure,
    find_all,
    find_texts,
    identifier,
    identifier_of_paths,
    scu,
    texts,
)


@pytest.fixture
async def archive(samples: Corpus) -> AsyncIterator[DemoArchive]:
    async with DemoArchive(samples.folder, destinations={}) as started:
        yield started


async def test_echo(archive: DemoArchive) -> None:
    assert "(Success)" in (await scu(Scu(address(archive)).echo)).succeeded().output
    [response] = await asyncio.to_thread(PynetdicomScu(address(archive)).echo)
    assert response.status == 0


@pytest.mark.parametrize("encoding", ["-xe", "-xi"])
async def test_names_of_every_character_set_come_as_they_are_in_the_files(
    archive: DemoArchive, samples: Corpus, encoding: str
) -> None:
    matches = await asyncio.to_thread(
        Scu(address(archive)).find, "PatientID", "PatientName", arguments=("-S", encoding)
    )
    found = {match.PatientID: match for match in matches}
    assert {key: match.PatientName for key, match in found.items()} == {
        sample.patient_id: sample.patient_name for sample in samples.samples
    }
    for sample in samples.samples:
        original = pydicom.dcmread(samples.path(sample))
        assert found[sample.patient_id].get("SpecificCharacterSet") == original.get("SpecificCharacterSet")
        assert found[sample.patient_id].PatientName.original_string == original.PatientName.original_string


@pytest.mark.parametrize(
    ("key", "patient_id"),
    [
        ("müller*", "LATIN1"),
        ("Łukasiewicz^Żaneta", "UTF8"),
        ("山田*", "JAPANESE"),
        ("=*=やまだ*", "JAPANESE"),
        ("διονυσίου^*", "GREEK"),
        ("ИВАНОВА^ОЛЬГА", "CYRILLIC"),
        ("홍^길동", "KOREAN"),
        ("*小东", "GB18030"),
    ],
)
async def test_keys_match_text_and_not_bytes(archive: DemoArchive, key: str, patient_id: str) -> None:
    wanted = Dataset()
    wanted.QueryRetrieveLevel, wanted.PatientName, wanted.PatientID = "STUDY", key, ""
    *matches, final = await asyncio.to_thread(PynetdicomScu(address(archive)).find, wanted)
    assert final.status == 0
    assert [match.identifier.PatientID for match in matches if match.identifier] == [patient_id]


async def test_an_answer_has_what_was_asked_for_and_what_belongs_to_its_level(archive: DemoArchive) -> None:
    keys = {"PatientID": "LATIN1", "StudyDate": "", "Rows": "", "IssuerOfPatientID": "", "SmokingStatus": ""}
    [answer] = await find_texts(archive, "STUDY", **keys)
    study = answer.pop("StudyInstanceUID")
    assert answer == {
        "SpecificCharacterSet": "ISO_IR 100",
        "QueryRetrieveLevel": "STUDY",
        "RetrieveAETitle": "DEMO",
        "PatientID": "LATIN1",
        "StudyDate": "20240202",
        "IssuerOfPatientID": "",  # supported, and without a value; attributes below the level are no keys
    }
    series = await find_texts(archive, "SERIES", StudyInstanceUID=study, PatientID="", SeriesNumber="")
    assert [(one["SeriesNumber"], one["PatientID"], "SeriesInstanceUID" in one) for one in series] == [
        ("1", "LATIN1", True),
        ("2", "LATIN1", True),
    ]


async def test_computed_attributes(archive: DemoArchive, samples: Corpus) -> None:
    wanted = ["ModalitiesInStudy", "SOPClassesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"]
    wanted += [f"NumberOfPatientRelated{what}" for what in ("Studies", "Series", "Instances")]
    wanted += ["InstanceAvailability", "RetrieveAETitle"]
    [answer] = await find_texts(archive, "STUDY", PatientID="UNUSUAL", **dict.fromkeys(wanted, ""))
    of_study = samples.of_patient("UNUSUAL")
    assert [answer[keyword] for keyword in wanted] == [
        "DOC\\OT\\US\\XA",
        "\\".join(sorted({sample.sop_class_uid for sample in of_study})),
        *("4", "4", "1", "4", "4", "ONLINE", "DEMO"),
    ]
    assert [
        (match["PatientID"], match["ModalitiesInStudy"])
        for match in await find_texts(archive, "STUDY", ModalitiesInStudy="XA\\SEG", PatientID="")
    ] == [("UNUSUAL", "DOC\\OT\\US\\XA"), ("SEGMENTATION", "SEG")]
    uid = samples.of_patient("LATIN1")[0].study_uid
    series = await find_texts(archive, "SERIES", StudyInstanceUID=uid, NumberOfSeriesRelatedInstances="")
    assert [one["NumberOfSeriesRelatedInstances"] for one in series] == ["3", "3"]


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"StudyDate": "20240101-20240331"}, 5),
        ({"StudyDate": "-20240202"}, 2),
        ({"StudyDate": "20240202", "StudyTime": "10-11"}, 1),
        ({"StudyDate": "20240202", "StudyTime": "11-"}, 0),
        ({"AccessionNumber": "A30000?"}, 9),
        ({"AccessionNumber": "a300001"}, 0),
        ({"StudyInstanceUID": f"{corpus.uid(3, 2)}\\{corpus.uid(3, 1)}\\{corpus.uid(3, 1)}\\1.2.3"}, 2),
        ({"StudyInstanceUID": "1.2.3"}, 0),
        ({"PatientName": "*^sample", "PatientID": "E*"}, 1),
        ({"Modality": "XA"}, 15),  # a key of a level below, which has no meaning here
    ],
)
async def test_matching_of_studies(archive: DemoArchive, keys: dict[str, str], count: int) -> None:
    assert len(await find_all(archive, identifier("STUDY", **keys))) == count


async def test_sequences_match_by_item_and_come_with_what_was_asked_for() -> None:
    request = [
        Element(0x00321060, "LO", b"CT of the thorax"),
        Element(0x00400009, "SH", b"STEP1 "),
        Element(0x00401001, "SH", b"R42 "),
    ]
    index = Index()
    add(index, 1, 1, 1)
    add(index, 1, 2, 1, RequestAttributesSequence=[request, request[:1]])
    add(index, 1, 3, 1, RequestAttributesSequence=[])
    step, number = (0x00400275, 0x00400009), (0x00400275, 0x00401001)
    reduced = [request[1:], [Element(0x00400009, "SH", b""), Element(0x00401001, "SH", b"")]]
    async with DemoArchive(None, index=index) as archive:

        async def found(paths: Mapping[TagPath, str], syntax: str = uids.UNCOMPRESSED[0]) -> list[object]:
            wanted = identifier_of_paths("SERIES", paths, StudyInstanceUID="1.2.1")
            sequences = [find(answer, 0x00400275) for answer in await find_all(archive, wanted, syntax=syntax)]
            return [sequence.value for sequence in sequences if sequence is not None]

        for syntax in uids.UNCOMPRESSED:
            assert await found({step: "", number: "R4*"}, syntax) == [reduced]
        assert await found({step: "STEP1", number: "R43"}) == []
        assert len(await found({step: ""})) == 3
        assert await found({(0x00400275,): ""}) == [[], [request, request[:1]], []]


async def test_answers_of_mixed_character_sets_are_utf_8() -> None:
    index = Index()
    add(index, 1, 1, 1, SpecificCharacterSet="ISO_IR 100", PatientName="Müller".encode("latin_1"))
    chest, cyrillic = "胸部".encode("gb18030"), Element(0x00080005, "CS", b"ISO_IR 144")
    items = [
        [Element(0x00321060, "LO", chest), Element(0x00400009, "SH", b"1 ")],
        [cyrillic, Element(0x00321060, "LO", "Грудь".encode("iso8859_5"))],
    ]
    add(index, 1, 2, 1, SpecificCharacterSet="GB18030", SeriesDescription=chest, RequestAttributesSequence=items)
    async with DemoArchive(None, index=index) as archive:
        keys = {"StudyInstanceUID": "1.2.1", "SeriesDescription": "", "PatientName": ""}
        answers = await find_all(archive, identifier("SERIES", **keys, RequestAttributesSequence=""))
    found = [texts(answer) for answer in answers]
    assert [(one["SpecificCharacterSet"], one["PatientName"], one["SeriesDescription"]) for one in found] == [
        ("ISO_IR 100", "Müller", ""),
        ("ISO_IR 192", "Müller", "胸部"),
    ]
    sequence = find(answers[1], 0x00400275)
    assert sequence is not None
    assert sequence.value == [
        [Element(0x00321060, "LO", "胸部".encode()), Element(0x00400009, "SH", b"1 ")],
        [Element(0x00321060, "LO", "Грудь".encode())],
    ]


async def test_without_a_character_set_the_answer_names_none() -> None:
    index = Index()
    add(index, 1, 1, 1)
    async with DemoArchive(None, index=index) as archive:
        [answer] = await find_texts(archive, "STUDY", StudyInstanceUID="")
    assert "SpecificCharacterSet" not in answer


async def test_patient_root(archive: DemoArchive, samples: Corpus) -> None:
    def find_patients(**keys: str) -> list[Dataset]:
        wanted = ["PatientName", "NumberOfPatientRelatedInstances", *(f"{key}={value}" for key, value in keys.items())]
        return Scu(address(archive)).find(*wanted, level="PATIENT", arguments=("-P",))

    everybody = await asyncio.to_thread(find_patients, PatientID="")
    assert [match.PatientID for match in everybody] == list({s.patient_id: None for s in samples.samples})
    [one] = await asyncio.to_thread(find_patients, PatientID="COMPRESSED")
    assert one.NumberOfPatientRelatedInstances == 8
    model = uids.PATIENT_ROOT_FIND
    assert len(await find_all(archive, identifier("STUDY", PatientID="COMPRESSED"), model)) == 1
    uid = samples.of_patient("ECG")[0].study_uid
    for patient, count in (("ECG", 1), ("LATIN1", 0)):
        wanted = identifier("SERIES", PatientID=patient, StudyInstanceUID=uid)
        assert len(await find_all(archive, wanted, model)) == count


async def test_studies_without_a_patient_id_are_not_one_patient() -> None:
    index = Index()
    for study in (1, 2):
        add(index, study, 1, 1, PatientID="", PatientName=f"Somebody^{study}")
    async with DemoArchive(None, index=index) as archive:
        answers = await find_all(archive, identifier("PATIENT", PatientName=""), uids.PATIENT_ROOT_FIND)
        assert [texts(answer)["PatientName"] for answer in answers] == ["Somebody^1", "Somebody^2"]


STUDY = {"StudyInstanceUID": "1.2.1"}


@pytest.mark.parametrize(
    ("model", "level", "keys"),
    [
        (uids.STUDY_ROOT_FIND, "", {}),
        (uids.STUDY_ROOT_FIND, "PATIENT", {}),
        (uids.STUDY_ROOT_FIND, "SERIES", {}),
        (uids.STUDY_ROOT_FIND, "SERIES", {"StudyInstanceUID": "*"}),
        (uids.STUDY_ROOT_FIND, "SERIES", {"StudyInstanceUID": "1.2.1\\1.2.2"}),
        (uids.STUDY_ROOT_FIND, "IMAGE", STUDY),
        (uids.PATIENT_ROOT_FIND, "STUDY", STUDY),
        (uids.PATIENT_ROOT_FIND, "STUDY", {"PatientID": "P?"}),
        (uids.STUDY_ROOT_MOVE, "STUDY", {"PatientID": "P1"}),
        (uids.STUDY_ROOT_MOVE, "SERIES", {"SeriesInstanceUID": "1.2.1.1"}),
        (uids.STUDY_ROOT_GET, "IMAGE", STUDY),
        (uids.PATIENT_ROOT_GET, "STUDY", STUDY),
    ],
)
async def test_identifiers_that_do_not_fit_the_model_are_refused(model: str, level: str, keys: dict[str, str]) -> None:
    index = Index()
    add(index, 1, 1, 1)
    async with DemoArchive(None, index=index, destinations={"DEST": ("127.0.0.1", 1)}) as archive:
        status = await failure(archive, model, identifier(level, **keys))
    assert status == dimse.IDENTIFIER_DOES_NOT_MATCH


async def test_an_identifier_that_cannot_be_read_is_refused(archive: DemoArchive) -> None:
    assert await failure(archive, uids.STUDY_ROOT_FIND, lambda _: b"\x08\x00\x52\x00CS\xff\x00") == 0xC000


# --- large archives ------------------------------------------------------------------------------------------


@pytest.fixture
def many() -> Index:
    """2000 studies that are in memory only."""
    index = Index()
    for study in range(2000):
        add(index, study, 1, 1, PatientName=f"Test^{study}")
    return index


async def test_a_cancelled_find_ends_early(many: Index) -> None:
    async with DemoArchive(None, index=many) as archive:
        options = ("-v", "-S", "--cancel", "3", "-k", "QueryRetrieveLevel=STUDY")
        done = await scu(Scu(address(archive)).run, "findscu", *options)
        assert "Cancel" in done.output
        assert 3 <= done.output.count("Pending") < 2000
        async with connected(archive) as association:
            async for _ in association.find(identifier("STUDY")):
                break
            await association.echo()  # over the same association


async def test_a_search_lets_others_have_their_turn(many: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop runs also while nothing is found, and the index may change meanwhile."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            add(many, 5000 + turns % 2, 1, 1)
            many.remove("1.2.5000", "1.2.5000.1", "1.2.5000.1.1")
            await asyncio.sleep(0)

    monkeypatch.setattr("proxy.demo.archive.TURN", 0)
    async with DemoArchive(None, index=many) as archive:
        task = asyncio.create_task(others())
        assert await find_all(archive, identifier("STUDY", PatientName="*nobody*")) == []
        task.cancel()
    assert turns >= 2000


async def test_an_answer_is_made_when_the_one_before_it_has_gone(many: Index) -> None:
    """A study that goes away meanwhile is found as it was, and one that comes is not: answers are not made at once."""
    async with DemoArchive(None, index=many) as archive, connected(archive) as association:
        answers = association.find(identifier("STUDY", NumberOfStudyRelatedInstances=""))
        first = await anext(answers)
        add(many, 1999, 1, 2)
        counts = [texts(parse(match.data, match.transfer_syntax)) async for match in answers]
    assert texts(parse(first.data, first.transfer_syntax))["NumberOfStudyRelatedInstances"] == "1"
    assert [one["NumberOfStudyRelatedInstances"] for one in counts] == ["1"] * 1998 + ["2"]
