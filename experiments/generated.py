"""Training on sequences that a program generates, in the place of a corpus.

A recipe for it has `data=generated.data("NAME", LENGTH)`, where `experiments.NAME` is the program. What `train` leaves
in its working directory is a run like any other: `experiments.loading.load` opens it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers
from rich.console import Console
from tokenizers import pre_tokenizers

from experiments import command, loading, running, stopping
from experiments.devices import Devices
from experiments.experiment import Experiment
from transformer import text, training
from transformer.data import Data, Example, Tokenizer
from transformer.text.special import Special
from transformer.training import parallel

MARK = "generated:"  # before the program's name, in the place of a corpus's path
HELD_OUT = 2**31  # the first validation step: steps of training are int32, so none comes that far
VALIDATION = 4  # batches
SAMPLE = 8  # rows

Observe = Callable[[int, Any], Mapping[str, float]]


class BatchAt(Protocol):
    """The global batch of a step, a function of its arguments alone."""

    def __call__(self, seed: int, step: int, rows: int) -> Example:
        """`inputs`, `targets` `[rows, T]` integers and `weights` `[rows, T]`, which targets count."""


def data(program: str, length: int) -> Data:
    """What stands in a recipe for sequences of `length` tokens that `experiments.PROGRAM` generates."""
    # A table of characters is the one tokenizer whose size a recipe does not say.
    return Data(path=f"{MARK}{program}", length=length, tokenizer=Tokenizer(kind="characters", fallback=False))


def refuse(experiment: Experiment) -> None:
    """Raises ValueError, naming the program to use, if an experiment's sequences are generated."""
    path = experiment.data.path
    if path.startswith(MARK):
        program = f"experiments.{path.removeprefix(MARK)}"
        raise ValueError(f"data.path={path!r} is no text: python -m {program} generates it, trains on it and measures")


def check(experiment: Experiment, program: str) -> None:
    """Raises ValueError unless an experiment's data are what this program generates."""
    if experiment.data != data(program, experiment.data.length):
        has = f"data=generated.data({program!r}, LENGTH)"
        raise ValueError(f"config.data: this program makes its own sequences: take a recipe with {has} as it is")


def words(vocabulary: Sequence[str], end: str | None = None) -> text.Published:
    """A tokenizer whose ids are the words of a vocabulary, in order; white space and marks part words.

    Args:
      vocabulary: distinct words.
      end: the one of them that opens and ends every sequence, if there is such; as a special token it is no text.

    Raises:
      ValueError: if two words are the same, one would be cut in two, or `end` is none of them.
    """
    ids = {word: index for index, word in enumerate(vocabulary)}
    if len(ids) != len(vocabulary):
        twice = next(word for index, word in enumerate(vocabulary) if ids[word] != index)
        raise ValueError(f"vocabulary has {twice!r} twice: name each word once")
    table = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    for word in vocabulary:
        if word != end and [piece for piece, _ in table.pre_tokenizer.pre_tokenize_str(word)] != [word]:
            raise ValueError(f"vocabulary has {word!r}, which is cut in two: use letters alone, or marks alone")
    return text.Published(table, special=Special(eos=end))


def train(
    experiment: Experiment,
    tokenizer: text.Tokenizer,
    batch_at: BatchAt,
    workdir: str | Path,
    *,
    observe: Observe | None = None,
    console: Console | None = None,
    devices: Devices | None = None,
) -> loading.Trained:
    """Train to the experiment's last step, from the last checkpoint where there is one.

    A run that was interrupted goes on as if it had not been. Every `training.evaluate_every` steps `metrics.jsonl`
    receives the loss on held-out batches and what `observe` returns, each name behind `validation_`; and every
    `training.head_metrics_every` steps what `training.telemetry` measures of each head.

    Args:
      experiment: with `data` from `generated.data`.
      tokenizer: of the ids that are generated.
      batch_at: also gives the held-out batches, at steps that training never reaches.
      workdir: made if need be.
      observe: `observe(step, params)` measures the parameters after so many steps.
      console: where each checkpoint's values are printed; None prints nothing.
      devices: how the step runs on all devices; None shares the rows among them.

    Returns:
      The model at the step where the run is now.

    Raises:
      ValueError: if the batches do not fit the experiment, or `workdir` holds another run or is in use.
      command.Interrupted: after SIGINT or SIGTERM, with the step saved.
    """
    workdir, console, devices = Path(workdir), console or Console(quiet=True), devices or Devices()
    config = experiment.training
    if experiment.initial is not None:
        raise ValueError(
            f"initial={experiment.initial!r} cannot work: generated sequences are learnt from the beginning"
        )
    parallel.check(config.batch_size, config.accumulation, devices.mesh)
    experiment.check_vocabulary(tokenizer.size)
    fingerprint = _fingerprint(experiment, tokenizer, batch_at)
    with ExitStack() as held:
        with running.removed_if_refused(workdir):
            held.enter_context(running.locked(workdir))
            run = Run(experiment, fingerprint, workdir, console, devices)
            run.restore()
            tokenizer.save(workdir / "data")
        with stopping.signals() as stop:
            params, step = run.train(batch_at, observe, stop)
    if stop.signal:
        raise command.Interrupted(stop.signal, f"{workdir} at step {step}; the same command goes on from there")
    return loading.of_run(experiment, params, tokenizer, step)


class Run(running.Run):
    """An experiment on generated batches."""

    def train(self, batch_at: BatchAt, observe: Observe | None, stop: Callable[[int], bool]) -> tuple[dict, int]:
        """Run the loop to its end or until told to stop; returns the parameters and the step."""
        config, seed, start = self.experiment.training, self.experiment.seed, int(self.state.step)
        if not start:
            self.console.print(f"training {self.workdir}")
        share = self.parallel.share[:2]
        batches = Batches(batch_at, seed, config.batch_size, start, share)

        def from_step(step: int) -> Batches:
            batches.step = step
            return batches

        held_out = Batches(batch_at, seed, config.batch_size, HELD_OUT, share)
        kept = [next(held_out) for _ in range(VALIDATION)]

        def evaluate(params: Any) -> dict[str, float]:
            values = training.evaluate(self.parallel.evaluate, params, map(self.parallel.place_batch, kept))
            return values | dict(observe(batches.step, params) if observe else {})

        with (
            self.supervised(),
            training.Checkpoints(self.workdir, config.keep) as checkpoints,
            training.Writer(self.workdir, start) as writer,
        ):
            self.state, _ = training.train(
                self.state, config=config, parallel=self.parallel, batches=from_step, evaluate=evaluate,
                checkpoints=checkpoints, recipe=self.recipe, writer=writer, report=self._report,
                observe=self.heads, stop=stop, phases=self.phases, skipped=self.skipped,
            )  # fmt: skip
        return self.state.params if self.state.ema is None else self.state.ema, int(self.state.step)

    def _report(self, step: int, values: Mapping[str, float]) -> None:
        """Prints what is known at a checkpoint of the whole model; names with a slash are of its parts."""
        config = self.experiment.training
        if step % config.checkpoint_every and step != config.steps:
            return
        found = {name.removeprefix("validation_"): values[name] for name in values if name.startswith("validation_")}
        shown = [name for name in found if "/" not in name and name not in ("perplexity", "tokens")]
        line = ", ".join([f"training loss {values['loss']:.3f}", *(f"{name} {found[name]:.3f}" for name in shown)])
        speed = values["tokens_per_second"]
        self.console.print(f"step {step}: {line}" + ("" if math.isnan(speed) else f", {speed:,.0f} tokens/s"))


class Batches:
    """An endless iterator over this process's rows of each global batch; its only state is `step`, the next one."""

    def __init__(self, batch_at: BatchAt, seed: int, rows: int, start: int, share: tuple[int, int] = (0, 1)):
        self.step = start
        self._batch_at, self._seed, self._rows, self._share = batch_at, seed, rows, share

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Example:
        batch = self._batch_at(self._seed, self.step, self._rows)
        self.step += 1
        index, count = self._share
        own = self._rows // count
        return {name: array[index * own : (index + 1) * own] for name, array in batch.items()}


def _fingerprint(experiment: Experiment, tokenizer: text.Tokenizer, batch_at: BatchAt) -> dict[str, str | int]:
    """What determines the batches beside the recipe; a sample stands for the program.

    Raises ValueError if it does not fit the experiment.
    """
    rows, length, vocab = SAMPLE, experiment.data.length, experiment.model.vocab
    batch, content = batch_at(0, 0, rows), hashlib.sha256()
    for name in ("inputs", "targets", "weights"):
        array = np.asarray(batch[name])
        if array.shape != (rows, length):
            raise ValueError(
                f"batch_at gave {name} of shape {array.shape}: make them {(rows, length)}, as the recipe says"
            )
        if name != "weights" and not 0 <= array.min() <= array.max() < vocab:
            raise ValueError(
                f"batch_at gave {name} from {array.min()} to {array.max()}: the model has ids 0 to {vocab - 1}"
            )
        content.update(f"{name} {array.dtype} ".encode() + array.tobytes())
    return {
        "source": experiment.data.path,
        "content": content.hexdigest(),
        "tokenizer": tokenizer.fingerprint,
        "length": length,
    }
