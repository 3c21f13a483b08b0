"""What an upload is answered with: the Store Instances Response Module (PS3.18 Annex I) as DICOM JSON or XML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from proxy.archive.spool.spool import InstanceInfo
from proxy.archive.storing.storing import Outcome
from proxy.dicomweb.nativexml import DICOM_XML, native_xml
from proxy.dicomweb.urls import resource_path

CANNOT_UNDERSTAND: Final = 0xC000
NO_MATCH: Final = 0xA900
OTHER_STUDY: Final = 0xA901
TOO_LARGE: Final = 0xA700
"""Failure Reasons (PS3.18 Table I.2-2). The standard has a range for what does not match; other servers say by the
same number of it that the study is not the one in the path."""

_Item = dict[str, dict[str, Any]]


@dataclass(slots=True)
class Report:
    """What came of an upload. `others` are failures of what has no SOP Instance UID (PS3.18 Table I.1-1)."""

    outcomes: list[Outcome] = field(default_factory=list)
    refused: list[Outcome] = field(default_factory=list)
    others: list[int] = field(default_factory=list)

    @property
    def stored(self) -> list[Outcome]:
        """The instances that the archive has taken."""
        return [outcome for outcome in self.outcomes if outcome.stored]

    @property
    def failed(self) -> list[Outcome]:
        """Those that it has not, or was not asked to take."""
        return [outcome for outcome in self.outcomes if not outcome.stored] + self.refused

    @property
    def status(self) -> int:
        """The status of the answer (PS3.18 Table 10.5.3-1)."""
        if not self.stored:
            return 409
        clean = not self.failed and not self.others and not any(outcome.warned for outcome in self.stored)
        return 200 if clean else 202

    def response(self, base: str, study: str | None, media_type: str) -> web.Response:
        """The answer. `base` is the proxy's own address, `study` that of the path."""
        text = json.dumps(self._model(base, study))
        body = native_xml(text) if media_type == DICOM_XML else text.encode()
        # No charset: clients compare the media type with what they know.
        return web.Response(status=self.status, body=body, headers={"Content-Type": media_type})

    def _model(self, base: str, study: str | None) -> _Item:
        studies = {outcome.info.study for outcome in self.stored if outcome.info.study}
        if study is not None:
            studies.add(study)
        one = base + resource_path(studies.pop()) if len(studies) == 1 else None
        model = {"00081190": {"vr": "UR", "Value": [one]} if one else {"vr": "UR"}}
        _add_sequence(model, "00081198", [_failed(outcome) for outcome in self.failed])
        _add_sequence(model, "00081199", [_stored(outcome, base) for outcome in self.stored])
        _add_sequence(model, "0008119A", [{"00081197": _number(reason)} for reason in self.others])
        return model


def _add_sequence(model: _Item, tag: str, items: Sequence[_Item]) -> None:
    if items:
        model[tag] = {"vr": "SQ", "Value": items}


def _reference(info: InstanceInfo) -> _Item:
    return {
        "00081150": {"vr": "UI", "Value": [info.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [info.sop_instance_uid]},
    }


def _failed(outcome: Outcome) -> _Item:
    return {**_reference(outcome.info), "00081197": _number(outcome.status)}


def _stored(outcome: Outcome, base: str) -> _Item:
    info = outcome.info
    item = _reference(info)
    if info.study and info.series:
        url = base + resource_path(info.study, info.series, info.sop_instance_uid)
        item["00081190"] = {"vr": "UR", "Value": [url]}
    if outcome.warned:
        item["00081196"] = _number(outcome.status)
    return item


def _number(value: int) -> dict[str, Any]:
    return {"vr": "US", "Value": [value]}
