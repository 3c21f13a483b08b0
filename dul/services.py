"""The acceptor's side of the services: one association's requests go to a handler, its answers back (PS3.7 9.1).

A handler subclasses `Handler` and overrides what it offers. Requests of one association are handled one after the
other. C-MOVE and C-GET sub-operations, their counters and the Pending responses are done here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl as ssl_module
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from dul import dimse
from dul.association import Association, Peer, connect
from dul.channel import Channel, Message
from dul.dimse import Command, CommandField, StatusClass, next_message_id, response_to, status_class
from dul.errors import (
    AssociationReleased,
    DulError,
    NoPresentationContext,
    RemoteProtocolError,
    StatusError,
)
from dul.instances import IncomingStore, Instance, store_request
from dul.negotiation import Context, find_context

logger = logging.getLogger("dul")


_MATCHES_AT_ONCE = 16
"""Sending does not wait while there is room: after so many matches the event loop gets to read a C-CANCEL."""


@dataclass(frozen=True, slots=True)
class Request:
    """A C-FIND, C-MOVE or C-GET request."""

    calling_ae_title: str
    peer_host: str
    model: str
    """The abstract syntax: which information model, root and service."""
    transfer_syntax: str
    """In which the identifier is encoded, and the answers must be."""
    identifier: bytes
    message_id: int
    move_destination: str | None = None


@dataclass(frozen=True, slots=True)
class MovePlan:
    """What a C-MOVE is to send, and where to; over TLS when there is an `ssl` context."""

    destination: Peer
    instances: Sequence[Instance]
    ssl: ssl_module.SSLContext | None = None


class Handler:
    """Override what is offered; all else is answered with the status that the standard has for it.

    Raise `StatusError` to end an operation with a status. Any other exception ends it with Processing failure
    (0x0110) and is logged. When the association ends first, a handler that waits for it gets the exception that says
    why, and one that waits for anything else is cancelled.
    """

    async def on_echo(self, calling_ae_title: str) -> int:
        """C-ECHO; returns the status."""
        return dimse.SUCCESS

    async def on_store(self, store: IncomingStore) -> int:
        """C-STORE; returns the status. What it does not read of the data set is dropped."""
        return dimse.SOP_CLASS_NOT_SUPPORTED

    def on_find(self, request: Request) -> AsyncGenerator[bytes, None]:
        """C-FIND; yields an identifier for each match. It is closed when the peer cancels."""
        raise StatusError("C-FIND", dimse.SOP_CLASS_NOT_SUPPORTED)

    async def on_move(self, request: Request) -> MovePlan:
        """C-MOVE; returns what to send and where to."""
        raise StatusError("C-MOVE", dimse.SOP_CLASS_NOT_SUPPORTED)

    async def on_get(self, request: Request) -> Sequence[Instance]:
        """C-GET; returns what to send."""
        raise StatusError("C-GET", dimse.SOP_CLASS_NOT_SUPPORTED)


@dataclass(slots=True)
class _Counters:
    """Sub-operation counters (PS3.7 9.1.3.1.6 to 9.1.3.1.9)."""

    remaining: int
    completed: int = 0
    failed: int = 0
    warning: int = 0
    failed_uids: list[str] = field(default_factory=list)

    def count(self, instance: Instance, status: int) -> None:
        self.remaining -= 1
        kind = status_class(status)
        if kind is StatusClass.SUCCESS:
            self.completed += 1
        elif kind is StatusClass.WARNING:
            self.warning += 1
        else:
            self.failed += 1
            self.failed_uids.append(instance.sop_instance_uid)

    def final_status(self) -> int:
        if not self.failed and not self.warning:
            return dimse.SUCCESS
        return dimse.SUB_OPERATIONS_WITH_FAILURES if self.completed + self.warning else dimse.REFUSED_SUB_OPERATIONS


class Services:
    """Serves one association until it ends."""

    def __init__(self, channel: Channel, handler: Handler, calling_ae_title: str) -> None:
        self._channel = channel
        self._handler = handler
        self._calling = calling_ae_title

    async def run(self) -> None:
        """Handle requests until the association is released; raises whatever else ends it."""
        while True:
            try:
                message = await self._channel.receive("request", self._channel.timeouts.idle)
                self._channel.check_open()  # a request whose answer nobody will get is not begun
            except AssociationReleased:
                return
            if message.command.message_id is None:
                raise self._invalid("a request without a Message ID")
            try:
                await self._dispatch(message)
            finally:
                self._channel.forget_cancel(message.command.message_id)

    def _invalid(self, what: str) -> RemoteProtocolError:
        self._channel.abort()
        return RemoteProtocolError(what)

    async def _dispatch(self, message: Message) -> None:
        services: dict[int, Callable[[Message], Awaitable[None]]] = {
            CommandField.C_ECHO_RQ: self._echo,
            CommandField.C_STORE_RQ: self._store,
            CommandField.C_FIND_RQ: self._find,
            CommandField.C_MOVE_RQ: self._move,
            CommandField.C_GET_RQ: self._get,
        }
        serve = services.get(message.command.command_field, self._unknown)
        try:
            await serve(message)
        except StatusError as error:
            await self._respond(message, error.status, comment=error.comment)
        except Exception:
            self._channel.check_open()
            logger.exception("the handler of a %s failed", message.command.name)
            await self._respond(message, dimse.PROCESSING_FAILURE)

    async def _respond(self, message: Message, status: int, *, comment: str | None = None) -> None:
        response = response_to(message.command, status)
        if comment:
            response.error_comment = comment.encode("ascii", "replace").decode("ascii")[:64]
        await self._channel.send(message.context.context_id, response)

    async def _unknown(self, message: Message) -> None:
        if message.data is not None:
            await message.data.finish()
        raise StatusError(message.command.name, dimse.UNRECOGNIZED_OPERATION)

    # --- C-ECHO, C-STORE, C-FIND -----------------------------------------------------------------------------

    async def _echo(self, message: Message) -> None:
        await self._respond(message, await self._handler.on_echo(self._calling))

    async def _store(self, message: Message) -> None:
        store = IncomingStore(self._channel, message, self._calling, self._respond)
        try:
            status = await self._handler.on_store(store)
        except StatusError as error:
            status = error.status
        except Exception:
            self._channel.check_open()
            logger.exception("the handler of a C-STORE-RQ failed")
            status = dimse.PROCESSING_FAILURE
        await store.finish()
        await store.respond(status)

    async def _find(self, message: Message) -> None:
        request = await self._request(message)
        matches = self._handler.on_find(request)
        pending = response_to(message.command, dimse.PENDING, data_set=True)
        sent = 0
        async with contextlib.aclosing(matches):
            async for identifier in matches:
                if self._channel.cancel_requested(request.message_id):
                    await self._respond(message, dimse.CANCEL)
                    return
                await self._channel.send(message.context.context_id, pending, identifier)
                sent += 1
                if sent % _MATCHES_AT_ONCE == 0:
                    await asyncio.sleep(0)
        await self._respond(message, dimse.SUCCESS)

    async def _request(self, message: Message) -> Request:
        if message.data is None:
            raise self._invalid(f"a {message.command.name} without an identifier")
        return Request(
            calling_ae_title=self._calling,
            peer_host=self._channel.transport.peer_host,
            model=message.context.abstract_syntax,
            transfer_syntax=message.context.transfer_syntax,
            identifier=await message.data.read(),
            message_id=message.command.message_id or 0,
            move_destination=message.command.move_destination,
        )

    # --- C-MOVE ----------------------------------------------------------------------------------------------

    async def _move(self, message: Message) -> None:
        request = await self._request(message)
        plan = await self._handler.on_move(request)
        counters = _Counters(len(plan.instances))
        if plan.instances:
            try:
                contexts, timeouts = _contexts_for(plan.instances), self._channel.timeouts
                async with connect(plan.destination, contexts, timeouts=timeouts, ssl=plan.ssl) as association:
                    await self._store_all(message, association, plan.instances, counters)
            except DulError as error:
                if self._channel.ended is not None:
                    raise
                logger.warning("the C-STORE sub-operations of a C-MOVE ended early: %s", error)
                for instance in plan.instances[len(plan.instances) - counters.remaining :]:
                    counters.count(instance, dimse.PROCESSING_FAILURE)
        await self._finish(message, counters)

    async def _store_all(
        self, message: Message, association: Association, instances: Sequence[Instance], counters: _Counters
    ) -> None:
        originator = (self._calling, message.command.message_id or 0)
        for instance in instances:
            if self._channel.cancel_requested(message.command.message_id):
                return
            try:
                status = await association.store(instance, move_originator=originator)
            except NoPresentationContext:
                status = dimse.SOP_CLASS_NOT_SUPPORTED
            counters.count(instance, status)
            if counters.remaining:
                await self._pending(message, counters)

    # --- C-GET -----------------------------------------------------------------------------------------------

    async def _get(self, message: Message) -> None:
        instances = await self._handler.on_get(await self._request(message))
        counters = _Counters(len(instances))
        for instance in instances:
            if self._channel.cancel_requested(message.command.message_id):
                break
            counters.count(instance, await self._sub_store(instance))
            if counters.remaining:
                await self._pending(message, counters)
        await self._finish(message, counters)

    async def _sub_store(self, instance: Instance) -> int:
        context = find_context(self._channel.contexts, instance.sop_class_uid, instance.transfer_syntax)
        if context is None:
            return dimse.SOP_CLASS_NOT_SUPPORTED
        message_id = next_message_id()
        await self._channel.send(context.context_id, store_request(instance, message_id), instance.open())
        response = await self._channel.receive("C-STORE response", self._channel.timeouts.response)
        command = response.command
        if command.command_field != CommandField.C_STORE_RSP or command.message_id_being_responded_to != message_id:
            raise self._invalid(f"a {command.name} where the C-STORE-RSP of a sub-operation is due")
        return command.status or 0

    # --- both ------------------------------------------------------------------------------------------------

    async def _pending(self, message: Message, counters: _Counters) -> None:
        response = _with_counters(response_to(message.command, dimse.PENDING), counters)
        response.remaining = counters.remaining
        await self._channel.send(message.context.context_id, response)

    async def _finish(self, message: Message, counters: _Counters) -> None:
        cancelled = counters.remaining > 0
        response = response_to(message.command, dimse.CANCEL if cancelled else counters.final_status())
        _with_counters(response, counters)
        response.remaining = counters.remaining if cancelled else None
        data = None
        if counters.failed_uids:
            data = _failed_identifier(counters.failed_uids, message.context.transfer_syntax)
            response.data_set_type = dimse.DATA_SET
        await self._channel.send(message.context.context_id, response, data)


def _with_counters(response: Command, counters: _Counters) -> Command:
    response.completed, response.failed, response.warning = (
        min(number, 0xFFFF) for number in (counters.completed, counters.failed, counters.warning)
    )
    return response


def _contexts_for(instances: Sequence[Instance]) -> list[Context]:
    """A context for each SOP class in each transfer syntax at hand: instances are sent as they are."""
    pairs = dict.fromkeys((i.sop_class_uid, i.transfer_syntax) for i in instances)
    return [Context(sop_class, (syntax,)) for sop_class, syntax in list(pairs)[:128]]


def _failed_identifier(failed_uids: Sequence[str], transfer_syntax: str) -> bytes:
    """Failed SOP Instance UID List (0008,0058), UI (PS3.4 C.4.2.1.4.2)."""
    value = "\\".join(failed_uids).encode("ascii")
    value += b"\0" * (len(value) % 2)
    if transfer_syntax == "1.2.840.10008.1.2":
        return b"\x08\x00\x58\x00" + len(value).to_bytes(4, "little") + value
    # Explicit VR leaves 16 bits for the length of a UI: the list ends where they do.
    if len(value) > 0xFFFE:
        value = value[:0xFFFE].rpartition(b"\\")[0]
        value += b"\0" * (len(value) % 2)
    return b"\x08\x00\x58\x00UI" + len(value).to_bytes(2, "little") + value
