"""The worker processes: bounded in number, time and queue; whatever happens to one hits its own job alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from proxy.dataset.part10 import file_header
from proxy.render import jobs, pool
from proxy.render.errors import BusyError, NotPossibleError, TooSlowError, WorkerFailedError
from proxy.render.jobs import Job, Picture
from proxy.render.pool import Workers
from tests.proxy.dicomfiles import DATA, ITEM, UNDEFINED, long

pytestmark = pytest.mark.usefixtures("nothing_left")

PICTURE = jobs.picture(Picture())


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    """Two at most."""
    workers = Workers(2)
    yield workers
    await workers.close()
    assert processes() == []


@pytest.fixture
def sample() -> Iterator[int]:
    """An open instance."""
    with next(DATA.rglob("CT_small.dcm")).open("rb") as file:
        yield file.fileno()


@pytest.fixture
def unreadable() -> Iterator[int]:
    """A file that blocks whoever reads it."""
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def processes() -> list[psutil.Process]:
    """Return the workers that there are."""
    children = psutil.Process().children()
    return [child for child in children if "proxy.render.worker" in child.cmdline()]


async def test_none_is_started_before_there_is_a_job(workers: Workers, sample: int) -> None:
    assert processes() == []
    await workers.run(PICTURE, sample)
    assert len(processes()) == 1


async def test_jobs_share_the_workers(workers: Workers, sample: int) -> None:
    """The same open file for all: none moves the position of another's."""
    results = await asyncio.gather(*(workers.run(PICTURE, sample) for _ in range(12)))
    assert len({result.content for result in results}) == 1
    assert len(processes()) == 2
    assert os.lseek(sample, 0, os.SEEK_CUR) == 0


async def test_a_job_has_its_time(workers: Workers, unreadable: int, sample: int) -> None:
    """Its process is ended, and another takes the next job."""
    await workers.run(PICTURE, sample)
    (before,) = processes()
    with pytest.raises(TooSlowError):
        await workers.run(Job("picture", PICTURE.arguments, seconds=0.2), unreadable)
    assert (await workers.run(PICTURE, sample)).content
    assert before not in processes()


async def test_a_worker_that_dies_fails_its_job_alone(workers: Workers, unreadable: int, sample: int) -> None:
    await workers.run(PICTURE, sample)
    (victim,) = processes()
    failing = asyncio.create_task(workers.run(PICTURE, unreadable))
    await asyncio.sleep(0.05)
    running = asyncio.create_task(workers.run(PICTURE, sample))
    victim.send_signal(signal.SIGKILL)
    with pytest.raises(WorkerFailedError):
        await failing
    assert (await running).content
    assert (await workers.run(PICTURE, sample)).content


async def test_a_worker_that_died_idle_is_replaced(workers: Workers, sample: int) -> None:
    await workers.run(PICTURE, sample)
    (victim,) = processes()
    victim.send_signal(signal.SIGKILL)
    await asyncio.sleep(0.1)
    assert (await workers.run(PICTURE, sample)).content


async def test_what_waits_is_bounded(
    workers: Workers, unreadable: int, sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_WAITING", 3)
    slow = Job("picture", PICTURE.arguments, seconds=2)
    running = [asyncio.create_task(workers.run(slow, unreadable)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(BusyError):
        await workers.run(PICTURE, sample)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_waiting_is_bounded(
    workers: Workers, unreadable: int, sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "WAIT_SECONDS", 0.05)
    running = [asyncio.create_task(workers.run(PICTURE, unreadable)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(BusyError):
        await workers.run(PICTURE, sample)
    await workers.close()
    for task in running:
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_caller_that_leaves_costs_no_worker(workers: Workers, sample: int) -> None:
    await workers.run(PICTURE, sample)
    before = processes()
    leaving = asyncio.create_task(workers.run(PICTURE, sample))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert (await workers.run(PICTURE, sample)).content
    assert set(before) <= set(processes())


async def test_an_idle_worker_ends(workers: Workers, sample: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0.05)
    await workers.run(PICTURE, sample)
    async with asyncio.timeout(5):
        while processes():
            await asyncio.sleep(0.02)
    assert (await workers.run(PICTURE, sample)).content


async def test_a_worker_is_replaced_after_some_jobs(
    workers: Workers, sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "JOBS_FOR_EACH", 2)
    for _ in range(5):
        await workers.run(PICTURE, sample)
        await asyncio.sleep(0.05)
    assert len(processes()) == 1


async def test_what_is_no_instance(workers: Workers, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It fails, the worker goes on, and the log says where without what was read."""
    path = tmp_path / "nothing"
    path.write_bytes(b"Doe^John" * 1000)
    with path.open("rb") as file, pytest.raises((WorkerFailedError, NotPossibleError)):
        await workers.run(PICTURE, file.fileno())
    with next(DATA.rglob("MR_truncated.dcm")).open("rb") as file, pytest.raises(WorkerFailedError):
        await workers.run(PICTURE, file.fileno())
    assert len(processes()) == 1
    assert "at a job (picture): ValueError at" in caplog.text
    assert "Doe" not in caplog.text


async def test_a_deflate_bomb(workers: Workers, tmp_path: Path) -> None:
    """1000:1, refused at once by all that read instances, and nothing of it stays."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = b"".join(deflater.compress(bytes(1024**2)) for _ in range(1024)) + deflater.flush()
    header = file_header("1.2.3", "1.2.4", "1.2.840.10008.1.2.1.99", implementation_class_uid="1.2.5")
    path, target = tmp_path / "bomb", tmp_path / "target"
    path.write_bytes(header + data)
    target.touch()
    started = time.monotonic()
    with path.open("rb") as file, target.open("r+b") as made:
        for job in (PICTURE, jobs.frame(1), jobs.report(), jobs.document()):
            with pytest.raises(NotPossibleError, match="is larger than"):
                await workers.run(job, file.fileno())
        with pytest.raises(NotPossibleError, match="is larger than"):
            await workers.run(jobs.instance(), file.fileno(), made.fileno())
    assert time.monotonic() - started < 20, "five times, the start of a worker among them"
    assert processes()[0].memory_info().rss < 250 * 1024**2


async def test_sequences_without_an_end(workers: Workers, sample: int, tmp_path: Path) -> None:
    """5,000 within each other: the worker survives."""
    header = file_header("1.2.3", "1.2.4", "1.2.840.10008.1.2.1", implementation_class_uid="1.2.5")
    path = tmp_path / "nested"
    path.write_bytes(header + (long(0x0040A730, "SQ", b"", UNDEFINED) + ITEM) * 5000)
    for job in (PICTURE, jobs.report()):
        with path.open("rb") as file, pytest.raises(WorkerFailedError):
            await workers.run(job, file.fileno())
    assert (await workers.run(PICTURE, sample)).content
    assert len(processes()) == 1


async def test_a_worker_has_a_bound_on_its_memory(workers: Workers, sample: int) -> None:
    await workers.run(PICTURE, sample)
    (worker,) = processes()
    assert worker.rlimit(psutil.RLIMIT_AS) == (3 * 1024**3, 3 * 1024**3)
    assert worker.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert worker.memory_info().rss < 150 * 1024**2


def blocked(folder: Path, *modules: str) -> str:
    """Make a folder in which modules are that cannot be imported, as where they are not installed."""
    for name in modules:
        (folder / f"{name}.py").write_text("raise ImportError('not installed')\n")
    return str(folder)


async def test_without_the_extra_it_is_named(
    workers: Workers, sample: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(blocked(tmp_path, "numpy", "PIL", "pylibjpeg", "jpeg_ls"))
    for job in (PICTURE, jobs.frame(1)):
        with pytest.raises(NotPossibleError, match=r"extra 'render': pip install dicomweb-proxy\[render\]"):
            await workers.run(job, sample)


async def test_without_the_extra_documents_and_native_instances_are_there(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(blocked(tmp_path, "numpy", "PIL", "pylibjpeg", "jpeg_ls"))
    with next(DATA.rglob("test-SR.dcm")).open("rb") as file:
        assert b"<h1>" in (await workers.run(jobs.report(), file.fileno())).content
    target = tmp_path / "target"
    target.touch()
    with next(DATA.rglob("MR_small_implicit.dcm")).open("rb") as file, target.open("r+b") as made:
        result = await workers.run(jobs.instance(), file.fileno(), made.fileno())
        assert result.values["size"] == target.stat().st_size > 8192
    target.write_bytes(b"")
    with (
        next(DATA.rglob("MR_small_RLE.dcm")).open("rb") as file,
        target.open("r+b") as made,
        pytest.raises(NotPossibleError, match="extra 'render'"),
    ):
        await workers.run(jobs.instance(), file.fileno(), made.fileno())


def test_the_server_starts_without_the_extra(tmp_path: Path) -> None:
    path = blocked(tmp_path, "numpy", "PIL", "pylibjpeg", "jpeg_ls")
    code = f"import sys; sys.path.insert(0, {path!r}); import proxy.cli, proxy.app, proxy.service"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
