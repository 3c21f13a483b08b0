"""`python -m tests.benchmarks [name …]`: run the benchmarks and print one table."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import cache, frames, metadata, qido, sharing, upload, wado
from tests.benchmarks.client import BenchmarkError
from tests.benchmarks.lab import Lab
from tests.benchmarks.report import Row, table, write_json
from tests.peers.process import PeerFailedError, find_program

BENCHMARKS: dict[str, Callable[[Lab], list[Row]]] = {
    "wado_cget": wado.wado_cget,
    "wado_cmove": wado.wado_cmove,
    "wado_nagle": wado.wado_nagle,
    "wado_cached_write": cache.wado_cached_write,
    "memory": wado.memory,
    "instances_cold": cache.instances_cold,
    "instances_warm": cache.instances_warm,
    "same_series": sharing.same_series,
    "different_series": sharing.different_series,
    "slow_beside_fast": sharing.slow_beside_fast,
    "qido_latency": qido.qido_latency,
    "qido_rate": qido.qido_rate,
    "qido_nagle": qido.qido_nagle,
    "qido_page": qido.qido_page,
    "frames_warm": frames.frames_warm,
    "metadata_cold": metadata.metadata_cold,
    "metadata_warm": metadata.metadata_warm,
    "metadata_encoder": metadata.metadata_encoder,
    "upload": upload.upload,
}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"which to run: {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to a file")
    parser.add_argument(
        "--stand-in",
        action="store_true",
        help="measure Orthanc's DICOMweb plugin in place of the proxy, to try the benchmarks themselves",
    )
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    return given


def main() -> int:
    """Return the exit code: 0 when every bar is held, 1 when not, 2 when something could not be measured."""
    given = arguments()
    # So that the archives are ended and the ramdisk is emptied then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    missing = [program for program in ("Orthanc", "getscu", "findscu") if not find_program(program)]
    if missing:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    failed = False
    with Lab(stand_in=given.stand_in) as lab:
        for name in given.names or BENCHMARKS:
            print(f"measuring {name}", file=sys.stderr)
            try:
                rows += BENCHMARKS[name](lab)
            except (BenchmarkError, PeerFailedError, AssertionError, OSError) as error:
                print(f"{name} failed: {error}", file=sys.stderr)
                failed = True
    server = "Orthanc's DICOMweb plugin, not the proxy" if given.stand_in else "proxy"
    print(f"Measured: {server}")
    print(table(rows))
    if given.json:
        write_json(given.json, rows, server)
    if failed:
        return 2
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
