"""Which attributes a search returns: always, and with `includefield=all`.

Tables only, laid out as PS3.18 10.6.3.3 prints them. Tags are integers, 0xGGGGEEEE.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from proxy.dataset.levels import PATIENT_KEYS, SERIES_KEYS, STUDY_KEYS, Level


class Resource(Enum):
    """A search resource (PS3.18 Table 10.6.1-1); the value is its URI template."""

    ALL_STUDIES = "/studies"
    STUDY_SERIES = "/studies/{study}/series"
    STUDY_INSTANCES = "/studies/{study}/instances"
    SERIES_INSTANCES = "/studies/{study}/series/{series}/instances"
    ALL_SERIES = "/series"
    ALL_INSTANCES = "/instances"

    @property
    def level(self) -> Level:
        """The level of what is searched for."""
        if self is Resource.ALL_STUDIES:
            return Level.STUDY
        return Level.SERIES if self in (Resource.STUDY_SERIES, Resource.ALL_SERIES) else Level.IMAGE


# What each search returns, empty where the archive has no value.

STUDY_RETURNED: Final = (  # PS3.18 Table 10.6.3-3
    0x00080005,  # SpecificCharacterSet
    0x00080020,  # StudyDate
    0x00080030,  # StudyTime
    0x00080050,  # AccessionNumber
    0x00080056,  # InstanceAvailability
    0x00080061,  # ModalitiesInStudy
    0x00080090,  # ReferringPhysicianName
    0x00080201,  # TimezoneOffsetFromUTC
    0x00081030,  # StudyDescription; not in the table, but every viewer lists it
    0x00081190,  # RetrieveURL
    0x00100010,  # PatientName
    0x00100020,  # PatientID
    0x00100030,  # PatientBirthDate
    0x00100040,  # PatientSex
    0x0020000D,  # StudyInstanceUID
    0x00200010,  # StudyID
    0x00201206,  # NumberOfStudyRelatedSeries
    0x00201208,  # NumberOfStudyRelatedInstances
)

SERIES_RETURNED: Final = (  # PS3.18 Table 10.6.3-4
    0x00080005,  # SpecificCharacterSet
    0x00080060,  # Modality
    0x00080201,  # TimezoneOffsetFromUTC
    0x0008103E,  # SeriesDescription
    0x00081190,  # RetrieveURL
    0x0020000E,  # SeriesInstanceUID
    0x00200011,  # SeriesNumber
    0x00201209,  # NumberOfSeriesRelatedInstances
    0x00400244,  # PerformedProcedureStepStartDate
    0x00400245,  # PerformedProcedureStepStartTime
    0x00400275,  # RequestAttributesSequence
)

INSTANCE_RETURNED: Final = (  # PS3.18 Table 10.6.3-5
    0x00080005,  # SpecificCharacterSet
    0x00080016,  # SOPClassUID
    0x00080018,  # SOPInstanceUID
    0x00080056,  # InstanceAvailability
    0x00080201,  # TimezoneOffsetFromUTC
    0x00081190,  # RetrieveURL
    0x00200013,  # InstanceNumber
    0x00280008,  # NumberOfFrames
    0x00280010,  # Rows
    0x00280011,  # Columns
    0x00280100,  # BitsAllocated
)


def _together(*tables: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({tag for table in tables for tag in table}))


# A search that is not below one parent also returns the attributes of the levels that the path leaves open.
RETURNED: Final[Mapping[Resource, tuple[int, ...]]] = MappingProxyType(
    {
        Resource.ALL_STUDIES: STUDY_RETURNED,
        Resource.STUDY_SERIES: SERIES_RETURNED,
        Resource.SERIES_INSTANCES: INSTANCE_RETURNED,
        Resource.STUDY_INSTANCES: _together(SERIES_RETURNED, INSTANCE_RETURNED),
        Resource.ALL_SERIES: _together(STUDY_RETURNED, SERIES_RETURNED),
        Resource.ALL_INSTANCES: _together(STUDY_RETURNED, SERIES_RETURNED, INSTANCE_RETURNED),
    }
)

INSTANCE_KEYS: Final = frozenset(  # PS3.4 Table C.6-4; with what lists of images show of PS3.3 C.7.6.1 and C.17.2
    {
        0x00080008,  # ImageType
        0x00080012,  # InstanceCreationDate
        0x00080013,  # InstanceCreationTime
        0x0008001A,  # RelatedGeneralSOPClassUID
        0x00080022,  # AcquisitionDate
        0x00080023,  # ContentDate
        0x00080032,  # AcquisitionTime
        0x00080033,  # ContentTime
        0x00083001,  # AlternateRepresentationSequence
        0x00200012,  # AcquisitionNumber
        0x00200032,  # ImagePositionPatient
        0x00200037,  # ImageOrientationPatient
        0x00201041,  # SliceLocation
        0x00204000,  # ImageComments
        0x00280002,  # SamplesPerPixel
        0x00280004,  # PhotometricInterpretation
        0x00280030,  # PixelSpacing
        0x00280101,  # BitsStored
        0x00400512,  # ContainerIdentifier
        0x00400560,  # SpecimenDescriptionSequence
        0x0040A043,  # ConceptNameCodeSequence
        0x0040A491,  # CompletionFlag
        0x0040A493,  # VerificationFlag
        0x0040A504,  # ContentTemplateSequence
        0x00420010,  # DocumentTitle
        0x00700080,  # ContentLabel
        0x00700081,  # ContentDescription
    }
)

_OF_LEVEL: Final[Mapping[Level, frozenset[int]]] = MappingProxyType(
    {Level.STUDY: PATIENT_KEYS | STUDY_KEYS, Level.SERIES: SERIES_KEYS, Level.IMAGE: INSTANCE_KEYS}
)

# An archive answers what it is asked for by name, so that "all" is all that is known to be of these levels.
ALL: Final[Mapping[Resource, frozenset[int]]] = MappingProxyType(
    {
        resource: frozenset().union(*(_OF_LEVEL[level] for level in levels))
        for resource, levels in (
            (Resource.ALL_STUDIES, (Level.STUDY,)),
            (Resource.STUDY_SERIES, (Level.SERIES,)),
            (Resource.SERIES_INSTANCES, (Level.IMAGE,)),
            (Resource.STUDY_INSTANCES, (Level.SERIES, Level.IMAGE)),
            (Resource.ALL_SERIES, (Level.STUDY, Level.SERIES)),
            (Resource.ALL_INSTANCES, (Level.STUDY, Level.SERIES, Level.IMAGE)),
        )
    }
)
