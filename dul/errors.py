"""Everything that `dul` raises, and the standard's words for what the peer answered.

Two roots tell whose mistake it was: `LocalProtocolError` (our caller asked for what the standard forbids) and
`RemoteProtocolError` (the peer sent what the standard forbids). All other failures of an association
(refused, rejected, aborted, lost, too slow) are `AssociationError`s. Every one is a `DulError`.
"""

from __future__ import annotations


class DulError(Exception):
    """Base of all exceptions of this package."""


class LocalProtocolError(DulError):
    """The caller asked for something that the protocol does not allow in this state."""


class RemoteProtocolError(DulError):
    """The peer sent something that the standard does not allow.

    `abort_reason` is the reason that goes into the A-ABORT PDU (PS3.8 Table 9-26).
    """

    def __init__(self, message: str, abort_reason: int = 0) -> None:
        super().__init__(message)
        self.abort_reason = abort_reason


class UnrecognizedPDUError(RemoteProtocolError):
    """A PDU type that PS3.8 does not define; most often another protocol on the DICOM port."""

    def __init__(self, message: str) -> None:
        super().__init__(message, abort_reason=ABORT_UNRECOGNIZED_PDU)


class AssociationError(DulError):
    """The association could not be had, or ended before its work was done."""


class ConnectError(AssociationError):
    """No TCP (or TLS) connection to the peer."""


class AssociationRejected(AssociationError):  # noqa: N818 - the standard's own term
    """The peer answered A-ASSOCIATE-RJ (PS3.8 9.3.4)."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        self.result = result
        self.source = source
        self.reason = reason
        super().__init__(f"association rejected: {describe_rejection(result, source, reason)}")

    @property
    def transient(self) -> bool:
        """True when the peer says that a later try may succeed."""
        return self.result == REJECTED_TRANSIENT


class AssociationAborted(AssociationError):  # noqa: N818 - the standard's own term
    """The peer (A-ABORT, PS3.8 9.3.8) or this side ended the association at once."""

    def __init__(self, source: int, reason: int, detail: str = "") -> None:
        self.source = source
        self.reason = reason
        super().__init__(detail or f"association aborted: {describe_abort(source, reason)}")


class ConnectionLost(AssociationError):  # noqa: N818 - what happened, in the words operators use
    """The TCP connection ended without an A-RELEASE or A-ABORT."""


class AssociationReleased(AssociationError):  # noqa: N818 - the standard's own term
    """The peer released the association while something was still outstanding."""


class PeerTimeout(AssociationError):  # noqa: N818 - reads as what happened
    """The peer did not do `what` within `seconds`."""

    def __init__(self, what: str, seconds: float) -> None:
        self.what = what
        self.seconds = seconds
        super().__init__(f"no {what} within {seconds:g} s")


class NoPresentationContext(AssociationError):  # noqa: N818 - the standard's own term
    """The peer accepted no presentation context for what should be sent."""

    def __init__(self, abstract_syntax: str, transfer_syntax: str | None = None) -> None:
        self.abstract_syntax = abstract_syntax
        self.transfer_syntax = transfer_syntax
        wanted = f" with transfer syntax {transfer_syntax}" if transfer_syntax else ""
        super().__init__(f"the peer accepted no presentation context for {abstract_syntax}{wanted}")


class StatusError(DulError):
    """A DIMSE service ended with a failure status (PS3.7 Annex C)."""

    def __init__(self, service: str, status: int, comment: str | None = None) -> None:
        self.service = service
        self.status = status
        self.comment = comment
        super().__init__(f"{service} ended with status 0x{status:04X}")


# --- PS3.8 Table 9-21: A-ASSOCIATE-RJ ------------------------------------------------------------------------

REJECTED_PERMANENT = 1
REJECTED_TRANSIENT = 2

SOURCE_SERVICE_USER = 1
SOURCE_PROVIDER_ACSE = 2
SOURCE_PROVIDER_PRESENTATION = 3

REASON_NO_REASON_GIVEN = 1
REASON_APPLICATION_CONTEXT_NAME_NOT_SUPPORTED = 2
REASON_CALLING_AE_TITLE_NOT_RECOGNIZED = 3
REASON_CALLED_AE_TITLE_NOT_RECOGNIZED = 7
REASON_PROTOCOL_VERSION_NOT_SUPPORTED = 2  # source 2
REASON_TEMPORARY_CONGESTION = 1  # source 3
REASON_LOCAL_LIMIT_EXCEEDED = 2  # source 3

_RESULTS = {REJECTED_PERMANENT: "rejected-permanent", REJECTED_TRANSIENT: "rejected-transient"}
_REJECTIONS = {
    (SOURCE_SERVICE_USER, 1): "no reason given",
    (SOURCE_SERVICE_USER, 2): "application context name not supported",
    (SOURCE_SERVICE_USER, 3): "calling AE title not recognized",
    (SOURCE_SERVICE_USER, 7): "called AE title not recognized",
    (SOURCE_PROVIDER_ACSE, 1): "no reason given (ACSE)",
    (SOURCE_PROVIDER_ACSE, 2): "protocol version not supported",
    (SOURCE_PROVIDER_PRESENTATION, 1): "temporary congestion",
    (SOURCE_PROVIDER_PRESENTATION, 2): "local limit exceeded",
}


def describe_rejection(result: int, source: int, reason: int) -> str:
    """The standard's words for an A-ASSOCIATE-RJ PDU (PS3.8 Table 9-21)."""
    words = _REJECTIONS.get((source, reason), f"source {source}, reason {reason}")
    return f"{words} ({_RESULTS.get(result, f'result {result}')})"


# --- PS3.8 Table 9-26: A-ABORT -------------------------------------------------------------------------------

ABORT_SOURCE_USER = 0
ABORT_SOURCE_PROVIDER = 2

ABORT_REASON_NOT_SPECIFIED = 0
ABORT_UNRECOGNIZED_PDU = 1
ABORT_UNEXPECTED_PDU = 2
ABORT_UNRECOGNIZED_PDU_PARAMETER = 4
ABORT_UNEXPECTED_PDU_PARAMETER = 5
ABORT_INVALID_PDU_PARAMETER_VALUE = 6

_ABORT_REASONS = {
    ABORT_REASON_NOT_SPECIFIED: "reason not specified",
    ABORT_UNRECOGNIZED_PDU: "unrecognized PDU",
    ABORT_UNEXPECTED_PDU: "unexpected PDU",
    ABORT_UNRECOGNIZED_PDU_PARAMETER: "unrecognized PDU parameter",
    ABORT_UNEXPECTED_PDU_PARAMETER: "unexpected PDU parameter",
    ABORT_INVALID_PDU_PARAMETER_VALUE: "invalid PDU parameter value",
}


def describe_abort(source: int, reason: int) -> str:
    """The standard's words for an A-ABORT PDU (PS3.8 Table 9-26)."""
    if source != ABORT_SOURCE_PROVIDER:
        return "by the service-user"
    return f"by the service-provider, {_ABORT_REASONS.get(reason, f'reason {reason}')}"
