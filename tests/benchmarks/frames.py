"""Frames as a viewer asks for them: those of a series, one by one, and those of one large multi-frame image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from tests import corpus
from tests.benchmarks.client import BenchmarkError, Target
from tests.benchmarks.fetch import Fetched, fetch
from tests.benchmarks.lab import Lab, MoveCount, instance_paths, median, series_path, series_uid
from tests.benchmarks.report import Row, exactly, share
from tests.benchmarks.wado import CT_INSTANCES, PIXEL_BYTES, ROUNDS
from tests.peers.orthanc import Orthanc

CLIENTS = 6
ANY_SYNTAX = "multipart/related; type=application/octet-stream; transfer-syntax=*"
MULTI_FRAME_STUDY = 900
# The plugin reads the whole image for each frame.
FRAMES = 50
SIDE = 256


def frames_warm(lab: Lab) -> list[Row]:
    """The 250 frames of a cached series, and 50 of a cached image, beside Orthanc's own DICOMweb plugin."""
    archive = lab.archive()
    image = _multi_frame()
    archive.upload([image])
    with (
        _plugin(lab, [*corpus.ct_study(series=1), image]) as reference,
        lab.server(archive, use_cget=False, enableCache=True, useFetchLevel="SERIES") as server,
    ):
        path = _image_path()
        for warmed in (series_path(1), path):
            fetch(server.target, [warmed])
        count = MoveCount(archive)
        of_series = [f"{instance}/frames/1" for instance in instance_paths(1, CT_INSTANCES)]
        of_image = [f"{path}/frames/{number}" for number in range(1, FRAMES + 1)]
        return [
            _beside(f"frames of {CT_INSTANCES} cached images", server.target, reference, of_series, PIXEL_BYTES),
            _beside(f"frames of one cached image of {FRAMES}", server.target, reference, of_image, SIDE * SIDE * 2),
            exactly("C-MOVEs for frames that are in the cache", [count.so_far()], 0),
        ]


def _multi_frame() -> bytes:
    """An image of 50 frames, 6.5 MB."""
    data_set = corpus.header(corpus.CT_STUDY, MULTI_FRAME_STUDY, 1, 1, corpus.MULTI_FRAME_WORD)
    pixels = np.random.default_rng(1).integers(0, 4096, SIDE * SIDE * FRAMES, dtype=np.uint16)
    corpus.add_pixels(data_set, SIDE, pixels.tobytes())
    data_set.NumberOfFrames = FRAMES
    return corpus.encode(data_set)


def _image_path() -> str:
    study = corpus.uid(corpus.CT_STUDY, MULTI_FRAME_STUDY)
    return f"{series_path(1, study)}/instances/{series_uid(1, study)}.1"


@contextlib.contextmanager
def _plugin(lab: Lab, files: list[bytes]) -> Iterator[Target]:
    folder = lab.folder / "PLUGIN"
    folder.mkdir(exist_ok=True)
    with Orthanc(folder, aet="PLUGIN", ramdisk=True, dicomweb=True) as orthanc:
        orthanc.upload(files)
        yield Target.parse(orthanc.dicomweb_url)


def _beside(what: str, target: Target, reference: Target, paths: list[str], size: int) -> Row:
    rates = [(_fetch(target, paths, size).rate, _fetch(reference, paths, size).rate) for _ in range(ROUNDS)]
    measured, of_plugin = (median(column) for column in zip(*rates, strict=True))
    return share(f"{what}, {CLIENTS} clients, beside Orthanc's plugin", measured, "requests/s", of_plugin, 1)


def _fetch(target: Target, paths: list[str], size: int) -> Fetched:
    fetched = fetch(target, paths, clients=CLIENTS, accept=ANY_SYNTAX)
    if min(fetched.sizes) < size:
        raise BenchmarkError(f"a frame of {min(fetched.sizes)} bytes")
    return fetched
