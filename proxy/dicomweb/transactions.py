"""What each resource takes and gives: the transactions of PS3.18 Table H-1, by the routes that serve them.

Tables, and finding a route's entry in them. The capabilities document is made from these, and a parameter that is not
in them is a 400.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from proxy.dicomweb.accept import (
    DICOM_JSON,
    DICOM_XML,
    MULTIPART_DICOM,
    MULTIPART_DICOM_XML,
    SINGLE_DICOM,
    Offer,
)
from proxy.dicomweb.attributes import Resource
from proxy.dicomweb.frame_forms import MEDIA_TYPES
from proxy.dicomweb.parameters import CONTROLS
from proxy.dicomweb.rendering import GIF, HTML, JPEG, MULTIPART_JPEG, MULTIPART_PNG, PDF, PNG

_REGULAR_EXPRESSION: Final = re.compile(r"\{(\w+):[^{}]*\}")

_MODELS: Final = (DICOM_JSON, MULTIPART_DICOM_XML)
_FRAME_TYPES: Final = ("application/octet-stream", *sorted({kind for kinds in MEDIA_TYPES.values() for kind in kinds}))
_FRAMES: Final = tuple(Offer(kind, multipart=multipart) for multipart in (True, False) for kind in _FRAME_TYPES)
_RENDERED: Final = (JPEG, PNG, GIF, PDF, HTML, MULTIPART_JPEG, MULTIPART_PNG)

_NEGOTIATION: Final = ("accept", "charset")  # PS3.18 8.3.3
_RENDERING: Final = ("annotation", "iccprofile", "quality", "viewport", "window")  # PS3.18 8.3.5

_WADO_URI: Final = (  # PS3.18 9.4.1.2 and 9.5.1.2
    "annotation",
    "anonymize",
    "charset",
    "columns",
    "contentType",
    "frameNumber",
    "imageQuality",
    "objectUID",
    "presentationSeriesUID",
    "presentationUID",
    "region",
    "requestType",
    "rows",
    "seriesUID",
    "studyUID",
    "transferSyntax",
    "windowCenter",
    "windowWidth",
)


@dataclass(frozen=True, slots=True)
class Transaction:
    """One method of one resource: its name, the media types of its answers and of what it takes, its parameters.

    `by_attribute` says that any attribute is a parameter as well, with which the search itself deals.
    """

    name: str
    answers: tuple[Offer, ...]
    parameters: tuple[str, ...] = _NEGOTIATION
    takes: tuple[Offer, ...] = ()
    by_attribute: bool = False

    @property
    def identifier(self) -> str:
        """The name as one word, such as `RetrieveStudyMetadata`."""
        return self.name.replace(" ", "")


# `{}` stands for Study, Series or Instance. `multipart=false` is what uploaders ask one instance with.
_RETRIEVED: Final = Transaction("Retrieve {}", (MULTIPART_DICOM,))
_RETRIEVED_INSTANCE: Final = Transaction(
    "Retrieve Instance", (MULTIPART_DICOM, SINGLE_DICOM), (*_NEGOTIATION, "multipart")
)

_BELOW: Final[Mapping[str, Transaction]] = MappingProxyType(
    {
        "metadata": Transaction("Retrieve {} Metadata", _MODELS),
        "bulkdata": Transaction(
            "Retrieve {} Bulkdata",
            (Offer("application/octet-stream"), Offer("application/octet-stream", multipart=True), PDF),
        ),
        "frames": Transaction("Retrieve Frames", _FRAMES),
        "rendered": Transaction("Retrieve Rendered {}", _RENDERED, (*_NEGOTIATION, *_RENDERING)),
        "thumbnail": Transaction("Retrieve {} Thumbnail", (JPEG, PNG), (*_NEGOTIATION, "viewport")),
    }
)

_SEARCHES: Final[Mapping[str, Transaction]] = MappingProxyType(
    {
        resource.value: Transaction(f"Search for {name}", _MODELS, (*_NEGOTIATION, *CONTROLS), by_attribute=True)
        for resource, name in {
            Resource.ALL_STUDIES: "Studies",
            Resource.STUDY_SERIES: "Study Series",
            Resource.STUDY_INSTANCES: "Study Instances",
            Resource.SERIES_INSTANCES: "Study Series Instances",
            Resource.ALL_SERIES: "Series",
            Resource.ALL_INSTANCES: "Instances",
        }.items()
    }
)

_STORE: Final = Transaction("Store Instances", (DICOM_JSON, DICOM_XML), takes=(MULTIPART_DICOM, SINGLE_DICOM))

_WADO: Final = Transaction("Retrieve Instance by URI", (JPEG, PNG, GIF, PDF, HTML, SINGLE_DICOM), _WADO_URI)


def template_of(path: str) -> str:
    """A route's path as a URI template: without the regular expressions that placeholders may have."""
    return _REGULAR_EXPRESSION.sub(r"{\1}", path)


def transaction_of(method: str, path: str) -> Transaction | None:
    """The transaction of PS3.18 that a route serves; None for what is the proxy's own."""
    template = template_of(path)
    if method == "POST" and template in ("/studies", "/studies/{study}"):
        return _STORE if template == "/studies" else replace(_STORE, name="Store Study Instances")
    if method != "GET":
        return None
    if template == "/wado":
        return _WADO
    return _SEARCHES.get(template) or _retrieval(template)


def _retrieval(template: str) -> Transaction | None:
    for placeholder, level in (("{instance}", "Instance"), ("{series}", "Series"), ("{study}", "Study")):
        _, found, below = template.rpartition(f"/{placeholder}")
        if not found:
            continue
        if not below:
            return _RETRIEVED_INSTANCE if level == "Instance" else replace(_RETRIEVED, name=f"Retrieve {level}")
        names = [part for part in below.split("/") if part in _BELOW]
        if not names:
            return None
        transaction = _BELOW[names[-1]]
        level = "Frames" if names[0] == "frames" else level  # noqa: PLW2901
        return replace(transaction, name=transaction.name.format(level))
    return None
