"""Where a request goes: below one of the configured URLs, and never anywhere else.

What might lead out of a base path, or be read in more than one way on the way there, is refused and not repaired.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote_plus, unquote_to_bytes

from yarl import URL

from proxy.dicomweb.attributes import Resource
from proxy.dicomweb.errors import BadRequest

SEARCHES: Final = re.compile(
    "|".join(re.sub(r"\{\w+\}", "[^/]+", resource.value) + "/?" for resource in Resource), re.ASCII
)
"""The paths of QIDO-RS's search transactions (PS3.18 Table 10.6.1-1)."""

MAX_DECODINGS: Final = 3
"""How often a path is percent-decoded to look what it hides. Each server of a chain may decode it once more."""

METHOD_PARAMETER: Final = "_method"
"""In a query, some servers (Orthanc, for one) take it for the method in the place of the real one."""

_ABSOLUTE: Final = re.compile(r"https?://[^/?#]*", re.ASCII | re.IGNORECASE)
_URL_TEXT: Final = re.compile(r"[!-\"$-~]+")
_CONTROLS: Final = re.compile(rb"[\x00-\x1f\x7f]")
_DOTS: Final = (b".", b"..")


def is_search(method: str, path: str) -> bool:
    """Tell a search (QIDO-RS) from all else, such as a retrieval or an upload."""
    return method in ("GET", "HEAD") and SEARCHES.fullmatch(path) is not None


def origin_form(target: str) -> str:
    """The path and query of a request target that is an absolute URL (RFC 9112 3.2.2); any other as it is.

    Whose URL it is does not matter here: it says nothing of where the request goes.
    """
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return target
    rest = target[absolute.end() :]
    return rest if rest.startswith("/") else f"/{rest}"


def check_target(target: str) -> None:
    """Raise `BadRequest` for a request target that is no plain path and query (RFC 9112 3.2.1, origin-form).

    Neither an absolute URL nor a network path (`//host`), and in the path no dot segments, backslashes, control
    characters or what is no UTF-8, also not behind percent-encodings, once or several times, nor with parameters
    (`..;x`). In the query, nothing that names another method.
    """
    if not target.startswith("/") or target.startswith("//"):
        raise BadRequest("the request must name a path that begins with one slash")
    if not _URL_TEXT.fullmatch(target):
        raise BadRequest("the request's URL holds characters that must be percent-encoded")
    text, _, query = target.partition("?")
    if any(unquote_plus(each.partition("=")[0]).lower() == METHOD_PARAMETER for each in re.split("[&;]", query)):
        raise BadRequest("the request's URL names a method, which may be another one than its own")
    path = text.encode("ascii")
    for _ in range(MAX_DECODINGS):
        _check_path(path)
        decoded = unquote_to_bytes(path)
        if decoded == path:
            return
        path = decoded
    _check_path(path)


def _check_path(path: bytes) -> None:
    if _CONTROLS.search(path) or b"\\" in path:
        raise BadRequest("the path holds a control character or a backslash")
    try:
        path.decode("utf-8")  # which refuses dots and slashes that are encoded in more bytes than they need
    except UnicodeDecodeError:
        raise BadRequest("the path holds what is no UTF-8") from None
    if any(segment.partition(b";")[0] in _DOTS for segment in path.split(b"/")):
        raise BadRequest("the path holds dot segments")


class Target(NamedTuple):
    """Where a request goes, and the configured URL that it lies below."""

    url: URL
    base: URL


class Bases:
    """The two configured URLs: of searches, and of all else. They may be the same."""

    def __init__(self, qido: str, wado: str) -> None:
        self.qido = URL(qido, encoded=True)
        self.wado = URL(wado, encoded=True)

    @property
    def all(self) -> tuple[URL, ...]:
        """The URLs, each once."""
        return (self.qido,) if self.qido == self.wado else (self.qido, self.wado)

    def target(self, method: str, text: str) -> Target:
        """Where the request for `text`, a path with or without query, goes. The query is not touched.

        Raises `BadRequest` for what `check_target` refuses.
        """
        check_target(text)
        path = text.partition("?")[0]
        return below(self.qido if is_search(method, path) else self.wado, text)


def below(base: URL, text: str) -> Target:
    """What `text`, a path with or without query, is below a configured URL."""
    path, _, query = text.partition("?")
    # From the parts, so that nothing in the path can become a part of the host.
    url = URL.build(
        scheme=base.scheme,
        authority=base.raw_authority,
        path=base.raw_path.rstrip("/") + path,
        query_string=query,
        encoded=True,
    )
    return Target(url, base)
