"""HTTP Basic (RFC 7617): names and passwords, checked off the event loop and not again for each request."""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from proxy.addresses import Address
from proxy.config.security import User
from proxy.security.auth.errors import Refusal
from proxy.security.auth.failures import Failures
from proxy.security.auth.hashing import check_password_hash, normalized, require_argon2, verify_password
from proxy.security.auth.remembered import Remembered
from proxy.security.auth.rights import identity_with
from proxy.security.identity import Identity
from proxy.threads import in_thread

logger = logging.getLogger(__name__)

REMEMBERED_SECONDS: Final = 300.0
"""How long a name and password that were checked are not checked again: a viewer sends them with 1,000 requests."""

MAX_REMEMBERED: Final = 1000
"""Names with passwords that are remembered, right ones and wrong ones, each as a keyed hash."""

THREADS: Final = 2
"""Passwords that are checked at once, each with the memory that its hash asks for, 64 MiB by default."""

MAX_WAITING: Final = 32
"""Passwords that wait for their check or are in it: at some 0.2 s each, the last of them waits for 3 s."""

WRONG: Final = "the user name or the password is wrong"


class Passwords:
    """The users who sign in by name and password.

    A name that nobody has is checked like any other, against the hash of some user, so that the time does not tell
    which names there are.
    """

    def __init__(self, users: Iterable[User], clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `AuthSettingsError` and `MissingLibraryError`."""
        require_argon2()
        self._users: dict[str, tuple[str, Identity]] = {}
        for index, user in enumerate(users):
            check_password_hash(user.password_hash, f"auth.users[{index}].passwordHash")
            self._users[normalized(user.name)] = (user.password_hash, identity_with(user.name, "basic", user))
        self._hashes = [password_hash for password_hash, _ in self._users.values()]
        self._key = secrets.token_bytes(32)
        self._right = Remembered[Identity](REMEMBERED_SECONDS, MAX_REMEMBERED, clock)
        # A page that goes on with an old password has guessed once, not once for each request.
        self._wrong = Remembered[bool](REMEMBERED_SECONDS, MAX_REMEMBERED, clock)
        self._failures = Failures(clock)
        self._checks: dict[bytes, asyncio.Task[Identity | None]] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="passwords")

    async def close(self) -> None:
        """Wait for the checks that are under way, and end the threads."""
        if self._checks:
            await asyncio.wait(self._checks.values())
        self._threads.shutdown()

    async def identify(self, credentials: str, address: Address | None) -> Identity:
        """Who signs in with what follows `Basic` in the header; `address` is where from.

        Raises `Refusal`: 401 for what is wrong or no credentials at all, 429 for an address that has sent too much of
        that, 503 where too many wait already.
        """
        try:
            name, password = read_credentials(credentials)
        except ValueError:
            raise Refusal(401, "the header Authorization holds no user name and password (RFC 7617)") from None
        digest = self._digest(f"{name}\0{password}")
        identity = self._right.get(digest)
        if identity is None and self._wrong.get(digest) is None:
            # Shared by all who send the same at once, and not cancelled with any of them.
            identity = await asyncio.shield(self._checks.get(digest) or self._start(digest, name, password, address))
        if identity is None:
            raise Refusal(401, WRONG, claimed=self._claimed(name))
        return identity

    def _digest(self, text: str) -> bytes:
        # Keyed, so that what is remembered is of no use to whoever reads the memory of another time.
        return hmac.digest(self._key, text.encode(), "sha256")

    def _start(self, digest: bytes, name: str, password: str, address: Address | None) -> asyncio.Task[Identity | None]:
        if len(self._checks) >= MAX_WAITING:
            raise Refusal(503, "too many are signing in at the moment", retry_after=1)
        wait = self._failures.take(address)
        if wait:
            message = "too many wrong passwords came from this address"
            raise Refusal(429, message, retry_after=math.ceil(wait), claimed=self._claimed(name))
        check = asyncio.create_task(self._check(digest, name, password, address))
        self._checks[digest] = check
        check.add_done_callback(lambda _: self._checks.pop(digest))
        return check

    async def _check(self, digest: bytes, name: str, password: str, address: Address | None) -> Identity | None:
        known = self._users.get(name)
        password_hash = self._decoy(name) if known is None else known[0]
        matches = await in_thread(verify_password, password_hash, password, executor=self._threads)
        if known is None or not matches:
            self._wrong.note(digest, True)
            if self._failures.used_up(address):
                logger.warning("%s has sent too many wrong passwords, and can try another only now and then", address)
            return None
        self._failures.give_back(address)
        self._right.note(digest, known[1])
        return known[1]

    def _claimed(self, name: str) -> str:
        return name if name in self._users else ""

    def _decoy(self, name: str) -> str:
        """The hash for a name that nobody has: always the same for one name, as it is with those of users."""
        return self._hashes[int.from_bytes(self._digest(name)) % len(self._hashes)]


def read_credentials(credentials: str) -> tuple[str, str]:
    """The name and password that a client sends, as Base64 of UTF-8 (RFC 7617 2 and 2.1). Raises ValueError.

    What is no UTF-8 is Latin-1, in which Python's `requests` writes, and with it `dicomweb-client`.
    """
    data = base64.b64decode(credentials, validate=True)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    name, colon, password = text.partition(":")
    if not colon:
        raise ValueError("no colon")
    return normalized(name), normalized(password)
