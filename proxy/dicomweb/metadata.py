"""Metadata of studies, series and instances (PS3.18 10.4.1.1.2): all attributes but bulk data, as JSON or XML.

One instance after the other, as they arrive or out of the cache. Of each, only what is not bulk data is held, so that
the size of images does not matter; and what takes long is done in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, NamedTuple

from aiohttp import web

from proxy.archive.cache.index import CachedInstance
from proxy.archive.errors import ArchiveError, ArchiveFailedError, IncompleteError
from proxy.archive.retrieval.delivery import Cached, Delivery
from proxy.archive.retrieval.target import Target
from proxy.archive.spool.reader import InstanceReader
from proxy.archive.spool.spool import InstanceInfo
from proxy.archive.views import ArchivesView
from proxy.dataset.dictionary import SERIES_INSTANCE_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID
from proxy.dataset.reader import Bytes, DatasetError, Element, Limits
from proxy.dataset.skim import Path, Skim, skim_file
from proxy.dataset.values import first_value
from proxy.dicomweb import dicomjson, multipart
from proxy.dicomweb.accept import Choice, choose_model, parse_accept
from proxy.dicomweb.keys import archives_of
from proxy.dicomweb.nativexml import DICOM_XML, native_xml
from proxy.dicomweb.retrieving import retrieved
from proxy.dicomweb.streaming import cut, write
from proxy.dicomweb.urls import base_url, resource_path, target_of
from proxy.dicomweb.validators import REVALIDATE, etag_of_all, is_known
from proxy.dicomweb.wado_common import partial_headers
from proxy.threads import in_thread

logger = logging.getLogger(__name__)

LIMITS: Final = Limits(elements=500_000)
"""An enhanced multi-frame object of 10,000 frames has some 300,000 elements. As many as here take a thread some
seconds, and 200 MB with the text that is made of them."""

QUICK_KEPT: Final = 32 * 1024
"""Bytes of a data set beside bulk data up to which it is encoded at once: at most 3 ms. A CT image has 2 to 8 KB."""

QUICK_CHUNK: Final = 128 * 1024
"""Bytes up to which a chunk is walked through at once: 5 ms if it were all short elements."""

BATCH_FILES: Final = 16
"""Files of the cache that are described in one go …"""

BATCH_BYTES: Final = 128 * 1024
"""… unless there is as much text before; the answer goes on then."""

FORM: Final = "1"
"""Changes when the same instance comes to be described in another way, and is part of the entity tags for that."""

SOP_CLASS_UID: Final = 0x00080016
AVAILABLE_TRANSFER_SYNTAX_UID: Final = 0x00083002


class _Opened(NamedTuple):
    """A file of the cache that is to be described."""

    instance: CachedInstance
    descriptor: int


class Describer:
    """What makes JSON or XML of instances, and of these an answer: `opening`, models with `between`, `closing`.

    `base` is the proxy's own address, `character_set` a defined term for data sets that name none.
    """

    def __init__(self, target: Target, base: str, choice: Choice, character_set: str = "ISO_IR 6") -> None:
        self.target = target
        self.form = f"{FORM} {choice.offer} {base} {character_set}"
        self._base = base
        self._character_set = character_set
        self._as_xml = choice.multipart
        self.content_type = choice.offer.media_type
        self.opening, self.between, self.closing = b"[", b",\n", b"]"
        if choice.multipart:
            boundary = multipart.new_boundary()
            self.content_type = multipart.content_type(boundary, DICOM_XML)
            self.opening = multipart.part_header(boundary, first=True, part_type=DICOM_XML)
            self.between = multipart.part_header(boundary, first=False, part_type=DICOM_XML)
            self.closing = multipart.closing(boundary)

    def describe(self, skim: Skim, info: InstanceInfo) -> bytes:
        """The model of an instance that was fed to `skim` whole. Raises `DatasetError`."""
        elements = skim.elements()
        series = info.series or self.target.series or first_value(elements, SERIES_INSTANCE_UID)
        place = self._base + resource_path(self.target.study, series, info.sop_instance_uid) + "/bulkdata/"

        def bulk_data(path: Path, element: Element) -> str | None:
            # Of duplicates, one may be inline; and without a series there is no URL.
            return place + written_path(path) if series and path in skim.bulk and not element.value else None

        model = dicomjson.encode(
            elements,
            default_character_set=self._character_set,
            replace={AVAILABLE_TRANSFER_SYNTAX_UID: _uid(info.transfer_syntax)},
            bulk_data=bulk_data,
        )
        return self._in_form(model)

    def describe_unreadable(self, info: InstanceInfo) -> bytes:
        """What is known of an instance without its data set, so that a client knows of it and can retrieve it."""
        known = {
            SOP_CLASS_UID: info.sop_class_uid,
            SOP_INSTANCE_UID: info.sop_instance_uid,
            AVAILABLE_TRANSFER_SYNTAX_UID: info.transfer_syntax,
            STUDY_INSTANCE_UID: self.target.study,
            SERIES_INSTANCE_UID: info.series or self.target.series,
        }
        return self._in_form(dicomjson.encode([], replace={tag: _uid(uid) for tag, uid in known.items() if uid}))

    def _in_form(self, model: str) -> bytes:
        return native_xml(model) if self._as_xml else model.encode("utf-8", "replace")


def written_path(path: Path) -> str:
    """A path as it stands in a BulkDataURI: tags in hexadecimal, numbers of items from 0, with slashes between."""
    return "/".join([str(part) if index % 2 else f"{part:08X}" for index, part in enumerate(path)])


def _uid(uid: str) -> str:
    return f'{{"vr":"UI","Value":[{json.dumps(uid)}]}}'


async def retrieve(request: web.Request) -> web.StreamResponse:
    """The handler for the metadata of a study, a series or an instance."""
    target = target_of(request)
    choice = choose_model(parse_accept(request.headers.get("Accept"), request.query.get("accept")))
    archives = archives_of(request)
    describer = Describer(target, base_url(request), choice, _character_set(archives))
    async with retrieved(request, target) as delivery:
        status, headers = partial_headers(delivery.missing)
        headers["X-Cache"] = "HIT" if isinstance(delivery, Cached) else "MISS"
        if isinstance(delivery, Cached):
            headers |= REVALIDATE | {"ETag": etag_of_all(delivery.instances, describer.form)}
            if not delivery.missing and is_known(request, headers["ETag"]):
                return web.Response(status=304, headers=headers)
        async with contextlib.aclosing(_models(delivery, describer)) as models:
            response = web.StreamResponse(status=status, headers=headers)
            return await _send(request, response, models, describer)


def _character_set(archives: ArchivesView) -> str:
    """The `defaultCharacterSet` of the archives where it is the same for all, as none knows which one an instance is
    from."""
    terms = {archive.peer.default_character_set for archive in archives.archives}
    return (terms.pop() or "ISO_IR 6") if len(terms) == 1 else "ISO_IR 6"


async def _send(
    request: web.Request, response: web.StreamResponse, models: AsyncIterator[bytes], describer: Describer
) -> web.StreamResponse:
    """Send models as they come; what fails before the first is still an error of its own."""
    first = await anext(models)
    response.headers["Content-Type"] = describer.content_type
    await response.prepare(request)
    try:
        await write(request, response, describer.opening + first)
        async for more in models:
            await write(request, response, describer.between + more)
        await write(request, response, describer.closing)
        await response.write_eof()
    except ArchiveError as error:
        cut(request, error)
    return response


async def _models(delivery: Delivery, describer: Describer) -> AsyncGenerator[bytes, None]:
    """The models of the instances, joined where several are there at once; `ArchiveError` when one cannot be had."""
    if isinstance(delivery, Cached):
        async with contextlib.aclosing(_cached_models(delivery, describer)) as models:
            async for model in models:
                yield model
        return
    async for reader in delivery.reader:
        try:
            yield await _describe_arriving(describer, reader)
        except DatasetError as error:
            yield _unreadable(describer, reader.instance.info, error)


async def _cached_models(cached: Cached, describer: Describer) -> AsyncGenerator[bytes, None]:
    """Several files in one go, as the way to a thread and back takes as long as a small header."""
    opened: deque[_Opened] = deque()
    try:
        async with contextlib.aclosing(cached.files()) as files:
            async for instance, file in files:
                opened.append(_Opened(instance, os.dup(file.fileno())))
                if len(opened) == BATCH_FILES:
                    yield await in_thread(_describe_some, describer, opened)
        while opened:
            yield await in_thread(_describe_some, describer, opened)
    finally:
        for each in opened:
            os.close(each.descriptor)


def _describe_some(describer: Describer, opened: deque[_Opened]) -> bytes:
    """Describe the first of the files, until there is enough for now, and close these."""
    models: list[bytes] = []
    while opened and sum(map(len, models)) < BATCH_BYTES:
        instance, descriptor = opened[0]
        try:
            models.append(_describe_file(describer, instance, descriptor))
        finally:
            os.close(descriptor)
            opened.popleft()
    return describer.between.join(models)


def _unreadable(describer: Describer, info: InstanceInfo, error: DatasetError) -> bytes:
    """One instance among others is not to keep a viewer from showing these; alone, it is the archive's failure."""
    if describer.target.instance is not None:
        raise ArchiveFailedError(f"the data set that the archive sent cannot be read: {error}") from error
    logger.warning("a data set cannot be read, so that its metadata is its UIDs: %s", error)
    return describer.describe_unreadable(info)


def _describe_file(describer: Describer, instance: CachedInstance, descriptor: int) -> bytes:
    info = instance.info
    try:
        skim = skim_file(descriptor, instance.header_size, instance.size, info.transfer_syntax, limits=LIMITS)
        return describer.describe(skim, info)
    except DatasetError as error:
        return _unreadable(describer, info, error)
    except OSError as error:
        raise IncompleteError(f"a file of the cache cannot be read: {error.strerror}") from error


async def _describe_arriving(describer: Describer, reader: InstanceReader) -> bytes:
    info = reader.instance.info
    skim = Skim(info.transfer_syntax, limits=LIMITS)
    header = reader.instance.header_size
    async for chunk in reader:
        passed = min(header, len(chunk))
        header -= passed
        data = memoryview(chunk)[passed:] if passed else chunk
        await _feed(skim, data)
    if skim.kept_size > QUICK_KEPT:
        return await asyncio.to_thread(describer.describe, skim, info)
    return describer.describe(skim, info)


async def _feed(skim: Skim, data: Bytes) -> None:
    if passed := min(skim.skip, len(data)):
        skim.pass_over(passed)
        data = data[passed:]
    if skim.is_deflated or len(data) > QUICK_CHUNK:
        await asyncio.to_thread(skim.feed, data)
    elif data:
        skim.feed(data)
