"""Paths with double or trailing slashes, which clients make by joining addresses: served as if they had none.

Not by a redirect, which costs a second request for each, and which a browser does not follow from a preflight.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from aiohttp import web
from yarl import URL

_SLASHES: Final = re.compile("/{2,}")


class TidyPaths(web.AbstractResource):
    """What `router` is asked last: a path that no resource has, with its surplus slashes removed."""

    def __init__(self, router: web.UrlDispatcher) -> None:
        super().__init__()
        self._router = router

    @property
    def canonical(self) -> str:
        """Where the router looks for it: above all other resources."""
        return "/"

    async def resolve(self, request: web.Request) -> tuple[web.UrlMappingMatchInfo | None, set[str]]:
        """What the tidy path leads to, or the methods that it could be asked for with."""
        path = request.rel_url.raw_path
        tidy = _SLASHES.sub("/", path).rstrip("/") or "/"
        if tidy == path:
            return None, set()
        found = await self._router.resolve(request.clone(rel_url=URL(tidy, encoded=True)))
        match found.http_exception:
            case None:
                return found, set()
            case web.HTTPMethodNotAllowed(allowed_methods=allowed):
                return None, set(allowed)
            case _:
                return None, set()

    def add_prefix(self, prefix: str) -> NoReturn:
        raise NotImplementedError("the proxy has no applications within others")

    def url_for(self, **kwargs: str) -> NoReturn:
        raise NotImplementedError("there is no one path")

    def get_info(self) -> Any:
        return {}

    def raw_match(self, path: str) -> bool:
        return False

    def __iter__(self) -> Iterator[web.AbstractRoute]:
        return iter(())

    def __len__(self) -> int:
        return 0
