"""DIMSE command sets, message types and status codes (PS3.7), with a codec of their own for group 0000.

A command set is always Implicit VR Little Endian (PS3.7 6.3.1) and has a few dozen possible elements, so it is
coded from the table `_FIELDS` here, without a DICOM library. Unknown elements are skipped.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum, IntEnum
from struct import Struct
from typing import Final

from dul import limits
from dul.errors import ABORT_INVALID_PDU_PARAMETER_VALUE, LocalProtocolError, RemoteProtocolError


class CommandField(IntEnum):
    """(0000,0100), PS3.7 Table E.1-1. A response has bit 15 set."""

    C_STORE_RQ = 0x0001
    C_STORE_RSP = 0x8001
    C_GET_RQ = 0x0010
    C_GET_RSP = 0x8010
    C_FIND_RQ = 0x0020
    C_FIND_RSP = 0x8020
    C_MOVE_RQ = 0x0021
    C_MOVE_RSP = 0x8021
    C_ECHO_RQ = 0x0030
    C_ECHO_RSP = 0x8030
    N_EVENT_REPORT_RQ = 0x0100
    N_GET_RQ = 0x0110
    N_SET_RQ = 0x0120
    N_ACTION_RQ = 0x0130
    N_CREATE_RQ = 0x0140
    N_DELETE_RQ = 0x0150
    C_CANCEL_RQ = 0x0FFF


RESPONSE: Final = 0x8000

MEDIUM = 0x0000
HIGH = 0x0001
LOW = 0x0002

NO_DATA_SET: Final = 0x0101
"""Command Data Set Type when no data set follows; any other value says that one does (PS3.7 E.1)."""

DATA_SET: Final = 0x0001
"""What we send when one follows; dcm4che sends 0x0000."""

# --- status (PS3.7 Annex C, PS3.4 Annexes B and C) -------------------------------------------------------------

SUCCESS: Final = 0x0000
CANCEL: Final = 0xFE00
PENDING: Final = 0xFF00
PENDING_WITH_WARNING: Final = 0xFF01
"""Optional keys were not supported (PS3.4 C.4.1.1.4)."""

REFUSED_OUT_OF_RESOURCES: Final = 0xA700
REFUSED_SUB_OPERATIONS: Final = 0xA702
MOVE_DESTINATION_UNKNOWN: Final = 0xA801
IDENTIFIER_DOES_NOT_MATCH: Final = 0xA900
SUB_OPERATIONS_WITH_FAILURES: Final = 0xB000
UNABLE_TO_PROCESS: Final = 0xC000
PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_SOP_CLASS: Final = 0x0118
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
NOT_AUTHORIZED: Final = 0x0124
UNRECOGNIZED_OPERATION: Final = 0x0211


class StatusClass(Enum):
    """What a status means, whatever its exact value (PS3.7 C.1)."""

    SUCCESS = "Success"
    PENDING = "Pending"
    CANCEL = "Cancel"
    WARNING = "Warning"
    FAILURE = "Failure"


def status_class(status: int) -> StatusClass:
    """The class of a status code (PS3.7 Annex C)."""
    if status == SUCCESS:
        return StatusClass.SUCCESS
    if status in (PENDING, PENDING_WITH_WARNING):
        return StatusClass.PENDING
    if status == CANCEL:
        return StatusClass.CANCEL
    if status in (0x0001, 0x0107, 0x0116) or status >> 12 == 0xB:
        return StatusClass.WARNING
    return StatusClass.FAILURE


_STATUS_WORDS = {
    SUCCESS: "success",
    CANCEL: "cancelled",
    0x0105: "no such attribute",
    0x0106: "invalid attribute value",
    PROCESSING_FAILURE: "processing failure",
    0x0111: "duplicate SOP instance",
    0x0112: "no such SOP instance",
    0x0117: "invalid SOP instance",
    NO_SUCH_SOP_CLASS: "no such SOP class",
    0x0119: "class-instance conflict",
    SOP_CLASS_NOT_SUPPORTED: "SOP class not supported",
    NOT_AUTHORIZED: "not authorized",
    0x0210: "duplicate invocation",
    UNRECOGNIZED_OPERATION: "unrecognized operation",
    0x0212: "mistyped argument",
    0x0213: "resource limitation",
    REFUSED_OUT_OF_RESOURCES: "refused: out of resources",
    0xA701: "refused: out of resources, unable to calculate number of matches",
    REFUSED_SUB_OPERATIONS: "refused: out of resources, unable to perform sub-operations",
    MOVE_DESTINATION_UNKNOWN: "refused: move destination unknown",
    IDENTIFIER_DOES_NOT_MATCH: "data set or identifier does not match SOP class",
    SUB_OPERATIONS_WITH_FAILURES: "sub-operations complete, one or more failures",
}


def describe_status(status: int) -> str:
    """A status code with the standard's words, fit for messages: `0xA801 (refused: move destination unknown)`."""
    words = _STATUS_WORDS.get(status)
    if words is None:
        words = "unable to process" if status >> 12 == 0xC else status_class(status).value.lower()
    return f"0x{status:04X} ({words})"


# --- message IDs ---------------------------------------------------------------------------------------------

_message_ids = itertools.count(1)


def next_message_id() -> int:
    """A Message ID, unique in this process until 65,535 more were drawn.

    Process-wide and not for each association, since archives confuse equal IDs of parallel moves, and the Move
    Originator Message ID of a C-STORE is what tells whose it is.
    """
    return next(_message_ids) % 0xFFFF + 1


# --- command sets --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Command:
    """One command set: the elements of PS3.7 E.1 and E.2 that C-services use; None where absent."""

    command_field: int
    message_id: int | None = None
    message_id_being_responded_to: int | None = None
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    requested_sop_class_uid: str | None = None
    requested_sop_instance_uid: str | None = None
    priority: int | None = None
    move_destination: str | None = None
    data_set_type: int = NO_DATA_SET
    status: int | None = None
    error_comment: str | None = None
    move_originator_ae_title: str | None = None
    move_originator_message_id: int | None = None
    remaining: int | None = None
    """Number of Remaining Sub-operations; likewise the three below."""
    completed: int | None = None
    failed: int | None = None
    warning: int | None = None

    @property
    def has_data_set(self) -> bool:
        """True when a data set follows this command."""
        return self.data_set_type != NO_DATA_SET

    @property
    def is_response(self) -> bool:
        """True for every C-…-RSP."""
        return bool(self.command_field & RESPONSE)

    @property
    def name(self) -> str:
        """The standard's name of the message, such as `C-STORE-RQ`."""
        try:
            return CommandField(self.command_field).name.replace("_", "-")
        except ValueError:
            return f"command 0x{self.command_field:04X}"


_U16 = Struct("<H")
_U32 = Struct("<L")
_ELEMENT = Struct("<HHL")

_FIELDS: Final[dict[int, tuple[str, str]]] = {
    0x0002: ("affected_sop_class_uid", "UI"),
    0x0003: ("requested_sop_class_uid", "UI"),
    0x0100: ("command_field", "US"),
    0x0110: ("message_id", "US"),
    0x0120: ("message_id_being_responded_to", "US"),
    0x0600: ("move_destination", "AE"),
    0x0700: ("priority", "US"),
    0x0800: ("data_set_type", "US"),
    0x0900: ("status", "US"),
    0x0902: ("error_comment", "LO"),
    0x1000: ("affected_sop_instance_uid", "UI"),
    0x1001: ("requested_sop_instance_uid", "UI"),
    0x1020: ("remaining", "US"),
    0x1021: ("completed", "US"),
    0x1022: ("failed", "US"),
    0x1023: ("warning", "US"),
    0x1030: ("move_originator_ae_title", "AE"),
    0x1031: ("move_originator_message_id", "US"),
}

_MAX_LENGTH: Final = {"UI": limits.MAX_UID, "AE": 16, "LO": 64}
"""Characters (PS3.5 Table 6.2-1)."""


def encode_command(command: Command) -> bytes:
    """The command set with its group length (PS3.7 6.3.1); `LocalProtocolError` for a value that does not fit."""
    parts: list[bytes] = []
    for element, (name, vr) in _FIELDS.items():
        value = getattr(command, name)
        if value is not None:
            encoded = _encode_value(vr, value)
            parts.append(_ELEMENT.pack(0, element, len(encoded)))
            parts.append(encoded)
    body = b"".join(parts)
    return _ELEMENT.pack(0, 0, 4) + _U32.pack(len(body)) + body


def _encode_value(vr: str, value: int | str) -> bytes:
    if isinstance(value, int):
        if not 0 <= value <= 0xFFFF:
            raise LocalProtocolError(f"{value} does not fit into a command element of 16 bits")
        return _U16.pack(value)
    try:
        encoded = value.encode("ascii")
    except UnicodeEncodeError as error:
        raise LocalProtocolError("a command element must be ASCII") from error
    if len(encoded) > _MAX_LENGTH[vr]:
        raise LocalProtocolError(f"a command element of VR {vr} has more than {_MAX_LENGTH[vr]} characters")
    return encoded + (b"\0" if vr == "UI" else b" ") if len(encoded) % 2 else encoded


def decode_command(data: bytes) -> Command:
    """The command set in `data`; `RemoteProtocolError` when it is malformed or has no Command Field."""
    values: dict[str, int | str] = {}
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < 8:
            raise _malformed(f"{end - offset} stray bytes at its end")
        group, element, length = _ELEMENT.unpack_from(data, offset)
        offset += 8
        if group != 0:
            break  # archives made with DCMTK append the Failed SOP Instance UID List (0008,0058) here
        if length > end - offset:
            raise _malformed(f"element (0000,{element:04X}) claims {length} bytes, {end - offset} are left")
        field = _FIELDS.get(element)
        if field is not None:
            name, vr = field
            value = data[offset : offset + length]
            if vr != "US":
                values[name] = _decode_text(element, vr, value)
            elif value:  # an empty number says as much as an absent one
                values[name] = _decode_number(element, value)
        offset += length
    command_field = values.pop("command_field", None)
    if not isinstance(command_field, int):
        raise _malformed("it has no Command Field")
    return Command(command_field, **values)  # type: ignore[arg-type]  # each name has the type of its VR


def _decode_number(element: int, value: bytes) -> int:
    if len(value) != 2:
        raise _malformed(f"element (0000,{element:04X}) has {len(value)} bytes where 2 are defined")
    return int.from_bytes(value, "little")


def _decode_text(element: int, vr: str, value: bytes) -> str:
    if vr == "LO":  # free text; some archives put their own language into it, or more of it than fits
        return value.decode("ascii", "replace").replace("\ufffd", "?").strip("\0 ")[: _MAX_LENGTH[vr]].rstrip("\0 ")
    try:
        text = value.decode("ascii").strip("\0 ")
    except UnicodeDecodeError as error:
        raise _malformed(f"element (0000,{element:04X}) has bytes outside ASCII") from error
    if len(text) > _MAX_LENGTH[vr]:
        raise _malformed(f"element (0000,{element:04X}) has {len(text)} characters")
    return text


def _malformed(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"malformed command set: {what}", ABORT_INVALID_PDU_PARAMETER_VALUE)


# --- requests and responses ----------------------------------------------------------------------------------


def response_to(request: Command, status: int, *, data_set: bool = False) -> Command:
    """The response to `request` with the elements that every C-service echoes (PS3.7 9.3)."""
    return Command(
        request.command_field | RESPONSE,
        message_id_being_responded_to=request.message_id,
        affected_sop_class_uid=request.affected_sop_class_uid,
        affected_sop_instance_uid=request.affected_sop_instance_uid,
        data_set_type=DATA_SET if data_set else NO_DATA_SET,
        status=status,
    )


def cancel_request(message_id: int) -> Command:
    """C-CANCEL-RQ for the operation with that Message ID (PS3.7 9.3.2.3)."""
    return Command(CommandField.C_CANCEL_RQ, message_id_being_responded_to=message_id)
