"""HTTPS as it is configured: its files, what is wrong with them before the start, and the certificate while it runs."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509

from proxy.config.schema import Config
from proxy.config.types import is_address
from proxy.security.tls.certificates import CertificateError, PemFile, fingerprint, names_of, read_chain, read_key
from proxy.security.tls.checks import Checked, Finding, Severity, Wanted, check, expiry
from proxy.security.tls.self_signed import ends_soon, provide, reason_to_make, wanted_names
from proxy.threads import in_thread

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 3600.0
LOOK_EVERY: Final = timedelta(days=1)
"""How often a certificate's end is looked at. Told by the clock on the wall, which goes on while a machine sleeps."""

MAX_NAMES_LOGGED: Final = 10

_ANY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104 - to be recognized

Clock = Callable[[], datetime]


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class HttpsFiles:
    """What `ssl` of a configuration names; `names` are those that it has for a self-signed certificate."""

    certificate: PemFile
    key: PemFile
    client_ca: PemFile | None
    wanted: Wanted | None
    names: tuple[str, ...]
    generate: bool

    def why_made(self, when: datetime) -> str | None:
        """Why a start would make a self-signed certificate; None when it would not."""
        if not self.generate:
            return None
        return reason_to_make(self.certificate, self.key, wanted_names(self.names), when)

    def check(self, when: datetime) -> Checked:
        """Look at the files as they are."""
        return check(self.certificate, self.key, when, wanted=self.wanted, client_ca=self.client_ca)


def https_files(config: Config) -> HttpsFiles:
    """The files and names of a configuration."""
    ssl_keys = config.ssl
    public = urlsplit(config.public_url or "")
    wanted = Wanted(public.hostname, "publicUrl") if public.scheme == "https" and public.hostname else None
    listens_on = [] if config.webserver_host in _ANY_ADDRESS else [config.webserver_host]
    return HttpsFiles(
        PemFile(ssl_keys.cert_path, "ssl.certPath"),
        PemFile(ssl_keys.key_path, "ssl.keyPath"),
        PemFile(ssl_keys.client_ca_file, "ssl.clientCaFile") if ssl_keys.client_ca_file else None,
        wanted,
        (*([public.hostname] if public.hostname else []), *ssl_keys.self_signed_names, *listens_on),
        ssl_keys.generate_self_signed,
    )


def check_https(config: Config, when: datetime) -> tuple[str, ...]:
    """What is doubtful about the files that `ssl` names; for the command line.

    Raises `CertificateError` with all that clients would refuse, or that would keep the proxy from starting.
    """
    if not config.ssl.enabled:
        return ()
    files = https_files(config)
    if files.why_made(when) is not None:
        if os.path.lexists(files.key.path):
            read_key(files.key)
        if files.client_ca is not None:
            read_chain(files.client_ca)
        _check_writable(files.certificate)
        return ()
    checked = files.check(when)
    checked.raise_if(Severity.REFUSED)
    return tuple(finding.text for finding in checked.findings)


def _check_writable(file: PemFile) -> None:
    folder = next(parent for parent in file.path.parents if parent.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise file.error(f"cannot be made: this user may not write to {folder}")


@dataclass(frozen=True, slots=True)
class _Loaded:
    checked: Checked
    context: ssl.SSLContext
    made: str | None


class CertificateKeeper:
    """The certificate that HTTPS shows: made where that is wanted, checked, renewed, and read anew when asked.

    Once started, `use` is called with the context for further connections whenever that changes.
    """

    def __init__(self, files: HttpsFiles, *, clock: Clock = now) -> None:
        self.use: Callable[[ssl.SSLContext], None] | None = None
        self._files = files
        self._clock = clock
        self._loading = asyncio.Lock()
        self._looked = clock()
        self._shown: x509.Certificate | None = None

    async def load(self) -> ssl.SSLContext:
        """The context to start with. Raises `CertificateError` when there is none.

        What clients refuse is said at level ERROR, and is no reason not to start: users would lose HTTP with it.
        """
        loaded = await in_thread(self._load, self._clock())
        self._say(loaded)
        self._shown = loaded.checked.leaf
        return loaded.context

    async def reload(self) -> None:
        """Read the files anew, and renew what has to be; what cannot be used, or clients would refuse, is not taken."""
        async with self._loading:
            try:
                loaded = await in_thread(self._load, self._clock())
                loaded.checked.raise_if(Severity.REFUSED)
            except (CertificateError, OSError) as error:
                logger.error("HTTPS: the certificate stays as it was, since %s", "; ".join(str(error).splitlines()))
                return
            self._shown = loaded.checked.leaf
            if self.use is not None:
                self.use(loaded.context)
            self._say(loaded)

    async def watch(self) -> None:
        """Look at the certificate's end each day, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self.look()
            except Exception:
                logger.exception("HTTPS: the certificate was not looked at; this is tried again")

    async def look(self) -> None:
        """Renew a self-signed certificate that ends soon, and speak of the end of any other; once a day."""
        when = self._clock()
        if self._shown is None or timedelta() <= when - self._looked < LOOK_EVERY:
            return
        self._looked = when
        if ends_soon(self._shown, when) and await in_thread(self._files.why_made, when) is not None:
            await self.reload()
        for finding in expiry(self._files.certificate, self._shown, when):
            _log(finding)

    def _load(self, when: datetime) -> _Loaded:
        """Reads and writes files, and asks the name service."""
        files = self._files
        made = None
        if files.generate:
            made = provide(files.certificate, files.key, wanted_names(files.names), when)
        checked = files.check(when)
        checked.raise_if(Severity.BROKEN)
        assert checked.context is not None
        return _Loaded(checked, checked.context, made)

    def _say(self, loaded: _Loaded) -> None:
        leaf = loaded.checked.leaf
        if loaded.made is not None:
            text = "made a self-signed certificate, since %s; who trusted another one has to trust this"
            logger.warning(f"HTTPS: %s: {text}", self._files.certificate.path, loaded.made)
        names = names_of(leaf)
        shown = ", ".join(names[:MAX_NAMES_LOGGED]) + (", …" if len(names) > MAX_NAMES_LOGGED else "")
        logger.info(
            "HTTPS: the certificate of %s is for %s, valid until %s, SHA-256 %s",
            self._files.certificate.path,
            shown or "no host",
            f"{leaf.not_valid_after_utc:%Y-%m-%d}",
            fingerprint(leaf),
        )
        for finding in loaded.checked.findings:
            _log(finding)


def _log(finding: Finding) -> None:
    level = logging.WARNING if finding.severity is Severity.DOUBTFUL else logging.ERROR
    logger.log(level, "HTTPS: %s", finding.text)


def https_url(config: Config) -> str:
    """Where clients find HTTPS, as far as that is known."""
    public = urlsplit(config.public_url or "")
    if public.scheme == "https":
        return f"{config.public_url}/"
    host = socket.gethostname() if config.webserver_host in _ANY_ADDRESS else config.webserver_host
    name = f"[{host}]" if is_address(host) and ":" in host else host
    return f"https://{name}{'' if config.ssl.port == 443 else f':{config.ssl.port}'}/"
