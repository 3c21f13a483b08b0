"""The demo archive itself: C-ECHO, C-STORE, C-FIND, C-MOVE and C-GET over the index (PS3.4 Annexes B and C).

What may live here: its handler for `dul`, and its life. An instance is sent byte for byte as it is in its file.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from dul import (
    Handler,
    IncomingStore,
    Instance,
    MovePlan,
    Peer,
    Request,
    Server,
    ServerLimits,
    StatusError,
    Timeouts,
    accept_all_storage,
    dimse,
    serve,
    uids,
)
from proxy.demo.answers import answer_encoder
from proxy.demo.attributes import QueryLevel
from proxy.demo.index import Index, scan
from proxy.demo.query import MODELS, Query, read_query
from proxy.demo.received import ReceivedFiles
from proxy.demo.rows import rows

logger = logging.getLogger(__name__)

TURN: Final = 0.002
"""Seconds that a search may go on before others have their turn."""


def _supported(abstract_syntax: str) -> Sequence[str]:
    return uids.UNCOMPRESSED if abstract_syntax in MODELS else accept_all_storage(abstract_syntax)


class DemoArchive:
    """An archive over a folder of DICOM files. Use it with `async with`: entering reads the folder and listens.

    Args:
        folder: all Part 10 files in and below it are served; None for none.
        host, port: where to listen; port 0 takes any free one.
        destinations: where C-MOVE may send to, by AE title; more may be added to the attribute of that name.
        index: what to serve besides the files of the folder.
        store_folder: where C-STORE puts what it takes, `received` in `folder` by default. It is made when it is
            needed, and what is in it stands above files of the same instance elsewhere.

    Raises OSError on entering when `folder` is none, or the address cannot be had.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        ae_title: str = "DEMO",
        host: str = "127.0.0.1",
        port: int = 0,
        destinations: Mapping[str, tuple[str, int]] | None = None,
        index: Index | None = None,
        store_folder: Path | None = None,
        timeouts: Timeouts | None = None,
        server_limits: ServerLimits | None = None,
    ) -> None:
        if store_folder is None and folder is not None:
            store_folder = folder / "received"
        self.destinations = dict(destinations or {})
        self.index = Index() if index is None else index
        self.skipped: Counter[str] = Counter()
        """How many files are not served, by the reason."""
        self._folder = folder
        self._received = ReceivedFiles(store_folder, self.index)
        self._serving = serve(
            _ArchiveHandler(ae_title, self.index, self.destinations, self._received),
            host,
            port,
            ae_title=ae_title,
            supported=_supported,
            timeouts=timeouts,
            server_limits=server_limits,
        )
        self._server: Server | None = None

    async def __aenter__(self) -> Self:
        folder, store_folder = self._folder, self._received.folder
        if folder is not None:
            if not folder.is_dir():
                raise NotADirectoryError(f"not a folder: {folder}")
            await self._scan(folder, without=store_folder)
        if store_folder is not None:
            self._received.remove_parts()
            await self._scan(store_folder)
        self._server = await self._serving.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._serving.__aexit__(None, None, None)

    async def _scan(self, folder: Path, *, without: Path | None = None) -> None:
        for reason in scan(self.index, folder, without=without):
            if reason is not None:
                self.skipped[reason] += 1
            await asyncio.sleep(0)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server is not None, "the archive has not been entered"
        return self._server.port

    @property
    def instance_count(self) -> int:
        """Instances that it has now."""
        return self.index.instance_count

    @property
    def study_count(self) -> int:
        """Studies that it has now."""
        return len(self.index.studies)

    @property
    def first_study_uid(self) -> str:
        """The Study Instance UID of one of them; empty where there is none."""
        return next(iter(self.index.studies), "")


class _ArchiveHandler(Handler):
    """The services, for all associations."""

    def __init__(
        self, ae_title: str, index: Index, destinations: Mapping[str, tuple[str, int]], received: ReceivedFiles
    ) -> None:
        self._ae_title = ae_title
        self._index = index
        self._destinations = destinations
        self._received = received

    async def on_store(self, store: IncomingStore) -> int:
        try:
            return await self._received.take(store)
        except OSError as error:
            logger.warning("an instance could not be stored: %s", error.strerror)
            return dimse.REFUSED_OUT_OF_RESOURCES

    async def on_find(self, request: Request) -> AsyncGenerator[bytes, None]:
        query = read_query("C-FIND", request)
        matches = query.matcher(self._ae_title)
        answer = answer_encoder(query, self._ae_title, request.transfer_syntax)
        turn = time.monotonic() + TURN
        for row in rows(self._index, query.level, query.unique):
            if matches(row):
                yield answer(row)
            if time.monotonic() > turn:
                await asyncio.sleep(0)
                turn = time.monotonic() + TURN

    async def on_move(self, request: Request) -> MovePlan:
        title = request.move_destination or ""
        if title not in self._destinations:
            raise StatusError("C-MOVE", dimse.MOVE_DESTINATION_UNKNOWN, "unknown move destination")
        host, port = self._destinations[title]
        return MovePlan(Peer(host, port, title, self._ae_title), self._instances(read_query("C-MOVE", request)))

    async def on_get(self, request: Request) -> Sequence[Instance]:
        return self._instances(read_query("C-GET", request))

    def _instances(self, query: Query) -> Sequence[Instance]:
        found = (row.instance for row in rows(self._index, QueryLevel.IMAGE, query.unique))
        return [
            Instance(
                stored.sop_class_uid,
                stored.sop_instance_uid,
                stored.transfer_syntax,
                stored.data if isinstance(stored.data, bytes) else stored.data.chunks,
            )
            for stored in found
            if stored is not None
        ]
