"""Reading an instance out of the spool: from memory what is there, from its file what is there no more."""

from __future__ import annotations

import os
from typing import Final

from proxy.archive.errors import IncompleteError
from proxy.archive.spool.spool import Spool, SpooledInstance

READ_SIZE: Final = 512 * 1024
"""Bytes that are read from a file at once."""


class InstanceReader:
    """The bytes of one instance as a Part 10 file, from the beginning: an async iterator. `close` ends it.

    Raises what failed the instance; `IncompleteError` when its file cannot be read.
    """

    def __init__(self, spool: Spool, instance: SpooledInstance) -> None:
        self.instance = instance
        self.offset = 0
        """Bytes handed out so far."""
        self._spool = spool
        self._number = 0
        self._descriptor = -1

    @property
    def has_all(self) -> bool:
        """True when the last byte was handed out."""
        return self.instance.finished and self.offset == self.instance.size

    def __aiter__(self) -> InstanceReader:
        return self

    async def __anext__(self) -> bytes:
        instance = self.instance
        while True:
            if self.offset < instance.in_memory_from:
                return self._taken(await self._from_file())
            if self.offset == instance.in_memory_from:
                self._number = instance.first_number
            chunk = instance.chunk(self._number)
            if chunk is not None:
                self._number += 1
                return self._taken(chunk)
            if instance.error is not None:
                raise instance.error
            if instance.finished:
                raise StopAsyncIteration
            await instance.grown.wait()

    def _taken(self, chunk: bytes) -> bytes:
        self.offset += len(chunk)
        self._spool.forget_what_was_read()
        return chunk

    async def _from_file(self) -> bytes:
        file, size = self.instance.file, min(READ_SIZE, self.instance.in_memory_from - self.offset)
        assert file is not None
        try:
            if self._descriptor < 0:
                # Not in a thread: the file was made a moment ago, and who is cancelled would leave it open.
                self._descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
            data = await self._spool.read(self._descriptor, size, self.offset)
        except OSError as error:
            raise IncompleteError(f"the spool cannot be read: {error.strerror}") from error
        if len(data) < size:
            raise IncompleteError("a file of the spool was damaged")
        return data

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
