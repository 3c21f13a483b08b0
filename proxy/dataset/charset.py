"""Specific Character Set (0008,0005): bytes of a data set to text (PS3.3 C.12.1.1.2, PS3.5 6.1).

What may live here: the names of character sets, and decoding. Writing needs none of it: what this program
encodes is ASCII or UTF-8. Nothing here raises on bytes that a peer sent: what cannot be decoded becomes
U+FFFD, and a character set that nobody knows becomes the default.

Code extensions (ISO 2022): every escape sequence that PS3.3 Tables C.12-3 and C.12-4 define is honoured,
declared in (0008,0005) or not, as archives forget to declare them. A delimiter puts the first character set
back (PS3.5 6.1.2.5.3).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_ESCAPE: Final = 0x1B  # sought as a number, which takes half the time

_SINGLE_BYTE: Final = {
    # ISO registration number: codec, for both "ISO_IR n" and "ISO 2022 IR n"
    6: "latin_1",  # ASCII; bytes above are against the standard, and read as Latin-1
    13: "shift_jis",  # JIS X 0201 is its single-byte part; many devices mean all of it
    100: "latin_1",
    101: "iso8859_2",
    109: "iso8859_3",
    110: "iso8859_4",
    126: "iso8859_7",
    127: "iso8859_6",
    138: "iso8859_8",
    144: "iso8859_5",
    148: "iso8859_9",
    166: "tis_620",
    203: "iso8859_15",
}
_MULTI_BYTE: Final = {
    # By the standard these never come first; where one does, it is also the initial character set.
    58: "gb2312",
    87: "shift_jis",
    149: "euc_kr",
    159: "shift_jis",
}
_STAND_ALONE: Final = {
    # Without code extensions (PS3.3 Table C.12-5)
    "192": "utf_8",
    "GB18030": "gb18030",
    "GBK": "gbk",
    "UTF8": "utf_8",
}

_G1: Final = {
    # Escape sequences, without their first byte, that designate a character set to G1; codecs for both halves
    b"-A": "latin_1",
    b"-B": "iso8859_2",
    b"-C": "iso8859_3",
    b"-D": "iso8859_4",
    b"-F": "iso8859_7",
    b"-G": "iso8859_6",
    b"-H": "iso8859_8",
    b"-L": "iso8859_5",
    b"-M": "iso8859_9",
    b"-T": "tis_620",
    b"-b": "iso8859_15",
    b")I": "shift_jis",
    b"$)A": "gb2312",
    b"$)C": "euc_kr",
}
_G0_MULTI_BYTE: Final = (b"$@", b"$B", b"$(D")  # JIS C 6226, JIS X 0208, JIS X 0212

# Also ESC ( B (ASCII) and ESC ( J (JIS X 0201 romaji, whose yen sign and overline are read as backslash and
# tilde)
_SEQUENCE = re.compile(rb"\x1b(-[A-DFGHLMTb]|\)I|\$\)[AC]|\([BJ]|\$[@B]|\$\(D)")

_CONTROLS: Final = rb"\t\n\f\r"
_RESET = {
    # PS3.5 6.1.2.5.3: what puts the first character set back, by VR
    "PN": re.compile(rb"[\\^=" + _CONTROLS + rb"]"),
    "LT": re.compile(rb"[" + _CONTROLS + rb"]"),
    "ST": re.compile(rb"[" + _CONTROLS + rb"]"),
    "UT": re.compile(rb"[" + _CONTROLS + rb"]"),
}
_RESET_VALUES = re.compile(rb"[\\" + _CONTROLS + rb"]")

AFFECTED_VRS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT", "UN"})
"""The VRs whose text is in the Specific Character Set (PS3.5 6.1.2.3); the others are ASCII."""


@dataclass(frozen=True, slots=True)
class Encodings:
    """The character sets of a data set, ready for `decode`.

    `initial` is the Python codec in force at the start of each value; `extensible` is False for the
    stand-alone character sets, in which an escape byte means nothing.
    """

    initial: str
    extensible: bool = True


ISO_IR_6: Final = Encodings("latin_1")
"""The default character repertoire (PS3.5 6.1.1), read leniently."""

UTF_8: Final = Encodings("utf_8", extensible=False)


def encodings_of(value: bytes | str | None, default: Encodings = ISO_IR_6) -> Encodings:
    """The meaning of a value of Specific Character Set (PS3.3 C.12.1.1.2), as it stands in the data set.

    `default` is for where it is absent (None), empty, or unknown. Usual misspellings ("ISO-IR 100", "utf-8",
    "ISO2022IR87") are understood. Never raises.
    """
    if value is None:
        return default
    if isinstance(value, bytes):
        value = value[:256].decode("latin_1")  # ten defined terms; the bound keeps the cache small
    found = _first_term(value[:256])
    return default if found is None else found


@lru_cache(maxsize=256)
def _first_term(value: str) -> Encodings | None:
    terms = [term.strip(" \0") for term in value.split("\\")]
    if not terms[0]:
        # An empty first value of several is ISO 2022 IR 6; a lone one says nothing.
        return ISO_IR_6 if any(terms) else None
    name = re.sub(r"^ISO(2022)?(IR)?", "", re.sub(r"[\s_-]", "", terms[0].upper()))
    if name in _STAND_ALONE:
        return Encodings(_STAND_ALONE[name], extensible=False)
    number = int(name) if name.isascii() and name.isdigit() else 0
    codec = _SINGLE_BYTE.get(number) or _MULTI_BYTE.get(number)
    return Encodings(codec) if codec else None


def decode(value: bytes, encodings: Encodings, vr: str) -> str:
    """The text of a value (all its values, backslashes included). Never raises.

    Decoding comes before splitting at backslashes, carets and equals signs: those bytes are also halves of
    characters in GBK, GB18030 and JIS X 0208.
    """
    if value.isascii() and _ESCAPE not in value:
        return value.decode()  # without an argument it is quickest
    if vr not in AFFECTED_VRS:
        return value.decode("latin_1")
    if encodings.extensible and _ESCAPE in value:
        return _decode_extended(value, encodings.initial, _RESET.get(vr, _RESET_VALUES))
    return value.decode(encodings.initial, "replace")


def _decode_extended(value: bytes, initial: str, reset: re.Pattern[bytes]) -> str:
    """ISO 2022: the value is cut at its escape sequences, each piece decoded by what is designated then."""
    pieces = _SEQUENCE.split(value)  # text, sequence, text, sequence, text ...
    decoded = [pieces[0].decode(initial, "replace")]
    g1 = initial
    for sequence, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        if sequence in _G0_MULTI_BYTE:
            # Bytes that look like delimiters are halves of characters here. Python's codec takes the
            # sequence itself.
            decoded.append((b"\x1b" + sequence + piece).decode("iso2022_jp_2", "replace"))
            continue
        g1 = _G1.get(sequence, g1)  # ESC ( B and ESC ( J change G0 alone
        delimiter = reset.search(piece)
        if delimiter is None:
            decoded.append(piece.decode(g1, "replace"))
        else:
            cut = delimiter.start()
            decoded.append(piece[:cut].decode(g1, "replace") + piece[cut:].decode(initial, "replace"))
            g1 = initial
    return "".join(decoded)
