"""The loop around the step: batches in, metrics, evaluations and checkpoints out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from transformer.training.checkpoints import Checkpoints
from transformer.training.config import Training
from transformer.training.metrics import Writer
from transformer.training.parallel import Jit, Pmap
from transformer.training.state import State

Values = dict[str, float]


class NonFinite(ValueError):
    """The loss or a gradient became infinite or NaN; the last checkpoint from before stays."""


class Report(Protocol):
    """Shows a person how training goes."""

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Called with what is written to the metrics file, at the same steps."""


def train(
    state: State,
    *,
    config: Training,
    parallel: Jit | Pmap,
    batches: Iterator[dict[str, np.ndarray]],
    evaluate: Callable[[Any], Values],
    checkpoints: Checkpoints,
    recipe: dict[str, Any],
    writer: Writer,
    report: Report,
    observe: Callable[[Any, Any], Values] | None = None,
    rates: Callable[[float], Values] = lambda tokens_per_second: {},
    stop: Callable[[], bool] = lambda: False,
) -> tuple[State, Values]:
    """Steps from `state.step` to `config.steps`, logging, evaluating and saving on the way and at the end.

    What is logged is the mean over the steps since the last line, each token weighing the same. A line ends at every
    checkpoint, so a run that was stopped and resumed writes the lines of one that was not; what `observe` and
    `evaluate` give is of the parameters after the line's last step.

    Args:
      state: placed by `parallel`.
      config: how long, and how often to log, evaluate and save.
      parallel: the compiled step.
      batches: this process's rows of each global batch, from step `state.step` on.
      evaluate: of placed parameters; its values are logged as `validation_*`, and `loss` decides the best checkpoint.
      checkpoints: where the state is saved, with `recipe`.
      writer, report: receive each line of metrics.
      observe: of parameters and the batch of the step that made them, both placed; more values to log, at every
        `config.head_metrics_every` steps.
      rates: more values to log, from tokens per second.
      stop: asked after every step; once it is true, the state is saved and the loop ends.

    Returns:
      The state after the last step, and the values of the last evaluation, if there was any.

    Raises:
      NonFinite: if a step was not finite. Nothing is saved after the step before it.
      ValueError: if `config.head_metrics_every` is set and there is nothing that observes.
    """
    every = config.head_metrics_every
    if every and observe is None:
        raise ValueError(f"training.head_metrics_every={every} cannot work: this run measures no heads; set it to 0")
    step, pending, results, clock, saved = int(state.step), [], {}, _Clock(), int(state.step)
    stopped = False
    while step < config.steps and not stopped:
        batch = parallel.place_batch(next(batches))
        state, metrics = parallel.train(state, batch)
        step += 1
        pending.append(metrics)
        last, stopped = step == config.steps, stop()
        evaluates = last or step % config.evaluate_every == 0
        saves = last or stopped or step % config.checkpoint_every == 0
        observes = every > 0 and step % every == 0
        if not (evaluates or saves or observes or step % config.log_every == 0):
            continue

        values = _mean(jax.device_get(pending), step, saved)
        tokens_per_second = clock.lap(values.pop("tokens"))
        pending.clear()
        values |= {"tokens_per_second": tokens_per_second} | rates(tokens_per_second)
        if observes:
            values |= observe(state.params, batch)
        if evaluates:
            results = evaluate(state.params if state.ema is None else state.ema)
            values |= {f"validation_{name}": value for name, value in results.items()}
        writer.write(step, values)
        report(step, values)
        if saves:
            checkpoints.save(parallel.host_state(state), recipe, values.get("validation_loss"))
            saved = step
        clock.start()  # measurements of heads, evaluations and checkpoints are not training
    return state, results


class _Clock:
    """Tokens per second of training alone; NaN for the first line, whose first step compiles."""

    def __init__(self):
        self._begin: float | None = None

    def start(self) -> None:
        self._begin = time.perf_counter()

    def lap(self, tokens: float) -> float:
        return math.nan if self._begin is None else tokens / (time.perf_counter() - self._begin)


def _mean(rows: list[dict[str, np.ndarray]], step: int, saved: int) -> Values:
    """One line from the metrics of several steps: `loss` and `nats` over all tokens, the rest as at the last step."""
    first = step - len(rows) + 1
    for offset, row in enumerate(rows):
        if not row["finite"]:
            values = f"loss {float(row['loss'])}, gradient norm {float(row['grad_norm'])}"
            kept = f"the last good state is the checkpoint of step {saved}" if saved else "there is no checkpoint yet"
            fix = "lower training.optimizer.learning_rate, raise its warmup, or clip more"
            raise NonFinite(f"step {first + offset} is not finite ({values}); {kept}; {fix}")
    counts = np.asarray([row["count"] for row in rows], np.float64)
    values = {name: float(value) for name, value in rows[-1].items() if name not in ("finite", "count")}
    for name in ("loss", "nats"):
        values[name] = float(np.asarray([row[name] for row in rows], np.float64) @ counts / max(counts.sum(), 1.0))
    return values | {"tokens": float(counts.sum())}
