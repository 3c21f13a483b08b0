"""Records as DICOM audit messages: the XML of PS3.15 A.5.1, filled in as the tables of PS3.15 A.5.3 say.

Pure: from a record to bytes. How they travel is in `syslog`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import urlencode
from xml.etree.ElementTree import Element, SubElement, tostring

from proxy import PRODUCT
from proxy.security.audit.events import Category, Outcome
from proxy.security.audit.record import Record, Uploaded, timestamp

UNKNOWN: Final = "unknown"
"""In the place of what a message must have and the proxy does not know, such as the patient's name."""

Code = tuple[str, str, str]
"""Code value, coding scheme, code meaning."""

APPLICATION_ACTIVITY: Final[Code] = ("110100", "DCM", "Application Activity")
INSTANCES_ACCESSED: Final[Code] = ("110103", "DCM", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED: Final[Code] = ("110104", "DCM", "DICOM Instances Transferred")
QUERY: Final[Code] = ("110112", "DCM", "Query")
SECURITY_ALERT: Final[Code] = ("110113", "DCM", "Security Alert")
USER_AUTHENTICATION: Final[Code] = ("110114", "DCM", "User Authentication")

APPLICATION_START: Final[Code] = ("110120", "DCM", "Application Start")
APPLICATION_STOP: Final[Code] = ("110121", "DCM", "Application Stop")
LOGIN: Final[Code] = ("110122", "DCM", "Login")
NODE_AUTHENTICATION: Final[Code] = ("110126", "DCM", "Node Authentication")
USE_OF_RESTRICTED_FUNCTION: Final[Code] = ("110132", "DCM", "Use of Restricted Function")

APPLICATION: Final[Code] = ("110150", "DCM", "Application")
DESTINATION: Final[Code] = ("110152", "DCM", "Destination Role ID")
SOURCE: Final[Code] = ("110153", "DCM", "Source Role ID")

STUDY_INSTANCE_UID: Final[Code] = ("110180", "DCM", "Study Instance UID")
NODE_ID: Final[Code] = ("110182", "DCM", "Node ID")
PATIENT_NUMBER: Final[Code] = ("2", "RFC-3881", "Patient Number")
URI: Final[Code] = ("12", "RFC-3881", "URI")

_NOT_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_DECLARATION: Final = b'<?xml version="1.0" encoding="UTF-8"?>'
"""ASCII is UTF-8 too, and some receivers look for that name."""

_APPLICATION_SERVER: Final = "4"
_PERSON, _SYSTEM_OBJECT = "1", "2"
_PATIENT, _REPORT, _SECURITY_RESOURCE = "1", "3", "13"


@dataclass(frozen=True, slots=True)
class Reporter:
    """The proxy in its own messages: the audit source's name, process id, AE title (empty where it has none)."""

    source: str
    process: str
    aet: str


@dataclass(frozen=True, slots=True)
class Message:
    """A message, in ASCII, and how what it tells of ended."""

    outcome: Outcome
    xml: bytes


def messages_of(record: Record, reporter: Reporter) -> list[Message]:
    """The messages that tell of a record: none for what DICOM has no message for, several for several studies.

    A message is about one patient, and about what went well or what did not (PS3.15 A.5.2, A.5.3.7).
    """
    if record.category is Category.STORE:
        return list(_storing(record, reporter))
    made = _MADE_BY.get(record.category)
    return [] if made is None else [made(record, reporter)]


# --- the kinds of messages -----------------------------------------------------------------------------------


def _activity(record: Record, reporter: Reporter) -> Message:
    """PS3.15 A.5.3.1."""
    code = APPLICATION_START if record.category is Category.START else APPLICATION_STOP
    root = _event(record, APPLICATION_ACTIVITY, "E", code)
    _proxy(root, reporter, APPLICATION)
    _source(root, reporter)
    return _message(root, record.outcome)


def _query(record: Record, reporter: Reporter) -> Message:
    """PS3.15 A.5.3.10, as of a query that is none of DIMSE: its resource, and what was asked in HTTP's own form."""
    root = _event(record, QUERY, "E")
    _client(root, record, SOURCE)
    _proxy(root, reporter, DESTINATION)
    _source(root, reporter)
    query = base64.b64encode(urlencode(record.query).encode()).decode()
    _object(root, record.path, URI, _SYSTEM_OBJECT, _REPORT, query=query)
    return _message(root, record.outcome)


def _retrieval(record: Record, reporter: Reporter) -> Message:
    """PS3.15 A.5.3.7 where instances or parts of them are sent, PS3.15 A.5.3.6 where somebody looks at them."""
    if record.category is Category.TRANSFER:
        root = _event(record, INSTANCES_TRANSFERRED, "R")
        _proxy(root, reporter, SOURCE)
        _client(root, record, DESTINATION)
    else:
        root = _event(record, INSTANCES_ACCESSED, "R")
        _client(root, record, None)
        _proxy(root, reporter, None)
    _source(root, reporter)
    instances = (record.instance,) if record.instance else ()
    _study(root, Uploaded(record.study, instances, len(instances)))
    _patients(root, record.patients)
    return _message(root, record.outcome)


def _storing(record: Record, reporter: Reporter) -> Iterator[Message]:
    """PS3.15 A.5.3.7. An upload of which nothing is known to have come in tells of the study in its path."""
    failure = max(record.outcome, Outcome.MINOR_FAILURE)
    stored = [(study, Outcome.SUCCESS) for study in record.stored]
    failed = [(study, failure) for study in record.failed]
    nothing = [(Uploaded(record.study, (), 0), record.outcome)]
    studies = [*stored, *failed] or nothing
    patients = record.patients
    if len({study.study for study, _ in studies}) > 1 and len(patients) > 1:
        patients = ()  # which study is whose is not known
    for study, outcome in studies:
        root = _event(record, INSTANCES_TRANSFERRED, "C", outcome=outcome)
        _client(root, record, SOURCE)
        _proxy(root, reporter, DESTINATION)
        _source(root, reporter)
        _study(root, study)
        _patients(root, patients)
        yield _message(root, outcome)


def _sign_in(record: Record, reporter: Reporter) -> Message:
    """PS3.15 A.5.3.12."""
    root = _event(record, USER_AUTHENTICATION, "E", LOGIN)
    _client(root, record, None)
    _proxy(root, reporter, None)
    _source(root, reporter)
    return _message(root, record.outcome)


def _alert(record: Record, reporter: Reporter) -> Message:
    """PS3.15 A.5.3.11: the proxy reports, and whoever it was has no part in that."""
    code = NODE_AUTHENTICATION if record.caller else USE_OF_RESTRICTED_FUNCTION
    root = _event(record, SECURITY_ALERT, "E", code)
    _proxy(root, reporter, None, requestor=True)
    _client(root, record, None, requestor=False)
    _source(root, reporter)
    subject, kind = (record.path, URI) if record.path else (record.client or UNKNOWN, NODE_ID)
    alert = _object(root, subject, kind, _SYSTEM_OBJECT, _SECURITY_RESOURCE, name=record.event)
    described = base64.b64encode((record.description or record.event).encode()).decode()
    SubElement(alert, "ParticipantObjectDetail", type="Alert Description", value=described)
    return _message(root, record.outcome)


_MADE_BY: Final[Mapping[Category, Callable[[Record, Reporter], Message]]] = MappingProxyType(
    {
        Category.START: _activity,
        Category.STOP: _activity,
        Category.SEARCH: _query,
        Category.TRANSFER: _retrieval,
        Category.ACCESS: _retrieval,
        Category.SIGN_IN: _sign_in,
        Category.ALERT: _alert,
    }
)


# --- their parts ---------------------------------------------------------------------------------------------


def _event(
    record: Record, event: Code, action: str, kind: Code | None = None, *, outcome: Outcome | None = None
) -> Element:
    root = Element("AuditMessage")
    outcome = record.outcome if outcome is None else outcome
    attributes = {
        "EventActionCode": action,
        "EventDateTime": timestamp(record.time),
        "EventOutcomeIndicator": str(int(outcome)),
    }
    identification = SubElement(root, "EventIdentification", attributes)
    _code(identification, "EventID", event)
    if kind is not None:
        _code(identification, "EventTypeCode", kind)
    if outcome is not Outcome.SUCCESS:
        said = [f"HTTP status {record.status}" if record.status else "", record.ended, record.description]
        SubElement(identification, "EventOutcomeDescription").text = _clean(", ".join(filter(None, said)))
    return root


def _proxy(root: Element, reporter: Reporter, role: Code | None, *, requestor: bool = False) -> None:
    """The proxy as a participant: a process (PS3.15 A.5.2.1), with its AE title (PS3.15 A.5.2.2)."""
    participant = SubElement(root, "ActiveParticipant", UserID=reporter.process)
    if reporter.aet:
        participant.set("AlternativeUserID", f"AETITLES={_clean(reporter.aet)}")
    participant.set("UserName", PRODUCT)
    participant.set("UserIsRequestor", str(requestor).lower())
    if role is not None:
        _code(participant, "RoleIDCode", role)


def _client(root: Element, record: Record, role: Code | None, *, requestor: bool = True) -> None:
    """Whoever has called: by name, or else by address."""
    name = record.user or record.claimed or record.caller or record.client or UNKNOWN
    participant = SubElement(root, "ActiveParticipant", UserID=_clean(name))
    if record.caller:
        participant.set("AlternativeUserID", f"AETITLES={_clean(record.caller)}")
    participant.set("UserIsRequestor", str(requestor).lower())
    participant.set("NetworkAccessPointID", record.client or UNKNOWN)
    participant.set("NetworkAccessPointTypeCode", "2" if record.client else "1")
    if role is not None:
        _code(participant, "RoleIDCode", role)


def _source(root: Element, reporter: Reporter) -> None:
    source = SubElement(root, "AuditSourceIdentification", AuditSourceID=_clean(reporter.source))
    SubElement(source, "AuditSourceTypeCode", {"csd-code": _APPLICATION_SERVER})


def _study(root: Element, study: Uploaded) -> None:
    described = _object(root, study.study or UNKNOWN, STUDY_INSTANCE_UID, _SYSTEM_OBJECT, _REPORT, name="study")
    if study.count:
        description = SubElement(described, "ParticipantObjectDescription")
        instances = SubElement(description, "SOPClass", NumberOfInstances=str(study.count))
        for uid in study.instances:
            SubElement(instances, "Instance", UID=_clean(uid))


def _patients(root: Element, patients: tuple[str, ...]) -> None:
    for patient in patients or (UNKNOWN,):
        _object(root, patient, PATIENT_NUMBER, _PERSON, _PATIENT, name=UNKNOWN)


def _object(
    root: Element, identifier: str, kind: Code, type_code: str, role: str, *, name: str = "", query: str | None = None
) -> Element:
    """A participant object, which has either a name or a query."""
    attributes = {
        "ParticipantObjectID": _clean(identifier),
        "ParticipantObjectTypeCode": type_code,
        "ParticipantObjectTypeCodeRole": role,
    }
    described = SubElement(root, "ParticipantObjectIdentification", attributes)
    _code(described, "ParticipantObjectIDTypeCode", kind)
    if query is None:
        SubElement(described, "ParticipantObjectName").text = _clean(name)
    else:
        SubElement(described, "ParticipantObjectQuery").text = query
    return described


def _code(parent: Element, name: str, code: Code) -> None:
    value, scheme, meaning = code
    SubElement(parent, name, {"csd-code": value, "codeSystemName": scheme, "originalText": meaning})


def _clean(text: str) -> str:
    """What XML can hold (XML 1.0, 2.2): a name from a token may have anything in it."""
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _message(root: Element, outcome: Outcome) -> Message:
    return Message(outcome, _DECLARATION + tostring(root, encoding="us-ascii", xml_declaration=False))
