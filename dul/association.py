"""The requestor's side: open an association, and use its services as SCU (PS3.7 9.1).

One operation at a time runs on an association. One that is left early (a `break`, an exception, a cancelled task) is
ended by C-CANCEL before anything else happens on the association, or by an abort if the peer ignores that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl as ssl_module
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dul import pdu, uids
from dul.channel import Channel, Timeouts
from dul.connection import Connection
from dul.dimse import Command, CommandField, next_message_id
from dul.errors import (
    AssociationRejected,
    ConnectError,
    ConnectionLost,
    DulError,
    NoPresentationContext,
    PeerTimeout,
    RemoteProtocolError,
)
from dul.instances import Instance, store_request
from dul.items import UserItem
from dul.negotiation import (
    AcceptedContext,
    Context,
    accepted_contexts,
    build_request,
    find_context,
    send_limit,
)
from dul.operations import FindOperation, GetOperation, Identifier, MoveOperation, Operation, check_status


@dataclass(frozen=True, slots=True)
class Peer:
    """The application entity to be called, and the title we call ourselves."""

    host: str
    port: int
    ae_title: str
    calling_ae_title: str


class Association:
    """An open association, as its requestor. Made by `connect` or `open_association`."""

    def __init__(self, channel: Channel, peer: Peer, contexts: Mapping[int, AcceptedContext]) -> None:
        self._channel = channel
        self._operation: Operation | None = None
        self.peer = peer
        self.contexts = contexts
        self.answered = False
        """True once the peer has answered a request, or has sent one of its own within a C-GET."""

    @property
    def channel(self) -> Channel:
        """The messages below the services."""
        return self._channel

    @property
    def is_open(self) -> bool:
        """False once it was released, aborted or lost."""
        return self._channel.ended is None

    @property
    def is_settled(self) -> bool:
        """False while an operation runs or was left early; `settle` ends it."""
        return self._operation is None or self._operation.finished

    def context_for(self, abstract_syntax: str, transfer_syntax: str | None = None) -> AcceptedContext:
        """The accepted context; `NoPresentationContext` when there is none."""
        context = find_context(self.contexts, abstract_syntax, transfer_syntax)
        if context is None:
            raise NoPresentationContext(abstract_syntax, transfer_syntax)
        return context

    # --- services --------------------------------------------------------------------------------------------

    async def echo(self) -> None:
        """C-ECHO (PS3.7 9.1.5); `StatusError` unless the status is Success."""
        operation = Operation(self, uids.VERIFICATION, CommandField.C_ECHO_RQ)
        await operation.start()
        response = await operation.response("C-ECHO response", self._channel.timeouts.response)
        operation.finish()
        check_status("C-ECHO", response)

    def find(self, identifier: Identifier, *, model: str = uids.STUDY_ROOT_FIND) -> FindOperation:
        """C-FIND (PS3.7 9.1.2): an async iterator over the matches; `StatusError` when it fails."""
        return FindOperation(self, model, CommandField.C_FIND_RQ, identifier)

    def move(self, identifier: Identifier, *, destination: str, model: str = uids.STUDY_ROOT_MOVE) -> MoveOperation:
        """C-MOVE (PS3.7 9.1.4): an async iterator over the responses, the final one included.

        A final status of class Failure is raised as `StatusError`; its counters stay in `.progress`. Its `message_id`
        is what the C-STORE sub-operations name as their originator.
        """
        return MoveOperation(self, model, CommandField.C_MOVE_RQ, identifier, destination)

    def get(self, identifier: Identifier, *, model: str = uids.STUDY_ROOT_GET) -> GetOperation:
        """C-GET (PS3.7 9.1.3): an async iterator over the instances, each to be read before the next is asked for.

        Counters are in `.progress`; a final status of class Failure is raised as `StatusError`.
        """
        return GetOperation(self, model, CommandField.C_GET_RQ, identifier)

    async def store(self, instance: Instance, *, move_originator: tuple[str, int] | None = None) -> int:
        """C-STORE (PS3.7 9.1.1); returns the status, whatever its class.

        `move_originator` is the AE title and Message ID of the C-MOVE that this is a sub-operation of.
        `NoPresentationContext` when the peer takes no such SOP class in this transfer syntax.
        """
        await self.settle()
        context = self.context_for(instance.sop_class_uid, instance.transfer_syntax)
        message_id = next_message_id()
        request = store_request(instance, message_id, move_originator)
        await self._channel.send(context.context_id, request, instance.open())
        try:
            response = await self._channel.receive("C-STORE response", self._channel.timeouts.response)
        except BaseException:
            self.abort()  # PS3.7 defines no C-CANCEL for C-STORE
            raise
        self.check_response(response.command, CommandField.C_STORE_RSP, message_id)
        return response.command.status or 0

    def check_response(self, command: Command, field: int, message_id: int) -> None:
        """`RemoteProtocolError`, and an abort, when a response is not the one that was waited for."""
        if command.command_field != field or command.message_id_being_responded_to != message_id:
            self.abort()
            raise RemoteProtocolError(f"a {command.name} that answers nothing that was asked")
        if command.status is None:
            self.abort()
            raise RemoteProtocolError(f"a {command.name} without a status")
        self.answered = True

    # --- its life --------------------------------------------------------------------------------------------

    async def begin(self, operation: Operation) -> None:
        """Make `operation` the one that runs, after the one before it has been ended."""
        await self.settle()
        self._operation = operation

    async def settle(self) -> None:
        """End the operation that was left early, if any: C-CANCEL, then its final response, or else an abort."""
        operation, self._operation = self._operation, None
        if operation is not None and not operation.finished:
            await operation.cancel()

    async def release(self) -> None:
        """Settle, then A-RELEASE; an abort when the peer does not go along. Never raises for the peer's sake."""
        try:
            await self.settle()
        except DulError:
            self.abort()
        except BaseException:
            self.abort()
            raise
        await self._channel.release()

    def abort(self) -> None:
        """A-ABORT at once."""
        self._channel.abort()

    async def wait_closed(self) -> None:
        """Return when the socket is gone."""
        await self._channel.transport.wait_closed()


# --- opening -------------------------------------------------------------------------------------------------


async def open_association(
    peer: Peer,
    contexts: Sequence[Context],
    *,
    timeouts: Timeouts | None = None,
    ssl: ssl_module.SSLContext | None = None,
    user_items: Iterable[UserItem] = (),
) -> Association:
    """Connect and negotiate; the caller has to `release` or `abort` what it gets.

    Raises `ConnectError`, `PeerTimeout`, `AssociationRejected`, `AssociationAborted`, `ConnectionLost` or
    `RemoteProtocolError`; no socket is left behind then, nor when the task is cancelled.
    """
    timeouts = timeouts or Timeouts()
    connection = Connection(requestor=True)
    request = build_request(peer.ae_title, peer.calling_ae_title, contexts, user_items)
    connection.associate(request)
    channel = Channel(connection, timeouts)
    try:
        await _connect(channel, peer, ssl, timeouts.connect)
        answer = await channel.associated()
        if isinstance(answer, pdu.AAssociateRJ):
            raise AssociationRejected(answer.result, answer.source, answer.reason)
        channel.send_limit = send_limit(answer.user_information)
        channel.contexts = accepted_contexts(request, answer)
    except BaseException as error:
        channel.abort()
        await channel.transport.wait_closed()
        if type(error) is ConnectionLost:
            hint = "it may want TLS" if ssl is None else "it may not trust this side's certificate"
            raise ConnectionLost(f"the peer closed the connection without answering the request; {hint}") from error
        raise
    return Association(channel, peer, channel.contexts)


async def _connect(channel: Channel, peer: Peer, ssl: ssl_module.SSLContext | None, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            await loop.create_connection(lambda: channel.transport, peer.host, peer.port, ssl=ssl)
    except TimeoutError:
        channel.transport.give_up()
        raise PeerTimeout("TCP connection" if ssl is None else "TLS connection", seconds) from None
    except asyncio.CancelledError:
        channel.transport.give_up()
        raise
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
        kind = "connection" if ssl is None else "TLS connection"
        raise ConnectError(f"no {kind} to {peer.host} port {peer.port}: {_reason(error)}") from error


def _reason(error: OSError | UnicodeError) -> str:
    # asyncio says "Connect call failed" for every cause; the number says which. Others have numbers of their own.
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror | ssl_module.SSLError):
        return os.strerror(error.errno)
    return str(getattr(error, "strerror", None) or error)


@contextlib.asynccontextmanager
async def connect(
    peer: Peer,
    contexts: Sequence[Context],
    *,
    timeouts: Timeouts | None = None,
    ssl: ssl_module.SSLContext | None = None,
    user_items: Iterable[UserItem] = (),
) -> AsyncIterator[Association]:
    """`open_association` for `async with`: released at the end, or aborted; nothing outlives it."""
    association = await open_association(peer, contexts, timeouts=timeouts, ssl=ssl, user_items=user_items)
    try:
        yield association
    finally:
        await association.release()
