"""What looking inside costs while it is unused, and what measuring heads costs while training.

    python -m experiments.benchmarks.inspection

Method: unused taps are compared as programs, not in time: the forward pass of GPT-2 small as it is handed to the
compiler, beside one whose taps can do nothing at all. Heads are measured as `training.head_metrics_every` does, with
the recipe's model and batch: steps and measurements are warmed up, then timed in turn, `--repeats` times; medians are
printed, with the lowest and the highest, and the time of one measurement over that of `--every` steps. What it costs to
keep patterns is the workload `inspection` of `experiments.benchmarks.run`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import runpy
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import command
from experiments.experiment import Experiment
from transformer import models, training
from transformer.inspection import patterns
from transformer.nn.tap import Tap
from transformer.training import optimizers, parallel, telemetry

_DEPTH = flags.DEFINE_integer("depth", 12, "Layers.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 768, "Width of the residual.", lower_bound=1)
_HEADS = flags.DEFINE_integer("heads", 12, "Heads of a layer.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 1, "Rows.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 512, "Tokens in a row.", lower_bound=1)
_RECIPE = flags.DEFINE_string("recipe", "experiments/configs/stdlib.py", "What is trained while heads are measured.")
_EVERY = flags.DEFINE_integer("every", 50, "Steps between measurements of heads.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timings of which the median counts.", lower_bound=1)


class Nothing(Tap):
    """A tap that can neither read nor replace."""

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        return x

    def wants(self, name: str) -> bool:
        return False

    def under(self, name: str) -> Nothing:
        return self

    def at_layer(self, role: str, layer: jax.Array | int) -> Nothing:
        return self


def main() -> None:
    """Print whether the programs are the same, then one line for each that is timed, and what they come to."""
    experiment, config = Experiment.build(runpy.run_path(_RECIPE.value)["get_config"]()), _config()
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}")
    _compare(models.Transformer(config))
    _train(experiment)


def _config() -> models.ModelConfig:
    """GPT-2 small, as large as the flags say."""
    published = models.get("gpt2-small")
    attention = dataclasses.replace(published.decoder.attention, heads=_HEADS.value)
    decoder = dataclasses.replace(published.decoder, depth=_DEPTH.value, attention=attention)
    return dataclasses.replace(published, width=_WIDTH.value, length=_LENGTH.value, decoder=decoder)


def _compare(model: models.Transformer) -> None:
    tokens = jax.ShapeDtypeStruct((_BATCH.value, _LENGTH.value), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    plain = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens))
    untapped = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens, tap=Nothing()))
    same = plain.lower(params, tokens).as_text() == untapped.lower(params, tokens).as_text()
    print(f"unused taps: {'the same program' if same else 'ANOTHER PROGRAM'} as without taps")


def _train(experiment: Experiment) -> None:
    config, model = experiment.training, models.Transformer(experiment.model)
    optimizer = optimizers.build(config.optimizer, config.steps)
    step = functools.partial(
        training.train_step, loss_fn=training.prediction(model), optimizer=optimizer,
        accumulation=config.accumulation, ema=config.ema,
    )  # fmt: skip
    steps = parallel.build("jit", step, functools.partial(training.evaluation_step, loss_fn=training.prediction(model)))
    heads = telemetry.heads(
        functools.partial(patterns.totals, model, names=telemetry.SCORES), functools.partial(parallel.build, "jit")
    )
    ids = np.random.default_rng(0).integers(
        0, model.config.vocab, (config.batch_size, experiment.data.length), np.int32
    )
    batch = steps.place_batch({"inputs": ids, "targets": ids, "weights": np.ones(ids.shape, np.float32)})
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])
    state = steps.place_state(training.create(init(jax.random.key(0)), optimizer, config.ema))

    def train() -> jax.Array:
        nonlocal state
        state, metrics = steps.train(state, batch)
        return metrics["loss"]

    seconds = _interleaved({"training step": train, "heads": lambda: heads(state.params, batch)})
    _print_ratios(seconds)
    one, other = (statistics.median(seconds[name]) for name in ("training step", "heads"))
    print(f"heads measured every {_EVERY.value} steps: {other / one / _EVERY.value:.2%} of the time of the steps")


def _interleaved(programs: dict[str, Callable]) -> dict[str, list[float]]:
    """Seconds of each program, which take turns; the first round compiles and does not count."""
    seconds = {name: [] for name in programs}
    for repeat in range(_REPEATS.value + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _print_ratios(seconds: dict[str, list[float]]) -> None:
    """A line for each program, with its median over that of the first."""
    first = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        median, low, high = (1e3 * of(times) for of in (statistics.median, min, max))
        print(f"{name:24} {median:8.1f} ms ({low:.1f} to {high:.1f}), {median / 1e3 / first:.2f} x")


if __name__ == "__main__":
    command.run(main)
