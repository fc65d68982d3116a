"""From timings to rows, and from rows to a table: medians, rates, shares of a ceiling, ratios to the best peer."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from experiments.benchmarks import ceilings
from experiments.benchmarks.contest import Case, Result

SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def ratio(ours: Sequence[float], peers: Mapping[str, Sequence[float]]) -> tuple[float, str] | None:
    """How many times as fast as the best peer: its median of seconds over ours, and its name; None without peers.

    Above 1 ours is the faster one.
    """
    medians = {name: statistics.median(seconds) for name, seconds in peers.items() if seconds}
    if not (ours and medians):
        return None
    best = min(medians, key=medians.__getitem__)
    return medians[best] / statistics.median(ours), best


def rows(case: Case, results: Sequence[Result], limits: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row for each program that ran, as JSON has it.

    Args:
      limits: as from `ceilings.best`.
    """
    peers = {result.program.name: result.seconds for result in results if not result.program.ours}
    return [_row(case, result, peers, limits) for result in results if result.seconds and not result.failure]


def left_out(case: Case, results: Sequence[Result]) -> list[str]:
    """Why programs did not run; a missing package is said without the case, so that it is said once."""
    lines = []
    for result in results:
        if result.failure:
            where = (
                "" if "not installed" in result.failure else f"{case.name}, {case.precision}, {result.program.name}: "
            )
            lines.append(where + result.failure)
    return lines


def _row(case: Case, result: Result, peers: Mapping[str, Sequence[float]], limits: Mapping[str, float]) -> dict:
    median = statistics.median(result.seconds)
    row = {
        "case": case.name, "precision": case.precision, "program": result.program.name, "seconds": result.seconds,
        "median": median, "rate": case.amount / median if median > 0 else None, "unit": case.unit,
        "memory": result.memory, **result.noted,
    }  # fmt: skip
    reached = ceilings.share(case, median, limits) if median > 0 else None
    if reached:
        row |= {"share": reached[0], "ceiling": reached[1]}
    against = ratio(result.seconds, peers) if result.program.ours else None
    return row | ({"ratio": against[0], "against": against[1]} if against else {})


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The one table, in the order of the rows."""
    out = Table(
        title="ratio: ours ÷ the fastest peer in the same precision; above 1 ours is faster", title_justify="left"
    )
    for name in ("case", "precision", "program"):
        out.add_column(name)
    for name in ("median", "lowest", "highest", "rate", "of ceiling", "memory", "ratio"):
        out.add_column(name, justify="right")
    before = None
    for row in rows:
        case = (row["case"], row["precision"])
        if before not in (None, case):
            out.add_section()
        kept = f", {row['accepted']:.0%} accepted" if "accepted" in row else ""
        out.add_row(*(case if case != before else ("", "")), row["program"] + kept, *_cells(row))
        before = case
    return out


def _cells(row: Mapping[str, Any]) -> list[str]:
    times = [_time(number) for number in (row["median"], min(row["seconds"]), max(row["seconds"]))]
    rate = "-" if row["rate"] is None else f"{_scaled(row['rate'])}{row['unit']}/s"
    share = f"{row['share']:.0%} {row['ceiling']}" if "share" in row else "-"
    memory = "-" if row["memory"] is None else f"{_scaled(row['memory'])}B"
    return [*times, rate, share, memory, f"{row['ratio']:.2f} ({row['against']})" if "ratio" in row else "-"]


def _time(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 10
        else f"{1e3 * seconds:.1f} ms"
        if seconds >= 1e-3
        else f"{1e6 * seconds:.0f} µs"
    )


def _scaled(number: float) -> str:
    size, letter = next((scale for scale in SCALES if number >= scale[0]), SCALES[-1])
    return f"{number / size:.3g} {letter}"
