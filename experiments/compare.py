"""Compare runs: do recipes differ, or is it the noise of their seeds?

    python -m experiments.compare DIR... [--metric=validation_loss] [--baseline=DIR] [--plot=FILE.png] [--json]
    python -m experiments.compare runs/sweep

A DIR is the working directory of a run, or a folder of such, as a sweep makes. Runs whose recipes differ in the seed
alone are one group. All are compared at the last step at which most of them measured the metric, and most of the
baseline's group. Runs that ended before it, diverged or measured nothing are named, and left out.

Each group is compared with the baseline, that of the first DIR unless another is named, by the differences of runs with
the same seed: their mean, and the interval in which the mean of ever more seeds would lie with 95% confidence, by
Student's t with one degree of freedom less than there are pairs. That takes differences to be independent and normally
distributed, and holds for each comparison by itself. An interval with 0 in it is called within noise.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

from experiments import command, plots
from experiments.runs import Run, read_all, workdirs

METRIC = flags.DEFINE_string("metric", "validation_loss", "A name in the runs' metrics.jsonl.")
BASELINE = flags.DEFINE_string("baseline", None, "A run of the group that others are compared with.")
PLOT = flags.DEFINE_string("plot", None, "Where a plot goes, such as compared.png (extra: plots).")
JSON = flags.DEFINE_boolean("json", False, "Print JSON.")

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean of `count` values, their standard deviation, and the ends of the mean's interval; NaN for one value."""

    count: int
    mean: float
    deviation: float
    low: float
    high: float


class Group(NamedTuple):
    """Runs that differ in the seed alone; `values` at the compared step by seed, `difference` from the baseline.

    `without` says of each run that has no value why.
    """

    name: str
    runs: list[Run]
    values: dict[int, float]
    without: dict[Path, str]
    difference: Interval | None


def main(words: list[str]) -> None:
    if not words:
        raise ValueError("no runs are given: name their working directories, such as runs/sweep or runs/a runs/b")
    if PLOT.value:
        plots.check(PLOT.value)
    runs, unread = read_all([folder for word in words for folder in workdirs(Path(word))], METRIC.value)
    baseline = Path(BASELINE.value or runs[0].workdir).resolve()
    step = compared_step(runs, baseline)
    groups = compare(runs, step, baseline)
    left_out = {
        str(path): why for without in (unread, *(each.without for each in groups)) for path, why in without.items()
    }
    for path, why in left_out.items():
        print(f"left out: {path}: {why}", file=sys.stderr)
    if JSON.value:
        found = {"groups": [_plain(group) for group in groups], "left_out": left_out}
        print(json.dumps({"metric": METRIC.value, "step": step, **found}))
    else:
        console = Console(highlight=False, soft_wrap=True)
        if not console.is_terminal:
            console.width = 160
        console.print(table(groups, step, unread))
        for group in groups[1:]:
            said = verdict(group.difference) if group.values else "left out"
            console.print(f"{group.name}: {said}", markup=False)
    if PLOT.value:
        plots.save(draw(groups, step), PLOT.value)


def compare(runs: Sequence[Run], step: int, baseline: Path) -> list[Group]:
    """Groups at a step, the baseline's first.

    Raises:
      ValueError: if the baseline is none of the runs, or a group has a seed twice.
    """
    found = _grouped(runs, baseline)
    names = _names([group[0].fields for group in found])
    without = [{run.workdir: why for run in group if (why := _missing(run, step))} for group in found]
    values = [
        _by_seed([run for run in group if run.workdir not in out], step)
        for group, out in zip(found, without, strict=True)
    ]
    differences = [None, *(_difference(values[0], other) for other in values[1:])]
    return [Group(*parts) for parts in zip(names, found, values, without, differences, strict=True)]


def compared_step(runs: Sequence[Run], baseline: Path) -> int:
    """The last step at which most runs measured the metric, and most of the baseline's group.

    Raises:
      ValueError: if there is none, or the baseline is none of the runs.
    """
    shared = set.intersection(*(_majority(group) for group in (runs, _grouped(runs, baseline)[0])))
    if not shared:
        raise ValueError(f"there is no step at which most runs measured {METRIC.value!r}: compare fewer of them")
    return max(shared)


def _majority(runs: Sequence[Run]) -> set[int]:
    """The steps that more than half of the runs have."""
    counts = Counter(step for run in runs for step in run.values)
    return {step for step, count in counts.items() if 2 * count > len(runs)}


def _grouped(runs: Sequence[Run], baseline: Path) -> list[list[Run]]:
    """Runs by recipe, those of the baseline's first."""
    together: dict[tuple, list[Run]] = {}
    for run in runs:
        together.setdefault(tuple(sorted(run.fields.items())), []).append(run)
    found = sorted(together.values(), key=lambda group: baseline not in [run.workdir.resolve() for run in group])
    if baseline not in [run.workdir.resolve() for run in found[0]]:
        raise ValueError(f"--baseline={BASELINE.value} is none of the runs that are compared: name one of them")
    return found


def _missing(run: Run, step: int) -> str | None:
    """Why a run has no value at a step; None where it has one."""
    if step not in run.values:
        return f"not measured at step {step} (last at {max(run.values)})"
    return "diverged" if run.values[step] is None else None


def interval(values: Sequence[float]) -> Interval:
    """The mean of some values, and its interval of `CONFIDENCE` by Student's t."""
    count, mean = len(values), float(np.mean(values)) if len(values) else math.nan
    if count < 2:
        return Interval(count, mean, math.nan, math.nan, math.nan)
    deviation = float(np.std(values, ddof=1))
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(count)
    return Interval(count, mean, deviation, mean - half, mean + half)


def verdict(difference: Interval) -> str:
    """A difference from the baseline in words."""
    count, mean, _, low, high = difference
    if count == 0:
        return "no seed in common with the baseline, so nothing can be paired: run both with --seeds"
    if count == 1:
        return f"{mean:+.4g} in one pair of runs, which says nothing about noise: run more seeds"
    said = f"{mean:+.4g} [{low:+.4g}, {high:+.4g}] over {count} pairs"
    if low <= 0 <= high:
        return f"{said}: within noise"
    return f"{said}: {'lower' if mean < 0 else 'higher'} than the baseline, beyond noise"


def table(groups: Sequence[Group], step: int, unread: Mapping[Path, str]) -> Table:
    """Every group's mean, deviation and interval, and what is left out."""
    title = f"{METRIC.value} at step {step}; intervals of the mean: {CONFIDENCE:.0%}, by Student's t"
    out = Table("recipe", title=title, title_justify="left")
    for name in ("seeds", "mean", "deviation", "interval"):
        out.add_column(name, justify="right")
    out.add_column("left out")
    for index, group in enumerate(groups):
        count, mean, deviation, low, high = interval(list(group.values.values()))
        spread = ("", "") if count < 2 else (f"{deviation:.4g}", f"[{low:.5g}, {high:.5g}]")
        baseline = " (baseline)" if index == 0 and len(groups) > 1 else ""
        why = Counter(group.without.values())
        left_out = ", ".join(f"{times} {said}" for said, times in why.items())
        number = f"{mean:.5g}" if count else ""
        out.add_row(group.name.replace("[", r"\[") + baseline, str(count), number, *spread, left_out)
    for path in unread:
        out.add_row(path.name.replace("[", r"\["), "0", "", "", "", "nothing measured")
    return out


def draw(groups: Sequence[Group], step: int) -> Any:
    """A figure: the metric by step, each run thin; and the paired differences with their intervals."""
    figure, (left, right) = plots.library().subplots(1, 2, figsize=(11, 4))
    for index, group in enumerate(groups):
        colour = plots.COLOURS[index % len(plots.COLOURS)]
        for count, run in enumerate(group.runs):
            label = group.name if count == 0 else None
            heights = [math.nan if value is None else value for value in run.values.values()]
            left.plot(list(run.values), heights, color=colour, linewidth=1, alpha=0.7, label=label)
        if group.difference is not None and group.difference.count:
            _, mean, _, low, high = group.difference
            half = None if math.isnan(low) else [[mean - low], [high - mean]]
            right.errorbar([mean], [index], xerr=half, color=colour, marker="o", capsize=4)
    left.set(title=METRIC.value, xlabel="step")
    left.legend(fontsize="small")
    right.axvline(0, color="black", linewidth=1, linestyle=":")
    right.set(title=f"Difference from {groups[0].name} at step {step}, {CONFIDENCE:.0%} intervals")
    right.set(yticks=range(1, len(groups)), yticklabels=[group.name for group in groups[1:]])
    right.invert_yaxis()
    return figure


def _by_seed(group: Sequence[Run], step: int) -> dict[int, float]:
    values: dict[int, float] = {}
    for run in sorted(group, key=lambda run: run.seed):
        if run.seed in values:
            same = " and ".join(str(other.workdir) for other in group if other.seed == run.seed)
            raise ValueError(f"{same} are of one recipe and one seed: leave one out")
        values[run.seed] = float(run.values[step])
    return values


def _difference(baseline: Mapping[int, float], other: Mapping[int, float]) -> Interval:
    return interval([other[seed] - baseline[seed] for seed in other if seed in baseline])


def _names(groups: Sequence[dict[str, str]]) -> list[str]:
    """The fields in which recipes differ, each by as much of its name as tells it apart."""
    everything = {name for fields in groups for name in fields}
    differ = sorted(name for name in everything if len({fields.get(name) for fields in groups}) > 1)
    if not differ:
        return ["all runs"]
    ends = [name.rsplit(".", 1)[-1] for name in differ]
    short = [end if ends.count(end) == 1 else name for name, end in zip(differ, ends, strict=True)]
    return [
        ", ".join(f"{end}={fields.get(name, 'absent')}" for name, end in zip(differ, short, strict=True))
        for fields in groups
    ]


def _plain(group: Group) -> dict[str, Any]:
    numbers = None if group.difference is None else group.difference._asdict()
    if numbers is not None:
        numbers = {name: None if math.isnan(value) else value for name, value in numbers.items()}
    return {
        "recipe": group.name,
        "runs": {run.seed: str(run.workdir) for run in group.runs},
        "values": group.values,
        "difference": numbers,
    }


if __name__ == "__main__":
    flags.FLAGS.set_gnu_getopt()  # flags may stand behind directories
    command.run(main, words=True)
