"""Specific Character Set: the examples of the standard, and bytes that are no text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dataset.charset import ISO_IR_6, UTF_8, Encodings, decode, encodings_of

JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"


@pytest.mark.parametrize(
    ("character_set", "value", "text"),
    [
        # PS3.5 H.3.1
        (
            "\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            JAPANESE,
        ),
        # PS3.5 H.3.2
        (
            "ISO 2022 IR 13\\ISO 2022 IR 87",
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
            "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
        ),
        # PS3.5 I.2
        (
            "\\ISO 2022 IR 149",
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            "Hong^Gildong=洪^吉洞=홍^길동",
        ),
        # PS3.5 J.1 and J.2
        ("ISO_IR 192", b"Wang^XiaoDong=\xe7\x8e\x8b^\xe5\xb0\x8f\xe6\x9d\xb1", "Wang^XiaoDong=王^小東"),
        ("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang^XiaoDong=王^小东"),
        # PS3.5 K.2
        (
            "\\ISO 2022 IR 58",
            b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
            "Zhang^XiaoDong=张^小东=",
        ),
        # JIS X 0212
        ("\\ISO 2022 IR 159", b"\x1b$(D0!\x1b(B", "丂"),
        # Single-byte code extensions
        ("ISO 2022 IR 6\\ISO 2022 IR 100\\ISO 2022 IR 144", b"\x1b-AB\xfcc\x1b-L\xbb\xee", "BücЛю"),
        ("ISO 2022 IR 100\\ISO 2022 IR 126", b"Dion\xfd-\x1b-F\xc4\xe9\xef\xed", "Dioný-Διον"),
    ],
)
def test_examples_of_the_standard(character_set: str, value: bytes, text: str) -> None:
    assert decode(value, encodings_of(character_set), "PN") == text


@pytest.mark.parametrize(
    ("character_set", "value", "text"),
    [
        ("ISO_IR 100", b"\xc4neas", "Äneas"),
        ("ISO_IR 101", b"Wa\xb3\xeasa", "Wałęsa"),
        ("ISO_IR 109", b"\xc6u", "Ĉu"),
        ("ISO_IR 110", b"\xb6", "ļ"),
        ("ISO_IR 126", b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος"),
        ("ISO_IR 127", b"\xe2\xc8\xc7\xe6\xea", "\u0642\u0628\u0627\u0646\u064a"),
        ("ISO_IR 138", b"\xf9\xf8\xe5\xef", "\u05e9\u05e8\u05d5\u05df"),
        ("ISO_IR 144", b"\xbb\xee\xda", "Люк"),
        ("ISO_IR 148", b"\xd0\xfd", "Ğı"),
        ("ISO_IR 166", b"\xb9\xd2\xc2", "นาย"),
        ("ISO_IR 203", b"\xa4\xbd", "€œ"),
        ("ISO_IR 13", b"\xd4\xcf", "ﾔﾏ"),
        ("GBK", b"\xcd\xf5", "王"),
    ],
)
def test_single_character_sets(character_set: str, value: bytes, text: str) -> None:
    assert decode(value, encodings_of(character_set), "LO") == text


@pytest.mark.parametrize("character_set", ["GBK", "GB18030"])
def test_a_backslash_or_caret_may_be_half_of_a_character(character_set: str) -> None:
    assert decode(b"\x81\x5c\x81\x5e", encodings_of(character_set), "PN") == "乗乛"


def test_kanji_that_contain_the_byte_of_a_backslash() -> None:
    assert decode(b"\x1b$B\x25\x5c\x1b(B\\a", encodings_of("\\ISO 2022 IR 87"), "LO") == "ボ\\a"


def test_a_delimiter_puts_the_first_character_set_back() -> None:
    encodings = encodings_of("ISO 2022 IR 100\\ISO 2022 IR 144")
    assert decode(b"\x1b-L\xbb^\xfc", encodings, "PN") == "Л^ü"
    assert decode(b"\x1b-L\xbb^\xfc", encodings, "LO") == "Л^ќ"  # a caret delimits in PN alone
    assert decode(b"\x1b-L\xbb\\\xfc", encodings, "LO") == "Л\\ü"
    assert decode(b"\x1b-L\xbb\\\xfc", encodings, "UT") == "Л\\ќ"  # nor a backslash in UT
    assert decode(b"\x1b-L\xbb\r\n\xfc", encodings, "UT") == "Л\r\nü"


def test_escape_sequences_need_not_be_declared() -> None:
    assert decode(b"\x1b$B;3ED\x1b(B", encodings_of("ISO_IR 100"), "LO") == "山田"


def test_escape_bytes_mean_nothing_in_stand_alone_character_sets() -> None:
    assert decode(b"\x1b$B;3", UTF_8, "LO") == "\x1b$B;3"


@pytest.mark.parametrize(
    ("value", "codec"),
    [
        (b"ISO_IR 100", "latin_1"),
        (b"ISO_IR 144 ", "iso8859_5"),
        (b"ISO_IR 192\\ISO 2022 IR 87", "utf_8"),
        ("ISO-IR 101", "iso8859_2"),
        ("ISO IR 101", "iso8859_2"),
        ("iso_ir 101", "iso8859_2"),
        ("ISO 2022 IR 101", "iso8859_2"),
        ("ISO2022IR101", "iso8859_2"),
        ("ISO 2022 IR 149", "euc_kr"),
        ("utf-8", "utf_8"),
        ("ISO 2022 GBK", "gbk"),
        ("ISO 2022 58", "gb2312"),
        ("\\ISO 2022 IR 87", "latin_1"),
    ],
)
def test_terms(value: bytes | str, codec: str) -> None:
    assert encodings_of(value).initial == codec


@pytest.mark.parametrize("value", [None, b"", b"  ", "", b"ISO_IR 999", b"rot13", b"\xff\xfe", b"7" * 9999])
def test_what_is_absent_or_unknown_is_the_default(value: bytes | str | None) -> None:
    assert encodings_of(value) is ISO_IR_6
    assert encodings_of(value, UTF_8) is UTF_8


def test_the_default_reads_stray_bytes_as_latin_1() -> None:
    assert decode(b"M\xfcller", ISO_IR_6, "PN") == "Müller"


def test_vrs_that_the_character_set_does_not_touch() -> None:
    assert decode(b"M\xc3\xbc", UTF_8, "LO") == "Mü"
    assert decode(b"M\xc3\xbc", UTF_8, "CS") == "MÃ¼"


def test_bad_bytes_are_replaced() -> None:
    assert decode(b"M\xfcller", UTF_8, "PN") == "M\ufffdller"


TERMS = ["", "ISO_IR 6", "ISO_IR 13", "ISO_IR 127", "ISO_IR 166", "ISO_IR 192", "GB18030", "GBK", "ISO 2022 IR 149"]
SEQUENCES = [b"\x1b$B", b"\x1b$(D", b"\x1b(J", b"\x1b)I", b"\x1b$)C", b"\x1b$)A", b"\x1b-T", b"\x1b", b"\x1b-Z"]


@given(
    st.lists(st.binary(max_size=8) | st.sampled_from(SEQUENCES), max_size=8).map(b"".join),
    st.sampled_from(TERMS).map(encodings_of),
    st.sampled_from(["PN", "LO", "UT", "CS"]),
)
@settings(deadline=None)
def test_no_bytes_raise_and_all_text_is_unicode(value: bytes, encodings: Encodings, vr: str) -> None:
    decode(value, encodings, vr).encode("utf-8")


@given(st.binary(max_size=64))
@settings(deadline=None)
def test_no_term_raises(value: bytes) -> None:
    encodings_of(value)
