"""Bytes to PDUs, however the bytes are cut.

P-DATA-TF bodies are handed on as fragments while they arrive: a fragment is a view of the caller's buffer, never a
copy, and no length that a peer claims makes this module keep anything. All other PDUs are kept until they are
whole, up to `limits.MAX_ASSOCIATION_PDU`, which is checked against the header before the body is read.

Cost: O(1) for each fragment and PDU, plus one copy of association PDUs; memory: at most one association PDU.
The first mistake in the stream yields `Invalid`; nothing is read after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dul import limits, pdu
from dul.errors import ABORT_INVALID_PDU_PARAMETER_VALUE, RemoteProtocolError, UnrecognizedPDUError

_HEADER_SIZE = 6  # of a PDU, and of a PDV as well


@dataclass(frozen=True, slots=True)
class WholePDU:
    """Any PDU but P-DATA-TF, not decoded yet."""

    pdu_type: int
    body: bytes


@dataclass(slots=True)
class Fragment:
    """Some bytes of one PDV (PS3.8 9.3.5.1), valid until the next read.

    `last` is set on the piece that ends a PDV whose message control header says "last fragment" (PS3.8 E.2).
    """

    context_id: int
    command: bool
    last: bool
    data: memoryview


@dataclass(frozen=True, slots=True)
class Invalid:
    """What arrived is no PDU, or breaks a bound; `error` says which."""

    error: RemoteProtocolError


Frame = WholePDU | Fragment | Invalid

_FIXED_TYPES = frozenset((pdu.A_ASSOCIATE_RJ, pdu.A_RELEASE_RQ, pdu.A_RELEASE_RP, pdu.A_ABORT))
_ASSOCIATE_TYPES = frozenset((pdu.A_ASSOCIATE_RQ, pdu.A_ASSOCIATE_AC))


class Framer:
    """Cuts a byte stream into frames. All state is one header's beginning, or one PDU's progress."""

    def __init__(self) -> None:
        self._header = bytearray()  # of a PDU or PDV, when a read ended within it
        self._body: bytearray | None = None  # of an association PDU on its way in
        self._pdu_type = 0
        self._pdu_left = 0  # bytes of the current PDU still to come
        self._pdv_left = 0  # bytes of the current PDV still to come
        self._context_id = 0
        self._control = 0
        self._dead = False

    @property
    def mid_control_pdu(self) -> bool:
        """True while a header, a PDU other than P-DATA-TF or a value with a command has begun and is not whole; also
        between the header of a P-DATA-TF PDU and that of the value in it."""
        if self._header or self._body is not None:
            return True
        return self._pdu_left > 0 and (not self._pdv_left or bool(self._control & pdu.COMMAND_FLAG))

    def feed(self, data: memoryview) -> list[Frame]:
        """The frames that `data` completes or continues, in order. Never raises."""
        frames: list[Frame] = []
        offset, end = 0, len(data)
        try:
            while offset < end and not self._dead:
                if self._pdv_left:
                    offset = self._continue_pdv(data, offset, end, frames)
                elif self._body is not None:
                    offset = self._continue_body(data, offset, end, frames)
                else:
                    offset = self._continue_header(data, offset, end, frames)
        except RemoteProtocolError as error:
            self._dead = True
            frames.append(Invalid(error))
        return frames

    def _continue_header(self, data: memoryview, offset: int, end: int, frames: list[Frame]) -> int:
        if not self._header and end - offset >= _HEADER_SIZE:
            self._begin(data[offset : offset + _HEADER_SIZE], frames)
            return offset + _HEADER_SIZE
        stop = min(end, offset + _HEADER_SIZE - len(self._header))
        self._header += data[offset:stop]
        if len(self._header) == _HEADER_SIZE:
            header = bytes(self._header)
            self._header.clear()
            self._begin(header, frames)
        return stop

    def _begin(self, header: bytes | memoryview, frames: list[Frame]) -> None:
        if self._pdu_left:
            self._begin_pdv(header, frames)
        else:
            self._begin_pdu(header)

    def _begin_pdu(self, header: bytes | memoryview) -> None:
        pdu_type, length = pdu.PDU_HEADER.unpack(header)
        if pdu_type == pdu.P_DATA_TF:
            if length < pdu.PDV_OVERHEAD:
                raise _invalid(f"a P-DATA-TF PDU of {length} bytes holds no presentation data value")
        elif pdu_type in _ASSOCIATE_TYPES:
            if length > limits.MAX_ASSOCIATION_PDU:
                raise _invalid(f"an A-ASSOCIATE PDU claims {length} bytes")
        elif pdu_type not in _FIXED_TYPES:
            raise UnrecognizedPDUError(f"PDU type 0x{pdu_type:02X} is not defined{_looks_like(bytes(header))}")
        elif length != limits.FIXED_PDU_BODY:
            raise _invalid(f"PDU type 0x{pdu_type:02X} claims {length} bytes where 4 are defined")
        self._pdu_type, self._pdu_left = pdu_type, length
        if pdu_type != pdu.P_DATA_TF:
            if length == 0:
                raise _invalid("an A-ASSOCIATE PDU without a body")
            self._body = bytearray()

    def _begin_pdv(self, header: bytes | memoryview, frames: list[Frame]) -> None:
        length, context_id, control = pdu.PDV_HEADER.unpack(header)
        if length < 2:
            raise _invalid(f"a presentation data value item of {length} bytes has no header")
        if length > self._pdu_left - 4:
            raise _invalid(f"a presentation data value claims {length} bytes, its PDU has {self._pdu_left - 4}")
        self._pdu_left -= _HEADER_SIZE
        self._pdv_left = length - 2
        if 0 < self._pdu_left - self._pdv_left < pdu.PDV_OVERHEAD:
            raise _invalid("stray bytes after the last presentation data value of a PDU")
        self._context_id, self._control = context_id, control
        if not self._pdv_left:
            last = bool(control & pdu.LAST_FLAG)
            frames.append(Fragment(context_id, bool(control & pdu.COMMAND_FLAG), last, _NOTHING))

    def _continue_pdv(self, data: memoryview, offset: int, end: int, frames: list[Frame]) -> int:
        stop = min(end, offset + self._pdv_left)
        taken = stop - offset
        self._pdv_left -= taken
        self._pdu_left -= taken
        control = self._control
        last = not self._pdv_left and bool(control & pdu.LAST_FLAG)
        frames.append(Fragment(self._context_id, bool(control & pdu.COMMAND_FLAG), last, data[offset:stop]))
        return stop

    def _continue_body(self, data: memoryview, offset: int, end: int, frames: list[Frame]) -> int:
        assert self._body is not None
        stop = min(end, offset + self._pdu_left)
        self._body += data[offset:stop]
        self._pdu_left -= stop - offset
        if not self._pdu_left:
            frames.append(WholePDU(self._pdu_type, bytes(self._body)))
            self._body = None
        return stop


_NOTHING = memoryview(b"")

_TLS_TYPES = range(0x14, 0x18)  # RFC 8446 5.1
_HTTP = (b"GET ", b"POST", b"HEAD", b"PUT ", b"DELE", b"OPTI", b"CONN", b"TRAC", b"PATC", b"PRI ", b"HTTP")


def _looks_like(header: bytes) -> str:
    """Say which protocol begins so, where it is one that is met on DICOM ports."""
    if header[0] in _TLS_TYPES and header[1] == 3:
        return ": this is TLS, and DICOM in clear text is spoken here"
    return ": this is HTTP" if header.startswith(_HTTP) else ""


def _invalid(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, ABORT_INVALID_PDU_PARAMETER_VALUE)
