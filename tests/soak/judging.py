"""What a right answer is. A judge raises `WrongAnswer` for any other; failures that a client sees are none of its."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tests.corpus import Sample, data_set_bytes
from tests.proxy.retrieved import read_parts

_TAG_OF_LEVEL: Final = {"study": "0020000D", "series": "0020000E", "instance": "00080018"}


class WrongAnswer(Exception):  # noqa: N818 - not an error of the soak, but what it looks for
    """An answer that a client would take for right, and that is not."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer that was read to its end, and came whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_partial(self) -> bool:
        """Whether it says itself that something is missing: by 206, or by a warning that names an archive."""
        return self.status == 206 or "Warning" in self.headers


class Judge(Protocol):
    """Tells whether an answer is right."""

    def __call__(self, answer: Answer) -> None:
        """Raise `WrongAnswer` unless it is; one that says that it is partial may lack some, but have nothing else."""


@dataclass(frozen=True, slots=True)
class Files:
    """A multipart answer with these instances, each once, byte for byte."""

    samples: Sequence[Sample]

    def __call__(self, answer: Answer) -> None:
        try:
            files = [part.content for part in read_parts(answer.body, answer.headers["Content-Type"])]
        except AssertionError as error:
            raise WrongAnswer(f"no multipart body: {error}") from None
        _compare(files, self.samples, partial=answer.is_partial)


@dataclass(frozen=True, slots=True)
class File:
    """A single instance as a Part 10 file."""

    sample: Sample

    def __call__(self, answer: Answer) -> None:
        media_type = answer.headers["Content-Type"].partition(";")[0]
        if media_type != "application/dicom":
            raise WrongAnswer(f"a single instance as {media_type}")
        _compare([answer.body], [self.sample], partial=False)


def _compare(files: Sequence[bytes], samples: Sequence[Sample], *, partial: bool) -> None:
    try:
        digests = [hashlib.sha256(data_set_bytes(file)).hexdigest() for file in files]
    except ValueError as error:
        raise WrongAnswer(str(error)) from None
    got, wanted = Counter(digests), Counter(sample.sha256 for sample in samples)
    if got - wanted:
        raise WrongAnswer(f"{(got - wanted).total()} of {len(files)} instances are not what is stored, or come twice")
    if wanted - got and not partial:
        raise WrongAnswer(f"{len(files)} instances in place of {len(samples)}, in an answer that seems whole")
    by_digest = {sample.sha256: sample for sample in samples}
    for file, digest in zip(files, digests, strict=True):
        sample = by_digest[digest]
        header = file[: len(file) - sample.size]
        for uid in (sample.sop_class_uid, sample.sop_instance_uid, sample.transfer_syntax_uid):
            if uid.encode() not in header:
                raise WrongAnswer("the File Meta Information names another instance or transfer syntax")


@dataclass(frozen=True, slots=True)
class Matches:
    """A search whose matches at a level are these UIDs, each once; with `count`, as many of them."""

    level: str
    uids: Sequence[str]
    count: int | None = None

    def __call__(self, answer: Answer) -> None:
        found = Counter(match[_TAG_OF_LEVEL[self.level]]["Value"][0] for match in json.loads(answer.body))
        if found - Counter(self.uids):
            raise WrongAnswer("a match that does not match, or comes twice")
        wanted = len(self.uids) if self.count is None else self.count
        if found.total() > wanted or (found.total() < wanted and not answer.is_partial):
            raise WrongAnswer(f"{found.total()} matches in place of {wanted}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error in the form that all errors have."""

    def __call__(self, answer: Answer) -> None:
        error = json.loads(answer.body)
        if error.keys() != {"error", "statusCode", "timestamp"} or error["statusCode"] != answer.status:
            raise WrongAnswer("an error that has not the form of an error")
