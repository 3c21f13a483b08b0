"""PDUs and command sets as bytes, and sockets that speak them by script.

Written from PS3.8 and PS3.7 with no help from `dul`, so that a mistake there is not made here again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Self

from dul import Peer

HOST = "127.0.0.1"

VERIFICATION = "1.2.840.10008.1.1"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

RQ, AC, RJ, DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
COMMAND, LAST = 1, 2

C_STORE, C_GET, C_FIND, C_MOVE, C_ECHO, C_CANCEL = 0x0001, 0x0010, 0x0020, 0x0021, 0x0030, 0x0FFF
RSP = 0x8000
NO_DATA_SET = 0x0101

RELEASE_RQ_PDU = bytes.fromhex("050000000004 00000000")
RELEASE_RP_PDU = bytes.fromhex("060000000004 00000000")
ABORT_PDU = bytes.fromhex("070000000004 00000000")

Elements = dict[str, int | str]
"""A command set: values by the names of `ELEMENTS`."""

STORE: Elements = {
    "field": C_STORE,
    "message_id": 1,
    "sop_class": CT_IMAGE,
    "sop_instance": "1.2.3",
    "data_set": 1,
}
"""The C-STORE-RQ of an instance of nobody's."""

ELEMENTS = {
    "sop_class": 0x0002,
    "field": 0x0100,
    "message_id": 0x0110,
    "responding_to": 0x0120,
    "destination": 0x0600,
    "priority": 0x0700,
    "data_set": 0x0800,
    "status": 0x0900,
    "comment": 0x0902,
    "sop_instance": 0x1000,
    "remaining": 0x1020,
    "completed": 0x1021,
    "failed": 0x1022,
    "warning": 0x1023,
    "originator": 0x1030,
    "originator_id": 0x1031,
}
NAMES = {element: name for name, element in ELEMENTS.items()}
NUMBERS = frozenset(ELEMENTS) - {"sop_class", "destination", "comment", "sop_instance", "originator"}


def pdu(kind: int, body: bytes) -> bytes:
    """Return a PDU."""
    return struct.pack(">BxL", kind, len(body)) + body


def item(kind: int, body: bytes) -> bytes:
    """Return an item or sub-item of an A-ASSOCIATE PDU."""
    return struct.pack(">BxH", kind, len(body)) + body


def _associate(kind: int, called: str, calling: str, contexts: Sequence[bytes], maximum_length: int) -> bytes:
    titles = called.ljust(16).encode() + calling.ljust(16).encode()
    information = item(0x51, struct.pack(">L", maximum_length)) + item(0x52, b"1.2.826.0.1.3680043.8.498.77")
    application_context = item(0x10, b"1.2.840.10008.3.1.1.1")
    body = [struct.pack(">Hxx", 1), titles, bytes(32), application_context, *contexts, item(0x50, information)]
    return pdu(kind, b"".join(body))


def associate_rq(
    *contexts: tuple[int, str, Sequence[str]], called: str = "SCP", calling: str = "RAWSCU", maximum_length: int = 16384
) -> bytes:
    """Return an A-ASSOCIATE-RQ; the contexts are ID, abstract syntax and transfer syntaxes."""
    items = [
        item(
            0x20,
            bytes((context_id, 0, 0, 0))
            + item(0x30, abstract.encode())
            + b"".join(item(0x40, syntax.encode()) for syntax in syntaxes),
        )
        for context_id, abstract, syntaxes in contexts
    ]
    return _associate(RQ, called, calling, items, maximum_length)


def associate_ac(*contexts: tuple[int, int, str], maximum_length: int = 16384) -> bytes:
    """Return an A-ASSOCIATE-AC; the contexts are ID, result and transfer syntax."""
    items = [
        item(0x21, bytes((context_id, 0, result, 0)) + item(0x40, syntax.encode()))
        for context_id, result, syntax in contexts
    ]
    return _associate(AC, "ANY", "ANY", items, maximum_length)


def proposed_contexts(body: bytes) -> list[tuple[int, str, list[str]]]:
    """Return ID, abstract syntax and transfer syntaxes of the contexts in the body of an A-ASSOCIATE-RQ."""
    contexts = []
    for kind, value in _items(body[68:]):
        if kind == 0x20:
            names = [(sub_kind, name.decode()) for sub_kind, name in _items(value[4:])]
            syntaxes = [name for sub_kind, name in names if sub_kind == 0x40]
            contexts.append((value[0], next(name for sub_kind, name in names if sub_kind == 0x30), syntaxes))
    return contexts


def _items(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        kind, length = struct.unpack_from(">BxH", data)
        found.append((kind, data[4 : 4 + length]))
        data = data[4 + length :]
    return found


def pdv(context_id: int, flags: int, data: bytes) -> bytes:
    """Return a presentation data value item."""
    return struct.pack(">LBB", len(data) + 2, context_id, flags) + data


def p_data(*pdvs: bytes) -> bytes:
    """Return a P-DATA-TF PDU."""
    return pdu(DATA, b"".join(pdvs))


def command(**elements: int | str) -> bytes:
    """Return a command set; there is no data set unless `data_set` says so."""
    elements = {"data_set": NO_DATA_SET, **elements}
    parts = []
    for name, value in sorted(elements.items(), key=lambda entry: ELEMENTS[entry[0]]):
        encoded = struct.pack("<H", value) if isinstance(value, int) else value.encode() + b"\0" * (len(value) % 2)
        parts.append(struct.pack("<HHL", 0, ELEMENTS[name], len(encoded)) + encoded)
    body = b"".join(parts)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def parse_command(data: bytes) -> Elements:
    """Return the elements of a command set by name."""
    elements: Elements = {}
    while data:
        _, element, length = struct.unpack_from("<HHL", data)
        value = data[8 : 8 + length]
        name = NAMES.get(element)
        if name is not None:
            elements[name] = struct.unpack("<H", value)[0] if name in NUMBERS else value.decode().strip("\0 ")
        data = data[8 + length :]
    return elements


def message(context_id: int, data: bytes | None = None, /, **elements: int | str) -> bytes:
    """Return a message in PDUs of one PDV each: the command, and the data set if there is one."""
    if data is not None:
        elements.setdefault("data_set", 1)
    parts = [p_data(pdv(context_id, COMMAND | LAST, command(**elements)))]
    if data is not None:
        parts.append(p_data(pdv(context_id, LAST, data)))
    return b"".join(parts)


def response(request: Message, status: int, data: bytes | None = None, /, **elements: int | str) -> bytes:
    """Return a response to `request`."""
    field, message_id = request.number("field"), request.number("message_id")
    sop_class = str(request.command["sop_class"])
    return message(
        request.context_id,
        data,
        field=field | RSP,
        responding_to=message_id,
        sop_class=sop_class,
        status=status,
        **elements,
    )


class Message:
    """A message as read by `Wire.message`."""

    def __init__(self, context_id: int, elements: Elements, data: bytes | None) -> None:
        self.context_id = context_id
        self.command = elements
        self.data = data

    def number(self, name: str) -> int:
        """Return a number of the command set."""
        value = self.command[name]
        assert isinstance(value, int)
        return value


class Wire:
    """One end of a TCP connection. Reading past the end raises `EOFError`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self._loop = asyncio.get_running_loop()
        self._held = b""

    @classmethod
    async def connect(cls, port: int, source: str = HOST) -> Self:
        """Connect to a loopback port, from a loopback address of choice."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((source, 0))
        try:
            await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def reset(self) -> None:
        """Close the socket so that the peer gets a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await self._loop.sock_sendall(self.socket, data)

    async def drip(self, data: bytes, interval: float) -> None:
        """Send bytes one by one."""
        for byte in data:
            await self.send(bytes((byte,)))
            await asyncio.sleep(interval)

    async def receive(self, size: int = 65536) -> bytes:
        """Return what one `recv` gives; nothing at the end."""
        return await self._loop.sock_recv(self.socket, size)

    async def exactly(self, size: int) -> bytes:
        """Return that many bytes."""
        while len(self._held) < size:
            data = await self.receive()
            if not data:
                raise EOFError
            self._held += data
        data, self._held = self._held[:size], self._held[size:]
        return data

    async def pdu(self) -> tuple[int, bytes]:
        """Return type and body of the next PDU."""
        kind, length = struct.unpack(">BxL", await self.exactly(6))
        return kind, await self.exactly(length)

    async def fragment(self) -> tuple[int, int, bytes]:
        """Return context ID, message control header and data of the next P-DATA-TF, which must have one PDV."""
        kind, body = await self.pdu()
        assert kind == DATA, f"PDU type {kind} where P-DATA-TF was expected"
        length, context_id, flags = struct.unpack_from(">LBB", body)
        assert length == len(body) - 4
        return context_id, flags, body[6:]

    async def message(self) -> Message:
        """Return the next message, whole."""
        context_id, elements = 0, b""
        flags = 0
        while not flags & LAST:
            context_id, flags, data = await self.fragment()
            assert flags & COMMAND
            elements += data
        parsed = parse_command(elements)
        if parsed["data_set"] == NO_DATA_SET:
            return Message(context_id, parsed, None)
        parts = []
        flags = 0
        while not flags & LAST:
            _, flags, data = await self.fragment()
            assert not flags & COMMAND
            parts.append(data)
        return Message(context_id, parsed, b"".join(parts))

    async def accept(self, *, syntax: str | None = None, maximum_length: int = 16384) -> dict[str, int]:
        """Accept the association asked for, with the first transfer syntax or the given one.

        Returns the context IDs by abstract syntax.
        """
        kind, body = await self.pdu()
        assert kind == RQ
        contexts = proposed_contexts(body)
        answers = [(context_id, 0, syntax or syntaxes[0]) for context_id, _, syntaxes in contexts]
        await self.send(associate_ac(*answers, maximum_length=maximum_length))
        return {abstract: context_id for context_id, abstract, _ in contexts}

    async def associate(self, *abstract_syntaxes: str, called: str = "SCP", maximum_length: int = 16384) -> None:
        """Ask for an association, which must be accepted; the context IDs are 1, 3, 5 and so on."""
        contexts = [(2 * number + 1, name, [EXPLICIT, IMPLICIT]) for number, name in enumerate(abstract_syntaxes)]
        await self.send(associate_rq(*contexts, called=called, maximum_length=maximum_length))
        kind, _ = await self.pdu()
        assert kind == AC, f"PDU type {kind} where A-ASSOCIATE-AC was expected"

    async def answer_release(self) -> None:
        """Expect A-RELEASE-RQ, answer it, and close."""
        kind, _ = await self.pdu()
        assert kind == RELEASE_RQ, f"PDU type {kind} where A-RELEASE-RQ was expected"
        await self.send(RELEASE_RP_PDU)
        self.close()

    async def expect_abort(self) -> bytes:
        """Read PDUs until there is an A-ABORT, and return its body."""
        while True:
            kind, body = await self.pdu()
            if kind == ABORT:
                return body

    async def until_closed(self, timeout: float = 5.0) -> float:
        """Drop all that comes until the peer closes, and return how long that took, in seconds."""
        start = time.monotonic()
        async with asyncio.timeout(timeout):
            with contextlib.suppress(ConnectionError):
                while await self.receive():
                    pass
        return time.monotonic() - start


Script = Callable[[Wire], Awaitable[None]]


@contextlib.asynccontextmanager
async def scripted_scp(script: Script, *, receive_buffer: int | None = None) -> AsyncIterator[Peer]:
    """Listen, and run `script` for each connection; what a script raises is raised at the end.

    Scripts that still run at the end are cancelled. `receive_buffer` is for peers that read slowly.
    """
    loop = asyncio.get_running_loop()
    listener = socket.socket()
    if receive_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    listener.setblocking(False)
    listener.bind((HOST, 0))
    listener.listen()
    tasks: list[asyncio.Task[None]] = []

    async def run(wire: Wire) -> None:
        with wire:
            await script(wire)

    async def accept() -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            tasks.append(loop.create_task(run(Wire(sock))))

    tasks.append(loop.create_task(accept()))
    try:
        yield Peer(HOST, listener.getsockname()[1], "SCP", "SCU")
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        listener.close()
    for result in results:
        if isinstance(result, Exception):
            raise result
