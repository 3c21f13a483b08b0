"""The audit trail: every record goes to all that the keys below `audit` name. Its beginning and end are records too."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from proxy.config.schema import Config
from proxy.config.security import Audit
from proxy.security.audit.dicom_message import Reporter, messages_of
from proxy.security.audit.events import Category, Outcome
from proxy.security.audit.lines import ErrorTarget, FileTarget, LineWriter
from proxy.security.audit.record import Record
from proxy.security.audit.syslog import Sender, SyslogSettingsError, syslog_message, tls_context


class AuditError(Exception):
    """The audit trail cannot be kept as it is configured; the message names the key."""


def check_audit(settings: Audit) -> None:
    """Look at the files of TLS that the keys below `audit` name; makes none. Raises `AuditError`."""
    if settings.syslog is not None and settings.syslog.protocol == "tls":
        try:
            tls_context(settings.syslog)
        except SyslogSettingsError as error:
            raise AuditError(str(error)) from error


def _check_writable(path: Path) -> None:
    try:
        os.close(FileTarget(path).open())
    except OSError as error:
        raise AuditError(f"audit.file: {path} cannot be written: {error.strerror or error}") from error


class Trail:
    """Where records go. To be used in the event loop's thread; `put` and `security_alert` return at once."""

    def __init__(self, config: Config) -> None:
        """Makes the file. Raises `AuditError`."""
        settings = config.audit
        check_audit(settings)
        if settings.file is not None:
            _check_writable(settings.file)
        self._file = LineWriter(FileTarget(settings.file), _loss) if settings.file is not None else None
        self._journal = LineWriter(ErrorTarget(), _loss) if settings.journal else None
        self._sender = Sender(settings.syslog) if settings.syslog is not None else None
        self._required = settings.required
        self._host = socket.gethostname()
        aet = config.dimse.proxy_server.aet if config.proxy_mode == "dimse" and config.dimse is not None else ""
        self._reporter = Reporter(settings.source_id or self._host, str(os.getpid()), aet)

    @property
    def is_blocked(self) -> bool:
        """True while nobody may have access, since no record of it could be kept (`audit.required`)."""
        return self._required and self._file is not None and self._file.fails

    def put(self, record: Record) -> None:
        """Keep a record."""
        for writer in self._writers():
            writer.put(record)
        if self._sender is not None:
            for message in messages_of(record, self._reporter):
                self._sender.put(syslog_message(message, self._host, record.time))

    def security_alert(
        self, event: str, description: str, *, client: str = "", caller: str = "", user: str = ""
    ) -> None:
        """Keep a record of something that should not happen and was prevented (PS3.15 A.5.3.11).

        `event` and `description` are in words and name no patient. `client` is an address, `caller` a calling AE title.
        """
        self.put(
            Record(
                time=time.time(),
                event=event,
                category=Category.ALERT,
                outcome=Outcome.SERIOUS_FAILURE,
                description=description,
                client=client,
                caller=caller,
                user=user,
            )
        )

    def caller_refused(self, what: str, caller: str, host: str) -> None:
        """Keep a record of a DIMSE caller that was turned away: what was refused, its AE title and its address."""
        self.security_alert("Refused Caller", what, caller=caller, client=host)

    async def reopen(self) -> None:
        """Make the file anew where it was moved away; it is found out without this too, a moment later."""
        if self._file is not None:
            self._file.reopen()

    async def start(self) -> None:
        """Begin."""
        for writer in self._writers():
            writer.start()
        if self._sender is not None:
            self._sender.start()
        self.put(_own("Application Start", Category.START))

    async def stop(self) -> None:
        """Write and send what waits, for a second at most, and end."""
        self.put(_own("Application Stop", Category.STOP))
        ends = [writer.stop() for writer in self._writers()]
        if self._sender is not None:
            ends.append(self._sender.stop())
        await asyncio.gather(*ends)

    def _writers(self) -> Iterator[LineWriter]:
        return filter(None, (self._file, self._journal))


def _own(event: str, category: Category) -> Record:
    return Record(time=time.time(), event=event, category=category, outcome=Outcome.SUCCESS)


def _loss(count: int) -> Record:
    """The record that stands where others are missing."""
    return Record(
        time=time.time(),
        event="Audit Lines Lost",
        category=Category.OTHER,
        outcome=Outcome.SERIOUS_FAILURE,
        lost=count,
    )
