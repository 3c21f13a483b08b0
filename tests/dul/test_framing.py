"""`dul.framing`: the same frames however the bytes are cut, and no memory for a peer's lies."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dul import limits, pdu
from dul.errors import RemoteProtocolError, UnrecognizedPDUError
from dul.framing import Fragment, Framer, Invalid, WholePDU
from tests.dul.strategies import (
    ECHO_PDU,
    FIND_PDUS,
    REAL_PDUS,
    TABLE_9_26,
    blobs,
    context_ids,
    examples,
    mutate,
    p_data,
    pdus,
    pdv,
)

MIB = 1024 * 1024

Joined = tuple[str, object, object, bytes]
"""A frame in a form that does not tell how the bytes were cut: neighbouring pieces of a PDV are one."""


def feed(chunks: Iterable[bytes]) -> list[Joined]:
    """The frames of `chunks`, with the pieces of one command or data set joined up to its last."""
    framer = Framer()
    joined: list[Joined] = []
    open_fragment = False
    for chunk in chunks:
        for frame in framer.feed(memoryview(chunk)):
            if isinstance(frame, WholePDU):
                joined.append(("PDU", frame.pdu_type, None, frame.body))
                open_fragment = False
            elif isinstance(frame, Invalid):
                joined.append(("invalid", str(frame.error), frame.error.abort_reason, b""))
                open_fragment = False
            else:
                kind = (frame.context_id, frame.command)
                before = joined.pop()[3] if open_fragment and joined[-1][1] == kind else b""
                joined.append(("fragment", kind, frame.last, before + bytes(frame.data)))
                open_fragment = not frame.last
    return joined


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    return (data[i : i + 1] for i in range(len(data)))


def cut(data: bytes, places: Iterable[int]) -> Iterator[bytes]:
    return (data[a:b] for a, b in pairwise((0, *sorted(places), len(data))))


# --- the same frames, however cut ----------------------------------------------------------------------------


def test_frames_of_a_stream() -> None:
    """PDUs come whole; presentation data values come as fragments, marked last where a command or data set ends."""
    stream = REAL_PDUS[0] + FIND_PDUS + REAL_PDUS[3]
    joined = feed([stream])
    assert joined[0] == ("PDU", pdu.A_ASSOCIATE_RQ, None, REAL_PDUS[0][6:])
    assert joined[1][:3] == ("fragment", (3, True), True)
    assert joined[2] == ("fragment", (3, False), True, b"\x08\x00\x52\x00\x06\x00\x00\x00STUDY ")
    assert joined[3] == ("PDU", pdu.A_RELEASE_RQ, None, bytes(4))


any_p_data = st.lists(
    st.builds(
        lambda i, data, command, last: pdv(i, data, command=command, last=last),
        context_ids,
        blobs,
        *[st.booleans()] * 2,
    ),
    min_size=1,
    max_size=4,
).map(lambda values: p_data(*values))
streams = st.lists(st.one_of(pdus.map(pdu.encode), any_p_data), min_size=1, max_size=4).map(b"".join)


@examples(250)
@given(streams, st.data())
def test_cuts_do_not_change_the_frames(stream: bytes, data: st.DataObject) -> None:
    whole = feed([stream])
    assert whole[-1][0] != "invalid"
    assert feed(byte_by_byte(stream)) == whole
    assert feed(cut(stream, data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))) == whole


def compare_cuts(count: int, seed: int) -> int:
    """Feed `count` streams, most of them damaged, whole and cut; returns how many had an error in them."""
    source = random.Random(seed)
    errors = 0
    for number in range(count):
        stream = b"".join(source.choices(REAL_PDUS, k=source.randrange(1, 4)))
        if number % 4:
            stream = mutate(source, stream)
        whole = feed([stream])
        if number % 10:
            chunks = cut(stream, (source.randrange(len(stream) + 1) for _ in range(source.randrange(1, 6))))
        else:
            chunks = byte_by_byte(stream)
        assert feed(chunks) == whole, stream.hex()
        errors += bool(whole) and whole[-1][0] == "invalid"
    return errors


def test_cuts_do_not_change_the_frames_of_damaged_streams() -> None:
    """Of 100,000 streams, so that an error is seen at the same place whatever the network does."""
    errors = compare_cuts(100_000, seed=9)
    assert 20_000 < errors < 80_000


@pytest.mark.long
def test_cuts_do_not_change_the_frames_for_a_long_time() -> None:
    """The same, 2 million times, with another seed each run."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    compare_cuts(2_000_000, seed)


def test_empty_reads_change_nothing() -> None:
    assert feed([b"", ECHO_PDU[:9], b"", ECHO_PDU[9:], b""]) == feed([ECHO_PDU])


def test_fragments_are_views_of_what_was_read() -> None:
    data = bytearray(ECHO_PDU)
    (fragment,) = Framer().feed(memoryview(data))
    assert isinstance(fragment, Fragment)
    assert fragment.data.obj is data


@pytest.mark.parametrize("last", [False, True])
def test_empty_presentation_data_value_is_a_fragment(last: bool) -> None:
    """It carries nothing, but it is a P-DATA-TF all the same, which a state may forbid."""
    (fragment,) = Framer().feed(memoryview(p_data(pdv(1, b"", command=False, last=last))))
    assert fragment == Fragment(1, command=False, last=last, data=memoryview(b""))


def test_header_bits_that_are_not_defined_are_not_tested() -> None:
    """PS3.8 E.2: only bits 0 and 1 of the message control header count."""
    value = bytearray(p_data(pdv(1, b"ab", command=True, last=True)))
    value[11] |= 0xFC
    assert feed([bytes(value)]) == [("fragment", (1, True), True, b"ab")]


def test_mid_control_pdu() -> None:
    """What the transport's timer goes by: a header, or a PDU that must be whole to be of use, has begun."""
    framer = Framer()
    for step, expected in ((REAL_PDUS[0][:1], True), (REAL_PDUS[0][1:100], True), (REAL_PDUS[0][100:], False)):
        framer.feed(memoryview(step))
        assert framer.mid_control_pdu is expected
    for step, expected in (
        (ECHO_PDU[:6], True),
        (ECHO_PDU[6:12], True),
        (ECHO_PDU[12:20], True),
        (ECHO_PDU[20:], False),
    ):
        framer.feed(memoryview(step))
        assert framer.mid_control_pdu is expected
    data = b"".join(pdu.encode_p_data(1, bytes(20), command=False, last=True, maximum_length=100))
    for step, expected in ((data[:11], True), (data[11:12], False), (data[12:20], False), (data[20:], False)):
        framer.feed(memoryview(step))
        assert framer.mid_control_pdu is expected


# --- lies ----------------------------------------------------------------------------------------------------


def first_error(stream: bytes) -> RemoteProtocolError:
    """The error in `stream`, which must be the last frame, and the same byte by byte."""
    *_, last = Framer().feed(memoryview(stream))
    assert isinstance(last, Invalid)
    assert last.error.abort_reason in TABLE_9_26
    assert feed(byte_by_byte(stream))[-1][1] == str(last.error)
    return last.error


def header(pdu_type: int, length: int) -> bytes:
    return bytes((pdu_type, 0)) + length.to_bytes(4, "big")


UNRECOGNIZED, INVALID_VALUE = 1, 6

LIES: dict[str, tuple[bytes, str]] = {
    "RQ of 4 GiB": (header(1, 0xFFFF_FFFF), "claims 4294967295 bytes"),
    "AC of 4 GiB": (header(2, 0xFFFF_FFFF), "claims 4294967295 bytes"),
    "RQ of 1 MiB and 1": (header(1, MIB + 1), "claims 1048577 bytes"),
    "RQ without a body": (header(1, 0), "without a body"),
    "AC without a body": (header(2, 0), "without a body"),
    "RJ of 4 GiB": (header(3, 0xFFFF_FFFF), "where 4 are defined"),
    "RELEASE-RQ of 3": (header(5, 3), "where 4 are defined"),
    "RELEASE-RP of 5": (header(6, 5), "where 4 are defined"),
    "ABORT without a body": (header(7, 0), "where 4 are defined"),
    "P-DATA without a value": (header(4, 0), "holds no presentation data value"),
    "P-DATA of 5": (header(4, 5) + bytes(5), "holds no presentation data value"),
    "PDV of 0": (header(4, 20) + bytes(20), "has no header"),
    "PDV of 1": (header(4, 20) + b"\0\0\0\1\1\2" + bytes(14), "has no header"),
    "PDV of 4 GiB": (header(4, 20) + b"\xff\xff\xff\xff\1\0" + bytes(14), "claims 4294967295 bytes, its PDU has 16"),
    "PDV of 1 too many": (header(4, 20) + b"\0\0\0\x11\1\0" + bytes(14), "claims 17 bytes, its PDU has 16"),
    "1 byte after the PDV": (header(4, 20) + b"\0\0\0\x0f\1\0" + bytes(14), "stray bytes"),
    "5 bytes after the PDV": (header(4, 20) + b"\0\0\0\x0b\1\0" + bytes(14), "stray bytes"),
    "second PDV of 0": (p_data(pdv(1, b"ab", command=True, last=False), bytes(6)), "has no header"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_about_lengths_are_refused(name: str) -> None:
    stream, message = LIES[name]
    error = first_error(stream)
    assert message in str(error)
    assert error.abort_reason == INVALID_VALUE


@pytest.mark.parametrize(
    "stream", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0", bytes(6), b"\x08" + bytes(5)]
)
def test_pdu_types_that_are_not_defined_are_refused(stream: bytes) -> None:
    """PS3.8 Table 9-26, reason 1; most often another protocol on the DICOM port."""
    error = first_error(stream)
    assert isinstance(error, UnrecognizedPDUError)
    assert error.abort_reason == UNRECOGNIZED


def test_nothing_is_read_after_an_error() -> None:
    framer = Framer()
    assert len(framer.feed(memoryview(header(9, 0) + ECHO_PDU))) == 1
    assert framer.feed(memoryview(ECHO_PDU)) == []


def test_what_came_before_an_error_is_handed_on() -> None:
    assert [frame[0] for frame in feed([ECHO_PDU + header(9, 0)])] == ["fragment", "invalid"]


# --- memory --------------------------------------------------------------------------------------------------


def peak_growth(chunks: Iterable[bytes]) -> int:
    """Bytes that a framer, and its frames of one read, take at most while `chunks` are fed; not the chunks."""
    framer = Framer()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for chunk in chunks:
            for frame in framer.feed(memoryview(chunk)):
                if isinstance(frame, WholePDU):
                    _decode(frame)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _decode(frame: WholePDU) -> pdu.PDU | None:
    try:
        return pdu.decode(frame.pdu_type, frame.body)
    except RemoteProtocolError:
        return None


@pytest.mark.parametrize("pdu_type", [pdu.A_ASSOCIATE_RQ, pdu.A_ASSOCIATE_AC])
def test_association_pdu_of_4_gib_takes_no_memory(pdu_type: int) -> None:
    read = bytes(limits.READ_BUFFER)
    assert peak_growth([header(pdu_type, 0xFFFF_FFFF), *[read] * 256]) < 64 * 1024


def test_p_data_of_4_gib_takes_no_memory() -> None:
    read = bytes(limits.READ_BUFFER)
    claim = header(pdu.P_DATA_TF, 0xFFFF_FFFF) + (0xFFFF_FFFF - 4).to_bytes(4, "big") + b"\1\0"
    assert peak_growth([claim, *[read] * 256]) < 64 * 1024


@pytest.mark.parametrize(
    ("filling", "read"),
    [
        (b"\0", 1000),
        (b"\x60\0\0\0", limits.READ_BUFFER),
        (b"\x20\0\x00\x08\1\0\0\0\x40\0\0\0", limits.READ_BUFFER),
        (b"\x50\0\x04\0" + b"\x59\0\0\0" * 256, 2 * MIB),
    ],
    ids=["rubbish", "unknown items", "contexts", "user information"],
)
def test_largest_association_pdu_takes_2_mib(filling: bytes, read: int) -> None:
    """Kept once while it arrives, in a buffer with an eighth to grow, and copied once; whatever it is filled with."""
    room = limits.MAX_ASSOCIATION_PDU - 68
    body = REAL_PDUS[0][6:74] + filling * (room // len(filling))
    stream = header(pdu.A_ASSOCIATE_RQ, len(body)) + body
    chunks = [stream[i : i + read] for i in range(0, len(stream), read)]
    assert peak_growth(chunks) <= 2 * MIB + 256 * 1024


def test_dripped_header_takes_no_memory() -> None:
    assert peak_growth(byte_by_byte(ECHO_PDU)) < 16 * 1024


@pytest.mark.parametrize("size", [0, 1])
def test_tiny_presentation_data_values_cost_no_more_than_one_read(size: int) -> None:
    """A read full of the smallest PDVs is the worst that a peer can make of it; the next read starts afresh."""
    value = pdv(1, bytes(size), command=False, last=False)
    body = value * (limits.READ_BUFFER // len(value))
    read = header(pdu.P_DATA_TF, len(body)) + body
    once, often = peak_growth([read]), peak_growth([read] * 2)
    assert once < 12 * MIB
    assert often < once + 64 * 1024
