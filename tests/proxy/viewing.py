"""Users who may use only some of the archives, and two archives that have a study in parts, for the tests of views."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from proxy import app as proxy_app
from proxy.security.identity import Identity, identify
from tests import corpus
from tests.faultpeer import Stored
from tests.proxy.dicomfiles import quiet
from tests.proxy.rendering import image, read
from tests.proxy.retrieved import Answer, digests, get, path_of, read_parts
from tests.proxy.running import Proxy

USER = "X-User"
"""The header by which a test says who it is."""

HERE, THERE, NOWHERE = "ALPHA", "BRAVO", "CHARLIE"
"""AE titles and names of the archives. Nobody listens at the last one."""

USERS: Mapping[str, frozenset[str] | None] = {
    "everywhere": None,
    "here": frozenset({HERE}),
    "there": frozenset({THERE}),
    "both": frozenset({HERE, THERE}),
    "none": frozenset(),
    "nowhere": frozenset({NOWHERE}),
}
"""Which archives each user may use."""

STUDY, OTHER_STUDY = 71, 72
DARK, BRIGHT = 1000, 3000
"""Values of the pixels of what lies here, and there."""


def sign_users_in(monkeypatch: pytest.MonkeyPatch, users: Mapping[str, frozenset[str] | None] = USERS) -> None:
    """Have proxies that are started from now on believe the header `USER`; without it, nobody is noted."""
    build_app = proxy_app.build_app

    @web.middleware
    async def sign_in(request: web.Request, handler: proxy_app.Handler) -> web.StreamResponse:
        name = request.headers.get(USER)
        if name is not None:
            identify(request, Identity(name, "basic", users[name], write=True, admin=True))
        return await handler(request)

    def with_users(*arguments: Any, **more: Any) -> web.Application:
        app = build_app(*arguments, **more)
        app.middlewares.append(sign_in)
        return app

    monkeypatch.setattr("proxy.service.build_app", with_users)


def picture(series: int, number: int, value: int, study: int = STUDY) -> Stored:
    """Make an image of one value; where it lies in two archives, they have it under the same UIDs."""
    data_set = corpus.header(corpus.CT_STUDY, study, series, number)
    data_set.ImageComments = f"value {value}"
    corpus.add_pixels(data_set, 32, np.full(32 * 32, value, dtype=np.uint16).tobytes())
    data_set.WindowCenter, data_set.WindowWidth = 2048, 4096
    return Stored.of(corpus.encode(data_set))


def pictures(series: int, numbers: Iterable[int], value: int, study: int = STUDY) -> list[Stored]:
    """Make several."""
    return [picture(series, number, value, study) for number in numbers]


# The first series lies here, the third there, the second in parts; of the fourth, each has an instance of its own by
# the same UID.
HELD: Mapping[str, Sequence[Stored]] = {
    HERE: [*pictures(1, (1, 2), DARK), picture(2, 1, DARK), picture(4, 1, DARK)],
    THERE: [
        picture(2, 2, BRIGHT),
        *pictures(3, (1, 2), BRIGHT),
        picture(4, 1, BRIGHT),
        *pictures(1, (1,), BRIGHT, OTHER_STUDY),
    ],
}
ALL = [stored for held in HELD.values() for stored in held]


def uid_of(stored: Stored) -> str:
    return stored.sample.sop_instance_uid


@cache
def part10(stored: Stored) -> bytes:
    """Return an instance as a file."""
    sample = stored.sample
    meta = corpus.encode(corpus.header(corpus.CT_STUDY, 1, 1, 1))
    assert sample.transfer_syntax_uid == corpus.ExplicitVRLittleEndian
    with quiet():
        data_set = read(meta[: -len(corpus.data_set_bytes(meta))] + stored.whole)
    return corpus.encode(data_set)


@dataclass(frozen=True)
class User:
    """Somebody who uses a proxy, and what they must get of it."""

    proxy: Proxy
    name: str

    @property
    def held(self) -> dict[str, list[Stored]]:
        """What the archives that they may use have, by SOP Instance UID; there may be two of one UID."""
        permitted = USERS[self.name]
        found: dict[str, list[Stored]] = {}
        for archive, held in HELD.items():
            for stored in held if permitted is None or archive in permitted else ():
                found.setdefault(uid_of(stored), []).append(stored)
        return found

    @property
    def forbidden(self) -> list[str]:
        """The archives of which they must not hear."""
        permitted = USERS[self.name]
        return [] if permitted is None else [name for name in (HERE, THERE, NOWHERE) if name not in permitted]

    async def get(self, path: str, **headers: str) -> Answer:
        """Ask, and see that the answer names no archive that they must not hear of."""
        answer = await get(self.proxy, path, **headers, **{USER: self.name})
        for name in self.forbidden:
            assert name.encode() not in answer.body, path
            assert name not in str(answer.headers), path
        return answer

    # --- searches --------------------------------------------------------------------------------------------

    async def found(self, path: str, tag: str) -> list[str]:
        """Search; return the values of an attribute, sorted."""
        answer = await self.get(path)
        assert answer.status == 200, answer.body
        return sorted(each[tag]["Value"][0] for each in json.loads(answer.body))

    async def check_searches(self) -> None:
        """Every search finds what there is for this user, and nothing else."""
        samples = [held[0].sample for held in self.held.values()]
        studies = sorted({each.study_uid for each in samples})
        series = sorted({each.series_uid for each in samples})
        instances = sorted(self.held)
        assert await self.found("/studies", "0020000D") == studies
        assert await self.found("/series", "0020000E") == series
        assert await self.found("/instances", "00080018") == instances
        for study in (corpus.uid(corpus.CT_STUDY, number) for number in (STUDY, OTHER_STUDY)):
            own = [each for each in samples if each.study_uid == study]
            expected = sorted({each.series_uid for each in own})
            assert await self.found(f"/studies?StudyInstanceUID={study}", "0020000D") == sorted({study} & {*studies})
            assert await self.found(f"/studies/{study}/series", "0020000E") == expected
            assert await self.found(f"/studies/{study}/instances", "00080018") == sorted(
                each.sop_instance_uid for each in own
            )
        for each in {stored.sample.series_uid: stored for stored in ALL}.values():
            path = path_of(each.sample, "series") + "/instances"
            assert await self.found(path, "00080018") == self._uids_in(each, "series")

    # --- retrievals ------------------------------------------------------------------------------------------

    def _uids_in(self, stored: Stored, level: str) -> list[str]:
        """The instances that this user must get of the study, series or instance that one is (in)."""
        path = path_of(stored.sample, level)
        return sorted(uid for uid, held in self.held.items() if (path_of(held[0].sample) + "/").startswith(path + "/"))

    async def check_retrieval(self, stored: Stored, level: str, suffix: str = "") -> Answer | None:
        """Ask for a study, series or instance: either there is something for this user, or it is a 404."""
        answer = await self.get(path_of(stored.sample, level) + suffix)
        if not self._uids_in(stored, level):
            answer.failure(404)
            return None
        assert answer.status == 200, answer.body
        return answer

    async def check_files(self, stored: Stored, level: str) -> str | None:
        """WADO-RS: all instances, and each as an archive has it that this user may use. Returns `X-Cache`."""
        answer = await self.check_retrieval(stored, level)
        if answer is None:
            return None
        files = [part.content for part in read_parts(answer.body, answer.content_type)]
        uids = {each.whole: uid for uid, held in self.held.items() for each in held}
        assert sorted(uids[corpus.data_set_bytes(file)] for file in files) == self._uids_in(stored, level)
        return answer.headers["X-Cache"]

    async def check_metadata(self, stored: Stored, level: str) -> None:
        """The metadata are those of the instances that this user may get."""
        answer = await self.check_retrieval(stored, level, "/metadata")
        if answer is not None:
            models = {each["00080018"]["Value"][0]: each["00204000"]["Value"][0] for each in json.loads(answer.body)}
            assert sorted(models) == self._uids_in(stored, level)
            for uid, comment in models.items():
                assert comment in [str(read(part10(each)).ImageComments) for each in self.held[uid]]

    async def check_instance(self, stored: Stored) -> None:
        """An instance by all other ways, or a 404 by each of them."""
        sample, values = stored.sample, self._values(stored)
        uids = f"studyUID={sample.study_uid}&seriesUID={sample.series_uid}&objectUID={sample.sop_instance_uid}"
        by_uri = f"/wado?requestType=WADO&{uids}"
        path = path_of(sample)
        for url in (f"{path}?multipart=false", f"{by_uri}&contentType=application/dicom"):
            answer = await self.get(url)
            if values:
                assert digests([answer.body])
                assert corpus.data_set_bytes(answer.body) in [each.whole for each in self.held[uid_of(stored)]]
            else:
                answer.failure(404)
        for url in (f"{path}/frames/1", f"{path}/bulkdata/7FE00010"):
            answer = await self.get(url, Accept="application/octet-stream")
            if values:
                assert answer.body in [np.full(32 * 32, value, dtype=np.uint16).tobytes() for value in values]
            else:
                answer.failure(404)
        for url in (f"{path}/rendered", f"{path}/thumbnail", f"{path}/frames/1/rendered"):
            self._check_image(await self.get(url, Accept="image/png"), values)
        self._check_image(await self.get(f"{by_uri}&contentType=image/png"), values)

    async def check_pictures_of(self, stored: Stored, level: str) -> None:
        """The image that stands for a study or series is one that this user may see, and so are all as parts."""
        uids = self._uids_in(stored, level)
        values = {value for uid in uids for value in self._values(self.held[uid][0])}
        for suffix in ("/rendered", "/thumbnail"):
            self._check_image(await self.get(path_of(stored.sample, level) + suffix, Accept="image/png"), values)
        wanted = 'multipart/related; type="image/png"'
        answer = await self.get(path_of(stored.sample, level) + "/rendered", Accept=wanted)
        if uids:
            assert answer.status == 200, answer.body
            assert sum(f"/instances/{uid}/frames/1/rendered".encode() in answer.body for uid in uids) == len(uids)
            assert answer.body.count(b"Content-Location") == len(uids)
        else:
            answer.failure(404)

    def _values(self, stored: Stored) -> set[int]:
        held = self.held.get(uid_of(stored), [])
        return {int(str(read(part10(each)).ImageComments).removeprefix("value ")) for each in held}

    @staticmethod
    def _check_image(answer: Answer, values: set[int]) -> None:
        if not values:
            answer.failure(404)
            return
        (shown,) = set(image(answer).flat)
        assert any(abs(int(shown) - value / 4096 * 255) < 3 for value in values), shown

    async def check_all(self) -> None:
        """By every way, each thing that there is for anybody."""
        await self.check_searches()
        for level in ("study", "series", "instance"):
            for stored in {path_of(each.sample, level): each for each in ALL}.values():
                await self.check_files(stored, level)
                await self.check_metadata(stored, level)
                if level == "instance":
                    await self.check_instance(stored)
                else:
                    await self.check_pictures_of(stored, level)

    async def check_some(self) -> None:
        """The same more shortly: what lies in two archives, and what lies in one."""
        await self.check_files(ALL[0], "study")
        for stored in {each.sample.series_uid: each for each in ALL}.values():
            await self.check_files(stored, "series")
            await self.check_files(stored, "instance")
            await self.check_metadata(stored, "series")
