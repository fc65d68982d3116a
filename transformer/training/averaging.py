"""The mean of a run's last checkpoints, with which Vaswani et al. (2017, section 6.1) translate."""

from __future__ import annotations

import numbers
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from transformer.training.restoring import Restored, load_params, load_steps


def average_checkpoints(workdir: str | Path, average: int, step: int | str = "latest") -> Restored:
    """The mean of the parameters of the last `average` intact checkpoints up to `step`; changes nothing on disk.

    Of each checkpoint it takes what `load_params` does: where there is a moving average, that. Sums are float64, the
    result has the types that were saved, and one checkpoint is in memory at a time. A damaged checkpoint is left out,
    with a warning, for one before it.

    The last are those with the highest steps. A run keeps `training.keep` of them and also the one with the lowest
    loss, which may be much older: with `average` above `training.keep` it is among them.

    Args:
      workdir: of the run.
      average: how many.
      step: the newest of them: a number, "latest", or "best", the one with the lowest loss.

    Returns:
      The mean, with the recipe and the step of the newest.

    Raises:
      ValueError: if there are fewer, or their parameters differ in names, shapes or types; or as `load_params`.
    """
    if not isinstance(average, numbers.Integral) or average < 1:
        raise ValueError(f"average={average!r} must be the number of checkpoints to average: use 1 or more")
    newest = load_params(workdir, step)
    mean = _Mean(newest)
    newest = newest._replace(state=None)  # not in memory beside the next
    for number in reversed(load_steps(workdir)):
        if len(mean.steps) == average or number >= newest.step:
            continue
        try:
            restored = load_params(workdir, number)
        except ValueError as error:
            logging.warning("%s; it is left out of the average", error)
            continue
        mean.add(restored)
        del restored
    if len(mean.steps) < average:
        raise ValueError(
            f"average={average}: {workdir} has only {len(mean.steps)} intact checkpoints up to step {newest.step}, "
            f"{mean.steps[::-1]}; training.keep says how many a run keeps"
        )
    logging.info("averaged the checkpoints %s", mean.steps[::-1])
    return newest._replace(state=mean.value())


class _Mean:
    """The mean of parameters that are added one after the other, `first` first."""

    def __init__(self, first: Restored):
        leaves = flatten_dict(first.state, sep="/")
        self.steps = [first.step]
        self._types = {path: (leaf.dtype, leaf.shape) for path, leaf in leaves.items()}
        self._sums = {path: leaf.astype(np.float64) for path, leaf in leaves.items()}

    def add(self, restored: Restored) -> None:
        """Adds parameters with the same names, shapes and types; else raises ValueError."""
        leaves = flatten_dict(restored.state, sep="/")
        types = {path: (leaf.dtype, leaf.shape) for path, leaf in leaves.items()}
        unequal = [path for path in sorted({**types, **self._types}) if types.get(path) != self._types.get(path)]
        if unequal:
            first = unequal[0]
            raise ValueError(
                f"checkpoints {restored.step} and {self.steps[0]} cannot be averaged: {first} is "
                f"{_written(types.get(first))} in the one and {_written(self._types.get(first))} in the other, and "
                f"{len(unequal) - 1} more differ: average those of one recipe"
            )
        self.steps.append(restored.step)
        for path, leaf in leaves.items():
            self._sums[path] += leaf.astype(np.float64)

    def value(self) -> dict[str, Any]:
        """The mean, nested, in the types of the first."""
        count = len(self.steps)
        means = {path: (total / count).astype(self._types[path][0]) for path, total in self._sums.items()}
        return unflatten_dict(means, sep="/")


def _written(kind: tuple[np.dtype, tuple[int, ...]] | None) -> str:
    return "absent" if kind is None else f"{kind[0]}{list(kind[1])}"
