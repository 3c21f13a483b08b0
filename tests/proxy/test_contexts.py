"""Which presentation contexts a C-GET proposes, and what a C-STORE may come in."""

from __future__ import annotations

import pytest

import dul
from dul import uids
from proxy.archive.retrieval.contexts import (
    COMMON_CLASSES,
    MAX_CONTEXTS,
    build_contexts,
    common_contexts,
    is_image,
    storage_syntaxes,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"
PDF = "1.2.840.10008.5.1.4.1.1.104.1"
PRIVATE = "1.2.826.0.1.3680043.8.498.9.1"


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


def test_uncompressed_where_the_archive_is_to_be_asked_so() -> None:
    for contexts in (build_contexts([CT, PRIVATE], compressed=False), common_contexts(compressed=False)):
        syntaxes = {syntax for context in contexts[1:] for syntax in context.transfer_syntaxes}
        assert syntaxes == set(uids.UNCOMPRESSED)


def test_the_patient_root_model() -> None:
    assert build_contexts([CT], uids.PATIENT_ROOT_GET)[0].abstract_syntax == uids.PATIENT_ROOT_GET
    assert common_contexts(uids.PATIENT_ROOT_GET)[0].abstract_syntax == uids.PATIENT_ROOT_GET


def test_what_a_c_store_may_come_in() -> None:
    assert set(storage_syntaxes(CT, compressed=True)) == set(uids.ALL_TRANSFER_SYNTAXES)
    for sop_class in (REPORT, PDF):
        taken = set(storage_syntaxes(sop_class, compressed=True))
        assert taken == set(uids.ALL_TRANSFER_SYNTAXES) - set(uids.COMPRESSED)
    plain = {*uids.UNCOMPRESSED, uids.EXPLICIT_VR_BIG_ENDIAN}
    assert set(storage_syntaxes(CT, compressed=False)) == set(storage_syntaxes(REPORT, compressed=False)) == plain
    assert not storage_syntaxes(uids.STUDY_ROOT_FIND, compressed=True)
    assert set(dul.accept_all_storage(CT)) == set(uids.ALL_TRANSFER_SYNTAXES)
