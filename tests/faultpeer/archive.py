"""An archive that does what a test's scripts say, at every step from the TCP connection to the release.

It stands on `dul`'s channel, sans-IO core and PDU codec, and not on its services: those do what the standard wants.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pydicom.dataset import Dataset

import dul
from dul import dimse
from dul.channel import Message
from dul.dimse import CommandField, response_to
from dul.negotiation import TransferSyntaxPolicy
from dul.pdu import AAssociateRQ
from tests.dul.archive import decode
from tests.faultpeer import wire
from tests.faultpeer.association import Caller, Greeting, Releasing
from tests.faultpeer.find import Find, FindScript, answers_to, matching
from tests.faultpeer.finds import answer_all
from tests.faultpeer.greetings import agree, welcome
from tests.faultpeer.retrieve import AET, Retrieve, Script
from tests.faultpeer.retrieves import honest
from tests.faultpeer.stored import Stored
from tests.peers.process import HOST, Address
from tests.proxy.running import Proxy, proxy_for

NOWHERE = Address("PROXY", 0)


@dataclass(eq=False)
class ScriptedArchive:
    """A context manager. `destination` must be set before a C-MOVE comes; scripts may be changed at any time.

    `greeting` deals with connections, `releasing` with A-RELEASE-RQ, `script` with C-MOVE and C-GET, `answer` with
    C-FIND; C-ECHO it answers by itself. An association that is idle for `patience` seconds is ended by `at_idle`.
    `hidden` are keywords that its C-FIND does not know, `availability` is the Instance Availability (0008,0056) of
    all that it has. `first_byte` is for the test to tell scripts that the client has got the beginning of the answer.
    """

    instances: list[Stored]
    script: Script = honest
    answer: FindScript = answer_all
    greeting: Greeting = welcome
    releasing: Releasing = agree
    supported: TransferSyntaxPolicy = dul.accept_query_retrieve
    patience: float = 300.0
    at_idle: wire.Ending = wire.close
    aet: str = AET
    port: int = 0
    hidden: frozenset[str] = frozenset({"SOPClassesInStudy"})
    availability: str = "ONLINE"
    destination: Address = NOWHERE
    requests: list[Retrieve] = field(default_factory=list)
    finds: list[Dataset] = field(default_factory=list)
    echoes: int = 0
    proposed: list[AAssociateRQ] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)
    most_associations: int = 0
    most_requests: int = 0
    """The largest number of C-MOVEs and C-GETs at one time."""
    sending: list[dul.Association] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    """Statuses of what was sent though nobody had asked for it."""
    cancelled_at: list[float] = field(default_factory=list)
    first_byte: asyncio.Event = field(default_factory=asyncio.Event)
    _under_way: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _failures: list[BaseException] = field(default_factory=list)
    _listener: asyncio.Server | None = None

    # --- what it was asked -----------------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address(self.aet, self.port)

    @property
    def open_associations(self) -> int:
        """Associations that others have to it now."""
        return sum(caller.is_open for caller in self.callers)

    @property
    def moves(self) -> Counter[str]:
        """How many C-MOVEs have come, by Query/Retrieve Level."""
        return Counter(request.level for request in self.requests if request.is_move)

    @property
    def gets(self) -> Counter[str]:
        """How many C-GETs have come, by Query/Retrieve Level."""
        return Counter(request.level for request in self.requests if not request.is_move)

    @property
    def retrieves(self) -> Counter[str]:
        """Both together: a test is mostly run with one of them alone."""
        return self.moves + self.gets

    @property
    def searches(self) -> Counter[str]:
        """How many C-FINDs have come, by Query/Retrieve Level."""
        return Counter(str(keys.QueryRetrieveLevel) for keys in self.finds)

    @property
    def contexts(self) -> list[dul.Context]:
        """What it proposes in order to send what it has, as it is stored."""
        stored = {(each.sample.sop_class_uid, each.sample.transfer_syntax_uid) for each in self.instances}
        return [dul.Context(sop_class, (syntax,)) for sop_class, syntax in sorted(stored)]

    # --- its life --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._stop_listening()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for caller in self.callers:
            caller.channel.abort()
            await caller.channel.transport.wait_closed()
        if self._failures and exception[0] is None:
            raise self._failures[0]

    async def listen(self) -> None:
        """Listen, the second time on the same port."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._accept, HOST, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def kill(self) -> None:
        """End every connection, and listen no more until `listen` is called: a process that was killed."""
        self._stop_listening()
        for caller in self.callers:
            caller.end(wire.reset)
        for association in self.sending:
            wire.reset(association.channel)

    def _accept(self) -> asyncio.BaseProtocol:
        caller = Caller.of(self)
        self.callers.append(caller)
        caller.channel.on_connected = lambda: self._begin(caller)
        return caller.channel.transport

    def _begin(self, caller: Caller) -> None:
        task = asyncio.get_running_loop().create_task(self._attend(caller))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    # --- one connection --------------------------------------------------------------------------------------

    async def _attend(self, caller: Caller) -> None:
        try:
            await self.greeting(caller)
            if caller.accepted:
                self.most_associations = max(self.most_associations, self.open_associations)
                await self._serve(caller)
        except dul.AssociationError:
            return
        finally:
            if caller.is_open:
                caller.end(wire.abort)

    async def _serve(self, caller: Caller) -> None:
        calling = (await caller.asked()).calling_ae_title
        while True:
            try:
                async with asyncio.timeout(self.patience):
                    message = await caller.channel.receive("request", 300)
            except TimeoutError:
                caller.end(self.at_idle)
                return
            await self._answer(caller, message, calling)

    async def _answer(self, caller: Caller, message: Message, calling: str) -> None:
        channel = caller.channel
        match message.command.command_field:
            case CommandField.C_ECHO_RQ:
                self.echoes += 1
                await channel.send(message.context.context_id, response_to(message.command, dimse.SUCCESS))
            case CommandField.C_FIND_RQ:
                keys = await _identifier(message)
                self.finds.append(keys)
                await self.answer(Find(self, channel, message, keys, list(answers_to(self, keys))))
            case CommandField.C_MOVE_RQ | CommandField.C_GET_RQ:
                keys = await _identifier(message)
                request = Retrieve(self, channel, message, calling, keys, matching(self.instances, keys))
                self.requests.append(request)
                await self._retrieve(request)

    async def _retrieve(self, request: Retrieve) -> None:
        self._under_way += 1
        self.most_requests = max(self.most_requests, self._under_way)
        try:
            await self.script(request)
        finally:
            self._under_way -= 1


async def _identifier(message: Message) -> Dataset:
    assert message.data is not None
    return decode(await message.data.read(), message.context.transfer_syntax)


@contextlib.asynccontextmanager
async def in_front_of(
    instances: list[Stored],
    script: Script = honest,
    *,
    use_cget: bool = False,
    peer: Mapping[str, object] | None = None,
    greeting: Greeting = welcome,
    answer: FindScript = answer_all,
    **more: Any,
) -> AsyncIterator[tuple[ScriptedArchive, Proxy]]:
    """Run a scripted archive, and the proxy in front of it; `peer` and `more` are as for `proxy_for`."""
    async with (
        ScriptedArchive(instances, script, answer, greeting) as archive,
        proxy_for(archive.address, use_cget=use_cget, peer=peer, **more) as proxy,
    ):
        if not use_cget:
            archive.destination = proxy.address
        yield archive, proxy
