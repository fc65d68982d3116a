"""The loop around the step: batches in, metrics, evaluations and checkpoints out."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np

from transformer.training.checkpoints import Checkpoints
from transformer.training.config import Training
from transformer.training.metrics import Writer
from transformer.training.parallel import Jit, Pmap
from transformer.training.state import State

Values = dict[str, float]
Metrics = Mapping[str, Any]  # of one step: scalars

# Steps that the devices have been given beyond the last one that is known to be done. With one there is always work for
# them; the second makes up for a batch that comes late. Many fake CPU devices stop for ever with hundreds.
AHEAD = 2


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

    The devices never wait for a batch or a line: the next steps are given to them before the metrics of the last are
    read, so a line is written up to `AHEAD` steps late. Only what needs the parameters of a step waits for it.

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
    step, saved, results, stopped, copy = int(state.step), int(state.step), {}, False, None

    def write(end: int, values: Values) -> None:
        writer.write(end, values)
        report(end, values)

    with _Lines(rates) as lines:
        while step < config.steps and not stopped:
            try:
                batch = parallel.place_batch(next(batches))
            except BaseException:
                for line in lines.land(0, saved):
                    write(*line)
                raise
            state, metrics = parallel.train(state, batch)
            step += 1
            last, stopped = step == config.steps, stop()
            evaluates = last or step % config.evaluate_every == 0
            saves = last or stopped or step % config.checkpoint_every == 0
            observes = every > 0 and step % every == 0
            waits = evaluates or saves or observes
            lines.start(step, metrics, waits or step % config.log_every == 0)
            for end, values in lines.land(0 if waits else AHEAD, saved):
                if end == step and observes:
                    values |= observe(state.params, batch)
                if end == step and evaluates:
                    results = evaluate(state.params if state.ema is None else state.ema)
                    values |= {f"validation_{name}": value for name, value in results.items()}
                write(end, values)
            if saves:
                checkpoints.wait()  # nobody reads the last copy any more
                copy = parallel.host_state(state, copy)
                checkpoints.save(copy, recipe, values.get("validation_loss"))
                saved = step
            if waits:
                lines.resume()  # measurements of heads, evaluations and checkpoints are not training
    return state, results


class _Lines:
    """Lines from the metrics of steps, which a thread reads as soon as the devices are done; a context manager."""

    def __init__(self, rates: Callable[[float], Values]):
        self._rates = rates
        self._reader = ThreadPoolExecutor(1, "metrics")
        self._steps: deque[tuple[int, Future[tuple[Metrics, float]], bool]] = deque()
        self._rows: list[Metrics] = []
        self._begin: float | None = None

    def start(self, step: int, metrics: Metrics, ends: bool) -> None:
        """The devices were given a step; `ends` says whether a line ends with it."""
        self._steps.append((step, self._reader.submit(_read, metrics), ends))

    def land(self, left: int, saved: int) -> Iterator[tuple[int, Values]]:
        """Waits until at most `left` steps are under way; gives each line that ended, and its last step.

        The tokens per second of the first are NaN, as its first step compiles. `saved` is the last checkpoint.
        """
        while len(self._steps) > left:
            step, metrics, ends = self._steps.popleft()
            row, now = metrics.result()
            self._rows.append(row)
            if not ends:
                continue
            values = _mean(self._rows, step, saved)
            tokens = values.pop("tokens")
            speed = math.nan if self._begin is None else tokens / (now - self._begin)
            self._rows, self._begin = [], now
            yield step, values | {"tokens_per_second": speed} | self._rates(speed)

    def resume(self) -> None:
        """What passed since the last line was no training."""
        self._begin = time.perf_counter()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.shutdown()


def _read(metrics: Metrics) -> tuple[Metrics, float]:
    return jax.device_get(metrics), time.perf_counter()


def _mean(rows: list[Metrics], step: int, saved: int) -> Values:
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
