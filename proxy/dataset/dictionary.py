"""The data dictionary (PS3.6): value representation and keyword of a tag, and the way back.

What may live here: look-ups of a tag, and nothing that reads or writes data sets. pydicom's tables are the
source. Only they are loaded, without the package around them, which would bring numpy, Pillow and the decoders into
the memory of a server that decodes no pixel. The tables here hold standard tags only, so that no peer can make them
grow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Final, NamedTuple

_Entry = tuple[str, str, str, str, str]
"""Of the dictionary: VR, VM, name, whether it is retired, and keyword."""

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


def _load() -> tuple[Mapping[int, _Entry], Mapping[str, _Entry]]:
    """Read pydicom's tables: of single tags, and of repeating groups, with `x` for the digits that vary."""
    package = find_spec("pydicom")
    assert package is not None
    assert package.origin is not None
    spec = spec_from_file_location("_dicom_dict", Path(package.origin).with_name("_dicom_dict.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DicomDictionary, module.RepeatersDictionary


class _Repeating(NamedTuple):
    """The tags of a repeating group (PS3.5 7.6), such as (60xx,0010): those with `value` in the bits of `fixed`."""

    value: int
    fixed: int
    vr: str
    keyword: str

    @classmethod
    def of(cls, mask: str, entry: _Entry) -> _Repeating:
        fixed = "".join("0" if digit == "x" else "F" for digit in mask)
        return cls(int(mask.replace("x", "0"), 16), int(fixed, 16), _RESOLVED.get(entry[0], entry[0]), entry[4])

    def has(self, tag: int) -> bool:
        return (tag ^ self.value) & self.fixed == 0


_ENTRIES, _REPEATERS = _load()
_REPEATING: Final = tuple(_Repeating.of(mask, entry) for mask, entry in _REPEATERS.items())


class _VRTable(dict[int, str]):
    """Tag to VR, "US or SS" unresolved; tags of repeating groups are added at their first use."""

    def __missing__(self, tag: int) -> str:
        if tag & 0xFFFF == 0:
            return "UL"  # group length (PS3.5 7.2)
        if tag & 0x10000:
            # PS3.5 7.8.1: (gggg,0010-00FF) are Private Creators, LO. Other private elements are not in PS3.6.
            return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
        for group in _REPEATING:
            if group.has(tag):
                self[tag] = group.vr
                return group.vr
        return "UN"


RAW_VR: Final = _VRTable((tag, _RESOLVED.get(entry[0], entry[0])) for tag, entry in _ENTRIES.items())
"""`RAW_VR[tag]` is `vr_of(tag)`, but for `US_OR_SS`, which the reader resolves by the data set."""

_KEYWORDS: Final = {tag: entry[4] for tag, entry in _ENTRIES.items() if entry[4]}
_TAGS: Final = {keyword: tag for tag, keyword in _KEYWORDS.items()}


def vr_of(tag: int) -> str:
    """The VR of a tag (PS3.6 chapter 6), two letters.

    "OB or OW" and its kin are OW (PS3.5 A.1), "US or SS" is US, Private Creators are LO, group lengths UL;
    "UN" for private and unknown tags.
    """
    vr = RAW_VR[tag]
    return "US" if vr == US_OR_SS else vr


def keyword_of(tag: int) -> str:
    """The keyword of a tag (PS3.6 chapter 6), or "" where it has none."""
    keyword = _KEYWORDS.get(tag)
    return keyword if keyword is not None else next((group.keyword for group in _REPEATING if group.has(tag)), "")


def tag_of(name: str) -> int | None:
    """The tag for a keyword ("PatientName") or eight hexadecimal digits ("00100010"), as PS3.18 8.3.4.1 writes them.

    None for an unknown keyword, and for items and delimiters, which are no attributes. Hexadecimal tags
    need not be in the dictionary, since private attributes are not.
    """
    tag = int(name, 16) if _HEX_TAG.fullmatch(name) else _TAGS.get(name)
    return None if tag is None or tag >> 16 == 0xFFFE else tag
