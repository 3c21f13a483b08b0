"""Which attributes the demo archive can be asked for, and the level each belongs to (PS3.4 C.6.1.1, C.6.2.1).

What may live here: that table. It has the keys of PS3.4 C.6, what QIDO-RS returns (PS3.18 10.6.3.3), and what
viewers like to list. A key that is not here is an optional key that this archive does not support: it takes no
part in matching and is not returned (PS3.4 C.2.2.1.3).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from proxy.dataset.dictionary import tag_of, vr_of
from proxy.dataset.levels import SERIES_KEYS, STUDY_KEYS


class QueryLevel(IntEnum):
    """The levels of both models, from the top; the names are those of Query/Retrieve Level (PS3.4 C.6.1)."""

    PATIENT = 0
    STUDY = 1
    SERIES = 2
    IMAGE = 3


class Attribute(NamedTuple):
    """An attribute that can be a key."""

    level: QueryLevel
    vr: str


def _tag(keyword: str) -> int:
    tag = tag_of(keyword)
    if tag is None:
        raise LookupError(f"{keyword} is no attribute of PS3.6")
    return tag


QUERY_RETRIEVE_LEVEL: Final = _tag("QueryRetrieveLevel")
RETRIEVE_AE_TITLE: Final = _tag("RetrieveAETitle")
SOP_CLASS_UID: Final = _tag("SOPClassUID")
PATIENT_ID: Final = _tag("PatientID")

UNIQUE_KEYS: Final = {
    QueryLevel.PATIENT: PATIENT_ID,
    QueryLevel.STUDY: _tag("StudyInstanceUID"),
    QueryLevel.SERIES: _tag("SeriesInstanceUID"),
    QueryLevel.IMAGE: _tag("SOPInstanceUID"),
}

COMPUTED: Final = {
    _tag(keyword): Attribute(level, vr_of(_tag(keyword)))
    for level, keyword in (
        (QueryLevel.PATIENT, "InstanceAvailability"),
        (QueryLevel.PATIENT, "RetrieveAETitle"),
        (QueryLevel.PATIENT, "NumberOfPatientRelatedStudies"),
        (QueryLevel.PATIENT, "NumberOfPatientRelatedSeries"),
        (QueryLevel.PATIENT, "NumberOfPatientRelatedInstances"),
        (QueryLevel.STUDY, "ModalitiesInStudy"),
        (QueryLevel.STUDY, "SOPClassesInStudy"),
        (QueryLevel.STUDY, "NumberOfStudyRelatedSeries"),
        (QueryLevel.STUDY, "NumberOfStudyRelatedInstances"),
        (QueryLevel.SERIES, "NumberOfSeriesRelatedInstances"),
    )
}
"""The attributes that follow from what the archive has (PS3.4 C.3.4), whatever instances say."""

# PS3.3 C.7.1.1
_PATIENT: Final = """
    PatientName PatientID IssuerOfPatientID TypeOfPatientID PatientBirthDate PatientBirthTime PatientSex
    OtherPatientIDs OtherPatientNames OtherPatientIDsSequence EthnicGroup PatientComments
    PatientSpeciesDescription PatientBreedDescription ResponsiblePerson
    """
# PS3.3 C.7.2.2. The time zone may differ between instances; it is the study's here, so that every level has one.
_PATIENT_STUDY: Final = """
    PatientAge PatientSize PatientWeight Occupation AdditionalPatientHistory ReasonForStudy
    TimezoneOffsetFromUTC
    """
_IMAGE: Final = """
    SOPInstanceUID SOPClassUID InstanceNumber InstanceCreationDate InstanceCreationTime ImageType
    AcquisitionNumber AcquisitionDate AcquisitionTime AcquisitionDateTime ContentDate ContentTime
    NumberOfFrames Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit
    PixelRepresentation PixelSpacing SliceThickness SliceLocation ImagePositionPatient
    ImageOrientationPatient PatientOrientation WindowCenter WindowWidth RescaleIntercept RescaleSlope
    LossyImageCompression LossyImageCompressionRatio ImageComments BurnedInAnnotation ContrastBolusAgent
    KVP EchoTime RepetitionTime ConceptNameCodeSequence CompletionFlag VerificationFlag DocumentTitle
    MIMETypeOfEncapsulatedDocument ContentLabel ContentDescription ContentCreatorName
    PresentationCreationDate PresentationCreationTime StructureSetLabel RTPlanLabel
    """


def _held() -> dict[int, Attribute]:
    levels: tuple[tuple[QueryLevel, Iterable[int]], ...] = (
        (QueryLevel.PATIENT, map(_tag, _PATIENT.split())),
        (QueryLevel.STUDY, (*map(_tag, _PATIENT_STUDY.split()), *STUDY_KEYS)),
        (QueryLevel.SERIES, SERIES_KEYS),
        (QueryLevel.IMAGE, map(_tag, _IMAGE.split())),
    )
    return {tag: Attribute(level, vr_of(tag)) for level, tags in levels for tag in tags if tag not in COMPUTED}


HELD: Final = _held()
"""The attributes that the index takes from instances."""
