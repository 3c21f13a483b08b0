"""The asyncio side of one connection: socket options, the read buffer, timers, back-pressure, closing.

It drives a `Connection` and hands its events to a `Receiver`. It knows nothing of DIMSE.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from typing import Protocol, cast

from dul import limits
from dul.connection import Connection, ConnectionEvent
from dul.errors import ConnectionLost, PeerTimeout, RemoteProtocolError
from dul.statemachine import State

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # Linux only
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux only

_UNREACHABLE = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH})


class _Shared(threading.local):
    """The read buffer of all connections of a thread, and so of its event loop.

    What is read is dealt with before the loop reads from another socket. One for each connection would be more memory
    than all else that a connection takes, and the allocator does not give it all back.
    """

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(limits.READ_BUFFER))


_shared = _Shared()


class Receiver(Protocol):
    """Who gets the events of a transport."""

    @property
    def mid_command(self) -> bool:
        """True while a command set has begun to arrive and is not whole; it is timed like a PDU then."""

    def connected(self) -> None:
        """The socket is open, `peer_host` known."""

    def closed(self) -> None:
        """The socket is gone; called last."""

    def events_received(self, events: list[ConnectionEvent]) -> None:
        """Called within the read; fragments must be copied before it returns."""


class Transport(asyncio.BufferedProtocol):
    """One connection. All its state belongs to the event loop's thread."""

    def __init__(
        self,
        connection: Connection,
        receiver: Receiver,
        *,
        artim: float = limits.ARTIM,
        pdu_timeout: float = limits.PDU_TIMEOUT,
    ) -> None:
        self._connection = connection
        self._receiver = receiver
        self._artim = artim
        self._pdu_timeout = pdu_timeout
        self._loop = asyncio.get_running_loop()
        self._buffer = _shared.buffer
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._artim_starts = 0
        self._pdu_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._unanswered = 0  # bytes that were written since something was read
        self._reading_paused = False
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self.peer_host = ""
        """The peer's address, without its port; empty until connected."""
        self.unreachable = False
        """True once the connection has ended because nothing came from the peer's machine any more."""

    # --- asyncio's callbacks ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass of it
        self._transport.set_write_buffer_limits(high=limits.SEND_HIGH_WATER)
        self.peer_host = str((transport.get_extra_info("peername") or ("",))[0])
        self._socket = transport.get_extra_info("socket")
        if self._socket is not None and self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _notice_silence(self._socket)
        else:
            self._socket = None
        self._connection.connected()
        self._rearm_quickack()
        self.flush()
        self._receiver.connected()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._rearm_quickack()  # first of all: the peer may wait for this ACK while we work
        if self._unanswered:
            self._note_unanswered(0)
        events = self._connection.receive_data(self._buffer[:nbytes])
        self.flush()
        if events:
            self._receiver.events_received(events)
        self._watch_pdu()

    def eof_received(self) -> bool:
        return False  # a half-closed association is of no use: close, and connection_lost follows

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closed.done():
            return  # `give_up` has said so
        self._closed.set_result(None)
        self._socket = None
        self.unreachable = isinstance(exc, OSError) and exc.errno in _UNREACHABLE
        for timer in (self._timer, self._pdu_timer, self._close_timer):
            if timer is not None:
                timer.cancel()
        events = self._connection.disconnected()
        self.resume_writing()
        if events:
            self._receiver.events_received(events)
        self._receiver.closed()

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # --- for the layer above ---------------------------------------------------------------------------------

    @property
    def opened(self) -> bool:
        """True once the socket was open, also after it was closed."""
        return self._transport is not None

    def give_up(self) -> None:
        """Connecting was cancelled, and the event loop closes the socket; uvloop does so without a word."""
        if self._transport is not None:
            self.connection_lost(None)

    @property
    def _open_transport(self) -> asyncio.Transport | None:
        transport = self._transport
        return None if transport is None or self._closed.done() or transport.is_closing() else transport

    async def wait_closed(self) -> None:
        """Return when the socket, if there ever was one, is gone; bounded, since every way to close has a timer."""
        if self._transport is not None:
            await asyncio.shield(self._closed)

    def pause_reading(self) -> None:
        """Let TCP hold the peer back; may be called twice."""
        if not self._reading_paused and (transport := self._open_transport) is not None:
            transport.pause_reading()
            self._reading_paused = True
            self._watch_pdu()

    def resume_reading(self) -> None:
        """Undo `pause_reading`; may be called twice."""
        if self._reading_paused and (transport := self._open_transport) is not None:
            transport.resume_reading()
            self._reading_paused = False
            self._watch_pdu()

    def write(self, buffers: list[bytes | memoryview]) -> None:
        """Write what belongs to one message with one call; `ConnectionLost` when there is nothing to write to."""
        if (transport := self._open_transport) is None:
            raise ConnectionLost("the connection is closed")
        self._note_unanswered(self._unanswered + sum(map(len, buffers)))
        transport.writelines(buffers)

    async def drain(self, seconds: float) -> None:
        """Wait until the peer has read enough to go on; `PeerTimeout` after `seconds` without any."""
        if self._drained is None:
            return
        drained = self._drained
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(drained)
        except TimeoutError:
            raise PeerTimeout("progress in sending", seconds) from None

    def flush(self) -> None:
        """Carry out what the connection wants after a call to it: bytes, the ARTIM timer, closing."""
        connection = self._connection
        if self._transport is None or self._closed.done():
            return
        if (data := connection.data_to_send()) and (transport := self._open_transport) is not None:
            transport.write(data)
        if connection.must_close:
            self.close()
        elif connection.artim_starts != self._artim_starts:
            self._artim_starts = connection.artim_starts
            self._start_artim()
        elif self._timer is not None and not connection.artim_running:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Close once what is written has gone out, or shortly after at the latest."""
        if self._transport is None or self._closed.done():
            return
        self._transport.close()
        if self._close_timer is None:
            self._close_timer = self._loop.call_later(limits.ARTIM_CLOSE, self._transport.abort)

    # --- timers ----------------------------------------------------------------------------------------------

    def _start_artim(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        closing = self._connection.state is State.Sta13
        self._timer = self._loop.call_later(limits.ARTIM_CLOSE if closing else self._artim, self._artim_expired)
        if closing:
            self.resume_reading()  # or the peer's close would never be seen

    def _artim_expired(self) -> None:
        self._timer = None
        events = self._connection.artim_expired()
        self.flush()
        if events:
            self._receiver.events_received(events)

    def _watch_pdu(self) -> None:
        begun = self._connection.mid_control_pdu or self._receiver.mid_command
        if not begun or self._reading_paused:  # while we do not read, the delay is ours
            if self._pdu_timer is not None:
                self._pdu_timer.cancel()
                self._pdu_timer = None
        elif self._pdu_timer is None:
            self._pdu_timer = self._loop.call_later(self._pdu_timeout, self._pdu_expired)

    def _pdu_expired(self) -> None:
        self._pdu_timer = None
        error = RemoteProtocolError(f"a PDU or command set was not whole after {self._pdu_timeout:g} s")
        events = self._connection.abort_for(error)
        self.flush()
        if events:
            self._receiver.events_received(events)

    def _rearm_quickack(self) -> None:
        # The kernel clears the flag by itself. Without it, a peer that leaves Nagle's algorithm on waits for our
        # delayed ACK, 40 ms for each message.
        self._set_option(_QUICKACK, 1)

    def _note_unanswered(self, size: int) -> None:
        # Linux takes a peer that acknowledges but does not read for one that is gone. Whoever may be slow to take what
        # is sent has the time that `drain`, and who waits for the answer, give it.
        patient = size > limits.SURELY_TAKEN
        if patient != (self._unanswered > limits.SURELY_TAKEN):
            self._set_option(_USER_TIMEOUT, 0 if patient else limits.SILENCE_TIMEOUT * 1000)
        self._unanswered = size

    def _set_option(self, option: int | None, value: int) -> None:
        if self._socket is not None and option is not None:
            try:
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
            except OSError:
                self._socket = None  # closed meanwhile


def _notice_silence(connected: socket.socket) -> None:
    """Have the kernel end the connection when nothing comes from the peer's machine any more, not even an ACK."""
    options = {
        "TCP_KEEPIDLE": limits.KEEPALIVE_IDLE,
        "TCP_KEEPINTVL": limits.KEEPALIVE_INTERVAL,
        "TCP_KEEPCNT": limits.KEEPALIVE_PROBES,
        "TCP_USER_TIMEOUT": limits.SILENCE_TIMEOUT * 1000,
    }
    with contextlib.suppress(OSError):  # some systems say so here when the peer has gone already
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):  # not all systems have all of them
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
