"""Which presentation contexts a C-GET proposes: what the study has, so that it comes as it is stored.

128 contexts are all there are (PS3.8 9.3.2.2), and the archive sends an instance only in the transfer syntax that it
picked for a context. So each SOP class gets a context for each transfer syntax, for the SOP classes of the study, which
a C-FIND tells.
"""

from __future__ import annotations

import contextlib
from typing import Final

import dul
from dul import uids
from proxy.archive import query
from proxy.archive.errors import NotFoundError
from proxy.archive.peers import Archive
from proxy.dataset.levels import Level
from proxy.dataset.values import find, text_of

SOP_CLASSES_IN_STUDY: Final = 0x00080062
SOP_CLASS_UID: Final = 0x00080016

MAX_CONTEXTS: Final = 128

_SYNTAXES_FOR_ALL: Final = uids.UNCOMPRESSED
_SYNTAXES_OF_IMAGES: Final = (
    *uids.COMPRESSED,
    uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    uids.EXPLICIT_VR_BIG_ENDIAN,
)

_NOT_IMAGES: Final = (
    "1.2.840.10008.5.1.4.1.1.11.",  # presentation states
    "1.2.840.10008.5.1.4.1.1.88.",  # structured reports, key object selection
    "1.2.840.10008.5.1.4.1.1.104.",  # encapsulated PDF, CDA, models
    "1.2.840.10008.5.1.4.1.1.9.",  # waveforms
    "1.2.840.10008.5.1.4.1.1.66",  # raw data, registrations, fiducials, surfaces; segmentations are images
    "1.2.840.10008.5.1.4.1.1.481.3",  # RT structure sets
    "1.2.840.10008.5.1.4.1.1.481.5",  # RT plans
)
_SEGMENTATION: Final = "1.2.840.10008.5.1.4.1.1.66.4"


def is_image(sop_class_uid: str) -> bool:
    """True for classes that can have compressed pixel data; others fail when a compressed syntax is agreed to."""
    return sop_class_uid == _SEGMENTATION or not sop_class_uid.startswith(_NOT_IMAGES)


async def contexts_for_get(archive: Archive, study: str) -> list[dul.Context]:
    """The contexts for a C-GET of anything in `study`; `NotFoundError` when the archive does not have it."""
    sop_classes = await _sop_classes(archive, study)
    if not sop_classes:
        raise NotFoundError("nothing found", archive.name)
    return build_contexts(sop_classes)


def build_contexts(sop_classes: list[str]) -> list[dul.Context]:
    """A context for the service, and for each SOP class as many as fit: uncompressed ones for all of them first."""
    classes = sop_classes[: MAX_CONTEXTS - 1]
    contexts = [dul.Context(uids.STUDY_ROOT_GET)]
    if 1 + len(_SYNTAXES_FOR_ALL) * len(classes) > MAX_CONTEXTS:
        # Too many classes to have each syntax by itself: the archive picks one of both, and converts if need be.
        return contexts + [dul.Context(sop_class, uids.UNCOMPRESSED, scp_role=True) for sop_class in classes]
    contexts += [
        dul.Context(sop_class, (syntax,), scp_role=True)
        for syntax in (*_SYNTAXES_FOR_ALL, *_SYNTAXES_OF_IMAGES)
        for sop_class in classes
        if syntax in _SYNTAXES_FOR_ALL or is_image(sop_class)
    ]
    return contexts[:MAX_CONTEXTS]


async def _sop_classes(archive: Archive, study: str) -> list[str]:
    """The SOP classes of a study: by one attribute where the archive knows it, else from all of its instances."""
    wanted = query.Search(Level.STUDY, {Level.STUDY: study}, returned=[(SOP_CLASSES_IN_STUDY,)])
    classes = await _values(archive, wanted, Level.STUDY, SOP_CLASSES_IN_STUDY)
    if not classes:
        wanted = query.Search(Level.IMAGE, {Level.STUDY: study}, returned=[(SOP_CLASS_UID,)])
        classes = await _values(archive, wanted, Level.IMAGE, SOP_CLASS_UID)
    return list(classes)


async def _values(archive: Archive, wanted: query.Search, level: Level, tag: int) -> dict[str, None]:
    values: dict[str, None] = {}
    async with contextlib.aclosing(query.search([archive], wanted).answers) as answers:
        async for found in answers:
            element = find(found.elements[level], tag)
            if element is not None:
                values.update(dict.fromkeys(filter(None, text_of(element).split("\\"))))
    return values
