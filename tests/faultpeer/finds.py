"""What an archive does with a C-FIND: scripts to be `archive.answer`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pydicom.dataset import Dataset

import dul
from dul import dimse, uids
from dul.dimse import response_to
from tests.dul.archive import encode
from tests.faultpeer import wire
from tests.faultpeer.find import UNIQUE_KEYS, Find, FindScript, answers_to

# --- answers -------------------------------------------------------------------------------------------------


async def answer_all(find: Find) -> None:
    """Give every match, and stop at C-CANCEL: what a good archive does."""
    await give(find, find.answers)


async def give(find: Find, answers: list[Dataset], *, status: int = dimse.PENDING) -> None:
    """Give these answers and Success, or stop at C-CANCEL."""
    for answer in answers:
        if find.cancel_requested:
            await find.final(dimse.CANCEL)
            return
        await find.pending(answer, status)
    await find.final()


async def answer_with_warning(find: Find) -> None:
    """Answer with Pending FF01: optional keys were not supported (PS3.4 C.4.1.1.4)."""
    await give(find, find.answers, status=dimse.PENDING_WITH_WARNING)


def capped(count: int) -> FindScript:
    """Give no more than `count` answers, and say nothing of the rest."""

    async def script(find: Find) -> None:
        await give(find, find.answers[:count])

    return script


def failing_after(count: int, status: int = dimse.REFUSED_OUT_OF_RESOURCES, comment: str | None = None) -> FindScript:
    """Fail after `count` answers."""

    async def script(find: Find) -> None:
        for answer in find.answers[:count]:
            await find.pending(answer)
        await find.final(status, comment)

    return script


async def ignore_keys(find: Find) -> None:
    """Match the unique keys alone, whatever else was asked for."""
    await give(find, list(answers_to(find.archive, find.keys, only_unique=True)))


async def repeat_answers(find: Find) -> None:
    """Give each answer twice."""
    await give(find, [answer for answer in find.answers for _ in range(2)])


async def leave_out_character_set(find: Find) -> None:
    """Answer without Specific Character Set (0008,0005)."""
    for answer in find.answers:
        answer.pop("SpecificCharacterSet", None)
    await give(find, find.answers)


# --- refusals ------------------------------------------------------------------------------------------------


async def refuse_other_levels(find: Find) -> None:
    """Refuse (A900) identifiers with a key that is not the unique key of the level or of one above it.

    Also those that lack one of the unique keys above the level.
    """
    keywords = list(UNIQUE_KEYS.values())
    above = keywords[1 : keywords.index(UNIQUE_KEYS[find.level])]
    below = keywords[keywords.index(UNIQUE_KEYS[find.level]) + 1 :]
    strange = [element.keyword for element in find.keys if element.keyword in below]
    if strange or not all(find.is_given(keyword) for keyword in above):
        await find.final(dimse.IDENTIFIER_DOES_NOT_MATCH, "a key of another level")
    else:
        await give(find, find.answers)


async def want_patient_id(find: Find) -> None:
    """Refuse (A900) identifiers below the PATIENT level without a single Patient ID (PS3.4 C.6.1.1.1)."""
    patient_id = str(find.keys.get("PatientID", ""))
    if find.level != "PATIENT" and (not patient_id or "*" in patient_id or "?" in patient_id):
        await find.final(dimse.IDENTIFIER_DOES_NOT_MATCH, "PatientID is missing")
    else:
        await give(find, find.answers)


def refuse_study_root(abstract_syntax: str) -> Sequence[str]:
    """Have the Patient Root models only; to be `archive.supported`."""
    study_root = (uids.STUDY_ROOT_FIND, uids.STUDY_ROOT_MOVE, uids.STUDY_ROOT_GET)
    return () if abstract_syntax in study_root else dul.accept_query_retrieve(abstract_syntax)


# --- no end --------------------------------------------------------------------------------------------------


async def keep_still(find: Find) -> None:
    """Never answer, nor hear C-CANCEL."""
    await asyncio.sleep(60)


async def ignore_cancel(find: Find) -> None:
    """Give every match, whether or not C-CANCEL has come."""
    for answer in find.answers:
        await find.pending(answer)
    await find.final()


async def answer_for_ever(find: Find) -> None:
    """Give the same matches again and again, until C-CANCEL comes."""
    while not find.cancel_requested:
        for answer in find.answers:
            await find.pending(answer)
            await asyncio.sleep(0.002)
    await find.final(dimse.CANCEL)


# --- the wire ------------------------------------------------------------------------------------------------


def answering_in(shape: wire.Shape) -> FindScript:
    """Answer in another shape on the wire."""

    async def script(find: Find) -> None:
        for answer in find.answers:
            await find.pending(answer, shape=shape)
        await find.final()

    return script


def ending_instead(how: wire.Ending) -> FindScript:
    """End the connection instead of an answer."""

    async def script(find: Find) -> None:
        how(find.channel)

    return script


async def break_in_answer(find: Find) -> None:
    """Reset the connection within the first answer."""
    context = find.message.context
    response = response_to(find.message.command, dimse.PENDING, data_set=True)
    await wire.send_half(find.channel, context.context_id, response, encode(find.answers[0], context.transfer_syntax))
    wire.reset(find.channel)


async def answer_garbage(find: Find) -> None:
    """Send what is no PDU instead of an answer."""
    find.channel.transport.write([bytes(range(0x60, 0x100))])
