"""The command `cert`: looking at certificates, checking them, making self-signed ones, and asking an authority for one.

What is said is returned as text; printing is the command line's business.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.config.schema import Config
from proxy.config.types import A_HOST, is_host
from proxy.security.tls.certificates import (
    PemFile,
    PrivateKey,
    fingerprint,
    is_self_signed,
    key_type,
    names_of,
    read_chain,
    read_key,
)
from proxy.security.tls.checks import Severity, Wanted, check
from proxy.security.tls.https import HttpsFiles, https_files, now
from proxy.security.tls.self_signed import (
    BY_HAND,
    OWN,
    alternative_names,
    common_name,
    key_pem,
    make,
    new_key,
    signing_hash,
    wanted_names,
    write_private,
)

Say = Callable[[str], None]

Load = Callable[[argparse.Namespace], Config]

EXIT_OK: Final = 0
EXIT_WRONG: Final = 1

REQUEST_SUFFIX: Final = ".csr"


class WriteError(Exception):
    """A file cannot be written; the message names it and says why."""


def add_cert_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    with_config: argparse.ArgumentParser,
    load: Load,
    say: Say,
) -> None:
    """Add the command to a command line. `load` reads the configuration, `say` prints a line."""
    cert = commands.add_parser("cert", help="certificates of HTTPS: show, check, make, request")
    kinds = cert.add_subparsers(required=True, metavar="ACTION")

    showing = kinds.add_parser("show", parents=[with_config], help="say what a certificate holds")
    showing.add_argument("cert", type=Path, nargs="?", metavar="FILE", help="else the one of the configuration")
    showing.set_defaults(command=lambda options: _show(options, load, say))

    checking = kinds.add_parser("check", parents=[with_config], help="say what is wrong")
    _add_files(checking)
    checking.add_argument("--host", type=_name, metavar="NAME", help="what clients call the proxy by")
    checking.set_defaults(command=lambda options: _check(options, load, say))

    making = kinds.add_parser("make", parents=[with_config], help="make a self-signed certificate")
    _add_files(making)
    _add_names(making)
    making.set_defaults(command=lambda options: _make(options, load, say))

    request = kinds.add_parser("request", parents=[with_config], help="make a request for an authority (CSR)")
    request.add_argument("--key", type=Path, metavar="FILE", help="the key; made where it is not there")
    request.add_argument("--out", type=Path, metavar="FILE", help="the request; else beside the key, as .csr")
    _add_names(request)
    request.add_argument(
        "--subject", type=_subject, metavar="TEXT", help='such as "CN=pacs.example.org,O=Hospital,C=DE" (RFC 4514)'
    )
    request.set_defaults(command=lambda options: _request(options, load, say))


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cert", type=Path, metavar="FILE", help="the certificate; else the one of the configuration")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its key; else the one of the configuration")


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name",
        type=_name,
        nargs="+",
        action="extend",
        metavar="NAME",
        help="host names and addresses that it is for; else those of this machine and of the configuration",
    )
    parser.add_argument("--force", action="store_true", help="overwrite what is there")


def _name(text: str) -> str:
    if not is_host(text) or "%" in text:
        raise argparse.ArgumentTypeError(f"not {A_HOST}")
    return text


def _subject(text: str) -> x509.Name:
    try:
        return x509.Name.from_rfc4514_string(text)
    except ValueError:
        raise argparse.ArgumentTypeError('not a distinguished name such as "CN=pacs.example.org,O=Hospital"') from None


# --- which files ---------------------------------------------------------------------------------------------


def _files(options: argparse.Namespace, load: Load, *needed: str) -> HttpsFiles:
    """Those that were given, and the rest of the configuration, which is not read where nothing of it is needed."""
    given = {name: PemFile(path) for name in needed if (path := getattr(options, name)) is not None}
    if options.config is None and len(given) == len(needed):
        nothing = PemFile(Path())
        return HttpsFiles(given.get("cert", nothing), given.get("key", nothing), None, None, (), generate=False)
    files = https_files(load(options))
    return replace(files, certificate=given.get("cert", files.certificate), key=given.get("key", files.key))


def _names(options: argparse.Namespace, files: HttpsFiles) -> tuple[str, ...]:
    return tuple(dict.fromkeys(options.name)) if options.name else wanted_names(files.names)


def _key(file: PemFile) -> tuple[PrivateKey, bool]:
    """The key that is there, or else a new one; and whether it is new."""
    if os.path.lexists(file.path):
        return read_key(file), False
    return new_key(), True


def _write(path: Path, content: bytes) -> None:
    try:
        write_private(path, content)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror}") from error


def _refuse_to_overwrite(path: Path, options: argparse.Namespace) -> None:
    if os.path.lexists(path) and not options.force:
        raise PemFile(path).error("is there already; --force overwrites it")


# --- the actions ---------------------------------------------------------------------------------------------


def _show(options: argparse.Namespace, load: Load, say: Say) -> int:
    file = _files(options, load, "cert").certificate
    chain = read_chain(file)
    for number, certificate in enumerate(chain, 1):
        say(f"{file.path}" + (f", certificate {number} of {len(chain)}" if len(chain) > 1 else ""))
        for name, value in _properties(certificate, now()):
            say(f"  {name + ':':<13} {value}")
    return EXIT_OK


def _properties(certificate: x509.Certificate, when: datetime) -> Iterator[tuple[str, str]]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    days = (end - when).days
    left = "not yet valid" if when < begin else "expired" if when > end else f"{days} days left"
    yield "subject", certificate.subject.rfc4514_string() or "none"
    yield "names", ", ".join(names_of(certificate)) or "none"
    yield "issuer", "itself" if is_self_signed(certificate) else certificate.issuer.rfc4514_string()
    yield "valid", f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC ({left})"
    yield "key", key_type(certificate)
    yield "SHA-256", fingerprint(certificate)


def _check(options: argparse.Namespace, load: Load, say: Say) -> int:
    files = _files(options, load, "cert", "key")
    wanted = Wanted(options.host) if options.host else files.wanted
    checked = check(files.certificate, files.key, now(), wanted=wanted, client_ca=files.client_ca)
    for finding in checked.findings:
        say(f"{'warning' if finding.severity is Severity.DOUBTFUL else 'error'}: {finding.text}")
    if (checked.worst() or 0) > Severity.DOUBTFUL:
        return EXIT_WRONG
    say(f"{files.certificate.path} and {files.key.path} can be used")
    return EXIT_OK


def _make(options: argparse.Namespace, load: Load, say: Say) -> int:
    """One without `--name` is renewed by the proxy itself; names that somebody has chosen, the proxy cannot know."""
    files = _files(options, load, "cert", "key")
    _refuse_to_overwrite(files.certificate.path, options)
    key, is_new = _key(files.key)
    organization = BY_HAND if options.name else OWN
    certificate = make(key, _names(options, files), now(), organization=organization)
    if is_new:
        _write(files.key.path, key_pem(key))
        say(f"made the key {files.key.path}")
    _write(files.certificate.path, certificate.public_bytes(serialization.Encoding.PEM))
    say(f"made the certificate {files.certificate.path}")
    for name, value in _properties(certificate, now()):
        say(f"  {name + ':':<13} {value}")
    return EXIT_OK


def _request(options: argparse.Namespace, load: Load, say: Say) -> int:
    files = _files(options, load, "key")
    file, names = files.key, _names(options, files)
    out: Path = options.out or file.path.with_suffix(REQUEST_SUFFIX)
    _refuse_to_overwrite(out, options)
    key, is_new = _key(file)
    request = _signed_request(key, names, options.subject)
    if is_new:
        _write(file.path, key_pem(key))
        say(f"made the key {file.path}, which stays here")
    _write(out, request.public_bytes(serialization.Encoding.PEM))
    say(f"made the request {out} for {', '.join(names)} ({key_type(request)})")
    say("send it to the authority; its certificate, and those of authorities in between, belong at ssl.certPath")
    return EXIT_OK


def _signed_request(key: PrivateKey, names: Sequence[str], subject: x509.Name | None) -> x509.CertificateSigningRequest:
    """A request for a TLS server's certificate (PKCS #10, RFC 2986)."""
    named = subject or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name(names))])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(named)
        .add_extension(alternative_names(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, signing_hash(key))
    )
