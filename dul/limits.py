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
"""One read from a socket."""

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

MIN_RATE: Final = 50.0
"""Bytes a second of a data set, on the average of an idle timeout, if it is not whole by then; or a byte now and then
would hold an association for ever. Any line that images are sent over is faster (GSM: 1200). An archive with a tape
library may be silent for nearly all of the idle timeout, and again after each 15 kB (for one of 300 s)."""

TLS_HANDSHAKE_TIMEOUT: Final = 4.0
"""For a TLS handshake of a caller: a few round trips, so that one who speaks something else is closed within 5 s."""

KEEPALIVE_IDLE: Final = 20
KEEPALIVE_INTERVAL: Final = 10
KEEPALIVE_PROBES: Final = 3
"""TCP keepalive (RFC 9293 3.8.4) after so much silence, so often, and so many in vain: a peer whose machine or network
is gone, and which so says nothing of it, is noticed within a minute. Whole seconds."""

SILENCE_TIMEOUT: Final = KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_PROBES
"""The same for bytes that the peer's TCP does not acknowledge (RFC 5482)."""

SURELY_TAKEN: Final = 16 * 1024
"""Bytes that a peer's TCP takes even if its program reads nothing, as requests and responses are. Beyond, until it has
answered, `SILENCE_TIMEOUT` does not hold: an archive may be slow to store what it gets."""

CANCEL_TIMEOUT: Final = 2.0
"""From C-CANCEL to the final response; some archives ignore C-CANCEL and get an A-ABORT then."""

# --- acceptor ------------------------------------------------------------------------------------------------

MAX_CONNECTIONS: Final = 100
MAX_CONNECTIONS_PER_HOST: Final = 20

REQUEST_OVERDUE: Final = 0.25
"""A connection without A-ASSOCIATE-RQ for longer gives its place up where all are taken: honest callers ask at once,
and ARTIM would let silent ones from a few addresses keep everybody out."""

ARRIVALS_AT_ONCE: Final = 2000
"""Connections that one address may open at once, in however short a time: some archives open one for each instance, and
this is a large study …"""

ARRIVALS_PER_SECOND: Final = 200.0
"""… and how many it may open each second from then on. An association costs about a millisecond of processor time, so a
flood from one address takes a fifth of one processor."""

LOG_LINES_AT_ONCE: Final = 20
LOG_LINES_PER_SECOND: Final = 0.2
"""Warnings about one address: enough to see what goes on, and no flood in the log, whatever it does."""

MAX_BUCKETS: Final = 1000
"""Addresses that are counted each for itself at one time; beyond, all others count as one."""

LISTEN_BACKLOG: Final = 1024
"""Connections that the kernel keeps until they are accepted; those beyond try again after a second or more."""

ACCEPTED_AT_ONCE: Final = 128
"""Connections that are accepted before others get their turn."""

ACCEPT_PAUSE: Final = 1.0
"""Seconds without accepting, when there are no descriptors or no memory for another connection."""
