"""In which forms frames can be sent, and which of them a client wants (PS3.18 8.7.3.3 and 10.4.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.dataset.pixels import NATIVE, VIDEO
from proxy.dicomweb.accept import (
    ANY_TRANSFER_SYNTAX,
    EXPLICIT_VR_LITTLE_ENDIAN,
    Accept,
    Choice,
    NotAcceptable,
    Offer,
    choose,
)

OCTET_STREAM: Final = "application/octet-stream"
IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"

_JPEG: Final = ("image/jpeg",)
_MPEG2: Final = ("video/mpeg", "video/mpeg2")
_H264: Final = ("video/mp4",)
_HEVC: Final = ("video/mp4", "video/h265")

MEDIA_TYPES: Final = {
    # By transfer syntax, PS3.18 8.7.3.3.2 and other names in use
    "1.2.840.10008.1.2.5": ("image/dicom-rle",),
    **{f"1.2.840.10008.1.2.4.{number}": _JPEG for number in (*range(50, 67), 70)},
    **{f"1.2.840.10008.1.2.4.{number}": ("image/jls",) for number in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{number}": ("image/jp2",) for number in (90, 91)},
    **{f"1.2.840.10008.1.2.4.{number}": ("image/jpx",) for number in (92, 93)},
    **{f"1.2.840.10008.1.2.4.{number}": ("image/jphc",) for number in (201, 202, 203)},
    **{f"1.2.840.10008.1.2.4.{number}": ("image/jxl",) for number in (110, 111, 112)},
    **{f"1.2.840.10008.1.2.4.{number}": _MPEG2 for number in ("100", "100.1", "101", "101.1")},
    **{f"1.2.840.10008.1.2.4.{number}{more}": _H264 for number in range(102, 107) for more in ("", ".1")},
    **{f"1.2.840.10008.1.2.4.{number}": _HEVC for number in (107, 108)},
}


@dataclass(frozen=True, slots=True)
class Form:
    """How frames are sent. `is_decoded` where the stored ones have to be decompressed for it."""

    multipart: bool
    media_type: str
    transfer_syntax: str
    is_decoded: bool

    def __str__(self) -> str:
        kind = "multipart" if self.multipart else "single"
        return f"{kind} {self.media_type} {self.transfer_syntax}"


def frame_forms(accept: Accept, stored: str, *, single: bool) -> list[Form]:
    """The forms that the client takes for frames stored in a transfer syntax, in the order to try them.

    As they are stored is the default. What is stored natively always is little endian, as if it were in Explicit VR
    Little Endian. For `application/octet-stream` without a transfer syntax that is what is meant (PS3.18 8.7.3.5.2).

    Args:
        single: whether one frame is asked for, which can also go out alone.

    Raises:
        NotAcceptable: there is none.
    """
    media_types = (*MEDIA_TYPES.get(stored, ()), OCTET_STREAM)
    offers = [Offer(media_type, multipart) for multipart in (True, False)[: 1 + single] for media_type in media_types]
    forms: dict[Form, None] = {}
    named: dict[str, None] = {}
    while offers:
        try:
            choice = choose(accept, offers)
        except NotAcceptable:
            if not named:
                raise
            break
        offers.remove(choice.offer)
        wanted = choice.transfer_syntaxes or _default(choice.offer, stored)
        named.update(dict.fromkeys(wanted))
        forms.update(dict.fromkeys(_forms_of(choice, wanted, stored)))
    if not forms:
        raise NotAcceptable(
            f"the frames are in transfer syntax {stored}, and cannot be sent in what is asked for: {', '.join(named)}"
        )
    return list(forms)


def _default(offer: Offer, stored: str) -> tuple[str, ...]:
    """The transfer syntaxes to try where the client names none."""
    if offer.media_type != OCTET_STREAM:
        return (ANY_TRANSFER_SYNTAX,)
    # What has no media type of its own has no other way out as it is stored.
    return (EXPLICIT_VR_LITTLE_ENDIAN,) if stored in MEDIA_TYPES else (EXPLICIT_VR_LITTLE_ENDIAN, ANY_TRANSFER_SYNTAX)


def _forms_of(choice: Choice, wanted: Sequence[str], stored: str) -> Iterator[Form]:
    """The forms of one media type, in the client's order of transfer syntaxes."""
    media_type = choice.offer.media_type
    native = stored in NATIVE
    as_stored = EXPLICIT_VR_LITTLE_ENDIAN if native else stored
    for name in wanted:
        if name in (ANY_TRANSFER_SYNTAX, as_stored) or (native and name == IMPLICIT_VR_LITTLE_ENDIAN):
            if as_stored not in choice.excluded:
                yield Form(choice.multipart, media_type, as_stored, is_decoded=False)
        elif name == EXPLICIT_VR_LITTLE_ENDIAN and media_type == OCTET_STREAM and stored not in VIDEO:
            yield Form(choice.multipart, media_type, name, is_decoded=True)
