"""The proxy as a program of its own in front of a scripted archive, and a watch on its memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.faultpeer import ScriptedArchive
from tests.peers.process import Address, free_port
from tests.proxy.command import Program, program, write_config
from tests.proxy.running import PROXY_AET, Proxy, settings

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Watched:
    """The proxy as a program. `proxy` is as for a proxy in the test's own event loop."""

    program: Program
    proxy: Proxy

    @property
    def memory(self) -> int:
        """Bytes that the process has resident now."""
        return self._status("VmRSS")

    def _status(self, name: str) -> int:
        status = Path(f"/proc/{self.program.process.pid}/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024

    @contextlib.contextmanager
    def little_memory(self, most: int) -> Iterator[None]:
        """Fail when the process takes more at any time meanwhile than it had before, by more than so many bytes."""
        Path(f"/proc/{self.program.process.pid}/clear_refs").write_text("5")  # the peak begins anew
        before = self.memory
        yield
        taken = self._status("VmHWM") - before
        assert taken <= most, f"{taken / MIB:.1f} MiB more at the worst moment"


@contextlib.asynccontextmanager
async def watched(
    archive: ScriptedArchive, folder: Path, *, use_cget: bool = False, **more: object
) -> AsyncIterator[Watched]:
    """Run the proxy in front of an archive; `more` are further keys of its configuration."""
    port = free_port()
    archive.destination = Address(PROXY_AET, port)
    options = {"storagePath": str(folder / "storage"), **more}
    config = write_config(
        folder,
        settings(archive.address, use_cget=use_cget, dimse_port=port, **options),  # type: ignore[arg-type]
    )
    async with (
        program("run", "--config", str(config), folder=folder) as running,
        aiohttp.ClientSession(running.url) as http,
    ):
        yield Watched(running, Proxy(running.url, http, port))
