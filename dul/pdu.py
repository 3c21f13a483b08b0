"""The seven PDUs: bytes both ways, pure (PS3.8 9.3).

A PDU is one type byte, one reserved byte, a length of four bytes (big endian) and its body. P-DATA-TF bodies are
never decoded here: `framing` hands them on piece by piece, and `encode_p_data` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from struct import Struct
from struct import error as struct_error

from dul import items, limits
from dul.errors import ABORT_INVALID_PDU_PARAMETER_VALUE, LocalProtocolError, RemoteProtocolError
from dul.items import PresentationContextAC, PresentationContextRQ, UserInformation

A_ASSOCIATE_RQ = 0x01
A_ASSOCIATE_AC = 0x02
A_ASSOCIATE_RJ = 0x03
P_DATA_TF = 0x04
A_RELEASE_RQ = 0x05
A_RELEASE_RP = 0x06
A_ABORT = 0x07

PDU_HEADER = Struct(">BxL")
PDV_HEADER = Struct(">LBB")
"""Item length, presentation context ID, message control header (PS3.8 9.3.5.1, E.2)."""

PDV_OVERHEAD = 6
COMMAND_FLAG = 0x01
LAST_FLAG = 0x02

_ASSOCIATE_FIXED = Struct(">Hxx16s16s32x")
_P_DATA_PDV = Struct(">BxLLBB")


@dataclass(frozen=True, slots=True)
class AAssociateRQ:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2). `protocol_version` is a bit field, bit 0 for version 1."""

    called_ae_title: str
    calling_ae_title: str
    presentation_contexts: tuple[PresentationContextRQ, ...]
    user_information: UserInformation = field(default_factory=UserInformation)
    application_context: str = items.APPLICATION_CONTEXT
    protocol_version: int = 1


@dataclass(frozen=True, slots=True)
class AAssociateAC:
    """A-ASSOCIATE-AC (PS3.8 9.3.3). The AE titles repeat the request's and shall not be tested."""

    called_ae_title: str
    calling_ae_title: str
    presentation_contexts: tuple[PresentationContextAC, ...]
    user_information: UserInformation = field(default_factory=UserInformation)
    application_context: str = items.APPLICATION_CONTEXT
    protocol_version: int = 1


@dataclass(frozen=True, slots=True)
class AAssociateRJ:
    """A-ASSOCIATE-RJ (PS3.8 9.3.4, Table 9-21)."""

    result: int
    source: int
    reason: int


@dataclass(frozen=True, slots=True)
class AReleaseRQ:
    """A-RELEASE-RQ (PS3.8 9.3.6)."""


@dataclass(frozen=True, slots=True)
class AReleaseRP:
    """A-RELEASE-RP (PS3.8 9.3.7)."""


@dataclass(frozen=True, slots=True)
class AAbort:
    """A-ABORT (PS3.8 9.3.8, Table 9-26)."""

    source: int
    reason: int


PDU = AAssociateRQ | AAssociateAC | AAssociateRJ | AReleaseRQ | AReleaseRP | AAbort


# --- encoding ------------------------------------------------------------------------------------------------


def encode(pdu: PDU) -> bytes:
    """The bytes of one PDU; `LocalProtocolError` when a value does not fit."""
    try:
        return _encode(pdu)
    except (struct_error, ValueError) as error:  # a number beyond its field, text outside ASCII
        raise LocalProtocolError(f"a value does not fit into its field: {error}") from error


def _encode(pdu: PDU) -> bytes:
    match pdu:
        case AAssociateRQ():
            contexts = [items.encode_presentation_context_rq(c) for c in pdu.presentation_contexts]
            return _encode_associate(A_ASSOCIATE_RQ, pdu, contexts)
        case AAssociateAC():
            contexts = [items.encode_presentation_context_ac(c) for c in pdu.presentation_contexts]
            return _encode_associate(A_ASSOCIATE_AC, pdu, contexts)
        case AAssociateRJ():
            return PDU_HEADER.pack(A_ASSOCIATE_RJ, 4) + bytes((0, pdu.result, pdu.source, pdu.reason))
        case AReleaseRQ():
            return PDU_HEADER.pack(A_RELEASE_RQ, 4) + bytes(4)
        case AReleaseRP():
            return PDU_HEADER.pack(A_RELEASE_RP, 4) + bytes(4)
        case AAbort():
            return PDU_HEADER.pack(A_ABORT, 4) + bytes((0, 0, pdu.source, pdu.reason))


def _encode_associate(pdu_type: int, pdu: AAssociateRQ | AAssociateAC, contexts: Iterable[bytes]) -> bytes:
    fixed = _ASSOCIATE_FIXED.pack(
        pdu.protocol_version, _encode_ae_title(pdu.called_ae_title), _encode_ae_title(pdu.calling_ae_title)
    )
    application_context = items.encode_item(items.APPLICATION_CONTEXT_ITEM, pdu.application_context.encode("ascii"))
    user_information = items.encode_user_information(pdu.user_information)
    body = b"".join((fixed, application_context, *contexts, user_information))
    return PDU_HEADER.pack(pdu_type, len(body)) + body


def _encode_ae_title(title: str) -> bytes:
    try:
        encoded = title.encode("ascii")
    except UnicodeEncodeError as error:
        raise LocalProtocolError("an AE title must be ASCII") from error
    if len(encoded) > 16:
        raise LocalProtocolError(f"an AE title has at most 16 characters, this one {len(encoded)}")
    return encoded.ljust(16)


def encode_p_data(
    context_id: int, data: bytes | memoryview, *, command: bool, last: bool, maximum_length: int
) -> list[bytes | memoryview]:
    """P-DATA-TF PDUs of one PDV each that carry `data`, as buffers to be written one after the other.

    `maximum_length` (bytes, at least 8) bounds each PDU's body (PS3.8 D.1). `last` marks the last fragment of the
    command or data set (PS3.8 E.2); empty data gives one PDU with an empty fragment. The data are not copied.
    Fragments have an even number of bytes (PS3.8 E.1), as long as `data` has.
    """
    step = (maximum_length - PDV_OVERHEAD) & ~1
    if step <= 0:
        raise LocalProtocolError(f"no data fit into PDUs of {maximum_length} bytes")
    flags = COMMAND_FLAG if command else 0
    view = memoryview(data)
    size = len(view)
    buffers: list[bytes | memoryview] = []
    offset = 0
    while True:
        piece = view[offset : offset + step]
        offset += len(piece)
        control = flags | (LAST_FLAG if last and offset >= size else 0)
        length = len(piece) + 2
        buffers.append(_P_DATA_PDV.pack(P_DATA_TF, length + 4, length, context_id, control))
        buffers.append(piece)
        if offset >= size:
            return buffers


# --- decoding ------------------------------------------------------------------------------------------------


def decode(pdu_type: int, body: bytes) -> PDU:
    """The PDU with this type and body.

    Raises `RemoteProtocolError` with the abort reason for whatever is wrong with it; never anything else.
    """
    return _DECODERS[pdu_type](body)


def _decode_associate_rq(body: bytes) -> AAssociateRQ:
    version, called_field, calling_field, rest = _decode_associate_head(body)
    called, calling = items.decode_text(called_field), items.decode_text(calling_field)
    application_context, contexts = "", []
    information: UserInformation | None = None
    for item_type, item in items.iterate_items(rest, "A-ASSOCIATE-RQ"):
        if item_type == items.APPLICATION_CONTEXT_ITEM:
            application_context = items.decode_uid(item)
        elif item_type == items.PRESENTATION_CONTEXT_RQ_ITEM:
            contexts.append(items.decode_presentation_context_rq(item))
            _check_context_count(len(contexts))
        elif item_type == items.USER_INFORMATION_ITEM:
            information = _only_user_information(information, item)
    return AAssociateRQ(
        called, calling, tuple(contexts), information or UserInformation(), application_context, version
    )


def _decode_associate_ac(body: bytes) -> AAssociateAC:
    version, called_field, calling_field, rest = _decode_associate_head(body)
    # Reserved fields that "shall not be tested when received" (PS3.8 Table 9-17): whatever they hold is no error.
    called, calling = (
        field.decode("ascii", "replace").replace("\ufffd", "?").strip("\0 ") for field in (called_field, calling_field)
    )
    application_context, contexts = "", []
    information: UserInformation | None = None
    for item_type, item in items.iterate_items(rest, "A-ASSOCIATE-AC"):
        if item_type == items.APPLICATION_CONTEXT_ITEM:
            application_context = items.decode_uid(item)
        elif item_type == items.PRESENTATION_CONTEXT_AC_ITEM:
            contexts.append(items.decode_presentation_context_ac(item))
            _check_context_count(len(contexts))
        elif item_type == items.USER_INFORMATION_ITEM:
            information = _only_user_information(information, item)
    return AAssociateAC(
        called, calling, tuple(contexts), information or UserInformation(), application_context, version
    )


def _only_user_information(before: UserInformation | None, item: bytes) -> UserInformation:
    # A second one is no use, and a PDU full of them would take a third of a second to decode.
    if before is not None:
        raise RemoteProtocolError("more than one user information item", _INVALID)
    return items.decode_user_information(item)


def _check_context_count(count: int) -> None:
    if count > limits.MAX_PRESENTATION_CONTEXTS:
        raise RemoteProtocolError(f"more than {limits.MAX_PRESENTATION_CONTEXTS} presentation contexts", _INVALID)


def _decode_associate_head(body: bytes) -> tuple[int, bytes, bytes, bytes]:
    if len(body) < _ASSOCIATE_FIXED.size:
        raise RemoteProtocolError(f"an A-ASSOCIATE PDU of {len(body)} bytes is too short", _INVALID)
    version, called, calling = _ASSOCIATE_FIXED.unpack_from(body)
    return version, called, calling, body[_ASSOCIATE_FIXED.size :]


def _decode_associate_rj(body: bytes) -> AAssociateRJ:
    return AAssociateRJ(*_fixed_body(body)[1:4])


def _decode_release_rq(body: bytes) -> AReleaseRQ:
    _fixed_body(body)
    return AReleaseRQ()


def _decode_release_rp(body: bytes) -> AReleaseRP:
    _fixed_body(body)
    return AReleaseRP()


def _decode_abort(body: bytes) -> AAbort:
    return AAbort(*_fixed_body(body)[2:4])


def _fixed_body(body: bytes) -> bytes:
    if len(body) != limits.FIXED_PDU_BODY:
        raise RemoteProtocolError(f"a PDU body of {len(body)} bytes where 4 are defined", _INVALID)
    return body


_INVALID = ABORT_INVALID_PDU_PARAMETER_VALUE

_DECODERS: dict[int, Callable[[bytes], PDU]] = {
    A_ASSOCIATE_RQ: _decode_associate_rq,
    A_ASSOCIATE_AC: _decode_associate_ac,
    A_ASSOCIATE_RJ: _decode_associate_rj,
    A_RELEASE_RQ: _decode_release_rq,
    A_RELEASE_RP: _decode_release_rp,
    A_ABORT: _decode_abort,
}
