"""DICOM audit messages on their way to a receiver: syslog (RFC 5424) over TLS (RFC 5425) or UDP (RFC 5426).

One task sends what waits, in order, and connects anew when it has to. Syslog has no acknowledgement: what was written
to a connection that the receiver had just lost is lost with it, and over UDP nothing is ever known.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections import deque
from typing import Final, Protocol, cast

from proxy import PRODUCT
from proxy.config.security import Syslog
from proxy.logs import SparingLog
from proxy.security.audit.dicom_message import Message
from proxy.security.audit.events import Outcome
from proxy.security.audit.record import timestamp

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 10_000
"""Messages that wait while the receiver cannot be reached: about 20 MB."""

SEND_SECONDS: Final = 10.0
"""How long a connection may take to be made, and a message to be taken."""

LONGEST_PAUSE: Final = 30.0
"""Seconds between tries at most; they double from one second on."""

REFUSAL_SECONDS: Final = 0.2
"""How long nothing is sent on a new connection: who does not like the proxy's certificate says so only when for the
proxy the handshake is over (TLS 1.3), and what was sent by then would be lost."""

STOP_SECONDS: Final = 1.0
"""How long the last messages have to be sent at the end."""

CLOSE_SECONDS: Final = 0.5
"""How long a receiver may take to say that it has seen the end (RFC 5425 4.4)."""

FACILITY: Final = 10  # security/authorization messages, as PS3.15 A.6 asks for
MSGID: Final = "DICOM+RFC3881"
SEVERITY: Final = {
    Outcome.SUCCESS: 5,
    Outcome.MINOR_FAILURE: 4,
    Outcome.SERIOUS_FAILURE: 3,
    Outcome.MAJOR_FAILURE: 2,
}
"""Notice, warning, error, critical (RFC 5424 6.2.1)."""


class SyslogSettingsError(Exception):
    """The files of `audit.syslog` cannot be used."""


def syslog_message(message: Message, host: str, seconds: float) -> bytes:
    """Put a message behind the header of RFC 5424 6; `host` is this machine's name, `seconds` are since 1970."""
    priority = FACILITY * 8 + SEVERITY[message.outcome]
    name = "".join(letter for letter in host if "!" <= letter <= "~")[:255] or "-"
    header = f"<{priority}>1 {timestamp(seconds)} {name} {PRODUCT} {os.getpid()} {MSGID} - "
    return header.encode() + message.xml


def tls_context(settings: Syslog) -> ssl.SSLContext:
    """The client side of TLS towards the receiver. Raises `SyslogSettingsError`, which names the key."""
    key = "caFile"
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        key = "certFile, keyFile"
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise SyslogSettingsError(f"audit.syslog.{key}: cannot be used: {reason}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = settings.check_hostname
    return context


class _Connection(Protocol):
    @property
    def is_open(self) -> bool:
        """False when the receiver has closed it in good order. Raises OSError when it broke off."""

    async def send(self, message: bytes) -> None:
        """Raises OSError when it cannot be sent."""

    async def close(self) -> None: ...


class _Tls:
    """RFC 5425: each message behind its length."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def check(self) -> None:
        """Raise OSError when the receiver ends the connection right at its beginning."""
        try:
            async with asyncio.timeout(REFUSAL_SECONDS):
                if not await self._reader.read(1):
                    raise ConnectionResetError("the receiver closes the connection at once")
        except TimeoutError:
            return
        except BaseException:
            self._writer.transport.abort()
            raise

    @property
    def is_open(self) -> bool:
        if (error := self._reader.exception()) is not None:
            raise error
        return not self._reader.at_eof() and not self._writer.is_closing()

    async def send(self, message: bytes) -> None:
        self._writer.write(b"%d %b" % (len(message), message))
        if self._writer.transport.get_write_buffer_size():
            async with asyncio.timeout(SEND_SECONDS):
                await self._writer.drain()

    async def close(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()


class _Udp(asyncio.DatagramProtocol):
    """RFC 5426: each message a datagram. What becomes of it is not known; that nobody listens, often is."""

    def __init__(self, log: SparingLog) -> None:
        self._log = log
        self._transport: asyncio.DatagramTransport | None = None
        self._closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()

    def error_received(self, exc: Exception) -> None:
        """Of an earlier datagram: nothing listens, or it was too large for the network."""
        self._log.warning(f"an audit message was lost: {exc}")

    @property
    def is_open(self) -> bool:
        return True

    async def send(self, message: bytes) -> None:
        assert self._transport is not None
        self._transport.sendto(message)

    async def close(self) -> None:
        assert self._transport is not None
        self._transport.abort()  # what is not out by now will not be
        await self._closed.wait()


class Sender:
    """Sends messages to one receiver. `start` and `stop` are its task's beginning and end."""

    def __init__(self, settings: Syslog) -> None:
        """Raises `SyslogSettingsError`."""
        self._settings = settings
        self._context = tls_context(settings) if settings.protocol == "tls" else None
        self._waiting: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._lost = 0
        self._log = SparingLog(logger)
        self._connection: _Connection | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def _name(self) -> str:
        return f"{self._settings.host} port {self._settings.receiver_port}"

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._run())

    def put(self, message: bytes) -> None:
        """Have a message sent. Returns at once."""
        if len(self._waiting) >= MAX_WAITING:
            if not self._lost:
                logger.error("audit messages for %s are lost: %d wait already", self._name, MAX_WAITING)
            self._lost += 1
            return
        self._waiting.append(message)
        self._all_sent.clear()
        self._arrived.set()

    async def stop(self) -> None:
        """Send what waits, for `STOP_SECONDS` at most, and close the connection."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self._all_sent.wait()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._waiting:
            logger.error("%d audit messages for %s were not sent", len(self._waiting), self._name)
        await self._disconnect()

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._arrived.wait()
            try:
                await self._send_all()
                self._tell_how_it_went(failures)
                failures = 0
            except (OSError, TimeoutError) as error:
                await self._disconnect()
                if not failures:
                    logger.error("audit messages do not reach %s: %s; it is tried again", self._name, _reason(error))
                failures += 1
                await asyncio.sleep(min(2.0 ** (failures - 1), LONGEST_PAUSE))

    async def _send_all(self) -> None:
        while self._waiting:
            if self._connection is not None and not self._connection.is_open:
                await self._disconnect()  # receivers close what is idle; that is no failure
            if self._connection is None:
                async with asyncio.timeout(SEND_SECONDS):
                    self._connection = await self._connect()
            await self._connection.send(self._waiting[0])
            self._waiting.popleft()
        self._arrived.clear()
        self._all_sent.set()

    async def _connect(self) -> _Connection:
        host, port = self._settings.host, self._settings.receiver_port
        if self._context is None:
            loop = asyncio.get_running_loop()
            _, protocol = await loop.create_datagram_endpoint(lambda: _Udp(self._log), remote_addr=(host, port))
            return protocol
        connection = _Tls(*await asyncio.open_connection(host, port, ssl=self._context))
        await connection.check()
        return connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _tell_how_it_went(self, failures: int) -> None:
        if failures:
            logger.warning("audit messages reach %s again", self._name)
        if self._lost:
            logger.error("%d audit messages for %s were lost", self._lost, self._name)
            self._lost = 0


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {SEND_SECONDS:g} s"
    return str(error) or "the connection broke off"
