"""The keys of an identity provider as they are at the moment: fetched at the start, and again and again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from proxy.security.auth.errors import Refusal
from proxy.security.auth.jwks import Key, find_key
from proxy.security.auth.provider import ProviderError, Source

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 15 * 60.0
"""How long until the keys are fetched again: one that the provider takes back counts for that long at most."""

RETRY_SECONDS: Final = 30.0
"""The same where the last attempt failed."""

UNKNOWN_SECONDS: Final = 60.0
"""An unknown key is a reason to fetch at most that often, since anybody can make one up."""

KEPT_SECONDS: Final = 24 * 3600.0
"""How long keys stay in use while the provider does not answer; after that no token is taken."""


class Keyring:
    """Keys from `source`, which `start` and `close` begin and end to fetch."""

    def __init__(self, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._keys: list[Key] | None = None
        self._fetched = self._asked = -float("inf")
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None
        self._keeping_fresh: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Fetch the keys from now on."""
        self._keeping_fresh = asyncio.create_task(self._keep_fresh())

    async def close(self) -> None:
        """End what is under way."""
        for task in (self._keeping_fresh, self._fetching):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key for a token, by its name (`kid`), which may be one that the provider has only just begun to use.

        None where there is none. Raises `Refusal` where nothing is known of the provider's keys.
        """
        key = self._find(kid, algorithm)
        if key is None and (self._fetching is not None or self._clock() - self._asked >= UNKNOWN_SECONDS):
            await self._fetch()
            key = self._find(kid, algorithm)
        if key is None and self._known is None:
            message = "tokens cannot be checked at the moment: the identity provider does not answer"
            raise Refusal(503, message, retry_after=int(RETRY_SECONDS))
        return key

    @property
    def _known(self) -> list[Key] | None:
        return self._keys if self._clock() - self._fetched < KEPT_SECONDS else None

    def _find(self, kid: str | None, algorithm: str) -> Key | None:
        return find_key(self._known or (), kid, algorithm)

    async def _keep_fresh(self) -> None:
        while True:
            await self._fetch()
            await asyncio.sleep(RETRY_SECONDS if self._failed else FRESH_SECONDS)

    async def _fetch(self) -> None:
        """Fetch the keys, once for all who want them at a time; where that fails, those of before stay."""
        if self._fetching is None:
            self._asked = self._clock()
            self._fetching = asyncio.create_task(self._fetch_once())
        await asyncio.shield(self._fetching)

    async def _fetch_once(self) -> None:
        try:
            self._keys = await self._source()
        except ProviderError as error:
            if not self._failed:
                logger.warning("the keys for tokens of the identity provider cannot be had (key: auth.jwt): %s", error)
            self._failed = True
        except Exception:
            logger.exception("fetching the keys for tokens of the identity provider failed")
            self._failed = True
        else:
            self._fetched = self._clock()
            if self._failed:
                logger.info("the identity provider answers again")
            self._failed = False
        finally:
            self._fetching = None
