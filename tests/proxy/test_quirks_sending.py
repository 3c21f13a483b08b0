"""Archives and their C-STOREs: when they come, over which associations, under whose name, in what shape.

The docstrings quote what archives do in practice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import dul
from dul import dimse, pdu
from dul.items import AsynchronousOperationsWindow
from dul.negotiation import build_request
from tests.corpus import PRIVATE_STORAGE, UID_ROOT
from tests.dul.wire import AC, RJ, Wire, associate_rq
from tests.faultpeer import AET, Retrieve, Script, ScriptedArchive, Stored, honest, in_front_of, small_study
from tests.faultpeer.find import FindScript
from tests.faultpeer.finds import answering_in
from tests.faultpeer.outcomes import assert_whole, data_sets, get_study, status_of
from tests.faultpeer.retrieves import answering_before, over_associations, send_twice, sending, sending_more
from tests.faultpeer.stored import other, same_instances_in_two_series
from tests.faultpeer.wire import APART, PACKED, SMALL_PDUS, TYPE_ZERO, Shape, use_nagle
from tests.proxy.finding import ask
from tests.proxy.retrieved import get, path_of
from tests.proxy.running import PROXY_AET, Proxy, proxy_for, settings

pytestmark = pytest.mark.usefixtures("nothing_left")

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for instances that are to come after the final response."""
    monkeypatch.setattr("proxy.archive.retrieval.fetch.ARRIVAL_GRACE_SECONDS", 0.2)


# --- when they come ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "not counted"])
async def test_instances_after_the_final_response(counted: bool) -> None:
    """'final C-MOVE-RSP before the last C-STORE': it is waited for, and nothing is asked for again."""
    study = small_study(1, 5)
    async with in_front_of(study, answering_before(3, counted=counted)) as (archive, proxy):
        await assert_whole(proxy, study)
    assert archive.moves == {"STUDY": 1}


@pytest.mark.usefixtures("short_grace")
async def test_the_grace_begins_anew_with_each_instance() -> None:
    """'final C-MOVE-RSP before the last C-STORE': all together take longer than the grace."""
    study = small_study(1, 5)
    async with in_front_of(study, answering_before(5, pause=0.1)) as (archive, proxy):
        await assert_whole(proxy, study)
    assert archive.moves == {"STUDY": 1}


@pytest.mark.usefixtures("short_grace")
async def test_instances_that_are_later_than_the_grace_come_once() -> None:
    """'final C-MOVE-RSP before the last C-STORE', by far: what was asked for again meanwhile is not sent twice."""
    study = small_study(1, 3)
    late = asyncio.Event()

    async def script(request: Retrieve) -> None:
        if request.level == "IMAGE":
            late.set()
            await asyncio.sleep(0.05)
            await honest(request)
            return
        async with request.way() as send:
            await send(study[0])
            await request.final(completed=3, failed=0, warning=0)
            await asyncio.wait_for(late.wait(), 5)
            for stored in study[1:]:
                await send(stored)

    async with in_front_of(study, script) as (_, proxy):
        await assert_whole(proxy, study)


async def test_instances_that_are_sent_again(use_cget: bool) -> None:
    """'sends again': what has come is not handed on twice, and the counters that say so do not disturb."""
    study = small_study()
    async with in_front_of(study, send_twice, use_cget=use_cget) as (archive, proxy):
        await assert_whole(proxy, study)
    assert archive.retrieves == {"STUDY": 1}


# --- over which associations ---------------------------------------------------------------------------------


async def test_several_associations_for_one_move() -> None:
    """'one move's C-STOREs over several associations at once', of two moves at once."""
    one, two = small_study(1, 6, study=1), small_study(1, 6, study=2)
    async with in_front_of(one + two, over_associations(3)) as (archive, proxy):
        await asyncio.gather(assert_whole(proxy, one), assert_whole(proxy, two))
    assert archive.moves == {"STUDY": 2}
    assert len(archive.sending) == 6


async def test_asynchronous_operations_are_not_agreed_to() -> None:
    """'many C-STORE-RQs before the first response when asynchronous operations are agreed'."""
    study = small_study()
    async with in_front_of(study) as (archive, proxy):
        await assert_whole(proxy, study)
        assert all(_window(request) is None for request in archive.proposed), "the proxy does not propose it either"
        window = AsynchronousOperationsWindow(0, 0)
        contexts = [dul.Context(study[0].sample.sop_class_uid)]
        request = build_request(PROXY_AET, AET, contexts, [window])
        with await Wire.connect(proxy.address.port) as wire:
            await wire.send(pdu.encode(request))
            answer = pdu.decode(*await wire.pdu())
    assert isinstance(answer, pdu.AAssociateAC)
    assert _window(answer) is None


def _window(associate: pdu.AAssociateRQ | pdu.AAssociateAC) -> AsynchronousOperationsWindow | None:
    items = associate.user_information.items
    return next((item for item in items if isinstance(item, AsynchronousOperationsWindow)), None)


# --- whose they are ------------------------------------------------------------------------------------------


ORIGINATORS: dict[str, Any] = {
    "absent": None,
    "another AE title": lambda request: ("SOMEBODY", request.message_id),
    "another Message ID": (PROXY_AET, 0xFFFE),
    "that of the first": lambda request: (PROXY_AET, request.archive.requests[0].message_id),
}


@pytest.mark.parametrize("originator", ORIGINATORS)
async def test_originators_that_do_not_tell(originator: str) -> None:
    """'Move Originator AE title and message ID absent', or wrong: the UIDs tell whose an instance is."""
    study = same_instances_in_two_series(3)
    others = small_study(2, 3, study=2)
    series = [study[:3], study[3:], others[:3], others[3:]]
    script = sending(originator=ORIGINATORS[originator], pause=0.01)
    async with in_front_of(study + others, script, peer={"maxAssociations": 8}) as (archive, proxy):
        answers = await asyncio.gather(*(get_study(proxy, each, "series") for each in series))
        for answer, each in zip(answers, series, strict=True):
            assert data_sets(answer) == sorted(stored.sample.sha256 for stored in each)
        assert (await status_of(proxy))["storesRefused"] == 0
    assert archive.moves == {"SERIES": 4}


async def test_one_uid_in_two_series(use_cget: bool) -> None:
    """'the same SOP instance UID in two series': both are handed on, and neither for the other."""
    study = same_instances_in_two_series()
    async with in_front_of(study, use_cget=use_cget) as (archive, proxy):
        answer = await get_study(proxy, study)
        assert data_sets(answer) == sorted(stored.sample.sha256 for stored in study)
        assert archive.retrieves == {"STUDY": 1}
        for stored in study:
            answer = await get(proxy, path_of(stored.sample))
            assert data_sets(answer) == [stored.sample.sha256]


async def test_message_ids_are_unique(use_cget: bool) -> None:
    """'the same message ID in parallel moves is confused': they differ, also between archives."""
    studies = [small_study(1, 2, study=number) for number in (1, 2, 3, 4)]
    peer = {"maxAssociations": 8}
    async with (
        ScriptedArchive([*studies[0], *studies[1]], aet="ONE") as one,
        ScriptedArchive([*studies[2], *studies[3]], aet="TWO") as two,
        proxy_for(one.address, two.address, use_cget=use_cget, peer=peer) as proxy,
    ):
        if not use_cget:
            one.destination = two.destination = proxy.address
        await asyncio.gather(*(assert_whole(proxy, study) for study in studies))
    ids = [request.message_id for request in one.requests + two.requests]
    assert len(set(ids)) == len(ids) == 4


@pytest.mark.parametrize(("sequential", "most"), [(True, 1), (False, 3)])
async def test_one_at_a_time(sequential: bool, most: int, use_cget: bool) -> None:
    """'Move Originator … absent' in the last resort: with `sequential` never two retrievals at once."""
    studies = [small_study(1, 2, study=number) for number in range(1, 7)]
    everything = [stored for study in studies for stored in study]
    peer = {"sequential": sequential, "maxAssociations": 4}
    script = sending(originator=None, pause=0.01)
    async with in_front_of(everything, script, use_cget=use_cget, peer=peer) as (archive, proxy):
        await asyncio.gather(*(assert_whole(proxy, study) for study in studies))
    assert archive.most_requests == most


# --- who may store what --------------------------------------------------------------------------------------


@pytest.mark.parametrize("calling", ["STOREONLY", "STOREONLY".ljust(16, "\0"), "  STOREONLY"])
async def test_another_title_for_storing(calling: str) -> None:
    """'its C-STORE SCU has another AE title than its Q/R SCP', and 'AE titles padded with NUL or spaces'."""
    study = small_study()
    async with in_front_of(study, sending(calling=calling), peer={"storeAets": ["STOREONLY"]}) as (archive, proxy):
        await assert_whole(proxy, study)
    assert archive.moves == {"STUDY": 1}


async def test_what_nobody_asked_for() -> None:
    """'sends more than asked': refused with 0124 and counted, and what was asked for comes."""
    study, stranger = small_study(), small_study(1, 2, study=2)
    async with in_front_of(study, sending_more(stranger)) as (archive, proxy):
        archive.instances = study + stranger
        await assert_whole(proxy, study)
        assert (await status_of(proxy))["storesRefused"] == 2
    assert archive.refusals == [dimse.NOT_AUTHORIZED] * 2


async def test_more_than_asked_by_c_get() -> None:
    """'sends more than asked': it is not handed on."""
    study, stranger = small_study(), small_study(1, 2, study=2)
    async with in_front_of(study, sending_more(stranger), use_cget=True) as (_, proxy):
        await assert_whole(proxy, study)


async def answer_to(proxy: Proxy, source: str, calling: str = AET) -> int:
    """Ask the proxy for an association from a loopback address; returns the type of the PDU that answers."""
    request = associate_rq((1, "1.2.840.10008.5.1.4.1.1.2", ["1.2.840.10008.1.2"]), called=PROXY_AET, calling=calling)
    with await Wire.connect(proxy.address.port, source) as wire:
        await wire.send(request)
        kind, _ = await wire.pdu()
        return kind


@pytest.mark.parametrize(
    ("keys", "check", "taken"),
    [
        ({}, True, {"127.0.0.1"}),
        ({"storeHosts": ["127.0.0.2"]}, True, {"127.0.0.1", "127.0.0.2"}),
        ({"storeHosts": ["127.0.0.0/30"]}, True, {"127.0.0.1", "127.0.0.2"}),
        ({}, False, {"127.0.0.1", "127.0.0.2", "127.0.0.4"}),
    ],
    ids=["the archive's own", "another", "a network", "not checked"],
)
async def test_the_address_of_who_stores(keys: dict[str, object], check: bool, taken: set[str]) -> None:
    """'its C-STORE SCU' calls from an address that is none of the archive's: rejected, unless it is named."""
    async with ScriptedArchive(small_study()) as archive:
        dimse_settings: Any = settings(archive.address, peer=keys)["dimseProxySettings"]
        dimse_settings["proxyServer"]["checkStoreHost"] = check
        async with proxy_for(dimseProxySettings=dimse_settings) as proxy:
            answers = {host: await answer_to(proxy, host) for host in ("127.0.0.1", "127.0.0.2", "127.0.0.4")}
            assert await answer_to(proxy, "127.0.0.1", calling="STRANGER") == RJ
    assert answers == {host: AC if host in taken else RJ for host in answers}


# --- in what shape -------------------------------------------------------------------------------------------

SHAPES = {"packed": PACKED, "small PDUs": SMALL_PDUS, "type 0000": TYPE_ZERO}


@pytest.mark.parametrize("shape", SHAPES)
async def test_shapes_of_c_store(shape: str, use_cget: bool) -> None:
    """'command and data PDVs share one P-DATA-TF; one PDV over many PDUs', 'Command Data Set Type 0x0000'."""
    study = small_study()
    async with in_front_of(study, sending(shape=SHAPES[shape]), use_cget=use_cget) as (_, proxy):
        await assert_whole(proxy, study)


@pytest.mark.parametrize("shape", SHAPES)
async def test_shapes_of_c_find(shape: str) -> None:
    """The same of its answers to a search."""
    answer: FindScript = answering_in(SHAPES[shape])
    async with in_front_of(small_study(3, 2), use_cget=True, answer=answer) as (_, proxy):
        assert len(await ask(proxy, "/series")) == 3


async def test_a_slow_line_is_no_silence(use_cget: bool) -> None:
    """'minutes of silence' are not what this is: it takes longer than every timeout, and all of it comes."""
    study = small_study(1, 2, side=4)
    peer = {"timeouts": {"retrieve": 1.2, "idle": 1.2}}
    script = sending(shape=Shape(dripping=0.0005))
    async with in_front_of(study, script, use_cget=use_cget, peer=peer) as (_, proxy):
        await assert_whole(proxy, study)


async def test_nagle_on_both_sides_of_the_archive(use_cget: bool) -> None:
    """'leaves Nagle on': 40 ms for each of 30 instances would be more than a second."""
    study = small_study(1, 30, side=4)

    async def script(request: Retrieve) -> None:
        use_nagle(request.channel)
        async with request.way(shape=APART) as send:
            if request.is_move:
                use_nagle(request.archive.sending[-1].channel)
            for stored in request.instances:
                await send(stored)
        await request.final(completed=30, failed=0, warning=0)

    async with in_front_of(study, script, use_cget=use_cget) as (_, proxy):
        async with asyncio.timeout(1.0):
            await assert_whole(proxy, study)


# --- of what class -------------------------------------------------------------------------------------------


CLASSES: dict[str, Callable[[], Sequence[Stored]]] = {
    "private": lambda: [other(1, PRIVATE_STORAGE), other(2, f"{UID_ROOT}.9.77")],
    "not the data set's": lambda: [stored.called("1.2.840.10008.5.1.4.1.1.7") for stored in small_study(1, 2)],
    "retired": lambda: [other(1, "1.2.840.10008.5.1.4.1.1.6")],
}


@pytest.mark.parametrize("kind", CLASSES)
async def test_sop_classes_of_all_kinds(kind: str, use_cget: bool) -> None:
    """'SOP class in the command differs from the data set's; unknown or private SOP classes': as received."""
    study = list(CLASSES[kind]())
    async with in_front_of(study, use_cget=use_cget) as (_, proxy):
        answer = await get_study(proxy, study)
        assert data_sets(answer) == sorted(stored.sample.sha256 for stored in study)
        single = await get(proxy, path_of(study[0].sample) + "?multipart=false")
        assert study[0].sample.sop_class_uid.encode() in single.body[:400], "the file's header has the command's"


# --- in what transfer syntax ---------------------------------------------------------------------------------


async def test_no_compressed_syntax_for_what_is_no_image() -> None:
    """'compressed transfer syntax accepted for SR, PR, and then fails': the SCP agrees to uncompressed ones only."""
    report, image = other(1), small_study(1, 1)[0]
    proposed = [
        dul.Context(report.sample.sop_class_uid, (JPEG_BASELINE, report.sample.transfer_syntax_uid)),
        dul.Context(report.sample.sop_class_uid, (JPEG_BASELINE,)),
        dul.Context(image.sample.sop_class_uid, (JPEG_BASELINE, image.sample.transfer_syntax_uid)),
        dul.Context(image.sample.sop_class_uid, (image.sample.transfer_syntax_uid,)),
    ]
    async with in_front_of([report, image], sending(proposing=proposed)) as (archive, proxy):
        await assert_whole(proxy, [report, image])
        accepted = archive.sending[0].contexts
    assert {number: context.transfer_syntax for number, context in accepted.items()} == {
        1: report.sample.transfer_syntax_uid,
        5: JPEG_BASELINE,
        7: image.sample.transfer_syntax_uid,
    }


@pytest.mark.parametrize("uncompressed", [True, False])
async def test_uncompressed_syntaxes_only(uncompressed: bool) -> None:
    """'negotiates a compressed syntax and then fails to send it': with `uncompressed` the SCP does not agree to any."""
    image = small_study(1, 1)[0]
    script: Script = sending(
        proposing=[
            dul.Context(image.sample.sop_class_uid, (JPEG_BASELINE, image.sample.transfer_syntax_uid)),
            dul.Context(image.sample.sop_class_uid, (image.sample.transfer_syntax_uid,)),
        ]
    )
    async with in_front_of([image], script, peer={"uncompressed": uncompressed}) as (archive, proxy):
        await assert_whole(proxy, [image])
        first = archive.sending[0].contexts[1]
    assert first.transfer_syntax == (image.sample.transfer_syntax_uid if uncompressed else JPEG_BASELINE)
