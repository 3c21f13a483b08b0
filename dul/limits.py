"""Every bound of this package, each with its reason. Sizes are in bytes, times in seconds."""

from __future__ import annotations

from typing import Final

# --- PDUs ----------------------------------------------------------------------------------------------------

MAX_ASSOCIATION_PDU: Final = 1024 * 1024
"""Largest A-ASSOCIATE-RQ or -AC body. 128 contexts with 40 transfer syntaxes each fit in 400 KiB; DCMTK holds
the same 1 MiB. A larger claim is refused from the header alone, before a byte of it is kept."""

FIXED_PDU_BODY: Final = 4
"""Body of A-ASSOCIATE-RJ, A-RELEASE-RQ, A-RELEASE-RP and A-ABORT (PS3.8 9.3.4, 9.3.6 to 9.3.8)."""

MAX_PDU_RECEIVED: Final = 256 * 1024
"""Maximum length of a P-DATA-TF that we announce (PS3.8 D.1). P-DATA is handed on piece by piece, so it costs
no memory; fewer, larger PDUs cost less time. DCMTK archives cap theirs at 128 KiB."""

MAX_PDU_SENT: Final = 256 * 1024
"""What we send where the peer announces no limit (0)."""

MIN_PDU_ANNOUNCED: Final = 64
"""PS3.8 sets no minimum. A peer that announces a few bytes would make us send one PDU for each handful of them,
so less than this is refused; nothing real announces under 4 KiB."""

MAX_UID: Final = 64
"""Characters of a UID (PS3.5 9.1)."""

MAX_PRESENTATION_CONTEXTS: Final = 128
"""Odd context IDs from 1 to 255 (PS3.8 9.3.2.2)."""

MAX_TRANSFER_SYNTAXES: Final = 64
"""For each presentation context; about 45 are defined, real peers send fewer than 40."""

MAX_USER_ITEMS: Final = 1024
"""Sub-items of the user information: a role selection and an extended negotiation for each of 128 contexts,
with room to spare."""

# --- messages ------------------------------------------------------------------------------------------------

MAX_COMMAND_SET: Final = 64 * 1024
"""A command set has at most some 20 short elements; Offending Element and failed UIDs stay far below this."""

MAX_IDENTIFIER: Final = 4 * 1024 * 1024
"""A C-FIND identifier, or the data set of a response, the only data sets that are joined in memory. The failed
UIDs of 60,000 instances fit."""

# --- buffers -------------------------------------------------------------------------------------------------

READ_BUFFER: Final = 256 * 1024
"""One read from the socket; pages are touched only as far as reads fill them."""

RECEIVE_HIGH_WATER: Final = 1024 * 1024
"""Unread bytes of one association at which reading from its socket stops …"""

RECEIVE_LOW_WATER: Final = 256 * 1024
"""… and at which it goes on."""

RECEIVE_MAX_MESSAGES: Final = 256
"""Unread messages at which reading stops: small C-FIND responses cost more in objects than in bytes."""

SEND_HIGH_WATER: Final = 1024 * 1024
"""Unsent bytes of one association at which a sender waits."""

# --- times ---------------------------------------------------------------------------------------------------

ARTIM: Final = 30.0
"""ARTIM timer (PS3.8 9.1.5) for an A-ASSOCIATE-RQ to arrive whole, whatever its sender drips."""

ARTIM_CLOSE: Final = 0.5
"""ARTIM in Sta13, where only the peer's close is awaited: a stranger is closed within a second."""

CONNECT_TIMEOUT: Final = 5.0
ASSOCIATE_TIMEOUT: Final = 5.0
RELEASE_TIMEOUT: Final = 5.0
RESPONSE_TIMEOUT: Final = 30.0
IDLE_TIMEOUT: Final = 300.0
"""Silence within a data set or between sub-operations; tape libraries need minutes."""

PDU_TIMEOUT: Final = 30.0
"""A PDU other than P-DATA, once begun, must be whole by then."""

CANCEL_TIMEOUT: Final = 2.0
"""From C-CANCEL to the final response; some archives ignore C-CANCEL and get an A-ABORT then."""

# --- acceptor ------------------------------------------------------------------------------------------------

MAX_CONNECTIONS: Final = 100
MAX_CONNECTIONS_PER_HOST: Final = 20

LISTEN_BACKLOG: Final = 128
"""Connections that the kernel keeps until they are accepted, and that are accepted in one go."""

ACCEPT_PAUSE: Final = 1.0
"""Seconds without accepting, when there are no descriptors or no memory for another connection."""
