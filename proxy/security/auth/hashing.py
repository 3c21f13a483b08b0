"""Hashes in the place of secrets: passwords by Argon2 (RFC 9106), tokens by SHA-256.

A token is 256 random bits, which nobody can guess, so a fast hash hides it as well as a slow one.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from typing import Final

from proxy.security.auth.errors import AuthSettingsError, MissingLibraryError

MIN_PASSWORD: Final = 8
"""Characters of a password (NIST SP 800-63B 5.1.1.2)."""

MAX_MEMORY_KIB: Final = 1024 * 1024
"""Memory that the hash of one password may ask for. argon2-cffi's own default is 64 MiB."""

_TOKEN_BYTES: Final = 32
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""The last of these are what Python makes of bytes that are no UTF-8."""


def normalized(text: str) -> str:
    """A user name or password as it is compared: keyboards and systems encode the same letters differently.

    Raises ValueError for control characters, which neither may hold (RFC 7617 2).
    """
    if _CONTROL.search(text):
        raise ValueError("control characters")
    return unicodedata.normalize("NFC", text)


def require_argon2() -> None:
    """Raise `MissingLibraryError` where passwords cannot be checked."""
    try:
        import argon2  # noqa: F401, PLC0415 - an extra, which only sites with passwords need
    except ImportError as error:
        raise MissingLibraryError(
            "passwords (key: auth.users) need argon2-cffi, which comes with the extra auth: pip install '.[auth]'"
        ) from error


def hash_password(password: str) -> str:
    """The hash of a password for the configuration, with a salt of its own.

    Raises ValueError, with words for the user, for a password that should not be taken.
    """
    try:
        password = normalized(password)
    except ValueError:
        raise ValueError("a password cannot hold control characters") from None
    if len(password) < MIN_PASSWORD:
        raise ValueError(f"a password needs at least {MIN_PASSWORD} characters")
    require_argon2()
    from argon2 import PasswordHasher  # noqa: PLC0415

    return PasswordHasher().hash(password)


def verify_password(password_hash: str, password: str) -> bool:
    """Tell whether a password has that hash. Takes some 0.2 s of the processor and 64 MiB, so not for the event loop.

    Raises `argon2.exceptions.VerificationError` where that cannot be told, such as for want of memory.
    """
    from argon2 import PasswordHasher  # noqa: PLC0415
    from argon2.exceptions import VerifyMismatchError  # noqa: PLC0415

    try:
        return PasswordHasher().verify(password_hash, password)
    except VerifyMismatchError:
        return False


def check_password_hash(password_hash: str, key: str) -> None:
    """Raise `AuthSettingsError`, which names `key`, for a hash that Argon2 could not use, or not in bounds."""
    from argon2 import extract_parameters  # noqa: PLC0415
    from argon2.exceptions import InvalidHashError  # noqa: PLC0415

    try:
        parameters = extract_parameters(password_hash)
    except (InvalidHashError, ValueError):
        raise AuthSettingsError(f"{key}: is no whole hash; `python -m proxy hash-password` makes one") from None
    if parameters.memory_cost > MAX_MEMORY_KIB:
        raise AuthSettingsError(f"{key}: asks for more than {MAX_MEMORY_KIB // 1024} MiB of memory")


def new_token() -> str:
    """A bearer token: 256 random bits in 43 characters that a header may hold (RFC 6750 2.1)."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def token_hash(token: str) -> str:
    """The hash of a token for the configuration: SHA-256 in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()
