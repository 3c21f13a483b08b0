"""An instance as a file to be read at any offset: what arrives is whole in it, and nothing is left of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.archive.archives import Archives
from proxy.archive.retrieval.delivery import Cached
from proxy.archive.retrieval.target import Target
from proxy.config.checking import parse_config
from proxy.dicomweb import localfile
from proxy.dicomweb.errors import Unavailable
from proxy.dicomweb.localfile import LocalFile, local_file
from tests.faultpeer import ScriptedArchive, Stored, small_study
from tests.proxy.running import settings

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def study() -> list[Stored]:
    """One instance of 128 KB."""
    return small_study(1, 1, side=256)


@pytest.fixture
async def archive(study: list[Stored]) -> AsyncIterator[ScriptedArchive]:
    """An archive that has it."""
    async with ScriptedArchive(study) as archive:
        yield archive


@pytest.fixture
async def archives(archive: ScriptedArchive, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Archives]:
    """The proxy's archives, without a cache unless asked for."""
    more: dict[str, object] = {"storagePath": str(tmp_path / "storage"), **getattr(request, "param", {})}
    archives = Archives(parse_config(settings(archive.address, use_cget=True, **more)))
    await archives.start()
    yield archives
    await archives.close(1)


def target_of(stored: Stored) -> Target:
    sample = stored.sample
    return Target(sample.study_uid, sample.series_uid, sample.sop_instance_uid)


def data_set(local: LocalFile) -> bytes:
    """Return what follows the header, read at its offset."""
    assert os.fstat(local.file.fileno()).st_size == local.size
    return os.pread(local.file.fileno(), local.size, local.header_size)


def spooled(folder: Path) -> list[Path]:
    return [path for path in (folder / "storage" / "spool").rglob("*") if path.is_file()]


async def test_a_small_instance_stays_in_memory(archives: Archives, study: list[Stored], tmp_path: Path) -> None:
    async with archives.retrieve(target_of(study[0])) as delivery, local_file(delivery, archives) as local:
        assert local.file.read(132)[-4:] == b"DICM"
        assert data_set(local) == study[0].whole
        assert local.info.transfer_syntax == study[0].sample.transfer_syntax_uid
        assert local.etag is None
        assert localfile._memory.used == local.size
        assert spooled(tmp_path) == []
    assert localfile._memory.used == 0
    assert local.file.closed


async def test_a_large_instance_goes_to_the_spool(
    archives: Archives, study: list[Stored], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readable for nobody else, and removed afterwards."""
    monkeypatch.setattr(localfile, "SMALL", 64 * 1024)
    async with archives.retrieve(target_of(study[0])) as delivery, local_file(delivery, archives) as local:
        assert data_set(local) == study[0].whole
        assert localfile._memory.used == 0
        assert {path.stat().st_mode & 0o777 for path in spooled(tmp_path)} == {0o600}
    assert spooled(tmp_path) == []


async def test_a_spool_without_room_is_unavailable(
    archives: Archives, study: list[Stored], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localfile, "SMALL", 64 * 1024)
    folder = archives.depot.new_folder()
    assert folder is not None
    folder._parent.limit = 100
    with pytest.raises(Unavailable, match="no room"):
        async with archives.retrieve(target_of(study[0])) as delivery, local_file(delivery, archives):
            pass
    assert spooled(tmp_path) == []


@pytest.mark.parametrize("archives", [{"storagePath": "/proc/nowhere"}], indirect=True)
async def test_without_a_storage_memory_is_bounded(
    archives: Archives, study: list[Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localfile, "SMALL", 1024)
    async with archives.retrieve(target_of(study[0])) as delivery, local_file(delivery, archives) as local:
        assert data_set(local) == study[0].whole
    monkeypatch.setattr(localfile._memory, "limit", 100_000)
    with pytest.raises(Unavailable, match="too many large instances"):
        async with archives.retrieve(target_of(study[0])) as delivery, local_file(delivery, archives):
            pass
    assert localfile._memory.used == 0


@pytest.mark.parametrize("archives", [{"enableCache": True}], indirect=True)
async def test_what_the_cache_has_is_its_own_file(archives: Archives, study: list[Stored]) -> None:
    target = target_of(study[0])
    async with archives.retrieve(target) as delivery, local_file(delivery, archives):
        pass
    cache = archives.depot.cache
    assert cache is not None and target.series is not None and target.instance is not None
    async with asyncio.timeout(5):
        while cache.instance(target.study, target.series, target.instance) is None:
            await asyncio.sleep(0.01)
    async with archives.retrieve(target) as delivery, local_file(delivery, archives) as local:
        assert isinstance(delivery, Cached)
        assert data_set(local) == study[0].whole
        assert local.etag == delivery.instances[0].etag
        assert localfile._memory.used == 0
