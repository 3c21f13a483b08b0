"""Fixtures that any test may use: the sample files, and archives that are loaded with them.

The archives live for the whole session. A test may make itself known to one (`know`), and must not store,
delete or kill: a test that does starts an archive of its own.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.corpus import Corpus, mixed, write
from tests.peers.dcmtk import Dcmqrscp, Scu, Storescp, dcmqrscp_takes
from tests.peers.orthanc import Orthanc
from tests.peers.process import Process, log_sizes
from tests.peers.pynetdicom_peer import PynetdicomScp

_log_sizes_before = pytest.StashKey[dict[Process, int]]()


def pytest_configure() -> None:
    """Let SIGTERM end the session as Ctrl-C does, so that the peers are ended too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remember how long the peers' logs are before the test."""
    item.stash[_log_sizes_before] = log_sizes()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show, with a failure, what the peers printed during the test."""
    report = yield
    if report.failed:
        before = item.stash.get(_log_sizes_before, {})
        for process, size in log_sizes().items():
            if size > before.get(process, 0):
                report.sections.append((f"log of {process.name}", process.log(before.get(process, 0))))
    return report


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The mixed set of `tests.corpus`: 30 instances of many kinds, in a folder."""
    return write(tmp_path_factory.mktemp("samples"), mixed())


@pytest.fixture(scope="session")
def orthanc(samples: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Orthanc with the mixed set. It sends byte for byte what was stored, unless it must transcode."""
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as archive:
        archive.upload(samples.paths())
        yield archive


@pytest.fixture(scope="session")
def orthanc_dicomweb(samples: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Orthanc with the mixed set and its own DICOMweb server, to compare answers with."""
    with Orthanc(tmp_path_factory.mktemp("orthanc-dicomweb"), aet="ORTHANCWEB", dicomweb=True) as archive:
        archive.upload(samples.paths())
        yield archive


@pytest.fixture(scope="session")
def dcmqrscp(samples: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dcmqrscp]:
    """DCMTK's `dcmqrscp` with what it takes of the mixed set: no private classes, nothing compressed."""
    with Dcmqrscp(tmp_path_factory.mktemp("dcmqrscp")) as archive:
        files = [samples.path(sample) for sample in samples.samples if dcmqrscp_takes(sample)]
        Scu(archive.address).store(files, "--required").succeeded()
        yield archive


@pytest.fixture(scope="session")
def pynetdicom_archive(samples: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PynetdicomScp]:
    """An archive made with pynetdicom that serves the mixed set."""
    with PynetdicomScp(tmp_path_factory.mktemp("pynetdicom"), serve=samples.folder) as archive:
        yield archive


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[Storescp]:
    """DCMTK's `storescp`, empty."""
    with Storescp(tmp_path) as receiver:
        yield receiver
