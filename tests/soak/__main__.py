"""`python -m tests.soak`: load the proxy for a while, and print what was seen."""

from __future__ import annotations

import argparse
import signal
import sys

from tests.peers.process import PeerFailedError, find_program
from tests.soak.report import checks, text
from tests.soak.run import Settings, soak


def arguments() -> Settings:
    """Read the command line."""
    default = Settings()
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--requests", type=int, default=default.requests, help=f"how many (default {default.requests})")
    length.add_argument("--minutes", type=float, help="for how long, in place of a number of requests")
    parser.add_argument("--seed", type=int, default=default.seed, help="requests and faults are the same for the same")
    parser.add_argument("--clients", type=int, default=default.clients, help=f"at once (default {default.clients})")
    parser.add_argument("--swap", action="store_true", help="ask Orthanc with C-GET, and the other with C-MOVE")
    given = parser.parse_args()
    seconds = None if given.minutes is None else 60 * given.minutes
    return Settings(given.requests, seconds, given.seed, given.clients, given.swap)


def main() -> int:
    """Return the exit code: 0 when all was as it has to be, 1 when not, 2 when it could not be run."""
    settings = arguments()
    # So that all processes are ended then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not find_program("Orthanc"):
        print("not installed: Orthanc", file=sys.stderr)
        return 2
    try:
        result = soak(settings)
    except PeerFailedError as error:
        print(error, file=sys.stderr)
        return 2
    print(text(result))
    return 0 if all(row.ok is not False for row in checks(result)) else 1


if __name__ == "__main__":
    sys.exit(main())
