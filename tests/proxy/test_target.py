"""What can be retrieved: the identifier of a target, and which instances it covers."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from pydicom.filereader import read_dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from proxy.archive.retrieval.target import Target
from proxy.archive.spool.spool import InstanceInfo
from proxy.dataset.levels import Level

INFO = InstanceInfo("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.5", ExplicitVRLittleEndian, "1.2.3", "1.2.3.4")


@pytest.mark.parametrize(
    ("target", "level", "keys"),
    [
        (Target("1.2.3"), Level.STUDY, {"StudyInstanceUID": "1.2.3"}),
        (Target("1.2.3", "1.2.3.4"), Level.SERIES, {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}),
        (
            Target("1.2.3", "1.2.3.4", "1.2.3.4.5"),
            Level.IMAGE,
            {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SOPInstanceUID": "1.2.3.4.5"},
        ),
    ],
)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_the_identifier_has_the_unique_keys_and_nothing_else(
    target: Target, level: Level, keys: dict[str, str], syntax: str
) -> None:
    """PS3.4 C.4.2.1.4: archives refuse others, Specific Character Set among them."""
    assert target.level is level
    encoded = io.BytesIO(target.identifier(syntax))
    data_set = read_dataset(encoded, syntax == ImplicitVRLittleEndian, True)
    assert {element.keyword: element.value for element in data_set} == {"QueryRetrieveLevel": level.value, **keys}


@pytest.mark.parametrize(
    ("target", "covered"),
    [
        (Target("1.2.3"), True),
        (Target("1.2.30"), False),
        (Target("1.2.3", "1.2.3.4"), True),
        (Target("1.2.3", "1.2.3.40"), False),
        (Target("1.2.30", "1.2.3.4"), False),
        (Target("1.2.3", "1.2.3.4", "1.2.3.4.5"), True),
        (Target("1.2.3", "1.2.3.4", "1.2.3.4.50"), False),
        (Target("1.2.3", "1.2.3.40", "1.2.3.4.5"), False),
    ],
)
def test_what_a_target_covers(target: Target, covered: bool) -> None:
    assert target.covers(INFO) is covered


def test_an_unknown_uid_does_not_speak_against_an_instance() -> None:
    unknown = replace(INFO, study=None, series=None)
    assert Target("1.2.3").covers(unknown)
    assert Target("1.2.30", "1.2.40").covers(unknown)
    assert not Target("1.2.3", "1.2.3.4", "1.2.3.4.50").covers(unknown), "the command tells the SOP instance"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_patient_root_adds_the_patient_id(syntax: str) -> None:
    """PS3.4 C.6.1: the unique key above the study."""
    encoded = io.BytesIO(Target("1.2.3").identifier(syntax, "PATIENT1"))
    data_set = read_dataset(encoded, syntax == ImplicitVRLittleEndian, True)
    keys = {element.keyword: element.value for element in data_set}
    assert keys == {"QueryRetrieveLevel": "STUDY", "PatientID": "PATIENT1", "StudyInstanceUID": "1.2.3"}


STUDY, SERIES, INSTANCE = Target("1.2.3"), Target("1.2.3", "1.2.3.4"), Target("1.2.3", "1.2.3.4", "1.2.3.4.5")


def test_what_holds_what() -> None:
    order = [STUDY, SERIES, INSTANCE]
    for wide, target in enumerate(order):
        assert [target.holds(other) for other in order] == [number >= wide for number in range(3)]
    assert not SERIES.holds(Target("1.2.3", "1.2.3.40"))
    assert not STUDY.holds(Target("1.2.30"))
    assert SERIES.holds_key(("1.2.3.4", "1"))
    assert not SERIES.holds_key(("1.2.3.40", "1"))
    assert not INSTANCE.holds_key(("1.2.3.4", "1"))


@pytest.mark.parametrize(
    ("level", "widened"),
    [
        (Level.STUDY, [STUDY, STUDY, STUDY]),
        (Level.SERIES, [STUDY, SERIES, SERIES]),
        (Level.IMAGE, [STUDY, SERIES, INSTANCE]),
    ],
)
def test_a_target_becomes_wider_and_never_narrower(level: Level, widened: list[Target]) -> None:
    assert [target.widened(level) for target in (STUDY, SERIES, INSTANCE)] == widened
