"""Instances and frames in Explicit VR Little Endian, where the client wants that and the archive has something else
(PS3.18 8.7.3.5.2).

The work is done by `proxy.render`; here is when it is done, what is said of it, and the file that comes of it. Whoever
names no transfer syntax, or any, gets what the archive has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import BinaryIO, Final

from aiohttp import web

from proxy.archive.errors import ArchiveFailedError, ArchiveTimeoutError, NotFoundError
from proxy.archive.spool.files import RetrievalFolder
from proxy.archive.spool.spool import InstanceInfo
from proxy.archive.views import ArchivesView
from proxy.dataset.part10 import Part10Error, read_header
from proxy.dataset.pixels import NATIVE, VIDEO
from proxy.dicomweb.accept import ANY_TRANSFER_SYNTAX, EXPLICIT_VR_LITTLE_ENDIAN, Choice, NotAcceptable
from proxy.dicomweb.errors import Unavailable
from proxy.dicomweb.keys import WORKERS, archives_of
from proxy.dicomweb.localfile import LocalFile, give_memory, take_memory
from proxy.render import jobs
from proxy.render.errors import BusyError, NoSuchFrameError, NotPossibleError, RenderError, TooSlowError

HEADER_SIZE: Final = 64 * 1024
"""Bytes at the beginning of a file that hold its header."""

READ_SIZE: Final = 256 * 1024
"""Bytes of a file that are sent at once."""


def must_transcode(choice: Choice, info: InstanceInfo) -> bool:
    """Whether an instance has to be transcoded for what a client takes.

    Raises `NotAcceptable` when the client takes it neither as it is stored nor as it could be made.
    """
    stored = info.transfer_syntax
    named = choice.transfer_syntaxes
    if stored not in choice.excluded and (not named or ANY_TRANSFER_SYNTAX in named or stored in named):
        return False
    wanted = EXPLICIT_VR_LITTLE_ENDIAN in named or (not named or ANY_TRANSFER_SYNTAX in named)
    if wanted and stored != EXPLICIT_VR_LITTLE_ENDIAN and EXPLICIT_VR_LITTLE_ENDIAN not in choice.excluded:
        if stored not in VIDEO:
            return True
        raise NotAcceptable(f"the archive has it in transfer syntax {stored}, which is not decoded")
    raise NotAcceptable(
        f"the archive has it in transfer syntax {stored}, and it can be transcoded only to {EXPLICIT_VR_LITTLE_ENDIAN}"
    )


def may_transcode(choice: Choice) -> bool:
    """Whether there are instances that would have to be transcoded for what a client takes."""
    named = choice.transfer_syntaxes
    anything = not named or ANY_TRANSFER_SYNTAX in named
    return bool(choice.excluded) if anything else EXPLICIT_VR_LITTLE_ENDIAN in named


def description(stored: str) -> str:
    """What was done to an instance, for the header of its part or of the answer."""
    how = "encoded anew, values unchanged" if stored in NATIVE else "decompressed"
    return f"transcoded from transfer syntax {stored}: {how}"


async def run(app: web.Application, job: jobs.Job, *files: int) -> jobs.Result:
    """Have a job done by the workers.

    Raises `NotAcceptable`, `NotFoundError` for a frame, `Unavailable`, or `ArchiveError` where it is the instance that
    cannot be read.
    """
    try:
        return await app[WORKERS].run(job, *files)
    except NotPossibleError as error:
        raise NotAcceptable(str(error)) from error
    except NoSuchFrameError as error:
        raise NotFoundError(str(error)) from error
    except BusyError as error:
        raise Unavailable(str(error)) from error
    except TooSlowError as error:
        raise ArchiveTimeoutError(str(error)) from error
    except RenderError as error:
        raise ArchiveFailedError(f"{error}, as the archive has sent it") from error


async def decoded_frame(app: web.Application, local: LocalFile, number: int) -> bytes:
    """The pixels of a frame, numbered from 1, in Explicit VR Little Endian. Raises as `run` does."""
    return (await run(app, jobs.frame(number), local.file.fileno())).content


@contextlib.asynccontextmanager
async def transcoded(request: web.Request, local: LocalFile) -> AsyncIterator[LocalFile]:
    """The same instance in Explicit VR Little Endian, for as long as the `async with` lasts. Raises as `run` does."""
    if local.size > jobs.MAX_INSTANCE:
        raise NotAcceptable(f"instances of more than {jobs.MAX_INSTANCE >> 20} MiB are not transcoded")
    async with _new_file(archives_of(request), local.size) as target:
        result = await run(request.app, jobs.instance(), local.file.fileno(), target.file.fileno())
        size = int(result.values["size"])
        target.grow(size)
        info = replace(local.info, transfer_syntax=EXPLICIT_VR_LITTLE_ENDIAN)
        yield LocalFile(target.file, info, _header_size(target.file), size, local.etag)


def _header_size(file: BinaryIO) -> int:
    try:
        return read_header(os.pread(file.fileno(), HEADER_SIZE, 0)).data_set_offset
    except Part10Error as error:
        raise ArchiveFailedError("the instance cannot be transcoded, as the archive has sent it") from error


async def chunks(local: LocalFile) -> AsyncGenerator[bytes, None]:
    """A whole file, some of it at a time. Raises `ArchiveFailedError` when it cannot be read to its end."""
    for offset in range(0, local.size, READ_SIZE):
        wanted = min(READ_SIZE, local.size - offset)
        try:
            data = await asyncio.to_thread(os.pread, local.file.fileno(), wanted, offset)
        except OSError as error:
            raise ArchiveFailedError(f"a file cannot be read: {error.strerror}") from error
        if len(data) < wanted:
            raise ArchiveFailedError("a file is shorter than it was")
        yield data


class _NewFile:
    """A temporary file that a worker writes: in the spool, or in memory where there is none."""

    def __init__(self, file: BinaryIO, folder: RetrievalFolder | None) -> None:
        self.file = file
        self._folder = folder
        self.taken = 0
        """Bytes that are counted as in memory."""

    def grow(self, size: int) -> None:
        """Count `size` bytes that it has by now; `Unavailable` when that is too much."""
        if self._folder is None:
            more = max(0, size - self.taken)
            take_memory(more)
            self.taken += more
            return
        if not self._folder.has_room(size):
            raise Unavailable("the storage has no room for the instance at the moment")
        self._folder.count(size)


@contextlib.asynccontextmanager
async def _new_file(archives: ArchivesView, size: int) -> AsyncIterator[_NewFile]:
    """A new file, for an instance that has `size` bytes as it is stored."""
    folder = archives.depot.new_folder()
    if folder is None:
        with os.fdopen(os.memfd_create("transcoded", os.MFD_CLOEXEC), "r+b") as memory:
            target = _NewFile(memory, None)
            target.grow(size)
            try:
                yield target
            finally:
                give_memory(target.taken)
        return
    if not folder.has_room(size):
        raise Unavailable("the storage has no room for the instance at the moment")
    try:
        try:
            file = await folder.new_file()
        except OSError as error:
            raise Unavailable(f"the storage cannot be written: {error.strerror}") from error
        with file:
            yield _NewFile(file, folder)
    finally:
        await folder.remove()
