"""What the two archives hold, and what is therefore to be answered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self

from tests import corpus
from tests.corpus import Corpus, Sample

TINY_STUDIES: Final = 20
IN_BOTH: Final = 30
"""The number of the study that both archives hold."""

UID_OF_LEVEL: Final = {"study": "study_uid", "series": "series_uid", "instance": "sop_instance_uid"}


@dataclass(frozen=True)
class Holdings:
    """The samples of each archive, as files in a folder."""

    orthanc: Corpus
    scripted: Corpus

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Write them: many kinds of small instances, and some of half a megabyte that take a while to be sent."""
        in_orthanc = [
            *corpus.mixed(),
            *corpus.tiny_studies(TINY_STUDIES),
            *corpus.ct_study(2, 10, 64, study=11),
            *corpus.ct_study(2, 4, 256, study=12),
            *corpus.ct_study(1, 4, 512, study=13),
            *corpus.ct_study(2, 3, 64, study=IN_BOTH),
        ]
        in_scripted = [
            *corpus.ct_study(2, 10, 64, study=21),
            *corpus.ct_study(2, 4, 256, study=22),
            *corpus.ct_study(1, 4, 512, study=23),
            *(file for study in range(24, 30) for file in corpus.ct_study(3, 4, 64, study=study)),
            *corpus.ct_study(2, 3, 64, study=IN_BOTH),
        ]
        return cls(corpus.write(folder / "orthanc", in_orthanc), corpus.write(folder / "scripted", in_scripted))

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """Every instance, once, in the order in which they were made."""
        all_samples = (*self.orthanc.samples, *self.scripted.samples)
        return tuple({sample.sop_instance_uid: sample for sample in all_samples}.values())

    def of(self, sample: Sample, level: str) -> list[Sample]:
        """Return the instances of the study or series that a sample is in, or the sample alone."""
        name = UID_OF_LEVEL[level]
        return [each for each in self.samples if getattr(each, name) == getattr(sample, name)]


def uids(samples: Iterable[Sample], level: str) -> list[str]:
    """Return the UIDs of the studies, series or instances that samples are in, each once."""
    return list(dict.fromkeys(getattr(sample, UID_OF_LEVEL[level]) for sample in samples))


def path_of(sample: Sample, level: str) -> str:
    """Return the path of the study, series or instance that a sample is (in)."""
    parts = [f"/studies/{sample.study_uid}", f"/series/{sample.series_uid}", f"/instances/{sample.sop_instance_uid}"]
    return "".join(parts[: list(UID_OF_LEVEL).index(level) + 1])
