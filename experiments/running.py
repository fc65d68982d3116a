"""What every training does with its working directory: hold it, take up the last checkpoint, say where time went."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from rich.console import Console

from experiments.devices import Devices
from experiments.experiment import Experiment
from experiments.options import DEFAULT, Options
from transformer import data, models, text, training
from transformer.inspection import patterns
from transformer.training import exits, integrity, metrics, optimizers, phases, recipes, skipping, telemetry
from transformer.training.watchdog import Watchdog

LEASE = 100  # seconds, somewhat more than NFS keeps the lock of a client that is gone


class Steps(NamedTuple):
    """What a recipe's model, optimizer and losses make: all that runs on devices."""

    model: models.Transformer
    train: Callable[..., Any]
    evaluation: Callable[..., Any]
    init: Callable[..., training.State]  # of parameters, or of None for random ones

    @classmethod
    def of(cls, experiment: Experiment) -> Steps:
        """The steps of an experiment, as `parallel.build` takes them."""
        config = experiment.training
        model = models.Transformer(experiment.model)
        optimizer = optimizers.build(config.optimizer, config.steps)
        losses = {"smoothing": config.label_smoothing, "z_loss": config.z_loss}
        objective = partial(training.prediction, model, chunk=config.loss_chunk)
        step = partial(
            training.train_step, loss_fn=objective(**losses), optimizer=optimizer,
            accumulation=config.accumulation, seed=experiment.seed, ema=config.ema, spike=config.spike,
        )  # fmt: skip
        accuracy = experiment.data.objective.kind != "causal"
        evaluation = partial(training.evaluation_step, loss_fn=objective(accuracy=accuracy))

        def init(params: dict | None = None) -> training.State:
            if params is None:
                tokens, parts = jnp.zeros((1, 1), jnp.int32), experiment.model
                source = tokens if parts.encoder is not None and parts.decoder is not None else None
                params = model.init(jax.random.key(experiment.seed), tokens, source=source)["params"]
            return training.create(params, optimizer, config.ema)

        return cls(model, step, evaluation, init)


class Run:
    """An experiment in its working directory: the model, the compiled step and the state of training.

    Args:
      experiment: what to train, and how.
      fingerprint: what determines the batches; another one than the checkpoint's is refused.
      workdir: where the checkpoints are.
      console: where it is said that a run goes on, and at the end where its time went.
      devices: how the step runs on all devices.
      options: how it goes on.
      clock: the phases so far; None begins with the run.
    """

    def __init__(
        self,
        experiment: Experiment,
        fingerprint: Mapping[str, Any],
        workdir: Path,
        console: Console,
        devices: Devices,
        options: Options = DEFAULT,
        clock: phases.Phases | None = None,
    ):
        self.experiment, self.workdir, self.console, self.options = experiment, workdir, console, options
        self.phases = clock or phases.Phases()
        self.steps = Steps.of(experiment)
        self.parallel = devices.build(self.steps.train, self.steps.evaluation)
        totals = partial(patterns.totals, self.steps.model, names=telemetry.SCORES)
        self.heads = telemetry.heads(totals, devices.build)
        self.recipe = {"config": experiment.dictionary(), "data": dict(fingerprint)}
        if options.from_step is not None:
            self.recipe["from_step"] = options.from_step
        self.skipped = skipping.Skipped(workdir / skipping.FILE)
        self.state = None

    def restore(self, params: dict | None = None) -> None:
        """Take up the last checkpoint or the one to go back to, or begin anew, with these parameters or random ones."""
        fields = [*recipes.fields(self.recipe["config"]), *(f"data.{name}" for name in self.recipe["data"])]
        self.options.check(fields)
        abstract, step = jax.eval_shape(self.steps.init), self._wanted()
        cast = self.options.accepts("model.param_dtype")
        with training.Checkpoints(self.workdir, self.experiment.training.keep) as checkpoints:
            try:
                restored = checkpoints.restore_placed(self.parallel, abstract, step, cast=cast)
            except integrity.Mismatch:  # names parameters, where a field of the recipe may say why
                self._refuse_changes(training.load_recipe(self.workdir, step))
                raise
            if restored is None:
                self.state = self.parallel.init_state(self.steps.init, params)
                return
            self._refuse_changes(restored.recipe)
            if step != "latest":
                self._go_back(checkpoints, restored.step)
        until = None if step == "latest" else restored.step - 1
        self.skipped = skipping.load(self.workdir, restored.recipe.get("skipped", ()), until)
        self.state = restored.state
        self.console.print(f"resuming {self.workdir} at step {restored.step}")

    @contextmanager
    def supervised(self) -> Iterator[None]:
        """Watches over training while the block runs; however it ends, it is written down where the time went."""
        first = int(self.state.step)
        self.skipped.write()
        with self.phases, Watchdog(self.phases, self.options.watchdog):
            try:
                yield
            finally:
                report = self.phases.report(first, self.phases.step or first)
                try:
                    phases.write(self.workdir, report)
                except OSError as error:
                    logging.warning("the report of the run is not written (%s)", error)
        self.console.print(phases.table(report))

    def _wanted(self) -> int | str:
        """The step to go back to, unless that was done by the same command before it was started again."""
        if self.options.from_step is None:
            return "latest"
        newest = training.load_recipe(self.workdir)
        if newest is None or newest.get("from_step") != self.options.from_step:
            return self.options.from_step
        self.console.print(f"{self.workdir} went back to step {self.options.from_step} before: going on from there")
        return "latest"

    def _go_back(self, checkpoints: training.Checkpoints, step: int) -> None:
        later = checkpoints.roll_back(step)
        lines = self.workdir / metrics.FILE
        if later and lines.exists() and not jax.process_index():
            shutil.copy(lines, lines.with_stem(f"{lines.stem}-before-{step}"))
        if later:
            self.console.print(f"set aside the checkpoints of steps {', '.join(map(str, later))}")

    def _refuse_changes(self, saved: dict[str, Any]) -> None:
        """Raises ValueError, naming what differs from a checkpoint's recipe, unless that is accepted."""
        try:
            data.check_fingerprint(saved["data"], self.recipe["data"])
        except data.Changed as changed:
            self.options.refuse(changed.changes, f"{self.workdir} holds a run of other data")
        # Built anew, an older recipe has the defaults of fields that came later.
        before = Experiment.build(saved["config"]).dictionary()
        changes = recipes.compare(before, self.recipe["config"])
        self.options.refuse(changes, f"{self.workdir} holds a run of another recipe")


def prepare(
    experiment: Experiment,
    workdir: Path,
    options: Options,
    tokenizer: text.Tokenizer | None = None,
    saved: Mapping[str, Any] | None = None,
) -> data.Corpus | data.Bitext:
    """The corpus of a run in its working directory; of several processes one comes first.

    Where other data is accepted than the run began with, the old corpus is set aside; its tokenizer stays, unless
    another one is accepted too, as the model knows no other.

    Args:
      tokenizer: one that is there already, for new data.
      saved: the recipe of the last checkpoint, which all processes read together; None: there is none.

    Raises:
      ValueError: as `data.prepare`; naming the flag, if the data differs and that is not accepted.
    """
    folder = workdir / "data"
    try:
        return data.prepare(experiment.data, folder, tokenizer)
    except data.Changed as error:
        changes = dict(error.changes)
    if any(name.split(".")[0] == "data" for name in options.accept) and not options.accepts("data.tokenizer"):
        tokenizer = text.load(folder)
        try:
            return data.prepare(experiment.data, folder, tokenizer)  # as the same command left it
        except data.Changed as error:
            changes = {field: said for field, said in changes.items() if field in error.changes}
    if saved:
        before = Experiment.build(saved["config"]).dictionary()
        changes |= recipes.compare(before, experiment.dictionary())
    options.refuse(changes, f"the data in {folder} is not what the run began with")
    names = (workdir / f"data-before-{number}" for number in itertools.count(1))
    folder.rename(next(path for path in names if not path.exists()))
    return data.prepare(experiment.data, folder, tokenizer)


class InUse(ValueError):
    """Another run holds the working directory."""


@contextmanager
def removed_if_refused(workdir: Path) -> Iterator[None]:
    """A run that cannot begin leaves nothing behind: directories that were not there before go again."""
    new = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        yield
    except BaseException as error:
        saved = any((workdir / training.CHECKPOINTS).glob("*"))
        if (
            new and not saved and not isinstance(error, InUse) and not jax.process_index()
        ):  # else it is another's by now
            shutil.rmtree(workdir, ignore_errors=True)
        with suppress(OSError):  # not there, or in use by another run meanwhile
            for parent in new[1:]:
                parent.rmdir()
        raise


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold a working directory, so that two runs never write to one; the lock goes when the process does.

    A process that a launcher started anew waits for the one before it, which may still be ending, or have left a lock
    behind on a file system of another machine.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / "lock").open("w")
    except OSError as error:
        reason = f"--workdir={workdir} cannot be written to ({error.strerror}): name a folder that can, or make room"
        raise ValueError(reason) from error
    with file:
        if jax.process_index() == 0:
            _lock(file, workdir, LEASE if exits.STOPPED_CODE in os.environ else 0)
        yield


def _lock(file: IO[str], workdir: Path, seconds: float) -> None:
    end, told = time.monotonic() + seconds, False
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise InUse(f"{workdir} is in use by another run: wait, or use a new --workdir") from None
        if not told:
            print(f"{workdir} is in use by another run: waiting {seconds} s for it to end", file=sys.stderr, flush=True)
        told = True
        time.sleep(1)
