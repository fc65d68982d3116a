"""Runs as others find them: by what recipe they were trained, and what they measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flax.traverse_util import flatten_dict

from transformer import training
from transformer.training import metrics


class Run(NamedTuple):
    """A run: its recipe without the seed, by dotted field; and the metric by step, None where it was not finite."""

    workdir: Path
    seed: int
    fields: dict[str, str]
    values: dict[int, float | None]


def workdirs(folder: Path) -> list[Path]:
    """A run, or the runs in a folder, of which those of a sweep have a = in their name, whatever is in them."""
    if (folder / metrics.FILE).is_file():
        return [folder]
    inside = [path for path in sorted(folder.glob("*/")) if "=" in path.name or (path / metrics.FILE).is_file()]
    if not any((path / metrics.FILE).is_file() for path in inside):
        raise ValueError(f"{folder} holds no {metrics.FILE}, and no folder with one: name working directories of runs")
    return inside


def read_all(workdirs: Sequence[Path], metric: str) -> tuple[list[Run], dict[Path, str]]:
    """Runs that measured the metric, and of the others why they are none.

    Raises:
      ValueError: if there is none that did.
    """
    runs, unread = [], {}
    for workdir in workdirs:
        try:
            runs.append(read(workdir, metric))
        except ValueError as error:
            unread[workdir] = f"nothing measured ({error})"
            if len(unread) == len(workdirs):
                raise
    return runs, unread


def read(workdir: Path, metric: str) -> Run:
    """A run's metric and recipe.

    Raises:
      ValueError: if there are none.
    """
    rows = metrics.read(workdir)
    known = sorted({name for row in rows for name, value in row.items() if isinstance(value, float)})
    finite = (int, float)
    values = {row["step"]: row[metric] if isinstance(row[metric], finite) else None for row in rows if metric in row}
    if not values:
        raise ValueError(f"{workdir} has measured no {metric!r}: choose --metric from {', '.join(known) or 'none'}")
    recipe = training.load_recipe(workdir)
    if recipe is None:
        raise ValueError(f"{workdir} holds no checkpoint, which would say by what recipe it was trained")
    leaves = flatten_dict(recipe["config"], sep=".", is_leaf=lambda _, value: not value)
    fields = {name: json.dumps(value) for name, value in leaves.items()}
    return Run(workdir, int(fields.pop("seed")), fields, values)
