"""The jobs by their names. What needs numpy or Pillow is imported with the first job that needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO, Final

from proxy.render import documents, instances
from proxy.render.jobs import Result


def _picture(source: BinaryIO, **arguments: Any) -> Result:
    from proxy.render import picture  # noqa: PLC0415

    return picture.picture(source, **arguments)


def _animation(source: BinaryIO, **arguments: Any) -> Result:
    from proxy.render import picture  # noqa: PLC0415

    return picture.animation(source, **arguments)


def _frame(source: BinaryIO, **arguments: Any) -> Result:
    from proxy.render import decompress  # noqa: PLC0415

    return decompress.frame(source, **arguments)


JOBS: Final[dict[str, Callable[..., Result]]] = {
    "animation": _animation,
    "document": documents.document,
    "frame": _frame,
    "instance": instances.instance,
    "picture": _picture,
    "report": documents.report,
}
