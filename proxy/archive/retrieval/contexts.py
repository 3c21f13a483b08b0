"""Which presentation contexts a C-GET proposes: what the study has, so that it comes as it is stored.

128 contexts are all there are (PS3.8 9.3.2.2), and the archive sends an instance only in the transfer syntax that it
picked for a context. So each SOP class gets a context for each transfer syntax, for the SOP classes of the study, which
a C-FIND tells. Where it does not, the common classes are proposed, with what fits for each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

import dul
from dul import uids
from proxy.archive.errors import NotFoundError
from proxy.archive.peers.archive import Archive
from proxy.archive.query import search as query
from proxy.archive.query.known import Known
from proxy.dataset.levels import Level
from proxy.dataset.values import find, text_of

SOP_CLASSES_IN_STUDY: Final = 0x00080062
SOP_CLASS_UID: Final = 0x00080016

MAX_CONTEXTS: Final = 128

_SYNTAXES_FOR_ALL: Final = uids.UNCOMPRESSED
_SYNTAXES_PLAIN: Final = (*uids.UNCOMPRESSED, uids.EXPLICIT_VR_BIG_ENDIAN)
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

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
_COMMON: Final = (
    "2 4 1 1.1 7 6.1 3.1 128 1.2 12.1 "  # CT, MR, CR, DX, SC, US, multi-frame US, PET, MG, XA
    "2.1 4.1 20 66.4 12.2 481.1 481.2 130 13.1.3 6.2 "  # enhanced CT and MR, NM, SEG, XRF, RT image and dose …
    "7.1 7.2 7.3 7.4 12.1.1 12.2.1 4.3 2.2 4.4 128.1 "  # multi-frame SC, more of the enhanced ones
    "77.1.1 77.1.2 77.1.3 77.1.4 77.1.6 77.1.5.1 77.1.5.2 77.1.5.4 "  # visible light, ophthalmic
    "77.1.1.1 77.1.2.1 77.1.4.1 1.3 1.1.1 1.2.1 1.3.1 13.1.1 13.1.2 "  # video, dental, for processing
    "6 3 5 12.3 77.1 "  # retired ones
    "88.11 88.22 88.33 88.34 88.40 88.50 88.59 88.65 88.67 88.69 "  # reports, key objects
    "104.1 104.2 104.3 11.1 11.2 11.3 11.4 11.5 "  # encapsulated documents, presentation states
    "481.3 481.5 481.4 481.6 481.7 481.8 481.9 "  # radiotherapy
    "66 66.1 66.2 66.3 66.5 67 4.2 "  # raw data, registrations, fiducials, surfaces, spectroscopy
    "9.1.1 9.1.2 9.1.3 9.2.1 9.3.1 9.4.1 9.5.1 9.6.1"  # waveforms
)
COMMON_CLASSES: Final = tuple(_STORAGE + suffix for suffix in _COMMON.split())
"""What to propose to an archive that does not tell the SOP classes of a study: images first, the commonest of them in
front, since only these get a context for compressed transfer syntaxes as well."""


def is_image(sop_class_uid: str) -> bool:
    """True for classes that can have compressed pixel data; others fail when a compressed syntax is agreed to."""
    return sop_class_uid == _SEGMENTATION or not sop_class_uid.startswith(_NOT_IMAGES)


def storage_syntaxes(sop_class_uid: str, *, compressed: bool) -> Sequence[str]:
    """The transfer syntaxes in which a C-STORE of this class is taken; empty for what is no storage class."""
    accepted = dul.accept_all_storage(sop_class_uid)
    if not compressed:
        return [syntax for syntax in accepted if syntax in _SYNTAXES_PLAIN]
    if not is_image(sop_class_uid):
        return [syntax for syntax in accepted if syntax not in uids.COMPRESSED]
    return accepted


async def contexts_for_get(archive: Archive, study: str, known: Known) -> list[dul.Context]:
    """The contexts for a C-GET of anything in `study`; `NotFoundError` when the archive does not have it."""
    sop_classes = await _sop_classes(archive, study, known)
    if sop_classes is None:
        raise NotFoundError("nothing found", archive.name)
    compressed = not archive.peer.uncompressed
    if not sop_classes:
        return common_contexts(archive.get_model, compressed=compressed)
    return build_contexts(sop_classes, archive.get_model, compressed=compressed)


def build_contexts(
    sop_classes: list[str], model: str = uids.STUDY_ROOT_GET, *, compressed: bool = True
) -> list[dul.Context]:
    """A context for the service, and for each SOP class as many as fit: uncompressed ones for all of them first."""
    classes = sop_classes[: MAX_CONTEXTS - 1]
    contexts = [dul.Context(model)]
    if 1 + len(_SYNTAXES_FOR_ALL) * len(classes) > MAX_CONTEXTS:
        # Too many classes to have each syntax by itself: the archive picks one of both, and converts if need be.
        return contexts + [dul.Context(sop_class, uids.UNCOMPRESSED, scp_role=True) for sop_class in classes]
    contexts += [
        dul.Context(sop_class, (syntax,), scp_role=True)
        for syntax in (*_SYNTAXES_FOR_ALL, *(_SYNTAXES_OF_IMAGES if compressed else ()))
        for sop_class in classes
        if syntax in _SYNTAXES_FOR_ALL or is_image(sop_class)
    ]
    return contexts[:MAX_CONTEXTS]


def common_contexts(model: str = uids.STUDY_ROOT_GET, *, compressed: bool = True) -> list[dul.Context]:
    """A context for the service, one with uncompressed syntaxes for each common class, one with the others for some."""
    contexts = [dul.Context(model)]
    contexts += [dul.Context(sop_class, uids.UNCOMPRESSED, scp_role=True) for sop_class in COMMON_CLASSES]
    images = filter(is_image, COMMON_CLASSES if compressed else ())
    contexts += [dul.Context(sop_class, _SYNTAXES_OF_IMAGES, scp_role=True) for sop_class in images]
    return contexts[:MAX_CONTEXTS]


async def _sop_classes(archive: Archive, study: str, known: Known) -> list[str] | None:
    """The SOP classes of a study: by one attribute where the archive knows it, else from all of its instances.

    Empty where it tells neither; None where it has no such study.
    """
    wanted = query.Search(Level.STUDY, {Level.STUDY: study}, returned=[(SOP_CLASSES_IN_STUDY,)])
    _, classes = await _values(archive, wanted, known, SOP_CLASSES_IN_STUDY)
    if classes:
        return classes
    wanted = query.Search(Level.IMAGE, {Level.STUDY: study}, returned=[(SOP_CLASS_UID,)])
    found, classes = await _values(archive, wanted, known, SOP_CLASS_UID)
    return classes if found else None


async def _values(archive: Archive, wanted: query.Search, known: Known, tag: int) -> tuple[int, list[str]]:
    """How many entities there are, and which values they have."""
    count, values = 0, dict[str, None]()
    async with contextlib.aclosing(query.search([archive], wanted, known).answers) as answers:
        async for found in answers:
            count += 1
            element = find(found.elements[wanted.level], tag)
            if element is not None:
                values.update(dict.fromkeys(filter(None, text_of(element).split("\\"))))
    return count, list(values)
