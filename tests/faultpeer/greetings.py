"""What an archive does with those who call: scripts for the time before and after an association.

A greeting is `archive.greeting`; what releases is `archive.releasing`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from dul import pdu
from dul.errors import REASON_LOCAL_LIMIT_EXCEEDED, REJECTED_TRANSIENT, SOURCE_PROVIDER_PRESENTATION
from dul.items import RoleSelection
from dul.pdu import AAssociateAC
from tests.faultpeer.association import Caller, Greeting
from tests.faultpeer.wire import Ending, abort, reset

# --- before there is an association --------------------------------------------------------------------------


async def welcome(caller: Caller) -> None:
    """Accept: what a good archive does."""
    await caller.accept()


def rejecting(result: int, source: int, reason: int) -> Greeting:
    """Reject everybody (PS3.8 Table 9-21)."""

    async def greeting(caller: Caller) -> None:
        await caller.reject(result, source, reason)

    return greeting


def at_most(count: int) -> Greeting:
    """Reject associations beyond `count`: local limit exceeded."""

    async def greeting(caller: Caller) -> None:
        await caller.asked()
        if caller.archive.open_associations < count:
            await caller.accept()
        else:
            await caller.reject(REJECTED_TRANSIENT, SOURCE_PROVIDER_PRESENTATION, REASON_LOCAL_LIMIT_EXCEEDED)

    return greeting


async def hang(caller: Caller) -> None:
    """Let them connect, and never read a byte."""
    caller.stop_reading()


async def keep_silent(caller: Caller) -> None:
    """Read A-ASSOCIATE-RQ, and never answer it."""
    await caller.asked()


def ending(how: Ending, *, asked: bool = True) -> Greeting:
    """End the connection instead of an answer, or as soon as it is there."""

    async def greeting(caller: Caller) -> None:
        if asked:
            await caller.asked()
        caller.end(how)

    return greeting


def dripping(interval: float) -> Greeting:
    """Send A-ASSOCIATE-AC one byte every `interval` seconds."""

    async def greeting(caller: Caller) -> None:
        await caller.accept(dripping=interval)

    return greeting


def writing(data: bytes) -> Greeting:
    """Answer with any bytes."""

    async def greeting(caller: Caller) -> None:
        await caller.asked()
        caller.write(data)

    return greeting


GARBAGE = bytes(range(0x60, 0x100))
HTTP_ANSWER = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\r\nBad Request"


async def break_in_answer(caller: Caller) -> None:
    """Reset the connection within A-ASSOCIATE-AC."""
    await caller.asked()
    caller.write(pdu.PDU_HEADER.pack(pdu.A_ASSOCIATE_AC, 4096) + bytes(100))
    await asyncio.sleep(0.02)
    caller.end(reset)


# --- odd answers ---------------------------------------------------------------------------------------------


async def pad_titles_with_nul(caller: Caller) -> None:
    """Accept, with AE titles that are padded with NULs where PS3.8 wants spaces."""

    def padded(answer: AAssociateAC) -> AAssociateAC:
        called, calling = answer.called_ae_title.ljust(16, "\0"), answer.calling_ae_title.ljust(16, "\0")
        return replace(answer, called_ae_title=called, calling_ae_title=calling)

    await caller.accept(change=padded)


async def name_others(caller: Caller) -> None:
    """Accept, with AE titles in the answer that are nobody's."""
    await caller.accept(change=lambda answer: replace(answer, called_ae_title="SOMEBODY", calling_ae_title=""))


async def leave_out_roles(caller: Caller) -> None:
    """Accept, without a word of the roles that were asked for."""
    await caller.accept(change=lambda answer: _with_roles(answer, ()))


async def answer_default_roles(caller: Caller) -> None:
    """Accept, with the default roles for every SOP class, whatever was asked for (PS3.7 D.3.3.4)."""

    def defaults(answer: AAssociateAC) -> AAssociateAC:
        asked = [item for item in answer.user_information.items if isinstance(item, RoleSelection)]
        return _with_roles(answer, [replace(role, scu_role=True, scp_role=False) for role in asked])

    await caller.accept(change=defaults)


def _with_roles(answer: AAssociateAC, roles: list[RoleSelection] | tuple[()]) -> AAssociateAC:
    others = [item for item in answer.user_information.items if not isinstance(item, RoleSelection)]
    return replace(answer, user_information=replace(answer.user_information, items=(*others, *roles)))


# --- the release ---------------------------------------------------------------------------------------------


def agree(caller: Caller) -> bool:
    """Answer A-RELEASE-RQ: what a good archive does."""
    return True


def collide(caller: Caller) -> bool:
    """Ask for the release in the same moment: Sta9 to Sta12 of PS3.8 Table 9-10."""
    caller.connection.send(pdu.AReleaseRQ())
    caller.channel.transport.flush()
    return True


def never_agree(caller: Caller) -> bool:
    """Never answer A-RELEASE-RQ."""
    return False


def abort_instead(caller: Caller) -> bool:
    """Answer A-RELEASE-RQ with A-ABORT."""
    caller.end(abort)
    return False


def reset_instead(caller: Caller) -> bool:
    """Answer A-RELEASE-RQ with a TCP reset."""
    caller.end(reset)
    return False
