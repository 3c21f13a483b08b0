"""The index of the demo archive: what it takes from files, what it keeps, and its bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.dataset.reader import Element
from proxy.demo.archive import DemoArchive
from proxy.demo.index import Index, IndexFullError, NotIndexedError, scan
from proxy.demo.samples import sample_folder
from tests.corpus import Corpus
from tests.proxy.demo_archives import add


async def test_all_files_of_a_folder_are_served_and_others_counted(samples: Corpus) -> None:
    async with DemoArchive(samples.folder) as archive:
        assert archive.instance_count == len(samples.samples)
        assert archive.study_count == len(samples.study_uids)
        assert archive.first_study_uid in samples.study_uids
        assert archive.skipped == {"no DICOM Part 10 file": 1}  # the manifest


async def test_pydicoms_own_files_make_an_archive_and_are_sent_as_they_are() -> None:
    async with DemoArchive(sample_folder()) as archive:
        assert archive.study_count >= 25
        assert archive.instance_count >= 100
        assert set(archive.skipped) == {
            "no DICOM Part 10 file",
            "no Study, Series or SOP Instance UID",
            "a malformed data set",
        }
        files = {path.read_bytes() for path in sample_folder().rglob("*") if path.is_file()}
        for study in archive.index.studies.values():
            for series in study.series.values():
                for instance in series.instances.values():
                    assert not isinstance(instance.data, bytes)
                    data = b"".join([chunk async for chunk in instance.data.chunks()])
                    assert any(file.endswith(data) for file in files)
                    assert instance.sop_instance_uid.encode() in data or instance.transfer_syntax.endswith(".99")
    assert not (sample_folder() / "received").exists()


def test_no_file_stays_mapped(samples: Corpus) -> None:
    """Long files are mapped to be read; what is kept of them must not hold the map."""
    [long] = samples.of_patient("ECG")
    assert long.size > 200_000
    index = Index()
    index.add_file(samples.path(long))
    assert index.instance_count == 1
    assert str(samples.folder) not in Path("/proc/self/maps").read_text()


def test_damaged_and_strange_files_are_passed_over(tmp_path: Path, samples: Corpus) -> None:
    good = samples.paths()[0].read_bytes()
    for name, content in {"cut": good[:-9], "empty": b"", "text": b"x" * 70_000, "header": good[:144]}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".hidden").write_bytes(good)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "good").write_bytes(good)
    index = Index()
    reasons = list(scan(index, tmp_path))
    assert index.instance_count == 1
    assert reasons.count(None) == 1
    assert len(reasons) == 7
    assert not any(reason and "good" in reason for reason in reasons)


async def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        async with DemoArchive(tmp_path / "nothing"):
            pass


def test_the_index_is_bounded_and_replaces() -> None:
    index = Index(max_instances=2)
    add(index, 1, 1, 1, PatientName="Old")
    add(index, 2, 1, 1)
    with pytest.raises(IndexFullError):
        add(index, 3, 1, 1)
    assert "1.2.3" not in index.studies
    replaced = add(index, 1, 1, 1, PatientName="New", PatientID="Q")
    assert replaced is not None
    assert index.instance_count == 2
    assert list(index.patients) == ["P2", "Q"]
    assert index.studies["1.2.1"].values[0x00100010] == b"New "
    for study in (1, 2):
        assert index.remove(f"1.2.{study}", f"1.2.{study}.1", f"1.2.{study}.1.1") is not None
    assert index.remove("1.2.1", "1.2.1.1", "1.2.1.1.1") is None
    assert (index.patients, index.studies, index.instance_count) == ({}, {}, 0)


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", ["", "1." * 40, "1.2\u0660"])
def test_an_instance_needs_its_uids(keyword: str, value: str) -> None:
    with pytest.raises(NotIndexedError):
        add(Index(), 1, 1, 1, **{keyword: value})


def test_long_values_are_not_kept_and_short_ones_are_copies() -> None:
    """A view of the file that was read, which keeps all of it in memory, must not get into the index."""
    index = Index()
    long = [[Element(0x00080100, "SH", bytes(5000))]]
    icon = [[Element(0x7FE00010, "OB", (b"", b"12"))]]
    nested = [[Element(0x00400008, "SQ", [[Element(0x00080100, "SH", memoryview(b"AB"))]])]]
    add(
        index,
        *(1, 1, 1),
        PatientName="A" * 10_241,
        ProcedureCodeSequence=long,
        ConceptNameCodeSequence=icon,
        RequestAttributesSequence=nested,
    )
    study = index.studies["1.2.1"]
    series = study.series["1.2.1.1"]
    assert not {0x00081032, 0x00100010} & study.values.keys()
    assert 0x0040A043 not in series.instances["1.2.1.1.1"].values
    assert series.values[0x00400275] == nested
    assert "memoryview" not in repr([[each.value for each in item] for item in kept_items(series.values[0x00400275])])


def kept_items(value: object) -> list[list[Element]]:
    """The items below the first element of a sequence."""
    assert isinstance(value, list)
    below = value[0][0].value
    assert isinstance(below, list)
    return below
