"""A `Caller`: one connection to a scripted archive, from its first byte on, and what a greeting can do about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import dul
from dul import pdu
from dul.channel import Channel
from dul.connection import Connection
from dul.negotiation import answer_request, send_limit
from dul.pdu import AAssociateAC, AAssociateRQ
from tests.faultpeer import wire

if TYPE_CHECKING:
    from tests.faultpeer.archive import ScriptedArchive

Greeting = Callable[["Caller"], Awaitable[None]]
"""Deals with a connection until there is an association, or none: what is not accepted then stays as it is."""

Releasing = Callable[["Caller"], bool]
"""Deals with an A-RELEASE-RQ; True to go on as the protocol wants it."""


@dataclass(slots=True, eq=False)
class Caller:
    """A connection that somebody has opened to the archive. `accepted` is true once it is an association."""

    archive: ScriptedArchive
    connection: Connection
    channel: Channel
    accepted: bool = False
    _request: asyncio.Future[AAssociateRQ] = field(default_factory=asyncio.Future)

    @classmethod
    def of(cls, archive: ScriptedArchive) -> Self:
        """Make the end of a connection that is about to be there."""
        connection = Connection(requestor=False)
        channel = Channel(connection, dul.Timeouts())
        caller = cls(archive, connection, channel)
        channel.transport = wire.Ear(connection, channel, lambda: archive.releasing(caller))
        channel.on_associate = caller._take_request
        channel.on_closed = caller._give_up
        return caller

    def _take_request(self, request: AAssociateRQ) -> None:
        self.archive.proposed.append(request)
        self._request.set_result(request)

    def _give_up(self) -> None:
        if not self._request.done():
            self._request.cancel()

    @property
    def is_open(self) -> bool:
        """True while it is an association."""
        return self.accepted and self.channel.ended is None

    async def asked(self) -> AAssociateRQ:
        """Wait for A-ASSOCIATE-RQ; cancelled when the caller leaves before it."""
        return await self._request

    async def accept(
        self, *, change: Callable[[AAssociateAC], AAssociateAC] | None = None, dripping: float | None = None
    ) -> None:
        """Accept what was asked for; `change` alters the answer, `dripping` is the pause between its bytes."""
        request = await self.asked()
        answer, contexts = answer_request(request, self.archive.supported)
        self.channel.send_limit = send_limit(request.user_information)
        self.channel.contexts = contexts
        self.connection.send(change(answer) if change is not None else answer)
        data = self.connection.data_to_send()
        if dripping is not None:
            await wire.drip(self.channel, data, dripping)
        else:
            self.write(data)
        self.accepted = True

    async def reject(self, result: int, source: int, reason: int) -> None:
        """Answer A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
        await self.asked()
        self.channel.reject(pdu.AAssociateRJ(result, source, reason))

    def write(self, data: bytes) -> None:
        """Write any bytes."""
        self.channel.transport.write([data])

    def stop_reading(self) -> None:
        """Read nothing more, as a program that hangs."""
        self.channel.transport.pause_reading()

    def end(self, how: wire.Ending) -> None:
        """End the connection."""
        how(self.channel)
