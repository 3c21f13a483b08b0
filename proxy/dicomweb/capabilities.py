"""Retrieve Capabilities (PS3.18 8.9): what the server can be asked for, as WADL (PS3.18 Annex H) or the same in JSON.

Made from the routes, so that it cannot say anything else than what is served. `OPTIONS` on a resource describes that
and what lies below it; a preflight is no such request and is left to CORS.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from xml.sax.saxutils import quoteattr

from aiohttp import web

from proxy.dicomweb.accept import Offer, choose, parse_accept
from proxy.dicomweb.errors import BadRequest
from proxy.dicomweb.transactions import Transaction, template_of, transaction_of
from proxy.dicomweb.urls import base_url
from proxy.security.http.cors import is_preflight

WADL: Final = Offer("application/vnd.sun.wadl+xml")
JSON: Final = Offer("application/json")

NAMESPACE: Final = "http://wadl.dev.java.net/2009/02"

PATH: Final = "/conformance"
"""Where the document can be had by GET, with a browser."""

MAX_NAMED: Final = 64
"""Characters of a parameter's name that an answer repeats."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class _Node:
    """A segment of a path: its methods, and the segments below it."""

    template: str = "/"
    methods: dict[str, Transaction] = field(default_factory=dict)
    below: dict[str, _Node] = field(default_factory=dict)


class Capabilities:
    """What the routes, given as method and path, let a client do."""

    def __init__(self, routes: Iterable[tuple[str, str]]) -> None:
        self._methods: dict[str, set[str]] = {}
        self._root = _Node()
        for method, path in routes:
            template = template_of(path)
            self._methods.setdefault(template, {"OPTIONS"}).add(method)
            if transaction := transaction_of(method, path):
                self._node(template, make=True).methods[method] = transaction

    def allowed(self, template: str) -> str:
        """The value of `Allow` for a resource (RFC 9110 10.2.1)."""
        return ", ".join(sorted(self._methods[template]))

    def transaction(self, method: str, template: str) -> Transaction | None:
        """What PS3.18 calls that method of that resource, if it knows it."""
        return self._node(template).methods.get(method)

    def describes(self, template: str) -> bool:
        """True where there is anything to describe at or below a resource."""
        node = self._node(template)
        return bool(node.methods or node.below)

    def wadl(self, base: str, template: str) -> str:
        """The document for a resource and those below it (PS3.18 Annex H)."""
        lines = [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f'<application xmlns="{NAMESPACE}">',
            f"<resources base={quoteattr(base + '/')}>",
            *_wadl_resources(self._node(template)),
            "</resources>",
            "</application>",
        ]
        return "\n".join(lines) + "\n"

    def json(self, base: str, template: str) -> dict[str, Any]:
        """The same for programs that read no XML: one entry for each resource."""
        return {
            "base": base,
            "resources": [_json_resource(node) for node in _all(self._node(template)) if node.methods],
        }

    def _node(self, template: str, *, make: bool = False) -> _Node:
        node = self._root
        for part in filter(None, template.split("/")):
            below = node.below.get(part) or _Node(f"{node.template.rstrip('/')}/{part}")
            if make:
                node.below[part] = below
            node = below
        return node


CAPABILITIES: Final = web.AppKey("capabilities", Capabilities)


async def retrieve(request: web.Request) -> web.Response:
    """The handler of `GET` on the document itself."""
    return _document(request, "/", {})


@web.middleware
async def answer_options(request: web.Request, handler: Handler) -> web.StreamResponse:
    """`OPTIONS` on any resource (RFC 9110 9.3.7), unless it is a preflight."""
    resource = request.match_info.route.resource
    if request.method != "OPTIONS" or resource is None or is_preflight(request):
        return await handler(request)
    capabilities = request.app[CAPABILITIES]
    headers = {"Allow": capabilities.allowed(resource.canonical)}
    if not capabilities.describes(resource.canonical):
        return web.Response(status=204, headers=headers)
    return _document(request, resource.canonical, headers)


@web.middleware
async def check_parameters(request: web.Request, handler: Handler) -> web.StreamResponse:
    """400 for a query parameter that the resource does not have, or that is given twice: to pass over it would
    answer another request than the client's."""
    resource = request.match_info.route.resource
    if resource is None or not request.query:
        return await handler(request)
    transaction = request.app[CAPABILITIES].transaction(request.method, resource.canonical)
    if transaction is not None and not transaction.by_attribute:
        _check(request, transaction)
    return await handler(request)


def _check(request: web.Request, transaction: Transaction) -> None:
    for name in request.query:
        if name not in transaction.parameters:
            spoken = f" '{name}'" if name.isascii() and name.isidentifier() and len(name) <= MAX_NAMED else ""
            raise BadRequest(
                f"unknown query parameter{spoken}; known here: {', '.join(sorted(transaction.parameters))}"
            )
        if len(request.query.getall(name)) > 1:
            raise BadRequest(f"the query parameter {name} is given twice")


def _document(request: web.Request, template: str, headers: dict[str, str]) -> web.Response:
    choice = choose(parse_accept(request.headers.get("Accept"), request.query.get("accept")), (WADL, JSON))
    capabilities, base = request.app[CAPABILITIES], base_url(request)
    headers = headers | {"Vary": "Accept", "Content-Type": choice.offer.media_type}
    if choice.offer == JSON:
        return web.Response(text=json.dumps(capabilities.json(base, template), indent=1), headers=headers)
    return web.Response(text=capabilities.wadl(base, template), headers=headers)


def _all(node: _Node) -> Iterator[_Node]:
    yield node
    for below in node.below.values():
        yield from _all(below)


# --- WADL (W3C member submission of 31 August 2009, and PS3.18 Annex H) ----------------------------------------


def _wadl_resources(node: _Node) -> Iterator[str]:
    """A resource with its path from the base, and below it those that lie there."""
    if node.template == "/":
        for below in node.below.values():
            yield from _wadl_resources(below)
        return
    yield from _wadl_resource(node, node.template.lstrip("/"))


def _wadl_resource(node: _Node, path: str) -> Iterator[str]:
    yield f"<resource path={quoteattr(path)}>"
    for part in path.split("/"):
        if part.startswith("{"):
            yield f'<param name={quoteattr(part[1:-1])} style="template" type="xsd:string" required="true"/>'
    for method, transaction in node.methods.items():
        yield from _wadl_method(method, transaction)
    for part, below in node.below.items():
        yield from _wadl_resource(below, part)
    yield "</resource>"


def _wadl_method(method: str, transaction: Transaction) -> Iterator[str]:
    yield f'<method name="{method}" id="{transaction.identifier}">'
    yield "<request>"
    yield f'<param name="Accept" style="header" default={quoteattr(str(transaction.answers[0]))}>'
    for offer in transaction.answers:
        yield f"<option value={quoteattr(str(offer))}/>"
    yield "</param>"
    for name in transaction.parameters:
        yield f'<param name="{name}" style="query"/>'
    if transaction.by_attribute:
        yield '<param name="{attributeID}" style="query" repeating="true"/>'
    for offer in transaction.takes:
        yield f"<representation mediaType={quoteattr(str(offer))}/>"
    yield "</request>"
    yield "<response>"
    for offer in transaction.answers:
        yield f"<representation mediaType={quoteattr(str(offer))}/>"
    yield "</response>"
    yield "</method>"


def _json_resource(node: _Node) -> dict[str, Any]:
    methods = {
        method: {
            "transaction": transaction.name,
            "answers": [str(offer) for offer in transaction.answers],
            "parameters": [*transaction.parameters, *(["{attributeID}"] if transaction.by_attribute else [])],
            **({"takes": [str(offer) for offer in transaction.takes]} if transaction.takes else {}),
        }
        for method, transaction in node.methods.items()
    }
    return {"path": node.template, "methods": methods}
