"""Misbehaviour below the services: how connections end, and how messages are cut into PDUs and bytes."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from dul import pdu
from dul.channel import Channel
from dul.connection import Connection
from dul.dimse import Command, encode_command
from dul.transport import Transport

_RELEASE_RQ = pdu.encode(pdu.AReleaseRQ())

Ending = Callable[[Channel], None]
"""A way in which a connection ends."""


def abort(channel: Channel) -> None:
    """End it by A-ABORT."""
    channel.abort()


def close(channel: Channel) -> None:
    """End the TCP connection in the orderly way, without a word of DICOM."""
    channel.transport.close()


def reset(channel: Channel) -> None:
    """End it by a TCP reset, as a machine that restarts does."""
    transport = channel.transport._transport
    if transport is not None and not transport.is_closing():
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def use_nagle(channel: Channel) -> None:
    """Send as programs do that leave Nagle's algorithm on: a small write waits for the ACK of the one before."""
    transport = channel.transport._transport
    assert transport is not None
    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)


async def drip(channel: Channel, data: bytes, interval: float) -> None:
    """Write bytes one by one; raises `dul.ConnectionLost` when the peer has had enough."""
    for byte in data:
        channel.transport.write([bytes((byte,))])
        await asyncio.sleep(interval)


# --- messages ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """How a message goes over the wire.

    `packed` puts command and data set into one P-DATA-TF. `maximum_length` (bytes) cuts both into PDUs of that size.
    `data_set_type` is the Command Data Set Type (0000,0800) of messages with a data set. `dripping` is the pause in
    seconds between the bytes, `dripping_data` that between the bytes of the data set alone. `apart` writes each PDU by
    itself.
    """

    packed: bool = False
    maximum_length: int = 16 * 1024
    data_set_type: int = 0x0001
    dripping: float | None = None
    dripping_data: float | None = None
    apart: bool = False


PACKED = Shape(packed=True)
"""As dcm4che sends."""

SMALL_PDUS = Shape(maximum_length=64)
"""As DCMTK sends, in the extreme: one command and one data set over many PDUs."""

TYPE_ZERO = Shape(data_set_type=0x0000)
"""As dcm4che says that a data set follows."""

APART = Shape(apart=True)
"""As DCMTK writes: the command first, then the data set."""


def encode_message(context_id: int, command: Command, data: bytes | None, shape: Shape) -> list[bytes]:
    """Return the PDUs of a message."""
    if data is None:
        return _cut(context_id, encode_command(command), True, shape.maximum_length)
    encoded = encode_command(replace(command, data_set_type=shape.data_set_type))
    if not shape.packed:
        parts = _cut(context_id, encoded, True, shape.maximum_length)
        return parts + _cut(context_id, data, False, shape.maximum_length)
    body = _pdv(context_id, pdu.COMMAND_FLAG | pdu.LAST_FLAG, encoded) + _pdv(context_id, pdu.LAST_FLAG, data)
    return [pdu.PDU_HEADER.pack(pdu.P_DATA_TF, len(body)) + body]


def _cut(context_id: int, data: bytes, command: bool, maximum_length: int) -> list[bytes]:
    buffers = pdu.encode_p_data(context_id, data, command=command, last=True, maximum_length=maximum_length)
    return [bytes(head) + bytes(piece) for head, piece in zip(buffers[::2], buffers[1::2], strict=True)]


def _pdv(context_id: int, flags: int, data: bytes) -> bytes:
    return pdu.PDV_HEADER.pack(len(data) + 2, context_id, flags) + data


async def send(channel: Channel, context_id: int, command: Command, data: bytes | None, shape: Shape) -> None:
    """Send a message in that shape."""
    parts = encode_message(context_id, command, data, shape)
    if shape.dripping is not None:
        await drip(channel, b"".join(parts), shape.dripping)
        return
    if shape.dripping_data is not None and data is not None:
        channel.transport.write(list(parts[:1]))
        await drip(channel, b"".join(parts[1:]), shape.dripping_data)
        return
    for part in parts if shape.apart else [b"".join(parts)]:
        channel.transport.write([part])
        await channel.transport.drain(30)


async def send_half(channel: Channel, context_id: int, command: Command, data: bytes | None) -> None:
    """Send the first half of a message, which ends within a PDU, and give it time to arrive."""
    whole = b"".join(encode_message(context_id, command, data, PACKED))
    channel.transport.write([whole[: len(whole) // 2]])
    await asyncio.sleep(0.02)


# --- the release ---------------------------------------------------------------------------------------------


class Ear(Transport):
    """A transport that hears A-RELEASE-RQ before the state machine does, and need not pass it on."""

    def __init__(self, connection: Connection, channel: Channel, on_release: Callable[[], bool]) -> None:
        super().__init__(connection, channel)
        self._on_release = on_release

    def buffer_updated(self, nbytes: int) -> None:
        # What asks for the release sends nothing behind it, so it is the end of what was read.
        if bytes(self.get_buffer(-1)[:nbytes]).endswith(_RELEASE_RQ) and not self._on_release():
            return
        super().buffer_updated(nbytes)
