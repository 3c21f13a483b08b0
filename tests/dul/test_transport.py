"""The socket below: its options, how messages become segments, how it is closed; and what `import dul` needs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest

import dul
from dul import limits
from dul.transport import Transport
from tests.corpus import Corpus
from tests.dul import certificates, wire
from tests.dul.archive import Archive, identifier, instance_of, peer_of, serving
from tests.dul.conftest import open_sockets
from tests.dul.wire import CT_IMAGE, STUDY_ROOT_FIND, STUDY_ROOT_GET, VERIFICATION, Wire, scripted_scp

pytestmark = pytest.mark.usefixtures("nothing_left")

ROOT = Path(__file__).resolve().parents[2]


def nodelay(port: int) -> list[bool]:
    """Return TCP_NODELAY of this process's sockets that are connected from or to a port."""
    values = []
    for descriptor in open_sockets().values():
        with socket.socket(fileno=os.dup(descriptor)) as sock, contextlib.suppress(OSError):
            if port in (sock.getsockname()[1], sock.getpeername()[1]):
                values.append(bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
    return values


async def test_tcp_nodelay_is_set_in_both_roles() -> None:
    async with serving(Archive()) as server, dul.connect(peer_of(server), [dul.Context(VERIFICATION)]) as association:
        await association.echo()
        assert nodelay(server.port) == [True, True]


async def test_command_and_identifier_of_a_find_are_one_segment() -> None:
    identifier = bytes(2000)

    async def script(peer: Wire) -> None:
        await peer.accept()
        segment = await peer.receive(65536)
        command_length = 12 + int.from_bytes(segment[2:6], "big") - 6
        assert len(segment) == command_length + 12 + len(identifier)
        find = wire.Message(1, wire.parse_command(segment[12:command_length]), identifier)
        await peer.send(wire.response(find, 0))
        await peer.answer_release()

    async with scripted_scp(script) as scp, dul.connect(scp, [dul.Context(STUDY_ROOT_FIND)]) as association:
        assert [match async for match in association.find(identifier)] == []


async def test_command_and_data_set_of_a_small_instance_are_one_segment() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        segment = await peer.receive(65536)
        command_length = 12 + int.from_bytes(segment[2:6], "big") - 6
        assert len(segment) == command_length + 12 + 10_000
        store = wire.Message(1, wire.parse_command(segment[12:command_length]), None)
        await peer.send(wire.response(store, 0))
        await peer.answer_release()

    instance = dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, bytes(10_000))
    async with scripted_scp(script) as scp, dul.connect(scp, [dul.Context(CT_IMAGE)]) as association:
        assert await association.store(instance) == 0


async def test_response_and_its_identifier_are_one_segment() -> None:
    class One(dul.Handler):
        async def on_find(self, request: dul.Request) -> AsyncGenerator[bytes, None]:
            yield bytes(100)

    async with serving(One()) as server:
        with await Wire.connect(server.port) as peer:
            await peer.associate(STUDY_ROOT_FIND)
            fields: wire.Elements = {"field": wire.C_FIND, "message_id": 1, "sop_class": STUDY_ROOT_FIND}
            await peer.send(wire.message(1, b"any", **fields))
            segment = await peer.receive(65536)
            command_length = 12 + int.from_bytes(segment[2:6], "big") - 6
            assert len(segment) >= command_length + 12 + 100


async def test_abort_closes_within_a_second_a_peer_that_neither_reads_nor_closes() -> None:
    async def script(peer: Wire) -> None:
        await peer.accept()
        await peer.fragment()
        await never.wait()

    never = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        while True:
            yield bytes(2**20)

    instance = dul.Instance(CT_IMAGE, "1.2.3", wire.EXPLICIT, endless)
    async with scripted_scp(script, receive_buffer=4096) as scp:
        association = await dul.open_association(scp, [dul.Context(CT_IMAGE)])
        storing = asyncio.create_task(association.store(instance))
        await asyncio.sleep(0.1)
        start = time.monotonic()
        association.abort()
        with pytest.raises(dul.AssociationAborted):
            await storing
        await association.wait_closed()
        assert time.monotonic() - start < 1.2


class Exported:
    """Gives each read a buffer of its own, and finds out before the next whether anybody still holds a piece of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.buffers: WeakKeyDictionary[Transport, bytearray] = WeakKeyDictionary()
        self.reads = 0
        monkeypatch.setattr(Transport, "get_buffer", lambda transport, sizehint: self._next(transport))

    def _next(self, transport: Transport) -> memoryview:
        self.check(transport)
        self.buffers[transport] = bytearray(limits.READ_BUFFER)
        transport._buffer = memoryview(self.buffers[transport])
        return transport._buffer

    def check(self, transport: Transport) -> None:
        """Fail with BufferError when there is a view of what was read."""
        if transport in self.buffers:
            self.reads += 1
            transport._buffer.release()
            self.buffers[transport].append(0)  # a bytearray with views of it cannot be resized


@pytest.mark.parametrize("over_tls", [False, True])
async def test_nothing_holds_on_to_the_read_buffer_which_all_connections_share(
    monkeypatch: pytest.MonkeyPatch, samples: Corpus, tmp_path: Path, over_tls: bool
) -> None:
    """Neither for commands nor for identifiers and data sets, in either direction, however they are cut."""
    exported = Exported(monkeypatch)
    tls = certificates.make(tmp_path) if over_tls else None
    contexts = [dul.Context(each) for each in (VERIFICATION, STUDY_ROOT_FIND, STUDY_ROOT_GET)]
    contexts.append(dul.Context(CT_IMAGE, scp_role=True))
    archive = Archive(samples)
    keys = identifier(PatientID="LATIN1")
    ours = samples.of_patient("LATIN1")
    async with serving(archive, ssl=tls.server() if tls else None) as server:
        async with dul.connect(peer_of(server), contexts, ssl=tls.client() if tls else None) as association:
            await association.echo()
            assert len([match async for match in association.find(identifier(StudyInstanceUID=""))]) > 1
            got = [await instance.read(10**6) async for instance in association.get(keys)]
            assert got == [samples.data_set(each) for each in ours]
            assert await association.store(instance_of(samples, ours[0])) == 0
            assert archive.stored[ours[0].sop_instance_uid].data == samples.data_set(ours[0])
        if tls is None:
            with await Wire.connect(server.port) as peer:
                await peer.associate(CT_IMAGE)
                await peer.drip(wire.p_data(wire.pdv(1, 3, wire.command(**wire.STORE)), wire.pdv(1, 2, b"data")), 0)
                assert (await peer.message()).number("status") == 0
    for transport in list(exported.buffers):
        exported.check(transport)
    assert exported.reads > 10


IMPORT_ALONE = """
import sys, importlib.abc

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top != "dul":
            raise ModuleNotFoundError(f"{name} is kept away", name=name)

sys.meta_path.insert(0, Nothing())
import dul
strangers = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - set(sys.argv[1:])
print(sorted(name for name in strangers if "__editable__" not in name and not name.startswith("__")))
"""


def test_import_needs_nothing_but_the_standard_library() -> None:
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print(*{name.partition('.')[0] for name in sys.modules})"],
        capture_output=True,
        text=True,
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALONE, *before.stdout.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['dul']"
