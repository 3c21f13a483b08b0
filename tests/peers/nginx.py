"""nginx as a web server: static files, another server behind it, TLS, passwords, and failures on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from tests.dul.certificates import Certificates
from tests.peers.process import HOST, Process, answers, free_port, require_program

CONFIGURATION = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log {access_log};
    default_type application/octet-stream;
    types {{ application/dicom dcm; application/dicom+json json; application/dicom+xml xml; }}
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{settings}
    server {{
        listen {host}:{port}{ssl};
        server_name {host};
        root {folder}/files;
{locations}
    }}
}}
"""


class Nginx:
    """nginx on a loopback port, with the files in `folder`/files. A context manager.

    `locations` is what its server block holds, `settings` what stands before that. With `certificates` it speaks TLS
    only. Without `logs` it does not note its `requests`.
    """

    def __init__(
        self,
        folder: Path,
        locations: str = "",
        *,
        settings: str = "",
        certificates: Certificates | None = None,
        logs: bool = True,
    ) -> None:
        program = require_program("nginx", "nginx-light")
        self.port = free_port()
        self._scheme = "http" if certificates is None else "https"
        self._access_log = folder / "access.log"
        (folder / "files").mkdir(exist_ok=True, parents=True)
        if certificates is not None:
            locations += f"\nssl_certificate {certificates.certificate};\nssl_certificate_key {certificates.key};\n"
        path = folder / "nginx.conf"
        text = CONFIGURATION.format(
            folder=folder,
            host=HOST,
            port=self.port,
            ssl="" if certificates is None else " ssl",
            locations=locations,
            settings=settings,
            access_log=self._access_log if logs else "off",
        )
        path.write_text(text)
        # Without -e, it opens a log of its own first, where it may not write.
        command = [program, "-p", str(folder), "-e", "stderr", "-c", str(path)]
        self.process = Process("nginx", command, folder)

    @property
    def url(self) -> str:
        """Its address, without a trailing slash."""
        return f"{self._scheme}://{HOST}:{self.port}"

    @property
    def requests(self) -> list[str]:
        """The request lines that it has answered so far."""
        lines = self._access_log.read_text().splitlines() if self._access_log.exists() else []
        return [line.split('"')[1] for line in lines]

    def __enter__(self) -> Self:
        self.process.start(lambda: answers(self.port))
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()
