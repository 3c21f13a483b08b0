"""Audit lines on their way into a file: whose file it is, what rotation, a full disk and a full queue do to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.security.audit import lines
from proxy.security.audit.lines import FileTarget, LineWriter
from tests.peers.process import require_program, run_program


@dataclass(frozen=True, slots=True)
class Entry:
    """What makes a line that it is given."""

    text: bytes

    def line(self) -> bytes:
        """Return it."""
        return self.text


def loss(count: int) -> Entry:
    return Entry(b'{"lost":%d}\n' % count)


@contextlib.asynccontextmanager
async def writing_to(path: Path) -> AsyncIterator[LineWriter]:
    """A writer, whose lines are in the file when the block has ended."""
    writer = LineWriter(FileTarget(path), loss)
    writer.start()
    try:
        yield writer
    finally:
        await writer.stop()


async def until(condition: object, timeout: float = 5.0) -> None:
    """Wait until a callable says yes."""
    assert callable(condition)
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


def numbers(*paths: Path) -> list[int]:
    """The numbers of the lines in files, each of which is whole JSON."""
    return [json.loads(line)["n"] for path in paths for line in path.read_bytes().splitlines()]


def line(number: int) -> bytes:
    return b'{"n":%d,"filling":"%b"}\n' % (number, b"x" * 300)


# --- the file ------------------------------------------------------------------------------------------------


async def test_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    """0600 in a folder of 0700, whatever the umask is."""
    before = os.umask(0)
    try:
        async with writing_to(tmp_path / "audit" / "audit.log") as writer:
            writer.put(Entry(line(1)))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "audit" / "audit.log").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700


async def test_lines_go_behind_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for number in (1, 2):
        async with writing_to(path) as writer:
            writer.put(Entry(line(number)))
    assert numbers(path) == [1, 2]


async def test_half_a_line_of_a_process_that_was_killed_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(line(1) + line(2)[:40])
    async with writing_to(path) as writer:
        writer.put(Entry(line(3)))
    first, torn, third = path.read_bytes().splitlines()
    assert (json.loads(first)["n"], torn, json.loads(third)["n"]) == (1, line(2)[:40], 3)


async def test_each_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or another process that appends to the file could get in between."""
    written: list[bytes] = []
    write = os.write

    def noting(file: int, data: bytes) -> int:
        written.append(data)
        return write(file, data)

    monkeypatch.setattr(os, "write", noting)
    async with writing_to(tmp_path / "audit.log") as writer:
        for number in range(5):
            writer.put(Entry(line(number)))
    assert [data for data in written if data.startswith(b'{"n"')] == [line(number) for number in range(5)]


# --- rotation ------------------------------------------------------------------------------------------------


async def test_a_file_that_is_moved_away_under_load_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    moved = [tmp_path / f"audit.log.{number}" for number in range(4)]
    count = 0
    async with writing_to(path) as writer:
        for goal in moved:
            for _ in range(40):
                for _ in range(20):
                    writer.put(Entry(line(count)))
                    count += 1
                await asyncio.sleep(0.005)
            path.rename(goal)
        await asyncio.sleep(lines.LOOK_SECONDS + 0.02)
        writer.put(Entry(line(count)))
    assert sorted(numbers(*moved, path)) == list(range(count + 1))
    assert all(numbers(each) for each in moved), "a file was not made anew between two moves"


async def test_logrotate_moves_it_away(tmp_path: Path) -> None:
    """The real program, as Debian and RHEL run it each night; nothing has to tell the proxy."""
    logrotate = require_program("logrotate", "logrotate")
    path = tmp_path / "audit.log"
    (tmp_path / "rotate.conf").write_text(f"{path} {{\n rotate 5\n create 0600\n su {os.getuid()} {os.getgid()}\n}}\n")
    command = [logrotate, "--force", "--state", str(tmp_path / "state"), str(tmp_path / "rotate.conf")]
    tmp_path.chmod(0o700)
    async with writing_to(path) as writer:
        for number in range(100):
            writer.put(Entry(line(number)))
        await until(lambda: path.exists() and len(path.read_bytes().splitlines()) == 100)
        (await asyncio.to_thread(run_program, command, timeout=10)).succeeded()
        await asyncio.sleep(lines.LOOK_SECONDS + 0.02)
        writer.put(Entry(line(100)))
    assert numbers(tmp_path / "audit.log.1") == list(range(100))
    assert numbers(path) == [100]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_reopening_when_told_so_does_not_wait_for_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LOOK_SECONDS", 3600.0)
    path = tmp_path / "audit.log"
    async with writing_to(path) as writer:
        writer.put(Entry(line(1)))
        await until(lambda: path.exists() and path.read_bytes())
        path.rename(tmp_path / "moved")
        writer.put(Entry(line(2)))
        writer.reopen()
        writer.put(Entry(line(3)))
    assert numbers(tmp_path / "moved") == [1, 2]
    assert numbers(path) == [3]


async def test_a_folder_that_is_removed_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit" / "audit.log"
    async with writing_to(path) as writer:
        writer.put(Entry(line(1)))
        await until(lambda: path.exists() and path.read_bytes())
        shutil.rmtree(path.parent)
        await asyncio.sleep(lines.LOOK_SECONDS + 0.02)
        writer.put(Entry(line(2)))
    assert numbers(path) == [2]


# --- what cannot be written ----------------------------------------------------------------------------------


async def test_lines_wait_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """/dev/full says "no space left" as a full disk does. Said once, at ERROR, and once that it is over."""
    monkeypatch.setattr(lines, "RETRY_SECONDS", 0.02)
    path = tmp_path / "audit.log"
    path.symlink_to("/dev/full")
    async with writing_to(path) as writer:
        for number in range(3):
            writer.put(Entry(line(number)))
        await until(lambda: writer.fails)
        await asyncio.sleep(0.1)
        path.unlink()
        await until(lambda: not writer.fails)
        writer.put(Entry(line(3)))
    assert numbers(path) == [0, 1, 2, 3]
    said = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert said == [
        (logging.ERROR, f"audit lines cannot be written to {path} (No space left on device); up to 10000 wait"),
        (logging.WARNING, f"audit lines are written to {path} again"),
    ]


async def test_a_line_of_which_a_part_is_written_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk takes what it has room for: the rest comes behind it, and not the whole line once more."""
    monkeypatch.setattr(lines, "RETRY_SECONDS", 0.02)
    write, asked = os.write, []

    def full_after_ten_bytes(file: int, data: bytes) -> int:
        if not data.endswith(b'x"}\n'):
            return write(file, data)
        asked.append(data)
        if len(asked) == 2:
            raise OSError(28, "No space left on device")
        return write(file, data[:10] if len(asked) == 1 else data)

    monkeypatch.setattr(os, "write", full_after_ten_bytes)
    async with writing_to(tmp_path / "audit.log") as writer:
        writer.put(Entry(line(1)))
        writer.put(Entry(line(2)))
        await until(lambda: len(asked) >= 4)
    assert numbers(tmp_path / "audit.log") == [1, 2]


async def test_lines_that_are_lost_are_counted_in_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lines, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(lines, "MAX_WAITING", 10)
    path = tmp_path / "audit.log"
    path.symlink_to("/dev/full")
    async with writing_to(path) as writer:
        writer.put(Entry(line(0)))
        await until(lambda: writer.fails)  # the thread has that one in its hands
        for number in range(1, 16):
            writer.put(Entry(line(number)))
        path.unlink()
        await until(lambda: path.exists() and len(path.read_bytes().splitlines()) == 11)
        await until(lambda: not writer.fails)  # though nobody has told of the loss yet: requests may come again
        writer.put(Entry(line(16)))
    found = [json.loads(each) for each in path.read_bytes().splitlines()]
    assert [each.get("n", each) for each in found] == [*range(11), {"lost": 5}, 16]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors[1:] == [
        f"audit lines for {path} are lost: 10 wait already",
        f"5 audit lines for {path} were lost",
    ]


async def test_a_disk_that_hangs_holds_up_neither_requests_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A named pipe that nobody reads takes 64 KiB and no more, as a network file system that is gone."""
    monkeypatch.setattr(lines, "STOP_SECONDS", 0.1)
    path = tmp_path / "audit.log"
    os.mkfifo(path)
    started = time.perf_counter()
    async with writing_to(path) as writer:
        longest = 0.0
        for number in range(1000):
            before = time.perf_counter()
            writer.put(Entry(line(number)))
            longest = max(longest, time.perf_counter() - before)
        await asyncio.sleep(0.05)
    assert time.perf_counter() - started < 1.0
    assert longest < 0.1
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.endswith(f"audit lines for {path} were not written")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.read(reader, 65536)
    writer._thread.join(5)
    os.close(reader)
    assert not writer._thread.is_alive(), "the thread goes on when the disk is back"
