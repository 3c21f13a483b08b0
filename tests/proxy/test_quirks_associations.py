"""Archives and their associations: how many, with what contexts, how they begin and how they end.

The docstrings quote what archives do in practice.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from dul import dimse, uids
from dul.errors import AssociationReleased
from dul.items import RoleSelection
from dul.statemachine import State
from proxy.archive.peers import archive as peers
from tests.dul.conftest import until
from tests.faultpeer import Caller, Greeting, Releasing, Retrieve, in_front_of, small_study
from tests.faultpeer.finds import refuse_study_root, want_patient_id
from tests.faultpeer.greetings import (
    abort_instead,
    agree,
    answer_default_roles,
    at_most,
    collide,
    leave_out_roles,
    name_others,
    never_agree,
    pad_titles_with_nul,
    rejecting,
    reset_instead,
    welcome,
)
from tests.faultpeer.outcomes import assert_whole, associations_of, until_free
from tests.faultpeer.retrieves import honest, sending
from tests.faultpeer.stored import other
from tests.faultpeer.wire import Ending, abort, close, reset
from tests.proxy.finding import ask, fetch

pytestmark = pytest.mark.usefixtures("nothing_left")


# --- how they begin ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greeting", [pad_titles_with_nul, name_others])
async def test_titles_in_the_answer(greeting: Greeting, use_cget: bool) -> None:
    """'AE titles padded with NUL or spaces, other AE titles in A-ASSOCIATE-AC'."""
    study = small_study()
    async with in_front_of(study, use_cget=use_cget, greeting=greeting) as (_, proxy):
        assert len(await ask(proxy, "/studies")) == 1
        await assert_whole(proxy, study)


@pytest.mark.parametrize("greeting", [leave_out_roles, answer_default_roles])
async def test_roles_in_the_answer(greeting: Greeting) -> None:
    """'role selection answered with defaults, or not at all, in C-GET'."""
    study = small_study()
    async with in_front_of(study, use_cget=True, greeting=greeting) as (archive, proxy):
        await assert_whole(proxy, study)
        asked = [item for item in archive.proposed[-1].user_information.items if isinstance(item, RoleSelection)]
    assert asked
    assert all(role.scp_role for role in asked)


async def test_few_contexts_for_a_c_get() -> None:
    """'C-GET fails with many presentation contexts': this one falls over at more than 70."""
    study = [*small_study(1, 2), other(1)]

    async def greeting(caller: Caller) -> None:
        request = await caller.asked()
        if len(request.presentation_contexts) > 70:
            caller.end(abort)
        else:
            await caller.accept()

    async with in_front_of(study, use_cget=True, greeting=greeting) as (_, proxy):
        await assert_whole(proxy, study)


@pytest.mark.parametrize("uncompressed", [True, False])
async def test_uncompressed_syntaxes_only(uncompressed: bool) -> None:
    """'negotiates a compressed syntax and then fails to send it': with `uncompressed` a C-GET proposes none."""
    study = [*small_study(1, 1), other(1)]
    async with in_front_of(study, use_cget=True, peer={"uncompressed": uncompressed}) as (archive, proxy):
        await assert_whole(proxy, study)
        contexts = archive.proposed[-1].presentation_contexts
    proposed: dict[str, set[str]] = {}
    for context in contexts:
        proposed.setdefault(context.abstract_syntax, set()).update(context.transfer_syntaxes)
    image, report = (stored.sample.sop_class_uid for stored in study)
    assert proposed[report] == set(uids.UNCOMPRESSED), "'compressed transfer syntax accepted for SR … then fails'"
    assert (proposed[image] == set(uids.UNCOMPRESSED)) is uncompressed


async def test_patient_root_only(use_cget: bool) -> None:
    """'Patient Root without PatientID → A900': the identifier of a retrieval has it too."""
    study = small_study()

    async def script(request: Retrieve) -> None:
        if request.keys.get("PatientID") == study[0].sample.patient_id:
            await honest(request)
        else:
            await request.final(dimse.IDENTIFIER_DOES_NOT_MATCH)

    peer = {"queryModel": "PATIENT"}
    async with in_front_of(study, script, use_cget=use_cget, peer=peer, answer=want_patient_id) as (archive, proxy):
        archive.supported = refuse_study_root
        for level in ("study", "series"):
            await assert_whole(proxy, study[:2] if level == "series" else study, level)
        await assert_whole(proxy, study[3:], "instance")
    assert {request.message.context.abstract_syntax for request in archive.requests} == {
        uids.PATIENT_ROOT_GET if use_cget else uids.PATIENT_ROOT_MOVE
    }


# --- how many ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 4])
async def test_a_limit_that_is_known(limit: int, use_cget: bool) -> None:
    """'a limit on associations': with the same `maxAssociations`, nothing is rejected, whatever goes on at once."""
    study = small_study(3, 2)
    peer = {"maxAssociations": limit}
    greeting = at_most(limit)
    script = sending(pause=0.005)
    async with in_front_of(study, script, use_cget=use_cget, peer=peer, greeting=greeting) as (archive, proxy):
        await asyncio.gather(
            *(ask(proxy, "/studies") for _ in range(6)),
            *(assert_whole(proxy, study[first : first + 2], "series") for first in (0, 2, 4)),
        )
    assert archive.most_associations <= limit


async def test_a_limit_that_is_not_known() -> None:
    """'a limit on associations; leaks on reject': 503 for what is rejected, and all is well again afterwards."""
    study = small_study()

    async def slowly(caller: Caller) -> None:
        await at_most(1)(caller)
        await asyncio.sleep(0.05)

    async with in_front_of(study, use_cget=True, peer={"maxAssociations": 4}) as (archive, proxy):
        await until(lambda: archive.echoes == 1 and archive.open_associations == 0)
        archive.greeting = slowly
        replies = await asyncio.gather(*(fetch(proxy, "/studies") for _ in range(8)))
        statuses = {reply.status for reply in replies}
        assert statuses == {200, 503}
        assert {reply.headers.get("Retry-After") for reply in replies if reply.status == 503} == {"5"}
        assert await associations_of(proxy) <= 1
        assert len(await ask(proxy, "/studies")) == 1


async def test_rejections_leak_nothing(use_cget: bool) -> None:
    """'a limit on associations; leaks on reject': twelve rejections later there is room for as many as ever."""
    study = small_study()
    peer = {"maxAssociations": 2}
    async with in_front_of(study, use_cget=use_cget, peer=peer) as (archive, proxy):
        await until(lambda: archive.echoes == 1 and archive.open_associations == 0)
        archive.greeting = rejecting(2, 3, 2)
        replies = [await fetch(proxy, "/studies") for _ in range(6)]
        replies += await asyncio.gather(*(fetch(proxy, "/studies") for _ in range(6)))
        assert {reply.status for reply in replies} == {503}
        assert await associations_of(proxy) == 0
        archive.greeting = welcome
        await asyncio.gather(ask(proxy, "/studies"), assert_whole(proxy, study))


# --- how they end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [close, abort, reset])
async def test_an_idle_association_that_is_dropped(how: Ending) -> None:
    """'drops an idle association': the next search does not notice."""
    async with in_front_of(small_study(), use_cget=True) as (archive, proxy):
        archive.patience, archive.at_idle = 0.05, how
        for _ in range(2):
            assert len(await ask(proxy, "/studies")) == 1
            await until(lambda: archive.open_associations == 0)
    assert len(archive.finds) == 2


@pytest.mark.parametrize("how", [close, abort, reset])
async def test_an_idle_association_that_is_dropped_at_the_worst_moment(how: Ending) -> None:
    """'drops an idle association', just when the next search is on its way: it is asked once more on a new one."""
    async with in_front_of(small_study(), use_cget=True) as (archive, proxy):
        assert len(await ask(proxy, "/studies")) == 1
        answer = archive.answer
        kept = next(caller for caller in archive.callers if caller.is_open)

        async def drop(find: object) -> None:
            kept.end(how)
            archive.answer = answer

        archive.answer = drop
        assert len(await ask(proxy, "/studies")) == 1
    assert len(archive.finds) == 3


async def test_a_release_collision(use_cget: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """'both sides release at once': Sta9 and Sta11 here, Sta10 and Sta12 there, and no timeout is needed."""
    monkeypatch.setattr(peers, "IDLE_RELEASE_SECONDS", 0.05)
    study = small_study()
    async with in_front_of(study, use_cget=use_cget) as (archive, proxy):
        archive.releasing = collide
        start = time.monotonic()
        assert len(await ask(proxy, "/studies")) == 1
        await assert_whole(proxy, study)
        await until(lambda: not any(caller.is_open for caller in archive.callers))
        assert await associations_of(proxy) == 0
        assert time.monotonic() - start < 2
        for caller in archive.callers:
            await caller.channel.transport.wait_closed()
            assert isinstance(caller.channel.ended, AssociationReleased)
            assert caller.connection.state is State.Sta1
            assert caller.connection.peer_error is None


@pytest.mark.parametrize("releasing", [never_agree, abort_instead, reset_instead])
async def test_a_release_that_is_not_agreed_to(releasing: Releasing, use_cget: bool) -> None:
    """'drops an idle association' and its kin: what was retrieved is whole, and the association does not stay."""
    study = small_study()
    peer = {"timeouts": {"release": 0.2}, "maxAssociations": 2}
    async with in_front_of(study, use_cget=use_cget, peer=peer) as (archive, proxy):
        archive.releasing = releasing
        for _ in range(2):
            await assert_whole(proxy, study)
        archive.releasing = agree
        await assert_whole(proxy, study)
        await until_free(proxy, kept=int(use_cget))  # that of the C-FIND before it
