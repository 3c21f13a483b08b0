"""`python -m tests.fuzz [target …]`: many damaged inputs to everything that reads bytes from strangers.

With `--coverage`, and atheris installed, inputs are led by the code that they reach, one target at a time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.fuzz.running import Finding, fuzz
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS

BATCH = 100_000


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"which of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="inputs in all (default 1,000,000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other inputs (default 0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one for each core")
    parser.add_argument("--coverage", action="store_true", help="let atheris make the inputs; one target only")
    parser.add_argument("--corpus", type=Path, help="with --coverage: a folder where found inputs are kept")
    given = parser.parse_args()
    unknown = [name for name in given.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no target is called {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if given.coverage and len(given.targets) != 1:
        parser.error("--coverage needs the name of one target")
    return given


def main() -> int:
    """Return the exit code: 0 when nothing was found, 1 when something was."""
    given = arguments()
    if given.coverage:
        return _led_by_coverage(given.targets[0], given.inputs, given.corpus)
    names = given.targets or list(TARGETS)
    batches = max(1, given.inputs // len(names) // BATCH)
    size = given.inputs // len(names) // batches
    started = time.monotonic()
    total, findings = 0, 0
    with ProcessPoolExecutor(given.processes) as pool:
        jobs = [
            pool.submit(_batch, name, size, given.seed * 1_000_000 + number)
            for number in range(batches)
            for name in names
        ]
        for job in as_completed(jobs):
            name, found = job.result()
            total += size
            findings += len(found)
            for each in found:
                print(each, flush=True)
            print(f"{total} inputs, {findings} findings, {time.monotonic() - started:.0f} s ({name})", file=sys.stderr)
    print(f"{total} inputs to {', '.join(names)}: {findings} findings")
    return 1 if findings else 0


def _batch(name: str, count: int, seed: int) -> tuple[str, list[Finding]]:
    found = []
    for finding in fuzz(name, count, seed):
        found.append(finding)
        if len(found) >= 20:
            break
    return name, found


def _led_by_coverage(name: str, count: int, folder: Path | None) -> int:
    import atheris

    with atheris.instrument_imports(include=["dul", "proxy"]):
        for module in [each for each in sys.modules if each.split(".")[0] in ("dul", "proxy")]:
            del sys.modules[module]
        del sys.modules["tests.fuzz.targets"]
        from tests.fuzz.targets import TARGETS as INSTRUMENTED
    corpus = folder or Path("fuzz-corpus") / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup(
        [sys.argv[0], f"-runs={count}", "-max_len=8192", "-rss_limit_mb=1024", str(corpus)], INSTRUMENTED[name]
    )
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
