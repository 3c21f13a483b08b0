"""TLS as the HTTPS server speaks it: versions, ciphers, its own certificate, and whose client certificates it takes."""

from __future__ import annotations

import ssl
from typing import Final

from proxy.security.tls.certificates import CertificateError, PemFile, read_chain

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2 (RFC 9325 4.2): forward secrecy and AEAD. All of TLS 1.3 have both."""

_REASONS: Final = {
    "EE_KEY_TOO_SMALL": "the key of the certificate is too weak for the rules of this system",
    "CA_KEY_TOO_SMALL": "the key of an authority is too weak for the rules of this system",
    "CA_MD_TOO_WEAK": "a certificate is signed by way of a hash (such as SHA-1) that the rules of this system refuse",
    "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
}


def server_context(certificate: PemFile, key: PemFile, client_ca: PemFile | None) -> ssl.SSLContext:
    """TLS 1.2 or 1.3 (RFC 9325), with HTTP/1.1 (RFC 7301). Raises `CertificateError`. Reads files.

    With `client_ca` clients are asked for a certificate. They need not have one, but one that those authorities have
    not signed ends the handshake.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate.path, key.path, password=_no_password)
    except OSError as error:  # ssl.SSLError among them
        reason = getattr(error, "reason", None) or error.strerror or "unknown"
        said = _REASONS.get(reason, reason.replace("_", " ").lower())
        raise CertificateError(f"{certificate} and {key} cannot be used: {said}") from error
    if client_ca is not None:
        read_chain(client_ca)  # says more of what is wrong than OpenSSL does
        context.load_verify_locations(client_ca.path)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal, and a service would wait there for ever.
    return ""
