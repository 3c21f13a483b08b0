"""The program behind `PynetdicomScu`: one association with pynetdicom, in a process of its own.

`python -m tests.peers.pynetdicom_scu '{"verb": …}'`, the keys being the fields of `Request`. Prints one JSON
object for each response; exits with 1 when no association came about.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

MODELS = {
    "find": StudyRootQueryRetrieveInformationModelFind,
    "move": StudyRootQueryRetrieveInformationModelMove,
    "get": StudyRootQueryRetrieveInformationModelGet,
}
Answer = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What to do: `verb` is echo, store, find, move or get.

    `identifier` is in the DICOM JSON model. `storage` are the pairs of SOP class and transfer syntax that a
    C-GET may bring, one presentation context for each, and `received` the folder that they are written to,
    byte for byte.
    """

    verb: str
    host: str
    port: int
    called_aet: str
    calling_aet: str
    identifier: Answer = field(default_factory=dict)
    destination: str = ""
    files: list[str] = field(default_factory=list)
    storage: list[tuple[str, str]] = field(default_factory=list)
    received: str = ""
    max_pdu: int = 16382
    timeout: float = 30


def echo(association: Association, _: Request) -> Iterator[Answer]:
    """C-ECHO."""
    yield {"status": association.send_c_echo().get("Status")}


def store(association: Association, request: Request) -> Iterator[Answer]:
    """C-STORE of each file."""
    for file in request.files:
        yield {"status": association.send_c_store(file).get("Status")}


def find(association: Association, request: Request) -> Iterator[Answer]:
    """C-FIND."""
    yield from _answers(association.send_c_find(_identifier(request), MODELS["find"]))


def move(association: Association, request: Request) -> Iterator[Answer]:
    """C-MOVE."""
    yield from _answers(association.send_c_move(_identifier(request), request.destination, MODELS["move"]))


def get(association: Association, request: Request) -> Iterator[Answer]:
    """C-GET."""
    yield from _answers(association.send_c_get(_identifier(request), MODELS["get"]))


VERBS: dict[str, Callable[[Association, Request], Iterator[Answer]]] = {
    "echo": echo,
    "store": store,
    "find": find,
    "move": move,
    "get": get,
}


def _identifier(request: Request) -> Dataset:
    identifier = Dataset.from_json(request.identifier)
    # Without it pynetdicom encodes names in ASCII.
    identifier.setdefault("SpecificCharacterSet", "ISO_IR 192")
    return identifier


def _answers(responses: Iterator[tuple[Dataset, Dataset | None]]) -> Iterator[Answer]:
    for status, identifier in responses:
        counters = {each.keyword: each.value for each in status if "Suboperations" in each.keyword}
        yield {
            "status": status.get("Status"),
            "counters": counters,
            "identifier": identifier.to_json_dict() if identifier else None,
        }


def associate(entity: AE, request: Request) -> Association:
    """Open an association with the contexts, and for C-GET the roles, that the verb needs."""
    if request.verb == "store":
        metas = [pydicom.filereader.read_file_meta_info(file) for file in request.files]
        kinds = {(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID) for meta in metas}
        contexts = [build_context(*kind) for kind in sorted(kinds)]
    else:
        contexts = [build_context(MODELS.get(request.verb, Verification))]
    for sop_class, transfer_syntax in request.storage:
        # An acceptor picks one transfer syntax for a context, so each needs a context of its own.
        contexts.append(build_context(sop_class, transfer_syntax))

    classes = {sop_class for sop_class, _ in request.storage}

    def on_store(event: evt.Event) -> int:
        assert isinstance(event.request, C_STORE)
        name = f"{event.request.AffectedSOPInstanceUID}.dcm"
        Path(request.received, name).write_bytes(event.encoded_dataset())
        return 0

    return entity.associate(
        request.host,
        request.port,
        ae_title=request.called_aet,
        max_pdu=request.max_pdu,
        contexts=contexts,
        ext_neg=[build_role(sop_class, scp_role=True) for sop_class in sorted(classes)],
        evt_handlers=[(evt.EVT_C_STORE, on_store)],
    )


def run(request: Request) -> int:
    """Do it, print the answers, and return the exit code."""
    entity = AE(ae_title=request.calling_aet)
    entity.connection_timeout = entity.acse_timeout = entity.network_timeout = request.timeout
    entity.dimse_timeout = request.timeout
    association = associate(entity, request)
    if not association.is_established:
        print(json.dumps({"error": "rejected" if association.is_rejected else "no association"}))
        return 1
    for answer in VERBS[request.verb](association, request):
        print(json.dumps(answer))
    association.release()
    return 0


if __name__ == "__main__":
    sys.exit(run(Request(**json.loads(sys.argv[1]))))
