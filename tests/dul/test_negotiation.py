"""`dul.negotiation` and `dul.uids`: what is proposed, what is taken, and what careless peers answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom._uid_dict import UID_dictionary
from pynetdicom import sop_class
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from dul import items, limits, pdu, uids
from dul.errors import LocalProtocolError, RemoteProtocolError
from dul.items import PresentationContextAC, PresentationContextRQ, RoleSelection, UserIdentityRQ, UserInformation
from dul.negotiation import (
    AcceptedContext,
    Context,
    accept_all_storage,
    accept_query_retrieve,
    accepted_contexts,
    answer_request,
    build_request,
    find_context,
    send_limit,
)
from dul.pdu import AAssociateAC, AAssociateRQ
from tests.dul.strategies import associate_requests, decode_all, examples

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
PRIVATE = "1.3.46.670589.5.0.10"
RETIRED = "1.2.840.10008.5.1.4.1.1.5"  # Nuclear Medicine Image Storage (retired)
JPEG_LS, J2K = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
IMPLICIT, EXPLICIT = uids.IMPLICIT_VR_LITTLE_ENDIAN, uids.EXPLICIT_VR_LITTLE_ENDIAN


def request(*contexts: PresentationContextRQ, user_items: tuple[items.UserItem, ...] = ()) -> AAssociateRQ:
    return AAssociateRQ("ARCHIVE", "PROXY", contexts, UserInformation(16384, "1.2.3", items=user_items))


def answer(*contexts: PresentationContextAC) -> AAssociateAC:
    return AAssociateAC("ARCHIVE", "PROXY", contexts)


# --- the request ---------------------------------------------------------------------------------------------


def test_request_proposes_contexts_in_order_with_odd_ids() -> None:
    built = build_request("ARCHIVE", "PROXY", [Context(CT, (JPEG_LS, EXPLICIT)), Context(uids.VERIFICATION)])
    assert (built.called_ae_title, built.calling_ae_title) == ("ARCHIVE", "PROXY")
    assert built.presentation_contexts == (
        PresentationContextRQ(1, CT, (JPEG_LS, EXPLICIT)),
        PresentationContextRQ(3, uids.VERIFICATION, (EXPLICIT, IMPLICIT)),
    )
    assert built.application_context == "1.2.840.10008.3.1.1.1"
    assert built.protocol_version == 1
    assert built.user_information == UserInformation(
        limits.MAX_PDU_RECEIVED, uids.IMPLEMENTATION_CLASS_UID, uids.IMPLEMENTATION_VERSION_NAME
    )
    assert decode_all(pdu.encode(built)) == [built]


def test_request_asks_for_the_scp_role_once_for_each_sop_class() -> None:
    """PS3.7 D.3.3.4, as C-GET needs; further items follow."""
    identity = UserIdentityRQ(1, b"user")
    contexts = [
        Context(uids.STUDY_ROOT_GET),
        Context(CT, (JPEG_LS,), scp_role=True),
        Context(CT, (EXPLICIT,), scp_role=True),
        Context(MR, scp_role=True),
    ]
    built = build_request("ARCHIVE", "PROXY", contexts, [identity])
    assert built.user_information.items == (
        RoleSelection(CT, scu_role=False, scp_role=True),
        RoleSelection(MR, scu_role=False, scp_role=True),
        identity,
    )


def test_128_contexts_can_be_proposed_and_no_more() -> None:
    """PS3.8 9.3.2.2: odd IDs from 1 to 255."""
    built = build_request("ARCHIVE", "PROXY", [Context(CT)] * 128)
    assert [context.context_id for context in built.presentation_contexts] == list(range(1, 256, 2))
    assert decode_all(pdu.encode(built)) == [built]
    for count in (0, 129):
        with pytest.raises(LocalProtocolError):
            build_request("ARCHIVE", "PROXY", [Context(CT)] * count)


def test_our_own_uids_keep_to_the_standard() -> None:
    """PS3.5 9.1 and PS3.7 D.3.3.2.3: at most 64 and 16 characters."""
    assert len(uids.IMPLEMENTATION_CLASS_UID) <= 64
    assert len(uids.IMPLEMENTATION_VERSION_NAME) <= 16


# --- the acceptor --------------------------------------------------------------------------------------------


def test_first_supported_syntax_in_the_proposers_order_is_taken() -> None:
    """Archives put the one that the object has first."""
    accept, agreed = answer_request(
        request(
            PresentationContextRQ(1, CT, (J2K, EXPLICIT)),
            PresentationContextRQ(3, CT, (IMPLICIT, EXPLICIT)),
            PresentationContextRQ(5, MR, ("1.2.3.4", JPEG_LS)),
        ),
        accept_all_storage,
    )
    assert accept.presentation_contexts == (
        PresentationContextAC(1, 0, J2K),
        PresentationContextAC(3, 0, IMPLICIT),
        PresentationContextAC(5, 0, JPEG_LS),
    )
    assert agreed == {
        1: AcceptedContext(1, CT, J2K),
        3: AcceptedContext(3, CT, IMPLICIT),
        5: AcceptedContext(5, MR, JPEG_LS),
    }
    assert (accept.called_ae_title, accept.calling_ae_title) == ("ARCHIVE", "PROXY")


def test_rejected_contexts_say_why() -> None:
    """PS3.8 Table 9-18: 3, abstract syntax not supported; 4, none of the transfer syntaxes. A syntax is named all
    the same, and the other contexts are not touched."""
    accept, agreed = answer_request(
        request(
            PresentationContextRQ(1, uids.STUDY_ROOT_FIND, (IMPLICIT,)),
            PresentationContextRQ(3, CT, ("1.2.3.4", "1.2.3.5")),
            PresentationContextRQ(5, uids.VERIFICATION, (JPEG_LS,)),
            PresentationContextRQ(7, uids.VERIFICATION, (IMPLICIT,)),
        ),
        accept_all_storage,
    )
    assert accept.presentation_contexts == (
        PresentationContextAC(1, 3, IMPLICIT),
        PresentationContextAC(3, 4, "1.2.3.4"),
        PresentationContextAC(5, 4, JPEG_LS),
        PresentationContextAC(7, 0, IMPLICIT),
    )
    assert list(agreed) == [7]


@pytest.mark.parametrize("abstract_syntax", [CT, PRIVATE, RETIRED, "1.2.840.10008.5.1.4.1.1.77.1.6"])
@pytest.mark.parametrize("transfer_syntax", uids.ALL_TRANSFER_SYNTAXES)
def test_any_storage_class_is_taken_in_any_syntax(abstract_syntax: str, transfer_syntax: str) -> None:
    """Also private and retired ones."""
    context = PresentationContextRQ(1, abstract_syntax, (transfer_syntax,))
    _, agreed = answer_request(request(context), accept_all_storage)
    assert agreed == {1: AcceptedContext(1, abstract_syntax, transfer_syntax)}


def test_archive_policy_takes_query_and_retrieve_too() -> None:
    models = [uids.PATIENT_ROOT_FIND, uids.STUDY_ROOT_FIND, uids.STUDY_ROOT_MOVE, uids.STUDY_ROOT_GET]
    for model in models:
        assert accept_query_retrieve(model) == uids.UNCOMPRESSED
        assert accept_all_storage(model) == ()
    assert accept_query_retrieve(CT) == uids.ALL_TRANSFER_SYNTAXES
    assert accept_query_retrieve(uids.VERIFICATION) == uids.UNCOMPRESSED


def test_roles_are_agreed_to_for_accepted_classes() -> None:
    """PS3.7 D.3.3.4: as proposed, and not for a class of which no context is accepted."""
    as_scp = RoleSelection(CT, scu_role=False, scp_role=True)
    accept, _ = answer_request(
        request(
            PresentationContextRQ(1, CT, (EXPLICIT,)),
            PresentationContextRQ(3, MR, ("1.2.3.4",)),
            user_items=(as_scp, RoleSelection(MR, scu_role=True, scp_role=True), UserIdentityRQ(1, b"user")),
        ),
        accept_all_storage,
    )
    assert accept.user_information.items == (as_scp,)
    assert accept.user_information.maximum_length == limits.MAX_PDU_RECEIVED


def test_repeated_roles_do_not_blow_up_the_answer() -> None:
    """A user information item full of them must not make an answer that does not fit into one."""
    longest = "1." + "2" * 62
    roles = (RoleSelection(longest, scu_role=True, scp_role=True),) * 900
    proposal = request(PresentationContextRQ(1, longest, (EXPLICIT,)), user_items=roles)
    (received,) = decode_all(pdu.encode(proposal))
    assert received == proposal
    accept, _ = answer_request(proposal, accept_all_storage)
    assert accept.user_information.items == roles[:1]
    assert decode_all(pdu.encode(accept)) == [accept]


@examples(200)
@given(associate_requests, st.sampled_from([accept_all_storage, accept_query_retrieve]))
def test_any_request_gets_an_answer_that_can_be_sent(proposal: AAssociateRQ, policy: object) -> None:
    """With an answer to each context, and both sides of one mind about what was agreed."""
    assert callable(policy)
    accept, agreed = answer_request(proposal, policy)
    (received,) = decode_all(pdu.encode(accept))
    assert received == accept
    ids = [context.context_id for context in proposal.presentation_contexts]
    assert [context.context_id for context in accept.presentation_contexts] == ids
    assert accepted_contexts(proposal, accept) == agreed


contexts_with_known_syntaxes = st.lists(
    st.builds(
        PresentationContextRQ,
        st.integers(0, 127).map(lambda number: 2 * number + 1),
        st.sampled_from((CT, MR, uids.VERIFICATION, uids.STUDY_ROOT_FIND)),
        st.lists(st.sampled_from((EXPLICIT, IMPLICIT, JPEG_LS, J2K)), min_size=1, unique=True).map(tuple),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda context: context.context_id,
)


@examples(200)
@given(contexts_with_known_syntaxes)
def test_pynetdicom_gives_the_same_results(proposed: list[PresentationContextRQ]) -> None:
    """Its acceptor, told to support the same, accepts and rejects the same contexts for the same reasons."""
    theirs_proposed, supported = [], []
    for context in proposed:
        theirs = PresentationContext()
        theirs.context_id, theirs.abstract_syntax = context.context_id, context.abstract_syntax
        theirs.transfer_syntax = list(context.transfer_syntaxes)
        theirs_proposed.append(theirs)
    for abstract_syntax in (CT, MR, uids.VERIFICATION):
        theirs = PresentationContext()
        theirs.abstract_syntax = abstract_syntax
        theirs.transfer_syntax = list(accept_all_storage(abstract_syntax))
        supported.append(theirs)
    results, _ = negotiate_as_acceptor(theirs_proposed, supported)
    accept, _ = answer_request(request(*proposed), accept_all_storage)
    assert {c.context_id: c.result for c in accept.presentation_contexts} == {c.context_id: c.result for c in results}


# --- the requestor -------------------------------------------------------------------------------------------


def test_answers_of_careless_acceptors_are_taken_for_what_they_are_worth() -> None:
    proposal = build_request("ARCHIVE", "PROXY", [Context(CT, (EXPLICIT, JPEG_LS)), Context(MR), Context(PRIVATE)])
    agreed = accepted_contexts(
        proposal,
        answer(
            PresentationContextAC(5, 0, IMPLICIT),  # out of order
            PresentationContextAC(1, 0, JPEG_LS),
            PresentationContextAC(3, 0, J2K),  # a syntax that was not proposed
            PresentationContextAC(7, 0, EXPLICIT),  # a context that was not proposed
        ),
    )
    assert agreed == {5: AcceptedContext(5, PRIVATE, IMPLICIT), 1: AcceptedContext(1, CT, JPEG_LS)}


@pytest.mark.parametrize("result", [1, 2, 3, 4, 99])
def test_rejected_contexts_are_left_out(result: int) -> None:
    proposal = build_request("ARCHIVE", "PROXY", [Context(CT)])
    assert accepted_contexts(proposal, answer(PresentationContextAC(1, result, EXPLICIT))) == {}


def test_contexts_without_an_answer_are_left_out() -> None:
    proposal = build_request("ARCHIVE", "PROXY", [Context(CT), Context(MR)])
    assert list(accepted_contexts(proposal, answer(PresentationContextAC(3, 0, EXPLICIT)))) == [3]
    assert accepted_contexts(proposal, answer()) == {}


def test_accepted_context_without_a_syntax_is_left_out() -> None:
    proposal = build_request("ARCHIVE", "PROXY", [Context(CT)])
    assert accepted_contexts(proposal, answer(PresentationContextAC(1, 0))) == {}


@pytest.mark.parametrize(
    "answered",
    [
        (),
        (RoleSelection(CT, scu_role=True, scp_role=False),),
        (RoleSelection(CT, scu_role=False, scp_role=False),),
        (RoleSelection(MR, scu_role=True, scp_role=True),),
    ],
    ids=["none", "defaults", "refused", "of another class"],
)
def test_role_answers_are_not_looked_at(answered: tuple[RoleSelection, ...]) -> None:
    """Archives send C-GET sub-operations whatever they answered."""
    proposal = build_request("ARCHIVE", "PROXY", [Context(CT, scp_role=True)])
    accept = replace(
        answer(PresentationContextAC(1, 0, EXPLICIT)), user_information=UserInformation(0, "", "", answered)
    )
    assert list(accepted_contexts(proposal, accept)) == [1]


# --- both ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("announced", "expected"),
    [
        (0, limits.MAX_PDU_SENT),  # no limit
        (64, 64),
        (16_383, 16_383),
        (limits.MAX_PDU_SENT, limits.MAX_PDU_SENT),
        (0xFFFF_FFFF, limits.MAX_PDU_SENT),
    ],
)
def test_announced_maximum_length_is_kept_to(announced: int, expected: int) -> None:
    """PS3.8 D.1."""
    assert send_limit(UserInformation(announced)) == expected


@pytest.mark.parametrize("announced", [1, 6, 7, 63])
def test_maximum_length_too_small_to_be_of_use_is_refused(announced: int) -> None:
    with pytest.raises(RemoteProtocolError, match=str(announced)):
        send_limit(UserInformation(announced))


def test_contexts_are_found_by_abstract_and_transfer_syntax() -> None:
    contexts = {
        1: AcceptedContext(1, CT, JPEG_LS),
        3: AcceptedContext(3, CT, EXPLICIT),
        5: AcceptedContext(5, MR, EXPLICIT),
    }
    assert find_context(contexts, CT) == contexts[1]
    assert find_context(contexts, CT, EXPLICIT) == contexts[3]
    assert find_context(contexts, MR, JPEG_LS) is None
    assert find_context(contexts, PRIVATE) is None
    assert find_context({}, CT) is None


# --- storage classes -----------------------------------------------------------------------------------------

# Classes of pydicom's dictionary (PS3.6 Annex A) with "Storage" in their names that no C-STORE is for.
NOT_FOR_C_STORE = {"1.2.840.10008.1.3.10", "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.2"}


def test_storage_classes_are_those_of_the_dictionary() -> None:
    """Those with a name; two retired ones have none in it."""
    for uid, (name, kind, *_) in UID_dictionary.items():
        if kind == "SOP Class" and name:
            assert uids.is_storage(uid) == ("Storage" in name and uid not in NOT_FOR_C_STORE), f"{uid} {name}"


def test_pynetdicoms_storage_classes_are_storage_classes() -> None:
    assert all(map(uids.is_storage, sop_class._STORAGE_CLASSES.values()))
    others = (sop_class._QR_CLASSES, sop_class._BASIC_WORKLIST_CLASSES, sop_class._UNIFIED_PROCEDURE_STEP_CLASSES)
    assert not any(uids.is_storage(uid) for classes in others for uid in classes.values())


def test_transfer_syntaxes_are_those_of_the_dictionary() -> None:
    """None is listed twice or missing, save those that refer to pixels elsewhere (JPIP, SMPTE)."""
    listed = uids.ALL_TRANSFER_SYNTAXES
    assert len(set(listed)) == len(listed) <= limits.MAX_TRANSFER_SYNTAXES
    current = {
        uid for uid, (_, kind, _, retired, _) in UID_dictionary.items() if kind == "Transfer Syntax" and not retired
    }
    elsewhere = {uid for uid in current if UID_dictionary[uid][0].startswith(("JPIP", "SMPTE"))}
    assert current - elsewhere == set(listed) - {uids.EXPLICIT_VR_BIG_ENDIAN}
