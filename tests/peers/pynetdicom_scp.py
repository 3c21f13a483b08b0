"""The program behind `PynetdicomScp`: a small archive made with pynetdicom, run in a process of its own.

`python -m tests.peers.pynetdicom_scp '{"aet": …}'`, the keys being the fields of `Settings`.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

LEVEL_KEYS = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
NO_SUCH_DESTINATION = (None, None)
CANCEL, PENDING, SUCCESS = 0xFE00, 0xFF00, 0x0000


@dataclass(frozen=True)
class Settings:
    """`folder` is served when given; `received` is where stored files go, byte for byte.

    `store_status` answers each C-STORE and `delay` waits that many seconds before it. `pending` is the status
    of the matches of C-FIND: FF01 says that optional keys are not supported (PS3.4 C.4.1.1.4).
    """

    aet: str
    port: int
    received: str
    folder: str | None = None
    destinations: dict[str, tuple[str, int]] = field(default_factory=dict)
    max_pdu: int = 16382
    store_status: int = SUCCESS
    delay: float = 0
    pending: int = PENDING


class Checkpoint(threading.Event):
    """Lets an association's reader thread pass, unless another is to be the reader.

    With pynetdicom's own, the thread may take the response to a C-STORE that follows another closely, and the sender
    then waits for it until its timeout: the thread must look again whether it may pass once it has said that it does.
    """

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        while True:
            super().wait(timeout)
            self._association._is_paused = False
            if self.is_set():
                return True
            self._association._is_paused = True

    @classmethod
    def replace(cls, event: evt.Event) -> None:
        """Take the place of the association's own."""
        event.assoc._reactor_checkpoint = cls(event.assoc)


class Archive:
    """The handlers. Matching is exact, by wildcard, or by a list of UIDs; that is enough for tests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        files = sorted(Path(settings.folder).glob("*.dcm")) if settings.folder else []
        self.instances = [pydicom.dcmread(path) for path in files]

    def on_store(self, event: evt.Event) -> int:
        """Write what came, as it came (C-STORE)."""
        assert isinstance(event.request, C_STORE)
        time.sleep(self.settings.delay)
        name = f"{event.request.AffectedSOPInstanceUID}.dcm"
        Path(self.settings.received, name).write_bytes(event.encoded_dataset())
        return self.settings.store_status

    def on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        """Answer with one match for each study, series or instance (C-FIND)."""
        identifier = event.identifier
        unique = LEVEL_KEYS[identifier.QueryRetrieveLevel]
        matches = {instance[unique].value: instance for instance in self.matching(identifier)}
        for instance in matches.values():
            if event.is_cancelled:
                yield CANCEL, None
                return
            yield self.settings.pending, self._answer(identifier, instance)

    def on_get(self, event: evt.Event) -> Iterator[Any]:
        """Send what matches over the same association (C-GET)."""
        matches = self.matching(event.identifier)
        yield len(matches)
        yield from self._sub_operations(event, matches)

    def on_move(self, event: evt.Event) -> Iterator[Any]:
        """Send what matches to the destination (C-MOVE)."""
        destination = self.settings.destinations.get((event.move_destination or "").strip())
        if destination is None:
            yield NO_SUCH_DESTINATION
            return
        matches = self.matching(event.identifier)
        kinds = {(match.SOPClassUID, match.file_meta.TransferSyntaxUID) for match in matches}
        host, port = destination
        contexts = [build_context(*kind) for kind in sorted(kinds)]
        yield host, port, {"contexts": contexts, "evt_handlers": [(evt.EVT_CONN_OPEN, Checkpoint.replace)]}
        yield len(matches)
        yield from self._sub_operations(event, matches)

    def matching(self, identifier: Dataset) -> list[Dataset]:
        """Return the instances that match every key with a value."""
        ignored = {"QueryRetrieveLevel", "SpecificCharacterSet"}
        keys = [element for element in identifier if element.keyword not in ignored and element.value]
        return [
            instance
            for instance in self.instances
            if all(_matches(element.value, instance.get(element.tag)) for element in keys)
        ]

    @staticmethod
    def _sub_operations(event: evt.Event, matches: list[Dataset]) -> Iterator[tuple[int, Dataset | None]]:
        for instance in matches:
            if event.is_cancelled:
                yield CANCEL, None
                return
            yield PENDING, instance

    @staticmethod
    def _answer(identifier: Dataset, instance: Dataset) -> Dataset:
        answer = Dataset()
        answer.SpecificCharacterSet = instance.get("SpecificCharacterSet", "ISO_IR 6")
        answer.QueryRetrieveLevel = identifier.QueryRetrieveLevel
        for element in identifier:
            if element.tag in instance:
                answer[element.tag] = instance[element.tag]
            elif element.tag not in answer:
                answer[element.tag] = element
        return answer


def _matches(wanted: Any, element: pydicom.DataElement | None) -> bool:
    patterns = list(wanted) if isinstance(wanted, MultiValue) else [wanted]
    value = "" if element is None else str(element.value)
    return any(fnmatch.fnmatchcase(value, str(pattern)) for pattern in patterns)


def serve(settings: Settings) -> None:
    """Serve until the process is ended."""
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    archive = Archive(settings)
    entity = AE(ae_title=settings.aet)
    entity.maximum_pdu_size = settings.max_pdu
    entity.add_supported_context(Verification)
    for model in (
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
        StudyRootQueryRetrieveInformationModelMove,
    ):
        entity.add_supported_context(model)
    classes = {context.abstract_syntax for context in AllStoragePresentationContexts}
    classes |= {instance.SOPClassUID for instance in archive.instances}
    for sop_class in sorted(map(str, classes)):
        # Both roles: it receives by C-STORE, and it sends by C-GET.
        entity.add_supported_context(sop_class, AllTransferSyntaxes, scu_role=True, scp_role=True)
    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_C_STORE, archive.on_store),
        (evt.EVT_C_FIND, archive.on_find),
        (evt.EVT_C_GET, archive.on_get),
        (evt.EVT_C_MOVE, archive.on_move),
    ]
    entity.start_server(("127.0.0.1", settings.port), block=True, evt_handlers=handlers)


if __name__ == "__main__":
    serve(Settings(**json.loads(sys.argv[1])))
