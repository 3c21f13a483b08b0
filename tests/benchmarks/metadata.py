"""Metadata: of a series of 250 CT images, not yet retrieved and out of the cache; and the encoder beside pydicom."""

from __future__ import annotations

import json
import timeit
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file

from proxy.dataset.part10 import read_header
from proxy.dataset.skim import Skim
from proxy.dicomweb.dicomjson import encode
from tests import corpus
from tests.benchmarks.cache import fetch_series, warm_up
from tests.benchmarks.client import BenchmarkError, KeptOpen, Target
from tests.benchmarks.lab import Lab, median, series_path
from tests.benchmarks.report import Row, share, times
from tests.benchmarks.wado import CT_INSTANCES, ROUNDS
from tests.peers.orthanc import Orthanc

FASTER = 5
"""How many times as fast as pydicom the encoder has to be."""


def read_series(target: Target, series: int) -> float:
    """Get the metadata of a series of the CT study; returns seconds. BenchmarkError when it is not all there."""
    with KeptOpen(target) as client:
        body, taken = client.get(f"{series_path(series)}/metadata")
    found = {model["00080018"]["Value"][0] for model in json.loads(body)}
    if len(found) != CT_INSTANCES:
        raise BenchmarkError(f"metadata of {len(found)} instances in place of {CT_INSTANCES}")
    return taken


def metadata_cold(lab: Lab) -> list[Row]:
    """The images have to come from the archive first: beside the images themselves by WADO-RS."""
    archive = lab.archive()
    taken, references = [], []
    for number in range(2 * ROUNDS):
        # In turns, each by a new proxy: the first large retrieval of a process takes longer than others.
        with lab.server(archive, use_cget=True, enableCache=True) as server:
            warm_up(server)
            if number % 2:
                taken.append(read_series(server.target, 1))
            else:
                references.append(fetch_series(server, 1))
    what = f"metadata of {CT_INSTANCES} CT images, cold, beside WADO-RS"
    return [times(what, median(taken), "s", median(references), 1.5)]


def metadata_warm(lab: Lab) -> list[Row]:
    """Out of the cache, beside Orthanc's own DICOMweb server with the same images."""
    folder = lab.folder / "metadata"
    folder.mkdir()
    with (
        Orthanc(folder, aet="METADATA", dicomweb=True, ramdisk=True) as reference,
        lab.server(lab.archive(), use_cget=True, enableCache=True) as server,
    ):
        reference.upload(corpus.ct_study(series=1))
        theirs = Target.parse(reference.dicomweb_url)
        pairs = [(read_series(server.target, 1), read_series(theirs, 1)) for _ in range(ROUNDS + 1)]
    measured, of_orthanc = (median(column) for column in zip(*pairs[1:], strict=True))
    what = f"metadata of {CT_INSTANCES} CT images, warm, beside Orthanc's"
    return [times(what, measured, "s", of_orthanc, 1)]


def metadata_encoder(lab: Lab) -> list[Row]:
    """From the bytes of an instance to JSON text, without bulk data: images made here, and one of a real device."""
    small = get_testdata_file("CT_small.dcm")
    assert isinstance(small, str)
    files = {"a sample image": next(corpus.ct_study(1, 1)), "CT_small.dcm": Path(small).read_bytes()}
    rows = []
    for name, file in files.items():
        ours, theirs = (_rate(way, file) for way in (_our_way, _pydicom_way))
        rows.append(share(f"instances as JSON, {name}, beside pydicom", ours, "/s", theirs, FASTER))
    return rows


def _rate(way: Callable[[bytes], str], file: bytes, number: int = 50) -> float:
    return number / min(timeit.repeat(lambda: way(file), number=number, repeat=5))


def _our_way(file: bytes) -> str:
    meta = read_header(file[:4096])
    skim = Skim(meta.transfer_syntax)
    skim.feed(memoryview(file)[meta.data_set_offset :])
    return encode(skim.elements(), bulk_data=lambda path, _: "http://host/bulkdata" if path in skim.bulk else None)


def _pydicom_way(file: bytes) -> str:
    data_set = pydicom.dcmread(BytesIO(file))
    return data_set.to_json(1024, lambda _: "http://host/bulkdata")
