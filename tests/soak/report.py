"""What a soak found, as tables of plain text, and whether it was as it has to be."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

from tests.benchmarks.lab import MEGABYTE, percentile
from tests.benchmarks.report import Row, aligned, at_most, exactly, table
from tests.soak.client import FAILED, End, Outcome
from tests.soak.run import Result

SLOPE_LIMIT: Final = 1.0
"""Megabytes that the proxy may grow for 1,000 requests."""

SLOPE_REQUESTS: Final = 3000
"""Requests from which on a slope says something."""

WARM_UP_SHARE: Final = 0.2
"""The share of the requests in which memory may still grow: pools, caches and tables fill."""

THREADS_LIMIT: Final = 16
"""Threads beyond those at the start: those of the pools, which are started when there is work and stay."""

AFTERMATH_SECONDS: Final = 300.0
"""How long the proxy may answer with what it has of a study after a retrieval of it has failed."""

SHOWN: Final = 12
"""Lines of each kind that are shown of what went wrong."""


def is_excused(outcome: Outcome, result: Result) -> bool:
    """Tell whether a failure comes from an archive's fault."""
    if any(fault.touches(outcome.begun, outcome.ended) for fault in result.trouble.faults):
        return True
    return outcome.end is End.PARTIAL and any(
        other.end in FAILED
        and other.planned.study == outcome.planned.study
        and 0 <= outcome.begun - other.ended <= AFTERMATH_SECONDS
        for other in result.load.outcomes
    )


def wrong(result: Result) -> list[Outcome]:
    """Return the requests that had a wrong answer, or none."""
    return [outcome for outcome in result.load.outcomes if outcome.end is End.WRONG]


def unexcused(result: Result) -> list[Outcome]:
    """Return the requests that failed though no archive had a fault."""
    return [each for each in result.load.outcomes if each.end in FAILED and not is_excused(each, result)]


def checks(result: Result) -> list[Row]:
    """Hold the result against what it has to be."""
    before, after = result.before, result.after
    threads = after.vitals.threads - before.vitals.threads
    idle = exactly("associations in the end", [after.associations], 0)
    kept = Row("associations in the end", after.associations, "")
    return [
        exactly("wrong answers", [len(wrong(result))], 0),
        exactly("failures without a fault", [len(unexcused(result))], 0),
        exactly("archives not recovered, purges failed", [len(result.trouble.problems)], 0),
        exactly("entries of the log on what was not foreseen", [len(result.unforeseen)], 0),
        idle if result.settings.until_idle else kept,
        at_most("open files in the end, beyond the start", after.other_files - before.other_files, "", 0),
        at_most("threads in the end, beyond the start", threads, "", THREADS_LIMIT),
        exactly("files in the spool in the end", [after.spooled], 0),
        _slope(result),
        exactly("exit code after SIGTERM", [-1 if result.exit_code is None else result.exit_code], 0),
    ]


def _slope(result: Result) -> Row:
    what, unit = "growth of memory for 1,000 requests", "MB"
    settled = [(done, used) for done, used in result.load.memory if done >= WARM_UP_SHARE * result.load.done]
    if len(settled) < 2:
        return Row(what, 0.0, unit)
    slope, _ = statistics.linear_regression(*zip(*settled, strict=True))
    growth = slope * 1000 / MEGABYTE
    return at_most(what, growth, unit, SLOPE_LIMIT) if result.load.done >= SLOPE_REQUESTS else Row(what, growth, unit)


def text(result: Result) -> str:
    """Return all that a person wants to see."""
    parts = [_kinds(result), _faults(result), table(checks(result)), *_complaints(result)]
    return "\n\n".join(part for part in parts if part)


def _kinds(result: Result) -> str:
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in result.load.outcomes:
        by_kind[outcome.planned.kind].append(outcome)
    lines = [("request", "number", *(end.value for end in End), "from cache", "p50 ms", "p99 ms")]
    lines += [_line(kind, outcomes) for kind, outcomes in sorted(by_kind.items())]
    lines.append(_line("all", result.load.outcomes))
    rate = f"{result.load.done / result.seconds:.0f} requests/s"
    peak = max((used for _, used in result.load.memory), default=0) / MEGABYTE
    return f"{aligned(lines)}\n\n{result.seconds:.1f} s, {rate}, {result.trouble.purges} purges, at most {peak:.0f} MB"


def _line(kind: str, outcomes: list[Outcome]) -> tuple[str, ...]:
    ends = Counter(outcome.end for outcome in outcomes)
    right = [1000 * (each.ended - each.begun) for each in outcomes if each.end is End.RIGHT] or [0.0]
    times = (f"{percentile(right, percent):.1f}" for percent in (50, 99))
    cached = sum(outcome.from_cache for outcome in outcomes)
    return (kind, str(len(outcomes)), *(str(ends[end] or "") for end in End), str(cached or ""), *times)


def _faults(result: Result) -> str:
    lines = [("fault", "at s", "lasted s", "healed after s", "failures")]
    for fault in result.trouble.faults:
        lifted = fault.lifted or fault.begun
        healed = "never" if fault.healed is None else f"{fault.healed - lifted:.1f}"
        failures = sum(each.end in FAILED and fault.touches(each.begun, each.ended) for each in result.load.outcomes)
        at = fault.begun - result.load.began
        lines.append((fault.name, f"{at:.1f}", f"{lifted - fault.begun:.1f}", healed, str(failures)))
    return aligned(lines)


def _complaints(result: Result) -> Iterator[str]:
    began = result.load.began
    for title, outcomes in (("wrong answers", wrong(result)), ("failures without a fault", unexcused(result))):
        lines = [f"  {each.begun - began:.1f} to {each.ended - began:.1f} s, {each}" for each in outcomes[:SHOWN]]
        if lines:
            yield "\n".join([f"{title}:", *lines])
    if result.trouble.problems:
        yield "\n".join(["problems:", *result.trouble.problems[:SHOWN]])
    if result.unforeseen:
        yield "\n".join(["from the log:", *result.unforeseen[:SHOWN]])
