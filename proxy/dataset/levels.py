"""The levels of the query models, and which attribute belongs to which (PS3.4 C.6.1, C.6.2).

Tables only. Tags are integers, 0xGGGGEEEE.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Level(StrEnum):
    """A level of the Study Root model, as Query/Retrieve Level (0008,0052) names it (PS3.4 C.6.2)."""

    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"

    @property
    def and_above(self) -> tuple[Level, ...]:
        """The levels on the way from the root to this one, this one included."""
        levels = tuple(Level)
        return levels[: levels.index(self) + 1]


UNIQUE_KEY: Final[Mapping[Level, int]] = MappingProxyType(
    {
        Level.STUDY: 0x0020000D,  # StudyInstanceUID
        Level.SERIES: 0x0020000E,  # SeriesInstanceUID
        Level.IMAGE: 0x00080018,  # SOPInstanceUID
    }
)


STUDY_DATE: Final = 0x00080020
INSTANCE_AVAILABILITY: Final = 0x00080056
MODALITY: Final = 0x00080060
MODALITIES_IN_STUDY: Final = 0x00080061

PATIENT: Final = "PATIENT"
"""The level above STUDY in the Patient Root model, as Query/Retrieve Level (0008,0052) names it (PS3.4 C.6.1)."""

PATIENT_ID: Final = 0x00100020
"""Patient ID, the unique key of the PATIENT level."""


def unique_keys(level: Level) -> tuple[int, ...]:
    """Return the tags of the unique keys from STUDY down to `level`, which name one entity of it."""
    return tuple(UNIQUE_KEY[above] for above in level.and_above)


# Where an attribute belongs. An archive refuses keys of other levels, so each C-FIND asks only for its own.

EVERY_LEVEL: Final = frozenset(
    {
        0x00080005,  # SpecificCharacterSet
        0x00080052,  # QueryRetrieveLevel
        0x00080054,  # RetrieveAETitle
        0x00080056,  # InstanceAvailability
        0x00080201,  # TimezoneOffsetFromUTC
        0x00081190,  # RetrieveURL
        0x00880130,  # StorageMediaFileSetID
        0x00880140,  # StorageMediaFileSetUID
    }
)

STUDY_KEYS: Final = frozenset(  # PS3.4 Table C.6-5; with the Patient group and the study modules of PS3.3 C.7.2
    {
        0x00080020,  # StudyDate
        0x00080030,  # StudyTime
        0x00080050,  # AccessionNumber
        0x00080051,  # IssuerOfAccessionNumberSequence
        0x00080061,  # ModalitiesInStudy
        0x00080062,  # SOPClassesInStudy
        0x00080063,  # AnatomicRegionsInStudyCodeSequence
        0x00080090,  # ReferringPhysicianName
        0x00080096,  # ReferringPhysicianIdentificationSequence
        0x0008009C,  # ConsultingPhysicianName
        0x0008009D,  # ConsultingPhysicianIdentificationSequence
        0x00081030,  # StudyDescription
        0x00081032,  # ProcedureCodeSequence
        0x00081048,  # PhysiciansOfRecord
        0x00081049,  # PhysiciansOfRecordIdentificationSequence
        0x00081060,  # NameOfPhysiciansReadingStudy
        0x00081062,  # PhysiciansReadingStudyIdentificationSequence
        0x00081080,  # AdmittingDiagnosesDescription
        0x00081084,  # AdmittingDiagnosesCodeSequence
        0x00081110,  # ReferencedStudySequence
        0x00081120,  # ReferencedPatientSequence
        0x0020000D,  # StudyInstanceUID
        0x00200010,  # StudyID
        0x00201070,  # OtherStudyNumbers
        0x00201200,  # NumberOfPatientRelatedStudies
        0x00201202,  # NumberOfPatientRelatedSeries
        0x00201204,  # NumberOfPatientRelatedInstances
        0x00201206,  # NumberOfStudyRelatedSeries
        0x00201208,  # NumberOfStudyRelatedInstances
        0x0032000A,  # StudyStatusID
        0x0032000C,  # StudyPriorityID
        0x00321032,  # RequestingPhysician
        0x00321033,  # RequestingService
        0x00321034,  # RequestingServiceCodeSequence
        0x00321060,  # RequestedProcedureDescription
        0x00321064,  # RequestedProcedureCodeSequence
        0x00380010,  # AdmissionID
        0x00380014,  # IssuerOfAdmissionIDSequence
        0x00401012,  # ReasonForPerformedProcedureCodeSequence
    }
)

SERIES_KEYS: Final = frozenset(  # PS3.4 Table C.6-3; with the series modules of PS3.3 C.7.3 and C.7.5
    {
        0x00080021,  # SeriesDate
        0x00080031,  # SeriesTime
        0x00080060,  # Modality
        0x00080070,  # Manufacturer
        0x00080080,  # InstitutionName
        0x00080081,  # InstitutionAddress
        0x00081010,  # StationName
        0x0008103E,  # SeriesDescription
        0x0008103F,  # SeriesDescriptionCodeSequence
        0x00081040,  # InstitutionalDepartmentName
        0x00081050,  # PerformingPhysicianName
        0x00081052,  # PerformingPhysicianIdentificationSequence
        0x00081070,  # OperatorsName
        0x00081072,  # OperatorIdentificationSequence
        0x00081090,  # ManufacturerModelName
        0x00081111,  # ReferencedPerformedProcedureStepSequence
        0x00180015,  # BodyPartExamined
        0x00181000,  # DeviceSerialNumber
        0x00181020,  # SoftwareVersions
        0x00181030,  # ProtocolName
        0x00185100,  # PatientPosition
        0x0020000E,  # SeriesInstanceUID
        0x00200011,  # SeriesNumber
        0x00200052,  # FrameOfReferenceUID
        0x00200060,  # Laterality
        0x00201040,  # PositionReferenceIndicator
        0x00201209,  # NumberOfSeriesRelatedInstances
        0x00280108,  # SmallestPixelValueInSeries
        0x00280109,  # LargestPixelValueInSeries
        0x00400244,  # PerformedProcedureStepStartDate
        0x00400245,  # PerformedProcedureStepStartTime
        0x00400250,  # PerformedProcedureStepEndDate
        0x00400251,  # PerformedProcedureStepEndTime
        0x00400253,  # PerformedProcedureStepID
        0x00400254,  # PerformedProcedureStepDescription
        0x00400260,  # PerformedProtocolCodeSequence
        0x00400275,  # RequestAttributesSequence
        0x00400280,  # CommentsOnThePerformedProcedureStep
    }
)

PATIENT_KEYS: Final = frozenset(  # PS3.4 Table C.6-1, with the patient module of PS3.3 C.7.1.1: in Patient Root only
    {
        0x00081120,  # ReferencedPatientSequence
        0x00100010,  # PatientName
        PATIENT_ID,
        0x00100021,  # IssuerOfPatientID
        0x00100022,  # TypeOfPatientID
        0x00100024,  # IssuerOfPatientIDQualifiersSequence
        0x00100030,  # PatientBirthDate
        0x00100032,  # PatientBirthTime
        0x00100040,  # PatientSex
        0x00101000,  # OtherPatientIDs
        0x00101001,  # OtherPatientNames
        0x00101002,  # OtherPatientIDsSequence
        0x00102160,  # EthnicGroup
        0x00104000,  # PatientComments
        0x00201200,  # NumberOfPatientRelatedStudies
        0x00201202,  # NumberOfPatientRelatedSeries
        0x00201204,  # NumberOfPatientRelatedInstances
    }
)

_PATIENT_GROUP: Final = 0x0010


def level_of(tag: int) -> Level | None:
    """Return the level of Study Root that the attribute belongs to; None for one that is found at each of them.

    Study Root has no patient level: the Patient group belongs to the study. What is in no table is taken
    for an attribute of the instance.
    """
    if tag in EVERY_LEVEL:
        return None
    if tag in STUDY_KEYS or tag >> 16 == _PATIENT_GROUP:
        return Level.STUDY
    return Level.SERIES if tag in SERIES_KEYS else Level.IMAGE
