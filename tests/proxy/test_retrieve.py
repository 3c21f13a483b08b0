"""What a retrieval is made of, by itself: its target, the buffer of an instance, the contexts of a C-GET."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.filereader import read_dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dul import uids
from proxy.archive.contexts import COMMON_CLASSES, MAX_CONTEXTS, build_contexts, common_contexts, is_image
from proxy.archive.errors import IncompleteError
from proxy.archive.retrieve import Target
from proxy.archive.spool import BUFFER_LIMIT, ArrivingInstance, InstanceInfo
from proxy.dataset.levels import Level

CT = "1.2.840.10008.5.1.4.1.1.2"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"
PDF = "1.2.840.10008.5.1.4.1.1.104.1"
PRIVATE = "1.2.826.0.1.3680043.8.498.9.1"

INFO = InstanceInfo(CT, "1.2.3.4.5", ExplicitVRLittleEndian, "1.2.3", "1.2.3.4")


# --- the target ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "level", "keys"),
    [
        (Target("1.2.3"), Level.STUDY, {"StudyInstanceUID": "1.2.3"}),
        (Target("1.2.3", "1.2.3.4"), Level.SERIES, {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}),
        (
            Target("1.2.3", "1.2.3.4", "1.2.3.4.5"),
            Level.IMAGE,
            {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SOPInstanceUID": "1.2.3.4.5"},
        ),
    ],
)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_the_identifier_has_the_unique_keys_and_nothing_else(
    target: Target, level: Level, keys: dict[str, str], syntax: str
) -> None:
    """PS3.4 C.4.2.1.4: archives refuse others, Specific Character Set among them."""
    assert target.level is level
    encoded = io.BytesIO(target.identifier(syntax))
    data_set = read_dataset(encoded, syntax == ImplicitVRLittleEndian, True)
    assert {element.keyword: element.value for element in data_set} == {"QueryRetrieveLevel": level.value, **keys}


@pytest.mark.parametrize(
    ("target", "covered"),
    [
        (Target("1.2.3"), True),
        (Target("1.2.30"), False),
        (Target("1.2.3", "1.2.3.4"), True),
        (Target("1.2.3", "1.2.3.40"), False),
        (Target("1.2.30", "1.2.3.4"), False),
        (Target("1.2.3", "1.2.3.4", "1.2.3.4.5"), True),
        (Target("1.2.3", "1.2.3.4", "1.2.3.4.50"), False),
        (Target("1.2.3", "1.2.3.40", "1.2.3.4.5"), False),
    ],
)
def test_what_a_target_covers(target: Target, covered: bool) -> None:
    assert target.covers(INFO) is covered


def test_an_unknown_uid_does_not_speak_against_an_instance() -> None:
    unknown = replace(INFO, study=None, series=None)
    assert Target("1.2.3").covers(unknown)
    assert Target("1.2.30", "1.2.40").covers(unknown)
    assert not Target("1.2.3", "1.2.3.4", "1.2.3.4.50").covers(unknown), "the command tells the SOP instance"


# --- the buffer of an instance -------------------------------------------------------------------------------


@given(chunks=st.lists(st.binary(max_size=50), max_size=20))
def test_bytes_come_out_as_they_went_in(chunks: list[bytes]) -> None:
    async def pass_through() -> bytes:
        instance = ArrivingInstance(INFO)

        async def write() -> None:
            for chunk in chunks:
                await instance.put(chunk)
            instance.finish()

        writing = asyncio.ensure_future(write())
        got = b"".join([chunk async for chunk in instance])
        await writing
        assert instance.size == len(got)
        assert instance.unread == 0
        return got

    assert asyncio.run(pass_through()) == b"".join(chunks)


async def test_the_writer_waits_for_the_reader() -> None:
    instance = ArrivingInstance(INFO)
    await instance.put(bytes(BUFFER_LIMIT - 1))
    await instance.put(b"one chunk may go over it")
    waiting = asyncio.ensure_future(instance.put(b"last"))
    await asyncio.sleep(0)
    assert instance.is_held_back
    assert not waiting.done()
    assert len(await anext(instance)) == BUFFER_LIMIT - 1
    await waiting
    assert not instance.is_held_back
    instance.finish()
    assert [chunk async for chunk in instance] == [b"one chunk may go over it", b"last"]


async def test_a_failure_is_told_to_both_sides_after_what_has_come() -> None:
    instance = ArrivingInstance(INFO)
    await instance.put(bytes(BUFFER_LIMIT))
    waiting = asyncio.ensure_future(instance.put(b"more"))
    await asyncio.sleep(0)
    instance.fail(IncompleteError("first"))
    instance.fail(IncompleteError("second"))
    with pytest.raises(IncompleteError, match="first"):
        await waiting
    assert len(await anext(instance)) == BUFFER_LIMIT
    with pytest.raises(IncompleteError, match="first"):
        await anext(instance)


async def test_a_failure_wakes_a_reader_that_waits() -> None:
    instance = ArrivingInstance(INFO)
    reading = asyncio.ensure_future(anext(instance))
    await asyncio.sleep(0)
    instance.fail(IncompleteError("gone"))
    with pytest.raises(IncompleteError, match="gone"):
        await reading


async def test_what_is_whole_cannot_fail_any_more() -> None:
    instance = ArrivingInstance(INFO)
    await instance.put(b"all")
    instance.finish()
    instance.fail(IncompleteError("too late"))
    assert [chunk async for chunk in instance] == [b"all"]


# --- the contexts of a C-GET ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4, 5, 41, 63, 64, 127, 200])
def test_never_more_contexts_than_there_are(count: int) -> None:
    classes = [f"{CT}.{number}" for number in range(1, count + 1)]
    contexts = build_contexts(classes)
    assert len(contexts) <= MAX_CONTEXTS == 128
    assert contexts[0].abstract_syntax == uids.STUDY_ROOT_GET
    assert not contexts[0].scp_role
    assert all(context.scp_role for context in contexts[1:])
    assert [*dict.fromkeys(context.abstract_syntax for context in contexts[1:])] == classes[:127]
    for sop_class in classes[:127]:
        syntaxes = [s for c in contexts if c.abstract_syntax == sop_class for s in c.transfer_syntaxes]
        assert set(uids.UNCOMPRESSED) <= set(syntaxes), "each class can come in one that it must have"
        assert len(syntaxes) == len(set(syntaxes))


def test_few_classes_get_a_context_for_every_transfer_syntax() -> None:
    contexts = build_contexts([PRIVATE])
    syntaxes = [context.transfer_syntaxes for context in contexts[1:]]
    assert all(len(each) == 1 for each in syntaxes), "the archive picks one of each context, the first that it knows"
    others = (uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, uids.EXPLICIT_VR_BIG_ENDIAN)
    assert {syntax for (syntax,) in syntaxes} == {*uids.UNCOMPRESSED, *uids.COMPRESSED, *others}


def test_no_compressed_transfer_syntax_for_what_is_no_image() -> None:
    """Archives agree to it, and then fail to send."""
    contexts = build_contexts([REPORT, PDF, SEGMENTATION])
    for sop_class in (REPORT, PDF):
        assert not is_image(sop_class)
        syntaxes = {s for c in contexts if c.abstract_syntax == sop_class for s in c.transfer_syntaxes}
        assert syntaxes == set(uids.UNCOMPRESSED)
    assert is_image(SEGMENTATION)
    assert is_image(PRIVATE)


def test_common_classes_where_nothing_is_known() -> None:
    contexts = common_contexts()
    assert len(contexts) == MAX_CONTEXTS
    assert len(set(COMMON_CLASSES)) == len(COMMON_CLASSES)
    plain = {c.abstract_syntax for c in contexts[1:] if set(uids.UNCOMPRESSED) <= set(c.transfer_syntaxes)}
    assert plain == set(COMMON_CLASSES)
    compressed = [c.abstract_syntax for c in contexts[1:] if set(uids.COMPRESSED) <= set(c.transfer_syntaxes)]
    assert compressed[:3] == [CT, "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.1"]
    assert all(map(is_image, compressed))
