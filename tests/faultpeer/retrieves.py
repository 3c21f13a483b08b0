"""What an archive does with a C-MOVE or C-GET: scripts to be `archive.script`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence

import dul
from dul import dimse
from dul.dimse import next_message_id
from dul.instances import store_request
from dul.negotiation import find_context
from tests.faultpeer import wire
from tests.faultpeer.retrieve import Retrieve, Script, Send, Tally
from tests.faultpeer.stored import Stored

Originator = tuple[str, int] | bool | None


async def honest(request: Retrieve) -> None:
    """Send everything, with Pending responses and true counters: what a good archive does."""
    tally = Tally(len(request.instances))
    async with request.way() as send:
        await request.send_all(send, tally)
    await request.final(tally.status, tally.failed_instances, **tally.counters)


# --- at times one, at times another --------------------------------------------------------------------------


def first(count: int, script: Script, then: Script = honest) -> Script:
    """Treat the first `count` requests in one way, and all others in another."""
    left = count

    async def choosing(request: Retrieve) -> None:
        nonlocal left
        left -= 1
        await (script if left >= 0 else then)(request)

    return choosing


def in_bulk(script: Script, one_by_one: Script = honest) -> Script:
    """Treat requests for a study or a series in one way, and those for one instance in another."""

    async def choosing(request: Retrieve) -> None:
        await (one_by_one if request.level == "IMAGE" else script)(request)

    return choosing


# --- what is said --------------------------------------------------------------------------------------------


def ending(status: int = dimse.SUCCESS, *, sent: int = 0, **counters: int) -> Script:
    """Send the first `sent` instances, and then a final response with these counters and no others."""

    async def script(request: Retrieve) -> None:
        if sent:
            async with request.way() as send:
                for stored in request.instances[:sent]:
                    await send(stored)
        await request.final(status, **counters)

    return script


busy = ending(completed=0, failed=0, warning=0)
"""Success with 0 sub-operations, which some mean as "not now"."""


async def without_counters(request: Retrieve) -> None:
    """Send everything, and count nothing."""
    async with request.way() as send:
        for stored in request.instances:
            await send(stored)
            await request.pending()
    await request.final()


async def without_pending(request: Retrieve) -> None:
    """Send everything, and say nothing but the final response, as dcm4che does by default."""
    tally = Tally(len(request.instances))
    async with request.way() as send:
        for stored in request.instances:
            tally.count(stored, await send(stored))
    await request.final(tally.status, **tally.counters)


def failing(
    these: Collection[Stored], *, status: int | None = None, listed: bool = True, counted: bool = True
) -> Script:
    """Fail with `these`, send all others, and say so: B000, A702, or `status`.

    `listed` names them in the Failed SOP Instance UID List, `counted` has the counters.
    """
    uids = {stored.sample.sop_instance_uid for stored in these}

    async def script(request: Retrieve) -> None:
        tally = Tally(len(request.instances))
        async with request.way() as send:

            async def try_to_send(stored: Stored) -> int:
                failed = stored.sample.sop_instance_uid in uids
                return dimse.PROCESSING_FAILURE if failed else await send(stored)

            await request.send_all(try_to_send, tally)
        final = tally.status if status is None else status
        listing = tally.failed_instances if listed else ()
        await request.final(final, listing, **(tally.counters if counted else {}))

    return script


def losing(these: Collection[Stored]) -> Script:
    """Leave `these` out, and count them as sent."""
    uids = {stored.sample.sop_instance_uid for stored in these}

    async def script(request: Retrieve) -> None:
        async with request.way() as send:
            for stored in request.instances:
                if stored.sample.sop_instance_uid not in uids:
                    await send(stored)
        await request.final(completed=len(request.instances), failed=0, warning=0)

    return script


async def claim_success(request: Retrieve) -> None:
    """Send nothing, count everything as failed, and end with Success."""
    await request.final(dimse.SUCCESS, completed=0, failed=len(request.instances), warning=0)


# --- the C-STORE sub-operations ------------------------------------------------------------------------------


def sending(
    *,
    originator: Originator | Callable[[Retrieve], Originator] = True,
    calling: str | None = None,
    proposing: Sequence[dul.Context] | None = None,
    shape: wire.Shape | None = None,
    pause: float = 0.0,
) -> Script:
    """Send everything, each thing as asked; see `Retrieve.way`. `pause` are the seconds before each instance."""

    async def script(request: Retrieve) -> None:
        named = originator(request) if callable(originator) else originator
        tally = Tally(len(request.instances))
        async with request.way(originator=named, calling=calling, proposing=proposing, shape=shape) as send:

            async def send_later(stored: Stored) -> int:
                await asyncio.sleep(pause)
                return await send(stored)

            await request.send_all(send_later, tally)
        await request.final(tally.status, tally.failed_instances, **tally.counters)

    return script


def answering_before(late: int, *, pause: float = 0.05, counted: bool = True) -> Script:
    """Send the final response of a C-MOVE before the last `late` instances, which come `pause` seconds apart."""

    async def script(request: Retrieve) -> None:
        early = len(request.instances) - late
        counters = {"completed": len(request.instances), "failed": 0, "warning": 0} if counted else {}
        async with request.way() as send:
            for stored in request.instances[:early]:
                await send(stored)
            await request.final(**counters)
            for stored in request.instances[early:]:
                await asyncio.sleep(pause)
                await send(stored)

    return script


def over_associations(count: int) -> Script:
    """Send over `count` associations at once, which share the instances of a C-MOVE."""

    async def script(request: Retrieve) -> None:
        tally = Tally(len(request.instances))

        async def send_each(send: Send, instances: list[Stored]) -> None:
            for stored in instances:
                tally.count(stored, await send(stored))

        async with contextlib.AsyncExitStack() as stack:
            ways = [await stack.enter_async_context(request.way()) for _ in range(count)]
            shares = [request.instances[number::count] for number in range(count)]
            await asyncio.gather(*(send_each(way, share) for way, share in zip(ways, shares, strict=True)))
        await request.final(tally.status, **tally.counters)

    return script


def sending_more(others: Sequence[Stored]) -> Script:
    """Send everything, and `others` as well, which nobody asked for; their statuses are kept in `refusals`."""

    async def script(request: Retrieve) -> None:
        async with request.way() as send:
            for stored in others:
                request.archive.refusals.append(await send(stored))
            tally = Tally(len(request.instances))
            await request.send_all(send, tally)
        await request.final(tally.status, **tally.counters)

    return script


async def send_twice(request: Retrieve) -> None:
    """Send each instance, and once more, and count both."""
    async with request.way() as send:
        for stored in request.instances:
            await send(stored)
            await send(stored)
    await request.final(completed=2 * len(request.instances), failed=0, warning=0)


# --- no end --------------------------------------------------------------------------------------------------


def breaking_off(sent: int, how: Callable[[Retrieve], Awaitable[None]]) -> Script:
    """Send the first `sent` instances, tell of them, and do `how` with the rest still to come."""

    async def script(request: Retrieve) -> None:
        tally = Tally(len(request.instances))
        async with request.way() as send:
            await request.send_all(send, tally, request.instances[:sent])
            await how(request)

    return script


async def abort(request: Retrieve) -> None:
    """Abort all associations."""
    request.end(wire.abort)


async def close(request: Retrieve) -> None:
    """Close all connections without a word."""
    request.end(wire.close)


async def reset(request: Retrieve) -> None:
    """End all connections by a TCP reset."""
    request.reset()


async def die(request: Retrieve) -> None:
    """End every connection of the archive, and listen no more."""
    request.archive.kill()


async def reset_in_instance(request: Retrieve) -> None:
    """Send half of an instance, and end all connections by a TCP reset. For a C-GET."""
    stored = request.instances[-1]
    context = find_context(request.channel.contexts, stored.sample.sop_class_uid, stored.sample.transfer_syntax_uid)
    assert context is not None
    command = store_request(stored.instance, next_message_id())
    await wire.send_half(request.channel, context.context_id, command, stored.whole)
    request.reset()


async def keep_still(request: Retrieve) -> None:
    """Do nothing until C-CANCEL comes."""
    await asyncio.wait_for(request.cancelled(), 20)
    await request.final(dimse.CANCEL)


async def say_pending(request: Retrieve) -> None:
    """Say Pending again and again, and do nothing until C-CANCEL comes."""
    while not request.cancel_requested:
        await request.pending(remaining=len(request.instances), completed=0, failed=0, warning=0)
        await asyncio.sleep(0.02)
    await request.final(dimse.CANCEL)


async def ignore_cancel(request: Retrieve) -> None:
    """Do nothing, and do not even hear C-CANCEL."""
    await asyncio.sleep(60)


def aborting_after_cancel(seconds: float) -> Script:
    """Do nothing, and abort some time after C-CANCEL has come."""

    async def script(request: Retrieve) -> None:
        await asyncio.wait_for(request.cancelled(), 20)
        await asyncio.sleep(seconds)
        request.end(wire.abort)

    return script


def nearline(seconds: float, then: Script = honest) -> Script:
    """Be silent while a tape is brought back, and send then. `archive.availability` says what C-FIND says of it."""

    async def script(request: Retrieve) -> None:
        cancelled = asyncio.ensure_future(request.cancelled())
        done, _ = await asyncio.wait([cancelled], timeout=seconds)
        cancelled.cancel()
        if done:
            await request.final(dimse.CANCEL)
        else:
            await then(request)

    return script
