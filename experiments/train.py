"""Train a model by a recipe, then let it write.

    python -m experiments.train --config=experiments/configs/stdlib.py --workdir=runs/stdlib
    python -m experiments.train --config=... --workdir=... --config.training.steps=2000 --parallel=pmap
    python -m experiments.train --config=... --workdir=... --mesh=fsdp=4,tensor=2 [--explain_sharding]
    python -m experiments.train --config=... --workdir=... --profile
    python -m experiments.train --config=... --workdir=... --config.initial=FOLDER --config.data.path=TEXT

The last one goes on from a pretrained model or from another run: the architecture, the parameters and the tokenizer are
those of FOLDER, and what only training reads is the recipe's (see `Experiment.beginning_with`).

`--mesh` says how devices share the work: `data` by rows; `fsdp` by rows, each device keeping a part of every parameter;
`tensor` by heads and inner features; `sequence` by positions; `expert` by experts. The global batch is the same for all
of them. `--explain_sharding` prints where every array would lie, and trains nothing.

`--profile` traces a few steps, once they are compiled and warm, into `profile` in the working directory, prints which
operations cost most, and goes on training.

A working directory that already holds a run resumes it from its last checkpoint, or from `--from_step`. What differs
from the run is refused unless `--accept` names it. SIGINT (Ctrl-C), SIGTERM and SIGUSR1 end the step that runs, save,
and leave with exit code 0, or the one that a launcher asks for; the other codes are those of
`transformer.training.exits`. Several processes train as one where the environment says so (see
`transformer/training/distributed.py` and `launch/README.md`); the first one speaks for them all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console

from experiments import (
    command,
    devices,
    generated,
    loading,
    measures,
    options,
    profiling,
    recipe,
    running,
    stopping,
    writing,
)  # fmt: skip
from experiments.experiment import Experiment
from transformer import data, models, text, training
from transformer.training import distributed, exits, metrics, parallel, phases, utilisation

CONFIG = recipe.define()
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and the tokenised corpus go.")
DEVICES = devices.define_parallel()
EXPLAIN = flags.DEFINE_boolean("explain_sharding", False, "Print where every array would lie, and train nothing.")
TENSORBOARD = flags.DEFINE_boolean("tensorboard", False, "Also write TensorBoard events.")
WANDB = flags.DEFINE_string("wandb", None, "Also log to this Weights & Biases project.")
options.define()
PROFILE = flags.DEFINE_boolean("profile", False, "Trace a few steps and print the operations that cost most.")


def main() -> int:
    clock, chosen = phases.Phases(), options.read()
    experiment = recipe.build(CONFIG)
    generated.refuse(experiment)
    if not WORKDIR.value:  # an empty one would be the current folder
        raise ValueError("--workdir is missing: say where the run goes, such as --workdir=runs/NAME")
    distributed.initialize()
    workdir, console, shared = Path(WORKDIR.value), writing.console(), DEVICES()
    console.quiet = jax.process_index() > 0
    parallel.check(experiment.training.batch_size, experiment.training.accumulation, shared.mesh)
    if EXPLAIN.value:
        devices.explain(shared, jax.eval_shape(running.Steps.of(experiment).init), console)
        return exits.FINISHED
    metrics.extras(TENSORBOARD.value, WANDB.value)
    with ExitStack() as held:
        with running.removed_if_refused(workdir):
            held.enter_context(running.locked(workdir))
            saved = training.load_recipe(workdir)
            experiment, params, tokenizer = _begin(experiment, workdir, saved)
            with distributed.first_alone("data"):
                corpus = running.prepare(experiment, workdir, chosen, tokenizer, saved)
            experiment.check_vocabulary(corpus.tokenizer.size)
            writing.check_prompts(experiment.prompts, corpus.tokenizer, experiment.data.objective.kind)
            run = Run(experiment, corpus, workdir, console, shared, chosen, clock)
            run.restore(params)
            del params
        with stopping.signals() as stop:
            trained = run.train(stop)
    if stop.signal:
        if not jax.process_index():
            print(f"stopped: at step {trained.step}; the same command goes on from there", file=sys.stderr)
        return exits.stopped() if trained.step < experiment.training.steps else exits.FINISHED
    writing.report(trained, experiment.prompts, console)
    console.print(f"\ncheckpoint: {workdir / 'checkpoints'}\nmetrics:    {workdir / metrics.FILE}")
    return exits.FINISHED


def _begin(
    experiment: Experiment, workdir: Path, saved: Mapping[str, Any] | None
) -> tuple[Experiment, dict | None, text.Tokenizer | None]:
    """The experiment with the model of `initial`, where it names one, and what training begins with.

    A run that goes on has parameters and a tokenizer of its own, so that `initial` may be gone meanwhile.
    """
    if experiment.initial is None:
        return experiment, None, None
    if saved is None:
        return *loading.initial(experiment), None
    begun = Experiment.build(saved["config"])
    return experiment.beginning_with(begun.model, begun.data.tokenizer.folder), None, text.load(workdir / "data")


class Run(running.Run):
    """An experiment on its corpus: everything that the loop needs, built from the recipe."""

    def __init__(
        self,
        experiment: Experiment,
        corpus: data.Corpus | data.Bitext,
        workdir: Path,
        console: Console,
        shared: devices.Devices = devices.DEFAULT,
        chosen: options.Options = options.DEFAULT,
        clock: phases.Phases | None = None,
    ):
        super().__init__(experiment, corpus.recipe, workdir, console, shared, chosen, clock)
        self.corpus = corpus
        config = experiment.training
        self.sizes = {"batch_size": config.batch_size, "batch_tokens": config.batch_tokens}
        # Bytes are known of what reads every token once; other objectives have no bits per byte.
        self.bytes = experiment.data.objective.kind == "causal"

    def train(self, stop: Callable[[int], bool] = lambda step: False) -> loading.Trained:
        """Run the loop to its end or until told to stop, and return the model; at the end, say how good it is."""
        config, corpus, start = self.experiment.training, self.corpus, int(self.state.step)
        batches = partial(data.batches, corpus, **self.sizes, seed=self.experiment.seed, **self._share())
        self._introduce(batches(start=start))
        with (
            self.supervised(),
            self._profiled(config.steps - start) as self.parallel,
            training.Checkpoints(self.workdir, config.keep) as checkpoints,
            training.Writer(self.workdir, start, tensorboard=TENSORBOARD.value, wandb=WANDB.value) as writer,
            training.Bar(config.steps, start, corpus.bytes_per_token if self.bytes else None, self.console) as bar,
        ):
            self.state, results = training.train(
                self.state, config=config, parallel=self.parallel, batches=lambda step: batches(start=step),
                evaluate=self._evaluate, checkpoints=checkpoints, recipe=self.recipe, writer=writer, report=bar,
                rates=self._rates(), observe=self.heads, stop=stop, phases=self.phases, skipped=self.skipped,
            )  # fmt: skip
        params = self.state.params if self.state.ema is None else self.state.ema
        step = int(self.state.step)
        trained = loading.of_run(self.experiment, params, corpus.tokenizer, step)
        if trained.step < config.steps:
            return trained
        if start > config.steps:
            self.console.print(f"there is nothing to train: the run is at step {start}, beyond steps={config.steps}")
        results = results or self._evaluate(params)
        self.console.print(f"\nvalidation: {measures.spoken(results)}, {results['tokens']:,.0f} tokens")
        return trained

    def _profiled(self, remaining: int) -> AbstractContextManager:
        """The compiled steps, of which the first process traces some where that is asked for."""
        if not PROFILE.value or jax.process_index():
            return nullcontext(self.parallel)
        return profiling.Profiled(self.parallel, self.workdir / "profile", remaining, self.console)

    def _evaluate(self, params: dict) -> dict[str, float]:
        """Over the whole validation stream."""
        batches = data.validation_batches(self.corpus, **self.sizes, **self._share())
        placed = map(self.parallel.place_batch, self.phases.each(batches))
        size = self.corpus.validation_bytes if self.bytes else None
        return training.evaluate(self.parallel.evaluate, params, placed, size)

    def _rates(self):
        """The function from tokens per second to the share of the hardware's arithmetic that they use."""
        flops = models.ledger(self.experiment.model).flops_per_token(self.experiment.data.length).training
        peak = utilisation.peak()
        peak = utilisation.measure_peak() if peak is None else peak
        most = peak * (1 if jax.default_backend() == "cpu" else jax.device_count())  # fake CPU devices share the cores

        def rates(tokens_per_second: float) -> dict[str, float]:
            return {"utilisation": utilisation.utilisation(tokens_per_second * flops, most)}

        return rates

    def _share(self) -> dict[str, int]:
        """Which part of every global batch this process needs."""
        return {"process_index": self.parallel.share.index, "process_count": self.parallel.share.count}

    def _introduce(self, batches: data.Batches) -> None:
        book = models.ledger(self.experiment.model)
        speed = data.pipeline_speed(batches, seconds=0.2)
        if (initial := self.experiment.initial) is not None:
            self.console.print(f"from:  {initial}; of the recipe's model, dropout, dtypes, unroll and remat are read")
        self.console.print(
            f"model: {book.total:,} parameters on {jax.device_count()} {jax.devices()[0].device_kind} device(s)\n"
            f"data:  {self.experiment.data.path}, {measures.amount(self.corpus)} to train on; the pipeline alone gives "
            f"{speed:,.0f} tokens/s, and {batches.fill:.1%} of the places in its rows hold tokens"
        )


if __name__ == "__main__":
    command.run(main, recipe.check_override)
