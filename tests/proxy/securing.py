"""The proxy with HTTPS, as a program and in the test's own event loop; and clients that read when they are told to."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from proxy.config.checking import parse_config
from proxy.service import running
from tests.peers.process import HOST, Address, free_port
from tests.proxy.chains import Files, authority, openssl, server
from tests.proxy.command import Program, program, write_config
from tests.proxy.running import settings

ROOT = authority("Hospital Root")
BETWEEN = authority("Hospital Issuing", ROOT)
LISTENS = re.compile(r"HTTP: listens on \S+ port (\d+)[\s\S]*HTTPS: listens on ")
NOBODY = Address("NOBODY", 1)


@dataclass(frozen=True, slots=True)
class Secured:
    """A proxy with HTTPS: where it listens, its files, and whom its clients trust."""

    http_port: int
    https_port: int
    files: Files
    process: Program | None = None

    @property
    def url(self) -> str:
        """Where HTTPS answers."""
        return f"https://{HOST}:{self.https_port}"

    @property
    def plain_url(self) -> str:
        """Where HTTP answers."""
        return f"http://{HOST}:{self.http_port}"

    def log(self) -> str:
        """Return all that the program has printed."""
        assert self.process is not None
        return self.process.log()


def new_certificate(folder: Path) -> Files:
    """Write a certificate of the hospital's authority, with that in between."""
    signed = server(BETWEEN)
    files = Files(folder)
    files.write(signed.pem() + BETWEEN.pem(), signed.key_pem())
    return files


def trusting(*, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """A context of a client that knows the root alone; with a certificate of its own."""
    context = ssl.create_default_context(cadata=ROOT.pem().decode())
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


@contextlib.asynccontextmanager
async def secured_program(
    folder: Path,
    *archives: Address,
    uvloop: bool = True,
    tls: dict[str, object] | None = None,
    files: Files | None = None,
    **more: object,
) -> AsyncIterator[Secured]:
    """Run the program with `files`, else with a certificate of the hospital; `tls` are further keys of `ssl`, `more` of
    the whole."""
    files = files or new_certificate(folder)
    port = free_port()
    options = {"use_cget": True, "ssl": files.settings(port, **(tls or {})), **more}
    path = write_config(folder, settings(*(archives or [NOBODY]), **options))  # type: ignore[arg-type]
    async with program("run", "--config", str(path), folder=folder, says=LISTENS, uvloop=uvloop) as proxy:
        yield Secured(proxy.port, port, files, proxy)


@contextlib.asynccontextmanager
async def secured(
    folder: Path, *archives: Address, tls: dict[str, object] | None = None, **more: object
) -> AsyncIterator[Secured]:
    """Run the proxy in this event loop; the arguments are those of `secured_program`."""
    files = new_certificate(folder)
    port = free_port()
    options = {"use_cget": True, "ssl": files.settings(port, **(tls or {})), **more}
    with tempfile.TemporaryDirectory(prefix="storage-") as storage:
        options = {"storagePath": storage, **options}
        config = parse_config(settings(*(archives or [NOBODY]), **options))  # type: ignore[arg-type]
        async with running(config) as where:
            assert where.https_port == port
            yield Secured(where.http_port, port, files)


@contextlib.asynccontextmanager
async def session(context: ssl.SSLContext | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that trusts the hospital's root."""
    connector = aiohttp.TCPConnector(ssl=context or trusting())
    async with aiohttp.ClientSession(connector=connector) as http:
        yield http
        await http.close()
        await asyncio.sleep(0.05)  # aiohttp ends its TLS connections some turns of the loop later


class SlowClient:
    """A TLS client that reads only when it is told to, in a thread of its own each time."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.socket = tls

    @classmethod
    async def connected(cls, port: int) -> SlowClient:
        """Connect to a proxy."""
        return cls(await asyncio.to_thread(_connected, port))

    async def ask(self, target: str, *headers: str, version: str = "1.1") -> None:
        """Send a GET request."""
        head = "".join(f"{line}\r\n" for line in (f"GET {target} HTTP/{version}", f"Host: {HOST}", *headers))
        await asyncio.to_thread(self.socket.sendall, f"{head}\r\n".encode())

    async def read(self, most: int | None = None) -> bytes:
        """Read until the end of the stream, or about `most` bytes."""
        return await asyncio.to_thread(self._read, most)

    def _read(self, most: int | None) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while most is None or size < most:
            piece = self.socket.recv(64 * 1024)
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)

    def __enter__(self) -> SlowClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def _connected(port: int) -> ssl.SSLSocket:
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    raw.settimeout(20)
    raw.connect((HOST, port))
    # An end that is not TLS's own end is an error, or a cut answer would look whole.
    return trusting().wrap_socket(raw, server_hostname=HOST, suppress_ragged_eofs=False)


def shown_fingerprint(port: int) -> str:
    """The SHA-256 of the certificate that a new connection is shown."""
    pem = ssl.get_server_certificate((HOST, port), timeout=10)
    said = openssl("x509", "-noout", "-fingerprint", "-sha256", given=pem.encode()).stdout.decode()
    return said.strip().rpartition("=")[2]
