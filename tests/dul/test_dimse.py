"""`dul.dimse`: command sets both ways and against pynetdicom's, damaged ones, statuses and message IDs."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom import dimse_messages, dsutils
from pynetdicom import status as pynetdicom_status
from pynetdicom.pdu_primitives import P_DATA

from dul import dimse
from dul.dimse import Command, CommandField, StatusClass, decode_command, encode_command, status_class
from dul.errors import LocalProtocolError, RemoteProtocolError, StatusError
from tests.dul.strategies import ECHO, TABLE_9_26, commands, examples, mutate

KEYWORDS = {
    "affected_sop_class_uid": "AffectedSOPClassUID",
    "requested_sop_class_uid": "RequestedSOPClassUID",
    "command_field": "CommandField",
    "message_id": "MessageID",
    "message_id_being_responded_to": "MessageIDBeingRespondedTo",
    "move_destination": "MoveDestination",
    "priority": "Priority",
    "data_set_type": "CommandDataSetType",
    "status": "Status",
    "error_comment": "ErrorComment",
    "affected_sop_instance_uid": "AffectedSOPInstanceUID",
    "requested_sop_instance_uid": "RequestedSOPInstanceUID",
    "remaining": "NumberOfRemainingSuboperations",
    "completed": "NumberOfCompletedSuboperations",
    "failed": "NumberOfFailedSuboperations",
    "warning": "NumberOfWarningSuboperations",
    "move_originator_ae_title": "MoveOriginatorApplicationEntityTitle",
    "move_originator_message_id": "MoveOriginatorMessageID",
}
FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))
CT = "1.2.840.10008.5.1.4.1.1.2"

# Each C-message with all the elements that PS3.7 9.3 gives it, and pynetdicom's name for it.
MESSAGES: dict[str, Command] = {
    "C_ECHO_RQ": ECHO,
    "C_ECHO_RSP": dimse.response_to(ECHO, 0),
    "C_STORE_RQ": Command(
        CommandField.C_STORE_RQ,
        message_id=9,
        affected_sop_class_uid=CT,
        affected_sop_instance_uid="1.2.3.4",
        priority=dimse.MEDIUM,
        data_set_type=dimse.DATA_SET,
        move_originator_ae_title="PROXY",
        move_originator_message_id=77,
    ),
    "C_STORE_RSP": Command(
        CommandField.C_STORE_RSP,
        message_id_being_responded_to=9,
        affected_sop_class_uid=CT,
        affected_sop_instance_uid="1.2.3.4",
        status=0xA700,
        error_comment="disk full",
    ),
    "C_FIND_RQ": Command(
        CommandField.C_FIND_RQ, message_id=1, affected_sop_class_uid=FIND, priority=dimse.HIGH, data_set_type=1
    ),
    "C_FIND_RSP": Command(
        CommandField.C_FIND_RSP,
        message_id_being_responded_to=1,
        affected_sop_class_uid=FIND,
        status=0xFF00,
        data_set_type=1,
    ),
    "C_GET_RQ": Command(
        CommandField.C_GET_RQ, message_id=2, affected_sop_class_uid=GET, priority=dimse.LOW, data_set_type=1
    ),
    "C_GET_RSP": Command(
        CommandField.C_GET_RSP,
        message_id_being_responded_to=2,
        affected_sop_class_uid=GET,
        status=0xFF00,
        data_set_type=1,
        remaining=3,
        completed=2,
        failed=1,
        warning=0,
    ),
    "C_MOVE_RQ": Command(
        CommandField.C_MOVE_RQ,
        message_id=3,
        affected_sop_class_uid=MOVE,
        priority=dimse.MEDIUM,
        move_destination="PROXY",
        data_set_type=1,
    ),
    "C_MOVE_RSP": Command(
        CommandField.C_MOVE_RSP,
        message_id_being_responded_to=3,
        affected_sop_class_uid=MOVE,
        status=0xB000,
        data_set_type=1,
        remaining=3,
        completed=2,
        failed=1,
        warning=0,
    ),
    "C_CANCEL_RQ": dimse.cancel_request(3),
}


def element(number: int, value: bytes, *, group: int = 0, length: int | None = None) -> bytes:
    """One element in Implicit VR Little Endian; `length` may lie."""
    size = len(value) if length is None else length
    return group.to_bytes(2, "little") + number.to_bytes(2, "little") + size.to_bytes(4, "little") + value


COMMAND_FIELD = element(0x0100, b"\x30\x00")


# --- both ways -----------------------------------------------------------------------------------------------


def test_command_set_is_as_the_standard_lays_it_out() -> None:
    """PS3.7 6.3.1 and Table 9.3-12: Implicit VR Little Endian, group length first, UIDs padded with NUL."""
    by_hand = bytes.fromhex(
        "00000000 04000000 38000000"
        "00000200 12000000 312e322e3834302e31303030382e312e3100"
        "00000001 02000000 3000"
        "00001001 02000000 0700"
        "00000008 02000000 0101".replace(" ", "")
    )
    assert encode_command(ECHO) == by_hand
    assert decode_command(by_hand) == ECHO


@examples(300)
@given(commands)
def test_command_survives(command: Command) -> None:
    encoded = encode_command(command)
    assert len(encoded) % 2 == 0
    assert int.from_bytes(encoded[8:12], "little") == len(encoded) - 12
    assert decode_command(encoded) == command


def test_every_element_has_a_keyword_here() -> None:
    assert {field.name for field in fields(Command)} == set(KEYWORDS)


# --- pynetdicom as a witness ---------------------------------------------------------------------------------


def as_pydicom(command: Command) -> Dataset:
    data_set = Dataset()
    for name, keyword in KEYWORDS.items():
        value = getattr(command, name)
        if value is not None:
            setattr(data_set, keyword, value)
    return data_set


@examples(300)
@given(commands)
def test_pynetdicom_writes_and_reads_the_same_elements(command: Command) -> None:
    body = encode_command(command)[12:]
    theirs = dsutils.encode(as_pydicom(command), True, True)
    assert theirs == body
    assert theirs is not None
    assert decode_command(theirs) == command
    read = dsutils.decode(BytesIO(body), True, True)
    assert {name: read[keyword].value for name, keyword in KEYWORDS.items() if keyword in read} == {
        field.name: getattr(command, field.name)
        for field in fields(Command)
        if getattr(command, field.name) is not None
    }


@pytest.mark.parametrize("name", MESSAGES)
def test_pynetdicom_writes_and_reads_the_same_message(name: str) -> None:
    """From our bytes to its message, on to its primitive, and back to the same bytes."""
    command = MESSAGES[name]
    encoded = encode_command(command)
    assert command.name == name.replace("_", "-")
    assert command.is_response == name.endswith("RSP")
    primitive = P_DATA()
    primitive.presentation_data_value_list.append((1, b"\x03" + encoded))
    if command.has_data_set:
        primitive.presentation_data_value_list.append((1, b"\x02" + b"data"))
    message = dimse_messages.DIMSEMessage()
    assert message.decode_msg(primitive)
    assert type(message).__name__ == name

    again = getattr(dimse_messages, name)()
    again.primitive_to_message(message.message_to_primitive())
    command_pdvs = [pdv for p_data in again.encode_msg(1, 16384) for pdv in p_data.presentation_data_value_list]
    assert command_pdvs[0] == (1, b"\x03" + encoded)
    assert decode_command(command_pdvs[0][1][1:]) == command


def test_statuses_are_classed_as_pynetdicom_classes_them() -> None:
    """PS3.7 Annex C, and all that pynetdicom knows of PS3.4; a status that nobody defines is a failure."""
    for status in range(0x10000):
        theirs = pynetdicom_status.code_to_category(status)
        expected = "Failure" if theirs == "Unknown" else theirs
        if theirs == "Unknown" and status >> 12 == 0xB:
            expected = "Warning"
        assert status_class(status).value == expected, hex(status)


# --- what peers do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data_set_type", "follows"), [(0x0101, False), (0x0000, True), (0x0001, True), (0x0102, True), (0xFEFE, True)]
)
def test_any_data_set_type_but_0101_says_that_a_data_set_follows(data_set_type: int, follows: bool) -> None:
    """PS3.7 E.1; dcm4che sends 0000."""
    assert replace(ECHO, data_set_type=data_set_type).has_data_set is follows
    assert decode_command(encode_command(replace(ECHO, data_set_type=data_set_type))).has_data_set is follows


def test_command_set_without_a_data_set_type_has_no_data_set() -> None:
    assert not decode_command(COMMAND_FIELD).has_data_set


def test_unknown_elements_are_skipped() -> None:
    """(0000,0001) and other retired elements, and Offending Element."""
    data = element(1, bytes(4)) + COMMAND_FIELD + element(0x0901, bytes(8)) + element(0x5010, b"retired ")
    assert decode_command(data) == Command(CommandField.C_ECHO_RQ)


def test_group_length_is_not_needed() -> None:
    assert decode_command(encode_command(ECHO)[12:]) == ECHO


def test_what_follows_group_0000_is_left_alone() -> None:
    """Archives made with DCMTK append the Failed SOP Instance UID List to the command set of a C-MOVE-RSP."""
    failed = element(0x0058, b"1.2.3.4\0", group=0x0008)
    assert decode_command(encode_command(MESSAGES["C_MOVE_RSP"]) + failed) == MESSAGES["C_MOVE_RSP"]
    assert decode_command(COMMAND_FIELD + failed[:-3]) == Command(CommandField.C_ECHO_RQ)
    with pytest.raises(RemoteProtocolError, match="no Command Field"):
        decode_command(failed + COMMAND_FIELD)


@pytest.mark.parametrize("lie", [0, 1, 0xFFFF_FFFF])
def test_group_length_is_not_believed(lie: int) -> None:
    assert decode_command(element(0, lie.to_bytes(4, "little")) + encode_command(ECHO)[12:]) == ECHO


def test_padding_is_taken_off() -> None:
    data = COMMAND_FIELD + element(0x0002, b"1.2.3\0") + element(0x0600, b"  PROXY ") + element(0x1000, b"1.2 ")
    command = decode_command(data)
    assert command.affected_sop_class_uid == "1.2.3"
    assert command.affected_sop_instance_uid == "1.2"
    assert command.move_destination == "PROXY"


def test_empty_number_is_an_absent_one() -> None:
    command = decode_command(COMMAND_FIELD + element(0x1020, b"") + element(0x0110, b""))
    assert command.remaining is None
    assert command.message_id is None


def test_error_comment_may_be_in_any_language_and_too_long() -> None:
    """It is told to people only; a long or Latin-1 one breaks no association, and can be sent on."""
    comment = "Kein Speicherplatz auf dem Gerät verfügbar, " * 3
    command = decode_command(COMMAND_FIELD + element(0x0902, comment.encode("latin-1")))
    assert command.error_comment == "Kein Speicherplatz auf dem Ger?t verf?gbar, Kein Speicherplatz a"
    assert decode_command(encode_command(command)) == command


def test_unknown_command_field_has_a_name() -> None:
    assert decode_command(element(0x0100, b"\x34\x12")).name == "command 0x1234"


# --- malformed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no Command Field"),
        (element(0x0110, b"\1\0"), "no Command Field"),
        (element(0x0100, b""), "no Command Field"),
        (COMMAND_FIELD + b"\0", "1 stray bytes"),
        (COMMAND_FIELD + bytes(7), "7 stray bytes"),
        (COMMAND_FIELD + element(0x0110, b"ab", length=3), "claims 3 bytes, 2 are left"),
        (COMMAND_FIELD + element(0x0110, b"ab", length=0xFFFF_FFFF), "claims 4294967295 bytes"),
        (COMMAND_FIELD + element(0x0110, b"a"), "has 1 bytes where 2 are defined"),
        (COMMAND_FIELD + element(0x0110, b"abcd"), "has 4 bytes where 2 are defined"),
        (COMMAND_FIELD + element(0x0600, b"\xc4RZTE "), "outside ASCII"),
        (COMMAND_FIELD + element(0x0600, b"A" * 18), "has 18 characters"),
        (COMMAND_FIELD + element(0x1000, b"1" * 66), "has 66 characters"),
    ],
)
def test_malformed_command_set_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message) as caught:
        decode_command(data)
    assert caught.value.abort_reason == 6


def survive_damage(count: int, seed: int) -> tuple[int, int]:
    """Decode `count` damaged command sets; returns how many were taken, and how many refused."""
    source = random.Random(seed)
    originals = [encode_command(command) for command in MESSAGES.values()]
    taken = refusals = 0
    for number in range(count):
        damaged = mutate(source, originals[number % len(originals)])
        try:
            command = decode_command(damaged)
        except RemoteProtocolError as error:
            refusals += 1
            assert error.abort_reason in TABLE_9_26
        except Exception as error:
            raise AssertionError(f"{error!r} from {damaged.hex()}") from error
        else:
            taken += 1
            assert decode_command(encode_command(command)) == command, damaged.hex()
    return taken, refusals


def test_damaged_command_sets_raise_nothing_but_remote_protocol_errors() -> None:
    """100,000 mutations; those that still decode also survive being encoded again."""
    taken, refusals = survive_damage(100_000, seed=7)
    assert taken > 10_000
    assert refusals > 10_000


@pytest.mark.long
def test_damaged_command_sets_for_a_long_time() -> None:
    """The same, 10 million times, with another seed each run."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    survive_damage(10_000_000, seed)


@examples(500)
@given(st.binary(max_size=100))
def test_random_bytes_raise_nothing_but_remote_protocol_errors(data: bytes) -> None:
    for value in (data, COMMAND_FIELD + data):
        try:
            decode_command(value)
        except RemoteProtocolError as error:
            assert error.abort_reason in TABLE_9_26


# --- our own mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        replace(ECHO, message_id=0x10000),
        replace(ECHO, message_id=-1),
        replace(ECHO, command_field=0x12345),
        replace(ECHO, affected_sop_class_uid="1" * 65),
        replace(ECHO, move_destination="SEVENTEEN_LETTERS"),
        replace(ECHO, move_originator_ae_title="ÄRZTE"),
        replace(ECHO, error_comment="x" * 65),
    ],
)
def test_value_that_does_not_fit_is_a_local_error(wrong: Command) -> None:
    with pytest.raises(LocalProtocolError):
        encode_command(wrong)


# --- responses, statuses, message IDs ------------------------------------------------------------------------


def test_response_echoes_the_request() -> None:
    response = dimse.response_to(MESSAGES["C_STORE_RQ"], 0x0000)
    assert response == replace(MESSAGES["C_STORE_RSP"], status=0, error_comment=None)
    assert dimse.response_to(MESSAGES["C_FIND_RQ"], 0xFF00, data_set=True) == MESSAGES["C_FIND_RSP"]


def test_cancel_request_is_the_standards() -> None:
    """PS3.7 Table 9.3-6: no data set, and no Message ID of its own."""
    assert dimse.cancel_request(3) == Command(
        CommandField.C_CANCEL_RQ, message_id_being_responded_to=3, data_set_type=0x0101
    )


@pytest.mark.parametrize(
    ("status", "expected", "words"),
    [
        (0x0000, StatusClass.SUCCESS, "0x0000 (success)"),
        (0xFF00, StatusClass.PENDING, "0xFF00 (pending)"),
        (0xFF01, StatusClass.PENDING, "0xFF01 (pending)"),
        (0xFE00, StatusClass.CANCEL, "0xFE00 (cancelled)"),
        (0x0107, StatusClass.WARNING, "0x0107 (warning)"),
        (0xB000, StatusClass.WARNING, "0xB000 (sub-operations complete, one or more failures)"),
        (0xB007, StatusClass.WARNING, "0xB007 (warning)"),
        (0xA801, StatusClass.FAILURE, "0xA801 (refused: move destination unknown)"),
        (0xC123, StatusClass.FAILURE, "0xC123 (unable to process)"),
        (0x0122, StatusClass.FAILURE, "0x0122 (SOP class not supported)"),
        (0xFF02, StatusClass.FAILURE, "0xFF02 (failure)"),
        (0x4321, StatusClass.FAILURE, "0x4321 (failure)"),
    ],
)
def test_statuses_have_classes_and_words(status: int, expected: StatusClass, words: str) -> None:
    assert status_class(status) is expected
    assert dimse.describe_status(status) == words
    assert f"0x{status:04X}" in str(StatusError("C-MOVE", status))


def test_message_ids_are_unique_and_fit_into_16_bits() -> None:
    """70,000 draws: never 0, and the same one again only after all 65,535."""
    drawn = [dimse.next_message_id() for _ in range(70_000)]
    assert min(drawn) == 1
    assert max(drawn) == 0xFFFF
    assert len(set(drawn[:0xFFFF])) == 0xFFFF
    assert len(set(drawn[-0xFFFF:])) == 0xFFFF
