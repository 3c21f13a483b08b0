"""The acceptor: listens, admits, caps, hands each association to its services, drains.

Every association is a task owned by its `Server`; none outlives `close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl as ssl_module
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

from dul import items, limits, pdu
from dul.channel import Channel, Timeouts
from dul.connection import Connection
from dul.errors import (
    REASON_APPLICATION_CONTEXT_NAME_NOT_SUPPORTED,
    REASON_CALLED_AE_TITLE_NOT_RECOGNIZED,
    REASON_LOCAL_LIMIT_EXCEEDED,
    REJECTED_PERMANENT,
    REJECTED_TRANSIENT,
    SOURCE_PROVIDER_PRESENTATION,
    SOURCE_SERVICE_USER,
    DulError,
    RemoteProtocolError,
    describe_rejection,
)
from dul.flood import QuietLog, TokenBuckets
from dul.handshake import describe_failure
from dul.listener import Listener
from dul.negotiation import TransferSyntaxPolicy, accept_all_storage, answer_request, send_limit
from dul.services import Handler, Services

logger = logging.getLogger("dul")

_OVER_LIMIT = pdu.AAssociateRJ(REJECTED_TRANSIENT, SOURCE_PROVIDER_PRESENTATION, REASON_LOCAL_LIMIT_EXCEEDED)

Admission = Callable[[pdu.AAssociateRQ, str], pdu.AAssociateRJ | TransferSyntaxPolicy | None]
"""Decides on a request from a host address: None admits it, and so does a policy, which then counts for it."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """How many connections with an association a server holds; further ones are rejected: "local limit exceeded".

    Twice as many connections are held at most, with or without an association; those of one address beyond are rejected
    unheard. Of all addresses together, who comes takes the place of one whose request for an association is overdue, so
    that silent connections from several addresses keep nobody out. `arrivals_at_once` and `arrivals_per_second` say how
    many connections one address may open, whatever becomes of them; those beyond are closed.
    """

    connections: int = limits.MAX_CONNECTIONS
    connections_per_host: int = limits.MAX_CONNECTIONS_PER_HOST
    arrivals_at_once: int = limits.ARRIVALS_AT_ONCE
    arrivals_per_second: float = limits.ARRIVALS_PER_SECOND


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A connection whose request has not come yet: from where, what establishes it, and since when."""

    host: str
    establishing: asyncio.Task[None]
    since: float


class Server:
    """A listening application entity. Use `serve`."""

    def __init__(
        self,
        handler: Handler,
        *,
        ae_title: str | Collection[str],
        supported: TransferSyntaxPolicy = accept_all_storage,
        admit: Admission | None = None,
        timeouts: Timeouts | None = None,
        server_limits: ServerLimits | None = None,
        artim: float = limits.ARTIM,
    ) -> None:
        self._handler = handler
        self._ae_titles = frozenset((ae_title,) if isinstance(ae_title, str) else ae_title)
        self._supported = supported
        self._admit = admit
        self._timeouts = timeouts or Timeouts()
        self._limits = server_limits or ServerLimits()
        self._artim = artim
        self._arrivals = TokenBuckets(self._limits.arrivals_at_once, self._limits.arrivals_per_second)
        self._log = QuietLog(logger)
        self._ssl: ssl_module.SSLContext | None = None
        self._listener: Listener | None = None
        self._port = 0
        self._channels: set[Channel] = set()
        self._hosts: Counter[str] = Counter()  # connections by address, from accept to the end
        self._admitted: set[Channel] = set()
        self._arriving: set[asyncio.Task[None]] = set()
        self._waiting: dict[Channel, _Waiting] = {}  # the oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def port(self) -> int:
        """The port that is, or was, listened on."""
        return self._port

    @property
    def association_count(self) -> int:
        """Associations that are being served now."""
        return len(self._tasks)

    @property
    def connection_count(self) -> int:
        """Open connections, with or without an association."""
        return self._hosts.total()

    async def start(self, host: str, port: int, ssl: ssl_module.SSLContext | None = None) -> None:
        """Listen; `OSError` when the address cannot be had. Port 0 takes any free one."""
        self._ssl = ssl
        self._listener = Listener(self._arrived)
        await self._listener.open(host, port)
        self._port = self._listener.port

    def use_tls(self, ssl: ssl_module.SSLContext) -> None:
        """Speak TLS by another context from the next connection on; for a server that was started with one."""
        self._ssl = ssl

    async def close(self, drain: float = 0.0) -> None:
        """Listen no more, give associations `drain` seconds to end by themselves, then abort them."""
        self._closing = True
        if self._listener is not None:
            self._listener.close()
        await asyncio.sleep(0)  # those that arrived last have begun, and can be ended
        for arriving in list(self._arriving):
            arriving.cancel()
        await asyncio.gather(*self._arriving, return_exceptions=True)
        try:
            if self._tasks and drain > 0:
                await asyncio.wait(self._tasks, timeout=drain)
        finally:
            for channel in list(self._channels):
                channel.abort()
            for task in list(self._tasks):
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(channel.transport.wait_closed() for channel in self._channels))

    # --- one connection --------------------------------------------------------------------------------------

    def _arrived(self, accepted: socket.socket, host: str) -> None:
        if self._arrivals.take(host) is None:
            accepted.close()
            self._log.warn_of(host, "a connection from %s was closed: it opens too many in too short a time", host)
            return
        # To be rejected properly a request has to be read first; beyond twice a cap not even that is waited for.
        caps = self._limits
        is_full = self._hosts.total() >= 2 * caps.connections
        if self._hosts[host] >= 2 * caps.connections_per_host or (is_full and not self._make_room()):
            self._turn_away(accepted)
            self._log.warn_of(host, "a connection from %s was turned away: too many are open", host)
            return
        self._hosts[host] += 1
        task = asyncio.get_running_loop().create_task(self._establish(accepted, host))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    def _make_room(self) -> bool:
        """Close a connection whose request is overdue: the oldest of the address that has most of those."""
        now = asyncio.get_running_loop().time()
        overdue = {each: of for each, of in self._waiting.items() if now - of.since > limits.REQUEST_OVERDUE}
        if not overdue:
            return False
        crowd, _ = Counter(of.host for of in overdue.values()).most_common(1)[0]
        channel = next(each for each, of in overdue.items() if of.host == crowd)
        establishing = self._waiting.pop(channel).establishing
        if establishing.done():
            channel.abort()
        else:
            establishing.cancel()  # within its TLS handshake
        self._log.warn_of(crowd, "a connection from %s was closed: it asks for nothing, and too many are open", crowd)
        return True

    def _turn_away(self, accepted: socket.socket) -> None:
        """Close at once, in clear text with the answer that the request would get."""
        if self._ssl is None:
            with contextlib.suppress(OSError):
                accepted.recv(limits.READ_BUFFER)  # or closing would reset the connection, and the answer be lost
            with contextlib.suppress(OSError):
                accepted.send(pdu.encode(_OVER_LIMIT))
        accepted.close()

    async def _establish(self, accepted: socket.socket, host: str) -> None:
        channel = Channel(Connection(requestor=False), self._timeouts, artim=self._artim)
        channel.on_associate = lambda request: self._associate(channel, request)
        channel.on_connected = lambda: self._channels.add(channel)
        channel.on_closed = lambda: self._closed(channel, host)
        establishing = asyncio.current_task()
        assert establishing is not None
        self._waiting[channel] = _Waiting(host, establishing, asyncio.get_running_loop().time())
        # The ARTIM timer starts when there is a transport connection: with TLS, only after the handshake.
        handshake = min(self._artim, limits.TLS_HANDSHAKE_TIMEOUT) if self._ssl is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: channel.transport, accepted, ssl=self._ssl, ssl_handshake_timeout=handshake
            )
        except asyncio.CancelledError:
            channel.transport.give_up()
            raise
        except ConnectionResetError:
            pass  # it left within the handshake, as some health checks do
        except OSError as error:
            self._log.warn_of(host, "no TLS connection with %s: %s", host, describe_failure(error))
        finally:
            if not channel.transport.opened:
                self._forget(channel, host)

    def _forget(self, channel: Channel, host: str) -> None:
        self._waiting.pop(channel, None)
        self._hosts[host] -= 1
        if self._hosts[host] <= 0:
            del self._hosts[host]

    def _closed(self, channel: Channel, host: str) -> None:
        self._channels.discard(channel)
        self._admitted.discard(channel)
        self._forget(channel, host)
        if channel.peer_error is not None:
            self._log.warn_of(host, "connection from %s broke off: %s", host, channel.peer_error)

    def _associate(self, channel: Channel, request: pdu.AAssociateRQ) -> None:
        self._waiting.pop(channel, None)
        try:
            decision = self._check(channel, request)
            if not isinstance(decision, pdu.AAssociateRJ):
                channel.send_limit = send_limit(request.user_information)
        except RemoteProtocolError as error:
            channel.break_off(error)
            return
        if isinstance(decision, pdu.AAssociateRJ):
            host = channel.transport.peer_host
            self._log.warn_of(
                host,
                "association from %s rejected: %s",
                host,
                describe_rejection(decision.result, decision.source, decision.reason),
            )
            channel.reject(decision)
            return
        answer, contexts = answer_request(request, decision or self._supported)
        channel.accept(answer, contexts)
        self._admitted.add(channel)
        task = asyncio.get_running_loop().create_task(self._serve(channel, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        channel.on_ended = lambda: self._association_ended(channel, task)

    def _check(self, channel: Channel, request: pdu.AAssociateRQ) -> pdu.AAssociateRJ | TransferSyntaxPolicy | None:
        host = channel.transport.peer_host
        of_host = sum(other.transport.peer_host == host for other in self._admitted)
        over = len(self._admitted) >= self._limits.connections or of_host >= self._limits.connections_per_host
        if over or self._closing:
            return _OVER_LIMIT
        if request.application_context != items.APPLICATION_CONTEXT:
            return _reject(REASON_APPLICATION_CONTEXT_NAME_NOT_SUPPORTED)
        if request.called_ae_title not in self._ae_titles:
            return _reject(REASON_CALLED_AE_TITLE_NOT_RECOGNIZED)
        return self._admit(request, host) if self._admit is not None else None

    async def _serve(self, channel: Channel, request: pdu.AAssociateRQ) -> None:
        services = Services(channel, self._handler, request.calling_ae_title)
        try:
            await services.run()
        except DulError as error:
            logger.info("association from %s ended: %s", channel.transport.peer_host, error)
        except asyncio.CancelledError:
            if channel.ended is None:
                raise  # the server is closing; otherwise the association's end has stopped its handler
        finally:
            if channel.ended is None:
                channel.abort()

    @staticmethod
    def _association_ended(channel: Channel, task: asyncio.Task[None]) -> None:
        # A handler that waits for the association will be told there; one that waits elsewhere is stopped.
        if not channel.is_waiting and task is not asyncio.current_task():
            task.cancel()


def _reject(reason: int) -> pdu.AAssociateRJ:
    return pdu.AAssociateRJ(REJECTED_PERMANENT, SOURCE_SERVICE_USER, reason)


@contextlib.asynccontextmanager
async def serve(
    handler: Handler,
    host: str,
    port: int,
    *,
    ae_title: str | Collection[str],
    supported: TransferSyntaxPolicy = accept_all_storage,
    admit: Admission | None = None,
    timeouts: Timeouts | None = None,
    server_limits: ServerLimits | None = None,
    artim: float = limits.ARTIM,
    ssl: ssl_module.SSLContext | None = None,
) -> AsyncIterator[Server]:
    """Listen as an application entity for as long as the `async with` lasts.

    `ae_title` is the only called AE title that is taken, or a collection of all of them. `admit` may reject a request
    by its contents and host, or say what that caller may send in the place of `supported`.
    """
    server = Server(
        handler,
        ae_title=ae_title,
        supported=supported,
        admit=admit,
        timeouts=timeouts,
        server_limits=server_limits,
        artim=artim,
    )
    await server.start(host, port, ssl)
    try:
        yield server
    finally:
        await server.close()
