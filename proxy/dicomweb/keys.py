"""What handlers find in the application."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from proxy.archive.archives import Archives
from proxy.render.pool import Workers

ARCHIVES: Final = web.AppKey("archives", Archives)
PUBLIC_URL: Final = web.AppKey("public_url", str)
"""The configured address of the proxy, or empty."""
WORKERS: Final = web.AppKey("workers", Workers)
