"""Compare runs: do recipes differ, or is it the noise of their seeds?

    python -m experiments.compare DIR... [--metric=validation_loss] [--baseline=DIR] [--plot=FILE.png] [--json]
    python -m experiments.compare runs/sweep

A DIR is the working directory of a run, or a folder of such, as a sweep makes. Runs whose recipes differ in the seed
alone are one group. All are compared at the last step at which each of them measured the metric.

Each group is compared with the baseline, that of the first DIR unless another is named, by the differences of runs with
the same seed: their mean, and the interval in which the mean of ever more seeds would lie with 95% confidence, by
Student's t with one degree of freedom less than there are pairs. That takes differences to be independent and normally
distributed, and holds for each comparison by itself. An interval with 0 in it is called within noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

from experiments import command, plots
from transformer import training
from transformer.training import metrics

METRIC = flags.DEFINE_string("metric", "validation_loss", "A name in the runs' metrics.jsonl.")
BASELINE = flags.DEFINE_string("baseline", None, "A run of the group that others are compared with.")
PLOT = flags.DEFINE_string("plot", None, "Where a plot goes, such as compared.png (extra: plots).")
JSON = flags.DEFINE_boolean("json", False, "Print JSON.")

CONFIDENCE = 0.95


class Run(NamedTuple):
    """A run: its recipe without the seed, by dotted field; and the metric by step."""

    workdir: Path
    seed: int
    fields: dict[str, str]
    values: dict[int, float]


class Interval(NamedTuple):
    """A mean of `count` values, their standard deviation, and the ends of the mean's interval; NaN for one value."""

    count: int
    mean: float
    deviation: float
    low: float
    high: float


class Group(NamedTuple):
    """Runs that differ in the seed alone; `values` at the compared step by seed, `difference` from the baseline."""

    name: str
    runs: list[Run]
    values: dict[int, float]
    difference: Interval | None


def main(words: list[str]) -> None:
    if not words:
        raise ValueError("no runs are given: name their working directories, such as runs/sweep or runs/a runs/b")
    if PLOT.value:
        plots.check(PLOT.value)
    runs = [read(folder, METRIC.value) for word in words for folder in _workdirs(Path(word))]
    baseline = Path(BASELINE.value or runs[0].workdir).resolve()
    step = _last_step(runs)
    groups = compare(runs, step, baseline)
    if JSON.value:
        print(json.dumps({"metric": METRIC.value, "step": step, "groups": [_plain(group) for group in groups]}))
    else:
        console = Console(highlight=False, soft_wrap=True)
        if not console.is_terminal:
            console.width = 160
        console.print(table(groups, step))
        for group in groups[1:]:
            console.print(f"{group.name}: {verdict(group.difference)}", markup=False)
    if PLOT.value:
        plots.save(draw(groups, step), PLOT.value)


def read(workdir: Path, metric: str) -> Run:
    """A run's metric and recipe.

    Raises:
      ValueError: if there are none.
    """
    rows = metrics.read(workdir)
    known = sorted({name for row in rows for name, value in row.items() if isinstance(value, float)})
    values = {row["step"]: row[metric] for row in rows if metric in row}
    if not values:
        raise ValueError(f"{workdir} has measured no {metric!r}: choose --metric from {', '.join(known) or 'none'}")
    recipe = training.load_recipe(workdir)
    if recipe is None:
        raise ValueError(f"{workdir} holds no checkpoint, which would say by what recipe it was trained")
    leaves = flatten_dict(recipe["config"], sep=".", is_leaf=lambda _, value: not value)
    fields = {name: json.dumps(value) for name, value in leaves.items()}
    return Run(workdir, int(fields.pop("seed")), fields, values)


def compare(runs: Sequence[Run], step: int, baseline: Path) -> list[Group]:
    """Groups at a step, the baseline's first.

    Raises:
      ValueError: if the baseline is none of the runs, a group has a seed twice, or a value is not finite.
    """
    together: dict[tuple, list[Run]] = {}
    for run in runs:
        together.setdefault(tuple(sorted(run.fields.items())), []).append(run)
    found = sorted(together.values(), key=lambda group: baseline not in [run.workdir.resolve() for run in group])
    if baseline not in [run.workdir.resolve() for run in found[0]]:
        raise ValueError(f"--baseline={BASELINE.value} is none of the runs that are compared: name one of them")
    names = _names([group[0].fields for group in found])
    values = [_by_seed(group, step) for group in found]
    differences = [None, *(_difference(values[0], other) for other in values[1:])]
    return [Group(*parts) for parts in zip(names, found, values, differences, strict=True)]


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


def table(groups: Sequence[Group], step: int) -> Table:
    """Every group's mean, deviation and interval."""
    title = f"{METRIC.value} at step {step}; intervals of the mean: {CONFIDENCE:.0%}, by Student's t"
    out = Table("recipe", title=title, title_justify="left")
    for name in ("seeds", "mean", "deviation", "interval"):
        out.add_column(name, justify="right")
    for index, group in enumerate(groups):
        count, mean, deviation, low, high = interval(list(group.values.values()))
        spread = ("", "") if count < 2 else (f"{deviation:.4g}", f"[{low:.5g}, {high:.5g}]")
        baseline = " (baseline)" if index == 0 and len(groups) > 1 else ""
        out.add_row(group.name.replace("[", r"\[") + baseline, str(count), f"{mean:.5g}", *spread)
    return out


def draw(groups: Sequence[Group], step: int) -> Any:
    """A figure: the metric by step, each run thin; and the paired differences with their intervals."""
    figure, (left, right) = plots.library().subplots(1, 2, figsize=(11, 4))
    for index, group in enumerate(groups):
        colour = plots.COLOURS[index % len(plots.COLOURS)]
        for count, run in enumerate(group.runs):
            label = group.name if count == 0 else None
            left.plot(list(run.values), list(run.values.values()), color=colour, linewidth=1, alpha=0.7, label=label)
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


def _workdirs(folder: Path) -> list[Path]:
    """A run, or the runs in a folder."""
    if (folder / metrics.FILE).is_file():
        return [folder]
    inside = sorted(path.parent for path in folder.glob(f"*/{metrics.FILE}"))
    if not inside:
        raise ValueError(f"{folder} holds no {metrics.FILE}, and no folder with one: name working directories of runs")
    return inside


def _last_step(runs: Sequence[Run]) -> int:
    common = set.intersection(*(set(run.values) for run in runs))
    if not common:
        raise ValueError(f"there is no step at which all runs measured {METRIC.value!r}: compare fewer of them")
    return max(common)


def _by_seed(group: Sequence[Run], step: int) -> dict[int, float]:
    values: dict[int, float] = {}
    for run in sorted(group, key=lambda run: run.seed):
        if run.seed in values:
            same = " and ".join(str(other.workdir) for other in group if other.seed == run.seed)
            raise ValueError(f"{same} are of one recipe and one seed: leave one out")
        if not isinstance(run.values[step], (int, float)):
            raise ValueError(f"{run.workdir} has no finite {METRIC.value!r} at step {step}: leave it out")
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
