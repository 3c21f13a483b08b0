"""The scripts do what they are named for, as `dul` alone sees it: a fault that is none proves nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from pydicom.dataset import Dataset

import dul
from dul import dimse, uids
from dul.errors import AssociationReleased
from dul.negotiation import TransferSyntaxPolicy
from dul.statemachine import State
from tests.dul.archive import decode, identifier
from tests.faultpeer import Find, FindScript, Greeting, ScriptedArchive, small_study
from tests.faultpeer.association import Releasing
from tests.faultpeer.finds import (
    answer_all,
    answer_with_warning,
    capped,
    failing_after,
    ignore_cancel,
    ignore_keys,
    leave_out_character_set,
    refuse_other_levels,
    refuse_study_root,
    repeat_answers,
    want_patient_id,
)
from tests.faultpeer.greetings import (
    GARBAGE,
    HTTP_ANSWER,
    at_most,
    break_in_answer,
    collide,
    dripping,
    ending,
    hang,
    keep_silent,
    never_agree,
    rejecting,
    writing,
)
from tests.faultpeer.wire import abort, close, reset
from tests.peers.process import HOST

pytestmark = pytest.mark.usefixtures("nothing_left")

FIND = (dul.Context(uids.STUDY_ROOT_FIND),)
SHORT = dul.Timeouts(associate=0.2, response=0.5, release=0.2)


@contextlib.asynccontextmanager
async def association_with(
    archive: ScriptedArchive, contexts: Sequence[dul.Context] = FIND
) -> AsyncIterator[dul.Association]:
    """Open an association with it, for as long as the `async with` lasts."""
    async with dul.connect(dul.Peer(HOST, archive.port, archive.aet, "SCU"), contexts, timeouts=SHORT) as association:
        yield association


async def search(archive: ScriptedArchive, level: str = "STUDY", **keys: str) -> list[tuple[int, Dataset]]:
    """Return statuses and data sets of the answers to a C-FIND."""
    async with association_with(archive) as association:
        matches = [match async for match in association.find(identifier(level, **keys))]
    return [(match.status, decode(match.data, match.transfer_syntax)) for match in matches]


# --- C-FIND --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "count"), [(answer_all, 3), (capped(2), 2), (repeat_answers, 6), (answer_with_warning, 3)]
)
async def test_how_many_answers(script: FindScript, count: int) -> None:
    async with ScriptedArchive(small_study(3, 2), answer=script) as archive:
        study = archive.instances[0].sample.study_uid
        answers = await search(archive, "SERIES", StudyInstanceUID=study, SeriesInstanceUID="")
        expected = dimse.PENDING_WITH_WARNING if script is answer_with_warning else dimse.PENDING
        assert [status for status, _ in answers] == [expected] * count
        assert {str(answer.StudyInstanceUID) for _, answer in answers} == {study}
        assert archive.searches == {"SERIES": 1}


async def test_answers_have_what_was_asked_for_and_is_known() -> None:
    async with ScriptedArchive(small_study(), hidden=frozenset({"ModalitiesInStudy"})) as archive:
        archive.availability = "NEARLINE"
        keys = ("StudyInstanceUID", "PatientID", "ModalitiesInStudy", "InstanceAvailability", "StudyDescription")
        ((_, answer),) = await search(archive, **dict.fromkeys(keys, ""))
    sample = archive.instances[0].sample
    assert (answer.StudyInstanceUID, answer.PatientID) == (sample.study_uid, sample.patient_id)
    assert answer.InstanceAvailability == "NEARLINE"
    assert answer.StudyDescription == ""
    assert "ModalitiesInStudy" not in answer


@pytest.mark.parametrize(("script", "count"), [(answer_all, 0), (ignore_keys, 1)])
async def test_keys_that_are_ignored(script: FindScript, count: int) -> None:
    async with ScriptedArchive(small_study(), answer=script) as archive:
        assert len(await search(archive, StudyInstanceUID="", PatientName="Nobody*")) == count


async def test_a_character_set_that_is_not_named() -> None:
    async with ScriptedArchive(small_study(), answer=leave_out_character_set) as archive:
        ((_, answer),) = await search(archive, StudyInstanceUID="", SpecificCharacterSet="")
    assert "SpecificCharacterSet" not in answer


async def test_a_failure_after_some_answers() -> None:
    async with ScriptedArchive(small_study(3, 1), answer=failing_after(2, comment="too many")) as archive:
        study, got = archive.instances[0].sample.study_uid, 0
        with pytest.raises(dul.StatusError) as caught:
            async with association_with(archive) as association:
                async for _ in association.find(identifier("SERIES", StudyInstanceUID=study, SeriesInstanceUID="")):
                    got += 1
    assert (got, caught.value.status, caught.value.comment) == (2, dimse.REFUSED_OUT_OF_RESOURCES, "too many")


@pytest.mark.parametrize(
    ("script", "level", "keys", "refused"),
    [
        (refuse_other_levels, "STUDY", {"StudyInstanceUID": ""}, False),
        (refuse_other_levels, "STUDY", {"StudyInstanceUID": "", "SeriesInstanceUID": ""}, True),
        (refuse_other_levels, "SERIES", {"SeriesInstanceUID": ""}, True),
        (want_patient_id, "STUDY", {"StudyInstanceUID": ""}, True),
        (want_patient_id, "STUDY", {"StudyInstanceUID": "", "PatientID": "P*"}, True),
        (want_patient_id, "STUDY", {"StudyInstanceUID": "", "PatientID": "P1-00001"}, False),
    ],
)
async def test_identifiers_that_are_refused(
    script: FindScript, level: str, keys: dict[str, str], refused: bool
) -> None:
    async with ScriptedArchive(small_study(), answer=script) as archive:
        if refused:
            with pytest.raises(dul.StatusError, match="0xA900"):
                await search(archive, level, **keys)
        else:
            assert len(await search(archive, level, **keys)) == 1


@pytest.mark.parametrize(("script", "given"), [(answer_all, False), (ignore_cancel, True)])
async def test_cancel(script: FindScript, given: bool) -> None:
    """All 200 are given by the one that does not listen."""
    finds = []

    async def watched(find: Find) -> None:
        finds.append(find)
        await script(find)

    async with ScriptedArchive(small_study(200, 1, side=4), answer=watched) as archive:
        study = archive.instances[0].sample.study_uid
        async with association_with(archive) as association:
            async for _ in association.find(identifier("SERIES", StudyInstanceUID=study, SeriesInstanceUID="")):
                break
    assert (finds[0].given == 200) is given


@pytest.mark.parametrize(("supported", "accepted"), [(dul.accept_query_retrieve, 2), (refuse_study_root, 1)])
async def test_models_that_are_not_supported(supported: TransferSyntaxPolicy, accepted: int) -> None:
    contexts = [dul.Context(uids.STUDY_ROOT_FIND), dul.Context(uids.PATIENT_ROOT_FIND)]
    async with (
        ScriptedArchive(small_study(), supported=supported) as archive,
        association_with(archive, contexts) as association,
    ):
        assert len(association.contexts) == accepted


# --- associations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("greeting", "error"),
    [
        (rejecting(2, 3, 1), dul.AssociationRejected),
        (ending(abort), dul.AssociationAborted),
        (ending(close), dul.ConnectionLost),
        (ending(reset), dul.ConnectionLost),
        (ending(close, asked=False), dul.ConnectionLost),
        (ending(reset, asked=False), dul.ConnectionLost),
        (break_in_answer, dul.ConnectionLost),
        (writing(GARBAGE), dul.RemoteProtocolError),
        (writing(HTTP_ANSWER), dul.RemoteProtocolError),
        (hang, dul.PeerTimeout),
        (keep_silent, dul.PeerTimeout),
        (dripping(0.01), dul.PeerTimeout),
    ],
)
async def test_no_association(greeting: Greeting, error: type[Exception]) -> None:
    async with ScriptedArchive([], greeting=greeting) as archive:
        with pytest.raises(error):
            async with association_with(archive):
                pass
        assert archive.open_associations == archive.most_associations == 0


async def test_a_limit_on_associations() -> None:
    async with ScriptedArchive([], greeting=at_most(2)) as archive:
        async with association_with(archive), association_with(archive):
            with pytest.raises(dul.AssociationRejected, match="local limit exceeded"):
                async with association_with(archive):
                    pass
        async with association_with(archive):
            assert archive.open_associations == 1
    assert archive.most_associations == 2


async def test_a_drip_that_is_waited_for() -> None:
    async with ScriptedArchive(small_study(), greeting=dripping(0.0001)) as archive:
        start = time.monotonic()
        peer = dul.Peer(HOST, archive.port, archive.aet, "SCU")
        async with dul.connect(peer, FIND, timeouts=dul.Timeouts(associate=5)):
            assert time.monotonic() - start > 0.1


@pytest.mark.parametrize(
    ("releasing", "states"),
    [(collide, [State.Sta9, State.Sta11]), (never_agree, [State.Sta7])],
)
async def test_releases(releasing: Releasing, states: list[State], monkeypatch: pytest.MonkeyPatch) -> None:
    """A collision takes the requestor through the states that PS3.8 Table 9-10 has for it."""
    seen = []
    async with ScriptedArchive([], releasing=releasing) as archive:
        async with association_with(archive) as association:
            connection = association.channel._connection
            do = connection._do

            def watched(*arguments: object) -> object:
                events = do(*arguments)  # type: ignore[arg-type]
                seen.append(connection.state)
                return events

            monkeypatch.setattr(connection, "_do", watched)
        if releasing is collide:
            assert isinstance(archive.callers[0].channel.ended, AssociationReleased)
    assert [state for state in seen if state in (State.Sta7, State.Sta9, State.Sta11)][-len(states) :] == states


async def test_killed_and_started_again() -> None:
    async with ScriptedArchive(small_study()) as archive:
        port = archive.port
        async with association_with(archive) as association:
            archive.kill()
            with pytest.raises(dul.ConnectionLost):
                await association.channel.receive("the end", 1)
        with pytest.raises(dul.ConnectError):
            await search(archive)
        await archive.listen()
        assert archive.port == port
        assert len(await search(archive, StudyInstanceUID="")) == 1
