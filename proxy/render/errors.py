"""What can come of a job but its result. Messages are fit for a client: they hold nothing of the instance."""

from __future__ import annotations

from typing import Final

EXTRA_NEEDED: Final = "this needs the extra 'render': pip install dicomweb-proxy[render]"


class RenderError(Exception):
    """Base: a job gave no result."""


class NotPossibleError(RenderError):
    """The instance has no such form, or what it takes to make it is not installed."""


class NoSuchFrameError(RenderError):
    """The instance has fewer frames."""


class BusyError(RenderError):
    """Too many jobs are waiting; a later try may succeed."""


class TooSlowError(RenderError):
    """The job was ended after its time."""


class WorkerFailedError(RenderError):
    """The worker failed for a reason of its own, or was ended by the system for taking too much memory."""


_BY_NAME: Final = {kind.__name__: kind for kind in (NotPossibleError, NoSuchFrameError, WorkerFailedError)}


def from_name(name: str, message: str) -> RenderError:
    """The error of that name, as a worker has told it."""
    return _BY_NAME.get(name, WorkerFailedError)(message)
