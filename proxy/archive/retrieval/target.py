"""What a retrieval is for: a study, a series of it, or an instance of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dul import uids
from proxy.archive.query.search import QUERY_RETRIEVE_LEVEL, Path
from proxy.dataset.levels import UNIQUE_KEY, Level
from proxy.dataset.writer import encode_identifier

if TYPE_CHECKING:
    from proxy.archive.spool.spool import InstanceInfo

PATIENT_ID = 0x00100020

Key = tuple[str, str]
"""Series (empty where not known) and SOP Instance UID, which tell the instances of one study apart."""


@dataclass(frozen=True, slots=True)
class Target:
    """A study, a series of it, or an instance of that."""

    study: str
    series: str | None = None
    instance: str | None = None

    @property
    def level(self) -> Level:
        """The Query/Retrieve Level (0008,0052)."""
        if self.instance is not None:
            return Level.IMAGE
        return Level.SERIES if self.series is not None else Level.STUDY

    @property
    def uids(self) -> dict[Level, str]:
        """The unique keys by level."""
        values = (self.study, self.series, self.instance)
        levels = (Level.STUDY, Level.SERIES, Level.IMAGE)
        return {level: uid for level, uid in zip(levels, values, strict=True) if uid is not None}

    def widened(self, level: Level) -> Target:
        """The target that holds this one at `level`, or this one where it is as wide already."""
        if level is Level.STUDY:
            return Target(self.study)
        return Target(self.study, self.series) if level is Level.SERIES else self

    def identifier(self, transfer_syntax: str, patient_id: str | None = None) -> bytes:
        """The C-MOVE or C-GET identifier: the level and the unique keys, nothing else (PS3.4 C.4.2.1.4).

        `patient_id` is the unique key above the study, in the Patient Root model (PS3.4 C.6.1).
        """
        keys: dict[Path, str] = {(UNIQUE_KEY[level],): uid for level, uid in self.uids.items()}
        keys[(QUERY_RETRIEVE_LEVEL,)] = self.level.value
        if patient_id is not None:
            keys[(PATIENT_ID,)] = patient_id
        explicit = transfer_syntax != uids.IMPLICIT_VR_LITTLE_ENDIAN
        return encode_identifier(keys, explicit=explicit, character_set=False)

    def holds(self, other: Target) -> bool:
        """True when all of `other` is part of this."""
        return (
            self.study == other.study
            and self.series in (None, other.series)
            and self.instance in (None, other.instance)
        )

    def holds_key(self, key: Key) -> bool:
        """True when an instance of the study with this key is part of this."""
        series, sop_instance = key
        return self.series in (None, series) and self.instance in (None, sop_instance)

    def covers(self, info: InstanceInfo) -> bool:
        """True when an instance with these UIDs is part of this; a UID that is not known does not speak against."""
        return (
            info.study in (None, self.study)
            and (self.series is None or info.series in (None, self.series))
            and self.instance in (None, info.sop_instance_uid)
        )
