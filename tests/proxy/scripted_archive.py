"""An archive whose C-MOVE and C-GET do what a test's script says; C-ECHO and C-FIND it answers by itself.

It stands on `dul`'s channel and not on its services, since those send and count as the standard wants it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

import pydicom
from pydicom.dataset import Dataset

import dul
from dul import dimse
from dul.channel import Channel, Message
from dul.connection import Connection
from dul.dimse import Command, CommandField, next_message_id, response_to
from dul.instances import store_request
from dul.negotiation import answer_request, find_context, send_limit
from dul.pdu import AAssociateRQ
from tests import corpus
from tests.corpus import Sample
from tests.dul.archive import UNIQUE_KEYS, decode, encode
from tests.peers.process import HOST, Address
from tests.proxy.running import Proxy, proxy_for

AET = "SCRIPTED"
NOWHERE = Address("PROXY", 0)

Send = Callable[["Stored"], Awaitable[int]]
"""Sends an instance and returns the status of the C-STORE-RSP."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An instance of the archive: its UIDs, and its data set as bytes or in pieces made on demand."""

    sample: Sample
    data: bytes | Callable[[], AsyncIterable[bytes]]

    @classmethod
    def of(cls, part10: bytes) -> Stored:
        """Take a Part 10 file."""
        return cls(corpus.describe(part10, ""), corpus.data_set_bytes(part10))

    @property
    def instance(self) -> dul.Instance:
        """The same as `dul` sends it."""
        sample = self.sample
        return dul.Instance(sample.sop_class_uid, sample.sop_instance_uid, sample.transfer_syntax_uid, self.data)


def small_study(series: int = 2, instances: int = 2, study: int = 1, side: int = 64) -> list[Stored]:
    """Make a study of small images."""
    return [Stored.of(file) for file in corpus.ct_study(series, instances, side, study)]


@dataclass(slots=True, eq=False)
class Retrieve:
    """A C-MOVE or C-GET that has come in, and what a script can do about it."""

    archive: ScriptedArchive
    channel: Channel
    message: Message
    calling_ae_title: str
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

    @contextlib.asynccontextmanager
    async def way(self, *, originator: tuple[str, int] | bool | None = True, calling: str = AET) -> AsyncIterator[Send]:
        """A way to send instances: for a C-MOVE over an association of its own, for a C-GET over that of the request.

        `originator` is what C-STOREs name as such: True for the truth, None for nothing, or anything else.
        """
        if not self.is_move:
            yield self._send_back
            return
        named = (self.calling_ae_title, self.message_id) if originator is True else originator or None
        destination = self.archive.destination
        peer = dul.Peer(destination.host, destination.port, destination.aet, calling)
        contexts = {(s.sample.sop_class_uid, s.sample.transfer_syntax_uid) for s in self.archive.instances}
        proposed = [dul.Context(sop_class, (syntax,)) for sop_class, syntax in sorted(contexts)]
        async with dul.connect(peer, proposed) as association:
            self.archive.sending.append(association)

            async def send(stored: Stored) -> int:
                return await association.store(stored.instance, move_originator=named)

            yield send

    async def _send_back(self, stored: Stored) -> int:
        sample, instance = stored.sample, stored.instance
        context = find_context(self.channel.contexts, sample.sop_class_uid, sample.transfer_syntax_uid)
        if context is None:
            return dimse.SOP_CLASS_NOT_SUPPORTED
        data = instance.data if isinstance(instance.data, bytes) else instance.data()
        await self.channel.send(context.context_id, store_request(instance, next_message_id()), data)
        response = await self.channel.receive("C-STORE response", 30)
        assert response.command.command_field == CommandField.C_STORE_RSP
        return response.command.status or 0

    async def pending(self, **counters: int) -> None:
        """Send a Pending response."""
        await self._respond(dimse.PENDING, counters)

    async def final(self, status: int = dimse.SUCCESS, **counters: int) -> None:
        """Send the final response."""
        await self._respond(status, counters)

    async def _respond(self, status: int, counters: dict[str, int]) -> None:
        response: Command = response_to(self.message.command, status)
        for name, number in counters.items():
            setattr(response, name, number)
        await self.channel.send(self.message.context.context_id, response)

    async def cancelled(self) -> None:
        """Return when C-CANCEL has come."""
        while not self.channel.cancel_requested(self.message_id):
            await asyncio.sleep(0.01)
        self.archive.cancelled_at.append(time.monotonic())

    def reset(self) -> None:
        """End every connection of the archive by a TCP reset, as a machine that restarts does."""
        for channel in (self.channel, *(association.channel for association in self.archive.sending)):
            transport = channel.transport._transport
            if transport is not None and not transport.is_closing():
                linger = struct.pack("ii", 1, 0)
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                transport.abort()


Script = Callable[[Retrieve], Awaitable[None]]


async def honest(request: Retrieve) -> None:
    """Send everything, with Pending responses and true counters: what a good archive does."""
    completed = failed = 0
    async with request.way() as send:
        for stored in request.instances:
            status = await send(stored)
            completed, failed = completed + (status == dimse.SUCCESS), failed + (status != dimse.SUCCESS)
            remaining = len(request.instances) - completed - failed
            if remaining:
                await request.pending(remaining=remaining, completed=completed, failed=failed, warning=0)
    await request.final(
        dimse.SUB_OPERATIONS_WITH_FAILURES if failed else dimse.SUCCESS, completed=completed, failed=failed, warning=0
    )


@dataclass(eq=False)
class ScriptedArchive:
    """A context manager. `destination` must be set before a C-MOVE comes; `script` may be changed at any time.

    `hidden` are keywords that its C-FIND does not know. `first_byte` is for the test to tell scripts that the client
    has got the beginning of the answer.
    """

    instances: list[Stored]
    script: Script = honest
    aet: str = AET
    port: int = 0
    hidden: frozenset[str] = frozenset({"SOPClassesInStudy"})
    destination: Address = NOWHERE
    requests: list[Retrieve] = field(default_factory=list)
    finds: list[Dataset] = field(default_factory=list)
    proposed: list[AAssociateRQ] = field(default_factory=list)
    sending: list[dul.Association] = field(default_factory=list)
    cancelled_at: list[float] = field(default_factory=list)
    first_byte: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _channels: list[Channel] = field(default_factory=list)
    _failures: list[BaseException] = field(default_factory=list)
    _listener: asyncio.Server | None = None

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address(self.aet, self.port)

    @property
    def open_associations(self) -> int:
        """Associations that others have to it now."""
        return sum(channel.ended is None for channel in self._channels)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._accept, HOST, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            channel.abort()
            await channel.transport.wait_closed()
        if self._failures and exception[0] is None:
            raise self._failures[0]

    def _accept(self) -> asyncio.BaseProtocol:
        channel = Channel(Connection(requestor=False), dul.Timeouts())
        channel.on_associate = lambda request: self._associate(channel, request)
        return channel.transport

    def _associate(self, channel: Channel, request: AAssociateRQ) -> None:
        self.proposed.append(request)
        self._channels.append(channel)
        channel.send_limit = send_limit(request.user_information)
        channel.accept(*answer_request(request, dul.accept_query_retrieve))
        task = asyncio.get_running_loop().create_task(self._serve(channel, request.calling_ae_title))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    async def _serve(self, channel: Channel, calling: str) -> None:
        try:
            while True:
                await self._answer(channel, await channel.receive("request", 300), calling)
        except dul.AssociationError:
            return
        finally:
            if channel.ended is None:
                channel.abort()

    async def _answer(self, channel: Channel, message: Message, calling: str) -> None:
        match message.command.command_field:
            case CommandField.C_ECHO_RQ:
                await channel.send(message.context.context_id, response_to(message.command, dimse.SUCCESS))
            case CommandField.C_FIND_RQ:
                await self._find(channel, message)
            case CommandField.C_MOVE_RQ | CommandField.C_GET_RQ:
                assert message.data is not None
                keys = decode(await message.data.read(), message.context.transfer_syntax)
                request = Retrieve(self, channel, message, calling, self.matching(keys))
                self.requests.append(request)
                await self.script(request)

    async def _find(self, channel: Channel, message: Message) -> None:
        assert message.data is not None
        syntax = message.context.transfer_syntax
        keys = decode(await message.data.read(), syntax)
        self.finds.append(keys)
        pending = response_to(message.command, dimse.PENDING, data_set=True)
        unique = UNIQUE_KEYS[keys.QueryRetrieveLevel]
        for answer in {str(answer[unique].value): answer for answer in self._answers(keys)}.values():
            await channel.send(message.context.context_id, pending, encode(answer, syntax))
        await channel.send(message.context.context_id, response_to(message.command, dimse.SUCCESS))

    def _answers(self, keys: Dataset) -> Iterable[Dataset]:
        for stored in self.matching(keys):
            sample, answer = stored.sample, Dataset()
            known = {
                "StudyInstanceUID": sample.study_uid,
                "SeriesInstanceUID": sample.series_uid,
                "SOPInstanceUID": sample.sop_instance_uid,
                "SOPClassUID": sample.sop_class_uid,
                "SOPClassesInStudy": sorted({s.sample.sop_class_uid for s in self._of_study(sample.study_uid)}),
            }
            for element in keys:
                if element.keyword not in self.hidden:
                    answer[element.tag] = element
                    if element.keyword in known:
                        answer[element.tag] = pydicom.DataElement(element.tag, element.VR, known[element.keyword])
            yield answer

    def _of_study(self, study_uid: str) -> list[Stored]:
        return [stored for stored in self.instances if stored.sample.study_uid == study_uid]

    def matching(self, keys: Dataset) -> list[Stored]:
        """Return the instances that an identifier's unique keys name."""
        names = {
            "StudyInstanceUID": "study_uid",
            "SeriesInstanceUID": "series_uid",
            "SOPInstanceUID": "sop_instance_uid",
        }
        wanted = {name: str(keys[keyword].value) for keyword, name in names.items() if keys.get(keyword)}
        return [
            stored
            for stored in self.instances
            if all(getattr(stored.sample, name) == value for name, value in wanted.items())
        ]


@contextlib.asynccontextmanager
async def in_front_of(
    instances: list[Stored],
    script: Script = honest,
    *,
    use_cget: bool = False,
    peer: Mapping[str, object] | None = None,
) -> AsyncIterator[tuple[ScriptedArchive, Proxy]]:
    """Run a scripted archive, and the proxy in front of it; `peer` is as for `proxy_for`."""
    async with (
        ScriptedArchive(instances, script) as archive,
        proxy_for(archive.address, use_cget=use_cget, peer=peer) as proxy,
    ):
        if not use_cget:
            archive.destination = proxy.address
        yield archive, proxy
