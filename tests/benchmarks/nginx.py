"""nginx, which sends files with sendfile: the reference for answers out of the cache. It need not be installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.benchmarks.client import Target
from tests.peers.process import HOST, Process, answers, find_program, free_port

CONFIGURATION = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_requests 1000000;
    default_type application/dicom;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {host}:{port};
        root {folder}/files;
    }}
}}
"""


def is_installed() -> bool:
    """Tell whether there is an nginx to compare with."""
    return find_program("nginx") is not None


@contextlib.contextmanager
def nginx(folder: Path, files: Iterable[bytes]) -> Iterator[tuple[Target, list[str]]]:
    """Serve files from a new folder, by one process as the proxy is one; gives the server and the files' paths."""
    program = find_program("nginx")
    assert program is not None
    served = folder / "files"
    served.mkdir(parents=True)
    paths = []
    for number, content in enumerate(files):
        (served / f"{number}.dcm").write_bytes(content)
        paths.append(f"/{number}.dcm")
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=HOST, port=port))
    command = [program, "-p", str(folder), "-e", "stderr", "-c", str(configuration)]
    with Process("nginx", command, folder) as process:
        process.start(lambda: answers(port))
        yield Target(HOST, port, ""), paths
