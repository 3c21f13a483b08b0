"""rsyslogd as a receiver of audit messages: over TLS, which needs its module for that, and over UDP."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.dul.certificates import Certificates
from tests.peers.process import HOST, Process, answers, free_port, require, require_program

MODULES: Final = Path("/usr/lib")

_SETTINGS: Final = """
global(workDirectory="{folder}" maxMessageSize="64k" defaultNetstreamDriver="gtls"
       defaultNetstreamDriverCAFile="{tls.authority}" defaultNetstreamDriverCertFile="{tls.certificate}"
       defaultNetstreamDriverKeyFile="{tls.key}")
module(load="imudp")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
input(type="imudp" address="{host}" port="{udp}")
input(type="imtcp" address="{host}" port="{tcp}")
template(name="fields" type="list" option.jsonf="on") {{
    property(outname="pri" name="pri" format="jsonf")
    property(outname="version" name="protocol-version" format="jsonf")
    property(outname="time" name="timereported" dateFormat="rfc3339" format="jsonf")
    property(outname="host" name="hostname" format="jsonf")
    property(outname="app" name="app-name" format="jsonf")
    property(outname="process" name="procid" format="jsonf")
    property(outname="msgid" name="msgid" format="jsonf")
    property(outname="data" name="structured-data" format="jsonf")
    property(outname="message" name="msg" format="jsonf")
}}
action(type="omfile" file="{folder}/received" template="fields" asyncWriting="off")
"""


@dataclass(frozen=True, slots=True)
class Received:
    """A message as rsyslogd has understood it: the fields of RFC 5424 6, and what comes behind them."""

    pri: str
    version: str
    time: str
    host: str
    app: str
    process: str
    msgid: str
    data: str
    message: str


class Rsyslog:
    """A context manager. Over TLS it takes only clients with a certificate of the authority."""

    def __init__(self, folder: Path, tls: Certificates, *, tcp_port: int = 0) -> None:
        program = require_program("rsyslogd", "rsyslog")
        require(any(MODULES.glob("*/rsyslog/lmnsd_gtls.so")), "rsyslogd has no TLS (package rsyslog-gnutls)")
        self.folder = folder
        self.tcp_port = tcp_port or free_port()
        self.udp_port = free_port()
        settings = _SETTINGS.format(folder=folder, tls=tls, host=HOST, udp=self.udp_port, tcp=self.tcp_port)
        (folder / "rsyslog.conf").write_text(settings)
        command = [program, "-n", "-f", str(folder / "rsyslog.conf"), "-i", str(folder / "pid")]
        self._process = Process("rsyslogd", command, folder)

    def received(self) -> list[Received]:
        """What has come so far."""
        path = self.folder / "received"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [Received(**json.loads(line)) for line in lines]

    def __enter__(self) -> Self:
        self._process.start(lambda: answers(self.tcp_port))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stop()
