"""Association negotiation, pure: a request and a policy give contexts and roles, or a rejection.

PS3.8 7.1.1 and 9.3.2 to 9.3.4; PS3.7 Annex D.3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dul import items, limits, uids
from dul.errors import LocalProtocolError, RemoteProtocolError
from dul.items import PresentationContextAC, PresentationContextRQ, RoleSelection, UserInformation
from dul.pdu import AAssociateAC, AAssociateRQ


@dataclass(frozen=True, slots=True)
class Context:
    """A presentation context to propose: one abstract syntax, transfer syntaxes in order of preference.

    `scp_role` asks to be SCP for it too (PS3.7 D.3.3.4), as C-GET needs for storage.
    """

    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...] = uids.UNCOMPRESSED
    scp_role: bool = False


@dataclass(frozen=True, slots=True)
class AcceptedContext:
    """A presentation context that both sides agreed to."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str


TransferSyntaxPolicy = Callable[[str], Sequence[str]]
"""For an abstract syntax, the transfer syntaxes that are taken; empty: the abstract syntax is not supported."""


def accept_all_storage(abstract_syntax: str) -> Sequence[str]:
    """Verification, and any storage SOP class, also private and retired ones, with every transfer syntax."""
    if abstract_syntax == uids.VERIFICATION:
        return uids.UNCOMPRESSED
    return uids.ALL_TRANSFER_SYNTAXES if uids.is_storage(abstract_syntax) else ()


def accept_query_retrieve(abstract_syntax: str) -> Sequence[str]:
    """What an archive takes: storage, verification, and the C-FIND, C-MOVE and C-GET models."""
    if abstract_syntax.startswith("1.2.840.10008.5.1.4.1.2."):
        return uids.UNCOMPRESSED
    return accept_all_storage(abstract_syntax)


def user_information(extra: Iterable[items.UserItem] = ()) -> UserInformation:
    """This implementation's user information (PS3.7 D.3.3.1, D.3.3.2)."""
    return UserInformation(
        maximum_length=limits.MAX_PDU_RECEIVED,
        implementation_class_uid=uids.IMPLEMENTATION_CLASS_UID,
        implementation_version_name=uids.IMPLEMENTATION_VERSION_NAME,
        items=tuple(extra),
    )


# --- requestor -----------------------------------------------------------------------------------------------


def build_request(
    called_ae_title: str,
    calling_ae_title: str,
    contexts: Sequence[Context],
    extra: Iterable[items.UserItem] = (),
) -> AAssociateRQ:
    """The A-ASSOCIATE-RQ that proposes `contexts`; `LocalProtocolError` for none, or more than 128."""
    if not 1 <= len(contexts) <= limits.MAX_PRESENTATION_CONTEXTS:
        raise LocalProtocolError(f"{len(contexts)} presentation contexts; 1 to 128 can be proposed")
    proposed = tuple(
        PresentationContextRQ(2 * index + 1, context.abstract_syntax, context.transfer_syntaxes)
        for index, context in enumerate(contexts)
    )
    as_scp = dict.fromkeys(context.abstract_syntax for context in contexts if context.scp_role)
    roles = [RoleSelection(uid, scu_role=False, scp_role=True) for uid in as_scp]
    return AAssociateRQ(called_ae_title, calling_ae_title, proposed, user_information((*roles, *extra)))


def accepted_contexts(request: AAssociateRQ, answer: AAssociateAC) -> dict[int, AcceptedContext]:
    """The contexts that the acceptor took, by ID.

    Lenient where peers are careless: an answer to a context that was not proposed is left out, and so is one with a
    transfer syntax that was not proposed for it. Roles are not looked at, since archives send C-GET sub-operations
    whatever they answered.
    """
    proposed = {context.context_id: context for context in request.presentation_contexts}
    agreed: dict[int, AcceptedContext] = {}
    for context in answer.presentation_contexts:
        proposal = proposed.get(context.context_id)
        if proposal is None or context.result != items.ACCEPTANCE:
            continue
        if context.transfer_syntax in proposal.transfer_syntaxes:
            agreed[context.context_id] = AcceptedContext(
                context.context_id, proposal.abstract_syntax, context.transfer_syntax
            )
    return agreed


# --- acceptor ------------------------------------------------------------------------------------------------


def answer_request(
    request: AAssociateRQ, supported: TransferSyntaxPolicy
) -> tuple[AAssociateAC, dict[int, AcceptedContext]]:
    """The A-ASSOCIATE-AC for `request`, and the contexts it accepts.

    Of each context, the first transfer syntax in the proposer's order that is supported is taken: most archives
    put the one that the object has first. Proposed roles are agreed to as they stand (PS3.7 D.3.3.4).
    """
    answers: list[PresentationContextAC] = []
    agreed: dict[int, AcceptedContext] = {}
    for context in request.presentation_contexts:
        answer = _answer_context(context, supported(context.abstract_syntax))
        answers.append(answer)
        if answer.result == items.ACCEPTANCE:
            agreed[context.context_id] = AcceptedContext(
                context.context_id, context.abstract_syntax, answer.transfer_syntax
            )
    known = {context.abstract_syntax for context in agreed.values()}
    roles = {
        item.sop_class_uid: item
        for item in request.user_information.items
        if isinstance(item, RoleSelection) and item.sop_class_uid in known
    }
    information = user_information(roles.values())
    accept = AAssociateAC(request.called_ae_title, request.calling_ae_title, tuple(answers), information)
    return accept, agreed


def _answer_context(context: PresentationContextRQ, supported: Sequence[str]) -> PresentationContextAC:
    # A transfer syntax must be named even on rejection, though it carries no meaning then (PS3.8 9.3.3.2).
    first = context.transfer_syntaxes[0]
    if not supported:
        return PresentationContextAC(context.context_id, items.ABSTRACT_SYNTAX_NOT_SUPPORTED, first)
    for syntax in context.transfer_syntaxes:
        if syntax in supported:
            return PresentationContextAC(context.context_id, items.ACCEPTANCE, syntax)
    return PresentationContextAC(context.context_id, items.TRANSFER_SYNTAXES_NOT_SUPPORTED, first)


# --- both ----------------------------------------------------------------------------------------------------


def send_limit(peer: UserInformation) -> int:
    """Bytes that a P-DATA-TF body to this peer may have (PS3.8 D.1); `RemoteProtocolError` below 64."""
    announced = peer.maximum_length
    if announced == 0:
        return limits.MAX_PDU_SENT
    if announced < limits.MIN_PDU_ANNOUNCED:
        raise RemoteProtocolError(f"the peer announces a maximum length of {announced} bytes")
    return min(announced, limits.MAX_PDU_SENT)


def find_context(
    contexts: Mapping[int, AcceptedContext], abstract_syntax: str, transfer_syntax: str | None = None
) -> AcceptedContext | None:
    """The first accepted context for an abstract syntax, of a given transfer syntax or of any."""
    for context in contexts.values():
        if context.abstract_syntax == abstract_syntax and transfer_syntax in (None, context.transfer_syntax):
            return context
    return None
