"""Which media type, and in which transfer syntaxes, a client wants (PS3.18 8.3.3 and 8.7; RFC 9110 12.5.1).

Only the reading of `Accept` and the choice among what a resource offers live here. What the proxy can then
really produce (transcoding) is for the resource to say, with `Choice.transfer_syntaxes` as the order to try.

Reading never fails: clients in the field send odd headers, so a member that cannot be read is passed over.
Only the choice fails, with `NotAcceptable`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from proxy.dicomweb.uids import is_valid_uid

MAX_ACCEPT_LENGTH: Final = 8 * 1024
"""Characters of one Accept that are considered: aiohttp's own bound for a header line."""

MAX_MEDIA_RANGES: Final = 64
"""Members of one Accept that are considered; browsers send about ten, DICOMweb clients up to twenty."""

EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
ANY_TRANSFER_SYNTAX: Final = "*"

# Members end at a comma, parameters at a semicolon, neither inside quotes. A quote left open runs to the end,
# so that each pattern matches in linear time.
_QUOTED: Final = r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)'
_MEMBER: Final = re.compile(rf'(?:[^",]|{_QUOTED})+', re.DOTALL)
_PIECE: Final = re.compile(rf'(?:[^";]|{_QUOTED})+', re.DOTALL)
_TCHARS: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE: Final = re.compile(rf"{_TCHARS}/{_TCHARS}")
_NAME: Final = re.compile(_TCHARS)
_QUALITY: Final = re.compile(r"0(?:\.[0-9]*)?|\.[0-9]+|1(?:\.0*)?")


class NotAcceptable(ValueError):  # noqa: N818  # the name of the HTTP status, 406
    """Nothing that the resource offers is acceptable to the client. The message lists what is offered."""


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One readable member of an Accept.

    `media_type` and the names of the parameters are in lower case, and a lone `*` has become `*/*`.
    `transfer_syntaxes` are the UIDs, or `*`, that `transfer-syntax` names (PS3.18 8.7.3.5.2). `quality` is
    from 0 (refused) to 1 and is not among the parameters.
    """

    media_type: str
    parameters: Mapping[str, str]
    transfer_syntaxes: tuple[str, ...]
    quality: float

    @property
    def root_type(self) -> str:
        """The `type` parameter of a multipart range (RFC 2387 3.1) in lower case, or `*/*`."""
        root = self.parameters.get("type", "*/*").lower()
        return "*/*" if root == "*" else root


@dataclass(frozen=True, slots=True)
class Accept:
    """What a client accepts: by the `accept` query parameter, and by the header.

    The header is turned to only when the query parameter names nothing that is offered (PS3.18 8.7.8.1).
    Both empty means that the client did not say, and takes the default.
    """

    query: tuple[MediaRange, ...] = ()
    header: tuple[MediaRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """A representation that a resource can give: a media type, alone or as parts of `multipart/related`."""

    media_type: str
    multipart: bool = False

    def __str__(self) -> str:
        return f'multipart/related; type="{self.media_type}"' if self.multipart else self.media_type


@dataclass(frozen=True, slots=True)
class Choice:
    """The offer chosen, and the transfer syntaxes that the client takes for it.

    `transfer_syntaxes` is in the client's order of preference, `*` for "any, as it is stored". Empty means
    that none was named and the default of the media type holds. `excluded` are those refused with `q=0`.
    """

    offer: Offer
    transfer_syntaxes: tuple[str, ...] = ()
    excluded: frozenset[str] = frozenset()

    @property
    def multipart(self) -> bool:
        """Whether the answer is `multipart/related`."""
        return self.offer.multipart


class _Match(IntEnum):
    """How precisely a media range fits an offer; the most precise decides (RFC 9110 12.5.1)."""

    NONE = 0
    ANYTHING = 1  # */*
    TYPE = 2  # application/*, multipart/*
    ROOT = 3  # multipart/related with any root type
    EXACT = 4


MULTIPART_DICOM: Final = Offer("application/dicom", multipart=True)
SINGLE_DICOM: Final = Offer("application/dicom")
DICOM_JSON: Final = Offer("application/dicom+json")
JSON: Final = Offer("application/json")
DICOM_XML: Final = Offer("application/dicom+xml")
MULTIPART_DICOM_XML: Final = Offer("application/dicom+xml", multipart=True)


def parse_accept(header: str | None, query: str | None = None) -> Accept:
    """Read an Accept header and the `accept` query parameter (PS3.18 8.3.3.1). Never raises.

    Args:
        header: the field's value, several fields joined by commas; None when absent.
        query: the parameter's percent-decoded value; None when absent.
    """
    # "application/dicom+json" put into a URL as it stands arrives with a space for the plus sign.
    repaired = re.sub(r"\bdicom (json|xml)\b", r"dicom+\1", query or "")
    return Accept(query=_media_ranges(repaired), header=_media_ranges(header or ""))


def choose(accept: Accept, offers: Sequence[Offer]) -> Choice:
    """Choose the offer that the client likes best (PS3.18 8.7.8.1).

    By quality, then by how precisely it was asked for, then by its place in the Accept, then by its place
    in `offers`, of which the first is the default.

    Raises:
        NotAcceptable: none is acceptable.
    """
    tiers = [ranges for ranges in (accept.query, accept.header) if ranges]
    if not tiers:
        return Choice(offers[0])
    for ranges in tiers:
        candidates = [found for offer in offers if (found := _weigh(offer, ranges)) is not None]
        if candidates:
            return max(candidates, key=lambda candidate: candidate[0])[1]
    raise NotAcceptable(f"none of the media types asked for; offered here: {', '.join(map(str, offers))}")


def choose_retrieve(accept: Accept, *, single: bool) -> Choice:
    """Choose the form of a study, series or instance (PS3.18 10.4.4).

    Args:
        single: whether the resource is one instance, which can also go out as a raw Part 10 file.

    Raises:
        NotAcceptable: neither form is acceptable.
    """
    return choose(accept, (MULTIPART_DICOM, SINGLE_DICOM) if single else (MULTIPART_DICOM,))


def choose_model(accept: Accept) -> Choice:
    """Choose the form of metadata and search results (PS3.18 10.4.4, 10.6.4): DICOM JSON, or a part of XML for each.

    Raises:
        NotAcceptable: the client takes neither.
    """
    return choose(accept, (DICOM_JSON, JSON, MULTIPART_DICOM_XML))


def choose_report(accept: Accept) -> Choice:
    """Choose the form in which an upload is reported on (PS3.18 10.5.4): DICOM JSON or XML.

    Raises:
        NotAcceptable: the client takes neither.
    """
    return choose(accept, (DICOM_JSON, JSON, DICOM_XML))


def _media_ranges(text: str) -> tuple[MediaRange, ...]:
    members = [match.group() for match in _MEMBER.finditer(text[:MAX_ACCEPT_LENGTH])]
    if len(text) > MAX_ACCEPT_LENGTH:
        # The cut may have gone through the last one and left it with another meaning.
        del members[-1:]
    ranges = (_media_range(member) for member in members[:MAX_MEDIA_RANGES])
    return tuple(found for found in ranges if found is not None)


def _media_range(member: str) -> MediaRange | None:
    pieces = [match.group().strip() for match in _PIECE.finditer(member)]
    media_type = pieces[0].lower() if pieces else ""
    if media_type == "*":
        media_type = "*/*"
    parameters = _parameters(pieces[1:])
    if _MEDIA_TYPE.fullmatch(media_type) is None or parameters is None:
        return None
    quality = parameters.pop("q", "1")
    listed = parameters.get("transfer-syntax", "").split(",")
    transfer_syntaxes = tuple(name for name in map(str.strip, listed) if name)
    if _QUALITY.fullmatch(quality) is None or not all(map(_is_transfer_syntax, transfer_syntaxes)):
        return None
    return MediaRange(media_type, parameters, transfer_syntaxes, float(quality))


def _parameters(pieces: Sequence[str]) -> dict[str, str] | None:
    """Return the parameters by name in lower case, or None where one cannot be read."""
    parameters: dict[str, str] = {}
    for piece in filter(None, pieces):
        name, _, value = (part.strip() for part in piece.partition("="))
        if value.startswith('"'):
            if len(value) < 2 or not value.endswith('"'):
                return None
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        if _NAME.fullmatch(name) is None or not value:
            return None
        parameters.setdefault(name.lower(), value)
    return parameters


def _is_transfer_syntax(name: str) -> bool:
    return name == ANY_TRANSFER_SYNTAX or is_valid_uid(name)


def _match(offer: Offer, media_range: MediaRange) -> _Match:
    asked = media_range.media_type
    if asked == "*/*":
        return _Match.ANYTHING
    whole_type = "multipart/related" if offer.multipart else offer.media_type
    if asked == _wildcard(whole_type):
        return _Match.TYPE
    if asked != whole_type:
        return _Match.NONE
    root = media_range.root_type
    if not offer.multipart or root == offer.media_type:
        return _Match.EXACT
    return _Match.ROOT if root in ("*/*", _wildcard(offer.media_type)) else _Match.NONE


def _wildcard(media_type: str) -> str:
    return media_type.partition("/")[0] + "/*"


@dataclass(frozen=True, slots=True, order=True)
class _Wish:
    """A media range seen from one offer; the greater is the more precise, then the better liked."""

    match: _Match
    quality: float
    place: int  # negative, so that the earlier is the greater
    transfer_syntaxes: tuple[str, ...]


def _weigh(offer: Offer, ranges: Sequence[MediaRange]) -> tuple[tuple[float, int, int], Choice] | None:
    """Return the rank of `offer` with the choice that it would be, or None where it is not acceptable.

    The most precise ranges decide. Less precise ones count only while the more precise ones name transfer
    syntaxes, since these then say nothing of the others.
    """
    fitting = [
        _Wish(match, media_range.quality, -place, media_range.transfer_syntaxes)
        for place, media_range in enumerate(ranges)
        if (match := _match(offer, media_range))
    ]
    wishes: list[_Wish] = []
    asked_for: set[str] = {ANY_TRANSFER_SYNTAX}
    excluded: set[str] = set()
    settled = _Match.NONE
    for wish in sorted(fitting, reverse=True):
        if wish.match < settled:
            break
        named = wish.transfer_syntaxes
        if not named or ANY_TRANSFER_SYNTAX in named:
            settled = wish.match
        if wish.quality == 0:
            excluded |= set(named) - asked_for
            continue
        left = tuple(name for name in named if name not in excluded)
        if left or not named:
            wishes.append(replace(wish, transfer_syntaxes=left))
            asked_for.update(left)
    if not wishes:
        return None
    best = wishes[0]
    return (best.quality, best.match, best.place), _choice(offer, wishes, excluded)


def _choice(offer: Offer, wishes: Sequence[_Wish], excluded: set[str]) -> Choice:
    names: dict[str, None] = {}
    if any(wish.transfer_syntaxes for wish in wishes):
        for wish in sorted(wishes, key=lambda wish: (wish.quality, wish.match, wish.place), reverse=True):
            # Beside named ones, a range that names none stands for the default of PS3.18 8.7.3.5.2.
            names.update(dict.fromkeys(wish.transfer_syntaxes or (EXPLICIT_VR_LITTLE_ENDIAN,)))
        if not all(wish.transfer_syntaxes for wish in wishes):
            # As the default on its own would: what cannot be brought to it goes out as it is stored.
            names.setdefault(ANY_TRANSFER_SYNTAX)
    return Choice(offer, tuple(names), frozenset(excluded))
