"""The scripted archive as a process of its own, and the moods that it can be put into.

`python -m tests.soak.archive '{"port": …}'`, the keys being the fields of `Settings`. What it does is read from a
file at every step, so that it can be changed at any time; SIGUSR1 makes it reset all its connections.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from dul.errors import (
    REASON_CALLING_AE_TITLE_NOT_RECOGNIZED,
    REASON_LOCAL_LIMIT_EXCEEDED,
    REJECTED_PERMANENT,
    REJECTED_TRANSIENT,
    SOURCE_PROVIDER_PRESENTATION,
    SOURCE_SERVICE_USER,
)
from tests.corpus import Corpus
from tests.faultpeer import (
    AET,
    Caller,
    Find,
    FindScript,
    Greeting,
    Retrieve,
    Script,
    ScriptedArchive,
    Stored,
    finds,
    greetings,
    retrieves,
    wire,
)
from tests.peers.process import Address, Process, answers, free_port
from tests.peers.pynetdicom_peer import ENVIRONMENT

GOOD: Final = "good"

GREETINGS: Final[Mapping[str, Greeting]] = {
    "rejects for a time": greetings.rejecting(
        REJECTED_TRANSIENT, SOURCE_PROVIDER_PRESENTATION, REASON_LOCAL_LIMIT_EXCEEDED
    ),
    "rejects for good": greetings.rejecting(
        REJECTED_PERMANENT, SOURCE_SERVICE_USER, REASON_CALLING_AE_TITLE_NOT_RECOGNIZED
    ),
    "resets callers": greetings.ending(wire.reset),
    "aborts callers": greetings.ending(wire.abort),
    "is mute": greetings.keep_silent,
}
"""What happens to new associations; those that are open go on."""

FINDS: Final[Mapping[str, FindScript]] = {"fails in searches": finds.failing_after(1)}

Bad = Callable[[Retrieve, random.Random], Script]

RETRIEVES: Final[Mapping[str, Bad]] = {
    "breaks off": lambda request, chance: retrieves.breaking_off(
        chance.randrange(len(request.instances) or 1),
        chance.choice((retrieves.reset, retrieves.abort, retrieves.close)),
    ),
    "fails to send": lambda request, chance: retrieves.failing(_some(request, chance)),
    "loses some": lambda request, chance: retrieves.losing(_some(request, chance)),
    "is busy": lambda request, chance: retrieves.busy,
    "keeps still": lambda request, chance: retrieves.keep_still,
}

MOODS: Final = (*GREETINGS, *FINDS, *RETRIEVES)
"""The bad ones: while it is in one of these, requests may fail."""

EITHER_WAY: Final[tuple[Script, ...]] = (
    retrieves.honest,
    retrieves.honest,
    retrieves.without_counters,
    retrieves.without_pending,
    retrieves.send_twice,
    retrieves.sending(shape=wire.PACKED),
    retrieves.sending(shape=wire.TYPE_ZERO),
    retrieves.sending(pause=0.005),
)
MOVES_ONLY: Final[tuple[Script, ...]] = (
    retrieves.answering_before(1),
    retrieves.over_associations(2),
    retrieves.sending(originator=None),
)
"""With those before, what it does in its good mood: odd, as archives are, but it sends everything."""


def _some(request: Retrieve, chance: random.Random) -> list[Stored]:
    return [stored for stored in request.instances if chance.random() < 0.5]


@dataclass(frozen=True, slots=True)
class Settings:
    """`folder` holds the samples, `mood` is the file that names the mood; C-MOVEs go to the `destination` port."""

    port: int
    folder: str
    mood: str
    destination: Address
    seed: int


class MoodyArchive(ScriptedArchive):
    """A scripted archive that looks up its mood at every step, and forgets what is over."""

    def __init__(self, settings: Settings) -> None:
        self._mood = Path(settings.mood)
        self._chance = random.Random(settings.seed)
        samples = Corpus.load(Path(settings.folder))
        super().__init__(
            instances=[Stored(sample, samples.data_set(sample)) for sample in samples.samples],
            script=self._retrieve_in_mood,
            answer=self._find_in_mood,
            greeting=self._greet_in_mood,
            port=settings.port,
            destination=settings.destination,
        )

    def drop(self) -> None:
        """Reset every connection that is open."""
        for caller in self.callers:
            caller.end(wire.reset)
        for association in self.sending:
            wire.reset(association.channel)

    async def _greet_in_mood(self, caller: Caller) -> None:
        self._forget()
        await GREETINGS.get(self._mood.read_text(), greetings.welcome)(caller)

    async def _find_in_mood(self, find: Find) -> None:
        await FINDS.get(self._mood.read_text(), finds.answer_all)(find)

    async def _retrieve_in_mood(self, request: Retrieve) -> None:
        if (bad := RETRIEVES.get(self._mood.read_text())) is not None:
            script = bad(request, self._chance)
        else:
            script = self._chance.choice(EITHER_WAY + MOVES_ONLY if request.is_move else EITHER_WAY)
        await script(request)

    def _forget(self) -> None:
        """Keep nothing of the past: this runs for hours."""
        self.callers[:] = [caller for caller in self.callers if caller.channel.ended is None]
        self.sending[:] = [association for association in self.sending if association.is_open]
        for past in (self.requests, self.finds, self.proposed, self.cancelled_at, self.refusals):
            past.clear()


async def serve(settings: Settings) -> None:
    """Serve until the process is ended."""
    async with MoodyArchive(settings) as archive:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, archive.drop)
        await asyncio.Event().wait()


class Moody:
    """The process of the archive, and the handle on it. Use `start` and `stop`."""

    def __init__(self, folder: Path, samples: Corpus, destination: Address, seed: int) -> None:
        self.address = Address(AET, free_port())
        self._mood = folder / "mood"
        self._settings = Settings(self.address.port, str(samples.folder), str(self._mood), destination, seed)
        command = [sys.executable, "-m", "tests.soak.archive", json.dumps(asdict(self._settings))]
        self.process = Process(AET, command, folder, env=ENVIRONMENT)

    def start(self) -> None:
        """Start it, in its good mood."""
        self.be(GOOD)
        self.process.start(lambda: answers(self.address.port))

    def be(self, mood: str) -> None:
        """Put it into a mood, from its next step on."""
        new = self._mood.with_suffix(".new")
        new.write_text(mood)
        new.replace(self._mood)

    def drop(self) -> None:
        """Make it reset all its connections."""
        self.process.signal(signal.SIGUSR1)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(serve(Settings(**{**given, "destination": Address(**given["destination"])})))
