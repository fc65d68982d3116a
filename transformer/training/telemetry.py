"""What every head does while a model is trained, measured on a step's own batch, over all devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from transformer.training.objective import SEEN
from transformer.training.parallel import Jit, Pmap
from transformer.training.step import Batch

SCORES = ("entropy", "sink_mass", "previous_token", "induction")

# By attention and score: the sum over queries, and the weight of those that count; [L, H] each.
Totals = Mapping[str, Mapping[str, tuple[jax.Array, jax.Array]]]
Build = Callable[[Callable, Callable], Jit | Pmap]


def heads(totals: Callable[..., Totals], build: Build) -> Callable[[Any, Any], dict[str, float]]:
    """The measurement that the loop calls with placed parameters and a placed batch.

    Args:
      totals: of parameters and tokens `[B, T]`, with `weights` `[B, T]` and, where the batch has them, `segments`,
        `positions` and what else a model sees; such as `inspection.patterns.totals`. They add up over devices and are
        divided once.
      build: makes of two steps what runs them on all devices, as `parallel.build` does once it has a kind.

    Returns:
      A function whose values are called `heads/ATTENTION/LAYER/HEAD/SCORE`; NaN where no query counts.
    """
    measure = partial(observation_step, totals=totals)
    compiled = build(measure, measure).evaluate  # of the two steps this alone ever runs
    return lambda params, batch: _values(jax.device_get(compiled(params, batch)))


def observation_step(
    params: Any, batch: Batch, *, totals: Callable[..., Totals], axis_name: str | None = None
) -> Totals:
    """The totals of a batch over all devices, without dropout. A query weighs as much as its target in the loss."""
    arguments = {name: batch[name] for name in SEEN if name in batch}
    found = totals(params, batch["inputs"], weights=batch["weights"], **arguments)
    return found if axis_name is None else jax.lax.psum(found, axis_name)


def _values(totals: Totals) -> dict[str, float]:
    values = {}
    for attention, scores in totals.items():
        for score, (total, count) in scores.items():
            means = np.where(count > 0, total / np.where(count > 0, count, 1), np.nan)
            for (layer, head), mean in np.ndenumerate(means):
                values[f"heads/{attention}/{layer}/{head}/{score}"] = float(mean)
    return values
