"""What is fuzzed: one function for each parser, which takes any bytes and raises only what it may not.

An input may raise the errors that its parser documents; whatever else leaves a target is a finding. The first byte of
an input picks a variant (a transfer syntax, a role), so that one corpus serves all of them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, Final
from urllib.parse import parse_qsl

from dul import dimse, items, pdu, uids
from dul.connection import Connection
from dul.errors import RemoteProtocolError
from dul.framing import Fragment
from dul.messages import MessageReader
from proxy.dataset import layout, part10, pixels
from proxy.dataset.peek import UidPeek
from proxy.dataset.reader import DatasetError, parse
from proxy.dataset.skim import Skim
from proxy.dicomweb import accept, parameters
from proxy.dicomweb.dicomjson import encode
from proxy.dicomweb.errors import UploadError
from proxy.dicomweb.multipart_reader import MultipartReader
from proxy.dicomweb.nativexml import native_xml
from proxy.dicomweb.stow_instance import NotDicomError, read_beginning

Target = Callable[[bytes], None]

BOUNDARY: Final = "BOUNDARY"

PDU_TYPES: Final = (1, 2, 3, 5, 6, 7)
"""All but P-DATA-TF, which is never whole."""

DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
JPEG: Final = "1.2.840.10008.1.2.4.50"
SYNTAXES: Final = (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN, BIG_ENDIAN, DEFLATED)

_REQUEST: Final = pdu.AAssociateRQ(
    called_ae_title="CALLED",
    calling_ae_title="CALLING",
    presentation_contexts=(items.PresentationContextRQ(1, uids.VERIFICATION, (uids.IMPLICIT_VR_LITTLE_ENDIAN,)),),
)
_ACCEPT: Final = pdu.AAssociateAC(
    called_ae_title="CALLED",
    calling_ae_title="CALLING",
    presentation_contexts=(items.PresentationContextAC(1, 0, uids.IMPLICIT_VR_LITTLE_ENDIAN),),
)


def variant(data: bytes, choices: int) -> tuple[int, bytes]:
    """Take the byte that picks a variant off an input."""
    return (data[0] % choices if data else 0), data[1:]


# --- the DICOM Upper Layer -----------------------------------------------------------------------------------


def pdus(data: bytes) -> None:
    """One PDU's body, of the type that the first byte says (PS3.8 9.3)."""
    number, body = variant(data, len(PDU_TYPES))
    with suppress(RemoteProtocolError):
        pdu.encode(pdu.decode(PDU_TYPES[number], body))


def connections(data: bytes) -> None:
    """A stream of PDUs, to either role, before and after the association is there; the messages in it are read."""
    number, stream = variant(data, 4)
    requestor, established = bool(number & 1), bool(number & 2)
    connection = Connection(requestor=requestor)
    if requestor:
        connection.associate(_REQUEST)
    connection.connected()
    if established:
        _establish(connection, requestor=requestor)
    reader = MessageReader()
    for at in range(0, len(stream), 97):
        for event in connection.receive_data(memoryview(stream)[at : at + 97]):
            if not isinstance(event, Fragment):
                continue
            try:
                reader.feed(event)
            except RemoteProtocolError as error:
                connection.abort_for(error)
                return
    connection.disconnected()
    connection.data_to_send()


def _establish(connection: Connection, *, requestor: bool) -> None:
    if requestor:
        connection.receive_data(memoryview(pdu.encode(_ACCEPT)))
    else:
        connection.receive_data(memoryview(pdu.encode(_REQUEST)))
        connection.send(_ACCEPT)


def commands(data: bytes) -> None:
    """A command set (PS3.7 6.3.1), and again when it was encoded."""
    with suppress(RemoteProtocolError):
        command = dimse.decode_command(data)
        assert dimse.decode_command(dimse.encode_command(command)) == command


def user_information(data: bytes) -> None:
    """The sub-items of an association PDU (PS3.8 9.3.3, PS3.7 D.3.3)."""
    number, value = variant(data, 3)
    decoders: tuple[Callable[[bytes], object], ...] = (
        items.decode_user_information,
        items.decode_presentation_context_rq,
        items.decode_presentation_context_ac,
    )
    with suppress(RemoteProtocolError):
        decoders[number](value)


# --- data sets -----------------------------------------------------------------------------------------------


def data_sets(data: bytes) -> None:
    """A data set, as JSON and as XML; and skimmed, without its bulk data."""
    number, content = variant(data, 4)
    with suppress(DatasetError):
        native_xml(encode(parse(content, SYNTAXES[number])))
    with suppress(DatasetError):
        skim = Skim(SYNTAXES[number])
        for at in range(0, len(content), 61):
            skim.feed(content[at : at + 61])
        encode(skim.elements())


def peeks(data: bytes) -> None:
    """The UIDs of a data set that comes in pieces: the same, however it was cut.

    Where a deflated one is damaged, pieces may tell more, since what is before the damage is inflated.
    """
    number, content = variant(data, 4)
    whole, pieces = UidPeek(SYNTAXES[number]), UidPeek(SYNTAXES[number])
    whole.feed(content)
    for at in range(0, len(content), 13):
        pieces.feed(content[at : at + 13])
    for one, other in zip(_found(whole), _found(pieces), strict=True):
        assert one == other or (one is None and SYNTAXES[number] == DEFLATED)


def _found(peek: UidPeek) -> tuple[str | None, ...]:
    return peek.study, peek.series, peek.sop_instance


def frames(data: bytes) -> None:
    """Where elements and frames lie in a file (PS3.5 A.4)."""
    number, content = variant(data, 4)
    syntax = (*SYNTAXES[:3], JPEG)[number]
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, content)
        with suppress(DatasetError):
            layout.find(descriptor, 0, len(content), syntax, {0x00280010, 0x7FE00010})
        with suppress(DatasetError):
            found = pixels.find_frames(descriptor, 0, len(content), syntax)
            if found is not None and found.count:
                found.frame(1)
    finally:
        os.close(descriptor)


# --- files and bodies ----------------------------------------------------------------------------------------


def part10_headers(data: bytes) -> None:
    """The beginning of a Part 10 file (PS3.10 7.1)."""
    with suppress(part10.Part10Error):
        part10.read_header(data)


def uploads(data: bytes) -> None:
    """The body of an upload, part by part, with the beginning of each instance (PS3.18 10.5)."""
    number, content = variant(data, 64)
    _finish(_read_upload(content, number + 1))


async def _read_upload(content: bytes, size: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(content), size):
            yield content[at : at + size]

    with suppress(UploadError):
        async with aclosing(MultipartReader(chunks(), BOUNDARY).parts()) as parts:
            async for part in parts:
                with suppress(NotDicomError):
                    await read_beginning(part)


def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise AssertionError("it waits for something")


# --- what HTTP clients send ----------------------------------------------------------------------------------


def accepts(data: bytes) -> None:
    """An Accept header (RFC 9110 12.5.1) and the parameter `accept`."""
    number, text = variant(data, 4)
    header = text.decode("latin-1")
    with suppress(accept.NotAcceptable):
        wishes = accept.parse_accept(header if number & 1 else None, header if number & 2 else None)
        accept.choose_retrieve(wishes, single=bool(number & 1))
        accept.choose_model(wishes)


def queries(data: bytes) -> None:
    """The parameters of a search (PS3.18 8.3.4)."""
    text = data.decode("utf-8", "replace")
    with suppress(parameters.BadParameter):
        parameters.parse_query(parse_qsl(text, keep_blank_values=True))


TARGETS: Final[dict[str, Target]] = {
    "pdus": pdus,
    "connections": connections,
    "commands": commands,
    "user-information": user_information,
    "data-sets": data_sets,
    "peeks": peeks,
    "frames": frames,
    "part10-headers": part10_headers,
    "uploads": uploads,
    "accepts": accepts,
    "queries": queries,
}
