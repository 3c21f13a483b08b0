"""Variable items and sub-items of the association PDUs: bytes both ways, pure.

PS3.8 9.3.2, 9.3.3 and Annex D; PS3.7 Annex D.3. An item is one type byte, one reserved byte, a length of two
bytes (big endian) and its value. Unknown items are skipped; a length that leads out of its container is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from struct import Struct

from dul import limits
from dul.errors import (
    ABORT_INVALID_PDU_PARAMETER_VALUE,
    LocalProtocolError,
    RemoteProtocolError,
)

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
"""DICOM Application Context Name (PS3.7 A.2.1)."""

_ITEM = Struct(">BxH")
_U16 = Struct(">H")
_U32 = Struct(">L")

APPLICATION_CONTEXT_ITEM = 0x10
PRESENTATION_CONTEXT_RQ_ITEM = 0x20
PRESENTATION_CONTEXT_AC_ITEM = 0x21
ABSTRACT_SYNTAX_ITEM = 0x30
TRANSFER_SYNTAX_ITEM = 0x40
USER_INFORMATION_ITEM = 0x50
MAXIMUM_LENGTH_ITEM = 0x51
IMPLEMENTATION_CLASS_UID_ITEM = 0x52
ASYNCHRONOUS_OPERATIONS_ITEM = 0x53
ROLE_SELECTION_ITEM = 0x54
IMPLEMENTATION_VERSION_NAME_ITEM = 0x55
EXTENDED_NEGOTIATION_ITEM = 0x56
COMMON_EXTENDED_NEGOTIATION_ITEM = 0x57
USER_IDENTITY_RQ_ITEM = 0x58
USER_IDENTITY_AC_ITEM = 0x59

# Result of a presentation context (PS3.8 Table 9-18)
ACCEPTANCE = 0
USER_REJECTION = 1
NO_REASON = 2
ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


@dataclass(frozen=True, slots=True)
class PresentationContextRQ:
    """A proposed presentation context (PS3.8 9.3.2.2)."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PresentationContextAC:
    """The answer to a proposed presentation context (PS3.8 9.3.3.2); the syntax counts only on acceptance."""

    context_id: int
    result: int
    transfer_syntax: str = ""


@dataclass(frozen=True, slots=True)
class AsynchronousOperationsWindow:
    """Outstanding operations, 0 for unlimited (PS3.7 D.3.3.3)."""

    maximum_invoked: int
    maximum_performed: int


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """SCP/SCU role selection for one SOP class (PS3.7 D.3.3.4)."""

    sop_class_uid: str
    scu_role: bool
    scp_role: bool


@dataclass(frozen=True, slots=True)
class ExtendedNegotiation:
    """SOP class extended negotiation (PS3.7 D.3.3.5); the information is the SOP class's own."""

    sop_class_uid: str
    information: bytes


@dataclass(frozen=True, slots=True)
class CommonExtendedNegotiation:
    """SOP class common extended negotiation (PS3.7 D.3.3.6)."""

    sop_class_uid: str
    service_class_uid: str
    related_general_sop_classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UserIdentityRQ:
    """User identity (PS3.7 D.3.3.7.1): type 1 user name, 2 with passcode, 3 Kerberos, 4 SAML, 5 JWT."""

    identity_type: int
    primary_field: bytes = field(repr=False)
    secondary_field: bytes = field(default=b"", repr=False)
    positive_response_requested: bool = False


@dataclass(frozen=True, slots=True)
class UserIdentityAC:
    """The acceptor's answer to a user identity (PS3.7 D.3.3.7.2)."""

    server_response: bytes = b""


UserItem = (
    AsynchronousOperationsWindow
    | RoleSelection
    | ExtendedNegotiation
    | CommonExtendedNegotiation
    | UserIdentityRQ
    | UserIdentityAC
)


@dataclass(frozen=True, slots=True)
class UserInformation:
    """User information item (PS3.8 9.3.2.3, PS3.7 D.3.3): the first three apart, all others in `items`.

    `maximum_length` is 0 for unlimited.
    """

    maximum_length: int = 0
    implementation_class_uid: str = ""
    implementation_version_name: str = ""
    items: tuple[UserItem, ...] = ()


# --- encoding ------------------------------------------------------------------------------------------------


def encode_item(item_type: int, value: bytes) -> bytes:
    """An item with its header; `LocalProtocolError` when the value does not fit into 65,535 bytes."""
    if len(value) > 0xFFFF:
        raise LocalProtocolError(f"item 0x{item_type:02X} would be {len(value)} bytes; 65535 fit")
    return _ITEM.pack(item_type, len(value)) + value


def encode_presentation_context_rq(context: PresentationContextRQ) -> bytes:
    """PS3.8 Table 9-13."""
    parts = [bytes((context.context_id, 0, 0, 0)), _uid_item(ABSTRACT_SYNTAX_ITEM, context.abstract_syntax)]
    parts += [_uid_item(TRANSFER_SYNTAX_ITEM, uid) for uid in context.transfer_syntaxes]
    return encode_item(PRESENTATION_CONTEXT_RQ_ITEM, b"".join(parts))


def encode_presentation_context_ac(context: PresentationContextAC) -> bytes:
    """PS3.8 Table 9-18."""
    head = bytes((context.context_id, 0, context.result, 0))
    return encode_item(PRESENTATION_CONTEXT_AC_ITEM, head + _uid_item(TRANSFER_SYNTAX_ITEM, context.transfer_syntax))


def encode_user_information(information: UserInformation) -> bytes:
    """PS3.8 9.3.2.3: maximum length, implementation class UID, then the rest by ascending item type."""
    parts = [
        encode_item(MAXIMUM_LENGTH_ITEM, _U32.pack(information.maximum_length)),
        _uid_item(IMPLEMENTATION_CLASS_UID_ITEM, information.implementation_class_uid),
    ]
    version_name = _ascii(information.implementation_version_name)
    rest = [(ITEM_TYPES[type(item)], _encode_user_item(item)) for item in information.items]
    if version_name:
        rest.append((IMPLEMENTATION_VERSION_NAME_ITEM, version_name))
    parts += [encode_item(item_type, value) for item_type, value in sorted(rest, key=lambda pair: pair[0])]
    return encode_item(USER_INFORMATION_ITEM, b"".join(parts))


ITEM_TYPES: dict[type[UserItem], int] = {
    AsynchronousOperationsWindow: ASYNCHRONOUS_OPERATIONS_ITEM,
    RoleSelection: ROLE_SELECTION_ITEM,
    ExtendedNegotiation: EXTENDED_NEGOTIATION_ITEM,
    CommonExtendedNegotiation: COMMON_EXTENDED_NEGOTIATION_ITEM,
    UserIdentityRQ: USER_IDENTITY_RQ_ITEM,
    UserIdentityAC: USER_IDENTITY_AC_ITEM,
}


def _encode_user_item(item: UserItem) -> bytes:
    match item:
        case AsynchronousOperationsWindow():
            return _U16.pack(item.maximum_invoked) + _U16.pack(item.maximum_performed)
        case RoleSelection():
            return _counted(_ascii(item.sop_class_uid)) + bytes((item.scu_role, item.scp_role))
        case ExtendedNegotiation():
            return _counted(_ascii(item.sop_class_uid)) + item.information
        case CommonExtendedNegotiation():
            related = b"".join(_counted(_ascii(uid)) for uid in item.related_general_sop_classes)
            classes = _counted(_ascii(item.sop_class_uid)) + _counted(_ascii(item.service_class_uid))
            return classes + _counted(related)
        case UserIdentityRQ():
            head = bytes((item.identity_type, item.positive_response_requested))
            return head + _counted(item.primary_field) + _counted(item.secondary_field)
        case UserIdentityAC():
            return _counted(item.server_response)


def _uid_item(item_type: int, uid: str) -> bytes:
    return encode_item(item_type, _ascii(uid))


def _ascii(text: str) -> bytes:
    try:
        return text.encode("ascii")
    except UnicodeEncodeError as error:
        raise LocalProtocolError("a UID or name outside ASCII cannot be sent") from error


def _counted(value: bytes) -> bytes:
    if len(value) > 0xFFFF:
        raise LocalProtocolError(f"a field of {len(value)} bytes does not fit into a sub-item")
    return _U16.pack(len(value)) + value


# --- decoding ------------------------------------------------------------------------------------------------


def iterate_items(data: bytes, what: str) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each item in `data`; `RemoteProtocolError` when one is longer than what is left."""
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < 4:
            raise RemoteProtocolError(f"{what}: {end - offset} stray bytes after the last item", _INVALID)
        item_type, length = _ITEM.unpack_from(data, offset)
        offset += 4
        if length > end - offset:
            message = f"{what}: item 0x{item_type:02X} claims {length} bytes, {end - offset} are left"
            raise RemoteProtocolError(message, _INVALID)
        yield item_type, data[offset : offset + length]
        offset += length


def decode_presentation_context_rq(value: bytes) -> PresentationContextRQ:
    """PS3.8 Table 9-13; `RemoteProtocolError` without an abstract or a transfer syntax, or on an even ID."""
    context_id = _context_id(value)
    abstract_syntax = ""
    transfer_syntaxes: list[str] = []
    for item_type, item in iterate_items(value[4:], "presentation context"):
        if item_type == ABSTRACT_SYNTAX_ITEM:
            abstract_syntax = decode_uid(item)
        elif item_type == TRANSFER_SYNTAX_ITEM:
            transfer_syntaxes.append(decode_uid(item))
            if len(transfer_syntaxes) > limits.MAX_TRANSFER_SYNTAXES:
                raise RemoteProtocolError(f"presentation context {context_id} has too many syntaxes", _INVALID)
    if not abstract_syntax or not transfer_syntaxes:
        raise RemoteProtocolError(f"presentation context {context_id} lacks its abstract or transfer syntax", _INVALID)
    return PresentationContextRQ(context_id, abstract_syntax, tuple(transfer_syntaxes))


def decode_presentation_context_ac(value: bytes) -> PresentationContextAC:
    """PS3.8 Table 9-18."""
    context_id = _context_id(value)
    transfer_syntax = ""
    for item_type, item in iterate_items(value[4:], "presentation context"):
        if item_type == TRANSFER_SYNTAX_ITEM:
            transfer_syntax = decode_uid(item)
    return PresentationContextAC(context_id, value[2], transfer_syntax)


def decode_user_information(value: bytes) -> UserInformation:
    """PS3.8 9.3.2.3; unknown sub-items are skipped."""
    maximum_length = 0
    class_uid = version_name = ""
    items: list[UserItem] = []
    for count, (item_type, item) in enumerate(iterate_items(value, "user information")):
        if count >= limits.MAX_USER_ITEMS:
            raise RemoteProtocolError(f"more than {limits.MAX_USER_ITEMS} user information items", _INVALID)
        if item_type == MAXIMUM_LENGTH_ITEM:
            if len(item) != 4:
                raise RemoteProtocolError(f"maximum length item of {len(item)} bytes", _INVALID)
            (maximum_length,) = _U32.unpack(item)
        elif item_type == IMPLEMENTATION_CLASS_UID_ITEM:
            class_uid = decode_uid(item)
        elif item_type == IMPLEMENTATION_VERSION_NAME_ITEM:
            version_name = decode_text(item)
        elif decode := _DECODERS.get(item_type):
            items.append(decode(_Reader(item, item_type)))
    return UserInformation(maximum_length, class_uid, version_name, tuple(items))


def decode_uid(value: bytes) -> str:
    """A UID, freed from the padding that some peers add though PS3.8 F forbids it.

    `RemoteProtocolError` beyond 64 characters, which also bounds what is echoed in an answer.
    """
    uid = decode_text(value)
    if len(uid) > limits.MAX_UID:
        raise RemoteProtocolError(f"a UID of {len(uid)} characters", _INVALID)
    return uid


def decode_text(value: bytes) -> str:
    """ISO 646 text, stripped of padding NULs and spaces; `RemoteProtocolError` outside ASCII."""
    try:
        return value.decode("ascii").strip("\0 ")
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("a UID or name has bytes outside ASCII", _INVALID) from error


def _context_id(value: bytes) -> int:
    if len(value) < 4:
        raise RemoteProtocolError(f"presentation context item of {len(value)} bytes", _INVALID)
    if value[0] % 2 == 0:
        raise RemoteProtocolError(f"presentation context ID {value[0]} is not odd", _INVALID)
    return value[0]


class _Reader:
    """Takes fields off the front of one sub-item; every lack of bytes is the same precise error."""

    __slots__ = ("_data", "_item_type", "_offset")

    def __init__(self, data: bytes, item_type: int) -> None:
        self._data, self._item_type, self._offset = data, item_type, 0

    def take(self, count: int) -> bytes:
        value = self._data[self._offset : self._offset + count]
        if len(value) < count:
            raise RemoteProtocolError(f"sub-item 0x{self._item_type:02X} ends within a field", _INVALID)
        self._offset += count
        return value

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def counted(self) -> bytes:
        return self.take(self.u16())

    def uid(self) -> str:
        return decode_uid(self.counted())

    def flag(self) -> bool:
        return self.take(1) != b"\0"

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._offset)

    @property
    def exhausted(self) -> bool:
        return self._offset >= len(self._data)


def _decode_common_extended(reader: _Reader) -> CommonExtendedNegotiation:
    sop_class_uid, service_class_uid = reader.uid(), reader.uid()
    related: list[str] = []
    if not reader.exhausted:
        inner = _Reader(reader.counted(), COMMON_EXTENDED_NEGOTIATION_ITEM)
        while not inner.exhausted:
            related.append(inner.uid())
    return CommonExtendedNegotiation(sop_class_uid, service_class_uid, tuple(related))


def _decode_user_identity_rq(reader: _Reader) -> UserIdentityRQ:
    identity_type = reader.take(1)[0]
    wants_response = reader.flag()
    return UserIdentityRQ(identity_type, reader.counted(), reader.counted(), wants_response)


_INVALID = ABORT_INVALID_PDU_PARAMETER_VALUE

_DECODERS: dict[int, Callable[[_Reader], UserItem]] = {
    ASYNCHRONOUS_OPERATIONS_ITEM: lambda r: AsynchronousOperationsWindow(r.u16(), r.u16()),
    ROLE_SELECTION_ITEM: lambda r: RoleSelection(r.uid(), r.flag(), r.flag()),
    EXTENDED_NEGOTIATION_ITEM: lambda r: ExtendedNegotiation(r.uid(), r.rest()),
    COMMON_EXTENDED_NEGOTIATION_ITEM: _decode_common_extended,
    USER_IDENTITY_RQ_ITEM: _decode_user_identity_rq,
    # dcm4che answers with an empty body where PS3.7 Table D.3-15 wants at least a length.
    USER_IDENTITY_AC_ITEM: lambda r: UserIdentityAC(b"" if r.exhausted else r.counted()),
}
