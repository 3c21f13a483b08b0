"""A `Find`: a C-FIND that has come in, what a good archive answers to it, and what a script can do about it."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dul import dimse
from dul.channel import Channel, Message
from dul.dimse import response_to
from tests.corpus import Sample
from tests.dul.archive import encode
from tests.faultpeer import wire
from tests.faultpeer.stored import Stored

if TYPE_CHECKING:
    from tests.faultpeer.archive import ScriptedArchive

UNIQUE_KEYS = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
"""The unique key of each Query/Retrieve Level, from the top (PS3.4 C.6.1.1)."""

_FIELDS = {
    "PatientID": "patient_id",
    "PatientName": "patient_name",
    "Modality": "modality",
    "StudyInstanceUID": "study_uid",
    "SeriesInstanceUID": "series_uid",
    "SOPInstanceUID": "sop_instance_uid",
    "SOPClassUID": "sop_class_uid",
}
"""What is matched, and where a `Sample` has it."""

FindScript = Callable[["Find"], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Find:
    """A C-FIND, and what a script can do about it. `answers` are those that a good archive gives."""

    archive: ScriptedArchive
    channel: Channel
    message: Message
    keys: Dataset
    answers: list[Dataset]
    given: int = 0
    """Answers that were sent."""

    @property
    def level(self) -> str:
        """The Query/Retrieve Level (0008,0052)."""
        return str(self.keys.QueryRetrieveLevel)

    @property
    def model(self) -> str:
        """The abstract syntax: the information model that is asked."""
        return self.message.context.abstract_syntax

    @property
    def cancel_requested(self) -> bool:
        """True when C-CANCEL has come."""
        return self.channel.cancel_requested(self.message.command.message_id)

    def is_given(self, keyword: str) -> bool:
        """Tell whether the identifier has a value for an attribute; a universal key has none."""
        return bool(self.keys.get(keyword))

    async def pending(self, answer: Dataset, status: int = dimse.PENDING, *, shape: wire.Shape | None = None) -> None:
        """Send an answer."""
        context = self.message.context
        response = response_to(self.message.command, status, data_set=True)
        data = encode(answer, context.transfer_syntax)
        if shape is not None:
            await wire.send(self.channel, context.context_id, response, data, shape)
        else:
            await self.channel.send(context.context_id, response, data)
        self.given += 1
        await asyncio.sleep(0)  # or a C-CANCEL would never be read

    async def final(self, status: int = dimse.SUCCESS, comment: str | None = None) -> None:
        """Send the final response, with an Error Comment (0000,0902) if there is one."""
        response = response_to(self.message.command, status)
        response.error_comment = comment
        await self.channel.send(self.message.context.context_id, response)


# --- matching ------------------------------------------------------------------------------------------------


def wanted_uids(keys: Dataset, *, only_unique: bool) -> dict[str, list[str]]:
    """Return the values that an identifier gives for what is matched, by the field's name in a `Sample`."""
    unique = UNIQUE_KEYS.values() if only_unique else _FIELDS
    return {
        _FIELDS[keyword]: str(keys[keyword].value).split("\\") if keys[keyword].VM == 1 else list(keys[keyword].value)
        for keyword in unique
        if keys.get(keyword)
    }


def matching(instances: Iterable[Stored], keys: Dataset, *, only_unique: bool = True) -> list[Stored]:
    """Return the instances that an identifier's keys name: by its unique keys, or by all that are known here."""
    wanted = wanted_uids(keys, only_unique=only_unique)
    return [stored for stored in instances if _matches(stored.sample, wanted)]


def _matches(sample: Sample, wanted: dict[str, list[str]]) -> bool:
    return all(
        any(fnmatch.fnmatchcase(getattr(sample, field), pattern) for pattern in patterns)
        for field, patterns in wanted.items()
    )


def answers_to(archive: ScriptedArchive, keys: Dataset, *, only_unique: bool = False) -> Iterator[Dataset]:
    """Give the answers to an identifier, one for each entity of its level."""
    level = UNIQUE_KEYS[keys.QueryRetrieveLevel]
    seen = set()
    for stored in matching(archive.instances, keys, only_unique=only_unique):
        # Below STUDY an entity is told by its parents too: a SOP instance UID may be in two series.
        entity = tuple(getattr(stored.sample, _FIELDS[keyword]) for keyword in _down_to(level))
        if entity not in seen:
            seen.add(entity)
            yield _answer(archive, stored.sample, keys)


def _down_to(unique_key: str) -> list[str]:
    keywords = list(UNIQUE_KEYS.values())
    return keywords[: keywords.index(unique_key) + 1]


def _answer(archive: ScriptedArchive, sample: Sample, keys: Dataset) -> Dataset:
    """Return what was asked for, with the values that are known here; others are given back as they came."""
    study = [stored.sample for stored in archive.instances if stored.sample.study_uid == sample.study_uid]
    known: dict[str, object] = {keyword: getattr(sample, field) for keyword, field in _FIELDS.items()}
    known["SOPClassesInStudy"] = sorted({each.sop_class_uid for each in study})
    known["ModalitiesInStudy"] = sorted({each.modality for each in study})
    known["SpecificCharacterSet"] = sample.character_set.split("\\")
    known["InstanceAvailability"] = archive.availability
    answer = Dataset()
    for element in keys:
        if element.keyword in archive.hidden:
            continue
        value = known.get(element.keyword, element.value)
        answer[element.tag] = DataElement(element.tag, element.VR, value)  # not the identifier's own
    return answer
