"""What every training does with its working directory: hold it, take up the last checkpoint, stop in good order."""

from __future__ import annotations

import fcntl
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from experiments.experiment import Experiment
from transformer import data, models, training
from transformer.inspection import patterns
from transformer.training import integrity, optimizers, parallel, recipes, telemetry


class Run:
    """An experiment in its working directory: the model, the compiled step and the state of training.

    Args:
      experiment: what to train, and how.
      fingerprint: what determines the batches; another one than the checkpoint's is refused.
      workdir: where the checkpoints are.
      console: where it is said that a run goes on.
      kind: of `parallel.KINDS`.
    """

    def __init__(
        self, experiment: Experiment, fingerprint: Mapping[str, Any], workdir: Path, console: Console, kind: str
    ):
        config = experiment.training
        self.experiment, self.workdir, self.console = experiment, workdir, console
        self.model = models.Transformer(experiment.model)
        self.optimizer = optimizers.build(config.optimizer, config.steps)
        losses = {"smoothing": config.label_smoothing, "z_loss": config.z_loss}
        objective = partial(training.prediction, self.model, chunk=config.loss_chunk)
        step = partial(
            training.train_step, loss_fn=objective(**losses), optimizer=self.optimizer,
            accumulation=config.accumulation, seed=experiment.seed, ema=config.ema,
        )  # fmt: skip
        accuracy = experiment.data.objective.kind != "causal"
        evaluation = partial(training.evaluation_step, loss_fn=objective(accuracy=accuracy))
        self.parallel = parallel.build(kind, step, evaluation)
        totals = partial(patterns.totals, self.model, names=telemetry.SCORES)
        self.heads = telemetry.heads(totals, kind)
        self.recipe = {"config": experiment.dictionary(), "data": dict(fingerprint)}
        self.state = None

    def restore(self, params: dict | None = None) -> None:
        """Take up the last checkpoint, or begin anew, with these parameters or with random ones."""
        abstract = jax.eval_shape(self._initial)
        with training.Checkpoints(self.workdir, self.experiment.training.keep) as checkpoints:
            try:
                restored = checkpoints.restore(abstract)
            except integrity.Mismatch:  # names parameters, where a field of the recipe may say why
                self._refuse_changes(training.load_params(self.workdir).recipe)
                raise
        if restored is None:
            self.state = self.parallel.place_state(jax.jit(self._initial)(params))
            return
        self._refuse_changes(restored.recipe)
        self.state = self.parallel.place_state(restored.state)
        self.console.print(f"resuming {self.workdir} at step {restored.step}")

    def _refuse_changes(self, saved: dict[str, Any]) -> None:
        """Raises ValueError, naming what differs, unless a checkpoint's recipe is this one."""
        data.check_fingerprint(saved["data"], self.recipe["data"])
        # Built anew, an older recipe has the defaults of fields that came later.
        before = Experiment.build(saved["config"]).dictionary()
        changes = recipes.compare(before, self.recipe["config"])
        if changes:
            raise ValueError(f"{self.workdir} holds a run of another recipe: {'; '.join(changes)}; use a new --workdir")

    def _initial(self, params: dict | None = None) -> training.State:
        if params is None:
            tokens, config = jnp.zeros((1, 1), jnp.int32), self.experiment.model
            source = tokens if config.encoder is not None and config.decoder is not None else None
            params = self.model.init(jax.random.key(self.experiment.seed), tokens, source=source)["params"]
        return training.create(params, self.optimizer, self.experiment.training.ema)


class InUse(ValueError):
    """Another run holds the working directory."""


@contextmanager
def removed_if_refused(workdir: Path) -> Iterator[None]:
    """A run that cannot begin leaves nothing behind: directories that were not there before go again."""
    new = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        yield
    except BaseException as error:
        if new and not isinstance(error, InUse):  # by now it is the other run's
            shutil.rmtree(workdir, ignore_errors=True)
        with suppress(OSError):  # not there, or in use by another run meanwhile
            for parent in new[1:]:
                parent.rmdir()
        raise


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold a working directory, so that two runs never write to one; the lock goes when the process does."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("w") as file:
        if jax.process_index() == 0:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InUse(f"{workdir} is in use by another run: wait, or use a new --workdir") from None
        yield


@contextmanager
def signals() -> Iterator[list[int]]:
    """The SIGINT or SIGTERM that came, for the loop to look at between steps; a second one ends the process at once."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
