"""A `Retrieve`: a C-MOVE or C-GET that has come in, and what a script can do about it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset

import dul
from dul import dimse
from dul.channel import Channel, Message
from dul.dimse import Command, CommandField, next_message_id, response_to
from dul.instances import store_request
from dul.items import UserItem
from dul.negotiation import find_context
from tests.dul.archive import encode
from tests.faultpeer import wire
from tests.faultpeer.stored import Stored

if TYPE_CHECKING:
    from tests.faultpeer.archive import ScriptedArchive

AET = "SCRIPTED"

Send = Callable[[Stored], Awaitable[int]]
"""Sends an instance and returns the status of the C-STORE-RSP."""

Script = Callable[["Retrieve"], Awaitable[None]]


@dataclass(slots=True)
class Tally:
    """The sub-operations of one retrieval, as its archive counts them (PS3.7 9.1.3.1.6 to 9.1.3.1.9)."""

    remaining: int
    completed: int = 0
    failed: int = 0
    failed_instances: list[Stored] = field(default_factory=list)

    def count(self, stored: Stored, status: int) -> None:
        """Count an instance that was sent, or tried to be."""
        self.remaining -= 1
        if status == dimse.SUCCESS:
            self.completed += 1
        else:
            self.failed += 1
            self.failed_instances.append(stored)

    @property
    def counters(self) -> dict[str, int]:
        """The counters of a final response."""
        return {"completed": self.completed, "failed": self.failed, "warning": 0}

    @property
    def status(self) -> int:
        """The final status that PS3.4 C.4.2.1.5 wants for them."""
        if not self.failed:
            return dimse.SUCCESS
        return dimse.SUB_OPERATIONS_WITH_FAILURES if self.completed else dimse.REFUSED_SUB_OPERATIONS


@dataclass(slots=True, eq=False)
class Retrieve:
    """A C-MOVE or C-GET that has come in, and what a script can do about it."""

    archive: ScriptedArchive
    channel: Channel
    message: Message
    calling_ae_title: str
    keys: Dataset
    instances: list[Stored]
    """What the identifier matches."""

    @property
    def message_id(self) -> int:
        """The request's Message ID."""
        return self.message.command.message_id or 0

    @property
    def is_move(self) -> bool:
        """True for a C-MOVE, False for a C-GET."""
        return self.message.command.command_field == CommandField.C_MOVE_RQ

    @property
    def level(self) -> str:
        """The Query/Retrieve Level (0008,0052)."""
        return str(self.keys.QueryRetrieveLevel)

    # --- sending ---------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def way(
        self,
        *,
        originator: tuple[str, int] | bool | None = True,
        calling: str | None = None,
        proposing: Sequence[dul.Context] | None = None,
        user_items: Iterable[UserItem] = (),
        shape: wire.Shape | None = None,
    ) -> AsyncIterator[Send]:
        """A way to send instances: for a C-MOVE over an association of its own, for a C-GET over that of the request.

        `originator` is what C-STOREs name as such: True for the truth, None for nothing, or anything else. `calling`
        is the AE title if not the archive's own, `proposing` and `user_items` are what the association is asked for
        with, and `shape` says how the C-STORE-RQs go over the wire.
        """
        if not self.is_move:

            async def send_back(stored: Stored) -> int:
                return await store(self.channel, stored, shape=shape)

            yield send_back
            return
        named = (self.calling_ae_title, self.message_id) if originator is True else originator or None
        destination = self.archive.destination
        peer = dul.Peer(destination.host, destination.port, destination.aet, calling or self.archive.aet)
        contexts = self.archive.contexts if proposing is None else proposing
        async with dul.connect(peer, contexts, user_items=user_items) as association:
            self.archive.sending.append(association)

            async def send(stored: Stored) -> int:
                return await store(association.channel, stored, named, shape=shape)

            yield send

    async def send_all(self, send: Send, tally: Tally, instances: Iterable[Stored] | None = None) -> None:
        """Send these, or everything that matches, with Pending responses and true counters."""
        for stored in self.instances if instances is None else instances:
            tally.count(stored, await send(stored))
            if tally.remaining > 0:
                await self.pending(remaining=tally.remaining, **tally.counters)

    async def pending(self, **counters: int) -> None:
        """Send a Pending response."""
        await self._respond(response_to(self.message.command, dimse.PENDING), counters)

    async def final(self, status: int = dimse.SUCCESS, listing: Iterable[Stored] = (), /, **counters: int) -> None:
        """Send the final response; `listing` are those of its Failed SOP Instance UID List (0008,0058)."""
        uids = [stored.sample.sop_instance_uid for stored in listing]
        identifier = Dataset()
        identifier.FailedSOPInstanceUIDList = uids
        data = encode(identifier, self.message.context.transfer_syntax) if uids else None
        await self._respond(response_to(self.message.command, status, data_set=bool(uids)), counters, data)

    async def _respond(self, response: Command, counters: dict[str, int], data: bytes | None = None) -> None:
        for name, number in counters.items():
            setattr(response, name, number)
        await self.channel.send(self.message.context.context_id, response, data)

    # --- the end ---------------------------------------------------------------------------------------------

    @property
    def cancel_requested(self) -> bool:
        """True when C-CANCEL has come."""
        return self.channel.cancel_requested(self.message_id)

    async def cancelled(self) -> None:
        """Return when C-CANCEL has come."""
        while not self.cancel_requested:
            await asyncio.sleep(0.01)
        self.archive.cancelled_at.append(time.monotonic())

    def end(self, how: wire.Ending) -> None:
        """End every connection that the archive has opened, and that of this request."""
        for channel in (self.channel, *(association.channel for association in self.archive.sending)):
            how(channel)

    def reset(self) -> None:
        """End them by a TCP reset, as a machine that restarts does."""
        self.end(wire.reset)


async def store(
    channel: Channel,
    stored: Stored,
    originator: tuple[str, int] | None = None,
    *,
    shape: wire.Shape | None = None,
) -> int:
    """C-STORE of an instance; returns the status, 0122 where its SOP class and transfer syntax were not agreed to."""
    sample, instance = stored.sample, stored.instance
    context = find_context(channel.contexts, sample.sop_class_uid, sample.transfer_syntax_uid)
    if context is None:
        return dimse.SOP_CLASS_NOT_SUPPORTED
    request = store_request(instance, next_message_id(), originator)
    if shape is not None:
        await wire.send(channel, context.context_id, request, stored.whole, shape)
    else:
        await channel.send(context.context_id, request, instance.open())
    response = await channel.receive("C-STORE response", 30)
    assert response.command.command_field == CommandField.C_STORE_RSP
    return response.command.status or 0
