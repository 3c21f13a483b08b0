"""DIMSE messages over one association, in both roles: what `association` and `server` have in common.

One consumer takes messages with `receive`; data sets stream behind their commands. Whatever ends the association
(`ended`) is raised to whoever waits, after the messages that had arrived whole before it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from dataclasses import dataclass

from dul import limits, pdu
from dul.connection import (
    AbortIndication,
    AssociateConfirmation,
    AssociateIndication,
    Connection,
    ConnectionEvent,
    ProviderAbortIndication,
    ReleaseConfirmation,
    ReleaseIndication,
)
from dul.dimse import Command, CommandField, encode_command
from dul.errors import (
    ABORT_REASON_NOT_SPECIFIED,
    ABORT_SOURCE_USER,
    ABORT_UNEXPECTED_PDU_PARAMETER,
    AssociationAborted,
    AssociationError,
    AssociationReleased,
    ConnectionLost,
    DulError,
    PeerTimeout,
    RemoteProtocolError,
)
from dul.framing import Fragment
from dul.messages import CommandReceived, DataSetFragment, MessageReader
from dul.negotiation import AcceptedContext
from dul.statemachine import State
from dul.stream import DataStream
from dul.transport import Transport


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each wait may last, in seconds."""

    connect: float = limits.CONNECT_TIMEOUT
    associate: float = limits.ASSOCIATE_TIMEOUT
    response: float = limits.RESPONSE_TIMEOUT
    idle: float = limits.IDLE_TIMEOUT
    release: float = limits.RELEASE_TIMEOUT
    cancel: float = limits.CANCEL_TIMEOUT
    pdu: float = limits.PDU_TIMEOUT


@dataclass(slots=True)
class Message:
    """A command, its presentation context, and its data set if one follows."""

    context: AcceptedContext
    command: Command
    data: DataStream | None


class Channel:
    """The messages of one association. All its state belongs to the event loop's thread."""

    def __init__(self, connection: Connection, timeouts: Timeouts, *, artim: float = limits.ARTIM) -> None:
        self.timeouts = timeouts
        self.transport = Transport(connection, self, artim=artim, pdu_timeout=timeouts.pdu)
        self.contexts: Mapping[int, AcceptedContext] = {}
        self.send_limit = limits.MAX_PDU_SENT
        self.ended: DulError | None = None
        """What ended the association, once something has."""
        self.on_associate: Callable[[pdu.AAssociateRQ], None] | None = None
        self.on_connected: Callable[[], None] | None = None
        self.on_ended: Callable[[], None] | None = None
        self.on_closed: Callable[[], None] | None = None
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._reader = MessageReader()
        self._inbox: deque[Message] = deque()
        self._incoming: DataStream | None = None  # the data set that is arriving
        self._reading: DataStream | None = None  # the one of the message received last
        self._unread = 0
        self._received = 0  # bytes of data sets
        self._progress = 0  # how many of them there were when enough had come the last time …
        self._waited = 0.0  # … and the seconds of waiting since then
        self._waiter: asyncio.Future[None] | None = None
        self._waits: set[asyncio.Future[None]] = set()
        self._answer: asyncio.Future[pdu.AAssociateAC | pdu.AAssociateRJ] = self._loop.create_future()
        self._cancelled: set[int] = set()

    @property
    def peer_error(self) -> RemoteProtocolError | None:
        """The peer's first breach of the protocol."""
        return self._connection.peer_error

    @property
    def mid_command(self) -> bool:
        """True while a command set has begun to arrive and is not whole."""
        return self._reader.mid_command

    # --- what arrives ----------------------------------------------------------------------------------------

    def connected(self) -> None:
        """The transport's word that the socket is open."""
        if self.on_connected is not None:
            self.on_connected()

    def closed(self) -> None:
        """The transport's word that the socket is gone."""
        if self.on_closed is not None:
            self.on_closed()

    def events_received(self, events: list[ConnectionEvent]) -> None:
        """Take the events of one read; fragments of one data set are joined, which is their only copy."""
        pieces: list[memoryview] = []
        for event in events:
            if type(event) is not Fragment:
                self._control_received(event)
                continue
            if self.ended is not None:
                continue
            try:
                item = self._reader.feed(event)
                if type(item) is DataSetFragment:
                    pieces.append(item.data)
                    if item.last:
                        self._data_received(pieces, last=True)
                        pieces.clear()
                elif type(item) is CommandReceived:
                    self._command_received(item)
            except RemoteProtocolError as error:
                self.break_off(error)
        if pieces:
            self._data_received(pieces, last=False)

    def _command_received(self, received: CommandReceived) -> None:
        command = received.command
        context = self.contexts.get(received.context_id)
        if context is None:
            raise RemoteProtocolError(
                f"presentation context {received.context_id} was not accepted", ABORT_UNEXPECTED_PDU_PARAMETER
            )
        self._incoming = DataStream(self._consumed, self._wait_for_data) if command.has_data_set else None
        if command.command_field == CommandField.C_CANCEL_RQ:
            self._cancel_received(command.message_id_being_responded_to)
            return
        # A C-CANCEL that came too late for an earlier operation does not concern a new one of the same Message ID.
        self.forget_cancel(command.message_id)
        self._inbox.append(Message(context, command, self._incoming))
        self._wake()
        if len(self._inbox) >= limits.RECEIVE_MAX_MESSAGES:
            self.transport.pause_reading()

    def _cancel_received(self, message_id: int | None) -> None:
        if self._incoming is not None:
            self._incoming.discard()  # PS3.7 9.3.2.3 gives it no data set, but one was announced
        if message_id is not None and len(self._cancelled) < 0xFF:
            self._cancelled.add(message_id)

    def _data_received(self, pieces: list[memoryview], *, last: bool) -> None:
        assert self._incoming is not None
        chunk = b"".join(pieces)
        self._unread += len(chunk)
        self._received += len(chunk)
        self._incoming.feed(chunk, last=last)
        if last:
            self._incoming = None
        if self._unread >= limits.RECEIVE_HIGH_WATER:
            self.transport.pause_reading()

    def _consumed(self, size: int) -> None:
        self._unread -= size
        self._resume_if_low()

    def _resume_if_low(self) -> None:
        if self._unread <= limits.RECEIVE_LOW_WATER and len(self._inbox) < limits.RECEIVE_MAX_MESSAGES // 2:
            self.transport.resume_reading()

    def _control_received(self, event: ConnectionEvent) -> None:
        match event:
            case AssociateConfirmation(answer):
                if not self._answer.done():
                    self._answer.set_result(answer)
                if isinstance(answer, pdu.AAssociateRJ):
                    self._end(AssociationReleased("the association was rejected"))
            case AssociateIndication(request):
                assert self.on_associate is not None
                self.on_associate(request)
            case ReleaseIndication():
                self._answer_release()
                self._end(AssociationReleased("the peer released the association"))
            case ReleaseConfirmation():
                self._answer_release()
                self._end(AssociationReleased("the association is released"))
            case AbortIndication(source, reason):
                self._end(AssociationAborted(source, reason))
            case ProviderAbortIndication(error):
                self._end(error or self._lost())

    def _lost(self) -> DulError:
        if self.transport.unreachable:
            return PeerTimeout("TCP acknowledgement", limits.SILENCE_TIMEOUT)
        return ConnectionLost("the peer closed the connection without a release")

    def _answer_release(self) -> None:
        if self._connection.may_answer_release:
            self._connection.send(pdu.AReleaseRP())
            self.transport.flush()

    def break_off(self, error: RemoteProtocolError) -> None:
        """The peer broke the protocol above the PDUs: A-ABORT with the error's reason."""
        events = self._connection.abort_for(error)
        self.transport.flush()
        for event in events:
            self._control_received(event)

    def _end(self, error: DulError) -> None:
        if self.ended is not None:
            return
        self.ended = error
        if self.on_ended is not None:
            self.on_ended()  # before those who wait are told, so that `is_waiting` still says who does
        if self._incoming is not None:
            self._incoming.fail(error)
        self._wake()
        if not self._answer.done():
            self._answer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- waiting ---------------------------------------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        """True while somebody waits for a message or for data, and so is told of the association's end there."""
        return any(not waiter.done() for waiter in self._waits)

    async def _wait(self, waiter: asyncio.Future[None], what: str, seconds: float, left: float | None = None) -> None:
        """Wait for `what`, which may take `seconds`, of which so many are `left`."""
        timer = self._loop.call_later(seconds if left is None else left, _expire, waiter, what, seconds)
        self._waits.add(waiter)
        try:
            await waiter
        except PeerTimeout:
            self.abort()
            raise
        finally:
            self._waits.discard(waiter)
            timer.cancel()

    async def _wait_for_data(self, waiter: asyncio.Future[None]) -> None:
        """Wait for more of the data set that is being read: no longer than the idle timeout until `limits.MIN_RATE` is
        reached again. Time that its reader spends elsewhere does not count.
        """
        if self._received - self._progress >= limits.MIN_RATE * self.timeouts.idle:
            self._progress, self._waited = self._received, 0.0
        started = self._loop.time()
        left = max(self.timeouts.idle - self._waited, 0.0)
        try:
            await self._wait(waiter, "further bytes of a data set", self.timeouts.idle, left)
        finally:
            self._waited += self._loop.time() - started

    async def receive(self, what: str, seconds: float) -> Message:
        """The next message; what is unread of the one before is dropped.

        Raises what ended the association, or `PeerTimeout` (and aborts) when `what` does not come in `seconds`.
        """
        if self._reading is not None:
            self._reading.discard()
            self._reading = None
        while not self._inbox:
            if self.ended is not None:
                raise self.ended
            self._waiter = self._loop.create_future()
            try:
                await self._wait(self._waiter, what, seconds)
            finally:
                self._waiter = None
        message = self._inbox.popleft()
        self._progress, self._waited = self._received, 0.0
        self._resume_if_low()
        self._reading = message.data
        return message

    async def associated(self) -> pdu.AAssociateAC | pdu.AAssociateRJ:
        """The peer's answer to our A-ASSOCIATE-RQ."""
        try:
            async with asyncio.timeout(self.timeouts.associate):
                await asyncio.wait([self._answer])
        except TimeoutError:
            self.abort()
            raise PeerTimeout("answer to the association request", self.timeouts.associate) from None
        if self._answer.cancelled():
            assert self.ended is not None
            raise self.ended
        return self._answer.result()

    def cancel_requested(self, message_id: int | None) -> bool:
        """True when the peer sent C-CANCEL for that operation."""
        return message_id in self._cancelled

    def forget_cancel(self, message_id: int | None) -> None:
        """The operation is over; its Message ID may come again."""
        self._cancelled.discard(message_id if message_id is not None else -1)

    # --- what goes out ---------------------------------------------------------------------------------------

    async def send(self, context_id: int, command: Command, data: bytes | AsyncIterable[bytes] | None = None) -> None:
        """Send a message; a command and a data set given as bytes go out in one write.

        Raises what ended the association, or `PeerTimeout` (and aborts) when the peer takes nothing for the idle
        timeout. When it is cancelled or `data` raises within a data set, the association is aborted.
        """
        self.check_open()
        buffers = self._connection.send_p_data(
            context_id, encode_command(command), command=True, last=True, maximum_length=self.send_limit
        )
        try:
            if isinstance(data, bytes):
                await self._send_data(context_id, data, last=True, before=buffers)
            else:
                await self._write(buffers)
                if data is not None:
                    await self._send_stream(context_id, data)
        except BaseException:
            self.abort()
            raise

    async def _send_stream(self, context_id: int, data: AsyncIterable[bytes]) -> None:
        held = b""
        try:
            async for chunk in data:
                if even := len(held) & ~1:  # PS3.8 E.1: fragments have an even number of bytes, and DCMTK insists
                    await self._send_data(context_id, held[:even], last=False)
                held = held[even:] + chunk
        finally:
            if isinstance(data, AsyncGenerator):
                await data.aclose()  # or the event loop would do so later, in a task of its own
        await self._send_data(context_id, held, last=True)

    async def _send_data(
        self, context_id: int, data: bytes, *, last: bool, before: list[bytes | memoryview] | None = None
    ) -> None:
        # Piece by piece: what waits to be sent stays bounded, and a slow peer is not taken for one that has stopped.
        buffers = before or []
        view = memoryview(data)
        for start in range(0, len(view) or 1, limits.SEND_HIGH_WATER):
            self.check_open()
            end = start + limits.SEND_HIGH_WATER
            buffers += self._connection.send_p_data(
                context_id,
                view[start:end],
                command=False,
                last=last and end >= len(view),
                maximum_length=self.send_limit,
            )
            await self._write(buffers)
            buffers = []

    async def _write(self, buffers: list[bytes | memoryview]) -> None:
        self.transport.write(buffers)
        await self.transport.drain(self.timeouts.idle)

    def send_soon(self, context_id: int, command: Command) -> None:
        """Send a command without waiting; for C-CANCEL and short responses."""
        self.check_open()
        self.transport.write(
            self._connection.send_p_data(
                context_id, encode_command(command), command=True, last=True, maximum_length=self.send_limit
            )
        )

    def check_open(self) -> None:
        """Raise what ended the association, if anything has."""
        if self.ended is not None:
            raise self.ended

    # --- the beginning and the end ---------------------------------------------------------------------------

    def accept(self, answer: pdu.AAssociateAC, contexts: Mapping[int, AcceptedContext]) -> None:
        """Accept the association that `on_associate` was called for."""
        self.contexts = contexts
        self._connection.send(answer)
        self.transport.flush()

    def reject(self, answer: pdu.AAssociateRJ) -> None:
        """Reject the association that `on_associate` was called for; the connection ends."""
        self._connection.send(answer)
        self.transport.flush()

    def abort(self) -> None:
        """A-ABORT now, if there is still an association; the socket is gone within a second."""
        if self._connection.state not in (State.Sta1, State.Sta2, State.Sta13):
            self._connection.send(pdu.AAbort(ABORT_SOURCE_USER, ABORT_REASON_NOT_SPECIFIED))
            self.transport.flush()
        self._end(AssociationAborted(ABORT_SOURCE_USER, 0, "this side aborted the association"))
        if self._connection.state is not State.Sta13:
            self.transport.close()

    async def release(self) -> None:
        """A-RELEASE, and the end of the connection; an abort if the peer does not agree in time. Never fails."""
        if self.ended is None and self._connection.state is State.Sta6:
            self._connection.send(pdu.AReleaseRQ())
            self.transport.flush()
        elif self.ended is None:
            self.abort()
        try:
            async with asyncio.timeout(self.timeouts.release):
                with contextlib.suppress(AssociationError, RemoteProtocolError):
                    while True:
                        await self.receive("answer to the release", self.timeouts.release)
                await self.transport.wait_closed()  # after a release collision, the peer's answer is still to come
        except TimeoutError:
            self.abort()
        except BaseException:
            self.abort()
            await self.transport.wait_closed()  # bounded, and a task that is cancelled leaves no socket
            raise
        await self.transport.wait_closed()


def _expire(waiter: asyncio.Future[None], what: str, seconds: float) -> None:
    if not waiter.done():
        waiter.set_exception(PeerTimeout(what, seconds))
