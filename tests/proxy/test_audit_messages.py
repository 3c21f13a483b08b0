"""DICOM audit messages: by the schema of PS3.15 A.5.1, and by the tables of PS3.15 A.5.3 for each event."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from multidict import MultiDict

from proxy.security.audit.dicom_message import Message, Reporter, messages_of
from proxy.security.audit.events import Category, Outcome, event_of
from proxy.security.audit.paths import MAX_VALUES, searched_for
from proxy.security.audit.record import MAX_NAMED, MAX_STUDIES, Record, uploaded
from proxy.security.audit.syslog import syslog_message
from tests.peers.process import require_program

SCHEMA = Path(__file__).parent / "audit_message.rng"

REPORTER = Reporter("proxy.example.org", "4711", "PROXY")
STUDY, SERIES, INSTANCE = "1.2.3", "1.2.3.4", "1.2.3.4.5"

LARGEST = 32768
"""Bytes that every receiver takes (PS3.15 A.6)."""


def record(category: Category, event: str = "An Event", **more: Any) -> Record:
    """A record of somebody who has signed in."""
    given = {"outcome": Outcome.SUCCESS, "user": "jane", "client": "10.1.2.3", "status": 200, **more}
    return Record(time=1_700_000_000.1239, event=event, category=category, **given)


RECORDS: Mapping[str, Record] = {
    "start": Record(time=1.0, event="Application Start", category=Category.START, outcome=Outcome.SUCCESS),
    "stop": Record(time=1.0, event="Application Stop", category=Category.STOP, outcome=Outcome.SUCCESS),
    "search": record(Category.SEARCH, path="/studies", query={"PatientID": "P-1", "PatientName": "Müller*"}),
    "failed search": record(Category.SEARCH, path="/studies", outcome=Outcome.SERIOUS_FAILURE, status=504),
    "transfer": record(Category.TRANSFER, study=STUDY, series=SERIES, instance=INSTANCE, patients=("P-1",)),
    "transfer that was cut": record(
        Category.TRANSFER, study=STUDY, outcome=Outcome.SERIOUS_FAILURE, ended="cut", user="", status=200
    ),
    "access": record(Category.ACCESS, study=STUDY),
    "storing": record(
        Category.STORE,
        status=202,
        outcome=Outcome.MINOR_FAILURE,
        stored=uploaded({STUDY: ["1.1", "1.2"], "9.8": ["2.1"]}),
        failed=uploaded({STUDY: ["1.3"]}),
    ),
    "storing nothing": record(Category.STORE, study=STUDY, outcome=Outcome.MINOR_FAILURE, status=400),
    "refused sign-in": record(
        Category.SIGN_IN, status=401, outcome=Outcome.MINOR_FAILURE, user="", claimed="mallory", path="/studies"
    ),
    "refused access": record(Category.ALERT, status=403, outcome=Outcome.SERIOUS_FAILURE, path="/cache"),
    "refused caller": record(
        Category.ALERT,
        "Refused Caller",
        status=None,
        outcome=Outcome.SERIOUS_FAILURE,
        user="",
        caller="STRANGER",
        description="an association of a caller that is not known",
    ),
    "a name that XML cannot hold": record(Category.TRANSFER, user="<&\"'>\0\x1f\ud800é\u2028]]>", study=STUDY),
    "an address that is not known": record(Category.SIGN_IN, user="", client="", status=401),
}


def parsed(message: Message) -> ElementTree.Element:
    return ElementTree.fromstring(message.xml)


def only(category: Category, **more: Any) -> ElementTree.Element:
    """The one message of a record."""
    (message,) = messages_of(record(category, **more), REPORTER)
    return parsed(message)


def code(element: ElementTree.Element | None) -> tuple[str, str, str]:
    """A coded value."""
    assert element is not None
    return element.attrib["csd-code"], element.attrib["codeSystemName"], element.attrib["originalText"]


def participants(root: ElementTree.Element) -> dict[str, tuple[str, str]]:
    """Role and whether it is the requestor, of each active participant by UserID."""
    found = {}
    for each in root.findall("ActiveParticipant"):
        role = each.find("RoleIDCode")
        found[each.attrib["UserID"]] = ("" if role is None else code(role)[2], each.attrib["UserIsRequestor"])
    return found


def objects(root: ElementTree.Element) -> list[tuple[str, str, str, str]]:
    """Type, role, meaning of the kind of ID, and ID of each participant object."""
    return [
        (
            each.attrib["ParticipantObjectTypeCode"],
            each.attrib["ParticipantObjectTypeCodeRole"],
            code(each.find("ParticipantObjectIDTypeCode"))[2],
            each.attrib["ParticipantObjectID"],
        )
        for each in root.findall("ParticipantObjectIdentification")
    ]


# --- the schema ----------------------------------------------------------------------------------------------


def validate(folder: Path, *messages: bytes) -> None:
    """Hand messages to xmllint, which validates them against the schema."""
    xmllint = require_program("xmllint", "libxml2-utils")
    files = [folder / f"{number}.xml" for number in range(len(messages))]
    for file, message in zip(files, messages, strict=True):
        file.write_bytes(message)
    done = subprocess.run(
        [xmllint, "--noout", "--relaxng", str(SCHEMA), *map(str, files)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_message_is_valid_by_the_schema(tmp_path: Path) -> None:
    messages = [message.xml for each in RECORDS.values() for message in messages_of(each, REPORTER)]
    messages += [message.xml for each in RECORDS.values() for message in messages_of(each, Reporter("x", "1", ""))]
    assert len(messages) >= len(RECORDS)
    validate(tmp_path, *messages)


def test_the_schema_refuses_what_is_no_such_message(tmp_path: Path) -> None:
    """Or the test above would prove nothing."""
    (message,) = messages_of(RECORDS["search"], REPORTER)
    for right, wrong in (
        (b'EventOutcomeIndicator="0"', b'EventOutcomeIndicator="1"'),
        (b"csd-code", b"code"),
        (b'UserIsRequestor="true"', b""),
        (b'AuditSourceID="proxy.example.org"', b""),
    ):
        assert right in message.xml
        with pytest.raises(AssertionError, match="fails to validate"):
            validate(tmp_path, message.xml.replace(right, wrong))


def test_the_largest_message_is_one_that_every_receiver_takes() -> None:
    """Whatever a client sends: all that goes into a record has a bound."""
    uid = "1." * 31 + "99"
    query = searched_for(MultiDict({f"0008{number:04X}": "\U0001f600" * 300 for number in range(300)}))
    assert sum(map(len, query.values())) <= MAX_VALUES
    studies = {f"{uid[:-4]}{number:04d}": [uid] * 1000 for number in range(1000)}
    name, path, patients = "\U0001f600" * 256, "/" + "x" * 1023, tuple([chr(0x1F600) * 64] * 20)
    for category in Category:
        largest = record(
            category,
            user=name,
            path=path,
            query=query,
            study=uid,
            instance=uid,
            patients=patients,
            stored=uploaded(studies),
            failed=uploaded(studies),
            description=name,
            outcome=Outcome.SERIOUS_FAILURE,
        )
        assert len(largest.line()) < 2 * LARGEST
        for message in messages_of(largest, REPORTER):
            assert len(syslog_message(message, "h" * 255, 1.0)) <= LARGEST, category


# --- the tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("category", "kind"), [(Category.START, "Start"), (Category.STOP, "Stop")])
def test_application_activity(category: Category, kind: str) -> None:
    """PS3.15 A.5.3.1."""
    root = only(category, user="", client="")
    event = root.find("EventIdentification")
    assert event is not None
    assert code(event.find("EventID")) == ("110100", "DCM", "Application Activity")
    assert code(event.find("EventTypeCode"))[2] == f"Application {kind}"
    assert event.attrib["EventActionCode"] == "E"
    assert participants(root) == {"4711": ("Application", "false")}
    assert not objects(root)


def test_query() -> None:
    """PS3.15 A.5.3.10: the query as it went over HTTP, in Base64."""
    root = only(Category.SEARCH, path="/studies", query={"PatientID": "P 1", "PatientName": "Müller*"})
    event = root.find("EventIdentification")
    assert event is not None
    assert code(event.find("EventID")) == ("110112", "DCM", "Query")
    assert event.attrib == {
        "EventActionCode": "E",
        "EventDateTime": "2023-11-14T22:13:20.123Z",
        "EventOutcomeIndicator": "0",
    }
    assert participants(root) == {"jane": ("Source Role ID", "true"), "4711": ("Destination Role ID", "false")}
    assert objects(root) == [("2", "3", "URI", "/studies")]
    query = root.findtext("ParticipantObjectIdentification/ParticipantObjectQuery")
    assert query is not None
    assert base64.b64decode(query) == b"PatientID=P+1&PatientName=M%C3%BCller%2A"


def test_who_the_proxy_and_the_client_are() -> None:
    """The proxy is a process with an AE title (PS3.15 A.5.2.1, A.5.2.2), the client has an address."""
    root = only(Category.SEARCH, path="/studies")
    client, proxy = root.findall("ActiveParticipant")
    assert proxy.attrib["AlternativeUserID"] == "AETITLES=PROXY"
    assert (client.attrib["NetworkAccessPointID"], client.attrib["NetworkAccessPointTypeCode"]) == ("10.1.2.3", "2")
    source = root.find("AuditSourceIdentification")
    assert source is not None
    assert source.attrib["AuditSourceID"] == "proxy.example.org"
    assert participants(only(Category.SEARCH, path="/studies", user=""))["10.1.2.3"] == ("Source Role ID", "true")


def test_instances_that_are_sent() -> None:
    """PS3.15 A.5.3.7: from the proxy to the client, with study and patient."""
    root = only(Category.TRANSFER, study=STUDY, instance=INSTANCE, patients=("P-1",))
    event = root.find("EventIdentification")
    assert event is not None
    assert code(event.find("EventID")) == ("110104", "DCM", "DICOM Instances Transferred")
    assert event.attrib["EventActionCode"] == "R"
    assert participants(root) == {"4711": ("Source Role ID", "false"), "jane": ("Destination Role ID", "true")}
    assert objects(root) == [("2", "3", "Study Instance UID", STUDY), ("1", "1", "Patient Number", "P-1")]
    described = root.find("ParticipantObjectIdentification/ParticipantObjectDescription/SOPClass")
    assert described is not None
    assert described.attrib == {"NumberOfInstances": "1"}
    assert [each.attrib["UID"] for each in described] == [INSTANCE]


def test_studies_that_are_looked_at() -> None:
    """PS3.15 A.5.3.6; without a Patient ID as in dicomweb mode, where the proxy hands on what it does not read."""
    root = only(Category.ACCESS, study=STUDY)
    event = root.find("EventIdentification/EventID")
    assert code(event) == ("110103", "DCM", "DICOM Instances Accessed")
    assert objects(root) == [("2", "3", "Study Instance UID", STUDY), ("1", "1", "Patient Number", "unknown")]


def test_an_upload_is_a_message_for_each_study_and_for_what_failed() -> None:
    """A message is about one patient (PS3.15 A.5.3.7), and about successes or failures (PS3.15 A.5.2)."""
    messages = messages_of(RECORDS["storing"], REPORTER)
    told = []
    for message in messages:
        root = parsed(message)
        event = root.find("EventIdentification")
        assert event is not None
        assert code(event.find("EventID"))[2] == "DICOM Instances Transferred"
        assert event.attrib["EventActionCode"] == "C"
        assert participants(root) == {"jane": ("Source Role ID", "true"), "4711": ("Destination Role ID", "false")}
        assert event.attrib["EventOutcomeIndicator"] == str(int(message.outcome))
        uids = [each.attrib["UID"] for each in root.iter("Instance")]
        told.append((objects(root)[0][3], uids, message.outcome))
    assert told == [
        (STUDY, ["1.1", "1.2"], Outcome.SUCCESS),
        ("9.8", ["2.1"], Outcome.SUCCESS),
        (STUDY, ["1.3"], Outcome.MINOR_FAILURE),
    ]


def test_whose_upload_it_is() -> None:
    """Several patients are not told of with the studies of each other."""
    several = uploaded({STUDY: ["1.1"], "9.8": ["2.1"]})
    for stored, patients, named in (
        (uploaded({STUDY: ["1.1"]}), ("P-1",), [["P-1"]]),
        (uploaded({STUDY: ["1.1"]}), ("P-1", "P-2"), [["P-1", "P-2"]]),
        (several, ("P-1",), [["P-1"], ["P-1"]]),
        (several, ("P-1", "P-2"), [["unknown"], ["unknown"]]),
    ):
        messages = messages_of(record(Category.STORE, stored=stored, patients=patients), REPORTER)
        assert [[each[3] for each in objects(parsed(message))[1:]] for message in messages] == named


def test_a_refused_sign_in() -> None:
    """PS3.15 A.5.3.12: who it claimed to be, and from where."""
    (message,) = messages_of(RECORDS["refused sign-in"], REPORTER)
    root = parsed(message)
    event = root.find("EventIdentification")
    assert event is not None
    assert code(event.find("EventID")) == ("110114", "DCM", "User Authentication")
    assert code(event.find("EventTypeCode")) == ("110122", "DCM", "Login")
    assert event.findtext("EventOutcomeDescription") == "HTTP status 401"
    assert participants(root) == {"mallory": ("", "true"), "4711": ("", "false")}
    assert not objects(root)


def test_security_alerts() -> None:
    """PS3.15 A.5.3.11: the proxy reports, and who did it is no requestor."""
    for name, kind, subject, description in (
        ("refused access", "Use of Restricted Function", ("2", "13", "URI", "/cache"), "An Event"),
        (
            "refused caller",
            "Node Authentication",
            ("2", "13", "Node ID", "10.1.2.3"),
            "an association of a caller that is not known",
        ),
    ):
        (message,) = messages_of(RECORDS[name], REPORTER)
        root = parsed(message)
        event = root.find("EventIdentification")
        assert event is not None
        assert code(event.find("EventID")) == ("110113", "DCM", "Security Alert")
        assert code(event.find("EventTypeCode"))[2] == kind
        reporter, performer = root.findall("ActiveParticipant")
        assert (reporter.attrib["UserID"], reporter.attrib["UserIsRequestor"]) == ("4711", "true")
        assert performer.attrib["UserIsRequestor"] == "false"
        assert objects(root) == [subject]
        detail = root.find("ParticipantObjectIdentification/ParticipantObjectDetail")
        assert detail is not None
        assert detail.attrib["type"] == "Alert Description"
        assert base64.b64decode(detail.attrib["value"]).decode() == description


def test_what_dicom_has_no_message_for() -> None:
    assert messages_of(record(Category.OTHER, "Purge Cache"), REPORTER) == []


def test_names_come_out_as_they_went_in_or_visibly_replaced() -> None:
    """Nothing that a name holds is markup, and what XML has no way to write is not left out without a word."""
    name = "<&\"'>é\u2028]]>--><AuditMessage>"
    assert next(iter(participants(only(Category.ACCESS, user=name, study=STUDY)))) == name
    assert next(iter(participants(only(Category.ACCESS, user="a\0b\ud800", study=STUDY)))) == "a\ufffdb\ufffd"


def test_messages_are_ascii_on_one_line() -> None:
    """Receivers that take the end of a line for the end of a message exist, and those that know no UTF-8."""
    for each in RECORDS.values():
        for message in messages_of(each, REPORTER):
            assert message.xml.isascii()
            assert b"\n" not in message.xml


# --- records, and what they are made from --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "template", "name", "category"),
    [
        ("GET", "/studies", "Search for Studies", Category.SEARCH),
        ("GET", "/studies/{study}/series/{series}/instances", "Search for Study Series Instances", Category.SEARCH),
        ("GET", "/studies/{study}", "Retrieve Study", Category.TRANSFER),
        ("GET", "/studies/{study}/series/{series}/instances/{instance}", "Retrieve Instance", Category.TRANSFER),
        ("GET", "/studies/{study}/metadata", "Retrieve Study Metadata", Category.ACCESS),
        ("GET", "/studies/{study}/rendered", "Retrieve Rendered Study", Category.ACCESS),
        ("GET", "/studies/{study}/thumbnail", "Retrieve Study Thumbnail", Category.ACCESS),
        ("GET", "/wado", "Retrieve Instance by URI", Category.TRANSFER),
        ("POST", "/studies", "Store Instances", Category.STORE),
        ("POST", "/studies/{study}", "Store Study Instances", Category.STORE),
        ("DELETE", "/cache/studies/{study}", "Purge Cache", Category.OTHER),
        ("POST", "/dimse/echo", "Echo", Category.OTHER),
        ("PUT", "/studies/{study}", "PUT /studies/{study}", Category.OTHER),
    ],
)
def test_events(method: str, template: str, name: str, category: Category) -> None:
    assert event_of(method, template) == (name, category)


def test_a_record_of_a_large_upload_names_some_and_counts_all() -> None:
    by_study = {f"1.{number}": ["2.3"] * 60 for number in range(30)}
    studies = uploaded(by_study)
    assert len(studies) == MAX_STUDIES
    assert sum(len(study.instances) for study in studies) == MAX_NAMED
    assert [study.count for study in studies] == [60] * MAX_STUDIES


def test_a_line_has_nothing_that_is_not_known() -> None:
    line = replace(RECORDS["access"], status=None).line()
    assert line == (
        b'{"time":"2023-11-14T22:13:20.123Z","event":"An Event","outcome":0,"result":"success",'
        b'"user":"jane","client":"10.1.2.3","study":"1.2.3"}\n'
    )
