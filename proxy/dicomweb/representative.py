"""The instance that stands for a series or a study where one image is to: found by C-FIND, so that no more is
retrieved than the fetch level says.
"""

from __future__ import annotations

import contextlib
from typing import Final

from proxy.archive.errors import NotFoundError
from proxy.archive.query.search import Found, Search
from proxy.archive.retrieval.target import Target
from proxy.archive.views import ArchivesView
from proxy.dataset.levels import MODALITY, Level
from proxy.dataset.values import first_value

SERIES_NUMBER: Final = 0x00200011
INSTANCE_NUMBER: Final = 0x00200013

MAX_LISTED: Final = 5000
"""Series or instances that are looked at. The middle of the first so many is good enough beyond."""

WITHOUT_IMAGES: Final = frozenset(
    {"ANN", "AU", "DOC", "ECG", "EPS", "FID", "HD", "KER", "KO", "LEN", "PLAN", "PR", "REG", "RESP", "RTPLAN"}
    | {"RTRECORD", "RTSTRUCT", "RWV", "SMR", "SR", "SRF", "STAIN", "TEXTUREMAP", "VA"}
)
"""Modalities (PS3.3 C.7.3.1.1.1) of series in which there is nothing to be seen."""


async def representative(archives: ArchivesView, target: Target) -> Target:
    """The instance in the middle of a series; of a study, of the first of its series that has images.

    Raises `NotFoundError` when there is none.
    """
    if target.instance is not None:
        return target
    if target.series is None:
        series = await _listed(archives, target, Level.SERIES, (MODALITY, SERIES_NUMBER))
        with_images = [each for each in series if _value(each, MODALITY) not in WITHOUT_IMAGES]
        first = min(with_images or series, key=lambda each: _number(each, SERIES_NUMBER))
        target = Target(target.study, first.found_uids[Level.SERIES])
    instances = await _listed(archives, target, Level.IMAGE, (INSTANCE_NUMBER,))
    instances.sort(key=lambda each: _number(each, INSTANCE_NUMBER))
    middle = instances[len(instances) // 2]
    return Target(target.study, target.series, middle.found_uids[Level.IMAGE])


async def _listed(archives: ArchivesView, target: Target, level: Level, returned: tuple[int, ...]) -> list[Found]:
    results = archives.search(Search(level, target.uids, {}, tuple((tag,) for tag in returned)))
    found: list[Found] = []
    async with contextlib.aclosing(results.answers) as answers:
        async for each in answers:
            found.append(each)
            if len(found) == MAX_LISTED:
                break
    if not found:
        raise NotFoundError("nothing found")
    return found


def _value(found: Found, tag: int) -> str:
    level = Level.SERIES if Level.IMAGE not in found.found_uids else Level.IMAGE
    return first_value(found.elements[level], tag) or ""


def _number(found: Found, tag: int) -> float:
    try:
        return float(_value(found, tag))
    except ValueError:
        return float("inf")
