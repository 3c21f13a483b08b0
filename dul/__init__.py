"""A DICOM Upper Layer and DIMSE services for asyncio (PS3.7, PS3.8), with a core that does no I/O.

Start with `connect` (requestor, SCU) and `serve` (acceptor, SCP). `dul.connection` is the core for other event loops.
"""

from dul.association import Association, Peer, connect, open_association
from dul.channel import Timeouts
from dul.dimse import Command, StatusClass, describe_status, status_class
from dul.errors import (
    AssociationAborted,
    AssociationError,
    AssociationRejected,
    AssociationReleased,
    ConnectError,
    ConnectionLost,
    DulError,
    LocalProtocolError,
    NoPresentationContext,
    PeerTimeout,
    RemoteProtocolError,
    StatusError,
)
from dul.instances import IncomingStore, Instance
from dul.negotiation import Context, TransferSyntaxPolicy, accept_all_storage, accept_query_retrieve
from dul.operations import FindOperation, GetOperation, Identifier, Match, MoveOperation, Progress
from dul.server import Server, ServerLimits, serve
from dul.services import Handler, MovePlan, Request

__all__ = [
    "Association",
    "AssociationAborted",
    "AssociationError",
    "AssociationRejected",
    "AssociationReleased",
    "Command",
    "ConnectError",
    "ConnectionLost",
    "Context",
    "DulError",
    "FindOperation",
    "GetOperation",
    "Handler",
    "Identifier",
    "IncomingStore",
    "Instance",
    "LocalProtocolError",
    "Match",
    "MoveOperation",
    "MovePlan",
    "NoPresentationContext",
    "Peer",
    "PeerTimeout",
    "Progress",
    "RemoteProtocolError",
    "Request",
    "Server",
    "ServerLimits",
    "StatusClass",
    "StatusError",
    "Timeouts",
    "TransferSyntaxPolicy",
    "accept_all_storage",
    "accept_query_retrieve",
    "connect",
    "describe_status",
    "open_association",
    "serve",
    "status_class",
]
