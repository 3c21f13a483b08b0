"""The upstream's addresses, and how they become the proxy's own: in header fields, in DICOM JSON and in XML.

Known are the configured URLs, however their scheme, host and default port are spelled, and what an upstream makes of
them that goes by `X-Forwarded-Host`: the proxy's host with the upstream's path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from xml.sax.saxutils import escape

from yarl import URL

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_DEFAULT_PORT: Final = "(?::(?:80|443))?"


@dataclass(frozen=True, slots=True)
class Substitution:
    """Puts `replacement` in the place of each match of `pattern`.

    To see whether there is a match, no more is looked at than one byte before it and `longest` from its beginning on.
    """

    pattern: re.Pattern[bytes]
    replacement: bytes
    longest: int


class Addresses:
    """The upstream's addresses `bases`, and `public`, the proxy's own; all without a trailing slash."""

    def __init__(self, bases: Iterable[URL], public: str) -> None:
        own = tuple(bases)
        known = [*own, *_by_forwarded_host(own, URL(public, encoded=True))]
        # The longest path first: one base may lie below another.
        known.sort(key=lambda url: len(url.raw_path), reverse=True)
        self._public = public
        self._address = re.compile(f"http(?:{_any_of(known, '/')})(?=[/?#]|$)")
        in_json = _any_of(known, r"\\?/")
        longest = 2 * max(len(str(url)) for url in known) + 16  # each slash may have a backslash, and a port be added
        self.json = Substitution(
            # Behind what comes before a value, so that a quotation mark within a text does not count.
            _bytes_pattern(rf'"http(?<=[\[:,\s]"http)(?:{in_json})(?=\\?/|[?#"])'),
            b'"' + json.dumps(public)[1:-1].encode("ascii"),
            longest,
        )
        """For JSON (RFC 8259): string values that begin with an address; slashes may be escaped."""
        self.xml = Substitution(
            _bytes_pattern(rf"""http(?<=["'>]http)(?:{_any_of(known, "/")})(?=[/?#"'<])"""),
            escape(public, {'"': "&quot;", "'": "&apos;"}).encode("ascii"),
            longest,
        )
        """For XML: texts and attribute values that begin with an address."""

    def rewritten(self, value: str, asked: URL) -> str | None:
        """The proxy's address for one of the upstream's, absolute or relative to the URL `asked`; None for others."""
        try:
            url = str(asked.join(URL(value, encoded=True)))
        except ValueError:
            return None
        match = self._address.match(url)
        return None if match is None else self._public + url[match.end() :]


@lru_cache(maxsize=64)
def addresses(bases: tuple[URL, ...], public: str) -> Addresses:
    """The same, made once for each address that clients use."""
    return Addresses(bases, public)


def _by_forwarded_host(bases: Iterable[URL], public: URL) -> Iterator[URL]:
    for base in bases:
        if base.raw_path != "/":
            yield URL.build(scheme=public.scheme, authority=public.raw_authority, path=base.raw_path, encoded=True)


def _bytes_pattern(pattern: str) -> re.Pattern[bytes]:
    return re.compile(pattern.encode("ascii"))


def _any_of(urls: Iterable[URL], slash: str) -> str:
    """A regular expression for what follows "http" in each of `urls`, with `slash` for each slash."""
    return "|".join(dict.fromkeys(_spelled(url, slash) for url in urls))


def _spelled(url: URL, slash: str) -> str:
    # Behind something that ends TLS, servers write http where https would be right.
    host, port = re.escape(url.host_subcomponent or ""), url.port
    spelled_port = _DEFAULT_PORT if port == _DEFAULT_PORTS[url.scheme] else f":{port}"
    path = re.escape(url.raw_path.rstrip("/")).replace("/", slash)
    return f"(?i:s?:{slash}{slash}{host}){spelled_port}{path}"
