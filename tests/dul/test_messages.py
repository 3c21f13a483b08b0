"""`dul.messages`: fragments to commands and data sets, whatever PDUs they came in."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dul import limits, pdu
from dul.dimse import Command, CommandField, encode_command
from dul.errors import RemoteProtocolError
from dul.framing import Fragment, Framer
from dul.messages import CommandReceived, DataSetFragment, MessageReader
from tests.dul.strategies import ECHO, FIND, TABLE_9_26, commands, examples, p_data, pdv

STORE = Command(
    CommandField.C_STORE_RQ,
    message_id=5,
    affected_sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    affected_sop_instance_uid="1.2.3",
    priority=0,
    data_set_type=1,
)


@dataclass(frozen=True)
class Whole:
    """A message with its data set put together."""

    context_id: int
    command: Command
    data: bytes | None


def fragment(context_id: int, data: bytes, *, command: bool = False, last: bool = True) -> Fragment:
    return Fragment(context_id, command, last, memoryview(data))


def read(reader: MessageReader, stream: bytes) -> list[Whole]:
    """The messages in `stream`; it must not end within one."""
    messages: list[Whole] = []
    open_data = False
    for frame in Framer().feed(memoryview(stream)):
        assert isinstance(frame, Fragment)
        item = reader.feed(frame)
        if isinstance(item, CommandReceived):
            assert not open_data
            open_data = item.command.has_data_set
            messages.append(Whole(item.context_id, item.command, b"" if open_data else None))
        elif isinstance(item, DataSetFragment):
            assert open_data
            before = messages.pop()
            assert before.data is not None
            messages.append(replace(before, data=before.data + bytes(item.data)))
            open_data = not item.last
    assert not open_data
    assert not reader.mid_command
    return messages


def split(source: random.Random, data: bytes, *, command: bool, context_id: int) -> list[bytes]:
    """`data` as presentation data values of random sizes, some of them empty."""
    places = sorted(source.randrange(len(data) + 1) for _ in range(source.randrange(4)))
    bounds = [0, *places, len(data)]
    return [
        pdv(context_id, data[start:end], command=command, last=number == len(bounds) - 1)
        for number, (start, end) in enumerate(pairwise(bounds), start=1)
    ]


# --- what is allowed -----------------------------------------------------------------------------------------


def test_command_and_data_in_one_pdu() -> None:
    """As dcm4che sends them."""
    stream = p_data(
        pdv(3, encode_command(FIND), command=True, last=True), pdv(3, b"identifier", command=False, last=True)
    )
    assert read(MessageReader(), stream) == [Whole(3, FIND, b"identifier")]


def test_command_and_data_in_pdus_of_their_own() -> None:
    stream = p_data(pdv(3, encode_command(FIND), command=True, last=True))
    stream += p_data(pdv(3, b"identifier", command=False, last=True))
    assert read(MessageReader(), stream) == [Whole(3, FIND, b"identifier")]


def test_data_set_over_many_pdus() -> None:
    """As DCMTK sends it; the end may be an empty value of its own."""
    stream = p_data(pdv(1, encode_command(STORE), command=True, last=True))
    stream += b"".join(p_data(pdv(1, b"abcd", command=False, last=False)) for _ in range(100))
    stream += p_data(pdv(1, b"", command=False, last=True))
    assert read(MessageReader(), stream) == [Whole(1, STORE, b"abcd" * 100)]


def test_command_over_many_pdus() -> None:
    encoded = encode_command(ECHO)
    reader = MessageReader()
    for index in range(len(encoded) - 1):
        assert reader.feed(fragment(1, encoded[index : index + 1], command=True, last=False)) is None
        assert reader.mid_command
    received = reader.feed(fragment(1, encoded[-1:], command=True))
    assert received == CommandReceived(1, ECHO)
    assert not reader.mid_command


def test_data_set_fragments_are_passed_on_uncopied() -> None:
    reader = MessageReader()
    reader.feed(fragment(1, encode_command(STORE), command=True))
    data = memoryview(bytearray(b"data"))
    item = reader.feed(Fragment(1, command=False, last=False, data=data))
    assert isinstance(item, DataSetFragment)
    assert item.data is data


def test_contexts_may_change_from_message_to_message() -> None:
    stream = p_data(pdv(1, encode_command(ECHO), command=True, last=True))
    stream += p_data(
        pdv(5, encode_command(FIND), command=True, last=True), pdv(5, b"identifier", command=False, last=True)
    )
    stream += p_data(pdv(3, encode_command(ECHO), command=True, last=True))
    assert read(MessageReader(), stream) == [Whole(1, ECHO, None), Whole(5, FIND, b"identifier"), Whole(3, ECHO, None)]


@pytest.mark.parametrize("data_set_type", [0x0000, 0x0001, 0x0102])
def test_any_data_set_type_but_0101_has_a_data_set_follow(data_set_type: int) -> None:
    find = replace(FIND, data_set_type=data_set_type)
    stream = p_data(pdv(3, encode_command(find), command=True, last=True), pdv(3, b"ab", command=False, last=True))
    assert read(MessageReader(), stream) == [Whole(3, find, b"ab")]


@examples(200)
@given(
    st.lists(st.tuples(commands, st.binary(max_size=200)), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_messages_come_whole_however_they_are_packed(
    messages: list[tuple[Command, bytes]], source: random.Random
) -> None:
    """Any fragments in any PDUs."""
    values: list[bytes] = []
    expected: list[Whole] = []
    for number, (command, data) in enumerate(messages):
        context_id = 2 * number + 1
        values += split(source, encode_command(command), command=True, context_id=context_id)
        if command.has_data_set:
            values += split(source, data, command=False, context_id=context_id)
        expected.append(Whole(context_id, command, data if command.has_data_set else None))
    stream = b""
    while values:
        count = source.randrange(1, 5)
        stream += p_data(*values[:count])
        del values[:count]
    assert read(MessageReader(), stream) == expected


@examples(100)
@given(commands, st.binary(max_size=500), st.integers(64, 200))
def test_what_is_sent_is_what_is_read(command: Command, data: bytes, maximum_length: int) -> None:
    """`pdu.encode_p_data` on one side, `MessageReader` on the other."""
    buffers = pdu.encode_p_data(7, encode_command(command), command=True, last=True, maximum_length=maximum_length)
    if command.has_data_set:
        buffers += pdu.encode_p_data(7, data, command=False, last=True, maximum_length=maximum_length)
    expected = Whole(7, command, data if command.has_data_set else None)
    assert read(MessageReader(), b"".join(buffers)) == [expected]


# --- what is not ---------------------------------------------------------------------------------------------


def refused(reader: MessageReader, wrong: Fragment) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        reader.feed(wrong)
    assert caught.value.abort_reason == 6
    return str(caught.value)


def test_data_without_a_command_are_refused() -> None:
    assert "without a command" in refused(MessageReader(), fragment(1, b"data"))


def test_data_after_a_command_without_a_data_set_are_refused() -> None:
    reader = MessageReader()
    reader.feed(fragment(1, encode_command(ECHO), command=True))
    assert "without a command" in refused(reader, fragment(1, b"data"))


def test_data_within_a_command_are_refused() -> None:
    reader = MessageReader()
    reader.feed(fragment(1, encode_command(FIND)[:20], command=True, last=False))
    assert "without a command" in refused(reader, fragment(1, b"data"))


def test_command_within_a_data_set_is_refused() -> None:
    """PS3.8 E.1: no fragment of another message until the message is whole."""
    reader = MessageReader()
    reader.feed(fragment(1, encode_command(STORE), command=True))
    reader.feed(fragment(1, b"data", last=False))
    assert "within a data set" in refused(reader, fragment(1, encode_command(ECHO), command=True))


@pytest.mark.parametrize("in_data_set", [False, True])
def test_interleaved_contexts_are_refused(in_data_set: bool) -> None:
    """PS3.8 E.1: all fragments of a message in one presentation context."""
    reader = MessageReader()
    if in_data_set:
        reader.feed(fragment(1, encode_command(STORE), command=True))
    else:
        reader.feed(fragment(1, encode_command(STORE)[:10], command=True, last=False))
    assert "context 3 within a message of 1" in refused(reader, fragment(3, b"data", command=not in_data_set))


def test_command_set_beyond_its_bound_is_refused() -> None:
    """However it comes; and before it is kept."""
    reader = MessageReader()
    reader.feed(fragment(1, bytes(limits.MAX_COMMAND_SET), command=True, last=False))
    assert "65536" in refused(reader, fragment(1, b"\0", command=True, last=False))
    assert "65536" in refused(MessageReader(), fragment(1, bytes(limits.MAX_COMMAND_SET + 1), command=True))
    with pytest.raises(RemoteProtocolError):
        drip = MessageReader()
        for _ in range(limits.MAX_COMMAND_SET + 1):
            drip.feed(fragment(1, b"\0", command=True, last=False))


def test_malformed_command_set_is_refused() -> None:
    assert "malformed" in refused(MessageReader(), fragment(1, b"\0\0\0", command=True))


@examples(300)
@given(
    st.lists(
        st.builds(
            lambda context_id, data, command, last: Fragment(context_id, command, last, memoryview(data)),
            st.sampled_from((1, 1, 1, 3)),
            st.sampled_from((b"", b"data", encode_command(ECHO), encode_command(STORE), encode_command(STORE)[:30])),
            st.booleans(),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_any_order_of_fragments_raises_nothing_but_remote_protocol_errors(fragments: list[Fragment]) -> None:
    reader = MessageReader()
    for one in fragments:
        try:
            item = reader.feed(one)
        except RemoteProtocolError as error:
            assert error.abort_reason in TABLE_9_26
            return
        assert item is None or isinstance(item, CommandReceived | DataSetFragment)
