"""The dictionary: what VR, keyword and tag belong together."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydicom import datadict
from pydicom._dicom_dict import RepeatersDictionary

from proxy.dataset.dictionary import RAW_VR, keyword_of, tag_of, vr_of


@pytest.mark.parametrize(
    ("tag", "vr"),
    [
        (0x00100010, "PN"),
        (0x0020000D, "UI"),
        (0x00400275, "SQ"),
        (0x7FE00010, "OW"),  # OB or OW
        (0x00280106, "US"),  # US or SS
        (0x00283006, "OW"),  # US or OW
        (0x00281200, "OW"),  # US or SS or OW
        (0x60020010, "US"),  # the second overlay group
        (0x50060005, "US"),  # a retired curve group
        (0x00080000, "UL"),  # group length
        (0x00090010, "LO"),  # Private Creator
        (0x00091001, "UN"),
        (0x00080003, "UN"),
        (0xFFFEE000, "UN"),
    ],
)
def test_vr(tag: int, vr: str) -> None:
    assert vr_of(tag) == vr


def test_every_standard_tag_is_known() -> None:
    for keyword, tag in datadict.keyword_dict.items():
        if keyword and tag >> 16 != 0xFFFE:
            assert len(vr_of(tag)) == 2
            assert tag_of(keyword) == tag
            assert keyword_of(tag) == keyword


@pytest.mark.parametrize("mask", sorted(RepeatersDictionary))
def test_every_repeating_group_is_known(mask: str) -> None:
    tag = int(mask.replace("xx", "02").replace("x", "2"), 16)
    assert keyword_of(tag) == datadict.dictionary_keyword(tag)
    assert vr_of(tag) in datadict.dictionary_VR(tag)


def test_a_server_does_not_load_what_decodes_pixels() -> None:
    """Or 20 MB more are in its memory, and it starts later."""
    code = "import sys, proxy.app; print([name for name in ('pydicom', 'numpy', 'PIL') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("PatientName", 0x00100010),
        ("0020000D", 0x0020000D),
        ("0020000d", 0x0020000D),
        ("00091001", 0x00091001),
        ("patientname", None),
        ("Patient", None),
        ("0010001", None),
        ("001000100", None),
        ("0010,0010", None),
        ("0x100010", None),
        ("FFFEE000", None),
        ("SequenceDelimitationItem", None),
        ("", None),
    ],
)
def test_tag_of(name: str, tag: int | None) -> None:
    assert tag_of(name) == tag


def test_unknown_keywords_are_empty() -> None:
    assert keyword_of(0x00091001) == ""
    assert keyword_of(0x00080003) == ""


def test_private_and_unknown_tags_do_not_fill_the_table() -> None:
    before = len(RAW_VR)
    for number in range(0x1000, 0x2000):
        assert vr_of(0x00090000 | number) == "UN"
        assert vr_of(0x43210000 | number | 0xF000) in ("UN", "LO")
    assert len(RAW_VR) == before
