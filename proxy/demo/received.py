"""The files that come by C-STORE (PS3.4 Annex B): written byte for byte as they came, and indexed at once.

What may live here: the folder of those files. Their names are hashes, since UIDs are what a peer makes up. Each
version of an instance has a name of its own, so that the one that is about to be sent is never another than the
index said; later versions have names that sort later.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from dul import IncomingStore, dimse, uids
from proxy.dataset.part10 import Part10Error, file_header
from proxy.dataset.values import first_value
from proxy.demo.attributes import UNIQUE_KEYS, QueryLevel
from proxy.demo.index import FileData, Index, IndexFullError, NotIndexedError, StoredInstance, read_file

_PART: Final = ".part"


class ReceivedFiles:
    """The folder, which is made when it is needed; without one nothing is taken."""

    def __init__(self, folder: Path | None, index: Index) -> None:
        self.folder = folder
        self._index = index

    def remove_parts(self) -> None:
        """Remove what a process that was killed has left behind. Raises OSError."""
        if self.folder is not None:
            for part in self.folder.glob(f".*{_PART}"):
                part.unlink(missing_ok=True)

    async def take(self, store: IncomingStore) -> int:
        """Write the data set to a file and index it; returns the status of PS3.4 B.2.3.

        A file gets its name when it is whole, and readable by its owner alone. Raises OSError, and what ended the
        association.
        """
        if self.folder is None:
            return dimse.REFUSED_OUT_OF_RESOURCES
        try:
            header = _header(store)
        except Part10Error:
            return dimse.UNABLE_TO_PROCESS
        with _part_file(self.folder) as (path, file):
            file.write(header)
            async for chunk in store:
                file.write(chunk)
            file.close()
            return self._keep(path, store.sop_instance_uid)

    def _keep(self, part: Path, announced_uid: str) -> int:
        digest = hashlib.sha256(announced_uid.encode()).hexdigest()
        path = part.with_name(f"{digest}-{time.time_ns():020d}.dcm")
        try:
            meta, elements = read_file(part)
            if announced_uid not in ("", first_value(elements, UNIQUE_KEYS[QueryLevel.IMAGE])):
                return dimse.IDENTIFIER_DOES_NOT_MATCH
            replaced = self._index.add(
                elements,
                transfer_syntax=meta.transfer_syntax,
                data=FileData(str(path), meta.data_set_offset),
                sop_class_uid=meta.sop_class_uid,
            )
        except IndexFullError:
            return dimse.REFUSED_OUT_OF_RESOURCES
        except NotIndexedError:
            return dimse.UNABLE_TO_PROCESS
        part.replace(path)
        if replaced is not None:
            self._remove(replaced)
        return dimse.SUCCESS

    def _remove(self, instance: StoredInstance) -> None:
        """Remove the file of an earlier version, unless it is one of those that did not come by C-STORE."""
        if isinstance(instance.data, FileData) and Path(instance.data.path).parent == self.folder:
            with contextlib.suppress(OSError):
                Path(instance.data.path).unlink()


@contextlib.contextmanager
def _part_file(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file for the time being; what is still under its name at the end is removed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=_PART)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield Path(name), file
    finally:
        Path(name).unlink(missing_ok=True)


def _header(store: IncomingStore) -> bytes:
    return file_header(
        store.sop_class_uid,
        store.sop_instance_uid,
        store.transfer_syntax,
        source_aet=store.calling_ae_title,
        implementation_class_uid=uids.IMPLEMENTATION_CLASS_UID,
        implementation_version=uids.IMPLEMENTATION_VERSION_NAME,
    )
