"""UIDs read off a data set that comes in chunks."""

from __future__ import annotations

import random
import zlib
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dataset.dictionary import (
    SERIES_INSTANCE_UID,
    SOP_INSTANCE_UID,
    SPECIFIC_CHARACTER_SET,
    STUDY_INSTANCE_UID,
)
from proxy.dataset.levels import PATIENT_ID
from proxy.dataset.peek import GIVE_UP, UidPeek
from proxy.dataset.reader import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    parse,
)
from proxy.dataset.values import first_value
from tests.proxy.dicomfiles import (
    ITEM,
    ITEM_END,
    NATIVE,
    SEQUENCE_END,
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

INSTANCE = short(SOP_INSTANCE_UID, "UI", b"1.2.840.3\0")
STUDY = short(STUDY_INSTANCE_UID, "UI", b"1.2.840.1\0")
SERIES = short(SERIES_INSTANCE_UID, "UI", b"1.2.840.2\0")
UIDS = ("1.2.840.1", "1.2.840.2", "1.2.840.3")
DECOY = short(STUDY_INSTANCE_UID, "UI", b"9.9 ") + short(SERIES_INSTANCE_UID, "UI", b"9.8 ")
IMPLICIT_DECOY = implicit(STUDY_INSTANCE_UID, b"9.9 ") + implicit(SERIES_INSTANCE_UID, b"9.8 ")


UN_SEQUENCE = long(0x00091010, "UN", ITEM + IMPLICIT_DECOY + ITEM_END + SEQUENCE_END, UNDEFINED)
NESTED = long(0x00081115, "SQ", ITEM + DECOY + ITEM_END + SEQUENCE_END, UNDEFINED)
PIECES = [ITEM, ITEM_END, SEQUENCE_END, item(b""), item(DECOY), STUDY, SERIES, IMPLICIT_DECOY, UN_SEQUENCE, NESTED]
PIECES += [long(0x00081140, vr, b"", UNDEFINED) for vr in ("SQ", "UN", "OB", "UT")]
PIECES += [implicit(tag, b"", UNDEFINED) for tag in (0x00081140, 0x00091010, 0x7FE00010)]


def found(peek: UidPeek) -> tuple[str | None, str | None, str | None]:
    return peek.study, peek.series, peek.sop_instance


def feed(data: bytes, transfer_syntax: str, sizes: list[int]) -> UidPeek:
    """Chunks of the sizes given, the last of which repeats; stops when the peek is done."""
    peek = UidPeek(transfer_syntax)
    pos = 0
    for index in range(len(data)):
        size = sizes[min(index, len(sizes) - 1)]
        if pos >= len(data) or peek.feed(data[pos : pos + size]):
            break
        pos += size
    return peek


def test_it_knows_with_the_first_chunk_and_stays_done() -> None:
    peek = UidPeek(EXPLICIT_VR_LITTLE_ENDIAN)
    assert peek.feed(INSTANCE + STUDY + SERIES + b"\x20\0") is True
    assert found(peek) == UIDS
    assert peek.feed(DECOY) is True
    assert found(peek) == UIDS


@pytest.mark.parametrize(
    ("before", "value", "patient"),
    [
        (b"", b"P-1 ", "P-1"),
        (b"", b"", None),
        (b"", b"x" * 256, "x" * 256),
        (b"", b"x" * 258, None),
        (short(SPECIFIC_CHARACTER_SET, "CS", b"ISO_IR 100"), "Mü1 ".encode("latin-1"), "Mü1"),
        (short(SPECIFIC_CHARACTER_SET, "CS", b"ISO_IR 192"), "Mü1 ".encode(), "Mü1"),
        (short(SPECIFIC_CHARACTER_SET, "CS", b"\\ISO 2022 IR 87"), b"1\x1b$B;3\x1b(B ", "1山"),
        (short(SPECIFIC_CHARACTER_SET, "CS", b"x" * 300), b"P-1 ", "P-1"),
    ],
)
def test_it_tells_the_patient(before: bytes, value: bytes, patient: str | None) -> None:
    """In the data set's own characters, however it comes in pieces; one that is too long hides no UID."""
    data = before + INSTANCE + short(PATIENT_ID, "LO", value) + STUDY + SERIES
    for sizes in ([len(data)], [1], [7, 50]):
        peek = feed(data, EXPLICIT_VR_LITTLE_ENDIAN, sizes)
        assert (peek.patient, *found(peek)) == (patient, *UIDS)


def test_a_patient_in_a_sequence_is_another_one() -> None:
    """Such as in Referenced Patient Sequence (0008,1120)."""
    nested = long(0x00081120, "SQ", item(short(PATIENT_ID, "LO", b"P-2 ")) + SEQUENCE_END, UNDEFINED)
    peek = feed(nested + short(PATIENT_ID, "LO", b"P-1 ") + STUDY + SERIES, EXPLICIT_VR_LITTLE_ENDIAN, [5])
    assert peek.patient == "P-1"
    assert feed(nested + STUDY + SERIES, EXPLICIT_VR_LITTLE_ENDIAN, [5]).patient is None


def test_it_does_not_know_before_the_last_byte() -> None:
    data = INSTANCE + STUDY + SERIES
    peek = UidPeek(EXPLICIT_VR_LITTLE_ENDIAN)
    assert peek.feed(data[:-1]) is False
    assert (peek.study, peek.series) == ("1.2.840.1", None)
    assert peek.feed(data[-1:]) is True
    assert found(peek) == UIDS


@pytest.mark.parametrize("encoding", NATIVE)
def test_every_encoding(encoding: str) -> None:
    dataset = sample_dataset()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = UIDS
    data = encoded(dataset, implicit=encoding == "implicit", little=encoding != "big endian")
    if encoding == "deflated":
        data = deflated(data)
    for sizes in ([len(data)], [1], [7], [13, 1, 50]):
        assert found(feed(data, NATIVE[encoding], sizes)) == UIDS
    peek = UidPeek(NATIVE[encoding])
    assert peek.feed(memoryview(data)) is True
    assert found(peek) == UIDS


def test_all_samples_agree_with_the_reader() -> None:
    rng = random.Random(1)
    seen = 0
    for name in names():
        sample = dicom_file(name)
        elements = parse(sample.data, sample.transfer_syntax)
        expected = tuple(
            first_value(elements, tag) or None for tag in (STUDY_INSTANCE_UID, SERIES_INSTANCE_UID, SOP_INSTANCE_UID)
        )
        seen += expected[1] is not None
        for sizes in ([len(sample.data)], [rng.randint(1, 40) for _ in range(50)]):
            assert found(feed(sample.data, sample.transfer_syntax, sizes)) == expected, name
    assert seen > 100


@pytest.mark.parametrize(
    "before",
    [
        long(0x00081110, "SQ", item(DECOY)),
        long(0x00081110, "SQ", item(DECOY) + SEQUENCE_END, UNDEFINED),
        long(0x00081110, "SQ", ITEM + DECOY + ITEM_END + ITEM + ITEM_END + SEQUENCE_END, UNDEFINED),
        long(0x00081110, "SQ", ITEM + NESTED + DECOY + ITEM_END + SEQUENCE_END, UNDEFINED),
        UN_SEQUENCE,
        long(0x00081110, "SQ", ITEM + UN_SEQUENCE + DECOY + ITEM_END + SEQUENCE_END, UNDEFINED),
        long(0x00091010, "UN", ITEM + implicit(0x00081115, ITEM + IMPLICIT_DECOY + ITEM_END + SEQUENCE_END, UNDEFINED)
             + IMPLICIT_DECOY + ITEM_END + SEQUENCE_END, UNDEFINED),
        long(0x00091010, "OB", b"\x20\0\x0d\0UI\4\x009.9 " * 10000),
    ],
    ids=["defined", "defined item", "undefined", "nested", "UN", "UN nested", "nested in UN", "private bytes"],
)  # fmt: skip
def test_uids_within_sequences_and_values_are_not_those_of_the_instance(before: bytes) -> None:
    data = INSTANCE + before + STUDY + SERIES
    for sizes in ([len(data)], [1], [11]):
        assert found(feed(data, EXPLICIT_VR_LITTLE_ENDIAN, sizes)) == UIDS


def test_un_sequences_in_big_endian() -> None:
    head = pack(">HH2sHI", 0x0009, 0x1010, b"UN", 0, UNDEFINED)
    uids = pack(">HH2sH", 0x20, 0xD, b"UI", 4) + b"1.2\0" + pack(">HH2sH", 0x20, 0xE, b"UI", 4) + b"1.3\0"
    data = head + ITEM + IMPLICIT_DECOY + ITEM_END + SEQUENCE_END + uids
    assert found(feed(data, EXPLICIT_VR_BIG_ENDIAN, [5])) == ("1.2", "1.3", None)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (STUDY + short(0x00200010, "SH", b"1 "), ("1.2.840.1", None, None)),
        (short(0x00280010, "US", b"\0\2"), (None, None, None)),
        (short(STUDY_INSTANCE_UID, "UI", b"") + SERIES + short(0x00200010, "SH", b"1 "), (None, "1.2.840.2", None)),
    ],
    ids=["no series", "neither", "empty study"],
)
def test_it_is_done_once_past_the_uids(data: bytes, expected: tuple[str | None, ...]) -> None:
    peek = UidPeek(EXPLICIT_VR_LITTLE_ENDIAN)
    assert peek.feed(data) is True
    assert found(peek) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        ITEM + STUDY + SERIES,
        ITEM_END + STUDY + SERIES,
        SEQUENCE_END + STUDY + SERIES,
        short(STUDY_INSTANCE_UID, "UI", b"1" * 66),
    ],
    ids=["http", "item", "item end", "sequence end", "long uid"],
)
def test_it_gives_up_on_what_is_malformed(data: bytes) -> None:
    peek = UidPeek(EXPLICIT_VR_LITTLE_ENDIAN)
    assert peek.feed(data) is True
    assert found(peek) == (None, None, None)


def test_it_gives_up_after_a_mebibyte() -> None:
    peek = UidPeek(EXPLICIT_VR_LITTLE_ENDIAN)
    chunk = short(0x00091010, "LO", b"x" * 1016) * 64
    for _ in range(GIVE_UP // len(chunk) - 1):
        assert peek.feed(chunk) is False
    assert peek.feed(chunk) is True
    assert peek.feed(STUDY + SERIES) is True
    assert peek.study is None


def test_it_gives_up_at_once_on_a_value_that_leads_too_far() -> None:
    assert UidPeek(EXPLICIT_VR_LITTLE_ENDIAN).feed(long(0x00091010, "OB", b"", GIVE_UP + 1)) is True


def test_a_deflate_bomb_is_inflated_no_further_than_the_bound() -> None:
    bomb = deflated(long(0x00091010, "OB", bytes(32 * 1024 * 1024)) + STUDY + SERIES)
    assert UidPeek(DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN).feed(bomb) is True
    assert UidPeek(DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN).feed(b"\xff" * 64) is True


def test_deflated_data_sets_in_small_chunks() -> None:
    compressor = zlib.compressobj(0, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = compressor.compress(INSTANCE + STUDY + SERIES) + compressor.flush()
    assert found(feed(data, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, [1])) == UIDS


@given(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=12).map(b"".join),
    st.sampled_from([*NATIVE.values()]),
    st.lists(st.integers(1, 30), min_size=1, max_size=20),
)
@settings(deadline=None, max_examples=300)
def test_nothing_raises_and_cuts_make_no_difference(data: bytes, transfer_syntax: str, sizes: list[int]) -> None:
    at_once = UidPeek(transfer_syntax)
    at_once.feed(data)
    in_chunks = feed(data, transfer_syntax, sizes)
    assert found(in_chunks) == found(at_once)


def test_implicit_vr_sequences_of_undefined_length() -> None:
    data = implicit(0x00081110, ITEM + IMPLICIT_DECOY + ITEM_END + SEQUENCE_END, UNDEFINED) + IMPLICIT_DECOY
    assert found(feed(data, IMPLICIT_VR_LITTLE_ENDIAN, [3])) == ("9.9", "9.8", None)


@pytest.mark.parametrize("letters", [b"CS", b"OB", b"CC", b"ZZ"])
def test_the_length_of_an_item_may_look_like_a_vr(letters: bytes) -> None:
    """Items have none (PS3.5 7.5)."""
    length = int.from_bytes(letters + b"\0\0", "little")
    sequence = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
    item = b"\xfe\xff\x00\xe0" + length.to_bytes(4, "little") + bytes(length)
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    uids = b"".join(
        b"\x20\x00" + bytes([number, 0]) + b"UI\x06\x00" + uid for number, uid in ((13, b"1.2.3\0"), (14, b"1.2.4\0"))
    )
    peek = UidPeek("1.2.840.10008.1.2.1")
    assert peek.feed(sequence + item + end + uids)
    assert (peek.study, peek.series) == ("1.2.3", "1.2.4")
