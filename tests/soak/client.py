"""Sending one request, reading its answer as the plan wants it, and telling what became of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from enum import Enum
from typing import Final

import aiohttp

from tests.soak.judging import Answer, WrongAnswer
from tests.soak.planning import SLOW_READ, Planned

PATIENCE: Final = 60.0
"""No answer takes longer: what does is a fault of the proxy, whatever its archives do."""

LEAVE_AT_ONCE: Final = 0.01
READ: Final = 256 * 1024
BACKED_OFF: Final = (502, 503, 504)
"""What the proxy answers when an archive fails, is busy, or is silent."""


class End(Enum):
    """What became of a request."""

    RIGHT = "right"
    LEFT = "left"
    """The client broke off, as it was planned."""
    PARTIAL = "partial"
    """The answer said that something is missing, and had nothing wrong."""
    REFUSED = "refused"
    """An error of the archive, as an HTTP status."""
    CUT = "cut"
    """The connection ended before the answer did."""
    WRONG = "wrong"


FAILED: Final = frozenset({End.PARTIAL, End.REFUSED, End.CUT})
"""What a client sees, and what is right only while an archive has a fault."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request that is over. Times are of the monotonic clock, in seconds."""

    planned: Planned
    end: End
    begun: float
    ended: float
    detail: str = ""
    from_cache: bool = False

    def __str__(self) -> str:
        return f"{self.end.value}: {self.planned.kind}, {self.planned.path}: {self.detail}"


async def carry_out(http: aiohttp.ClientSession, planned: Planned) -> Outcome:
    """Send a request and judge its answer; never raises for what the proxy does."""
    begun = time.monotonic()
    from_cache = False
    try:
        async with asyncio.timeout(PATIENCE):
            answer = await _exchange(http, planned)
        end, detail = _judge(planned, answer) if answer is not None else (End.LEFT, "")
        from_cache = answer is not None and answer.headers.get("X-Cache") == "HIT"
    except TimeoutError:
        end, detail = End.WRONG, f"no end after {PATIENCE:g} s"
    except aiohttp.ClientError as error:
        end, detail = End.CUT, f"{type(error).__name__}: {error}"
    return Outcome(planned, end, begun, time.monotonic(), detail, from_cache)


async def _exchange(http: aiohttp.ClientSession, planned: Planned) -> Answer | None:
    """Return the answer, read to its end; None where the client was to leave."""
    size = SLOW_READ if planned.pause else READ
    begun = asyncio.timeout(LEAVE_AT_ONCE if planned.leaves_after == 0 else None)
    try:
        async with begun:
            response = await http.get(planned.path, headers={"Accept": planned.accept}, read_bufsize=size)
    except TimeoutError:
        if begun.expired():
            return None
        raise
    async with response:
        body = bytearray()
        while chunk := await response.content.read(size):
            body += chunk
            if planned.leaves_after is not None and len(body) >= planned.leaves_after:
                response.close()
                return None
            await asyncio.sleep(planned.pause)
        return Answer(response.status, dict(response.headers), bytes(body))


def _judge(planned: Planned, answer: Answer) -> tuple[End, str]:
    if answer.status in BACKED_OFF:
        return End.REFUSED, f"{answer.status} {answer.body[:200].decode(errors='replace')}"
    may_be_partial = planned.status == 200
    if answer.status != planned.status and not (may_be_partial and answer.status == 206):
        return End.WRONG, f"{answer.status} {answer.body[:200].decode(errors='replace')}"
    try:
        planned.judge(answer)
    except (WrongAnswer, ValueError, KeyError) as error:
        return End.WRONG, f"{type(error).__name__}: {error}"
    if answer.is_partial:
        return End.PARTIAL, f"{answer.status} {answer.headers.get('Warning', '')}"
    return End.RIGHT, ""
