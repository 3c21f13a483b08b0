"""What access control raises: refusals of requests, and settings that cannot be used."""

from __future__ import annotations

from typing import Literal

BearerError = Literal["invalid_request", "invalid_token", "insufficient_scope"]
"""The codes of RFC 6750 3.1."""


class Refusal(Exception):  # noqa: N818 - no error, but the answer to a request
    """A request that may not pass: the HTTP status, and words that neither name anybody nor repeat a credential.

    `bearer_error` is for the challenge, where a bearer token was the reason. `retry_after` is in seconds. `claimed` is
    the name under which somebody tried to sign in, for the audit alone; only of users that there are, and of holders
    of certificates: people type their passwords into the field for the name.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        bearer_error: BearerError | None = None,
        retry_after: int | None = None,
        claimed: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.bearer_error = bearer_error
        self.retry_after = retry_after
        self.claimed = claimed


class AuthSettingsError(Exception):
    """A value or a file of `auth` cannot be used; the message names the key and the reason."""


class MissingLibraryError(Exception):
    """A way to sign in needs a library that is not installed; the message says how to install it."""
