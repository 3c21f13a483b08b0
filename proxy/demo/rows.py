"""What a C-FIND at some level has to look at, one row after the other, and the values of a row.

What may live here: the walk over the index, and the attributes that are computed from it (PS3.4 C.3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from proxy.dataset.dictionary import keyword_of
from proxy.demo.attributes import COMPUTED, HELD, RETRIEVE_AE_TITLE, QueryLevel
from proxy.demo.index import CharacterSet, Index, Patient, Series, StoredInstance, Study, Value

_T = TypeVar("_T")

UniqueKeys = Mapping[QueryLevel, Sequence[str]]
"""Values of unique keys; a level that is absent is open."""


class Row(NamedTuple):
    """An entity and those above it. What belongs to a patient is taken from one of its studies."""

    patient: Patient
    study: Study
    series: Series | None = None
    instance: StoredInstance | None = None

    def holder(self, level: QueryLevel) -> Study | Series | StoredInstance:
        """Who has the attributes of `level`, which must be one of this row's."""
        if level <= QueryLevel.STUDY:
            return self.study
        holder = self.series if level is QueryLevel.SERIES else self.instance
        assert holder is not None
        return holder

    def character_sets(self) -> set[CharacterSet]:
        """The character sets of its values."""
        return {holder.character_set for holder in self[1:] if holder is not None}


def rows(index: Index, level: QueryLevel, unique: UniqueKeys) -> Iterator[Row]:
    """All entities of `level` below the unique keys that are given.

    Each level is copied, as references, when it is entered: the index may change meanwhile.
    """
    if level is QueryLevel.PATIENT:
        for patient in _chosen(index.patients, unique.get(level)):
            for study in tuple(patient.studies.values())[:1]:
                yield Row(patient, study)
        return
    for study in _studies(index, unique):
        if level is QueryLevel.STUDY:
            yield Row(study.patient, study)
            continue
        for series in _chosen(study.series, unique.get(QueryLevel.SERIES)):
            if level is QueryLevel.SERIES:
                yield Row(study.patient, study, series)
                continue
            for instance in _chosen(series.instances, unique.get(QueryLevel.IMAGE)):
                yield Row(study.patient, study, series, instance)


def _studies(index: Index, unique: UniqueKeys) -> Iterable[Study]:
    uids = unique.get(QueryLevel.STUDY)
    patient_ids = unique.get(QueryLevel.PATIENT)
    if patient_ids is None:
        return _chosen(index.studies, uids)
    patients = _chosen(index.patients, patient_ids)
    return [study for patient in patients for study in _chosen(patient.studies, uids)]


def _chosen(entities: Mapping[str, _T], keys: Sequence[str] | None) -> Sequence[_T]:
    if keys is None:
        return tuple(entities.values())
    return [entities[key] for key in dict.fromkeys(keys) if key in entities]


# --- values --------------------------------------------------------------------------------------------------


def _series_of(row: Row) -> Iterator[Series]:
    return (series for study in row.patient.studies.values() for series in study.series.values())


def _count(number: int) -> list[str]:
    return [str(number)]


def _modalities(row: Row) -> list[str]:
    found = (series.values.get(0x00080060) for series in row.study.series.values())
    return sorted({one.decode("latin_1").strip(" \0") for one in found if isinstance(one, bytes)} - {""})


def _sop_classes(row: Row) -> list[str]:
    return sorted(
        {instance.sop_class_uid for series in row.study.series.values() for instance in series.instances.values()}
    )


_VALUES: Final[Mapping[str, Callable[[Row], list[str]]]] = {
    "InstanceAvailability": lambda row: ["ONLINE"],
    "NumberOfPatientRelatedStudies": lambda row: _count(len(row.patient.studies)),
    "NumberOfPatientRelatedSeries": lambda row: _count(sum(1 for _ in _series_of(row))),
    "NumberOfPatientRelatedInstances": lambda row: _count(sum(len(each.instances) for each in _series_of(row))),
    "ModalitiesInStudy": _modalities,
    "SOPClassesInStudy": _sop_classes,
    "NumberOfStudyRelatedSeries": lambda row: _count(len(row.study.series)),
    "NumberOfStudyRelatedInstances": lambda row: _count(
        sum(len(series.instances) for series in row.study.series.values())
    ),
    "NumberOfSeriesRelatedInstances": lambda row: _count(len(row.series.instances) if row.series else 0),
}


def getter(tag: int, ae_title: str) -> Callable[[Row], Value | None]:
    """A function that returns an attribute's value for a row; None where the row has no value.

    `tag` is one of `HELD` or `COMPUTED`; `ae_title` is what Retrieve AE Title says.
    """
    if tag in HELD:
        level = HELD[tag].level
        return lambda row: row.holder(level).values.get(tag)
    if tag == RETRIEVE_AE_TITLE:
        title = _padded(ae_title, "AE")
        return lambda row: title
    compute, vr = _VALUES[keyword_of(tag)], COMPUTED[tag].vr
    return lambda row: _padded("\\".join(compute(row)), vr)


def _padded(text: str, vr: str) -> bytes:
    return (text + ("\0" if vr == "UI" else " ") * (len(text) % 2)).encode("ascii", "replace")
