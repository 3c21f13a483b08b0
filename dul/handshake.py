"""Why a caller and an acceptor do not come to TLS, in words for an administrator.

OpenSSL's names for it speak of records and alerts; what is met on DICOM ports is a short list.
"""

from __future__ import annotations

import ssl
from typing import Final

_MISTRUST: Final = "the caller does not accept the certificate that it is shown"

_REASONS: Final = {
    "WRONG_VERSION_NUMBER": "what it sends is not TLS, maybe DICOM in clear text",
    "HTTP_REQUEST": "what it sends is HTTP",
    "UNSUPPORTED_PROTOCOL": "it offers no version of TLS that is taken here",
    "NO_SHARED_CIPHER": "it offers no cipher suite that is taken here",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "TLSV1_ALERT_UNKNOWN_CA": f"{_MISTRUST}: it does not know who has signed it",
    "SSLV3_ALERT_BAD_CERTIFICATE": _MISTRUST,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": _MISTRUST,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": f"{_MISTRUST}: it takes it for revoked",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": f"{_MISTRUST}: it takes it for expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _MISTRUST,
}

_UNKNOWN_AUTHORITY: Final = "no authority that is known here has signed it"

_CERTIFICATE_REASONS: Final = {
    10: "it has expired",
    18: _UNKNOWN_AUTHORITY,
    19: _UNKNOWN_AUTHORITY,
    20: _UNKNOWN_AUTHORITY,
    21: _UNKNOWN_AUTHORITY,
    26: "it is not meant for those who call (extendedKeyUsage without clientAuth)",
}
"""By the numbers of OpenSSL's X509_V_ERR_*."""


def describe_failure(error: OSError) -> str:
    """Say why the handshake of an accepted connection failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = _CERTIFICATE_REASONS.get(error.verify_code, error.verify_message)
        return f"its certificate is not accepted: {reason}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        return _REASONS.get(reason, reason.replace("_", " ").lower())
    if isinstance(error, ConnectionAbortedError):  # asyncio's way to say so
        return "its handshake takes too long"
    return error.strerror or str(error)
