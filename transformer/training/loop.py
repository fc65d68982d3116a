"""The loop around the step: batches in, metrics, evaluations and checkpoints out, and what is done about faults."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging

from transformer.training import exits
from transformer.training.checkpoints import Checkpoints
from transformer.training.config import Training
from transformer.training.drift import Watch
from transformer.training.lines import Lines, Metrics, Values
from transformer.training.metrics import Writer
from transformer.training.parallel import Jit, Pmap
from transformer.training.phases import Phases
from transformer.training.skipping import Skipped
from transformer.training.state import State

# Steps that the devices have been given beyond the last one that is known to be done. With one there is always work for
# them; the second makes up for a batch that comes late. Many fake CPU devices stop for ever with hundreds.
AHEAD = 2


class Report(Protocol):
    """Shows a person how training goes."""

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Called with what is written to the metrics file, at the same steps."""


class _Bad(Exception):
    """One bad step too many: `first` to `last` were bad, the last one as `what` says."""

    def __init__(self, first: int, last: int, what: str):
        super().__init__(what)
        self.first, self.last, self.what = first, last, what


def train(
    state: State,
    *,
    config: Training,
    parallel: Jit | Pmap,
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    evaluate: Callable[[Any], Values],
    checkpoints: Checkpoints,
    recipe: dict[str, Any],
    writer: Writer,
    report: Report,
    observe: Callable[[Any, Any], Values] | None = None,
    rates: Callable[[float], Values] = lambda tokens_per_second: {},
    stop: Callable[[int], bool] = lambda step: False,
    phases: Phases | None = None,
    skipped: Skipped | None = None,
) -> tuple[State, Values]:
    """Steps from `state.step` to `config.steps`, logging, evaluating and saving on the way and at the end.

    The devices never wait for a batch or a line: the next steps are given to them before the metrics of the last are
    read, so a line is written up to `AHEAD` steps late. Only what needs the parameters of a step waits for it.

    What is logged is the mean over the steps since the last line, each token weighing the same. A line ends at every
    checkpoint, so a run that was stopped and resumed writes the lines of one that was not; what `observe` and
    `evaluate` give is of the parameters after the line's last step.

    A bad step (see `train_step`) changes nothing. After more than `config.skips` of them in a row, training goes back
    to the last checkpoint before them and on with the batch after the last bad one, as Chowdhery et al. (2022, PaLM,
    section 5.1) did, and stops after `config.rollbacks` times. Copies on several devices are compared every
    `config.fingerprint_every` steps and before every checkpoint, so that none is saved that drifted apart.

    Args:
      state: placed by `parallel`.
      config: how long, how often to log, evaluate and save, and what to bear.
      parallel: the compiled step.
      batches: from a step, this process's rows of each global batch from there on.
      evaluate: of placed parameters; its values are logged as `validation_*`, and `loss` decides the best checkpoint.
      checkpoints: where the state is saved, with `recipe` and the roll-backs.
      writer, report: receive each line of metrics.
      observe: of parameters and the batch of the step that made them, both placed; more values to log, at every
        `config.head_metrics_every` steps.
      rates: more values to log, from tokens per second.
      stop: asked after every step, with its number, in every process alike; once it is true, the state is saved and
        the loop ends.
      phases: where the time goes, which whoever watches looks at.
      skipped: the roll-backs so far.

    Returns:
      The state after the last step, and the values of the last evaluation, if there was any.

    Raises:
      NonFinite: after too many bad steps. Nothing is saved after the step before them.
      Drifted: if copies on several devices differ. Nothing is saved after the last time that they were equal.
      NotSaved: if a checkpoint cannot be written and `config.on_save_error` is "stop", or it is the last.
      ValueError: if `config.head_metrics_every` is set and there is nothing that observes.
    """
    if config.head_metrics_every and observe is None:
        raise ValueError(
            f"training.head_metrics_every={config.head_metrics_every} cannot work: this run measures no heads; use 0"
        )
    if config.on_save_error == "continue" and jax.process_count() > 1:
        raise ValueError(
            "training.on_save_error='continue' cannot work with several processes, as one may save what another "
            "cannot: leave it at 'stop', and let the launcher start again"
        )
    loop = _Loop(state, config, parallel, checkpoints, writer, report, phases or Phases("step"), skipped or Skipped())
    loop.evaluate, loop.observe, loop.recipe = evaluate, observe, recipe
    loop.phases.enter("step")
    with Lines(rates, loop.judge) as loop.lines:
        loop.run(batches, stop)
    return loop.state, loop.results


class _Loop:
    """What changes from step to step."""

    evaluate: Callable[[Any], Values]
    observe: Callable[[Any, Any], Values] | None
    recipe: dict[str, Any]
    lines: Lines

    def __init__(
        self,
        state: State,
        config: Training,
        parallel: Jit | Pmap,
        checkpoints: Checkpoints,
        writer: Writer,
        report: Report,
        phases: Phases,
        skipped: Skipped,
    ):
        self.state, self.config, self.parallel, self.checkpoints = state, config, parallel, checkpoints
        self.writer, self.report, self.phases, self.skipped = writer, report, phases, skipped
        self.step = int(state.step)
        self.results: Values = {}
        self.copy, self.jumped = None, False
        self.watch: Watch | None = None
        self.abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)

    def run(self, batches: Callable[[int], Iterator], stop: Callable[[int], bool]) -> None:
        """To the last step, or until told to stop."""
        stopped, iterator = False, None
        while self.step < self.config.steps and not stopped:
            try:
                if (target := self.skipped.after(self.step)) > self.step:
                    self._go_on(self.state, target)
                    iterator = None
                    continue
                iterator = batches(self.step) if iterator is None else iterator
                batch = self._next(iterator)
                self.state, metrics = self.parallel.train(self.state, batch)
                self.step = self.phases.step = self.step + 1
                self.jumped = False
                stopped = stop(self.step)
                self._after(batch, metrics, stopped)
            except _Bad as bad:
                self._roll_back(bad)
                stopped, iterator = False, None
        if self.jumped:  # and no step after it
            self._finish()
        self._guarded(self.checkpoints.wait, last=True)

    def judge(self, step: int, row: Metrics) -> bool:
        """Whether a step counts; raises what ends or turns the run."""
        if "fingerprint" in row:
            self.watch.check(row["fingerprint"], step)
        if not row["bad"]:
            self.phases.count(float(row["count"]))
            return True
        self.phases.move()
        norm = f"gradient norm {float(row['grad_norm'])}"
        what = f"is not finite (loss {float(row['loss'])}, {norm})"
        if row["finite"]:
            what = f"is a spike ({norm}, over training.spike={self.config.spike} times the usual)"
        if row["bad"] > self.config.skips:
            raise _Bad(step - int(row["bad"]) + 1, step, what)
        logging.warning("step %d %s: it is skipped, the %d. in a row", step, what, row["bad"])
        return False

    def _next(self, iterator: Iterator) -> Any:
        """The next batch on the devices; what they waited for it is told apart."""
        begin = time.perf_counter()
        try:
            batch = self.parallel.place_batch(next(iterator))
        except BaseException:
            for line in self.lines.land(0):
                self._write(*line)
            raise
        self.phases.shift(self.lines.idle(begin), "data")
        return batch

    def _after(self, batch: Any, metrics: Metrics, stopped: bool) -> None:
        """What is due after a step was given to the devices."""
        config, step = self.config, self.step
        due = lambda every: every > 0 and step % every == 0  # noqa: E731
        last = step == config.steps
        evaluates, observes = last or due(config.evaluate_every), due(config.head_metrics_every)
        saves = last or stopped or due(config.checkpoint_every)
        waits = evaluates or saves or observes
        if config.fingerprint_every and (saves or due(config.fingerprint_every)):
            metrics = metrics | self._fingerprint()
        values: Values = {}
        self.lines.start(step, metrics, waits or due(config.log_every))
        for end, values in self.lines.land(0 if waits else AHEAD):
            if end == step:
                values |= self._measure(batch, observes, evaluates)
            self._write(end, values)
        if saves:
            self._save(values.get("validation_loss"))
        if waits:
            self.lines.resume()  # measurements of heads, evaluations and checkpoints are not training

    def _finish(self) -> None:
        """What is due after the last step, where a roll-back left that out."""
        values = dict.fromkeys(("loss", "nats", "tokens_per_second"), math.nan) | self._measure(None, False, True)
        self._write(self.step, values)
        self._save(self.results.get("loss"))

    def _measure(self, batch: Any, observes: bool, evaluates: bool) -> Values:
        values: Values = {}
        if not (observes or evaluates):
            return values
        with self.phases.within("evaluation"):
            if observes:
                values |= self.observe(self.state.params, batch)
            if evaluates:
                self.results = self.evaluate(self.state.params if self.state.ema is None else self.state.ema)
                values |= {f"validation_{name}": value for name, value in self.results.items()}
        return values

    def _fingerprint(self) -> Metrics:
        """What tells whether copies differ, where there are any."""
        if jax.device_count() == 1:
            return {}
        self.watch = self.watch or Watch(self.state)
        return {"fingerprint": self.watch.sums(self.state)}

    def _write(self, end: int, values: Values) -> None:
        try:
            self.writer.write(end, values)
        except OSError as error:
            if self.config.on_save_error == "stop":
                raise
            logging.warning("the line of step %d is not written (%s); training goes on", end, error)
        self.report(end, values)

    def _save(self, loss: float | None) -> None:
        jumps = {"skipped": self.skipped.jumps} if self.skipped.jumps else {}

        def save() -> None:
            self.copy = self.parallel.host_state(self.state, self.copy)
            self.checkpoints.save(self.copy, self.recipe | jumps, loss)

        with self.phases.within("checkpoint"):
            self._guarded(self.checkpoints.wait)  # nobody reads the last copy any more
            self._guarded(save)
        self.phases.save()

    def _guarded(self, action: Callable[[], None], last: bool = False) -> None:
        """What cannot be saved ends the run or not, as configured; the last checkpoint always does."""
        try:
            action()
        except exits.NotSaved as error:
            if last or self.config.on_save_error == "stop":
                raise
            logging.warning("%s; training goes on, and tries again at the next checkpoint", error)

    def _roll_back(self, bad: _Bad) -> None:
        """Back to the last checkpoint before the bad steps, and on behind them."""
        self._guarded(self.checkpoints.wait)
        steps, often = self.checkpoints.steps(), len(self.skipped.jumps)
        before = [step for step in steps if step < bad.first]
        if not before or often >= self.config.rollbacks:
            kept = f"the last good state is the checkpoint of step {steps[-1]}" if steps else "nothing was saved yet"
            tried = f" after {often} roll-backs" if often else ""
            fix = "lower training.optimizer.learning_rate, raise its warmup, or clip more"
            raise exits.NonFinite(f"step {bad.last} {bad.what}{tried}; {kept}; {fix}")
        self.lines.drop()
        self.phases.lose()
        self.results = {}  # of parameters that may be gone
        with self.phases.within("checkpoint"):
            self.checkpoints.roll_back(before[-1])
            restored = self.checkpoints.restore_placed(self.parallel, self.abstract)
        said = "step %d %s: back to the checkpoint of step %d, and on with the data after step %d"
        logging.warning(said, bad.last, bad.what, restored.step, bad.last)
        self.skipped.add(restored.step, bad.last)
        self._go_on(restored.state, bad.last)

    def _go_on(self, state: State, step: int) -> None:
        """From this state as if the steps until `step` had been made."""
        counted = self.parallel.place_state({"step": np.int32(step), "health": {"bad": np.int32(0)}})
        self.state = state.replace(step=counted["step"], health=state.health | counted["health"])
        self.step, self.jumped = step, True
        self.lines.resume()
