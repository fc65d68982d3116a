"""What every training does with its working directory: hold it, take up the last checkpoint, stop in good order."""

from __future__ import annotations

import fcntl
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console

from experiments.devices import Devices
from experiments.experiment import Experiment
from transformer import data, models, training
from transformer.inspection import patterns
from transformer.training import integrity, optimizers, recipes, telemetry


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
            accumulation=config.accumulation, seed=experiment.seed, ema=config.ema,
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
      console: where it is said that a run goes on.
      devices: how the step runs on all devices.
    """

    def __init__(
        self, experiment: Experiment, fingerprint: Mapping[str, Any], workdir: Path, console: Console, devices: Devices
    ):
        self.experiment, self.workdir, self.console = experiment, workdir, console
        self.steps = Steps.of(experiment)
        self.parallel = devices.build(self.steps.train, self.steps.evaluation)
        totals = partial(patterns.totals, self.steps.model, names=telemetry.SCORES)
        self.heads = telemetry.heads(totals, devices.build)
        self.recipe = {"config": experiment.dictionary(), "data": dict(fingerprint)}
        self.state = None

    def restore(self, params: dict | None = None) -> None:
        """Take up the last checkpoint, or begin anew, with these parameters or with random ones."""
        abstract = jax.eval_shape(self.steps.init)
        with training.Checkpoints(self.workdir, self.experiment.training.keep) as checkpoints:
            try:
                restored = checkpoints.restore(abstract)
            except integrity.Mismatch:  # names parameters, where a field of the recipe may say why
                self._refuse_changes(training.load_params(self.workdir).recipe)
                raise
        if restored is None:
            self.state = self.parallel.init_state(self.steps.init, params)
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
