"""The requests of an SCU and the responses to them, one operation at a time on an association (PS3.7 9.1, 9.3).

An operation that is left early is ended by C-CANCEL before anything else happens on the association, or by an abort if
the peer ignores that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dul import dimse
from dul.channel import Channel, Message
from dul.dimse import Command, CommandField, StatusClass, next_message_id, status_class
from dul.errors import DulError, PeerTimeout, RemoteProtocolError, StatusError
from dul.instances import IncomingStore
from dul.stream import DataStream

if TYPE_CHECKING:
    from dul.association import Association

Identifier = bytes | Callable[[str], bytes]
"""An encoded identifier, or a function that encodes it in the transfer syntax that was agreed to."""


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
        """C-CANCEL (PS3.7 9.3.2.3; C-ECHO has none), then wait for the final response; an abort if none comes.

        Nothing is sent when the final response is here already: archives take a C-CANCEL that comes late for an error.
        """
        if self.finished or not self._started:
            self.finished = True
            return
        self.finished = True
        if self._channel.ended is not None:
            return
        seconds = self._channel.timeouts.cancel
        try:
            if await self._final_has_arrived():
                return
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

    async def _read(self, data: DataStream) -> bytes:
        """An identifier, within the time for the whole response: a peer may send it drop by drop."""
        seconds = self._channel.timeouts.response
        try:
            async with asyncio.timeout(seconds):
                return await data.read()
        except TimeoutError:
            self._association.abort()
            raise PeerTimeout("C-FIND response", seconds) from None

    async def _final_has_arrived(self) -> bool:
        """Take what is here already; True when the final response was among it.

        Only a C-FIND looks: it alone is left so often when its last responses have come.
        """
        return False

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
            return Match(await self._read(message.data), message.context.transfer_syntax, status)
        self.finish()
        # Nobody has asked for an end here: an archive that says Cancel has stopped in the middle of its list.
        if kind in (StatusClass.FAILURE, StatusClass.CANCEL):
            raise StatusError("C-FIND", status, command.error_comment)
        raise StopAsyncIteration

    async def _final_has_arrived(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):  # what has arrived is received without waiting
                while not await self._cancelled_response(self._channel.timeouts.cancel):
                    pass
                return True
        return False


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
            check_status(self._service, message)
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
                self._association.answered = True
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


def check_status(service: str, response: Message) -> None:
    """Raise `StatusError` for a final response whose status is of class Failure."""
    status = response.command.status or 0
    if status_class(status) is StatusClass.FAILURE:
        raise StatusError(service, status, response.command.error_comment)
