"""Runs a target over many inputs, and says what is wrong: exceptions, hangs, memory that one input takes or leaves."""

from __future__ import annotations

import base64
import random
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import psutil  # type: ignore[import-untyped]

from tests.fuzz.mutation import mutate
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS

HANG_SECONDS: Final = 2.0
"""Of processor time, so that a busy machine is no finding. Inputs have 16 KiB at most, and take milliseconds."""

MEASURED_EACH: Final = 500
"""Every so many-th input's peak memory is traced, which is slow."""

FREE_MEMORY: Final = 2 * 1024 * 1024
"""Bytes beside the input that one may take …"""

FREE_MEMORY_DATA_SETS: Final = 20 * 1024 * 1024
"""… and for data sets, which may inflate to 16 MiB whatever their ratio is."""

GROWTH: Final = 32 * 1024 * 1024
"""Bytes by which the process may have grown at the end: caches that are bounded, and fragments."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that did something wrong."""

    target: str
    what: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.target}: {self.what}; the input in base64: {base64.b64encode(self.data).decode()}"


def check(name: str, data: bytes, *, traced: bool = False) -> Finding | None:
    """Run a target on one input."""
    target = TARGETS[name]
    if traced:
        tracemalloc.start()
    started = time.process_time()
    try:
        target(data)
    except Exception as error:
        return Finding(name, f"{type(error).__name__}: {error}", data)
    finally:
        seconds = time.process_time() - started
        peak = tracemalloc.get_traced_memory()[1] if traced else 0
        tracemalloc.stop()
    if seconds > HANG_SECONDS:
        return Finding(name, f"took {seconds:.1f} s", data)
    free = FREE_MEMORY_DATA_SETS if name in ("data-sets", "peeks") else FREE_MEMORY
    if peak > len(data) + free:
        return Finding(name, f"took {peak} bytes of memory", data)
    return None


def fuzz(name: str, count: int, seed: int) -> Iterator[Finding]:
    """Run a target on its seeds and on `count` inputs made of them, the same ones for the same `seed`."""
    source = random.Random(f"{name} {seed}")
    corpus = seeds(name)
    for data in corpus:
        if finding := check(name, data):
            yield finding
    process = psutil.Process()
    before = 0
    for number in range(count):
        if number == count // 10:
            before = process.memory_info().rss
        if finding := check(name, mutate(source, corpus), traced=number % MEASURED_EACH == 0):
            yield finding
    grown = process.memory_info().rss - before
    if grown > GROWTH:
        yield Finding(name, f"the process has grown by {grown} bytes over {count} inputs", b"")
