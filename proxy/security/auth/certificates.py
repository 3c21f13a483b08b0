"""Client certificates: whoever proves by TLS to be one of those whom the configuration names.

That an authority of `ssl.clientCaFile` has signed the certificate, and that it is valid now, TLS has checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from proxy.config.security import CertificateUser
from proxy.security.auth.rights import identity_with
from proxy.security.identity import Identity


class Certificates:
    """The holders of certificates, by common name, e-mail address or DNS name."""

    def __init__(self, users: Iterable[CertificateUser]) -> None:
        self._users = [(each.name, identity_with(each.name, "certificate", each)) for each in users]

    def identify(self, certificate: Mapping[str, Any] | None) -> Identity | None:
        """Whose certificate it is, in the form of `ssl.SSLSocket.getpeercert`; None for nobody's, and for none.

        Where it has the names of several, it is the first of them in the file.
        """
        common, others = _names(certificate or {})
        return next((who for name, who in self._users if name in common or name.lower() in others), None)


def name_of(certificate: Mapping[str, Any] | None) -> str:
    """A name of a certificate's holder, to be told from others in a record; empty without a certificate."""
    common, others = _names(certificate or {})
    return next(iter(sorted(common) or sorted(others)), "")


def _names(certificate: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """The common names of a certificate's holder, and those of DNS and e-mail in lower case, which is all one there."""
    subject = [attribute for part in certificate.get("subject", ()) for attribute in part]
    others = [value for kind, value in subject if kind == "emailAddress"]
    others += [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "email")]
    return {value for kind, value in subject if kind == "commonName"}, set(map(str.lower, others))
