"""nginx, which sends files with sendfile: the reference for answers out of the cache. It need not be installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.benchmarks.client import Target
from tests.peers.nginx import Nginx
from tests.peers.process import HOST, find_program

SETTINGS = "sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000;"


def is_installed() -> bool:
    """Tell whether there is an nginx to compare with."""
    return find_program("nginx") is not None


@contextlib.contextmanager
def nginx(folder: Path, files: Iterable[bytes]) -> Iterator[tuple[Target, list[str]]]:
    """Serve files from a new folder, by one process as the proxy is one; gives the server and the files' paths."""
    server = Nginx(folder, settings=SETTINGS, logs=False)
    paths = []
    for number, content in enumerate(files):
        (folder / "files" / f"{number}.dcm").write_bytes(content)
        paths.append(f"/{number}.dcm")
    with server:
        yield Target(HOST, server.port, ""), paths
