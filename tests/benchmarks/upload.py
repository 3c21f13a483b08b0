"""Uploads by STOW-RS to an archive, beside DCMTK's `storescu` to the same one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

from tests import corpus
from tests.benchmarks.client import BUFFER, BenchmarkError, Target
from tests.benchmarks.lab import BIG_INSTANCES, Lab, Server, median
from tests.benchmarks.report import Row, at_most, times
from tests.peers.dcmtk import Scu, Storescp

ROUNDS = 3
BOUNDARY = "UPLOAD"


def upload(lab: Lab) -> list[Row]:
    """The CT study of 262 MB, and a body of 2 GB, to an archive that keeps nothing."""
    folder = lab.folder / "upload"
    folder.mkdir()
    files = _written(folder, corpus.ct_study())
    rows = []
    with Storescp(folder, options=["--ignore"]) as archive:
        peers = [{"aet": archive.address.aet, "ip": archive.address.host, "port": archive.address.port}]
        settings = {"proxyServer": {"aet": "PROXY"}, "peers": peers}
        with lab.server(lab.archive(), dimseProxySettings=settings) as server:
            contents = list(corpus.ct_study())
            pairs = [(_stow(server.target, contents), _storescu(archive, files)) for _ in range(ROUNDS)]
            measured, reference = (median(column) for column in zip(*pairs, strict=True))
            rows.append(times("STOW-RS of 262 MB, beside storescu", measured, "s", reference, 1.5))
        with lab.server(lab.archive(), dimseProxySettings=settings) as server:
            rows += _large(server)
    return rows


def _large(server: Server) -> list[Row]:
    before = server.processor_seconds()
    _stow(server.target, corpus.ct_study(1, BIG_INSTANCES, side=724, study=2))
    used = server.processor_seconds() - before
    return [
        at_most("processor time for a GB of upload", used / 2.15, "s", 2.5),
        at_most("peak memory, upload of 2 GB", server.peak_memory(), "MB", 100),
    ]


def _written(folder: Path, files: Iterable[bytes]) -> list[Path]:
    paths = []
    for number, content in enumerate(files):
        path = folder / f"{number}.dcm"
        path.write_bytes(content)
        paths.append(path)
    return paths


def _storescu(archive: Storescp, files: list[Path]) -> float:
    start = time.perf_counter()
    Scu(archive.address).store(files).succeeded()
    return time.perf_counter() - start


def _stow(target: Target, files: Iterable[bytes]) -> float:
    """Upload files in one body; returns how many seconds it took."""
    count, start = 0, time.perf_counter()
    with target.connect() as connection:
        head = f"POST {target.root}/studies HTTP/1.1\r\nHost: {target.host}:{target.port}\r\n"
        head += f'Content-Type: multipart/related; type="application/dicom"; boundary={BOUNDARY}\r\n'
        head += "Accept: application/dicom+json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        for content in files:
            part = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + content + b"\r\n"
            connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            count += 1
        ending = f"--{BOUNDARY}--\r\n".encode()
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(ending), ending))
        answer = b""
        while received := connection.recv(BUFFER):
            answer += received
        seconds = time.perf_counter() - start
    header, _, body = answer.partition(b"\r\n\r\n")
    if not header.startswith(b"HTTP/1.1 200"):
        raise BenchmarkError(f"upload: {answer[:300]!r}")
    text = body[body.index(b"{") : body.rindex(b"}") + 1]
    stored = len(json.loads(text)["00081199"]["Value"])
    if stored != count:
        raise BenchmarkError(f"{stored} of {count} instances were stored")
    return seconds
