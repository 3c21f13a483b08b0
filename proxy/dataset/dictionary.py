"""The data dictionary (PS3.6): value representation and keyword of a tag, and the way back.

What may live here: look-ups of a tag, and nothing that reads or writes data sets. pydicom's tables are the
source; the tables here are filled from them at the first use of each tag, and hold standard tags only, so
that no peer can make them grow.
"""

from __future__ import annotations

import re

from pydicom import datadict

ITEM = 0xFFFEE000
ITEM_DELIMITATION = 0xFFFEE00D
SEQUENCE_DELIMITATION = 0xFFFEE0DD

SPECIFIC_CHARACTER_SET = 0x00080005
SOP_INSTANCE_UID = 0x00080018
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E
PIXEL_REPRESENTATION = 0x00280103

US_OR_SS = "US or SS"
"""PS3.6 leaves the choice to Pixel Representation (0028,0103)."""

_RESOLVED = {
    # PS3.5 A.1: where the transfer syntax does not say, these are OW.
    "OB or OW": "OW",
    "US or OW": "OW",
    "US or SS or OW": "OW",
    # Items and delimiters have no value representation.
    "NONE": "UN",
}

_HEX_TAG = re.compile(r"[0-9A-Fa-f]{8}")


class _VRTable(dict[int, str]):
    """Tag to VR, "US or SS" unresolved; filled on demand, with standard tags only."""

    def __missing__(self, tag: int) -> str:
        if tag & 0xFFFF == 0:
            return "UL"  # group length (PS3.5 7.2)
        if tag & 0x10000:
            # PS3.5 7.8.1: (gggg,0010-00FF) are Private Creators, LO. Other private elements are not in PS3.6.
            return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
        try:
            vr = datadict.dictionary_VR(tag)
        except KeyError:
            return "UN"
        vr = self[tag] = _RESOLVED.get(vr, vr)
        return vr


class _KeywordTable(dict[int, str]):
    """Tag to keyword, filled on demand, with standard tags only."""

    def __missing__(self, tag: int) -> str:
        try:
            keyword = self[tag] = datadict.dictionary_keyword(tag)
        except KeyError:
            return ""
        return keyword


RAW_VR = _VRTable()
"""`RAW_VR[tag]` is `vr_of(tag)`, but for `US_OR_SS`, which the reader resolves by the data set."""

_KEYWORD = _KeywordTable()


def vr_of(tag: int) -> str:
    """The VR of a tag (PS3.6 chapter 6), two letters.

    "OB or OW" and its kin are OW (PS3.5 A.1), "US or SS" is US, Private Creators are LO, group lengths UL;
    "UN" for private and unknown tags.
    """
    vr = RAW_VR[tag]
    return "US" if vr == US_OR_SS else vr


def keyword_of(tag: int) -> str:
    """The keyword of a tag (PS3.6 chapter 6), or "" where it has none."""
    return _KEYWORD[tag]


def tag_of(name: str) -> int | None:
    """The tag for a keyword ("PatientName") or eight hexadecimal digits ("00100010"), as PS3.18 8.3.4.1 writes them.

    None for an unknown keyword, and for items and delimiters, which are no attributes. Hexadecimal tags
    need not be in the dictionary, since private attributes are not.
    """
    if not name:
        return None  # pydicom has retired tags without a keyword under that name
    tag = int(name, 16) if _HEX_TAG.fullmatch(name) else datadict.tag_for_keyword(name)
    return None if tag is None or tag >> 16 == 0xFFFE else tag
