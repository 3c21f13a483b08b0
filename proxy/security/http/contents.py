"""What a browser may make of an answer: documents that archives hold are anybody's, and are served by this origin.

An encapsulated document, or one that is rendered, can be HTML or SVG. A user who opens it must not run its scripts with
the rights that the browser remembers for the proxy.
"""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

INERT: Final = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""Content-Security-Policy (CSP Level 3): nothing is run, or loaded from anywhere, and the origin is not this one."""

_HARMLESS: Final = re.compile(
    r"application/(pdf|json|dicom|dicom\+json|octet-stream)|(image|video|audio)/(?!svg).*|multipart/related|text/plain"
)
"""Media types in which browsers run nothing. They show PDF in no sandbox."""


async def make_inert(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: no media type is guessed (Fetch standard, "nosniff"), and what may hold scripts is
    `INERT`, unless it has a policy already."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    if not _HARMLESS.fullmatch(response.content_type):
        response.headers.setdefault("Content-Security-Policy", INERT)
