"""Associations that cannot be had: an HTTP error of the right class, in time, and all is well afterwards.

Each fault meets a search, a retrieval by C-MOVE and one by C-GET. An archive that is down, one that reads and says
nothing, and the commonest rejections are in `test_wado_faults` and `test_qido_errors`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from tests.dul.conftest import until
from tests.faultpeer import Greeting, ScriptedArchive, Stored, in_front_of, small_study
from tests.faultpeer.greetings import (
    GARBAGE,
    HTTP_ANSWER,
    break_in_answer,
    dripping,
    ending,
    hang,
    rejecting,
    welcome,
    writing,
)
from tests.faultpeer.outcomes import assert_whole, associations_of, status_of
from tests.faultpeer.wire import abort, close, reset
from tests.proxy.finding import ask
from tests.proxy.retrieved import Answer, get, path_of
from tests.proxy.running import Proxy

pytestmark = pytest.mark.usefixtures("nothing_left")

SHORT = {"timeouts": {"connect": 0.3, "associate": 0.3, "response": 0.3, "retrieve": 0.3, "release": 0.3}}
IN_TIME = 0.3 + 1.5
"""The longest of the timeouts, and what a busy machine may add."""

FAULTS: dict[str, tuple[Greeting, int]] = {
    # PS3.8 Table 9-21
    "rejected: no reason given": (rejecting(1, 1, 1), 502),
    "rejected: application context name not supported": (rejecting(1, 1, 2), 502),
    "rejected: called AE title not recognized": (rejecting(1, 1, 7), 502),
    "rejected: no reason given (ACSE)": (rejecting(1, 2, 1), 502),
    "rejected: protocol version not supported": (rejecting(1, 2, 2), 502),
    "rejected: a reason that is not defined": (rejecting(1, 1, 99), 502),
    "rejected for now: no reason given": (rejecting(2, 1, 1), 503),
    "rejected for now: local limit exceeded": (rejecting(2, 3, 2), 503),
    "aborted": (ending(abort), 502),
    "closed": (ending(close), 502),
    "reset": (ending(reset), 502),
    "closed as soon as it is open": (ending(close, asked=False), 502),
    "reset as soon as it is open": (ending(reset, asked=False), 502),
    "hangs": (hang, 504),
    "drips": (dripping(0.01), 504),
    "garbage": (writing(GARBAGE), 502),
    "an HTTP server": (writing(HTTP_ANSWER), 502),
    "reset within the answer": (break_in_answer, 502),
}


@dataclass(frozen=True, slots=True)
class Request:
    """A way to ask: what for, and whether the archive is asked with C-GET."""

    what: str
    use_cget: bool

    async def send(self, proxy: Proxy, study: list[Stored]) -> Answer:
        """Send it."""
        return await get(proxy, "/studies" if self.what == "search" else path_of(study[0].sample, "study"))

    async def assert_served(self, proxy: Proxy, study: list[Stored]) -> None:
        """Fail unless it is answered well."""
        if self.what == "search":
            assert len(await ask(proxy, "/studies")) == 1
        else:
            await assert_whole(proxy, study)


REQUESTS = [Request("search", use_cget=False), Request("C-MOVE", use_cget=False), Request("C-GET", use_cget=True)]


async def greeted(archive: ScriptedArchive) -> None:
    """Wait until the proxy has made sure, at its start, that the archive answers."""
    await until(lambda: archive.echoes > 0 and archive.open_associations == 0)


@pytest.mark.parametrize("request_", REQUESTS, ids=[each.what for each in REQUESTS])
@pytest.mark.parametrize("fault", FAULTS)
async def test_no_association(fault: str, request_: Request) -> None:
    """An error of the right class in time, nothing left over, and the next request is served."""
    greeting, status = FAULTS[fault]
    study = small_study()
    async with in_front_of(study, use_cget=request_.use_cget, peer=SHORT) as (archive, proxy):
        await greeted(archive)
        archive.greeting = greeting
        start = time.monotonic()
        answer = await request_.send(proxy, study)
        assert time.monotonic() - start < IN_TIME
        assert answer.failure(status).startswith("SCRIPTED: ")
        assert ("Retry-After" in answer.headers) is (status == 503)
        assert await associations_of(proxy) == 0
        archive.greeting = welcome
        await request_.assert_served(proxy, study)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("rejected: called AE title not recognized", "called AE title not recognized (rejected-permanent)"),
        ("rejected for now: local limit exceeded", "local limit exceeded (rejected-transient)"),
        ("aborted", "association aborted"),
        ("closed", "closed the connection"),
        ("hangs", "no answer to the association request within 0.3 s"),
        ("drips", "no answer to the association request within 0.3 s"),
    ],
)
async def test_the_message_says_what_happened(fault: str, words: str) -> None:
    """An administrator can tell from the client's error, and from `/status`, what to look for."""
    study = small_study()
    async with in_front_of(study, peer=SHORT) as (archive, proxy):
        await greeted(archive)
        archive.greeting = FAULTS[fault][0]
        assert words in (await get(proxy, "/studies")).failure(FAULTS[fault][1])
        assert words in (await status_of(proxy))["archives"][0]["lastError"]


async def test_only_the_association_for_storing_fails() -> None:
    """A C-MOVE whose association is accepted, from an archive that cannot reach the proxy: 502 with its status."""
    study = small_study()
    async with in_front_of(study, peer=SHORT) as (archive, proxy):

        async def unreachable(request: object) -> None:
            await archive.requests[-1].final(0xA702, completed=0, failed=4, warning=0)

        archive.script = unreachable
        message = (await get(proxy, path_of(study[0].sample, "study"))).failure(502)
    assert "0xA702 (refused: out of resources, unable to perform sub-operations)" in message
