"""Inflating a deflated data set piece by piece (PS3.5 A.5, RFC 1951), within a bound."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from proxy.dataset.reader import Bytes, DatasetError

STEP: Final = 256 * 1024
"""Bytes that are inflated at once."""


class Inflater:
    """Inflates the chunks of one data set, one after the other."""

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self.size = 0
        """Bytes inflated so far."""

    @property
    def has_ended(self) -> bool:
        """True when the deflated data set is whole."""
        return self._inflater.eof

    def pieces(self, chunk: Bytes, most: int) -> Iterator[bytes]:
        """What the next chunk inflates to. Raises `DatasetError` when it cannot, or all is more than `most` bytes."""
        while chunk and not self._inflater.eof:
            try:
                piece = self._inflater.decompress(chunk, STEP)
            except zlib.error as error:
                raise DatasetError("the data set cannot be inflated", self.size) from error
            chunk = self._inflater.unconsumed_tail
            self.size += len(piece)
            if self.size > most:
                raise DatasetError(f"the deflated data set is larger than {most} bytes", self.size)
            yield piece
