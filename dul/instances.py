"""Composite instances on their way: what a C-STORE-RQ says about one, and its data set as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass

from dul import dimse
from dul.channel import Channel, Message
from dul.dimse import Command
from dul.stream import DataStream


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance to be sent.

    `data` gives the encoded data set (no file meta information) in `transfer_syntax`: bytes, or a function that opens
    an async iterable of bytes, called when its turn comes.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: str
    data: bytes | Callable[[], AsyncIterable[bytes]]

    def open(self) -> bytes | AsyncIterable[bytes]:
        """The data set, now that its turn has come."""
        return self.data if isinstance(self.data, bytes) else self.data()


class IncomingStore:
    """A C-STORE-RQ and the data set that follows it (PS3.7 9.1.1).

    Iterate over it for the data set's bytes, encoded in `transfer_syntax`, as they arrive; asking for more is what
    keeps the peer sending. Then the response goes out: `respond`, or the status that a handler returns.
    """

    __slots__ = ("_channel", "_message", "_respond", "answered", "calling_ae_title", "peer_host")

    def __init__(
        self,
        channel: Channel,
        message: Message,
        calling_ae_title: str,
        respond: Callable[[Message, int], Awaitable[None]],
    ) -> None:
        self._channel = channel
        self._message = message
        self._respond = respond
        self.calling_ae_title = calling_ae_title
        self.peer_host = channel.transport.peer_host
        self.answered = False

    @property
    def command(self) -> Command:
        """The command set as received."""
        return self._message.command

    @property
    def sop_class_uid(self) -> str:
        """Affected SOP Class UID (0000,0002); the context's abstract syntax where the peer left it out."""
        return self._message.command.affected_sop_class_uid or self._message.context.abstract_syntax

    @property
    def sop_instance_uid(self) -> str:
        """Affected SOP Instance UID (0000,1000); empty where the peer left it out."""
        return self._message.command.affected_sop_instance_uid or ""

    @property
    def transfer_syntax(self) -> str:
        """The negotiated transfer syntax, in which the bytes are encoded."""
        return self._message.context.transfer_syntax

    @property
    def move_originator_ae_title(self) -> str | None:
        """Move Originator Application Entity Title (0000,1030)."""
        return self._message.command.move_originator_ae_title

    @property
    def move_originator_message_id(self) -> int | None:
        """Move Originator Message ID (0000,1031)."""
        return self._message.command.move_originator_message_id

    @property
    def fully_read(self) -> bool:
        """True when the data set's last byte has been taken from here."""
        data = self._message.data
        return data is None or data.exhausted

    def __aiter__(self) -> DataStream:
        data = self._message.data
        return _nothing() if data is None else data

    async def read(self, limit: int) -> bytes:
        """The whole data set, for small objects; `RemoteProtocolError` beyond `limit` bytes."""
        return await self.__aiter__().read(limit)

    def discard(self) -> None:
        """Drop the rest of the data set."""
        if self._message.data is not None:
            self._message.data.discard()

    async def finish(self) -> None:
        """Drop the rest of the data set, and wait for its end: the response may follow only then."""
        await self.__aiter__().finish()

    async def respond(self, status: int) -> None:
        """Send the C-STORE-RSP, once; a second call does nothing."""
        if not self.answered:
            self.answered = True
            await self._respond(self._message, status)


def _nothing() -> DataStream:
    async def no_wait(_: object) -> None:
        return None

    stream = DataStream(lambda _: None, no_wait)
    stream.feed(b"", last=True)
    return stream


def store_request(instance: Instance, message_id: int, move_originator: tuple[str, int] | None = None) -> Command:
    """The C-STORE-RQ for `instance`; `move_originator` is the AE title and Message ID of the C-MOVE behind it."""
    title, originator_id = move_originator or (None, None)
    return Command(
        dimse.CommandField.C_STORE_RQ,
        message_id=message_id,
        affected_sop_class_uid=instance.sop_class_uid,
        affected_sop_instance_uid=instance.sop_instance_uid,
        priority=dimse.MEDIUM,
        data_set_type=dimse.DATA_SET,
        move_originator_ae_title=title,
        move_originator_message_id=originator_id,
    )
