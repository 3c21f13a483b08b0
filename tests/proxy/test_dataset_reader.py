"""The reader: all encodings, odd but usual data sets, and hostile ones."""

from __future__ import annotations

import random
import time
import tracemalloc
import zlib
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dataset.charset import ISO_IR_6
from proxy.dataset.reader import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    Bytes,
    DatasetError,
    Element,
    Limits,
    inflate,
    parse,
    transfer_syntax_of,
)
from proxy.dataset.values import encodings_in, find, first_value, text_of
from proxy.dicomweb.dicomjson import encode
from tests.proxy.dicomfiles import (
    ITEM,
    ITEM_END,
    NATIVE,
    SEQUENCE_END,
    TRUNCATED,
    UNDEFINED,
    deflated,
    dicom_file,
    encoded,
    implicit,
    item,
    long,
    names,
    sample_dataset,
    short,
)


def explicit(data: Bytes) -> list[Element]:
    return parse(data, EXPLICIT_VR_LITTLE_ENDIAN)


def plain(elements: list[Element]) -> list[object]:
    """Elements as tuples, for comparison; views as bytes."""

    def value_of(element: Element) -> object:
        value = element.value
        if isinstance(value, list):
            return [plain(one) for one in value]
        return tuple(bytes(one) for one in value) if isinstance(value, tuple) else bytes(value)

    return [(element.tag, element.vr, value_of(element)) for element in elements]


# --- encodings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
@pytest.mark.parametrize("encoding", NATIVE)
def test_every_encoding_gives_the_same_elements(encoding: str, undefined: bool) -> None:
    reference = explicit(encoded(sample_dataset(), implicit=False))
    assert " ".join(element.vr for element in reference) == "CS UI PN FL UL SL AT US US SS FD SQ UV OV OW"
    dataset = sample_dataset(turned=encoding == "big endian")
    for outer in dataset.ContentSequence:
        outer.is_undefined_length_sequence_item = undefined
    dataset["ContentSequence"].is_undefined_length = undefined
    data = encoded(dataset, implicit=encoding == "implicit", little=encoding != "big endian")
    if encoding == "deflated":
        data = deflated(data)
    assert plain(parse(data, NATIVE[encoding])) == plain(reference)


def test_values_of_views_are_views_and_long_values_are_not_copied() -> None:
    data = short(0x00080060, "CS", b"MR") + long(0x7FE00010, "OW", b"\1\2" * 5000)
    modality, pixels = explicit(data)
    assert modality.value == b"MR"
    assert isinstance(pixels.value, memoryview)
    assert pixels.value.obj is data
    assert plain(explicit(memoryview(data))) == plain([modality, pixels])
    assert encode(explicit(memoryview(data))) == encode([modality, pixels])


def test_unlisted_transfer_syntaxes_are_explicit_little_endian() -> None:
    syntax = transfer_syntax_of("1.2.840.10008.1.2.4.50")
    assert (syntax.explicit, syntax.little_endian, syntax.deflated) == (True, True, False)


def test_encapsulated_pixel_data_is_kept_in_fragments() -> None:
    data = long(0x7FE00010, "OB", item(b"") + item(b"\xff\xd8") + item(b"\1" * 5000) + SEQUENCE_END, UNDEFINED)
    (pixels,) = explicit(data)
    assert plain([pixels]) == [(0x7FE00010, "OB", (b"", b"\xff\xd8", b"\1" * 5000))]


def test_pixel_representation_holds_in_items_but_not_beyond_them() -> None:
    signed = implicit(0x00280103, b"\1\0")
    value = implicit(0x00280106, b"\xfe\xff")
    unsigned_item = item(implicit(0x00280103, b"\0\0") + value)
    data = (
        value + signed + implicit(0x00283010, item(value) + unsigned_item + item(value)) + implicit(0x00280107, b"\1\0")
    )
    before, _, sequence, after = parse(data, IMPLICIT_VR_LITTLE_ENDIAN)
    assert (before.vr, after.vr) == ("US", "SS")
    assert isinstance(sequence.value, list)
    assert [one[-1].vr for one in sequence.value] == ["SS", "US", "SS"]


# --- what archives do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
def test_un_sequences_have_implicit_items(undefined: bool) -> None:
    """PS3.5 6.2.2. Undefined lengths tell that it is a sequence, and so does the dictionary."""
    items = item(implicit(0x00080100, b"T-1 "))
    tag = 0x00091010 if undefined else 0x0040A043
    data = long(tag, "UN", items + SEQUENCE_END, UNDEFINED) if undefined else long(tag, "UN", items)
    after = short(0x7FE10010, "LO", b"after ")
    assert plain(explicit(data + after)) == [
        (tag, "SQ", [[(0x00080100, "SH", b"T-1 ")]]),
        (0x7FE10010, "LO", b"after "),
    ]


def test_un_sequences_whose_items_were_left_explicit() -> None:
    data = long(0x00091010, "UN", ITEM + short(0x00080100, "SH", b"T-1 ") + ITEM_END + SEQUENCE_END, UNDEFINED)
    assert plain(explicit(data)) == [(0x00091010, "SQ", [[(0x00080100, "SH", b"T-1 ")]])]


def test_un_sequences_in_big_endian_are_little_endian() -> None:
    head = pack(">HH2sHI", 0x0009, 0x1010, b"UN", 0, UNDEFINED)
    data = (
        head
        + ITEM
        + implicit(0x00080100, b"T-1 ")
        + ITEM_END
        + SEQUENCE_END
        + pack(">HH2sHH", 0x28, 0x10, b"US", 2, 513)
    )
    assert plain(parse(data, EXPLICIT_VR_BIG_ENDIAN)) == [
        (0x00091010, "SQ", [[(0x00080100, "SH", b"T-1 ")]]),
        (0x00280010, "US", pack("<H", 513)),
    ]


def test_un_of_a_standard_tag_gets_its_vr_back() -> None:
    assert plain(explicit(long(0x00280010, "UN", b"\0\2") + long(0x00091010, "UN", b"\0\2"))) == [
        (0x00280010, "US", b"\0\2"),
        (0x00091010, "UN", b"\0\2"),
    ]


@pytest.mark.parametrize("value", [b"\1\2\3", b"\xfe\xff\0\xe0\x08\0\0\0\x08\0\0\0", item(b"\0" * 7)])
def test_un_of_a_standard_sequence_that_is_none_stays_un(value: bytes) -> None:
    data = long(0x0040A043, "UN", value) + short(0x00480000, "UL", bytes(4))
    assert plain(explicit(data))[0] == (0x0040A043, "UN", value)


def test_elements_that_are_implicit_among_explicit_ones() -> None:
    data = short(0x00080060, "CS", b"MR") + implicit(0x00080070, b"ACME") + short(0x00080090, "PN", b"Dr")
    assert [element.vr for element in explicit(data)] == ["CS", "LO", "PN"]


def test_unknown_vrs_have_two_or_four_bytes_of_length() -> None:
    data = short(0x00080060, "ZZ", b"MR") + long(0x00080070, "QQ", b"ACME") + short(0x00080090, "PN", b"Dr")
    assert plain(explicit(data)) == [
        (0x00080060, "CS", b"MR"),
        (0x00080070, "LO", b"ACME"),
        (0x00080090, "PN", b"Dr"),
    ]


def test_the_bad_vr_among_the_samples() -> None:
    sample = dicom_file("badVR.dcm")
    assert len(parse(sample.data, sample.transfer_syntax)) > 10


def test_delimiters_with_a_length() -> None:
    data = long(0x00081140, "SQ", ITEM + pack("<HHIHHI", 0xFFFE, 0xE00D, 4, 0xFFFE, 0xE0DD, 4), UNDEFINED)
    assert plain(explicit(data)) == [(0x00081140, "SQ", [[]])]


def test_order_and_duplicates_are_kept() -> None:
    data = short(0x00100020, "LO", b"1 ") + short(0x00100010, "PN", b"A ") + short(0x00100020, "LO", b"2 ")
    assert [element.tag for element in explicit(data)] == [0x00100020, 0x00100010, 0x00100020]


# --- malformed -------------------------------------------------------------------------------------------------

GOOD = short(0x00080060, "CS", b"MR")
MALFORMED = {
    "half a header": GOOD + b"\x10\0\x10",
    "trailing zeros": GOOD + bytes(4),
    "half a long header": GOOD + long(0x7FE00010, "OW", b"")[:10],
    "value too long": GOOD + short(0x00100010, "PN", b"A^B ")[:-1],
    "long value too long": GOOD + long(0x7FE00010, "OW", b"\0\0", 4),
    "four gigabytes": GOOD + long(0x7FE00010, "OW", b"\0\0", UNDEFINED - 1),
    "item outside of a sequence": GOOD + item(b""),
    "item delimiter outside of an item": GOOD + ITEM_END,
    "sequence delimiter outside of a sequence": GOOD + SEQUENCE_END,
    "sequence without delimiter": long(0x00081140, "SQ", item(GOOD), UNDEFINED),
    "item without delimiter": long(0x00081140, "SQ", ITEM + GOOD + SEQUENCE_END, UNDEFINED),
    "item without delimiter in a sequence of defined length": long(0x00081140, "SQ", ITEM + GOOD),
    "delimiter in an item of defined length": long(0x00081140, "SQ", item(GOOD + ITEM_END)),
    "sequence of defined length with a delimiter": long(0x00081140, "SQ", item(GOOD) + SEQUENCE_END),
    "no item in a sequence": long(0x00081140, "SQ", GOOD),
    "item longer than its sequence": long(0x00081140, "SQ", item(GOOD), 12) + GOOD,
    "half an item header": long(0x00081140, "SQ", item(b"")[:4]),
    "value longer than its item": long(0x00081140, "SQ", item(GOOD[:-1])) + GOOD,
    "header longer than its item": long(0x00081140, "SQ", item(GOOD[:4])) + GOOD,
    "fragments without delimiter": long(0x7FE00010, "OB", item(b"ab"), UNDEFINED),
    "fragment too long": long(0x7FE00010, "OB", item(b"ab")[:-1] + SEQUENCE_END, UNDEFINED),
    "fragment of undefined length": long(0x7FE00010, "OB", ITEM + b"ab" + SEQUENCE_END, UNDEFINED),
    "text of undefined length": long(0x00400030, "UT", b"text", UNDEFINED),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_data_sets_are_refused(data: bytes) -> None:
    with pytest.raises(DatasetError, match=r"at byte \d+"):
        explicit(data)


@pytest.mark.parametrize("content", [item(b""), ITEM_END, SEQUENCE_END], ids=["item", "item end", "sequence end"])
def test_stray_delimiters_in_implicit_vr(content: bytes) -> None:
    with pytest.raises(DatasetError):
        parse(implicit(0x00080060, b"MR") + content, IMPLICIT_VR_LITTLE_ENDIAN)


def test_errors_say_where_but_not_what() -> None:
    with pytest.raises(DatasetError) as caught:
        explicit(GOOD + short(0x00100010, "PN", b"SECRET")[:-1])
    assert (caught.value.offset, caught.value.tag) == (len(GOOD), 0x00100010)
    assert "(0010,0010)" in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in repr(Element(0x00100010, "PN", b"SECRET"))


@pytest.mark.parametrize("name", sorted(TRUNCATED))
def test_truncated_samples_are_refused(name: str) -> None:
    sample = dicom_file(name)
    with pytest.raises(DatasetError):
        parse(sample.data, sample.transfer_syntax)


# --- limits ----------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    opening = long(0x0040A730, "SQ", ITEM, UNDEFINED)
    return opening * depth + (ITEM_END + SEQUENCE_END) * depth


def test_depth() -> None:
    elements = explicit(nested(64))
    for _ in range(64):
        (element,) = elements
        assert isinstance(element.value, list)
        (elements,) = element.value
    assert elements == []
    with pytest.raises(DatasetError, match="64 deep"):
        explicit(nested(65))


def test_ten_thousand_nested_sequences_are_refused_at_once() -> None:
    for data in (
        nested(10_000),
        long(0x0040A730, "UN", ITEM, UNDEFINED) + implicit(0x0040A730, ITEM, UNDEFINED) * 10_000,
    ):
        started = time.process_time()
        with pytest.raises(DatasetError, match="64 deep"):
            explicit(data)
        assert time.process_time() - started < 0.2


@pytest.mark.parametrize(
    "data",
    [
        GOOD * 11,
        long(0x00081140, "SQ", item(b"") * 10),
        long(0x00081140, "SQ", item(GOOD) * 5),
        long(0x7FE00010, "OB", item(b"ab") * 10 + SEQUENCE_END, UNDEFINED),
        GOOD * 5 + long(0x00091010, "UN", item(implicit(0x00080100, b"")) * 3 + SEQUENCE_END, UNDEFINED),
    ],
    ids=["elements", "items", "items and elements", "fragments", "UN sequence"],
)
def test_elements_items_and_fragments_are_counted(data: bytes) -> None:
    with pytest.raises(DatasetError, match="too many"):
        parse(data, EXPLICIT_VR_LITTLE_ENDIAN, limits=Limits(elements=10))
    parse(data, EXPLICIT_VR_LITTLE_ENDIAN, limits=Limits(elements=12))


def test_a_deflate_bomb_costs_no_more_than_the_limit() -> None:
    bomb = deflated(bytes(64 * 1024 * 1024))
    limits = Limits(inflated=4 * 1024 * 1024)
    tracemalloc.start()
    with pytest.raises(DatasetError, match="larger than"):
        parse(bomb, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, limits=limits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 1024 * 1024


def test_the_inflate_ratio_counts_beyond_what_is_free() -> None:
    data = bytes(1024 * 1024)
    assert inflate(deflated(data)) == data
    with pytest.raises(DatasetError, match="larger than"):
        inflate(deflated(data), Limits(inflate_free=64 * 1024))
    assert inflate(deflated(data), Limits(inflated=len(data))) == data


@pytest.mark.parametrize("trailer", [b"", b"\0", pack("<II", zlib.crc32(GOOD), len(GOOD))], ids=["none", "pad", "gzip"])
def test_usual_ends_of_deflated_data_sets(trailer: bytes) -> None:
    assert len(parse(deflated(GOOD) + trailer, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)) == 1


@pytest.mark.parametrize("data", [deflated(GOOD)[:-1], deflated(GOOD) + b"x", b"\xff" * 20, b""])
def test_what_cannot_be_inflated_is_refused(data: bytes) -> None:
    with pytest.raises(DatasetError):
        parse(data, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)


# --- values ----------------------------------------------------------------------------------------------------


def test_text_of_every_kind_of_value() -> None:
    elements = explicit(encoded(sample_dataset(), implicit=False))
    encodings = encodings_in(elements)
    assert {element.tag: text_of(element, encodings) for element in elements} == {
        0x00080005: "ISO_IR 100",
        0x00080018: "1.2.3",
        0x00100010: "Müller^Jörg",
        0x00109431: "1.5",
        0x00186016: "70000",
        0x00186020: "-70000",
        0x00280009: "00181063\\00181065",
        0x00280010: "513",
        0x00280103: "1",
        0x00280106: "-2",
        0x00409225: "0.1",
        0x0040A730: "",
        0x00720083: f"1\\{2**64 - 1}",
        0x7FE00001: "",
        0x7FE00010: "",
    }
    assert first_value(elements, 0x00280009) == "00181063"
    assert first_value(elements, 0x00280011) == ""
    assert find(elements, 0x00280011) is None


def test_padding_of_text() -> None:
    elements = [
        Element(0x00080020, "DA", b" 20200101 \0"),
        Element(0x00080061, "CS", b"CT \\ MR\\"),
        Element(0x00104000, "LT", b"  a\\b  "),
        Element(0x00080119, "UC", b" a \\ b "),
        Element(0x00280010, "US", b"\1\0\2"),
    ]
    assert [text_of(element) for element in elements] == ["20200101", "CT\\MR\\", "  a\\b", " a\\ b", "1"]
    assert first_value(elements, 0x00104000) == "  a\\b"
    assert first_value(elements, 0x00080061) == "CT"


# --- properties ------------------------------------------------------------------------------------------------

SYNTAXES = st.sampled_from([*NATIVE.values(), "1.2.840.10008.1.2.4.50"])


def take(data: bytes, transfer_syntax: str) -> None:
    """Parse and encode; the only error allowed is a `DatasetError`, and the only text UTF-8."""
    try:
        elements = parse(data, transfer_syntax, limits=Limits(inflated=1024 * 1024))
    except DatasetError:
        return
    encode(elements).encode("utf-8")
    for element in elements:
        text_of(element, ISO_IR_6).encode("utf-8")


@given(st.binary(max_size=200), SYNTAXES)
@settings(deadline=None, max_examples=300)
def test_random_bytes(data: bytes, transfer_syntax: str) -> None:
    take(data, transfer_syntax)


PIECES = [ITEM, ITEM_END, SEQUENCE_END, GOOD, item(b""), item(GOOD), *MALFORMED.values()]
PIECES += [long(0x00081140, vr, b"", UNDEFINED) for vr in ("SQ", "UN", "OB", "UT")]
PIECES += [implicit(tag, b"", UNDEFINED) for tag in (0x00081140, 0x00091010, 0x7FE00010)]


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=12).map(b"".join), SYNTAXES)
@settings(deadline=None, max_examples=500)
def test_random_structure(data: bytes, transfer_syntax: str) -> None:
    take(data, transfer_syntax)


def mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[at : at + 1] = rng.randbytes(1)
            case 1:
                changed[at : at + rng.choice((1, 2, 4, 8))] = rng.choice(
                    (b"\xff" * 4, bytes(4), b"UN", b"SQ", b"\x1b$B")
                )
            case 2:
                del changed[at : at + rng.randint(1, 16)]
            case _:
                del changed[at + rng.randrange(64) :]
    return bytes(changed)


def test_mutated_samples() -> None:
    rng = random.Random(20240229)
    samples = [sample for name in names() if len((sample := dicom_file(name)).data) < 6000]
    assert len(samples) > 40
    for _ in range(2000):
        sample = rng.choice(samples)
        take(mutated(sample.data, rng), sample.transfer_syntax)


def test_cuts_of_a_sample_are_refused_unless_between_elements() -> None:
    sample = dicom_file("test-SR.dcm")
    whole = parse(sample.data, sample.transfer_syntax)
    complete = 0
    for cut in range(0, len(sample.data)):
        try:
            elements = parse(sample.data[:cut], sample.transfer_syntax)
        except DatasetError:
            continue
        assert plain(elements) == plain(whole[: len(elements)])
        complete += 1
    assert complete == len(whole)
