"""What a scripted archive holds: instances, and small studies made of them."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field, replace

import dul
from tests import corpus
from tests.corpus import Sample

BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"


@dataclass(frozen=True, slots=True)
class Stored:
    """An instance of the archive: its UIDs, and its data set as bytes or in pieces made on demand."""

    sample: Sample
    data: bytes | Callable[[], AsyncIterable[bytes]] = field(repr=False)

    @classmethod
    def of(cls, part10: bytes) -> Stored:
        """Take a Part 10 file."""
        return cls(corpus.describe(part10, ""), corpus.data_set_bytes(part10))

    @property
    def instance(self) -> dul.Instance:
        """The same as `dul` sends it."""
        sample = self.sample
        return dul.Instance(sample.sop_class_uid, sample.sop_instance_uid, sample.transfer_syntax_uid, self.data)

    @property
    def whole(self) -> bytes:
        """The data set of an instance that is held as bytes."""
        assert isinstance(self.data, bytes)
        return self.data

    def called(self, sop_class_uid: str) -> Stored:
        """Return it with another SOP class than its data set says, as the C-STORE command will have it."""
        return Stored(replace(self.sample, sop_class_uid=sop_class_uid), self.data)

    def in_syntax(self, transfer_syntax_uid: str) -> Stored:
        """Return it as an archive has it that keeps the same bytes for another transfer syntax."""
        return Stored(replace(self.sample, transfer_syntax_uid=transfer_syntax_uid), self.data)


def small_study(series: int = 2, instances: int = 2, study: int = 1, side: int = 64) -> list[Stored]:
    """Make a study of small images."""
    return [Stored.of(file) for file in corpus.ct_study(series, instances, side, study)]


def other(number: int, sop_class: str = BASIC_TEXT_SR, *, study: int = 1, series: int = 9) -> Stored:
    """Make an instance without pixels, in a series of its own of the study that `small_study` makes."""
    return Stored.of(corpus.encode(corpus.header(corpus.CT_STUDY, study, series, number, sop_class)))


def same_instances_in_two_series(instances: int = 2) -> list[Stored]:
    """Make a study whose second series has the SOP instance UIDs of its first."""
    files = []
    for series in (1, 2):
        for number in range(1, instances + 1):
            data_set = corpus.header(corpus.CT_STUDY, 1, series, number)
            data_set.SOPInstanceUID = corpus.uid(corpus.CT_STUDY, 1, 1, number)
            files.append(Stored.of(corpus.encode(data_set)))
    return files
