"""Fixtures of the tests of `proxy`: the real archives, each by C-MOVE and by C-GET."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from tests.corpus import Corpus, Sample
from tests.dul.conftest import nothing_left  # noqa: F401 - a fixture
from tests.peers.dcmtk import Dcmqrscp, dcmqrscp_takes
from tests.peers.orthanc import Orthanc
from tests.peers.process import Address, free_port
from tests.peers.pynetdicom_peer import PynetdicomScp
from tests.proxy.running import PROXY_AET, Proxy, proxy_for

ARCHIVES = ("orthanc", "dcmqrscp", "pynetdicom_archive")
RealArchive = Orthanc | Dcmqrscp | PynetdicomScp


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`storagePath` is relative by default: nothing is to be left where the tests are started."""
    monkeypatch.chdir(tmp_path)


_DESTINATION = Address(PROXY_AET, free_port())


@dataclass(frozen=True, slots=True)
class Source:
    """A real archive with the sample files, and how it is asked for them."""

    archive: RealArchive
    use_cget: bool
    samples: Corpus

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.archive.address

    @property
    def destination_port(self) -> int:
        """The port of the move destination that it knows."""
        return _DESTINATION.port

    @property
    def held(self) -> list[Sample]:
        """The samples that it has."""
        if isinstance(self.archive, Dcmqrscp):
            return [sample for sample in self.samples.samples if dcmqrscp_takes(sample)]
        return list(self.samples.samples)

    def keeps(self, sample: Sample) -> bool:
        """Tell whether it sends a sample as it was stored: `dcmqrscp` prefers Explicit VR Little Endian."""
        return not isinstance(self.archive, Dcmqrscp) or sample.transfer_syntax_uid == ExplicitVRLittleEndian


def destination_of(archive: RealArchive) -> Address:
    """Where an archive sends what the proxy asks for by C-MOVE; makes it known there."""
    # Not all can be told without a restart, so the proxies of all tests take turns on one port.
    if isinstance(archive, Orthanc) or archive.destinations.get(PROXY_AET) != _DESTINATION:
        archive.know(_DESTINATION)
    return _DESTINATION


@pytest.fixture(params=[f"{archive}-{how}" for archive in ARCHIVES for how in ("move", "get")])
def source(request: pytest.FixtureRequest, samples: Corpus) -> Source:
    """Each of the real archives, by C-MOVE and by C-GET."""
    name, _, how = request.param.partition("-")
    archive: RealArchive = request.getfixturevalue(name)
    destination_of(archive)
    return Source(archive, how == "get", samples)


@pytest.fixture
async def proxy(source: Source) -> AsyncIterator[Proxy]:
    """The proxy in front of `source`."""
    async with proxy_for(source.address, use_cget=source.use_cget, dimse_port=_DESTINATION.port) as running:
        yield running


@pytest.fixture(params=["move", "get"])
def use_cget(request: pytest.FixtureRequest) -> bool:
    """By C-MOVE and by C-GET."""
    return bool(request.param == "get")
