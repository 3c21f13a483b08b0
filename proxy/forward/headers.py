"""Which header fields are handed on, and which are added: towards the upstream, and back to the client."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from aiohttp import HttpVersion, web
from multidict import CIMultiDict
from yarl import URL

from proxy.dicomweb.urls import base_url
from proxy.security.clients import client_address
from proxy.security.identity import identity_of

HOP_BY_HOP: Final = frozenset(  # RFC 9110 7.6.1, and those of older texts that programs still send
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"}
)
"""Fields that are about one connection. So are all that `Connection` names, and all that begin with `Proxy-`."""

CLAIMED: Final = frozenset(
    {"forwarded", "x-real-ip", "x-original-host", "x-original-url", "x-rewrite-url", "x-host", "via", "max-forwards"}
    | {"x-http-method-override", "x-http-method", "x-method-override"}
    | {"client-ip", "true-client-ip", "x-client-ip", "x-cluster-client-ip"}
    | {"proxy"}  # CGI programs take it for the environment variable HTTP_PROXY
)
"""Fields of a request that say where it comes from, or name another path or method than it does, by which rights were
looked at: the proxy's own words replace them. So it is with all that begin with `X-Forwarded-`."""

ANSWERED_HERE: Final = frozenset({"host", "expect", "origin"})
"""Fields of a request that are settled between client and proxy. Without `Origin`, a server with a list of its own does
not refuse what the proxy's `cors` allows."""

OF_ANOTHER_ORIGIN: Final = frozenset({"alt-svc", "strict-transport-security"})
"""Fields of an answer by which the upstream speaks for its own host and port, and not for the proxy's."""

OF_OTHER_BYTES: Final = ("Content-Length", "Content-MD5", "Content-Digest", "Repr-Digest", "Digest", "Accept-Ranges")
"""Fields of an answer that are no longer true when its body is rewritten."""

_MAX_FORWARDS: Final = re.compile(r"[0-9]{1,9}")

_SIGNED_IN_BY_AUTHORIZATION: Final = ("basic", "token", "jwt")


def towards_upstream(request: web.Request, *, via: str, authorization: str | None, rewrites: bool) -> CIMultiDict[str]:
    """The header fields of the request for the upstream.

    `authorization` is the proxy's own, which takes the place of the client's. Where answers are rewritten, they are
    asked for without a content coding.
    """
    hidden = set(ANSWERED_HERE | CLAIMED)
    if authorization is not None or _is_for_proxy(request):
        hidden.add("authorization")
    if rewrites:
        hidden.add("accept-encoding")
    fields = CIMultiDict(
        (name, sendable(value))
        for name, value in _end_to_end(request.headers)
        if not _is_claim(name) and name.lower() not in hidden
    )
    if rewrites:
        fields["Accept-Encoding"] = "identity"
    if authorization is not None:
        fields["Authorization"] = authorization
    if hops := max_forwards(request):
        fields["Max-Forwards"] = str(hops - 1)
    fields["Via"] = _via(request.headers.getall("Via", []), request.version, via)
    _say_for_whom(request, fields)
    return fields


def max_forwards(request: web.Request) -> int | None:
    """How often an `OPTIONS` may be handed on (RFC 9110 7.6.2); None where it does not say so."""
    said = _MAX_FORWARDS.fullmatch(request.headers.get("Max-Forwards", ""))
    return int(said[0]) if said is not None and request.method == "OPTIONS" else None


def towards_client(fields: Mapping[str, str], version: HttpVersion | None, via: str) -> CIMultiDict[str]:
    """The header fields of the upstream's answer for the client; of its CORS `security.cors` makes the proxy's own."""
    kept = CIMultiDict(
        (name, sendable(value)) for name, value in _end_to_end(fields) if name.lower() not in OF_ANOTHER_ORIGIN
    )
    kept["Via"] = _via(kept.popall("Via", []), version, via)
    return kept


def note_rewriting(fields: CIMultiDict[str]) -> None:
    """Remove from an answer's header fields what is about the bytes of its body, which become others."""
    for name in (*OF_OTHER_BYTES, "Content-Encoding"):
        fields.popall(name, None)
    tag = fields.get("ETag", "")
    if tag.startswith('"'):
        fields["ETag"] = f"W/{tag}"  # the same content, but no longer the same bytes (RFC 9110 8.8.1)


def sendable(value: str) -> str:
    """A field's value as text that can be sent: octets that are no UTF-8 are taken for ISO 8859-1 (RFC 9110 5.5)."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("latin-1")
    return value


def _end_to_end(fields: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    named = {
        _plain(option.strip())
        for name, value in fields.items()
        if name.lower() == "connection"
        for option in value.split(",")
    }
    for name, value in fields.items():
        plain = _plain(name)
        if plain not in HOP_BY_HOP and plain not in named and not plain.startswith("proxy-"):
            yield name, value


def _is_claim(name: str) -> bool:
    plain = _plain(name)
    return plain in CLAIMED or plain.startswith(("x-forwarded-", "access-control-request-"))


def _plain(name: str) -> str:
    """A field's name as servers see it that take "_" for "-" (RFC 3875 4.1.18)."""
    return name.lower().replace("_", "-")


def _is_for_proxy(request: web.Request) -> bool:
    """Tell whether `Authorization` is what the client signs in with at the proxy itself."""
    identity = identity_of(request)
    return identity is not None and identity.kind in _SIGNED_IN_BY_AUTHORIZATION


def _via(before: Iterable[str], version: HttpVersion | None, name: str) -> str:
    """The value of `Via` (RFC 9110 7.6.3)."""
    received = f"{version.major}.{version.minor}" if version is not None else "1.1"
    return ", ".join([*before, f"{received} {name}"])


def _say_for_whom(request: web.Request, fields: CIMultiDict[str]) -> None:
    """Say who asks, and by which address of the proxy: `Forwarded` (RFC 7239) and its predecessors.

    `Forwarded` goes without `host`: a host with a port would have to be quoted, and there are servers, Orthanc among
    them, that make URLs with the quotation marks in them.
    """
    client, public = client_address(request), URL(base_url(request), encoded=True)
    fields["X-Forwarded-Host"] = public.raw_authority
    fields["X-Forwarded-Proto"] = public.scheme
    node = "unknown"
    if client is not None:
        fields["X-Forwarded-For"] = str(client)
        node = f'"[{client}]"' if client.version == 6 else str(client)
    fields["Forwarded"] = f"for={node};proto={public.scheme}"
