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
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dul import dimse, pdu, uids
from dul.channel import Channel, Message, Timeouts
from dul.connection import Connection
from dul.dimse import Command, CommandField, StatusClass, next_message_id, status_class
from dul.errors import (
    AssociationRejected,
    ConnectError,
    DulError,
    NoPresentationContext,
    PeerTimeout,
    RemoteProtocolError,
    StatusError,
)
from dul.instances import IncomingStore, Instance, store_request
from dul.items import UserItem
from dul.negotiation import (
    AcceptedContext,
    Context,
    accepted_contexts,
    build_request,
    find_context,
    send_limit,
)

Identifier = bytes | Callable[[str], bytes]
"""An encoded identifier, or a function that encodes it in the transfer syntax that was agreed to."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The application entity to be called, and the title we call ourselves."""

    host: str
    port: int
    ae_title: str
    calling_ae_title: str


@dataclass(frozen=True, slots=True)
class Match:
    """One C-FIND response with Pending status: an identifier, encoded in `transfer_syntax`."""

    data: bytes
    transfer_syntax: str
    status: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A C-MOVE or C-GET response: sub-operation counters, None where the peer sends none (PS3.7 9.1.3, 9.1.4).

    `failed_identifier` is the final response's data set, which lists Failed SOP Instance UIDs (0008,0058).
    """

    status: int
    remaining: int | None = None
    completed: int | None = None
    failed: int | None = None
    warning: int | None = None
    failed_identifier: bytes = b""

    @property
    def final(self) -> bool:
        """True for the last response."""
        return status_class(self.status) is not StatusClass.PENDING


class Association:
    """An open association, as its requestor. Made by `connect` or `open_association`."""

    def __init__(self, channel: Channel, peer: Peer, contexts: Mapping[int, AcceptedContext]) -> None:
        self._channel = channel
        self._operation: Operation | None = None
        self.peer = peer
        self.contexts = contexts

    @property
    def channel(self) -> Channel:
        """The messages below the services."""
        return self._channel

    @property
    def is_open(self) -> bool:
        """False once it was released, aborted or lost."""
        return self._channel.ended is None

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
        _check_status("C-ECHO", response)

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


class Operation:
    """A request, and the responses to it, on one association."""

    def __init__(
        self,
        association: Association,
        model: str,
        field: CommandField,
        identifier: Identifier | None = None,
        destination: str | None = None,
    ) -> None:
        self._association = association
        self._channel = association.channel
        self._context = association.context_for(model)
        self._identifier = identifier
        self._started = False
        self.finished = False
        self.message_id = next_message_id()
        self._command = Command(
            field,
            message_id=self.message_id,
            affected_sop_class_uid=model,
            priority=dimse.MEDIUM if identifier is not None else None,
            move_destination=destination,
            data_set_type=dimse.NO_DATA_SET if identifier is None else dimse.DATA_SET,
        )

    async def start(self) -> None:
        """Send the request, unless that has been done."""
        if self._started:
            return
        await self._association.begin(self)
        identifier = self._identifier
        if callable(identifier):
            identifier = identifier(self._context.transfer_syntax)
        await self._channel.send(self._context.context_id, self._command, identifier)
        self._started = True

    async def response(self, what: str, seconds: float) -> Message:
        """The next response to this operation."""
        message = await self._channel.receive(what, seconds)
        self._check(message)
        return message

    def _check(self, message: Message) -> None:
        field = self._command.command_field | dimse.RESPONSE
        self._association.check_response(message.command, field, self.message_id)

    def finish(self) -> None:
        """The final response is in."""
        self.finished = True

    async def cancel(self) -> None:
        """C-CANCEL (PS3.7 9.3.2.3; C-ECHO has none), then wait for the final response; an abort if none comes."""
        if self.finished or not self._started:
            self.finished = True
            return
        self.finished = True
        if self._channel.ended is not None:
            return
        seconds = self._channel.timeouts.cancel
        try:
            if self._command.command_field != CommandField.C_ECHO_RQ:
                self._channel.send_soon(self._context.context_id, dimse.cancel_request(self.message_id))
            async with asyncio.timeout(seconds):
                await self._answer_store()
                while not await self._cancelled_response(seconds):
                    pass
        except BaseException as error:
            self._association.abort()
            if not isinstance(error, TimeoutError | DulError):
                raise

    async def _answer_store(self) -> None:
        """Answer the C-STORE sub-operation that has begun; only a C-GET has such."""

    async def _cancelled_response(self, seconds: float) -> bool:
        """Take one message after C-CANCEL; True when it was the final response."""
        message = await self._channel.receive("final response after C-CANCEL", seconds)
        if message.command.command_field == CommandField.C_STORE_RQ:
            await _refuse_store(self._channel, message)
            return False
        self._check(message)
        return status_class(message.command.status or 0) is not StatusClass.PENDING


class FindOperation(Operation):
    """Async iterator over the matches of a C-FIND; see `Association.find`."""

    def __aiter__(self) -> FindOperation:
        return self

    async def __anext__(self) -> Match:
        if self.finished:
            raise StopAsyncIteration
        await self.start()
        message = await self.response("C-FIND response", self._channel.timeouts.response)
        command = message.command
        status = command.status or 0
        kind = status_class(status)
        if kind is StatusClass.PENDING:
            if message.data is None:
                self._association.abort()
                raise RemoteProtocolError("a pending C-FIND response without an identifier")
            return Match(await message.data.read(), message.context.transfer_syntax, status)
        self.finish()
        if kind is StatusClass.FAILURE:
            raise StatusError("C-FIND", status, command.error_comment)
        raise StopAsyncIteration


class _RetrieveOperation(Operation):
    """What C-MOVE and C-GET have in common: counters, and a final response with the failed UIDs."""

    def __init__(
        self,
        association: Association,
        model: str,
        field: CommandField,
        identifier: Identifier,
        destination: str | None = None,
    ) -> None:
        super().__init__(association, model, field, identifier, destination)
        self.progress = Progress(dimse.PENDING)

    async def _take_progress(self, message: Message) -> Progress:
        command = message.command
        status = command.status or 0
        final = status_class(status) is not StatusClass.PENDING
        failed = await message.data.read() if message.data is not None else b""
        self.progress = Progress(status, command.remaining, command.completed, command.failed, command.warning, failed)
        if final:
            self.finish()
            _check_status(self._service, message)
        return self.progress

    @property
    def _service(self) -> str:
        return CommandField(self._command.command_field).name.removesuffix("_RQ").replace("_", "-")


class MoveOperation(_RetrieveOperation):
    """Async iterator over the responses of a C-MOVE; see `Association.move`."""

    def __aiter__(self) -> MoveOperation:
        return self

    async def __anext__(self) -> Progress:
        if self.finished:
            raise StopAsyncIteration
        await self.start()
        message = await self.response("C-MOVE response", self._channel.timeouts.idle)
        return await self._take_progress(message)


class GetOperation(_RetrieveOperation):
    """Async iterator over the instances of a C-GET; see `Association.get`."""

    _store: IncomingStore | None = None

    def __aiter__(self) -> GetOperation:
        return self

    async def __anext__(self) -> IncomingStore:
        if self.finished:
            raise StopAsyncIteration
        await self.start()
        await self._answer_store()
        while True:
            message = await self._channel.receive("C-GET response", self._channel.timeouts.idle)
            if message.command.command_field == CommandField.C_STORE_RQ:
                self._store = IncomingStore(self._channel, message, self._association.peer.ae_title, self._respond)
                return self._store
            self._check(message)
            if (await self._take_progress(message)).final:
                raise StopAsyncIteration

    async def _answer_store(self) -> None:
        store = self._store
        if store is None or store.answered:
            return
        read = store.fully_read
        if not read:
            await store.finish()
        await store.respond(dimse.SUCCESS if read else dimse.PROCESSING_FAILURE)

    async def _respond(self, message: Message, status: int) -> None:
        await self._channel.send(message.context.context_id, dimse.response_to(message.command, status))


async def _refuse_store(channel: Channel, message: Message) -> None:
    if message.data is not None:
        await message.data.finish()
    response = dimse.response_to(message.command, dimse.REFUSED_OUT_OF_RESOURCES)
    await channel.send(message.context.context_id, response)


def _check_status(service: str, response: Message) -> None:
    status = response.command.status or 0
    if status_class(status) is StatusClass.FAILURE:
        raise StatusError(service, status, response.command.error_comment)


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

    Raises `ConnectError`, `PeerTimeout`, `AssociationRejected`, `AssociationAborted` or `RemoteProtocolError`; no
    socket is left behind then, nor when the task is cancelled.
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
    except BaseException:
        channel.abort()
        await channel.transport.wait_closed()
        raise
    return Association(channel, peer, channel.contexts)


async def _connect(channel: Channel, peer: Peer, ssl: ssl_module.SSLContext | None, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            await loop.create_connection(lambda: channel.transport, peer.host, peer.port, ssl=ssl)
    except TimeoutError:
        channel.transport.give_up()
        raise PeerTimeout("TCP connection", seconds) from None
    except asyncio.CancelledError:
        channel.transport.give_up()
        raise
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
        raise ConnectError(f"no connection to {peer.host} port {peer.port}: {_reason(error)}") from error


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
